"""The drawings of appendix A, its lines, and its maps of disc and ring."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from shared import plots
from shared.drawings import SMALL, Drawing

RED = "#A84300"  # vermillion, dark enough for small letters


def product(X: Tensor, W: Tensor, i: int, j: int) -> Drawing:
    """Eight points X (8, 2) times three lines W (2, 3); the entry (i, j) is marked."""
    d = Drawing(
        620,
        258,
        f"Eight points times three lines. Row {i} of X and column {j} of W, multiplied "
        f"number by number and added up, are the entry in row {i} and column {j} of "
        "the product.",
    )
    points, lines = [f"point {n}" for n in range(8)], ["line 0", "line 1", "line 2"]
    size = {"cell": 22, "digits": 3}
    left = d.matrix(70, 44, X, points, ["x", "1"], "", "X (8, 2)", **size)
    d.text(190, 132, "@", 14, bold=True)
    middle = d.matrix(
        246, 110, W, ["w", "b"], lines, "", "W (2, 3)", "orange", digits=1
    )
    d.text(432, 132, "=", 14, bold=True)
    right = d.matrix(472, 44, X @ W, (), lines, "", "Y (8, 3)", "green", **size)
    for marked in (left.row(i), middle.column(j), right.cells[i][j]):
        d.mark(marked)
    (x, one), (w, b) = X[i].tolist(), W[:, j].tolist()
    d.text(
        middle.bottom[0], 212, f"{x:.3f} · {w:g} + {one:g} · {b:g} = {x * w + b:.3f}"
    )
    return d


def lines(X: Tensor, Y: Tensor, targets: Tensor) -> None:
    """Eight points, and what three lines answer, Y (8, 3)."""
    plt.figure(figsize=(5.2, 2.9))
    for j, style in enumerate(("--", ":", "-")):
        plt.plot(X[:, 0], Y[:, j], style, label=f"line {j}")
    plt.plot(X[:, 0], targets, "o", color=plots.COLORS[7], label="targets")
    plt.gca().set(xlabel="x", ylabel="answer")
    plt.legend()


def subtraction(Y: Tensor, targets: Tensor) -> Drawing:
    """Answers Y (8, 3) minus targets (8, 1), whose column is repeated."""
    d = Drawing(
        640,
        258,
        "The answers of three lines, minus one column of targets that is repeated to "
        "make three, are three columns of errors; those of line 2 are all zero.",
    )
    lines, size = ["line 0", "line 1", "line 2"], {"cell": 22, "digits": 3}
    d.matrix(30, 44, Y, (), lines, "", "Y (8, 3)", "green", **size)
    d.text(186, 132, "-", 14, bold=True)
    shape = "targets (8, 1)"
    column = d.matrix(230, 44, targets, (), ["once"], "", shape, **size)
    words = [[f"{target:.3f}"] * 2 for target in targets.flatten().tolist()]
    repeated = ["again", "again"]
    x = column.x + column.width + 10
    copies = d.matrix(x, 44, words, (), repeated, color="black", shade=False, **size)
    x = copies.x + copies.width + 56
    d.text(x - 28, 132, "=", 14, bold=True)
    d.matrix(x, 44, Y - targets, (), lines, "", "errors (8, 3)", "purple", **size)
    return d


def training_step() -> Drawing:
    """A training step: a loop of five boxes."""
    d = Drawing(
        700,
        200,
        "A loop. The model answers. Answers and targets make the loss. Backward finds "
        "the slopes. A step changes the weights. The slopes are cleared, and the model "
        "answers again.",
    )
    targets = d.text(243, 20, "targets")
    answer = d.box(20, 58, "answer", "X @ W", "blue", 104, 50)
    loss = d.box(191, 58, "loss", "one number", "orange", 104, 50)
    backward = d.box(376, 58, "backward", ".backward()", "vermillion", 104, 50)
    step = d.box(560, 58, "step", "W -= rate * grad", "green", 120, 50)
    clear = d.box(280, 140, "clear the slopes", width=140)
    d.arrow(answer, loss, "answers")
    d.arrow(targets, loss)
    d.arrow(loss, backward, "how wrong?")
    d.arrow(backward, step, "slopes")
    d.arrow(step, clear, bend="down")
    d.arrow(clear, answer, bend="across")
    d.text(172, 172, "again, with better weights", SMALL)
    return d


def forward_and_backward(numbers: dict, slopes: dict) -> Drawing:
    """The smallest network: numbers from left to right, slopes of the loss back again.

    `numbers` are those of x, w1, b, z, h, w2, y, target and loss; `slopes` are those of
    the loss with respect to them, for all but x and target.
    """
    d = Drawing(
        700,
        264,
        "The network as a graph. Forward: w1, x and b make z, tanh makes h, w2 makes "
        "y, and y and the target make the loss. Backward: the slope at a box is "
        "multiplied by the slope on each arrow into it.",
    )
    places = {"x": (20, 34), "w1": (20, 108), "b": (20, 182), "z": (170, 108)}
    places |= {"h": (310, 108), "w2": (310, 182), "y": (450, 108)}
    places |= {"target": (590, 34), "loss": (590, 108)}
    boxes = {}
    for name, (x, y) in places.items():
        weight = name in ("w1", "b", "w2")
        color = "green" if weight else "orange" if name == "loss" else None
        boxes[name] = d.box(x, y, name, f"{numbers[name]:.2f}", color, 84, 44)
        if name in slopes:
            x += 26 if name in ("z", "y") else 8  # an arrow comes up beside it
            slope = f"slope {slopes[name]:.2f}"
            d.text(x, y + 54, slope, SMALL, anchor="start", color=RED)
    h, error = numbers["h"], numbers["y"] - numbers["target"]
    local = {("w1", "z"): numbers["x"], ("b", "z"): 1.0, ("z", "h"): 1 - h**2}
    local |= {("h", "y"): numbers["w2"], ("w2", "y"): h, ("y", "loss"): 2 * error}
    for (start, end), slope in local.items():
        to, bend, (x1, y1) = boxes[end], None, boxes[start].right
        if start in ("b", "w2"):  # from below
            to, bend = (to.x + 16, to.bottom[1]), "across"
        d.arrow(boxes[start], to, bend=bend)
        d.text(x1 + 29, y1 - 11, f"{slope:.2f}", SMALL, color=RED)
    d.arrow(boxes["x"], boxes["z"], bend="across")
    d.arrow(boxes["target"], boxes["loss"])
    d.arrow((130, 20), (560, 20), color="blue")
    d.text(345, 36, "forward: the numbers", SMALL)
    d.arrow((680, 236), (430, 236), color="vermillion")
    d.text(555, 252, "backward: multiply the slopes on the way", SMALL, color=RED)
    return d


def network() -> Drawing:
    """The network that learns the ring, with the shapes between its layers."""
    d = Drawing(
        610,
        80,
        "Points go through a linear layer to sixteen numbers each, through tanh, and "
        "through a second linear layer to two scores each.",
    )
    parts = ["points", "Linear", "tanh", "Linear", "scores"]
    shapes = ["(B, 2)", "(B, 16)", "(B, 16)", "(B, 2)"]
    d.chain(20, 20, parts, shapes, gap=66, color="blue")
    return d


def memory(grid: Tensor) -> Drawing:
    """A grid (3, 4), its transpose, and the row of memory that both read."""
    d = Drawing(
        700,
        236,
        "A grid of three rows and four columns, its transpose, and below them the "
        "twelve numbers in one row of memory. Row 1 of the grid is marked: four cells "
        "side by side. Row 1 of the transpose is marked: every fourth cell.",
    )
    left = d.matrix(130, 44, grid, title="grid: stride (4, 1)", shade=False)
    right = d.matrix(460, 44, grid.T, title="grid.T: stride (1, 4)", shade=False)
    row = [grid.flatten().tolist()]
    below = d.matrix(194, 188, row, shade=False)
    d.text(180, below.left[1], "memory", anchor="end", bold=True)
    for matrix, color, numbers in (
        (left, "blue", grid[1].tolist()),
        (right, "orange", grid.T[1].tolist()),
    ):
        d.mark(matrix.row(1), color)
        for number in numbers:
            cell = below.cells[0][number]
            x, side = cell.top[0], cell.y if color == "blue" else cell.bottom[1]
            away = -12 if color == "blue" else 12
            d.arrow((x, side + away), (x, side), color=color)
    return d


def two_processes() -> Drawing:
    """Two processes take one step together."""
    d = Drawing(
        700,
        326,
        "Two processes with the same weights. Each answers for its own half of the "
        "points and finds its own slopes. Both sets of slopes are averaged, and both "
        "take the same step, so their weights stay the same.",
    )
    sides = []
    for rank, (x, points) in enumerate(((40, "0, 2, 4, 6"), (440, "1, 3, 5, 7"))):
        color = ("blue", "orange")[rank]
        d.text(x + 110, 20, f"process {rank}", bold=True)
        same = d.box(x, 38, "w, b", width=220)
        own = d.box(x, 104, f"points {points}", "loss and backward", color, 220, 50)
        slopes = d.box(x, 180, "its own slopes", color=color, width=220)
        step = d.box(x, 256, "step with the average", color="green", width=220)
        d.arrow(same, own)
        d.arrow(own, slopes)
        sides.append((slopes, step))
    d.text(350, 54, "the same weights", SMALL)
    middle = d.box(294, 173, "average", "all_reduce", "green", 112, 50)
    for slopes, step in sides:
        d.arrow(slopes, middle)
        d.arrow(middle, step, bend="down")
    d.text(350, 308, "the same weights again", SMALL)
    return d


def maps(models: dict[str, nn.Module], dataset: Dataset, accuracy: Callable) -> None:
    """What each model answers in the plane, and the points that it was trained on."""
    axis = torch.linspace(-2.1, 2.1, 101)
    plane = torch.cartesian_prod(axis, axis)  # (10201, 2)
    _, axes = plots.panels(len(models), width=2.9, height=3.1)
    for ax, (name, model) in zip(axes, models.items(), strict=True):
        p = torch.softmax(model(plane).detach(), dim=1)[:, 1].view(101, 101)
        colors = [plots.COLORS[5], plots.COLORS[1]]
        ax.contourf(axis, axis, p.T, levels=[0, 0.5, 1], colors=colors, alpha=0.3)
        for kind, marker in ((0, "o"), (1, "^")):
            chosen = dataset.points[dataset.classes == kind]
            ax.scatter(*chosen.T, s=8, marker=marker, color=plots.COLORS[3 * kind])
        ax.set(title=f"{name}: {accuracy(model):.2f}", xlabel="first number")
    axes[0].set_ylabel("second number")
