"""Checks for the exercises of chapter 3: each says what is wrong, and where to look."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from shared.ch03 import MultiHeadAttention
from shared.exercises import Leaky, checked, close, finds_leaks, number, tensor

SEED = 3


@checked("3.1", wants="a tensor (T, T) of torch.bool")
def causal_mask(mask_of) -> None:
    """True above the diagonal and False elsewhere."""
    mask = tensor(mask_of(4), 4, 4)
    assert mask.dtype == torch.bool, (
        f"the mask should hold True and False (torch.bool), not {mask.dtype}"
    )
    assert not mask.diagonal().any(), (
        "the diagonal is True, which hides each token from itself: the first token "
        "would have nothing left to attend to"
    )
    assert not mask.tril().any(), (
        "the mask hides the past; True should stand where the column is larger than "
        "the row"
    )
    assert mask.triu(1).sum() == 6, (
        "some later token is not hidden: all six entries above the diagonal of a 4 x 4 "
        "mask should be True"
    )
    assert not tensor(mask_of(1), 1, 1).any(), "one token alone sees itself"
    print("Right: no token sees the future, and every token sees itself.")


@checked("3.2", wants="a tensor of the same shape as the scores")
def safe_softmax(softmax) -> None:
    """A stable softmax in which a fully hidden row becomes zeros."""
    scores = torch.randn(2, 3, 5, generator=_generator())
    softmax.hint = (
        "perhaps a maximum or a sum over the last dimension has lost that dimension; "
        "keepdim=True keeps it, with size 1"
    )
    result = tensor(softmax(scores), 2, 3, 5)
    assert close(result.sum(dim=-1), torch.ones(2, 3)), (
        "the weights should sum to 1 over the last dimension, for any number of "
        "dimensions before it (use dim=-1 and keepdim=True)"
    )
    assert close(result, torch.softmax(scores, dim=-1)), (
        "for ordinary scores the result should be that of torch.softmax"
    )
    large = tensor(softmax(scores + 1000), 2, 3, 5)
    assert torch.isfinite(large).all(), (
        "scores near 1000 give nan: subtract the largest score of each row before "
        "taking exponentials"
    )
    uneven = scores + torch.tensor([[1000.0], [0.0], [-1000.0]])
    assert close(tensor(softmax(uneven), 2, 3, 5), torch.softmax(uneven, dim=-1)), (
        "rows near 1000, 0 and -1000 in one tensor go wrong: each row needs its own "
        "largest score, max(dim=-1, keepdim=True), not that of the whole tensor"
    )
    hidden = scores.clone()
    hidden[0, 0] = -torch.inf
    hidden[1, 1, 2:] = -torch.inf
    result = tensor(softmax(hidden), 2, 3, 5)
    assert not torch.isnan(result).any(), (
        "a row of -inf gives nan: its largest score is -inf, and -inf - (-inf) is not "
        "a number; replace that largest score, and the sum of zero, by something finite"
    )
    assert (result[0, 0].abs() < 1e-12).all(), (
        "a row in which all is hidden should be all zeros"
    )
    assert close(result[1], torch.softmax(hidden[1], dim=-1)), (
        "rows that are hidden in part should still be those of torch.softmax"
    )
    print("Right: stable for large scores, and zeros where everything is hidden.")


@checked("3.3", wants="one True or False", keeps=True)
def leaks(has_leak) -> None:
    """`has_leak(layer, T, d_in)` finds layers that see ahead, and accuses no other."""
    has_leak.hint = "the layer takes one text (1, T, d_in), of T tokens or fewer"

    def layer(leak):
        torch.manual_seed(SEED)
        sound = MultiHeadAttention(8, 8, context_length=6, dropout=0.0, num_heads=2)
        return Leaky(sound, leak) if leak else sound

    found = finds_leaks(lambda tried: has_leak(tried, 6, 8), layer)
    print(f"Right: {found} leaks found, and no false alarm.")


@checked("3.4", wants="one whole number")
def costs(parameters, flops, cache_bytes) -> None:
    """Three predictions against what PyTorch counts."""
    for width in (8, 768):
        layer = MultiHeadAttention(width, width, 16, dropout=0.0, num_heads=4)
        counted = sum(p.numel() for p in layer.parameters())
        predicted = number(parameters(width))
        assert predicted == counted, (
            f"a layer of width {width} has {counted:,} parameters, not {predicted:,}: "
            "four matrices, and one bias, that of out_proj"
        )
    for T, width in ((16, 8), (1024, 768)):
        counted, predicted = _counted_flops(T, width), number(flops(T, width))
        assert predicted == counted, (
            f"T = {T}, width = {width}: {counted:,} operations, not {predicted:,}; a "
            "product of (a, b) with (b, c) takes 2abc, and there are six products"
        )
    small = number(cache_bytes(1024, 768, 12, 4))
    assert small == 75_497_472, (
        f"GPT-2 small, 1,024 tokens, 4 bytes a number: 75,497,472 bytes, not "
        f"{small:,}; each layer keeps, for every token, one key and one value of "
        "`width` numbers"
    )
    large = number(cache_bytes(1024, 1600, 48, 2))
    assert large == 314_572_800, (
        f"GPT-2 XL, 1,024 tokens, 2 bytes a number: 314,572,800 bytes, not {large:,}"
    )
    print("Right: GPT-2 small has 2,360,064 parameters in each attention layer.")


def _counted_flops(T: int, width: int) -> int:
    """Operations of four linear maps and two products of tokens with tokens."""
    x = torch.empty(T, width, device="meta")
    with FlopCounterMode(display=False) as counter:
        for _ in range(4):
            x @ torch.empty(width, width, device="meta")
        (x @ x.T) @ x
    return counter.get_total_flops()


@checked("3.5", wants="a tensor (B, H, T, D)")
def grouped_query_attention(attend) -> None:
    """Groups of query heads that share one key and value head."""
    generator = _generator()
    queries = torch.randn(2, 6, 5, 4, generator=generator)  # (B, H, T, D)
    keys = torch.randn(2, 3, 5, 4, generator=generator)  # (B, G, T, D)
    values = torch.randn(2, 3, 5, 4, generator=generator)
    attend.hint = (
        "give each of the 6 query heads a key head of its own before you multiply"
    )
    result = tensor(attend(queries, keys, values), 2, 6, 5, 4)
    assert not torch.isnan(result).any(), (
        "there are nan: is some row hidden from end to end? A token sees itself"
    )
    if not close(result, _grouped(queries, keys, values)):
        raise AssertionError(_what_is_wrong(result, queries, keys, values))
    for H, G in ((3, 3), (6, 1), (6, 2)):
        some = queries[:, :H], keys[:, :G], values[:, :G]
        attend.hint = f"these were {H} query heads and {G} key heads"
        assert close(tensor(attend(*some), 2, H, 5, 4), _grouped(*some)), (
            f"right for 6 query heads and 3 key heads, but not for {H} and {G}: the "
            "number of copies is H / G"
        )
    print("Right: six query heads over three key heads, and half the cache.")


FAULTS = {
    "order": "query heads that share stand side by side: heads 0 and 1 use key head 0, "
    "heads 2 and 3 use key head 1 (repeat_interleave, not repeat)",
    "mask": "a token attends to later ones: the causal mask is missing",
    "scale": "the scores are not divided by sqrt(D)",
}


def _grouped(queries, keys, values, faults: tuple[str, ...] = ()) -> torch.Tensor:
    """Grouped-query attention, right or with some of `FAULTS`."""
    T, D = queries.shape[2:]
    copies = queries.shape[1] // keys.shape[1]
    if "order" in faults:
        keys, values = (x.repeat(1, copies, 1, 1) for x in (keys, values))
    else:
        keys, values = (x.repeat_interleave(copies, dim=1) for x in (keys, values))
    scores = queries @ keys.transpose(2, 3)
    if "scale" not in faults:
        scores = scores / math.sqrt(D)
    if "mask" not in faults:
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    return torch.softmax(scores, dim=-1) @ values


def _what_is_wrong(result, queries, keys, values) -> str:
    """The faults that explain a wrong result, or where it first goes wrong."""
    for n_faults in range(1, len(FAULTS) + 1):
        for faults in itertools.combinations(FAULTS, n_faults):
            explained = _grouped(queries, keys, values, faults)
            if close(result, explained):
                return "; and ".join(FAULTS[fault] for fault in faults)
    right = torch.isclose(result.float(), _grouped(queries, keys, values), atol=1e-5)
    head, token = (~right.all(dim=3).all(dim=0)).nonzero()[0].tolist()
    return (
        f"query head {head} is wrong from token {token} on: with 6 query heads and 3 "
        f"key heads it should use key and value head {head // 2}, causally"
    )


@checked("3.6", wants="a tensor (B, H, T, D)")
def blockwise_attention(attend) -> None:
    """Exact causal attention that sees the keys block by block."""
    generator = _generator()
    for T, block_size in ((8, 8), (8, 4), (10, 4), (5, 1)):
        queries, keys, values = torch.randn(3, 2, 3, T, 4, generator=generator)
        attend.hint = (
            f"these were {T} tokens and blocks of {block_size}: the last block may be "
            "shorter, and old sums need keepdim=True"
        )
        result = tensor(attend(queries, keys, values, block_size), 2, 3, T, 4)
        expected = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        right = torch.isclose(result.float(), expected, atol=1e-5).all(dim=3)
        hint = (
            "all keys are in one block here, so look at the causal mask, at the "
            "division by sqrt(D) and at the division by the sum"
            if block_size >= T
            else "when a block raises the running maximum, shrink both old sums by "
            "exp(old maximum - new maximum), and count a block's columns from its start"
        )
        assert right.all(), (
            f"T = {T}, blocks of {block_size}: token "
            f"{(~right).nonzero()[:, 2].min().item()} is the first that differs from "
            f"F.scaled_dot_product_attention; {hint}"
        )
    queries, keys, values = torch.randn(3, 1, 1, 64, 4, generator=generator) * 30
    result = tensor(attend(queries, keys, values, 8), 1, 1, 64, 4)
    assert torch.isfinite(result).all(), (
        "large scores give nan or inf: take exponentials of score - running maximum"
    )
    queries, keys, values = torch.randn(3, 1, 1, 256, 4, generator=generator)
    with _Watch() as watch:
        attend(queries, keys, values, 16)
    assert not any("attention" in name for name in watch.names), (
        "these are the right numbers, but PyTorch's own attention made them; the task "
        "is to write what it does inside"
    )
    assert watch.numel < 256 * 256, (
        f"a tensor of {watch.numel:,} numbers was made for 256 tokens: the point is "
        "never to write down all 256 x 256 weights"
    )
    print("Right: F.scaled_dot_product_attention's numbers, without the T x T table.")


@checked("3.7", wants="a number of tokens")
def reach(predicted, measured) -> None:
    """What is measured must be true, and what is predicted must be what is measured."""
    cases = [(1, 1), (2, 1), (4, 1), (2, 3), (3, 2), (4, 3), (5, 4)]
    lines = ["window  layers  predicted  measured"]
    for window, n_layers in cases:
        steps = range(window)
        far = {0}
        for _ in range(n_layers):
            far = {place + step for place in far for step in steps}
        found, true = number(measured(window, n_layers)), max(far)
        assert found != true + 1, (
            f"window {window}, layers {n_layers}: the last token itself counts as 0; "
            f"the farthest token that reaches it is {true} positions away, not {found}"
        )
        assert found == true, (
            f"window {window}, layers {n_layers}: you measure {found}, but {true} is "
            "right; a token attends to itself and the window - 1 before it, each layer "
            "reads what the one before wrote; and the text must be longer than that"
        )
        guess = number(predicted(window, n_layers))
        lines.append(f"{window:6}  {n_layers:6}  {guess:9}  {found:8}")
        assert guess == found, (
            f"window {window}, layers {n_layers}: you predict {guess} and measure "
            f"{found}; how much farther does one more layer reach?"
        )
    print(*lines, sep="\n")
    print("Right: predicted and measured are the same in all cases.")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


class _Watch(TorchFunctionMode):
    """Remembers the size of the largest tensor made, and the names of all functions."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.names: set[str] = set()

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.names.add(getattr(function, "__name__", ""))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                self.numel = max(self.numel, part.numel())
        return result
