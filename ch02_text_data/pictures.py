"""Drawings of chapter 2: a text's way to the model, windows, and a lookup."""

import torch

from shared.drawings import GREY, SMALL, Box, Drawing
from shared.svg import color_of, mix

LEFT, RIGHT = 118, 715  # where the columns of a journey begin and end, in pixels
GAP, EMPTY = 14, 24  # the space between steps, and the height of one still to come
TOKEN, CELL = 44, 14  # the heights of a token with its id, and of a vector's cell
MOST = 9  # tokens that the page has room for; further ones are left out
# The steps: name and sign before it, where the reader meets it, height, colour.
STEPS = [
    ("characters", "", "section 2.1", 30, None),
    ("tokens", "", "sections 2.2 and 2.5", 28, "sky"),
    ("ids", "", "sections 2.3 and 2.5", 28, None),
    ("inputs", "", "section 2.6", TOKEN + 30, "sky"),
    ("token vectors", "", "section 2.9", 3 * CELL, "blue"),
    ("position vectors", "+ ", "section 2.10", 3 * CELL + 16, "purple"),
    ("x", "= ", "section 2.10", 3 * CELL, "green"),
    ("the model", "", "chapters 3 and 4", 0, None),
    ("targets", "", "section 2.6", TOKEN, "orange"),
]
VECTORS = ("token vectors", "position vectors", "x")


def journey(steps: dict) -> Drawing:
    """Draw how far a text has come on its way to the model; dashed is still to come.

    Args:
        steps: what there is so far, by name: "characters" (a string), "tokens" and
            "ids" (lists), "inputs" and "targets" (B, T), "token vectors" (B, T, C),
            "position vectors" (T, C) and "x" (B, T, C), with C = 3.
    """
    heights = [step[3] if step[0] in steps else EMPTY for step in STEPS]
    d = Drawing(720, sum(heights) + GAP * (len(STEPS) + 1), _told(steps))
    y = GAP
    for (name, sign, where, _, color), height in zip(STEPS, heights, strict=True):
        row = Box(LEFT, y, RIGHT - LEFT, height)
        value = steps.get(name)
        _label(d, row, sign + name, value)
        if value is None:
            d.frame([row], "", pad=0)
            d.text(row.top[0], row.left[1], where, color=GREY)
        elif name == "characters":
            d.box(row.x, y, value, width=row.width, height=height)
        elif name in ("tokens", "ids"):
            for column, item in zip(_columns(row, steps), value, strict=False):
                d.box(column.x, y, _visible(item), "", color, column.width, height)
        elif name in ("inputs", "targets"):
            _windows(d, row, steps, value, color)
        else:
            _vectors(d, row, steps, value, color)
        y += height + GAP
    return d


def _told(steps: dict) -> str:
    """The drawing in words."""
    told = f"From characters to the model; so far: {', '.join(steps)}."
    if "tokens" in steps:
        pairs = zip(steps["tokens"], steps["ids"], strict=True)
        with_ids = ", ".join(f"{_visible(token)} {i}" for token, i in pairs)
        told += f" The tokens with their ids: {with_ids}."
    if "targets" in steps:
        told += " Each target stands below the input that it answers."
    return told


def _label(d: Drawing, row: Box, name: str, value) -> None:
    """The step's name on the left, and its shape if it is a tensor."""
    x, y = LEFT - 8, row.left[1]
    if isinstance(value, torch.Tensor):
        d.text(x, y + 9, str(tuple(value.shape)), SMALL, anchor="end", color=GREY)
        y -= 8
    d.text(x, y, name, anchor="end")


def _columns(row: Box, steps: dict) -> list[Box]:
    """A part of the row for each token of the text."""
    n = min(len(steps["tokens"]), MOST)
    wide = row.width / n
    return [Box(row.x + i * wide + 1.5, row.y, wide - 3, row.height) for i in range(n)]


def _windows(d: Drawing, row: Box, steps: dict, ids: torch.Tensor, color: str) -> None:
    """Windows of tokens, side by side, with a brace below each if there is room."""
    token = dict(zip(steps["ids"], map(_visible, steps["tokens"]), strict=True))
    B, T = ids.shape
    boxes = [
        d.box(column.x, row.y, token[i], str(i), color, column.width, TOKEN)
        for column, i in zip(_columns(row, steps), ids.flatten().tolist(), strict=False)
    ]
    if row.height > TOKEN:
        for b in range(B):
            d.brace(boxes[b * T : (b + 1) * T], f"window {b}")


def _vectors(
    d: Drawing, row: Box, steps: dict, vectors: torch.Tensor, color: str
) -> None:
    """A vector for each token of each window, its numbers below one another.

    Negative numbers are vermillion, and all vectors of a drawing share one scale.
    """
    B, T = steps["inputs"].shape
    drawn = [steps[name] for name in VECTORS if name in steps]
    largest = max(vector.abs().max().item() for vector in drawn) or 1
    rows = vectors.detach().reshape(-1, vectors.shape[-1]).tolist()
    for n, column in enumerate(_columns(row, steps)[: B * T]):
        x, numbers = column.top[0], rows[n % len(rows)]  # positions: once for all
        for i, number in enumerate(numbers):
            hue = color_of(color if number >= 0 else "vermillion")
            fill = mix(hue, 0.7 * round(abs(number) / largest, 2))
            cell = Box(x - CELL / 2, row.y + i * CELL, CELL, CELL)
            d._rectangle(cell, fill, mix(GREY, 0.5), corner=0, thick=1)
        if vectors.ndim == 2:  # one for each position, the same in all windows
            y = row.y + len(numbers) * CELL + 9
            d.text(x, y, str(n % T), SMALL, color=GREY)


def _visible(token) -> str:
    """A token or an id as text, with a dot for the space."""
    return str(token).replace(" ", "·")


def strides(n: int, T: int, strides: list[int]) -> Drawing:
    """Draw the windows of T tokens in a text of n tokens, for several strides."""
    starts = [range(0, n - T, S) for S in strides]
    titles = [
        f"stride {S}: {len(rows)} windows"
        for S, rows in zip(strides, starts, strict=True)
    ]
    high = 20
    d = Drawing(
        720,
        70 + high * max(map(len, starts)),
        f"Windows of {T} tokens in a text of {n}: {', '.join(titles)}. Each window is "
        "followed by its last target, an empty cell.",
    )
    for part, rows in zip(d.steps(titles), starts, strict=True):
        x, y = part.x + (part.width - n * CELL) / 2, part.y + 26
        for position in range(0, n, 2):
            d.text(x + (position + 0.5) * CELL, y - 14, str(position), SMALL)
        for start in rows:
            d.matrix(x + start * CELL, y, [[1] * T], cell=CELL, show=False)
            d.matrix(x + (start + T) * CELL, y, [[None]], cell=CELL)
            y += high
    return d


def lookup(one_hot: torch.Tensor, table: torch.Tensor) -> Drawing:
    """Draw one-hot rows X (T, V), a table W (V, C), and their product, (T, C)."""
    (T, V), C = one_hot.shape, table.shape[1]
    ids = one_hot.argmax(dim=1).tolist()
    d = Drawing(
        720,
        90 + 26 * V,
        f"One-hot rows X with a single 1 each, times the table W of {V} rows, are the "
        f"rows {', '.join(map(str, ids))} of W. The first of them is marked.",
    )
    id_names, row_names = [f"id {i}" for i in ids], [f"row {v}" for v in range(V)]
    y = 50
    middle, lower = y + 13 * V, y + 13 * (V - T)
    X = d.matrix(
        62,
        lower,
        one_hot.int(),
        rows=id_names,
        columns=[str(v) for v in range(V)],
        title="one-hot X",
        shape=f"(T, V) = {T, V}",
    )
    look = {"digits": 1, "shade": False}
    title, shape = "table W", f"(V, C) = {V, C}"
    W = d.matrix(336, y, table, row_names, title=title, shape=shape, **look)
    title, shape = "product XW", f"(T, C) = {T, C}"
    XW = d.matrix(
        568, lower, one_hot @ table, id_names, title=title, shape=shape, **look
    )
    d.text(X.right[0] + 26, middle, "×", 18)
    d.text(W.right[0] + 30, middle, "=", 18)
    for row in (X.row(0), W.row(ids[0]), XW.row(0)):
        d.mark(row)
    return d
