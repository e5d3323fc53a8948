"""Checks for the exercises of appendix F: each says what is wrong, and hints at why."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from shared.appendix_f import generate_fast, quantised, speculate
from shared.ch04 import GPTConfig, GPTModel
from shared.ch05 import load_base, load_base_tokenizer
from shared.data import load_text
from shared.exercises import checked, number, one_of

TINY = {
    "vocab_size": 50,
    "context_length": 64,
    "emb_dim": 24,
    "n_heads": 4,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
N_NEW = 40


def _counted(cfg: GPTConfig, batch: int, length: int, frozen: int) -> int:
    """Operations of the matrix products of a step, as PyTorch counts them."""
    model = GPTModel(cfg)
    for part in (model.tok_emb, model.pos_emb, *model.trf_blocks[:frozen]):
        part.requires_grad_(False)
    ids = torch.zeros(batch, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(n, 0) for n in (torch.ops.aten.mm, torch.ops.aten.addmm))


@checked("F.1", wants="one number")
def step_operations(answer: Callable) -> None:
    """As many operations as PyTorch counts, on small models with frozen blocks."""
    for change in {}, {"qkv_bias": False}, {"vocab_size": 30, "n_layers": 2}:
        cfg = {**TINY, **change}
        C, V, L = cfg["emb_dim"], cfg["vocab_size"], cfg["n_layers"]
        for batch, length, frozen in ((2, 5, 0), (2, 5, 1), (1, 7, L)):
            found = number(answer(cfg, batch, length, frozen))
            wanted = _counted(cfg, batch, length, frozen)
            tokens, block, head = batch * length, 12 * C**2, V * C
            least = 2 * (frozen * block + (L - frozen) * block + head)
            hint = "a weight that learns takes six operations for each token"
            suspects = {
                wanted / tokens: "that is for one token; there are batch * length",
                tokens * least: "that is the forward pass alone",
                wanted / 2: "a multiplication and an addition are two operations",
                wanted + 6 * tokens * head: "an embedding is looked up, not multiplied",
                wanted - 6 * tokens * head: "the output head is missing",
                3 * tokens * least: "a frozen block has no backward pass",
                wanted - 2 * tokens * frozen * block: "a frozen block has a forward "
                "pass, and that takes two operations for each weight",
            }
            for suspect, reason in suspects.items():
                if suspect != wanted and math.isclose(found, suspect, rel_tol=1e-6):
                    hint = reason
            assert math.isclose(found, wanted, rel_tol=1e-6), (
                f"{batch} windows of {length} tokens, width {C}, {L} blocks of which "
                f"{frozen} are frozen, and a vocabulary of {V} take {wanted:,} "
                f"operations, not {found:,.10g}; {hint}"
            )
    print("Right: as many operations as PyTorch counts.")


def _nbytes(model: GPTModel) -> int:
    """Bytes of everything that the blocks and the output head hold."""
    parts = (model.trf_blocks, model.out_head)
    return sum(t.nbytes for part in parts for t in part.state_dict().values())


def _check_bytes(count: Callable, cfg: GPTConfig, model: GPTModel, int8: bool) -> None:
    C, T = cfg["emb_dim"], cfg["context_length"]
    V, L = cfg["vocab_size"], cfg["n_layers"]
    wanted = _nbytes(quantised(model, 8) if int8 else model)
    plain, weights, tables = _nbytes(model), 12 * L * C**2 + V * C, (V * C, T * C)
    rest = plain - 4 * weights  # biases and norms, float32 in both
    found, short = number(count(cfg, int8)), 1 if int8 else 4
    small = {4 * n * C for n in (0, 2, 4)}  # the final norm, a row of each embedding
    hint = "a block's matrices have 12 C^2 numbers in 9 C rows; mind biases and norms"
    if int8 and found in {plain + n for n in small}:
        hint = "that is float32; does your function look at `int8`?"
    elif found * 4 in {wanted + n for n in small} and not int8:
        hint = "that many numbers, of four bytes each"
    elif found in {wanted - short * tables[0] - n * V for n in (0, 2 * int8)}:
        hint = "the head makes the logits of every token: all its V C weights are read"
    elif any(
        found - wanted - b * n in small for b in (1, 4) for n in (*tables, sum(tables))
    ):
        hint = "of an embedding one row is read for a token, not the table"
    elif found == wanted - rest:
        hint = "the blocks also read their biases and the numbers of their norms"
    elif int8 and found in {weights + rest, weights, plain / 4}:
        hint = "each row has a scale of two bytes; biases and norms stay float32"
    kind = "int8 by rows" if int8 else "float32"
    assert found - wanted in small, (
        f"a model of width {C} with {L} blocks and a vocabulary of {V} reads "
        f"{wanted:,} bytes for a token in {kind}, not {found:,}; {hint}"
    )


@checked("F.2", wants="one number")
def tokens_per_second(count: Callable, rate: Callable) -> None:
    """Bytes as the modules hold them, and equation Fb.1 with them."""
    changes = {}, {"qkv_bias": False}, {"vocab_size": 30, "n_layers": 2}
    for change in changes:
        cfg = {**TINY, "emb_dim": 32, **change}
        for int8 in (False, True):
            _check_bytes(count, cfg, GPTModel(cfg), int8)
    for int8 in (False, True):
        n_bytes = number(count(cfg, int8))
        for bandwidth in (10**9, 5e10):
            found, most = number(rate(cfg, int8, bandwidth)), bandwidth / n_bytes
            hint = "all those bytes have to come from memory once for each token"
            if math.isclose(found * most, 1, rel_tol=1e-2):
                hint = "that is how many seconds a token takes"
            elif int8 and math.isclose(found, bandwidth / number(count(cfg, False))):
                hint = "that is the rate for float32"
            elif math.isclose(found * 8, most, rel_tol=1e-2):
                hint = "the bandwidth is in bytes, not in bits"
            assert abs(found - most) < 1 + 1e-3 * most, (
                f"at {bandwidth / 1e9:g} GB/s and {n_bytes:,} bytes a token, at most "
                f"{most:,.0f} tokens a second are possible, not {found:,.6g}; {hint}"
            )
    print("Right: as many bytes as the layers hold.")


@checked("F.3", wants="the codes of the row and its scale", keeps=True)
def quantise(answer: Callable) -> None:
    """Whole numbers in range, of which none is off by more than half a step."""
    generator = torch.Generator().manual_seed(2)
    rows = {
        "the row of section Fb.7": torch.tensor([0.31, -0.02, 0.127, -0.254, 0, 0.09]),
        "a row of 64 numbers": torch.randn(64, generator=generator),
        "a row with its largest number below zero": torch.tensor([0.5, -2.0, 0.25]),
        "a row of zeros": torch.zeros(4),
    }
    for name, row in rows.items():
        for bits in (8, 4, 3, 2):
            _check_row(f"{name}, {bits} bits", *answer(row, bits), row.double(), bits)
    print("Right: never off by more than half a step.")


def _check_row(name: str, codes, scale, row: torch.Tensor, bits: int) -> None:
    codes, top = torch.as_tensor(codes).double(), 2 ** (bits - 1) - 1
    assert codes.shape == row.shape, (
        f"{name}: {len(row)} codes are wanted, one for each number, then the scale; "
        f"the codes found have the shape {tuple(codes.shape)}"
    )
    scale = number(scale)
    assert codes.isfinite().all() and math.isfinite(scale), (
        f"{name}: a code or the scale is no finite number; do you divide by zero?"
    )
    assert torch.equal(codes, codes.round()), (
        f"{name}: codes are whole numbers, not such as {codes[1].item():.3g}; round"
    )
    most, largest = codes.abs().max().item(), row.abs().max().item()
    assert most <= top, (
        f"{name}: codes go from {-top} to {top}, as many on each side of zero, but one "
        f"of yours is {most:g} in size; the scale is the largest |w| over {top}"
    )
    if largest == 0:
        assert not codes.any(), f"{name}: its codes should be zeros"
        return
    assert scale > 0, f"{name}: the scale is the size of a step, not {scale:.4g}"
    off = (row - scale * codes).abs().max().item() / scale
    hint = "round to the nearest whole number; do not cut off"
    if off >= 1:
        hint = f"the scale is the largest |w| over {top}, and s q should be near w"
    assert off < 0.501, (
        f"{name}: a number is off by {off:.2f} steps, and half a step is enough; {hint}"
    )
    assert math.isclose(scale, largest / top, rel_tol=1e-3), (
        f"{name}: a step of {largest / top:.4f} reaches the largest number in {top} "
        f"steps; yours is {scale:.4f}, and half of it is a larger error than needed"
    )


@functools.cache
def base_and_texts() -> tuple[GPTModel, dict[str, list[int]]]:
    """The base model, and three texts for it to continue.

    The last is the second with what the model itself writes after it.
    """
    base = load_base()
    story = load_base_tokenizer().encode(load_text("short-story"))
    texts = {"repeating text": story[:24] * 4, "short story": story[:60]}
    texts["its own circle"] = generate_fast(base, [texts["short story"]], 100, 512)[0]
    return base, texts


def _written(model: GPTModel, prompt: list[int], n: int) -> tuple[list[int], int]:
    """The text with n new tokens, and how many passes through the model it took."""
    calls = []
    hook = model.final_norm.register_forward_hook(lambda *_: calls.append(1))
    try:
        return speculate(model, prompt, n), len(calls)
    finally:
        hook.remove()


def _known(text: list[int], start: int, places: range) -> int:
    """How many new tokens had followed the same two tokens before, at these places."""
    seen = {tuple(text[i : i + 3]): i for i in reversed(places)}  # the first place
    return sum(
        seen.get(tuple(text[i : i + 3]), i) < i for i in range(start - 2, len(text) - 2)
    )


@functools.cache
def _of_base(name: str) -> tuple[list[int], int]:
    base, texts = base_and_texts()
    return _written(base, texts[name], N_NEW)


def _check_saved(answer: Callable, model, prompt: list[int], n: int, name: str) -> int:
    own = name in base_and_texts()[1]
    text, calls = _of_base(name) if own else _written(model, prompt, n)
    found, wanted = number(answer(model, prompt, n)), n - calls
    hint = "count one layer that every call goes through once, from 0 for each text"
    if found == n:
        hint = (
            "you counted no call; `speculate` goes through the layers and never calls "
            "the model or a block as a whole: hang the hook on model.final_norm"
        )
    elif found == calls:
        hint = "that is how often it was called; greedy writing calls once for a token"
    elif found == n - calls * model.cfg["n_layers"]:
        hint = "you counted a layer of every block; each call goes through them all"
    elif found == len(text) - calls:
        hint = "the tokens of the prompt were there before"
    elif found == -wanted:
        hint = "the calls that were not needed are wanted: tokens minus calls"
    elif wanted and math.isclose(found, wanted / n, rel_tol=1e-3):
        hint = "the number of calls is wanted, not their share"
    assert found == wanted, (
        f"for {n} new tokens of {name} `speculate` calls the model {calls} times and "
        f"saves {wanted}, not {found:g}; {hint}"
    )
    return wanted


@checked("F.4", wants="one number of calls")
def calls_saved(answer: Callable, predicted: Callable) -> None:
    """The calls that guesses save, on tiny models and on the base; any prediction."""
    predicted.wants = "the name of a text"
    guess = one_of(predicted(), ["repeating text", "short story"])
    for seed in (2, 7, 8):
        torch.manual_seed(seed)
        model = GPTModel({**TINY, "vocab_size": 8}).eval().requires_grad_(False)
        model.pos_emb.weight.zero_()  # so that it soon goes in circles
        for n in (20, 40):
            _check_saved(answer, model, [3, 1, 4, 1, 5], n, "a tiny model")
    (base, texts), saved = base_and_texts(), {}
    lines = ["text            saved of 40  as in the prompt  as in the new text"]
    for name, prompt in texts.items():
        saved[name] = _check_saved(answer, base, prompt, N_NEW, name)
        text, start = _of_base(name)[0], len(prompt)
        old = _known(text, start, range(start - 2))
        new = _known(text, start, range(start - 2, len(text) - 2))
        lines.append(f"{name:14}  {saved[name]:11}  {old:16}  {new:18}")
    print(*lines, sep="\n")
    more = max(list(texts)[:2], key=saved.get)
    print(f"Right. Guesses saved more on {more!r}; you predicted {guess!r}.")
