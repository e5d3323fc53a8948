"""The drawings of chapter 8."""

import math

from shared.drawings import Drawing


def before_and_after() -> Drawing:
    """A model of 2019 and one of today: the same plan with other parts."""
    d = Drawing(
        720,
        480,
        "GPT-2 and a model of today side by side, from top to bottom. In both, two "
        "branches are added to the residual stream. Today's has no positions at the "
        "entrance, RMSNorm in place of layer norm, rotated attention with shared keys "
        "and values, and SwiGLU in place of GELU.",
    )
    models = {
        "GPT-2 (2019)": (
            "token + position vectors",
            (
                "layer norm",
                "attention, every\nhead has its keys",
                "layer norm",
                "feed-forward\nwith GELU",
            ),
            "layer norm, output head",
            ("", "", "", "", ""),
        ),
        "Llama, SmolLM2 and others": (
            "token vectors",
            (
                "RMSNorm",
                "rotated attention\nwith shared keys",
                "RMSNorm",
                "feed-forward\nwith SwiGLU",
            ),
            "RMSNorm, output head",
            ("8.3", "8.2", "8.3 and 8.4", "8.5", "8.6"),
        ),
    }
    for place, (entrance, parts, end, notes) in zip(
        d.steps(list(models)), models.values(), strict=True
    ):
        x, right = place.x + 30, place.x + 268
        first = d.box(x, 46, entrance, color="sky", width=220, height=34)
        rail = d.rail((x + 22, 80), (x + 22, 424))
        boxes = [
            d.box(x + 70, y, part, color=color, width=150, height=high)
            for part, color, y, high in (
                (parts[0], "green", 112, 32),
                (parts[1], "blue", 162, 52),
                (parts[2], "green", 276, 32),
                (parts[3], "orange", 326, 52),
            )
        ]
        d.branch(rail, boxes[:2])
        d.branch(rail, boxes[2:])
        last = d.box(x, 424, end, color="yellow", width=220, height=34)
        heights = [first, boxes[0], boxes[1], boxes[3], last]
        for note, box in zip(notes, heights, strict=True):
            if note:
                d.text(right, box.left[1], note, anchor="start")
    return d


def two_norms(x: list[float]) -> Drawing:
    """LayerNorm in two steps, RMSNorm in one, on the same vector."""
    d = Drawing(
        720,
        210,
        "The same vector of six numbers under two norms. LayerNorm subtracts the mean "
        "and divides by the standard deviation. RMSNorm only divides, by the root of "
        "the mean square, and keeps every sign.",
    )
    C = len(x)
    mean = sum(x) / C
    centred = [value - mean for value in x]
    std = math.sqrt(sum(value**2 for value in centred) / C)
    rms = math.sqrt(sum(value**2 for value in x) / C)

    def row(left, top, values, title):
        whole = [int(v) if v == int(v) else v for v in values]
        return d.matrix(left, top, [whole], title=title, cell=30, digits=1)

    start = row(20, 90, x, "the vector of train")
    minus = row(275, 46, centred, "")
    divided = row(518, 46, [value / std for value in centred], "LayerNorm")
    rooted = row(518, 146, [value / rms for value in x], "RMSNorm")
    corner = (238, start.right[1])
    d.arrow(start.right, minus.left, via=[corner, (238, minus.left[1])])
    d.text(255, 50, f"- {mean:g}")
    d.arrow(minus, divided, f"/ {std:g}")
    d.arrow(start.right, rooted.left, via=[corner, (238, rooted.left[1])])
    d.text(375, rooted.left[1] - 12, f"/ {rms:g}")
    return d


def turned(degrees: int = 15) -> Drawing:
    """A query and a key, turned by their positions, in two places of a text."""
    d = Drawing(
        720,
        240,
        "Three dials with two arrows, the query of late and the key of train. As they "
        "are, both point to the right. Turned by 15 degrees for each position they are "
        "30 degrees apart, whether the sentence begins at position 0 or at 50.",
    )
    titles = ["not turned", "the sentence begins at 0", "the sentence begins at 50"]
    for place, start in zip(d.steps(titles), (None, 0, 50), strict=True):
        middle, radius = (place.x + 105, 126), 78
        rim = [_around(middle, radius, 5 * i) for i in range(73)]
        d.arrow(rim[0], rim[-1], via=rim[1:-1], tip=False)
        late, train = (0, 0) if start is None else (start + 3, start + 1)
        d.arrow(middle, _around(middle, radius, degrees * late), color="blue")
        d.arrow(middle, _around(middle, radius / 2, degrees * train), color="orange")
        if start is None:
            d.text(middle[0] + radius + 6, middle[1], "late", anchor="start")
            d.text(middle[0] + 20, middle[1] + 14, "train")
            d.text(place.x + 120, 224, "0 degrees apart", 12)
            continue
        x, y = _around(middle, radius + 10, degrees * late)
        d.text(x, y - 2, "late", anchor="start")
        x, y = _around(middle, radius / 2 + 8, degrees * train)
        d.text(x, y - 4 + (4 if start == 0 else 0), "train", anchor="start")
        between = [degrees * (train + (late - train) * i / 8) for i in range(9)]
        arc = [_around(middle, 28, angle) for angle in between]
        d.arrow(arc[0], arc[-1], via=arc[1:-1], tip=False)
        turns = f"{degrees} x {late} - {degrees} x {train} = {degrees * (late - train)}"
        d.text(place.x + 120, 224, f"{turns} degrees apart", 12)
    return d


def _around(middle, radius, degrees):
    """The point of a circle at an angle, counted from the right against the clock."""
    angle = math.radians(degrees)
    x, y = middle[0] + radius * math.cos(angle), middle[1] - radius * math.sin(angle)
    return round(x, 1), round(y, 1)


def shared_heads(H: int = 6) -> Drawing:
    """Which query heads use which keys: each its own, groups, all the same."""
    d = Drawing(
        720,
        200,
        "Six query heads in three arrangements. Each has its own head of keys and "
        "values; or three query heads share one, in two groups; or all six share one.",
    )
    names = ["chapter 3: G = H = 6", "grouped: G = 2", "one for all: G = 1"]
    for place, G in zip(d.steps(names), (6, 2, 1), strict=True):
        wide, left = 36, place.x + 14
        for h in range(H):
            query = d.box(left + wide * h, 52, "q", color="blue", width=30, height=28)
            if h % (H // G) == 0:
                x = query.top[0] + wide * (H // G - 1) / 2 - 15
                kept = d.box(x, 130, "kv", color="orange", width=30, height=28)
            d.arrow(query.bottom, kept.top, tip=False)
        d.text(place.x + 120, 182, f"the cache keeps {G} head{'s' * (G > 1)}")
    return d


def two_paths() -> Drawing:
    """Chapter 4's feed-forward network beside SwiGLU."""
    d = Drawing(
        720,
        185,
        "Two feed-forward networks. Chapter 4's has one path: widen, GELU, narrow. "
        "SwiGLU has two paths of the same width, gate and up. The gate's passes SiLU, "
        "the two are multiplied, and down narrows the product.",
    )
    left, right = d.steps(["chapter 4: one path", "SwiGLU: two paths"])
    y, middle = 88, 106
    boxes = d.chain(left.x + 48, y, ["widen", "GELU", "narrow"], gap=38, color="blue")
    d.arrow((left.x + 10, middle), boxes[0], shape="C")
    for box, after in zip(boxes, boxes[1:], strict=False):
        d.text((box.right[0] + after.x) / 2 - 2, middle + 12, "4C", 12)
    d.arrow(boxes[-1], (left.x + 350, middle), shape="C")
    gate = d.box(right.x + 50, 50, "gate", color="orange", width=60)
    silu = d.box(right.x + 136, 50, "SiLU", color="orange", width=60)
    up = d.box(right.x + 50, 126, "up", color="blue", width=60)
    times = d.box(right.x + 212, y, "x", width=30)
    down = d.box(right.x + 266, y, "down", color="blue", width=60)
    fork = right.x + 28, middle
    d.arrow((right.x + 6, middle), gate.left, via=[fork, (fork[0], gate.left[1])])
    d.arrow(fork, up.left, via=[(fork[0], up.left[1])])
    d.text(right.x + 16, middle + 12, "C", 12)
    d.arrow(gate, silu)
    d.arrow(silu.right, times.top, bend="across")
    d.arrow(up.right, times.bottom, bend="across")
    d.text(right.x + 168, up.right[1] + 12, "hidden", 12)
    d.arrow(times, down)
    d.arrow(down, (right.x + 352, middle), shape="C")
    return d
