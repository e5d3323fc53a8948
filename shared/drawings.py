"""Drawings of how things are built: boxes, arrows, tokens and matrices.

    d = Drawing(400, 110, "Token ids go into the model, and logits come out.")
    ids = d.box(30, 30, "token ids", shape="(B, T)")
    model = d.box(230, 30, "GPT", shape="124 M parameters", color="blue")
    d.arrow(ids, model)
    d

The last line of a cell shows the drawing. Places are in pixels: `x` counts to the
right and `y` down, from the upper left corner. What draws something returns its `Box`,
so that an arrow can start or end there. Text that would not fit raises an error.
"""

import math
from dataclasses import dataclass

from shared.svg import (
    GREY,
    INK,
    LARGE,
    MEDIUM,
    PANEL,
    SMALL,
    WHITE,
    Box,
    Canvas,
    around,
    color_of,
    mix,
    readable,
    text_width,
)


@dataclass
class Matrix(Box):
    """A matrix that was drawn, with a box for every cell."""

    cells: list[list[Box]] = ()

    def row(self, i: int) -> Box:
        """All of one row."""
        return around(self.cells[i])

    def column(self, j: int) -> Box:
        """All of one column."""
        return around([row[j] for row in self.cells])


class Drawing(Canvas):
    """A drawing of a given size, in pixels, with a text for who cannot see it.

    Args:
        width, height: in pixels; a page has room for a width of 720.
        alt: says in a sentence or two what is drawn.
    """

    def box(
        self,
        x: float,
        y: float,
        text: str,
        shape: str = "",
        color: str | None = None,
        width: float | None = None,
        height: float | None = None,
    ) -> Box:
        """A box with a text of one or two lines, and a shape in small letters below.

        Without `width` and `height` it is as large as its text needs.
        """
        lines = [(line, LARGE) for line in text.split("\n")]
        lines += [(line, SMALL) for line in shape.split("\n") if shape]
        widest = max(text_width(line, size) for line, size in lines)
        tall = sum(1.3 * size for _, size in lines)
        box = Box(x, y, width or widest + 24, height or tall + 18)
        if widest + 6 > box.width or tall + 4 > box.height:
            raise ValueError(
                f"{text!r} needs {widest + 6:.0f} x {tall + 4:.0f} pixels, and its box "
                f"has {box.width:.0f} x {box.height:.0f}"
            )
        fill = mix(color_of(color), 0.22) if color else WHITE
        self._rectangle(box, fill, color_of(color))
        line_y = y + (box.height - tall) / 2
        for line, size in lines:
            ink = INK if size == LARGE else GREY
            middle = x + box.width / 2, line_y + 0.65 * size
            self._line(*middle, line, size, ink=readable(ink, fill), behind=fill)
            line_y += 1.3 * size
        return box

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = MEDIUM,
        bold: bool = False,
        anchor: str = "middle",
        color: str = INK,
    ) -> Box:
        """Lines of text; `anchor` says which part of them is at x: "start", "middle".

        The middle of the first line is at y.
        """
        lines = text.split("\n")
        return around(
            [
                self._line(x, y + 1.3 * size * i, line, size, anchor, bold, color)
                for i, line in enumerate(lines)
            ]
        )

    def arrow(
        self,
        start: Box | tuple[float, float],
        end: Box | tuple[float, float],
        label: str = "",
        shape: str = "",
        bend: str | None = None,
        via: list[tuple[float, float]] = (),
        color: str | None = None,
        tip: bool = True,
    ) -> None:
        """An arrow between two boxes or points, straight or with corners.

        Args:
            start, end: a point, or a box, of which the nearest side is taken.
            label: stands above a level arrow, and to the right of an upright one.
            shape: stands below it, or to the left of it, in smaller letters.
            bend: for one corner: "across" first, or "down" (or up) first.
            via: for more corners: the points on the way.
            tip: whether the line ends in an arrowhead.
        """
        (x1, y1), (x2, y2) = ends_between(_as_box(start), _as_box(end), bend)
        corners = {None: list(via), "across": [(x2, y1)], "down": [(x1, y2)]}[bend]
        points = [(x1, y1), *corners, (x2, y2)]
        self._path(points, color_of(color), 1.6, tip)
        (x1, y1), (x2, y2) = max(zip(points, points[1:], strict=False), key=_length)
        x, y, upright = (x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1) < abs(y2 - y1)
        if label and upright:
            self.text(x + 8, y - 8 * label.count("\n"), label, anchor="start")
        elif label:
            self.text(x, y - 11 - 17 * label.count("\n"), label)
        if shape and upright:
            self.text(x - 8, y, shape, SMALL, anchor="end", color=GREY)
        elif shape:
            self.text(x, y + 11, shape, SMALL, color=GREY)

    def chain(
        self,
        x: float,
        y: float,
        texts: list[str],
        shapes: list[str] = (),
        down: bool = False,
        gap: float = 40,
        color: str | None = None,
        width: float | None = None,
    ) -> list[Box]:
        """Boxes in a row, or below one another, each with an arrow to the next.

        `shapes` are those of what flows from box to box; they stand at the arrows.
        """
        lines = [text.split("\n") for text in texts]
        if down and width is None:
            width = 24 + max(text_width(line, LARGE) for each in lines for line in each)
        height = None if down else 18 + 1.3 * LARGE * max(map(len, lines))
        boxes = []
        for text in texts:
            box = self.box(x, y, text, color=color, width=width, height=height)
            x, y = (x, box.bottom[1] + gap) if down else (box.right[0] + gap, y)
            boxes.append(box)
        shapes = [*shapes, *[""] * len(texts)]
        for box, after, shape in zip(boxes, boxes[1:], shapes, strict=False):
            self.arrow(box, after, shape=shape)
        return boxes

    def rail(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        label: str = "",
        color: str = "sky",
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """The residual stream, a broad line, upright or level; see `branch`."""
        self._path([start, end], color_of(color), 6)
        if label:
            x, y = start[0], start[1] - 14
            if start[0] == end[0]:  # beside the rail's beginning
                x -= 10
                y = start[1] + (8 if end[1] > start[1] else -8 - 17 * label.count("\n"))
            self.text(x, y, label, anchor="end" if x < start[0] else "start")
        return start, end

    def branch(self, rail, boxes: list[Box], gap: float = 16) -> Box:
        """A way that leaves a rail, runs through boxes, and is added to it again."""
        upright = rail[0][0] == rail[1][0]
        axis = 1 if upright else 0  # along the rail: y if it stands, else x
        ahead = 1 if rail[1][axis] > rail[0][axis] else -1
        sides = ("top", "bottom") if upright else ("left", "right")
        enter = getattr(boxes[0], sides[ahead < 0])
        leave = getattr(boxes[-1], sides[ahead > 0])
        fork = _moved(rail[0], axis, enter[axis] - ahead * gap)
        join = _moved(rail[0], axis, leave[axis] + ahead * gap)
        bend, back = ("across", "down") if upright else ("down", "across")
        self.arrow(fork, enter, bend=bend)
        for box, after in zip(boxes, boxes[1:], strict=False):
            self.arrow(box, after)
        circle = Box(join[0] - 9, join[1] - 9, 18, 18)
        side = 1 - axis  # the way comes back from this side
        to = _moved(join, side, join[side] + math.copysign(9, leave[side] - join[side]))
        self.arrow(leave, to, bend=back)
        self._rectangle(circle, WHITE, GREY, corner=9)
        self._line(*join, "+", LARGE, behind=WHITE)
        return circle

    def frame(self, boxes: list[Box], label: str, pad: float = 22) -> Box:
        """A dashed frame around boxes, with a label above it, such as "x 12"."""
        inner = around(boxes)
        frame = Box(inner.x - pad, inner.y - pad)
        frame.width, frame.height = inner.width + 2 * pad, inner.height + 2 * pad
        self._rectangle(frame, "none", GREY, corner=8, dashed=True)
        right = frame.x + frame.width - 4
        self.text(right, frame.y - 10, label, bold=True, anchor="end")
        return frame

    def mark(self, box: Box, color: str = "vermillion") -> None:
        """A coloured outline around a box, a cell, a row of cells or a token."""
        outer = Box(box.x - 2, box.y - 2, box.width + 4, box.height + 4)
        self._rectangle(outer, "none", color_of(color), thick=3)

    def tokens(
        self,
        x: float,
        y: float,
        tokens: list[str],
        ids: list = (),
        color: str | list[str] = "sky",
        width: float | None = None,
    ) -> list[Box]:
        """A row of tokens, with their ids below; `color` may be one for each token."""
        colors = [color] * len(tokens) if isinstance(color, str) else color
        below = [str(i) for i in ids] or [""] * len(tokens)
        boxes = []
        for token, word, name in zip(tokens, below, colors, strict=True):
            wide = max(text_width(token, MEDIUM) + 14, text_width(word, SMALL) + 6)
            box, fill = Box(x, y, max(wide, width or 0), 26), mix(color_of(name), 0.22)
            self._rectangle(box, fill, color_of(name), corner=6)
            self._line(box.top[0], y + 13, token, MEDIUM, behind=fill)
            if word:
                self.text(box.top[0], y + 36, word, SMALL, color=GREY)
            boxes.append(Box(x, y, box.width, 44 if word else 26))
            x += box.width + 4
        return boxes

    def brace(self, boxes: list[Box], label: str, above: bool = False) -> None:
        """A bracket over a row of boxes, below or above it, with a label."""
        whole, ahead = around(boxes), -1 if above else 1
        y = whole.top[1] if above else whole.bottom[1]
        near, far = y + 4 * ahead, y + 10 * ahead
        left, right = whole.x + 1, whole.x + whole.width - 1
        self._path([(left, near), (left, far), (right, far), (right, near)], tip=False)
        lines = label.count("\n")
        self.text(whole.top[0], far + (-10 - 17 * lines if above else 12), label)

    def matrix(
        self,
        x: float,
        y: float,
        values,
        rows: list[str] = (),
        columns: list[str] = (),
        title: str = "",
        shape: str = "",
        color: str = "blue",
        cell: float = 26,
        digits: int = 2,
        shade: bool = True,
        show: bool = True,
    ) -> Matrix:
        """A matrix of cells, its upper left cell at (x, y).

        Args:
            values: numbers or texts, a list a row, or a tensor; None is an empty cell.
            rows, columns: labels to the left of the rows and above the columns.
            title, shape: stand above the matrix and below it.
            color: of the largest values; negative ones have the colour vermillion.
            cell: the cells' height, and their width if nothing in them needs more.
            digits: decimals of numbers that are not whole.
            shade: whether the colour of a cell says how large its value is.
            show: whether the values are written into their cells.
        """
        grid = values.tolist() if hasattr(values, "tolist") else values
        grid = [[_steady(value) for value in row] for row in grid]
        words = [[_written(value, digits) for value in row] for row in grid]
        written = [word for row in words if show for word in row] + list(columns)
        wide = max([cell, *(text_width(word, SMALL) + 10 for word in written)])
        sizes = [abs(v) for row in grid for v in row if _is_number(v)]
        largest, cells = max(sizes, default=0) or 1, []
        for i, row in enumerate(grid):
            cells.append([])
            for j, value in enumerate(row):
                box = Box(x + j * wide, y + i * cell, wide, cell)
                fill = mix(color_of(color), 0.15) if value is not None else PANEL
                if shade and _is_number(value):
                    hue = color_of(color if value >= 0 else "vermillion")
                    fill = mix(hue, 0.7 * round(abs(value) / largest, 2))
                self._rectangle(box, fill, mix(GREY, 0.5), corner=0, thick=1)
                if show and words[i][j]:
                    middle = box.left[0] + wide / 2, box.left[1]
                    ink = readable(INK, fill)
                    self._line(*middle, words[i][j], SMALL, ink=ink, behind=fill)
                cells[i].append(box)
        for label, row in zip(rows, cells, strict=True) if rows else ():
            self.text(x - 8, row[0].left[1], label, anchor="end")
        for label, box in zip(columns, cells[0], strict=True) if columns else ():
            self.text(box.top[0], y - 10, label, SMALL)
        whole = around([box for row in cells for box in row])
        if title:
            above = y - (30 if columns else 12)
            self.text(whole.top[0], above, title, bold=True)
        if shape:
            self.text(whole.bottom[0], whole.bottom[1] + 12, shape, SMALL, color=GREY)
        return Matrix(x, y, whole.width, whole.height, cells)

    def steps(self, titles: list[str]) -> list[Box]:
        """Titled columns, side by side; their places, to draw in."""
        wide = self.width / len(titles)
        for i, title in enumerate(titles):
            self.text((i + 0.5) * wide, 18, title, bold=True)
            if i > 0:
                ends = [(i * wide, 12), (i * wide, self.height - 12)]
                self._path(ends, mix(GREY, 0.4), 1, tip=False)
        return [Box(i * wide, 34, wide, self.height - 44) for i in range(len(titles))]


def ends_between(a: Box, b: Box, bend: str | None) -> list[tuple[float, float]]:
    """The points on the sides of two boxes that an arrow from a to b connects."""
    right, below = b.left[0] > a.left[0], b.top[1] > a.top[1]
    apart = b.x >= a.x + a.width or a.x >= b.x + b.width
    across = (a.right, b.left) if right else (a.left, b.right)
    down = (a.bottom, b.top) if below else (a.top, b.bottom)
    if bend is None:
        return list(across if apart else down)
    return [across[0], down[1]] if bend == "across" else [down[0], across[1]]


def _as_box(place: Box | tuple[float, float]) -> Box:
    return place if isinstance(place, Box) else Box(*place)


def _moved(point: tuple[float, float], axis: int, place: float) -> tuple[float, float]:
    return (place, point[1]) if axis == 0 else (point[0], place)


def _length(ends: tuple) -> float:
    return math.dist(*ends)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _steady(value):
    """A number without its last digits, in which processors differ."""
    return round(value, 6) if isinstance(value, float) else value


def _written(value, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
