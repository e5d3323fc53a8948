"""The drawings and figures of appendix D."""

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from shared import plots
from shared.drawings import Drawing

STYLES = ("-", "--", "-.", ":")


def one_step() -> Drawing:
    """A training step, and which section changes which part of it."""
    d = Drawing(
        715,
        212,
        "A training step. A batch makes a gradient, which is clipped, averaged or made "
        "orthogonal, and multiplied by the learning rate, before it changes the "
        "weights. Weight decay shrinks the weights, and a running mean follows them.",
    )
    texts = ["gradient", "clip it\nD.4", "average it\nD.6", "times the rate\nD.2, D.3"]
    boxes = d.chain(116, 34, texts, gap=28, color="blue")
    batch = d.box(16, 43, "batch", width=70)
    d.arrow(batch, boxes[0])
    weights = d.box(590, 34, "weights", "D.5: decay", "green", 106, 55)
    d.arrow(boxes[-1], weights)
    x = boxes[2].x - 10
    muon = d.box(x, 124, "make it orthogonal\nD.8", color="orange")
    d.arrow(boxes[1], muon, bend="down")
    d.arrow(muon, boxes[3], bend="across")
    mean = d.box(590, 136, "running mean\nD.7", color="purple", width=116)
    d.arrow(weights, (mean.top[0] - 5, mean.y))
    return d


def pairs() -> Drawing:
    """Five seeds, each run twice, and what is compared."""
    d = Drawing(
        660,
        190,
        "A table with a row for each of five seeds: the loss without the change, the "
        "loss with it, and their difference. Only the five differences are used.",
    )
    rows = [[f"a{i}", f"b{i}", f"b{i} - a{i}"] for i in range(1, 6)]
    seeds = [f"seed {i}" for i in range(1, 6)]
    columns = ["loss without", "loss with", "difference"]
    table = d.matrix(90, 42, rows, seeds, columns, cell=26, color="blue")
    d.mark(table.column(2))
    x, y = table.row(0).right
    within = "within a row: the same first\nweights, the same batches"
    d.text(x + 24, y, within, anchor="start")
    down = "down the column: the mean is the effect,\nthe scatter says how sure we are"
    d.text(x + 24, y + 78, down, anchor="start")
    return d


def training_curves(curves: dict[str, np.ndarray]) -> None:
    """Training losses (seeds, steps) by name, averaged over ten steps."""
    for color, (name, losses) in zip(plots.COLORS, curves.items(), strict=False):
        smooth = losses.reshape(len(losses), -1, 10).mean(2)  # (seeds, steps / 10)
        steps = range(5, losses.shape[1], 10)
        for label, curve in zip([name, *[None] * len(smooth)], smooth, strict=False):
            plt.plot(steps, curve, label=label, color=color, alpha=0.7)
    plt.gca().set(xlabel="step", ylabel="training loss (nats per byte)", ylim=(2, 4))
    plt.legend()


def effects(rows: list[tuple[str, float, float]]) -> None:
    """One line per (label, mean difference, half of its interval)."""
    _, ax = plt.subplots(figsize=(6.4, 0.9 + 0.42 * len(rows)))
    for y, (_, mean, half) in enumerate(rows):
        ax.errorbar(mean, y, xerr=half, fmt="o", capsize=4, color=plots.COLORS[0])
        ax.annotate(f"{mean:+.3f}", (mean, y), (0, 6), textcoords="offset points")
    ax.axvline(0, color="grey", linestyle=":")
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    ax.set(xlabel="difference of held-out loss (nats per byte); left is better")
    ax.set_ylim(len(rows) - 0.5, -0.7)


def rates(shapes: dict[str, list[float]]) -> None:
    """Learning rates of all steps, by the name of their shape."""
    highest = max(map(max, shapes.values()))
    for number, (name, values) in enumerate(shapes.items()):
        style = {"color": plots.COLORS[number], "linestyle": STYLES[number]}
        plt.plot(range(1, len(values) + 1), values, label=name, **style)
    plt.gca().set(xlabel="step", ylabel="learning rate", ylim=(0, 1.3 * highest))
    plt.legend(ncols=4)


def singular_values(matrices: dict[str, Tensor]) -> None:
    """The sizes of each matrix's directions, from the largest down."""
    for style, (name, values) in zip(("o-", "s-"), matrices.items(), strict=True):
        plt.plot(range(1, len(values) + 1), values, style, markersize=3, label=name)
    plt.gca().set(xlabel="direction", ylabel="size, of the largest", ylim=(0, 1.1))
    plt.legend()


def groups() -> Drawing:
    """Which optimizer moves which parameters of a GPT."""
    d = Drawing(
        700,
        150,
        "The parameters of a GPT in three groups. AdamW with weight decay moves the "
        "embeddings and the output head, Muon the matrices of the blocks, and AdamW "
        "without decay all biases and norms.",
    )
    for x, parameters, optimizer, color in (
        (20, "embeddings,\noutput head", "AdamW,\nwith decay", "blue"),
        (260, "matrices of\nthe blocks", "Muon", "orange"),
        (500, "biases,\nnorms", "AdamW,\nno decay", "sky"),
    ):
        owned = d.box(x, 20, parameters, width=180, height=52)
        moved = d.box(x + 30, 92, optimizer, color=color, width=120, height=46)
        d.arrow(moved, owned)
    return d
