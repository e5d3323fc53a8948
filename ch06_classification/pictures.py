"""The drawings and the longer figures of chapter 6."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from pandas import DataFrame

from shared import plots
from shared.drawings import LARGE, Drawing

WORDS = ["Anna", " sold", " Ben", " the", " cake", ".", "pad", "pad"]


def classifier() -> Drawing:
    """A GPT whose new head reads the last real token of a padded sentence."""
    d = Drawing(
        720,
        280,
        "A sentence of six tokens and two padding tokens go through the GPT's blocks, "
        "which give a vector for every token. The new head reads the vector of the "
        "last real token, the full stop, and gives two logits: Anna and Ben.",
    )
    colors = ["sky"] * 6 + ["black"] * 2
    tokens = d.tokens(150, 225, WORDS, color=colors, width=52)
    right = tokens[-1].right[0]
    blocks = d.box(
        150, 145, "embeddings and blocks of the base", color="blue", width=right - 150
    )
    d.text(140, 238, "text, padded", anchor="end")
    d.text(140, 117, "vectors (T, C)", anchor="end")
    vectors = []
    for token in tokens:
        d.arrow(token.top, (token.top[0], blocks.bottom[1]))
        vectors.append(d.box(token.top[0] - 14, 105, "", width=28, height=24))
        d.arrow((token.top[0], blocks.y), vectors[-1])
    last = vectors[5]
    d.mark(last)
    head = d.box(last.top[0] - 60, 50, "new head", color="orange", width=120)
    d.arrow(last, head)
    d.arrow(head, (last.top[0], 30))
    d.text(last.top[0], 14, "two logits: Anna, Ben", size=LARGE, bold=True)
    d.text(last.top[0] - 75, 75, "reads the last real token", anchor="end")
    return d


def what_learns(counts: dict[str, int], n_blocks: int) -> Drawing:
    """The parts of a classifier, once for each choice of what learns."""
    d = Drawing(
        720,
        80 + 24 * (n_blocks + 3),
        "The parts of the model, from the embeddings at the bottom to the head at the "
        "top, in three columns. Orange learns: only the head in the first; the last "
        "block, the final norm and the head in the second; everything in the third.",
    )
    blocks = [f"block {i}" for i in range(1, n_blocks + 1)]
    parts = ["embeddings", *blocks, "final norm", "head"]
    first = {"head": n_blocks + 2, "last block": n_blocks, "all": 0}
    places = d.steps([f"{name}: {counts[name]:,} learn" for name in first])
    for place, name in zip(places, first, strict=True):
        for i, part in enumerate(parts):
            y = place.y + 8 + 26 * (len(parts) - 1 - i)
            color = "orange" if i >= first[name] else "black"
            d.box(place.top[0] - 75, y, part, color=color, width=150, height=24)
    return d


def shares_right(shares: Mapping[str, float]) -> None:
    """Three bars: counting words, and a GPT without and with pretraining."""
    _, ax = plt.subplots(figsize=(6.4, 1.8))
    bars = ax.barh(list(shares), list(shares.values()), color=plots.COLORS[:3])
    ax.bar_label(bars, fmt="%.1f", padding=4)
    ax.set(xlim=(0, 112), xlabel="% of the test sentences right")
    ax.invert_yaxis()
    plots.show(
        "Three bars: those of counting words and of the model that was not pretrained "
        "end near one half, that of the pretrained one near a hundred."
    )


def lengths(messages: DataFrame) -> None:
    """How long ham and spam are."""
    for label, group in messages.groupby("Label"):
        characters = group["Text"].str.len()
        plt.hist(characters, range(0, 300, 8), alpha=0.6, density=True, label=label)
    plt.axvline(160, color="grey", linestyle=":")
    plt.gca().set(xlabel="characters in a message", ylabel="share per character")
    plt.legend()
    plots.show(
        "Two histograms of message lengths: ham is mostly short, spam crowds just "
        "below the limit of 160 characters."
    )
