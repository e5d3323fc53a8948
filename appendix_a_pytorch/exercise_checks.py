"""Checks for the exercises of appendix A: each says what is wrong, and perhaps why."""

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shared.appendix_a import Value, ancestors
from shared.exercises import checked, close, number, one_of, tensor


@checked("A.1", wants="a tensor of floats, (..., V)", keeps=True)
def one_hot(answer: Callable) -> None:
    """Equal to PyTorch's, for ids of any shape."""
    generator = torch.Generator().manual_seed(1)
    for shape, V in (((4,), 6), ((2, 3), 5), ((3, 3), 3), ((2, 1, 2), 4)):
        ids = torch.randint(V, shape, generator=generator)
        answer.hint = "give ids a new last axis of length 1, which meets every number"
        found = tensor(answer(ids, V), *shape, V)
        assert found.is_floating_point(), (
            f"{found.dtype} cannot be multiplied with weights; finish with .float()"
        )
        assert torch.equal(found.float(), F.one_hot(ids, V).float()), (
            f"for ids {ids.tolist()} some row has its 1 in another column than its id; "
            "compare the last axis with 0, 1, ..., V - 1"
        )
    print("Right: one row per id, with a single 1, for ids of any shape.")


@checked("A.2", wants="as many whole numbers as there are axes")
def strides(answer: Callable) -> None:
    """The strides of new tensors of many shapes."""
    shapes = [(3, 4), (4, 3), (5,), (2, 3, 4), (2, 1, 5, 3), ()]
    generator = random.Random(2)
    shapes += [tuple(generator.choices(range(1, 6), k=k)) for k in (2, 3, 4, 5)]
    for shape in shapes:
        found = tuple(map(number, answer(shape)))
        wanted = torch.empty(shape).stride()
        hint = "one step along an axis passes over all entries of the axes after it"
        if len(found) == len(wanted) and found == wanted[::-1]:
            hint = "that is the right list, backward"
        assert found == wanted, f"{shape} has strides {wanted}, not {found}; {hint}"
    print(f"Right: the same as PyTorch's for {len(shapes)} shapes.")


@checked("A.3", wants="a Value", keeps=True)
def sigmoid(answer: Callable) -> None:
    """Number and slope are PyTorch's, even if the result is used twice."""
    for x in (-3.0, -0.5, 0.0, 1.0, 4.0, 30.0):
        ours, theirs = (
            Value(x),
            torch.tensor(x, dtype=torch.float64, requires_grad=True),
        )
        found = answer(ours)
        if not isinstance(found, Value):
            raise TypeError("no Value")
        p = torch.sigmoid(theirs)
        assert math.isclose(found.data, p.item(), abs_tol=1e-9), (
            f"sigmoid({x}) is {p.item():.6f}, not {found.data:.6f}; it is "
            "1 / (1 + exp(-x))"
        )
        (found * found + ours).backward()
        (p * p + theirs).backward()
        hint = "its slope is s * (1 - s), where s is its own value"
        if not any(value is ours for value in ancestors(found)):
            hint = "the result has forgotten x: make x one of its parents"
        assert math.isclose(ours.grad, theirs.grad.item(), abs_tol=1e-9), (
            f"at x = {x} the slope of s * s + x should be {theirs.grad.item():.6f}, "
            f"but x.grad is {ours.grad:.6f}; {hint}"
        )
    print("Right: number and slope are PyTorch's.")


@checked("A.4", wants="one number, the mean loss")
def train_epoch(answer: Callable) -> None:
    """Weights after two epochs, and the mean over examples."""
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(10, 3, generator=generator), torch.arange(10) % 2
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    model, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():  # the same small numbers in both
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.copy_(torch.randn(p.shape, generator=generator) / 4)
            q.copy_(p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    wanted = _epoch(reference, loader)
    found = number(answer(model, loader, optimizer))
    _same_weights(model, reference, "the first epoch")
    each = _losses(loader, reference)
    assert not math.isclose(found, sum(wanted) / len(wanted), abs_tol=1e-5), (
        "that is the mean over batches, but the last batch is smaller; multiply each "
        "loss by len(x), and divide by the number of examples"
    )
    mean = (4 * wanted[0] + 4 * wanted[1] + 2 * wanted[2]) / 10
    assert not math.isclose(found, each, abs_tol=1e-5), (
        "that is the loss after the epoch; use the losses from before each step"
    )
    assert math.isclose(found, mean, abs_tol=1e-5), (
        f"the mean loss of the ten examples is {mean:.4f}, not {found:.4f}: each "
        "batch's loss counts once for each of its examples"
    )
    answer(model, loader, optimizer)
    _epoch(reference, loader)
    _same_weights(model, reference, "a second epoch")
    print(f"Right: weights as they should be, mean loss {mean:.4f}.")


def _epoch(model: nn.Module, loader: DataLoader) -> list[float]:
    """One epoch of gradient descent by hand; the loss of each batch."""
    losses = []
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p -= 0.5 * gradient
        losses.append(loss.item())
    return losses


@torch.no_grad()
def _losses(loader: DataLoader, model: nn.Module) -> float:
    x, y = loader.dataset.tensors
    return F.cross_entropy(model(x), y).item()


def _same_weights(model: nn.Module, reference: nn.Module, when: str) -> None:
    same = all(map(close, _detached(model), _detached(reference)))
    assert same, (
        f"after {when} the weights are not those of one step per batch; a step is: "
        "answer, loss, zero_grad, backward, step"
    )


def _detached(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters()]


@checked("A.5", wants="two accuracies: shuffled, and in order")
def order_matters(predicted: Callable, experiment: Callable) -> None:
    """With three seeds: shuffled must be well ahead of in order."""
    guess = one_of(predicted(), ["shuffled", "in order", "no difference"])
    for seed in (1, 2, 3):
        shuffled, in_order = map(number, experiment(seed))
        for share in (shuffled, in_order):
            assert 0 <= share <= 1, f"an accuracy is between 0 and 1, not {share}"
        assert shuffled > 0.85, (
            f"shuffled, seed {seed}: ten epochs should reach more than an accuracy of "
            f"{shuffled:.2f}; is shuffle=True there, and a tanh between the layers?"
        )
        assert in_order < 0.85, (
            f"in order, seed {seed}: {in_order:.2f} is too good for points in order; "
            "is a fresh model trained, for ten epochs, with shuffle=False?"
        )
        print(f"seed {seed}: shuffled {shuffled:.2f}, in order {in_order:.2f}")
    print(
        f"Right: order matters, for the same points and steps; you predicted {guess!r}."
    )
