"""One style for all figures of the course, and a few pictures that chapters share."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: colour-blind readers can tell these eight colours apart.
COLORS = [
    "#0072B2",  # blue
    "#E69F00",  # orange
    "#009E73",  # green
    "#D55E00",  # vermillion
    "#CC79A7",  # purple
    "#56B4E9",  # sky
    "#F0E442",  # yellow
    "#000000",  # black
]

# For values from low to high: its steps look even, and it is readable without colour.
COLORMAP = "viridis"


def use_style() -> None:
    """Give every figure from now on the course's look.

    The background is white, so that labels stay readable when the notebook is shown in
    a dark theme.
    """
    plt.rcParams.update(
        {
            "axes.axisbelow": True,  # grid lines under the bars
            "axes.grid": True,
            "axes.prop_cycle": plt.cycler(color=COLORS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.figsize": (6.4, 3.6),
            "font.size": 10,
            "grid.alpha": 0.3,
            "image.cmap": COLORMAP,
            "legend.frameon": False,
            "savefig.facecolor": "white",
        }
    )


def show(alt: str) -> None:
    """Show the last figure, with a text for readers who cannot see it.

    `alt` says in a sentence or two what is drawn and what one sees: `plots.show("Loss
    against steps: falls fast, then slowly.")` It is stored with the picture, so leave
    out numbers that differ between processors.
    """
    if not alt.strip():
        raise ValueError("the figure's text is empty; say what one sees in it")
    if not plt.get_fignums():
        raise ValueError("there is no figure to show; draw one first, in this cell")
    from IPython.display import display  # only notebooks need it

    display(plt.gcf(), metadata={"image/png": {"alt": alt}})
    plt.close()


def panels(
    n: int, width: float = 3.2, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure with `n` axes side by side, each `width` by `height` inches."""
    figure, axes = plt.subplots(1, n, figsize=(n * width, height), squeeze=False)
    return figure, list(axes[0])


def heatmap(
    values,
    rows: list[str] | None = None,
    columns: list[str] | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    annotate: bool = False,
    vmin: float | None = None,
    vmax: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a matrix as coloured squares.

    Args:
        values: a matrix (tensor, array or list of lists), one square per entry.
        rows, columns: labels of the rows (left) and of the columns (below).
        annotate: write each value into its square, with two decimals.
        vmin, vmax: the values with the darkest and the lightest colour.
        ax: where to draw; by default a new figure.

    Returns:
        The axes, so that you can draw more.
    """
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2:
        raise ValueError(f"a heat map needs a matrix, not the shape {matrix.shape}")
    if ax is None:
        height = max(2.0, 1.0 + 0.4 * matrix.shape[0])
        _, ax = plt.subplots(figsize=(max(3.2, 1.6 + 0.5 * matrix.shape[1]), height))
    image = ax.imshow(matrix, vmin=vmin, vmax=vmax, aspect="auto")
    ax.grid(False)
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    if columns is not None:
        slanted = max(map(len, columns), default=0) > 4
        ax.set_xticks(
            range(len(columns)),
            columns,
            rotation=45 if slanted else 0,
            ha="right" if slanted else "center",
        )
    if annotate:
        for (row, column), value in np.ndenumerate(matrix):
            light = image.norm(value) > 0.6
            ax.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if light else "white",
            )
    else:
        ax.figure.colorbar(image, ax=ax, shrink=0.85)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def path(stations: dict[str, object], tokens: list[str], columns: int = 6) -> Figure:
    """Draw a text's way through a model: tensors from left to right, with numbers.

    Args:
        stations: the tensors by name: (T,), (T, C), or (H, T, D), which is drawn as H
            matrices, one below another.
        tokens: the T tokens of the text, top to bottom.
        columns: how many columns of a matrix are drawn; its shape is printed below.
    """
    T = len(tokens)
    arrays = {name: np.asarray(values) for name, values in stations.items()}
    for name, values in arrays.items():
        if values.ndim not in (1, 2, 3) or values.shape[-2:][:1] != (T,):
            raise ValueError(
                f"station {name!r} has shape {values.shape}; for {T} tokens it must "
                f"be ({T},), ({T}, C) or (H, {T}, D)"
            )
    stacks = [a if a.ndim == 3 else a.reshape(1, T, -1) for a in arrays.values()]
    widths = [max(0.7, 0.38 * min(columns, stack.shape[2])) for stack in stacks]
    tallest = max(map(len, stacks))
    size = (sum(widths) + 0.25 * len(widths) + 0.6, 0.8 + 0.27 * T * tallest)
    figure = plt.figure(figsize=size)
    grid = figure.add_gridspec(1, len(stacks), width_ratios=widths)
    for place, (name, stack) in enumerate(zip(arrays, stacks, strict=True)):
        axes = grid[place].subgridspec(len(stack), 1).subplots(squeeze=False)[:, 0]
        for h, (ax, matrix) in enumerate(zip(axes, stack, strict=True)):
            _squares(ax, matrix[:, :columns], np.abs(stack[..., :columns]).max())
            ax.set_yticks(range(T), tokens if place == 0 else [], fontsize=8)
            ax.set_ylabel(f"head {h}" if len(stack) > 1 else "", fontsize=8)
        axes[0].set_title(name if place == 0 else f"→ {name}", fontsize=9)
        axes[-1].set_xlabel(str(arrays[name].shape), fontsize=8)
    return figure


def _squares(ax: Axes, matrix: np.ndarray, most: float) -> None:
    """Draw one tensor, in colours from -most to most; whole numbers have no colour."""
    whole = np.issubdtype(matrix.dtype, np.integer)
    shown = np.zeros(matrix.shape) if whole else matrix
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        text = f"{value}" if whole else f"{value:.2f}" if most < 10 else f"{value:.0f}"
        light = 0.25 < image.norm(shown[row, column]) < 0.75
        color = "black" if light else "white"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.tick_params(length=0)
