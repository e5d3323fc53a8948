"""Appendix A: `Value` against torch, rings, two processes, and what checks say."""

import ast
import math
import re
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from appendix_a_pytorch import two_processes
from appendix_a_pytorch.readiness_checks import QUESTIONS, Readiness
from shared.appendix_a import Rings, Value, ancestors, fit
from tools.export import ROOT

# Value

STEPS = {  # the same words for a Value and for a tensor
    "add": lambda a, b: a + b,
    "add a number": lambda a, b: a + 1.5,
    "to a number": lambda a, b: 2 + a,
    "subtract": lambda a, b: a - b,
    "from a number": lambda a, b: 1 - a,
    "multiply": lambda a, b: a * b,
    "a multiple": lambda a, b: -0.5 * a,
    "divide": lambda a, b: a / (b * b + 1),
    "a number divided": lambda a, b: 3 / (a**2 + 0.5),
    "square": lambda a, b: a**2,
    "power 0": lambda a, b: a**0,
    "root": lambda a, b: (a * a + 0.1) ** 0.5,
    "negate": lambda a, b: -a,
    "tanh": lambda a, b: a.tanh(),
    "exp": lambda a, b: (a.tanh() * 2).exp(),
    "log": lambda a, b: (b * b + 0.3).log() * a,
}


@settings(max_examples=150, deadline=None)
@given(
    numbers=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0), st.integers(0)),
        max_size=12,
    ),
)
def test_value_finds_the_slopes_that_torch_finds(numbers, steps):
    ours = [Value(number) for number in numbers]
    theirs = [torch.tensor(n, dtype=torch.float64, requires_grad=True) for n in numbers]
    inputs = len(numbers)
    for name, i, j in steps:
        step = STEPS[name]
        result = step(theirs[i % len(theirs)], theirs[j % len(theirs)])
        if abs(result.item()) < 1e6:
            ours.append(step(ours[i % len(ours)], ours[j % len(ours)]))
            theirs.append(result)
    ours[-1].backward()
    theirs[-1].backward()
    assert ours[-1].data == pytest.approx(theirs[-1].item(), rel=1e-9, abs=1e-9)
    for mine, other in zip(ours[:inputs], theirs[:inputs], strict=True):
        wanted = 0.0 if other.grad is None else other.grad.item()
        assert mine.grad == pytest.approx(wanted, rel=1e-7, abs=1e-7)


def test_backward_adds_to_inputs_and_starts_anew_in_between():
    a, b = Value(2.0), Value(-1.0)
    middle = a * b
    result = (middle + a) * middle
    for times in (1, 2, 3):
        result.backward()
        assert (a.grad, b.grad) == (times * 0.0, times * -4.0)
    assert middle.grad == -2.0  # of this call alone, as of any number in between


def test_an_input_s_slope_with_respect_to_itself_is_1():
    a = Value(5)
    a.backward()
    assert a.grad == 1.0


def test_ancestors_come_after_all_that_was_made_of_them():
    a = Value(1.0)
    short, long = a * 2, (((a + 1) * 3).tanh() + a).exp()
    order = ancestors(short + long)
    assert len(order) == len(set(order))
    for i, value in enumerate(order):
        assert all(order.index(parent) > i for parent, _ in value.parents)


def test_a_chain_of_thousands_of_steps_is_no_problem():
    a = total = Value(1.0)
    for _ in range(5000):
        total = total + a * 0.001
    total.backward()
    assert a.grad == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (lambda: Value("3"), TypeError, "one number, not '3' of type str"),
        (lambda: Value([1.0, 2.0]), TypeError, "one Value for each number"),
        (lambda: Value(torch.ones(1)), TypeError, "of type Tensor"),
        (lambda: Value(1.0) + "2", TypeError, "one number, not '2'"),
        (lambda: Value(2.0) ** Value(3.0), TypeError, "not a Value; write a"),
        (lambda: Value(-2.0) ** 0.5, ValueError, "-2.0 ** 0.5 is not a real number"),
        (lambda: Value(0.0) ** -1, ValueError, "has no slope"),
        (lambda: 1 / Value(0.0), ValueError, "keep the base away from 0"),
        (lambda: Value(0.0) ** 0.5, ValueError, "has no slope"),
        (lambda: Value(0.0).log(), ValueError, "log of 0.0 is not finite"),
        (lambda: Value(-1.0).log(), ValueError, "give it a number above 0"),
    ],
)
def test_value_says_what_it_cannot_do(mistake, error, message):
    with pytest.raises(error) as raised:
        mistake()
    assert message in str(raised.value)


# Rings, and the training loop


@given(n=st.integers(2, 60), seed=st.integers(0, 9))
def test_rings_are_a_disc_and_a_ring_in_this_order(n, seed):
    rings = Rings(n, seed)
    assert len(rings) == n
    radius, classes = rings.points.norm(dim=1), rings.classes
    assert (radius[classes == 0] < 0.9 + 1e-6).all()
    assert (radius[classes == 1] > 1 - 1e-6).all() and (radius < 1.9 + 1e-6).all()
    assert classes.tolist() == sorted(classes.tolist())
    assert abs(n - 2 * classes.sum().item()) <= 1
    point, kind = rings[n - 1]
    assert torch.equal(point, rings.points[-1]) and kind == 1
    assert torch.equal(rings.points, Rings(n, seed).points)
    assert not torch.equal(rings.points, Rings(n, seed + 1).points)


@pytest.mark.parametrize("n", [1, 0, -5, 2.5, "ten"])
def test_rings_need_two_points(n):
    with pytest.raises(ValueError, match="not enough for two classes"):
        Rings(n, seed=0)


def make_net(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), activation(), nn.Linear(16, 2))


def test_fit_takes_the_steps_of_adam_and_returns_their_losses():
    data = Rings(30, seed=3)
    loader = DataLoader(data, batch_size=8)
    ours, theirs = make_net(), make_net()
    losses = fit(ours, loader, epochs=2, lr=0.01)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    wanted = []
    for start in [0, 8, 16, 24] * 2:
        part = slice(start, start + 8)
        scores = torch.log_softmax(theirs(data.points[part]), dim=1)
        loss = -scores.gather(1, data.classes[part, None]).mean()
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        for p, gradient in zip(theirs.parameters(), gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        wanted.append(loss.item())
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert all(map(torch.allclose, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Identity])
def test_a_ring_is_learned_with_a_bend_between_the_layers_and_not_without(activation):
    net, new = make_net(activation), Rings(500, seed=9)
    fit(net, DataLoader(Rings(200, seed=8), batch_size=20, shuffle=True))
    share = (net(new.points).argmax(1) == new.classes).float().mean()
    assert share > 0.95 if activation is nn.Tanh else share < 0.75


def test_fit_refuses_a_loader_that_hands_out_nothing():
    loader = DataLoader(Rings(10, seed=0), batch_size=20, drop_last=True)
    with pytest.raises(ValueError, match="the loader has no batch"):
        fit(make_net(), loader)


# Two processes


def one_process(examples):
    """The bias after the same two steps on these examples, by the formula."""
    torch.manual_seed(0)
    layer = nn.Linear(1, 1)
    w, b = layer.weight.item(), layer.bias.item()
    for _ in range(2):
        errors = [w * x + b - (2 * x + 1) for x in examples]
        mean = [sum(errors), sum(e * x for e, x in zip(errors, examples, strict=True))]
        b -= 0.5 * 2 * mean[0] / len(examples)
        w -= 0.5 * 2 * mean[1] / len(examples)
    return b


def test_two_processes_that_average_are_one_and_else_are_two():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--local-addr", "127.0.0.1", "--nproc-per-node", "2"),
            two_processes.__file__,
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    averaged, apart = (
        [float(number) for number in line.split(":")[1].split()]
        for line in done.stdout.splitlines()
    )
    examples = [i / 8 for i in range(8)]
    assert averaged == pytest.approx([one_process(examples)] * 2, abs=1e-4)
    shares = [one_process(examples[rank::2]) for rank in (0, 1)]
    assert apart == pytest.approx(shares, abs=1e-4)
    assert abs(apart[0] - apart[1]) > 0.01


# Step zero


def step_of_training(clear=True, step=True, rate=1.0):
    def train_step(model, x, y, optimizer):
        (rate * F.mse_loss(model(x), y)).backward()
        if step:
            optimizer.step()
        if clear:
            optimizer.zero_grad()

    return train_step


READY = [
    (1, (2, 4)),
    (1, torch.Size([2, 4])),
    (2, (17, 39)),
    (2, torch.tensor([17.0, 39.0])),
    (3, -18),
    (4, 4.0),
    (5, 0.75),
    (5, 3 / 4),
    (6, math.log(4)),
    (6, 1.39),
    (7, 3),
    (8, lambda text: Counter(text.split())),
    (8, lambda text: {word: text.split().count(word) for word in set(text.split())}),
    (9, [4, 3]),
    (9, (torch.zeros(4, 1) + torch.zeros(3)).shape),
    (10, step_of_training()),
]
NOT_READY = [
    (1, (3, 3), "inner lengths"),
    (1, (4, 2), "exchanged"),
    (1, 8, "a shape such as"),
    (2, [23, 34], "each *row* of A"),
    (2, [[17], [39]], "two numbers such as"),
    (3, -6, "lacks the slope"),
    (3, 18, "wrong sign"),
    (3, 7, "It is not 7"),
    (3, "minus 18", "wanted is one number, not 'minus 18'"),
    (4, 3, "from the product alone"),
    (4, 2, "slope for b"),
    (5, 0.15, "share of all messages"),
    (5, 75, "It is not 75"),
    (6, -1.386, "wrong sign"),
    (6, 2, "base 2"),
    (6, 0.602, "base 10"),
    (7, 2, "the same list"),
    (8, lambda text: len(text.split()), "a dictionary, not 5"),
    (8, lambda text: text.count(), "It raises TypeError"),
    (8, lambda text: Counter(text.split(" ")), "For 'tea  tea\\ntea'"),
    (8, lambda text: Counter(text), "For 'the cat and the dog'"),
    (8, lambda text: None, "returns nothing yet"),
    (8, {"the": 2}, "wanted is a function that takes a text"),
    (9, (3, 4), "from the right"),
    (9, (7,), "number by number"),
    (10, step_of_training(clear=False), "The first step is right and the second"),
    (10, step_of_training(step=False), "have not moved"),
    (10, step_of_training(rate=3.0), "not by one step"),
    (10, lambda model, x: None, "raises TypeError"),
]


@pytest.mark.parametrize(("n", "answer"), READY)
def test_step_zero_accepts_right_answers(n, answer, capsys):
    check = Readiness()
    check(n, answer)
    assert capsys.readouterr().out == f"Question {n}: right.\n"


def test_step_zero_needs_no_brackets(capsys):
    check = Readiness()
    check(2, 17, 39)
    assert capsys.readouterr().out == "Question 2: right.\n"


@pytest.mark.parametrize(("n", "answer", "message"), NOT_READY)
def test_step_zero_says_what_is_wrong_and_where_to_read(n, answer, message, capsys):
    check = Readiness()
    check(n, answer)
    printed = capsys.readouterr().out
    assert printed.startswith(f"Question {n}: not yet. ") and message in printed
    assert printed.rstrip().endswith(f"Read {QUESTIONS[n].read}.")
    check.report()
    assert "0 of 10 are right." in capsys.readouterr().out


def test_step_zero_counts_the_last_answer(capsys):
    check = Readiness()
    for n, answer in [*((n, -1) for n in QUESTIONS), *READY]:
        check(n, answer)
    capsys.readouterr()
    check.report()
    printed = capsys.readouterr().out
    assert "PyTorch         2 of 2\n10 of 10 are right.\n" in printed
    assert "ready for chapter 2" in printed and "Read " not in printed
    assert (ROOT / "appendix_a_pytorch" / printed.split()[-1]).is_file()


def cells_of(name):
    path = ROOT / "appendix_a_pytorch" / f"{name}.ipynb"
    return nbformat.read(path, as_version=4).cells


def code_of_step_zero():
    return [x.source for x in cells_of("readiness") if x.cell_type == "code"]


def test_step_zero_unanswered_runs_without_an_error(capsys):
    sources = code_of_step_zero()
    if "\n".join(sources).count("\n    ...") != len(QUESTIONS):
        pytest.skip("step zero has been answered here")
    names = {}
    for source in sources:
        exec(source, names)
    printed = capsys.readouterr().out
    assert "0 of 10 are right." in printed
    assert printed.count("not answered yet") == 8


def test_step_zero_asks_each_question_once_in_order():
    calls = [
        node.args[0].value
        for source in code_of_step_zero()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check"
    ]
    assert calls == list(QUESTIONS)


def test_step_zero_s_folded_answers_are_right(capsys):
    names, folded = {}, cells_of("readiness")[-1].source
    exec(code_of_step_zero()[0], names)
    exec(re.search(r"```python\n(.*?)```", folded, re.DOTALL)[1], names)
    names["check"].report()
    assert "10 of 10 are right." in capsys.readouterr().out


def test_step_zero_names_sections_that_exist():
    text = "\n".join(cell.source for cell in cells_of("pytorch"))
    for question in QUESTIONS.values():
        for word in question.read.replace(",", "").split():
            assert not word.startswith("A.") or f"## {word} " in text
