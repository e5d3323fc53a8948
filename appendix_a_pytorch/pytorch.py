"""Appendix A: PyTorch.

You will read and write the PyTorch that this course uses, from a first tensor to a
training loop of your own, and on to two processes that share its work. You need Python
but no PyTorch, and from school what a function and its slope are.

Exported from pytorch.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from appendix_a_pytorch.guards import check_batches, check_number, check_points
from appendix_a_pytorch.operators import Operators

__all__ = [
    "Value",
    "ancestors",
    "Rings",
    "fit",
]


class Value(Operators):
    """A number that remembers what it was made of, and finds its slopes backward.

    `parents` are pairs (value, slope): what this number was made of, and how fast it
    grows with each. An input or a weight has none.
    """

    def __init__(self, data, parents=()):
        check_number(data)
        self.data, self.grad, self.parents = float(data), 0.0, parents
        self.depth = 1 + max((value.depth for value, _ in parents), default=-1)

    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def tanh(self) -> "Value":
        """The hyperbolic tangent, between -1 and 1."""
        t = math.tanh(self.data)
        return Value(t, ((self, 1 - t**2),))

    def backward(self) -> None:
        """Add to the `grad` of each ancestor how fast this value grows with it."""
        order = ancestors(self)
        for value in order:
            if value.parents:
                value.grad = 0.0  # only inputs keep what earlier calls left there
        self.grad += 1.0
        for value in order:
            for parent, slope in value.parents:
                parent.grad += slope * value.grad  # eq. A.2


def ancestors(last: "Value") -> list["Value"]:
    """A value and all that it was made of, the deepest first."""
    found, waiting = {last: None}, [last]  # a dict, because it keeps its order
    while waiting:
        for value, _ in waiting.pop().parents:
            if value not in found:
                found[value] = None
                waiting.append(value)
    return sorted(found, key=lambda value: -value.depth)


class Rings(Dataset):
    """Points in a disc and a ring around it: `dataset[i]` is a point (2,), its class.

    The first half of the n points are the disc, class 0; the others are class 1.
    """

    def __init__(self, n: int, seed: int):
        check_points(n)
        draw = torch.Generator().manual_seed(seed)
        self.classes = torch.arange(n) * 2 // n
        radius = self.classes + 0.9 * torch.rand(n, generator=draw)
        angle = 2 * math.pi * torch.rand(n, generator=draw)
        self.points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, i: int):
        return self.points[i], self.classes[i]


def fit(
    model: nn.Module, loader: DataLoader, epochs: int = 20, lr: float = 0.02
) -> list[float]:
    """Train a classifier on a loader's batches; return the loss of each step."""
    check_batches(loader)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        for points, classes in loader:  # (B, 2), (B,)
            loss = F.cross_entropy(model(points), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses
