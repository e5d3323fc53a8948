"""The drawings of chapter 4, and the picture of the logit lens."""

import matplotlib.pyplot as plt

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


def feed_forward() -> Drawing:
    """One token's vector, widened to four times its length and narrowed again."""
    d = Drawing(
        720,
        300,
        "A feed-forward network. A token's vector of C numbers becomes 4C numbers by "
        "the matrix W1, each of them goes through GELU, and the matrix W2 makes C "
        "numbers of them again, which are added to the stream. One of the 4C units is "
        "marked: a row of W1 and a column of W2.",
    )
    labels = ("C = 768", "4C = 3072", "4C = 3072", "C = 768")
    boxes = []
    for x, n, label in zip((140, 285, 430, 575), (3, 12, 12, 3), labels, strict=True):
        top = 130 - 9 * n
        boxes.append(d.matrix(x, top, [[None]] * n, cell=18, show=False))
        d.text(x + 9, 130 + 9 * n + 14, label)
    for a, b, name in zip(boxes[:-1], boxes[1:], ("W1", "GELU", "W2"), strict=True):
        d.arrow((a.x + 28, 130), (b.x - 10, 130), label=name)
    d.arrow((100, 130), (132, 130))
    d.text(94, 122, "a token,\nafter the norm", anchor="end")
    d.arrow((603, 130), (637, 130))
    d.text(645, 122, "to the\nstream", anchor="start")
    for box in boxes[1:3]:
        d.mark(box.cells[3][0])
    d.text(294, 276, "a unit: how well does the\nvector fit its row of W1?")
    d.text(500, 276, "what it writes:\nits column of W2")
    return d


def lens(
    words: list[str], guesses: list[list[str]], probs: list[list[float]]
) -> plt.Axes:
    """What the head reads from the stream: a row for each block, the first below."""
    _, ax = plt.subplots(figsize=(1.0 * len(words), 0.42 * len(guesses) + 0.8))
    ax.imshow(probs, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1.3)
    for block, row in enumerate(guesses):
        for place, guess in enumerate(row):
            shown = guess.replace("\n", "\\n").strip() or "space"
            ink = "white" if probs[block][place] > 0.8 else "black"
            ax.text(place, block, shown, ha="center", va="center", size=9, color=ink)
    shown = [word.replace("\n", "\\n").strip() for word in words]
    ax.set_xticks(range(len(words)), shown)
    labels = ["start", *(f"block {n}" for n in range(1, len(guesses)))]
    ax.set_yticks(range(len(guesses)), labels)
    ax.set(xlabel="the token that is read", title="the likeliest next token")
    ax.grid(False)
    return ax
