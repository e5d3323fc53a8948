"""Checks for the exercises of chapter 8: each says what is wrong, and hints at why."""

import math
import struct
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F

from shared.ch08 import (
    SMOLLM2_135M,
    LlamaConfig,
    LlamaModel,
    dequantize_q4_1,
    half_split_rows,
    rotation_angles,
)
from shared.exercises import checked, close, number, one_of, tensor

TINY: LlamaConfig = {
    "vocab_size": 50,
    "context_length": 16,
    "emb_dim": 36,
    "n_heads": 6,
    "n_kv_heads": 3,
    "n_layers": 5,
    "hidden_dim": 40,
    "rope_base": 100.0,
    "norm_eps": 1e-5,
}
CHANGES_OF_X = {  # each of a vector (..., C)
    "times 3": lambda x: 3 * x,
    "plus 3": lambda x: x + 3,
    "times -3": lambda x: -3 * x,
    "backwards": lambda x: x.flip(-1),
}


def _tiny_model(**changes: object) -> LlamaModel:
    """A model with weights large enough to see a change."""
    torch.manual_seed(4)
    model = LlamaModel({**TINY, **changes}).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return model


def _numbers(found: object, n: int) -> torch.Tensor:
    """`n` numbers in a tensor, a list or an array as a tensor (n,)."""
    found = found.flatten() if hasattr(found, "flatten") else found
    values = [number(value) for value in found]
    assert len(values) == n, f"{n} numbers are wanted, not {len(values)}"
    return torch.tensor(values, dtype=torch.float64)


@checked("8.1", wants="a tensor of the same shape as x")
def rms_norm(norm: Callable, unnoticed: Callable) -> None:
    """The same as PyTorch's, and the one change that the norm does not notice."""
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(2, 5, 8, generator=generator) + 1
    scale = torch.linspace(0.5, 2, 8)
    wanted = F.rms_norm(x, (8,), scale, 1e-5)
    norm.hint = "take the mean over the last axis and keep that axis: keepdim=True"
    found = tensor(norm(x, scale, 1e-5), 2, 5, 8)
    for what, wrong in (
        ("do not subtract the mean; that is LayerNorm", F.layer_norm(x, (8,), scale)),
        ("multiply by `scale` at the end", F.rms_norm(x, (8,), None, 1e-5)),
        ("take the mean of the squares, not their sum", wanted / math.sqrt(8)),
        (
            "divide by the root of the mean square",
            scale * x / x.square().mean(-1, True),
        ),
    ):
        assert not close(found, wrong, atol=1e-3), what
    assert close(found, wanted, atol=1e-4), (
        "the numbers differ from F.rms_norm's; divide each vector by the root of the "
        "mean of the squares of its C numbers, over the last axis"
    )
    one = tensor(norm(x[0, 0], scale, 1e-5), 8)
    assert close(one, wanted[0, 0], atol=1e-4), (
        "right for (2, 5, 8), but not for a single vector (8,): mean over dim=-1"
    )
    softened = tensor(norm(x, scale, 4.0), 2, 5, 8)
    assert close(softened, F.rms_norm(x, (8,), scale, 4.0), atol=1e-4), (
        "with eps = 4 the numbers come out wrong: add `eps` to the mean square, before "
        "the root is taken"
    )
    unnoticed.wants = "the name of a change"
    guess = one_of(unnoticed(), list(CHANGES_OF_X))
    lines = ["change of x  largest change of the output"]
    for name, change in CHANGES_OF_X.items():
        moved = (tensor(norm(change(x), scale, 1e-5), 2, 5, 8) - found).abs().max()
        lines.append(f"{name:11}  {moved:.3f}")
    assert guess != "plus 3", (
        "it is LayerNorm that does not notice what is added to all numbers, because it "
        "subtracts the mean"
    )
    assert guess != "times -3", (
        "the vector comes out with the opposite sign: squares forget the sign, but x "
        "itself is still in the product"
    )
    assert guess == "times 3", (
        "the root mean square is the same in any order, but each number keeps its "
        "position in the vector, and has a scale of its own"
    )
    print(*lines, sep="\n")
    print("Right: it forgets the length of a vector (up to eps), and nothing else.")


@checked("8.2", wants="one number")
def rotary_angles(angle: Callable, first_full_turn: Callable) -> None:
    """Equation 8.3, up to full turns, and the first full turn of the slowest pair."""
    smaller = {**SMOLLM2_135M, "n_heads": 18, "n_kv_heads": 6, "rope_base": 10_000.0}
    for cfg, pair, position in (
        (SMOLLM2_135M, 0, 1),
        (SMOLLM2_135M, 1, 1),
        (SMOLLM2_135M, 3, 100),
        (SMOLLM2_135M, 31, 8191),
        (smaller, 5, 777),
    ):
        D = cfg["emb_dim"] // cfg["n_heads"]
        base = cfg["rope_base"]

        def at(exponent, base=base, position=position):
            return position * base**exponent

        wanted = at(-2 * pair / D)
        found = number(angle(dict(cfg), pair, position))
        hint = "pair i turns by base ** (-2 i / D) for each position"
        for what, wrong in (
            (
                "D is the width of a head, not of the model",
                at(-2 * pair / cfg["emb_dim"]),
            ),
            ("i counts pairs, so its exponent is -2 i / D", at(-pair / D)),
            ("the exponent is negative: later pairs are slower", at(2 * pair / D)),
            ("an angle in radians is wanted", math.degrees(wanted)),
            ("that is the angle of one position", wanted / position),
        ):
            if math.isclose(found, wrong, rel_tol=1e-3):
                hint = what
        # Full turns more or less make no difference, and float32 is good enough.
        off = math.remainder(found - wanted, 2 * math.pi)
        assert abs(off) < 5e-3, (
            f"pair {pair} of heads of {D} numbers, base {base:,.0f}, has at "
            f"position {position} the angle {wanted:.6g}, not {found:.6g}; {hint}"
        )
    first_full_turn.wants = "one whole number"
    for cfg in (TINY, {**TINY, "n_heads": 18}, smaller, SMOLLM2_135M):
        D = cfg["emb_dim"] // cfg["n_heads"]
        turn = 2 * math.pi
        exact = turn * cfg["rope_base"] ** (1 - 2 / D)
        wanted = math.ceil(exact)
        found = number(first_full_turn(dict(cfg)))
        hint = "the slowest pair is the last one, i = D / 2 - 1, and 2 pi is a turn"
        for what, wrong in (
            (
                "the last pair is D / 2 - 1, for they count from 0",
                turn * cfg["rope_base"],
            ),
            ("half a turn is pi, a full one 2 pi", exact / 2),
            ("that is a turn of the fastest pair", turn),
            ("that is before the full turn; round up", exact - 0.5),
        ):
            if abs(found - wrong) < 1 + 1e-6 * wrong:
                hint = what
        # Below a thousand, float32 finds the position exactly.
        assert abs(found - wanted) <= (0 if wanted < 1000 else 1e-5 * wanted), (
            f"with heads of {D} numbers and base {cfg['rope_base']:,.0f} the slowest "
            f"pair makes its full turn at position {wanted:,}, not {found:,.8g}; {hint}"
        )
    print(
        f"Right: SmolLM2's slowest pair needs {found:,.0f} positions for a turn, and "
        "the model reads 8,192."
    )


@checked("8.3", wants="one whole number")
def grouped_cache_bytes(count: Callable[[LlamaConfig, int, int], int]) -> None:
    """The bytes that real caches hold, and those of SmolLM2."""
    dtypes = {4: torch.float32, 2: torch.bfloat16}
    for changes, tokens, size in (
        ({}, 16, 4),
        ({}, 7, 2),
        ({"n_kv_heads": 6}, 11, 2),
        ({"n_kv_heads": 1, "n_layers": 4, "n_heads": 9}, 9, 4),
    ):
        model = _tiny_model(**changes).to(dtypes[size])
        cache = model.new_cache(tokens)
        model.features(torch.zeros(1, tokens, dtype=torch.long), cache)
        kept = [part for layer in cache for part in (layer.keys, layer.values)]
        wanted = sum(part.nbytes for part in kept)
        found = number(count(dict(model.cfg), tokens, size))
        cfg = model.cfg
        H, G, C = cfg["n_heads"], cfg["n_kv_heads"], cfg["emb_dim"]
        hints = (  # by how much is missing; the first that fits
            (size / 4, f"here a number takes {size} bytes"),
            (G / H, "keys and values have G heads of C / H numbers, not H heads"),
            (1 / H, "a head has C / H numbers, not all C"),
            (2, "keys and values are both kept"),
            (G, "all G heads of keys are kept, D numbers wide each"),
            (size, f"here a number takes {size} bytes"),
            (cfg["n_layers"], "each block has a cache of its own"),
            (C // H, "a head has D = C / H numbers"),
        )
        off = wanted / found if found else 0
        fitting = [hint for ratio, hint in hints if ratio != 1 and off == ratio]
        hint = (fitting or ["count one block: keys and values, G heads, D numbers"])[0]
        assert found == wanted, (
            f"{tokens} tokens, {size} bytes a number, {cfg['n_layers']} blocks, C = "
            f"{C}, H = {H}, G = {G}: the cache takes {wanted:,} bytes, you "
            f"say {found:,}; {hint}"
        )
    found = number(count(dict(SMOLLM2_135M), 8192, 2))
    assert found == 188_743_680, (
        f"SmolLM2's, with 8,192 tokens and 2 bytes a number, takes 188,743,680 bytes, "
        f"not {found:,}"
    )
    print("Right: a full SmolLM2 keeps 189 MB, a third of what nine heads would.")


def q4_1_block(seed: int) -> bytes:
    """A block of 20 bytes: d and m as float16, then 32 levels of four bits."""
    generator = torch.Generator().manual_seed(seed)
    d, m = 0.1 + torch.rand(2, generator=generator).double()
    levels = torch.randint(256, (16,), generator=generator).tolist()
    return struct.pack("<ee", d, -7 * m) + bytes(levels)


def _q4_1_mistakes(block: bytes) -> dict[str, list[float]]:
    """What a block becomes by typical slips."""
    d, m = struct.unpack("<ee", block[:4])
    low, high = [b & 15 for b in block[4:]], [b >> 4 for b in block[4:]]
    levels = low + high
    other_d, other_m = struct.unpack(">ee", block[:4])
    mixed = [level for pair in zip(low, high, strict=True) for level in pair]
    return {
        "a byte holds numbers i and i + 16, not neighbours": [d * q + m for q in mixed],
        "the lower four bits are the first half, `& 15`, the upper ones, `>> 4`, the "
        "second": [d * q + m for q in high + low],
        "every number is d q + m; m is missing": [d * q for q in levels],
        "m is the lowest number itself, so it is added": [d * q - m for q in levels],
        "d stands first, m second": [m * q + d for q in levels],
        "the levels of Q4_1 count from 0, not from -8": [
            d * (q - 8) + m for q in levels
        ],
        "the lower byte of a float16 comes first here": [
            other_d * n + other_m for n in levels
        ],
        "the upper four bits have to be moved down: `>> 4`": [
            d * q + m for q in low + [16 * q for q in high]
        ],
    }


@checked("8.4", wants="32 numbers")
def take_apart(dequantize: Callable[[bytes], list[float]]) -> None:
    """The numbers of a few blocks, as equation 8b.1 has them."""
    dequantize.hint = "`block` is of type bytes: block[4] is a number from 0 to 255"
    for seed in range(1, 5):
        block = q4_1_block(seed)
        step = struct.unpack("<e", block[:2])[0]
        wanted = dequantize_q4_1(torch.tensor([list(block)], dtype=torch.uint8))[0]
        found = _numbers(dequantize(block), 32)
        close_by = step / 20  # forgives arithmetic in float16
        for what, wrong in _q4_1_mistakes(block).items():
            wrong = torch.tensor(wrong, dtype=torch.float64)
            assert not torch.allclose(found, wrong, rtol=1e-3, atol=close_by), what
        worst = int((found - wanted).nan_to_num(math.inf).abs().argmax())
        assert close(found, wanted, atol=close_by), (
            f"number {worst} of block {seed} is {wanted[worst]:.4f}, not "
            f"{found[worst]:.4f}; it is d q + m, with d and m from the first four bytes"
        )
    print("Right: 20 bytes, 32 numbers, 5 bits each.")


def other_base(model: LlamaModel) -> None:
    """Every pair but the first turns more slowly."""
    for block in model.trf_blocks:
        block.att.rope_base = 10_000.0


def other_pairs(model: LlamaModel) -> None:
    """Neighbours are rotated, with weights that were made for x_0 with x_(D / 2).

    Reordering the rows has the same effect as the other rotation.
    """
    for block in model.trf_blocks:
        for layer in (block.att.W_query, block.att.W_key):
            n_heads = layer.weight.shape[0] // block.att.head_dim
            layer.weight.data = half_split_rows(layer.weight.data, n_heads)


def later_positions(model: LlamaModel) -> None:
    """The first token has position 100, the next one 101, and so on."""

    def moved(att):
        return lambda first, end, device: rotation_angles(
            torch.arange(first + 100, end + 100), att.head_dim, att.rope_base
        )

    for block in model.trf_blocks:
        block.att.angles = moved(block.att)


def other_gate(model: LlamaModel) -> None:
    """In every feed-forward network `gate` and `up` are swapped."""
    for block in model.trf_blocks:
        block.ff.gate, block.ff.up = block.ff.up, block.ff.gate


CHANGES = {
    "another base": other_base,
    "other pairs": other_pairs,
    "later positions": later_positions,
    "another gate": other_gate,
}
WHERE = ["nowhere", "not at 0", "everywhere"]


@checked("8.5", wants="a number for each token")
@torch.no_grad()
def changed_logits(measure: Callable, predicted: Callable) -> None:
    """The model must stay as it is; every token counts; any prediction will do."""
    model = _tiny_model()
    generator = torch.Generator().manual_seed(7)
    texts = [torch.randint(50, (1, T), generator=generator) for T in (8, 5)]
    predicted.wants = f"one of {WHERE} for each name in CHANGES, a dictionary"
    guesses = predicted()
    if set(guesses) != set(CHANGES):
        raise TypeError(f"predictions for {set(guesses)}")
    for name in CHANGES:
        one_of(guesses[name], WHERE)
    lines = ["what changes     predicted   at 0  at 1  at 7"]
    for (name, change), ids in product(CHANGES.items(), texts):
        before, T = model(ids), ids.shape[1]
        found = _numbers(measure(model, change, ids), T).abs()
        assert torch.equal(model(ids), before), (
            f"after measuring {name!r} the model itself was changed, so that the next "
            "measurement would start from it; change copy.deepcopy(model)"
        )
        other = _tiny_model()
        change(other)
        differences = (other(ids) - before).abs()[0]  # (T, V)
        wanted = differences.amax(dim=1)
        assert not close(found, differences.amin(dim=1), atol=1e-3) or close(
            found, wanted, atol=1e-3
        ), f"{name!r}: the largest change of each token is wanted, not the smallest"
        worst = int((found - wanted).nan_to_num(math.inf).abs().argmax())
        assert close(found, wanted, atol=1e-3), (
            f"{name!r}: the largest change of a logit at token {worst} is "
            f"{wanted[worst]:.3f}, not {found[worst]:.3f}; compare the two models' "
            "logits (1, T, V), and take the largest absolute difference over V alone"
        )
        if ids is texts[0]:
            moved = "  ".join(f"{wanted[t]:4.1f}" for t in (0, 1, 7))
            lines.append(f"{name:15}  {guesses[name]:10}  {moved}")
    print(*lines, sep="\n")
    print("Right: the first token attends only to itself, whatever the angles are.")
