"""Checks for the exercises of appendix D: each says what is wrong, and perhaps why."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from shared.ch04 import GPTModel
from shared.exercises import checked, number, one_of

TINY = {
    "vocab_size": 30,
    "context_length": 8,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
CHOICES = ["tens", "hundreds", "thousands"]


@checked("D.1", wants="one number, beta")
def same_memory(answer: Callable) -> None:
    """The beta with the same half-life in tokens, for smaller and larger batches."""
    for beta, before, after in (
        *((0.95, 8, 8), (0.95, 8, 1), (0.999, 1, 64), (0.9, 32, 24)),
        *((0.99, 512, 4096), (0.5, 2, 1)),
    ):
        found, wanted = number(answer(beta, before, after)), beta ** (after / before)
        hint = "a step with k times the tokens must forget as much as k steps did"
        if math.isclose(found, beta ** (before / after), rel_tol=1e-6):
            hint = "that is the other way round: a larger step forgets more"
        elif math.isclose(found, beta, rel_tol=1e-6):
            hint = "beta counts steps, and the memory in tokens should stay the same"
        elif math.isclose(found, 1 - (1 - beta) * after / before, rel_tol=1e-6):
            hint = "1 - (1 - beta) k is near it only where k (1 - beta) is small"
        assert math.isclose(found, wanted, rel_tol=1e-6), (
            f"beta {beta} with {before} sequences a step becomes {wanted:.6f} with "
            f"{after}, not {found:.6f}; {hint}"
        )
    print("Right: Adam remembers as many tokens, whatever the batch.")


def _names(model: nn.Module, parameters: Iterable) -> list[str]:
    """The names that a group's parameters have in their model."""
    known = {id(p): name for name, p in model.named_parameters()}
    found = list(parameters)
    for p in found:
        if not isinstance(p, torch.Tensor):
            raise TypeError(f"no parameter: {p!r}")
        assert id(p) in known, (
            f"a tensor of shape {tuple(p.shape)} is no parameter of the model; a copy "
            "would be trained in its place"
        )
    return [known[id(p)] for p in found]


@checked("D.2", wants="three lists of parameters")
def three_groups(answer: Callable) -> None:
    """Each parameter once, in its group, with a tied and an untied head."""
    for tied in (False, True):
        torch.manual_seed(1)
        model = GPTModel({**TINY, "tie_weights": tied})
        muon, decayed, plain = (_names(model, group) for group in answer(model))
        given = muon + decayed + plain
        twice = sorted({name for name in given if given.count(name) > 1})
        assert not twice, (
            f"{twice[0]} is in the groups more than once; two optimizers would move it"
        )
        missing = [name for name, _ in model.named_parameters() if name not in given]
        assert not missing, f"{missing[0]} is in no group; it would never be trained"
        for name, parameter in model.named_parameters():
            block = name.startswith("trf_blocks")
            wanted, why = 2, "biases and norms are no matrices: AdamW without decay"
            if parameter.dim() == 2:
                wanted, why = (
                    (0, "a matrix in a block goes to Muon")
                    if block
                    else (1, "embeddings and head go to AdamW with decay")
                )
            found = [name in group for group in (muon, decayed, plain)].index(True)
            assert found == wanted, (
                f"{name} is in group {found + 1}, and should be in {wanted + 1}; {why}"
            )
    print("Right: every parameter has one optimizer, tied head or not.")


def _short_steps(beta2: float, size: float) -> int:
    """Steps that are shorter than half the rate, from the wild gradient on."""
    m = v = 1.0
    short = 0
    for step in range(20_000):
        g = size if step == 0 else 1.0
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g * g
        short += m / math.sqrt(v) < 0.5
    return short


@checked("D.3", wants="one number of steps")
def short_steps(answer: Callable, predicted: Callable) -> None:
    """As many as with Adam; the prediction may be wrong."""
    guess = one_of(predicted(), CHOICES)
    lines = ["beta2  short steps after one gradient of 1000"]
    for beta2 in (0.95, 0.99, 0.999):
        found, wanted = number(answer(beta2, 1000.0)), _short_steps(beta2, 1000.0)
        hint = "count every step that is shorter than half the rate, even the first"
        if found == 0:
            hint = "does the wild gradient enter both averages, and v as its square?"
        elif found > 19_000:
            hint = "only the very first gradient is wild; all others are 1"
        assert abs(found - wanted) <= 0.02 * wanted + 3, (
            f"with beta2 {beta2}, {wanted} steps are short, not {found:g}; {hint}"
        )
        lines.append(f"{beta2:5}  {wanted:5}")
    clipped = number(answer(0.999, 1.0))
    assert clipped == 0, (
        f"a wild gradient clipped to 1 is like the others, so no step is short, but "
        f"you count {clipped:g}; does your function use the size that it is given?"
    )
    print(*lines, sep="\n")
    print(f"Right: thousands at 0.999, none if clipped; you predicted {guess}.")
