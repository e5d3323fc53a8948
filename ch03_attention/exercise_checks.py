"""Checks for the exercises of chapter 3: each says what is wrong, and where to look."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from shared.ch03 import MultiHeadAttention

SEED = 3


def causal_mask(mask_of) -> None:
    """Check exercise 1: `mask_of(T)` is True above the diagonal and False elsewhere."""
    mask = _tensor(mask_of(4), "causal_mask(4)", (4, 4))
    assert mask.dtype == torch.bool, (
        f"the mask should hold True and False (torch.bool), not {mask.dtype}"
    )
    assert not mask.diagonal().any(), (
        "the diagonal is True, which hides each token from itself: the first token "
        "would have nothing left to listen to"
    )
    assert not mask.tril().any(), (
        "the mask hides the past; True should stand where the column is larger than "
        "the row"
    )
    assert mask.triu(1).sum() == 6, (
        "some later token is not hidden: all six places above the diagonal of a 4 x 4 "
        "mask should be True"
    )
    _tensor(mask_of(1), "causal_mask(1)", (1, 1))
    print("Right: no token sees the future, and every token sees itself.")


def safe_softmax(softmax) -> None:
    """Check exercise 2: a stable softmax in which a fully hidden row becomes zeros."""
    scores = torch.randn(2, 3, 5, generator=_generator())
    result = _run(
        softmax,
        scores,
        call="safe_softmax(scores)",
        hint="a maximum or a sum over the last dimension has lost that dimension; "
        "keepdim=True keeps it, with size 1",
    )
    _tensor(result, "safe_softmax(scores)", (2, 3, 5))
    assert torch.allclose(result.sum(dim=-1), torch.ones(2, 3)), (
        "the weights should sum to 1 over the last dimension, for any number of "
        "dimensions before it (use dim=-1 and keepdim=True)"
    )
    assert torch.allclose(result, torch.softmax(scores, dim=-1), atol=1e-6), (
        "for ordinary scores the result should be that of torch.softmax"
    )
    large = softmax(scores + 1000)
    assert torch.isfinite(large).all(), (
        "scores near 1000 give nan: subtract the largest score of each row before "
        "taking exponentials"
    )
    uneven = scores + torch.tensor([[1000.0], [0.0], [-1000.0]])
    assert torch.allclose(softmax(uneven), torch.softmax(uneven, dim=-1), atol=1e-6), (
        "rows near 1000, 0 and -1000 in one tensor go wrong: each row needs its own "
        "largest score, max(dim=-1, keepdim=True), not that of the whole tensor"
    )
    hidden = scores.clone()
    hidden[0, 0] = -torch.inf
    hidden[1, 1, 2:] = -torch.inf
    result = softmax(hidden)
    assert not torch.isnan(result).any(), (
        "a row of -inf gives nan: its largest score is -inf, and -inf - (-inf) is not "
        "a number; replace that largest score, and the sum of zero, by something finite"
    )
    assert (result[0, 0] == 0).all(), "a row in which all is hidden should be all zeros"
    expected = torch.softmax(hidden[1], dim=-1)
    assert torch.allclose(result[1], expected, atol=1e-6), (
        "rows that are hidden in part should still be those of torch.softmax"
    )
    print("Right: stable for large scores, and quiet where there is nothing to hear.")


class _Leaky(nn.Module):
    """Attention that masks at the wrong moment, or not everywhere."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        T = x.shape[1]
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores = x @ x.transpose(1, 2) / math.sqrt(x.shape[2])
        if self.kind == "after":
            return torch.softmax(scores, dim=-1).tril() @ x
        if self.kind == "off by one":
            future = future.triu(2)
        if self.kind == "last only":
            future[0, -1:] = False
        if self.kind == "one pair":
            future[1:2, 3:4] = False  # slices: a text may have fewer than four tokens
        return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ x


def leaks(has_leak) -> None:
    """Check exercise 3: `has_leak(layer, T, d_in)` finds layers that see ahead."""
    torch.manual_seed(SEED)
    sound = MultiHeadAttention(8, 8, context_length=6, dropout=0.0, num_heads=2)
    assert not _verdict(has_leak, sound), (
        "MultiHeadAttention is causal, but your function says that it leaks; compare "
        "only outputs *before* the input that you change, and allow for rounding "
        "(torch.allclose, not torch.equal)"
    )
    cases = {
        "after": "masks after the softmax: what leaks is the size of the weights",
        "off by one": "lets each token see the next one",
        "last only": "lets only the first token see only the last; try every pair",
        "one pair": "lets only token 1 see only token 3; try every pair",
    }
    for kind, description in cases.items():
        leaky = _Leaky(kind)
        assert _verdict(has_leak, leaky), f"you missed a layer that {description}"
    print("Right: four leaks found, and no false alarm.")


def _verdict(has_leak, layer: nn.Module) -> bool:
    """What `has_leak` says of a layer, or AssertionError if it says nothing clear."""
    call = "leaks(layer, T, d_in)"
    hint = "the layer takes one text (1, T, d_in), of T tokens or fewer"
    verdict = _answered(_run(has_leak, layer, 6, 8, call=call, hint=hint), call)
    assert not isinstance(verdict, torch.Tensor) or verdict.numel() == 1, (
        f"{call} should be one True or False, not {verdict.numel()} of them; "
        "finish with .any()"
    )
    return bool(verdict)


def costs(parameters, flops, cache_bytes) -> None:
    """Check exercise 4: three predictions against what PyTorch counts."""
    for width in (8, 768):
        layer = MultiHeadAttention(width, width, 16, dropout=0.0, num_heads=4)
        counted = sum(p.numel() for p in layer.parameters())
        predicted = _answered(parameters(width), "parameters(width)")
        assert predicted == counted, (
            f"a layer of width {width} has {counted:,} parameters, not {predicted:,}: "
            "four matrices, and one bias, that of out_proj"
        )
    for T, width in ((16, 8), (1024, 768)):
        counted = _counted_flops(T, width)
        predicted = _answered(flops(T, width), "flops(T, width)")
        assert predicted == counted, (
            f"T = {T}, width = {width}: {counted:,} operations, not {predicted:,}; a "
            "product of (a, b) with (b, c) takes 2abc, and there are six products"
        )
    small = _answered(cache_bytes(1024, 768, 12, 4), "cache_bytes(...)")
    assert small == 75_497_472, (
        f"GPT-2 small, 1,024 tokens, 4 bytes a number: 75,497,472 bytes, not "
        f"{small:,}; each layer keeps, for every token, one key and one value of "
        "`width` numbers"
    )
    large = cache_bytes(1024, 1600, 48, 2)
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


def grouped_query_attention(attend) -> None:
    """Check exercise 5: groups of query heads that share one key and value head."""
    generator = _generator()
    queries = torch.randn(2, 6, 5, 4, generator=generator)  # (B, H, T, D)
    keys = torch.randn(2, 3, 5, 4, generator=generator)  # (B, G, T, D)
    values = torch.randn(2, 3, 5, 4, generator=generator)
    call = "grouped_query_attention(...)"
    hint = "give each of the 6 query heads a key head of its own before you multiply"
    result = _run(attend, queries, keys, values, call=call, hint=hint)
    _tensor(result, call, (2, 6, 5, 4))
    assert not torch.isnan(result).any(), (
        "there are nan: is some row hidden from end to end? A token sees itself"
    )
    if not torch.allclose(result, _grouped(queries, keys, values), atol=1e-5):
        raise AssertionError(_what_is_wrong(result, queries, keys, values))
    same = attend(queries[:, :3], keys, values)
    plain = F.scaled_dot_product_attention(queries[:, :3], keys, values, is_causal=True)
    assert torch.allclose(same, plain, atol=1e-5), (
        "with as many key heads as query heads this should be ordinary attention"
    )
    print("Right: six query heads over three key heads, and half the cache.")


FAULTS = {
    "order": "query heads that share stand side by side: heads 0 and 1 use key head 0, "
    "heads 2 and 3 use key head 1 (repeat_interleave, not repeat)",
    "mask": "a token listens to later ones: the causal mask is missing",
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
            if torch.allclose(result, explained, atol=1e-5):
                return "; and ".join(FAULTS[fault] for fault in faults)
    close = torch.isclose(result, _grouped(queries, keys, values), atol=1e-5)
    head, token = (~close.all(dim=3).all(dim=0)).nonzero()[0].tolist()
    return (
        f"query head {head} is wrong from token {token} on: with 6 query heads and 3 "
        f"key heads it should use key and value head {head // 2}, causally"
    )


class _Watch(TorchFunctionMode):
    """Remembers the size of the largest tensor made, and the names of all functions."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.names: set[str] = set()

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.names.add(getattr(function, "__name__", ""))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def blockwise_attention(attend) -> None:
    """Check exercise 6: exact causal attention that sees the keys block by block."""
    generator = _generator()
    for T, block_size in ((8, 8), (8, 4), (10, 4), (5, 1)):
        queries, keys, values = torch.randn(3, 2, 3, T, 4, generator=generator)
        call = f"blockwise_attention(...) with {T} tokens and blocks of {block_size}"
        hint = "the last block may be shorter, and old sums need keepdim=True"
        result = _run(attend, queries, keys, values, block_size, call=call, hint=hint)
        _tensor(result, call, (2, 3, T, 4))
        expected = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        wrong = ~torch.isclose(result, expected, atol=1e-5).all(dim=3)  # (B, H, T)
        hint = (
            "all keys are in one block here, so look at the causal mask, at the "
            "division by sqrt(D) and at the division by the sum"
            if block_size >= T
            else "when a block raises the running maximum, shrink both old sums by "
            "exp(old maximum - new maximum), and count a block's columns from its start"
        )
        assert not wrong.any(), (
            f"T = {T}, blocks of {block_size}: token "
            f"{wrong.nonzero()[:, 2].min().item()} is the first that differs from "
            f"F.scaled_dot_product_attention; {hint}"
        )
    queries, keys, values = torch.randn(3, 1, 1, 64, 4, generator=generator) * 30
    result = attend(queries, keys, values, 8)
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


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _run(function, *arguments, call: str, hint: str):
    """What the function returns, or AssertionError with its failure and a hint."""
    try:
        return function(*arguments)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise AssertionError(f"{call} failed: {reason}. Perhaps {hint}") from error


def _answered(value, call: str):
    """The value, or AssertionError if the exercise is still blank."""
    assert value is not None and value is not ..., (
        f"{call} returned nothing yet: replace the dots, and remember to return"
    )
    return value


def _tensor(value, call: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value, or AssertionError unless it is a tensor of that shape."""
    _answered(value, call)
    assert isinstance(value, torch.Tensor), (
        f"{call} should be a tensor, not a {type(value).__name__}"
    )
    assert tuple(value.shape) == shape, (
        f"{call} should have shape {shape}, not {tuple(value.shape)}"
    )
    return value
