"""Appendix D: the checks of its exercises, and what its notebook says of the program.

The checks are tried with right answers in several styles, typical wrong ones, and
values that no check expects.
"""

import math
import re

import nbformat
import pytest
import torch

from appendix_d_training import exercise_checks as checks
from pretrain.settings import ModelSettings, Settings
from shared.ch04 import GPTModel
from shared.exercises import NotYet
from tools.export import ROOT

FOLDER = ROOT / "appendix_d_training"


def says(value):
    """An answer that always returns the same."""
    return lambda *arguments: value


def by_half_life(beta, before, after):
    half_life = before * math.log(0.5) / math.log(beta)
    return torch.tensor(0.5 ** (after / half_life), dtype=torch.float64)


def groups(model, muon=lambda n, p: p.dim() == 2 and "trf" in n, vector=1):
    """By name and shape; a fault is another rule."""
    named = dict(model.named_parameters())
    first = [p for n, p in named.items() if muon(n, p)]
    rest = {n: p for n, p in named.items() if not muon(n, p)}
    second = [p for p in rest.values() if p.dim() > vector]
    return first, second, [p for p in rest.values() if p.dim() <= vector]


def groups_as_sets(model):
    """Sets in a list, found by their modules."""
    muon = {p for p in model.trf_blocks.parameters() if p.dim() == 2}
    vectors = {p for p in model.parameters() if p.dim() == 1}
    return [muon, set(model.parameters()) - muon - vectors, vectors]


def untied_head_too(model):
    """Takes a tied head as a parameter of its own."""
    muon, decayed, plain = groups(model)
    decayed = [p for p in decayed if p is not model.out_head.weight]
    return muon, [*decayed, model.tok_emb.weight, model.out_head.weight], plain


def short(beta2, size, count=lambda length: length < 0.5, square=2, start=1.0):
    m, v, found = 1.0, start, 0
    for step in range(20_000):
        g = size if step == 0 else 1.0
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g**square
        found += count(m / math.sqrt(v))
    return found


def short_by_adam(beta2, size):
    """PyTorch's own Adam, brought into balance by hand."""
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adam = torch.optim.Adam([theta], lr=1.0, betas=(0.9, beta2), eps=0.0)
    theta.grad = torch.ones_like(theta)
    adam.step()
    state = adam.state[theta]
    state["step"].fill_(1e6)
    state["exp_avg"].fill_(1.0)
    state["exp_avg_sq"].fill_(1.0)
    found = torch.zeros(())
    for step in range(7_000):
        theta.grad.fill_(size if step == 0 else 1.0)
        before = theta.item()
        adam.step()
        found += before - theta.item() < 0.5
    return found


GUESS = says("tens")
CASES = {  # check: (right answers, wrong ones with what they are told)
    "same_memory": (
        [(lambda b, k, n: b ** (n / k),), (by_half_life,)],
        [
            ((lambda b, k, n: b ** (k / n),), "the other way round"),
            ((lambda b, k, n: b,), "should stay"),
            ((lambda b, k, n: 1 - (1 - b) * n / k,), "is near it only where"),
            ((lambda b, k, n: b**n,), "as much as k steps did"),
            ((lambda b, k, n: str(b),), "should return one number, beta, but"),
            ((lambda b, k: b,), "raises TypeError"),
        ],
    ),
    "three_groups": (
        [(groups,), (groups_as_sets,), (lambda m: map(iter, groups(m)),)],
        [
            ((lambda m: groups(m, lambda n, p: p.dim() == 2),), "go to AdamW with"),
            ((lambda m: groups(m, lambda n, p: "trf" in n),), "no matrices"),
            ((lambda m: groups(m, vector=0),), "no matrices"),
            ((lambda m: groups(m, lambda n, p: False),), "a matrix in a block goes"),
            ((untied_head_too,), "more than once"),
            ((lambda m: (*groups(m)[:2], []),), "is in no group"),
            ((lambda m: [[p.clone() for p in g] for g in groups(m)],), "no parameter"),
            ((lambda m: groups(m)[:2],), "should return three lists"),
            ((lambda m: [[n for n, _ in m.named_parameters()]] * 3,), "three lists"),
        ],
    ),
    "short_steps": (
        [(short, GUESS), (short_by_adam, says("thousands"))],
        [
            ((lambda b, s: short(b, s, lambda x: x >= 0.5), GUESS), "are short, not"),
            ((lambda b, s: short(b, s, square=1), GUESS), "are short, not"),
            ((lambda b, s: short(b, 1.0), GUESS), "as its square"),
            ((lambda b, s: 20_000, GUESS), "only the very first"),
            ((lambda b, s: short(b, 1000.0), GUESS), "size that it is given"),
            ((short, says("many")), "predict one of 'tens'"),
        ],
    ),
}
WEIRD = [3, "x", [], {}, (1, 2), [None], torch.zeros(2, 3), math.nan, object(), True]


def sentence_of(check, answers):
    """What a check says; it raises nothing else."""
    with pytest.raises(NotYet) as refusal:
        getattr(checks, check)(*answers)
    sentence = str(refusal.value)
    assert re.match(r"Exercise D\.\d: ", sentence) and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("check", CASES)
def test_right_answers_in_several_styles_are_accepted(check, capsys):
    for answers in CASES[check][0]:
        getattr(checks, check)(*answers)
        assert capsys.readouterr().out.splitlines()[-1].startswith("Right")


@pytest.mark.parametrize("check", CASES)
def test_wrong_answers_are_told_why(check, capsys):
    for answers, message in CASES[check][1]:
        assert re.search(message, sentence_of(check, answers)), message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("check", CASES)
def test_no_answer_makes_a_check_crash(check):
    right = CASES[check][0][0]
    for value in WEIRD:
        sentence_of(check, (says(value), *right[1:]))
    for value in (None, ...):
        assert "still unanswered" in sentence_of(check, [says(value)] * len(right))
        assert "pass a function" in sentence_of(check, [value, *right[1:]])


def test_the_program_remembers_what_equation_d6_says():
    settings = Settings("", "", 1, mean_half_life=1000.0, square_half_life=4000.0)
    for tokens in (32, 128, 4096):
        mean, square = settings.betas(tokens)
        assert math.isclose(mean ** (1000 / tokens), 0.5, rel_tol=1e-9)
        assert math.isclose(square ** (4000 / tokens), 0.5, rel_tol=1e-9)


def notebook_names(*wanted):
    """Functions and classes of the notebook, without running its experiments."""
    names = {"torch": torch, "math": math, "MODERATE": 3e-3}
    cells = nbformat.read(FOLDER / "training.ipynb", as_version=4).cells
    for cell in cells:
        if found := re.search(r"^(?:def|class) (\w+)", cell.source, re.MULTILINE):
            if cell.cell_type == "code" and found[1] in wanted:
                source = cell.source.split("\n\n\n")[0]
                exec(source, names)
    return [names[name] for name in wanted]


@pytest.mark.parametrize("shape", [(4, 4), (6, 20), (20, 6), (1, 5)])
def test_orthogonal_keeps_directions_and_evens_sizes(shape):
    [orthogonal] = notebook_names("orthogonal")
    chance = torch.Generator().manual_seed(2)
    U, S, Vh = torch.linalg.svd(
        torch.randn(shape, generator=chance), full_matrices=False
    )
    S = torch.linspace(1, 0.05, len(S))
    made = orthogonal(100 * U * S @ Vh)
    sizes = U.T @ made @ Vh.T
    assert torch.allclose(sizes, sizes.diag().diag(), atol=1e-4)
    assert 0.6 < sizes.diag().min() and sizes.diag().max() < 1.3


def test_muon_goes_where_torchs_goes():
    """PyTorch's computes in bfloat16, so the directions agree to some hundredths."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon yet")
    _, Muon = notebook_names("orthogonal", "Muon")
    chance = torch.Generator().manual_seed(3)
    start = torch.randn(8, 24, generator=chance)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = (
        Muon([ours], lr=0.02),
        torch.optim.Muon([theirs], lr=0.1, **settings),  # which has a factor 0.2
    )
    for _ in range(5):
        gradient = torch.randn(8, 24, generator=chance)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, wanted = (ours - start).detach(), (theirs - start).detach()
    assert (moved - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("tied", [False, True])
def test_muons_move_every_parameter_once(tied):
    _, _, Muons = notebook_names("orthogonal", "Muon", "Muons")
    model = GPTModel({**checks.TINY, "tie_weights": tied})
    optimizer = Muons(model)
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(given) == sorted(map(id, model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    optimizer.step()
    moved = [
        not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    ]
    assert sum(moved) >= len(moved) - 2 * checks.TINY["n_layers"]  # keys' biases
    optimizer.zero_grad()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_notebook_writes_no_training_loop_of_its_own():
    """Its one call of backward in a loop is the comparison with chapter 5's lines."""
    cells = nbformat.read(FOLDER / "training.ipynb", as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert code.count("train_step()") >= 2 and code.count(".backward()") == 2
    assert ModelSettings.__name__ in code


def test_exercises_end_with_an_experiment_and_solutions_say_why():
    cells = nbformat.read(FOLDER / "solutions.ipynb", as_version=4).cells
    assert any(re.match("## .*experiment", cell.source) for cell in cells)
    solved = [cell.source for cell in cells if "BEGIN SOLUTION" in cell.source]
    assert len(solved) == 3 and all("# Why" in source for source in solved)
