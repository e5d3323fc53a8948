"""The drawings of chapter 4."""

from shared.drawings import Drawing

SENTENCE = ["The", " train", " was", " late"]
IDS = [464, 4512, 373, 2739]
MORE = [" again", ".", " We"]  # what a trained model might write next


def whole_model() -> Drawing:
    """From token ids to logits, with the shape at each arrow."""
    d = Drawing(
        720,
        535,
        "The whole model from top to bottom: four token ids become four vectors of 768 "
        "numbers, pass twelve blocks and a norm, and the output head turns each vector "
        "into 50,257 logits.",
    )
    d.tokens(100, 15, SENTENCE, IDS)
    embedding = d.box(
        80, 100, "token embedding\n+ positional embedding", color="sky", width=230
    )
    block = d.box(80, 220, "transformer block", color="blue", width=230)
    norm = d.box(80, 320, "layer norm", color="green", width=230)
    head = d.box(80, 400, "output head", color="orange", width=230)
    d.frame([block], "x 12", pad=14)
    d.arrow((195, 64), embedding, shape="(B, T) = (1, 4)")
    d.arrow(embedding, block, shape="(B, T, C) = (1, 4, 768)")
    d.arrow(block, norm, shape="(B, T, C)")
    d.arrow(norm, head, shape="(B, T, C)")
    d.arrow(head, (195, 492), shape="(B, T, V) = (1, 4, 50257)")
    d.text(195, 506, "logits", bold=True)
    notes = {
        28: "the text, cut into tokens (chapter 2)",
        119: "one vector of C = 768 numbers for each token:\n"
        "what it is, plus its position (chapter 2)",
        222: "attention lets tokens look at earlier ones\n"
        "(chapter 3), a feed-forward network works\n"
        "on each token by itself (4.5)",
        338: "brings every vector to the same scale (4.3)",
        410: "one score for each of the V = 50,257 tokens\nthat could come next (4.2)",
        506: "row t scores the token after token t",
    }
    for y, words in notes.items():
        d.text(350, y, words, anchor="start")
    return d


def generation_loop() -> Drawing:
    """Read, score, pick, append, and again."""
    d = Drawing(
        720,
        245,
        "The loop that writes: the text goes through the model, the last row of logits "
        "is kept, the highest score picks a token, and the token is appended to the "
        "text, which is read again.",
    )
    texts = [
        "text\n(B, T)",
        "GPT",
        "last row of logits\n(B, V)",
        "token with the\nhighest score",
    ]
    text, _, _, pick = d.chain(50, 20, texts, gap=88, color="blue")
    low = 100
    corners = [(pick.bottom[0], low), (text.bottom[0], low)]
    d.arrow(pick.bottom, text.bottom, via=corners)
    d.text(360, low + 14, "append it, and read the longer text")
    for step in range(3):
        y = 142 + 32 * step
        written = [*SENTENCE, *MORE[:step]]
        colors = ["sky"] * len(SENTENCE) + ["orange"] * step
        boxes = d.tokens(150, y, written, color=colors)
        d.arrow(boxes[-1].right, (470, y + 13))
        d.tokens(478, y, [MORE[step]], color="vermillion")
    return d


def norm_axes() -> Drawing:
    """Which numbers share a mean: those of a token, or those of a channel."""
    d = Drawing(
        720,
        215,
        "Two tables of four tokens by six channels. Layer norm takes the mean over a "
        "row, which is one token; batch norm takes it over a column, which is one "
        "channel of all tokens.",
    )
    words = [word.strip() for word in SENTENCE]
    row = [[1 if t == 1 else None for c in range(6)] for t in range(4)]
    column = [[1 if c == 2 else None for c in range(6)] for t in range(4)]
    for x, title, cells, note in (
        (120, "layer norm", row, "one mean for each token"),
        (470, "batch norm", column, "one mean for each channel, over all tokens"),
    ):
        d.matrix(x, 40, cells, words, title=title, cell=30, show=False)
        d.text(x + 90, 174, "C channels", 12)
        d.text(x + 90, 196, note)
    return d


def block() -> Drawing:
    """The residual stream as a rail, and two branches that are added to it."""
    d = Drawing(
        720,
        200,
        "A transformer block: the residual stream runs straight through. Two branches "
        "leave it and are added to it: layer norm and attention first, layer norm and "
        "feed-forward network second.",
    )
    rail = d.rail((20, 150), (700, 150))
    d.text(20, 176, "residual stream (B, T, C)", anchor="start")
    d.text(700, 176, "to the next block", anchor="end")
    for x, name, color, note in (
        (60, "attention", "blue", "gathers from earlier tokens"),
        (385, "feed-forward", "orange", "each token by itself"),
    ):
        norm = d.box(x, 65, "layer norm", color="green", width=90, height=44)
        part = d.box(x + 125, 65, name, color=color, width=105, height=44)
        d.branch(rail, [norm, part])
        d.text(x + 115, 42, note)
    d.text(360, 16, "transformer block", bold=True)
    return d


def growing_cache() -> Drawing:
    """Three steps of writing: the rows of old tokens stay, one row is added."""
    d = Drawing(
        720,
        305,
        "The cache of one block in three steps. The prompt fills four rows with keys "
        "and values. Each later step computes one new row, for the newest token, and "
        "leaves the rows above as they are.",
    )
    text = [word.strip() for word in [*SENTENCE, *MORE[:2]]]
    places = d.steps(["the prompt", "one token more", "and one more"])
    for place, old, new in zip(places, (0, 4, 5), (4, 5, 6), strict=True):
        d.text(place.x + 62, place.y + 27, "read", anchor="end")
        d.tokens(place.x + 75, place.y + 14, [" ".join(text[old:new])], color="orange")
        for x, name in ((75, "keys"), (160, "values")):
            labels = [*text[:new], *[""] * (6 - new)] if name == "keys" else ()
            left, top = place.x + x, place.y + 85
            d.matrix(left, top, [[None] * 3] * 6, labels, title=name, cell=24)
            for first, last, color in ((0, old, "sky"), (old, new, "orange")):
                if first < last:
                    rows = [[1] * 3] * (last - first)
                    y = top + 24 * first
                    d.matrix(left, y, rows, color=color, cell=24, show=False)
        d.text(place.x + 120, place.y + 250, f"rows computed: {new - old}")
    return d
