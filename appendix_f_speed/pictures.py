"""The drawings of appendix F."""

from shared.drawings import Drawing
from shared.svg import around


def two_limits() -> Drawing:
    """A matrix on its way from memory to the processor, for one token and for many."""
    d = Drawing(
        720,
        245,
        "A matrix is fetched from memory into the processor, M bytes a second. For one "
        "token, each of its weights is used once. For many tokens, each weight is "
        "fetched once and used for all of them, at R operations a second.",
    )
    places = d.steps(["one token at a time", "many tokens at once"])
    notes = (
        "each weight is fetched for a single use:\nbytes are the limit",
        "each weight is fetched once and used for all:\noperations are the limit",
    )
    for place, T, note in zip(places, (1, 6), notes, strict=True):
        x, y = place.x, place.y + 24
        weights = d.matrix(
            x + 25, y + 30, [[1] * 5] * 5, cell=18, title="memory", show=False
        )
        chip = d.box(x + 200, y + 44, "processor", color="orange", width=130, height=62)
        d.arrow(weights, chip, "M bytes/s")
        tokens = d.matrix(
            x + 244, y + 28 - 7 * T, [[1] * 6] * T, cell=7, color="sky", show=False
        )
        d.text(tokens.left[0] - 6, tokens.left[1], f"T = {T}", 12, anchor="end")
        d.text(chip.top[0], chip.bottom[1] - 12, "R operations/s", 12)
        d.arrow(tokens.bottom, chip.top)
        d.text(x + 180, y + 150, note)
    return d


def products_of_a_step(L: int, C: int, V: int) -> Drawing:
    """The operations of a step, as a bar: all blocks, and the output head."""
    whole, blocks = 12 * L * C**2 + V * C, V / (12 * C)
    d = Drawing(
        720,
        105,
        f"A bar of the operations of a training step: {L} blocks of equal width, and "
        f"beside them the output head, as wide as {blocks:.1f} of them.",
    )
    x, parts = 20, []
    for name, size in (*((str(n + 1), 12 * C**2) for n in range(L)), ("", V * C)):
        color = "orange" if name == "" else "blue"
        wide = 680 * size / whole
        parts.append(d.box(x, 25, name, color=color, width=wide, height=34))
        x += wide
    d.text(parts[-1].top[0], parts[-1].left[1], "output head", 14)
    share = V * C / whole
    d.brace(parts[:-1], f"{L} blocks: {1 - share:.0%}")
    d.brace(parts[-1:], f"logits of all {V:,} tokens: {share:.0%}")
    return d


def head_in_chunks() -> Drawing:
    """A few rows of logits at a time, and what is left of them."""
    d = Drawing(
        720,
        285,
        "The head in chunks. Of eight vectors the third and fourth make their two rows "
        "of logits; no other rows exist at the moment. What is left of these logits is "
        "their part of the loss, of the vectors' gradients and of the gradient of W.",
    )
    now = [t in (2, 3) for t in range(8)]
    vectors = d.matrix(
        30, 45, [[1] * 3] * 8, title="vectors", shape="(N, C)", color="sky", show=False
    )
    logits = d.matrix(
        210,
        45,
        [[1] * 10 if here else [None] * 10 for here in now],
        title="logits",
        shape="(N, V)",
        color="orange",
        show=False,
    )
    for table in (vectors, logits):
        d.mark(around([table.row(2), table.row(3)]))
    level = vectors.y + 3 * 26
    d.arrow((vectors.right[0], level), (logits.x, level), "times W")
    leave = (logits.right[0], level)
    for y, words in (
        (45, "their part of the loss,\nadded up"),
        (107, "their vectors' gradients,\nput into these rows"),
        (169, "their part of W's gradient,\nadded up"),
    ):
        box = d.box(525, y, words, color="green", width=180, height=48)
        d.arrow(leave, box.left)
    d.text(615, 238, "then the next chunk", 12)
    return d


def finetuning() -> Drawing:
    """What a message costs in each epoch: as chapter 6 trains, and what is needed."""
    d = Drawing(
        720,
        270,
        "Two tables with a column for each token of a message and a row for each part "
        "of the model. As chapter 6 trains, all blocks run in every epoch. What is "
        "needed: the frozen blocks once; in every epoch keys and values of all "
        "tokens, and the rest for the last token only.",
    )
    parts = ["head", "last block: the rest", "last block: keys, values"]
    parts += [f"frozen block {n}" for n in (3, 2, 1)]
    last = [[None] * 4 + [1]]
    rows = [[1] * 5]
    d.matrix(
        185,
        50,
        last + rows * 5,
        parts,
        title="as chapter 6 trains",
        cell=28,
        color="orange",
        show=False,
    )
    d.matrix(
        470,
        50,
        last * 2 + rows,
        title="what is needed",
        cell=28,
        color="orange",
        show=False,
    )
    d.matrix(470, 50 + 3 * 28, rows * 3, cell=28, color="sky", show=False)
    d.text(540, 50 + 6 * 28 + 14, "tokens of a message", 12)
    d.text(255, 50 + 6 * 28 + 14, "tokens of a message", 12)
    for x, color, words in (
        (185, "orange", "in every epoch"),
        (340, "sky", "once"),
        (425, None, "never"),
    ):
        values = [[1 if color else None]]
        d.matrix(x, 244, values, cell=16, color=color or "blue", show=False)
        d.text(x + 24, 252, words, anchor="start")
    return d


def ways_past_the_limit() -> Drawing:
    """What to do where fetching the weights is the limit."""
    d = Drawing(
        720,
        205,
        "Four ways to use a fetched matrix: for one token; the same with a matrix of "
        "fewer bytes; for one token of each of several texts; for a token and guesses "
        "of those that follow it.",
    )
    ways = {
        "one token": (20, ["the"], 1, ""),
        "several texts": (20, ["the", "rain", "he"], 3, "Fb.4 to Fb.6"),
        "fewer bytes": (10, ["the"], 1, "Fb.7"),
        "guesses": (20, ["the", "old", "man"], 1, "Fb.8"),
    }
    for place, way in zip(d.steps(list(ways)), ways.values(), strict=True):
        cell, words, n_texts, note = way
        x, y = place.x + 90, 88
        weights = d.matrix(x - 2 * cell, y - 2 * cell, [[1] * 4] * 4, cell=cell, show=0)
        start = x - 23 * len(words)
        for i, word in enumerate(words):
            color = "sky" if i < n_texts else "orange"
            (token,) = d.tokens(start + 46 * i + 2, 148, [word], color=color, width=42)
            d.arrow(weights.bottom, token.top)
        if note:
            d.text(x, 190, note, 12)
    return d


PROMPTS = (3, 5, 2)  # tokens in each prompt of the next drawing


def slots() -> Drawing:
    """Three texts in their rows of slots: the prompts, and two steps of writing."""
    d = Drawing(
        720,
        165,
        "Slots for keys and values in three steps, a row for each of three texts. The "
        "prompts of 3, 5 and 2 tokens are read in one pass, padded on the right. Each "
        "later pass puts one token of each text behind its last one, over the padding.",
    )
    colors = {"new": "orange", "old": "sky", "pad": "black"}
    for step, place in enumerate(d.steps(["the prompts", "one token", "one more"])):
        left, top = place.x + 42, place.y + 45
        for j in range(7):
            d.text(left + 27 * j + 13, top - 11, str(j), 12)
        for i, length in enumerate(PROMPTS):
            row = ["old"] * length if step else ["new"] * length
            row += ["new" if n == step else "old" for n in range(1, step + 1)]
            row += ["pad"] * (max(PROMPTS) - len(row))
            d.text(left - 8, top + 27 * i + 13, "abc"[i], anchor="end")
            d.matrix(left, top + 27 * i, [[None] * 7], cell=27)
            for j, kind in enumerate(row):
                x, y, color = left + 27 * j, top + 27 * i, colors[kind]
                value = [["pad" if kind == "pad" else 1]]
                d.matrix(x, y, value, cell=27, color=color, show=False)
                if kind == "pad":
                    d.text(x + 13.5, y + 13.5, "pad", 11)
    return d


def rows_and_tiles() -> Drawing:
    """The same matrix in two orders; the numbers count places in memory."""
    d = Drawing(
        720,
        330,
        "A matrix of eight outputs by six inputs, twice, with the order of its numbers "
        "in memory. In rows, the first four numbers belong to one output. In tiles, "
        "they belong to four outputs and to the same input.",
    )
    by_rows = [[6 * i + j for j in range(6)] for i in range(8)]
    tiles = [[24 * (i // 4) + 4 * j + i % 4 for j in range(6)] for i in range(8)]
    outputs = [f"output {i}" for i in range(8)]
    for x, title, order, note in (
        (90, "in rows", by_rows, "four weights of one output:\nthey serve it alone"),
        (
            450,
            "in tiles",
            tiles,
            "a weight of each of four outputs:\none input serves all",
        ),
    ):
        names = outputs if x < 200 else ()
        table = d.matrix(
            x, 62, order, names, [f"in {j}" for j in range(6)], title, shade=False
        )
        first = [table.cells[0][j] for j in range(4)]
        if x > 200:
            first = [table.cells[i][0] for i in range(4)]
        d.mark(around(first))
        d.text(table.bottom[0], table.bottom[1] + 24, note)
    return d


def guesses() -> Drawing:
    """One pass that checks three guesses."""
    d = Drawing(
        720,
        215,
        "One pass reads the last token and three guesses, and the model names its own "
        "next token after each. The first two guesses are what the model would have "
        "written, the third is not; so the pass gives three tokens.",
    )
    read = [",", "green", ",", "red"]
    says = ["green", ",", "blue", "and"]
    verdicts = ["guess 1 is right", "guess 2 is right", "guess 3 is wrong", "not used"]
    d.text(165, 47, "read in one pass", anchor="end")
    d.text(165, 117, "the model's next token", anchor="end")
    for i, (token, next_one, verdict) in enumerate(
        zip(read, says, verdicts, strict=True)
    ):
        x = 190 + 128 * i
        above = d.tokens(x, 34, [token], color="sky" if i == 0 else "orange", width=70)
        below = d.tokens(
            x, 104, [next_one], color="green" if i < 3 else "black", width=70
        )
        d.arrow(above[0], below[0])
        d.text(x + 35, 150, verdict, 12)
    d.text(225, 16, "last token", 12)
    d.text(482, 16, "three guesses", 12)
    d.text(420, 190, "the text goes on with the three green tokens", bold=True)
    return d
