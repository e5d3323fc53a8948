"""The drawings and the longer figures of chapter 5."""

from collections.abc import Mapping, Sequence

from pandas import DataFrame
from torch import Tensor

from shared import plots
from shared.drawings import Drawing


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


def perplexities(table: DataFrame) -> None:
    """Three models (columns) on three texts (rows)."""
    ax = table.plot.bar(rot=0, ylabel="perplexity per character", ylim=(0, 22))
    ax.legend(loc="upper center", ncols=3)
    for group in ax.containers:
        ax.bar_label(group, fmt="%.1f", fontsize=8)
    plots.show(
        "Bars for three models on three texts. The untrained model is equally bad on "
        "all. The storyteller is by far the best on its story, and worse than the base "
        "on the story's end and on new text, where it is as bad as the untrained model."
    )
