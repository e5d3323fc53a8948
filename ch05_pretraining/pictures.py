"""The drawings and the longer figures of chapter 5."""

import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from IPython.display import display
from pandas import DataFrame
from torch import Tensor

from shared import plots
from shared.drawings import Drawing
from shared.svg import MEDIUM, Box, color_of, mix, text_width
from shared.village import Tale

# The colours of who, what, where and whose.
KIND_COLORS = {"who": "blue", "what": "orange", "where": "green", "whose": "purple"}


def guesses(tokens: Sequence[str], losses: Sequence[float]) -> Drawing:
    """Each token is the target of the guess before it; a loss stands below each."""
    d = Drawing(
        720,
        190,
        "Two rows of tokens. The upper row is what the model reads. Below each of its "
        "tokens stands the next token of the text, which it should guess, and below "
        "that the loss of the guess. The loss of the text is the mean of these.",
    )
    for y, name in ((28, "reads"), (108, "should guess"), (162, "its loss")):
        d.text(98, y, name, anchor="end")
    for t, (read, target) in enumerate(zip(tokens, tokens[1:], strict=False)):
        x = 110 + 86 * t
        above = d.tokens(x, 15, [read], width=76)[0]
        below = d.tokens(x, 95, [target], color="orange", width=76)[0]
        d.arrow(above, below)
        d.text(x + 38, 162, f"{losses[t]:.2f}")
    d.text(674, 145, "mean", bold=True)
    d.text(674, 162, f"{sum(losses) / len(losses):.2f}")
    return d


def training_loop() -> Drawing:
    """Four lines for every batch; a look and a sample after every epoch."""
    d = Drawing(
        720,
        190,
        "The training loop: take a batch, forward gives the loss, backward gives the "
        "gradients, a step changes the weights, and the next batch follows. After all "
        "batches, which is one epoch, both losses are measured and the model writes.",
    )
    texts = [
        "take a batch\n(B, T)",
        "forward:\nthe loss",
        "backward:\nthe gradients",
        "step:\nnew weights",
    ]
    first, _, _, last = d.chain(75, 20, texts, gap=58, color="blue")
    corners = [(last.bottom[0], 98), (first.bottom[0], 98)]
    d.arrow(last.bottom, first.bottom, via=corners)
    d.text(360, 87, "the next batch")
    look = d.box(
        245, 130, "both losses, and a sample", color="orange", width=230, height=40
    )
    high, low = first.left[1], look.left[1]
    d.arrow(last.right, look.right, via=[(690, high), (690, low)])
    d.text(582, low - 11, "after the last batch")
    d.arrow(look.left, first.left, via=[(30, low), (30, high)])
    d.text(138, low - 11, "the next epoch")
    return d


def bars(words: Sequence[str], panels: Mapping[str, Tensor]) -> None:
    """The probabilities of a few words, in a panel for each title."""
    _, axes = plots.panels(len(panels), width=2.2, height=2.6)
    for ax, (title, probabilities) in zip(axes, panels.items(), strict=True):
        ax.bar(words, probabilities)
        ax.tick_params(axis="x", rotation=90)
        ax.set(title=title, ylim=(0, 1))
    axes[0].set_ylabel("probability")
    highest = [f"{title} (at most {p.max():.2f})" for title, p in panels.items()]
    plots.show(f"Probabilities of {len(words)} words, in panels: {', '.join(highest)}.")


def marked(tale: Tale, width: int = 720) -> Drawing:
    """A tale, in which the words that the text before them decides have a colour."""
    named = {start: (kind, end) for kind, start, end in tale.marks}
    lines, x, y = [], 15.0, 56.0
    for found in re.finditer(r"\n\n|\S+", tale.text):
        word, start = found[0], found.start()
        if word == "\n\n":
            x, y = 15.0, y + 34
            continue
        inside = next((n for n in range(start, found.end()) if n in named), None)
        kind, end = named.get(inside, (None, start))
        pieces = [(tale.text[start:inside], None), (tale.text[inside:end], kind)]
        pieces = [*(pieces if kind else []), (tale.text[end : found.end()], None)]
        wide = text_width(word, MEDIUM) + (8 if kind else 0)
        if x + wide > width - 15:
            x, y = 15.0, y + 26
        for text, kind in pieces:
            if text:
                lines.append((x, y, text, kind))
                x += text_width(text, MEDIUM) + (8 if kind else 0)
        x += text_width(" ", MEDIUM) + 1
    d = Drawing(
        width,
        int(y) + 25,
        "A tale of the village. Words that come back, and that the text before them "
        "decides, have a colour: people, things, places, and whose something is.",
    )
    place = 15.0
    for kind, color in KIND_COLORS.items():
        box = d.tokens(place, 10, [kind], color=color)[0]
        place = box.right[0] + 8
    for x, y, text, kind in lines:
        if kind:
            fill, color = mix(color_of(KIND_COLORS[kind]), 0.3), KIND_COLORS[kind]
            box = Box(x, y - 11, text_width(text, MEDIUM) + 8, 22)
            d._rectangle(box, fill, color_of(color))
            d._line(x + 4, y, text, MEDIUM, "start", behind=fill)
        else:
            d.text(x, y, text, anchor="start")
    return d


def looks_back(
    tokens: Sequence[str], looks: Sequence[tuple[str, int, Sequence[float], str]]
) -> Drawing:
    """A text, coloured where attention heads look: the more, the darker.

    Args:
        tokens: of the text, as they are written.
        looks: for each head its name, the number of the token that looks, the attention
            that each token up to there gets, and a colour.
    """
    fills = ["none"] * len(tokens)
    for _, _, weights, color in looks:
        for i, weight in enumerate(weights):
            if weight > 0.05:  # few shades, so that rounding changes none of them
                shade = 0.25 if weight < 0.15 else 0.5 if weight < 0.4 else 0.85
                fills[i] = mix(color_of(color), shade)
    boxes, x, y = [], 15.0, 20.0
    for i, token in enumerate(tokens):
        word = "".join([token, *itertools.takewhile(_goes_on, tokens[i + 1 :])])
        if not _goes_on(token) and x + text_width(word, MEDIUM) > 700:
            x, y = 15.0, y + 28
        x += 4 * (token[:1] == " " and x > 15)
        boxes.append(Box(x, y - 11, text_width(token.strip(), MEDIUM), 22))
        x += boxes[-1].width + 1
    d = Drawing(
        720,
        int(y) + 20 + 24 * len(looks),
        "A text. The tokens to which an attention head attends have its colour, the "
        "darker the more, and the token that looks there has an outline: "
        + "; ".join(name for name, *_ in looks),
    )
    for token, box, fill in zip(tokens, boxes, fills, strict=True):
        if fill != "none":
            d._rectangle(box, fill, None, corner=2)
        behind = {} if fill == "none" else {"behind": fill}
        d._line(box.x, box.y + 11, token.strip(), MEDIUM, "start", **behind)
    for number, (name, at, _, color) in enumerate(looks):
        d.mark(boxes[at], color)
        box = Box(15, y + 22 + 24 * number, 14, 14)
        d._rectangle(box, color_of(color), None, corner=2)
        d.text(36, box.y + 7, name, anchor="start")
    return d


def _goes_on(token: str) -> bool:
    """Whether a token stands in the same word as the one before."""
    return token[:1] != " "


class GrowingCurve:
    """A picture that is drawn again while a model learns: the loss, and the thread."""

    def __init__(self):
        self.shown = None

    def draw(self, looks: Sequence[Mapping]) -> None:
        """Draw the looks so far, in the place of the last picture."""
        curves(looks)
        alt = (
            "Two panels against tokens read. Left, the loss falls steeply, then "
            "slowly. Right, the shares of names, things, places and owners that the "
            "model names right."
        )
        settings = {"metadata": {"image/png": {"alt": alt}}}
        if self.shown is None:
            self.shown = display(plt.gcf(), display_id=True, **settings)
        else:
            self.shown.update(plt.gcf(), **settings)
        plt.close()


def curves(looks: Sequence[Mapping]) -> list:
    """The loss (left) and the thread (right) of a run, against tokens read."""
    _, axes = plots.panels(2, width=4.2, height=3.2)
    millions = [look["tokens"] / 1e6 for look in looks]
    axes[0].plot(millions, [look["nats"] for look in looks], color="black")
    axes[0].set(ylabel="loss (nats per character)", ylim=(0, 1.2))
    for kind, color in KIND_COLORS.items():
        shares = [100 * look[kind] for look in looks]
        axes[1].plot(millions, shares, label=kind, color=color_of(color))
    axes[1].set(ylabel="named right (%)", ylim=(0, 102))
    axes[1].legend(loc="upper left")
    for ax in axes:
        ax.set(xlabel="million tokens read")
    return axes


def whole_run(record: Mapping) -> None:
    """A run on simple tales and then on all: the loss, the thread, and free tales."""
    parts = [(record["first"], "simple"), (record["second"], "all")]
    before = record["first"][-1]["tokens"]
    looks, told = [], []
    for number, (rows, exam) in enumerate(parts):
        for row in rows:
            millions = row["tokens"] + number * before
            looks.append({**row[exam], "tokens": millions})
            if "tales" in row and row["step"] > 0:
                told.append((millions / 1e6, row["tales"]))
    axes = curves(looks)
    for ax in axes:
        ax.axvline(before / 1e6, color="grey", linewidth=0.8, linestyle=":")
    settings = {"color": "black", "linestyle": "--", "marker": "o", "markersize": 3}
    axes[1].plot(*zip(*told, strict=True), label="free tales", **settings)
    axes[1].set(ylabel="of 100: right, or free of contradiction")
    axes[1].legend(loc="lower right", fontsize=8)
    plots.show(
        "Two panels against tokens read, for a run on simple tales and, from a dotted "
        "line on, all of them. Left, the loss: it falls, jumps at the line, and falls "
        "again. Right, of a hundred: names, things, places and owners named right, and "
        "free tales without a contradiction. All fall at the line and rise again."
    )


def come_back(look: Mapping[str, float]) -> bool:
    """Whether people and things come back into the tale: the moment."""
    return min(look["who"], look["what"]) >= 0.4


def tried(runs: Sequence[Mapping]) -> DataFrame:
    """How soon people and things came back, with other settings: a table."""
    rows = {}
    for run in runs:
        last = run["looks"][-1]
        came = come_back(last)
        rows[run["seed"]] = {
            "tokens (M)": f"{last['tokens'] / 1e6:.2f}" if came else "not by 0.7",
            "seconds": f"{last['seconds']:.0f}" if came else f"({last['seconds']:.0f})",
            "tokens a second": f"{run['speed']:,}",
            "who": f"{last['who']:.0%}",
            "what": f"{last['what']:.0%}",
            "where": f"{last['where']:.0%}",
            "whose": f"{last['whose']:.0%}",
        }
    return DataFrame.from_dict(rows, orient="index")
