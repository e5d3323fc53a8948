"""What drawings are made of: a canvas of SVG, the widths of letters, and colours."""

import base64
import html
import math
from dataclasses import dataclass

from shared import plots

NAMES = "blue orange green vermillion purple sky yellow black".split()
COLORS = dict(zip(NAMES, plots.COLORS, strict=True))
PANEL = "#F6F7F9"  # lies behind every drawing, on light pages and on dark ones
INK, GREY, WHITE = "#1A1A1A", "#555555", "#FFFFFF"
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
LARGE, MEDIUM, SMALL = 14, 13, 12  # sizes of letters: in boxes, labels, shapes
WIDEST = 720  # pixels that a page has room for
# Helvetica's characters by their width, in thousandths of the font's size.
WIDTHS = {
    222: "'ijl|",
    278: " !,./:;I[]\\ft·",
    333: '()-`r{}"*',
    500: "Jckvsxyz^",
    556: "0123456789#$?L_abdeghnopqu",
    584: "+<=>~×",
    667: "&ABEFKPSTVXYZ",
    722: "CDHNRUw",
    778: "GOQĠ",
    889: "Mm%",
}
WIDTH_OF = {character: width for width, them in WIDTHS.items() for character in them}


@dataclass
class Box:
    """A rectangle, and the points where arrows touch it."""

    x: float
    y: float
    width: float = 0
    height: float = 0

    @property
    def left(self) -> tuple[float, float]:
        """The middle of the left side."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        """The middle of the right side."""
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        """The middle of the upper side."""
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        """The middle of the lower side."""
        return self.x + self.width / 2, self.y + self.height


@dataclass
class Text:
    """A line of text that was drawn: where, in which colour, and before which."""

    words: str
    box: Box
    ink: str
    behind: str


class Canvas:
    """Rectangles, lines and texts on a panel, shown by a notebook as an image."""

    def __init__(self, width: int, height: int, alt: str):
        if not alt.strip():
            raise ValueError("the drawing's text is empty; say what one sees in it")
        if not 0 < width <= WIDEST or height <= 0:
            raise ValueError(
                f"a drawing of {width} x {height} pixels; it may be {WIDEST} wide"
            )
        self.width, self.height, self.alt = width, height, " ".join(alt.split())
        self.texts: list[Text] = []
        self._parts: list[str] = []
        self._rectangle(Box(0, 0, width, height), PANEL, None, corner=8)

    @property
    def svg(self) -> str:
        """The drawing as the text of an SVG file."""
        head = f'width="{self.width}" height="{self.height}"'
        head += f' viewBox="0 0 {self.width} {self.height}" font-family="{FONT}"'
        parts = [f"<title>{html.escape(self.alt)}</title>", *self._parts]
        address = "http://www.w3.org/2000/svg"
        return f'<svg xmlns="{address}" role="img" {head}>{"".join(parts)}</svg>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """What a notebook shows: an image with the drawing inside.

        Plain SVG would be hidden by JupyterLab as long as the notebook has not been run
        here, and GitHub shows it without its texts. Both show an image.
        """
        data = base64.b64encode(self.svg.encode()).decode()
        source = f"data:image/svg+xml;base64,{data}"
        alt, style = html.escape(self.alt), "max-width: 100%; height: auto"
        image = f'<img src="{source}" alt="{alt}" width="{self.width}" style="{style}">'
        return {"text/plain": self.alt, "text/html": image}

    def _line(
        self,
        x: float,
        y: float,
        words: str,
        size: int,
        anchor: str = "middle",
        bold: bool = False,
        ink: str = INK,
        behind: str = PANEL,
    ) -> Box:
        """Write one line, the middle of its height at y."""
        wide = text_width(words, size, bold)
        left = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        box = Box(left, y - size / 2, wide, size)
        right, low = left + wide, y + size / 2
        if left < 0 or right > self.width or box.y < 0 or low > self.height:
            raise ValueError(
                f"{words!r} reaches from ({left:.0f}, {box.y:.0f}) to ({right:.0f}, "
                f"{low:.0f}), out of a drawing of {self.width} x {self.height}"
            )
        self.texts.append(Text(words, box, ink, behind))
        # With textLength, any other font is squeezed into the width that was reckoned.
        place = f'x="{_number(left)}" y="{_number(y + 0.35 * size)}"'
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text {place} font-size="{size}"{weight} fill="{ink}" '
            f'xml:space="preserve" textLength="{_number(wide)}" '
            f'lengthAdjust="spacingAndGlyphs">{html.escape(words)}</text>'
        )
        return box

    def _rectangle(
        self,
        box: Box,
        fill: str,
        stroke: str | None,
        corner: float = 5,
        thick: float = 1.5,
        dashed: bool = False,
    ) -> None:
        """Draw a rectangle; without `stroke` it has no outline."""
        place = f'x="{_number(box.x)}" y="{_number(box.y)}" rx="{_number(corner)}"'
        size = f'width="{_number(box.width)}" height="{_number(box.height)}"'
        line = f' stroke="{stroke}" stroke-width="{_number(thick)}"' if stroke else ""
        line += ' stroke-dasharray="6 4"' if dashed else ""
        self._parts.append(f'<rect {place} {size} fill="{fill}"{line}/>')

    def _path(
        self,
        points: list[tuple[float, float]],
        color: str = GREY,
        thick: float = 1.6,
        tip: bool = True,
    ) -> None:
        """Draw a line through points, and at its end the tip of an arrow."""
        (x1, y1), (x2, y2) = points[-2:]
        if tip:  # a triangle; the line ends inside it
            length = math.dist(*points[-2:]) or 1
            dx, dy, size = (x2 - x1) / length, (y2 - y1) / length, 6 + thick
            x0, y0, half = x2 - size * dx, y2 - size * dy, 0.3 * size + 0.6 * thick
            corners = [(x2, y2), (x0 - half * dy, y0 + half * dx)]
            corners += [(x0 + half * dy, y0 - half * dx)]
            head = " ".join(f"{_number(x)},{_number(y)}" for x, y in corners)
            self._parts.append(f'<polygon points="{head}" fill="{color}"/>')
            points = [*points[:-1], (x0 + dx, y0 + dy)]
        line = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._parts.append(
            f'<polyline points="{line}" fill="none" stroke="{color}" '
            f'stroke-width="{_number(thick)}" stroke-linejoin="round"/>'
        )


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a line of text in pixels, as Helvetica would set it."""
    width = sum(WIDTH_OF.get(character, 1000) for character in text) * size / 1000
    return width * (1.07 if bold else 1)


def color_of(name: str | None, otherwise: str = GREY) -> str:
    """The colour that a name stands for, or another one if there is no name."""
    if name is not None and name not in COLORS:
        raise ValueError(f"there is no colour {name!r}; choose of {', '.join(COLORS)}")
    return COLORS[name] if name is not None else otherwise


def mix(color: str, share: float) -> str:
    """A colour with so much of the given one, the rest white."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (c - 255)):02X}" for c in parts)


def contrast(one: str, other: str) -> float:
    """How well a colour can be read on another one: from 1 to 21 (WCAG 2, 1.4.3)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def readable(ink: str, behind: str) -> str:
    """This colour of letters, or another one where it cannot be read well."""
    inks = (ink, INK, WHITE, "#000000")
    return next(color for color in inks if contrast(color, behind) >= 4.5)


def around(boxes: list[Box]) -> Box:
    """The smallest box around some boxes."""
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    right = max(box.x + box.width for box in boxes)
    return Box(left, top, right - left, max(b.y + b.height for b in boxes) - top)


def _number(value: float) -> str:
    """At most one decimal, so that the text is the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")
