"""Checks for the exercises of chapter 3: each says what is wrong, and where to look."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ch03_attention import riddle
from shared.ch03 import MultiHeadAttention
from shared.exercises import Leaky, checked, close, finds_leaks, number, tensor

SEED = 3


@checked("3.1", wants="two matrices, W_query and W_key, with T rows each")
def previous_token_head(head) -> None:
    """Every token but the first attends to the one before it, at any length."""
    for T in (4, 8, 24):
        W_query, W_key = head(T)
        D = W_query.shape[1]
        scores = tensor(W_query, T, D) @ tensor(W_key, T, D).T / math.sqrt(D)
        future = torch.ones(T, T).triu(1).bool()
        weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
        itself, before = weights.diagonal()[1:], weights.diagonal(-1)
        if before.min() > 0.9:
            continue
        assert itself.max() <= 0.9, (
            "some token attends to itself: token i should ask for position i - 1, "
            "where the key of token i - 1 is found"
        )
        assert scores.diagonal(1).mean() <= scores.diagonal(-1).mean(), (
            "your tokens look for the one *after* them, which the mask hides; is a "
            "matrix shifted the wrong way, or transposed?"
        )
        worst = before.argmin().item() + 1
        assert T == 4, (
            f"right for fewer tokens, but of {T} tokens, token {worst} gives only "
            f"{before.min():.0%} to the one before it: sqrt(D) divides its score, and "
            "there are more tokens to share with, so let W_query grow with T"
        )
        raise AssertionError(
            f"of {T} tokens, token {worst} gives only {before.min():.0%} to the one "
            "before it; softmax blends small differences, so make the scores larger"
        )
    print("Right: every token attends to the one before it, of 4, 8 and 24.")


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


@checked("3.4", wants="one whole number of tokens")
def longest_text(longest) -> None:
    """The longest text whose activations fit, with and without the table."""
    found = {}
    cases = [(10**6, 64, 4), (10**9, 768, 12), (10**9, 1600, 25), (8 * 10**9, 768, 12)]
    for n_bytes, width, heads in cases:
        for fused in (False, True):
            tokens = number(longest(n_bytes, width, heads, fused))
            true = _longest(n_bytes, width, heads, fused)
            how = f"{n_bytes:,} bytes, width {width}, {heads} heads, fused={fused}"
            assert tokens != true + 1, f"{how}: {tokens:,} tokens are one too many"
            slips = {
                _longest(4 * n_bytes, width, heads, fused): "a number takes 4 bytes",
                _longest(n_bytes, width, 1, fused): "each head has a table of its own",
                _longest(
                    n_bytes, width, heads, not fused
                ): "look at `fused` again: only "
                "the layer that is not fused keeps the table",
            }
            hint = slips.get(
                tokens, "put your number, and one more, into equation 3.12"
            )
            assert tokens == true, f"{how}: {tokens:,} tokens, but {true:,} fit; {hint}"
            found[n_bytes, width, fused] = tokens
    plain, fused = found[10**9, 768, False], found[10**9, 768, True]
    print(
        f"Right: at the width of GPT-2 small, 1 GB holds {plain:,} tokens with the "
        f"table of weights, and {fused:,} without it."
    )


def _longest(n_bytes: int, width: int, heads: int, fused: bool) -> int:
    """The answer by bisection of equation 3.12."""
    low, high = 0, n_bytes
    while low < high:
        T = (low + high + 1) // 2
        kept = 4 * (5 * T * width + heads * (T if fused else T**2))
        low, high = (T, high) if kept <= n_bytes else (low, T - 1)
    return low


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


TASKS = {
    "says the first letter": lambda ids: ids[:, :1].expand_as(ids),
    "says the letter before": lambda ids: ids.roll(1, dims=1),
    "says the letter two back": lambda ids: ids.roll(2, dims=1),
    "goes on with a string that repeats": lambda ids: ids.roll(-1, dims=1),
}


@checked("3.8", wants="a list of (W_query, W_key, W_value), and W_out")
def set_by_hand(by_hand) -> None:
    """Heads that were set by hand do at least one of the tasks."""
    ids, period = riddle.test_strings(SEED)
    T = ids.shape[1]
    x = F.one_hot(ids, 102).float()  # (B, T, 102): the letter, then room
    x[:, :, 26 : 26 + T] = torch.eye(T)  # the position
    layers, W_out = by_hand()
    for W_query, W_key, W_value in layers:
        D = W_query.shape[1]
        Q, K = x @ tensor(W_query, 102, D), x @ tensor(W_key, 102, D)
        V = x @ tensor(W_value, 102, 102)
        x = x + F.scaled_dot_product_attention(Q, K, V, is_causal=True)
    said = (x @ tensor(W_out, 102, 26)).argmax(dim=-1)  # (B, T)
    known = F.pad(riddle.predictable(period), (0, 1))  # a letter that can be known
    shares = {
        task: (said == letters(ids))[known].float().mean().item()
        for task, letters in TASKS.items()
    }
    lines = [f"{share:4.0%}  {task}" for task, share in shares.items()]
    best = max(shares, key=shares.get)
    hint = (
        "nearly: the first token has none before it, so its first head finds itself"
        if shares[best] > 0.9
        else "look at a row of the weights: if it blends, make W_query larger; if it "
        "looks at the wrong place, compare the columns of W_query and W_key"
    )
    assert shares[best] > 0.98, (
        f"your heads come nearest to a model that {best}, with {shares[best]:.0%} "
        f"right; {hint}"
    )
    print(*lines, sep="\n")
    print(f"Right: a model that {best}, and nobody has trained it.")


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
