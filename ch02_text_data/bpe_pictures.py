"""Drawings of chapter 2b: merges one by one, a text in tokens and in ids, a list."""

from collections.abc import Sequence

from shared.drawings import Drawing

HIGH, STEP = 26, 38  # pixels: a token's height, and from one row to the next


def merging(rows: Sequence[str], notes: Sequence[str] = (), unit: int = 34) -> Drawing:
    """A text after each merge, in rows; the token that is new in a row is orange.

    Args:
        rows: tokens with spaces between them, such as "h u g" and "h ug".
        notes: what stands behind each row.
        unit: the width of one token of the first row, in pixels.
    """
    spans = [_spans(row.split(), rows[0].split()) for row in rows]
    length = 16 + unit * len(rows[0].split())
    width = min(720, length + (190 if notes else 16))
    alt = "A text after each merge: " + "; then ".join(rows) + "."
    drawing = Drawing(width, 16 + STEP * len(rows), alt)
    for n, (row, here) in enumerate(zip(rows, spans, strict=True)):
        for text, (start, end) in zip(row.split(), here, strict=True):
            new = n > 0 and (start, end) not in spans[n - 1]
            _token(drawing, start, end, n, text, "orange" if new else "sky", unit)
        if notes:
            y = 14 + STEP * n + HIGH / 2
            drawing.text(length + 12, y, notes[n], anchor="start")
    return drawing


def cuts(rows: dict[str, Sequence[str]], unit: int = 22, left: int = 100) -> Drawing:
    """The same text in the tokens of several tokenizers, one row for each.

    Args:
        rows: for each name the text's tokens.
        unit: the width of one character, in pixels.
        left: the room for the names, in pixels.
    """
    length = len("".join(next(iter(rows.values()))))
    unit = min(unit, (706 - left) // length)  # as wide as the page allows
    alt = "One text in tokens. " + " ".join(
        f"{name}, {len(tokens)} tokens: {' | '.join(tokens)}."
        for name, tokens in rows.items()
    )
    drawing = Drawing(left + unit * length + 12, 16 + STEP * len(rows), alt)
    for n, (name, tokens) in enumerate(rows.items()):
        label = f"{name}: {len(tokens)}"
        drawing.text(left - 8, 14 + STEP * n + HIGH / 2, label, anchor="end")
        for i, (start, end) in enumerate(_spans(tokens, "".join(tokens))):
            color = ("sky", "orange")[i % 2]
            _token(drawing, start, end, n, tokens[i], color, unit, left)
    return drawing


def read(
    text: str, tokens: Sequence[str], ids: Sequence[int], mark: str = "", unit: int = 34
) -> Drawing:
    """What you read, letter by letter, and below it the ids that a model reads.

    Args:
        text: what the tokens join to.
        mark: a letter to be shown in orange.
    """
    alt = f"You see {' '.join(text)}; the model sees {', '.join(map(str, ids))}."
    left = 130
    drawing = Drawing(left + unit * len(text) + 12, 16 + 2 * STEP, alt)
    for row, name in enumerate(("you see", "the model sees")):
        y = 14 + STEP * row + HIGH / 2
        drawing.text(left - 8, y, name, anchor="end")
    for i, letter in enumerate(text):
        color = "orange" if letter == mark else "sky"
        sign = letter.replace(" ", "·")
        _token(drawing, i, i + 1, 0, sign, color, unit, left)
    for i, (start, end) in zip(ids, _spans(tokens, text), strict=True):
        _token(drawing, start, end, 1, str(i), None, unit, left)
    return drawing


def linked_list() -> Drawing:
    """Four pieces and their neighbours, before and after the middle two are merged."""
    drawing = Drawing(
        420,
        190,
        "A linked list of four pieces h, i, j, k, each joined to the next by an arrow "
        "to the right and one to the left. After i and j are merged, i holds the new "
        "id, j is empty, and the arrows go from i to k and back, past j.",
    )
    for y, texts in ((46, ("a", "b", "c", "d")), (136, ("a", "new id", "", "d"))):
        boxes = []
        for i, (name, text) in enumerate(zip("hijk", texts, strict=True)):
            color = {"new id": "orange", "": None}.get(text, "sky")
            x = 20 + 104 * i
            boxes.append(drawing.box(x, y, text, color=color, width=66, height=30))
            if y < 100:
                drawing.text(x + 33, 18, name)
        linked = [box for box, text in zip(boxes, texts, strict=True) if text]
        for a, b in zip(linked, linked[1:], strict=False):
            past = b.x - a.x > 110  # around the empty piece
            for to_right, rise in ((True, 8), (False, 22)):
                start, end = (a.x + 66, a.y + rise), (b.x, b.y + rise)
                ends = (start, end) if to_right else (end, start)
                if past:
                    over = a.y - 12 if to_right else a.y + 42
                    edge = a.y if to_right else a.y + 30
                    start, end = (a.x + 50, edge), (b.x + 16, edge)
                    corners = [(start[0], over), (end[0], over)]
                    if not to_right:
                        start, end, corners = end, start, corners[::-1]
                    drawing.arrow(start, end, via=corners)
                else:
                    drawing.arrow(*ends)
    return drawing


def _spans(row: Sequence[str], units: Sequence[str]) -> list[tuple[int, int]]:
    """From where to where each token reaches, counted in the pieces `units`."""
    found, start = [], 0
    for token in row:
        end = start
        while (text := "".join(units[start:end])) != token:
            if not token.startswith(text) or end == len(units):
                raise ValueError(f"{token!r} is not made of {units[start:]}")
            end += 1
        found.append((start, end))
        start = end
    return found


def _token(drawing, start, end, row, text, color, unit, left=12) -> None:
    """One token of a row, as wide as what it is made of."""
    x, y = left + unit * start, 14 + STEP * row
    drawing.box(x, y, text, color=color, width=unit * (end - start) - 2, height=HIGH)
