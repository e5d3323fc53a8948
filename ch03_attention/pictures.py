"""The drawings of chapter 3."""

import matplotlib.pyplot as plt
import numpy as np

from shared import plots
from shared.drawings import SMALL, Drawing


def one_vector_or_all(tokens: list[str]) -> Drawing:
    """What a recurrent network keeps of a text, and what attention keeps."""
    d = Drawing(
        720,
        200,
        "Two networks read the same sentence. The recurrent one rewrites a single "
        "vector at every word, and only the last is left. Attention keeps a vector for "
        "every word, and looks at all of them.",
    )
    left, right = d.steps(
        ["one vector, rewritten at every word", "attention keeps all"]
    )
    question = "what comes next?"

    before, words = None, d.tokens(left.x + 38, 44, tokens)
    for word in words:
        color = "blue" if word is words[-1] else None
        state = d.box(word.top[0] - 11, 94, "", color=color, width=22)
        d.arrow(word, state)
        if before is not None:
            d.arrow(before, state)
        before = state
    answer = d.box(left.x + 54, 152, question)
    d.arrow(before.bottom, answer.right, bend="down")

    answer = d.box(right.x + 78, 152, question)
    for word in d.tokens(right.x + 38, 44, tokens):
        kept = d.box(word.top[0] - 11, 94, "", color="blue", width=22)
        d.arrow(word, kept)
        d.arrow(kept.bottom, (0.7 * answer.top[0] + 0.3 * kept.top[0], answer.y))
    return d


def one_query(tokens, query_token, query, keys, scores, weights, values) -> Drawing:
    """One query, step by step: keys, values (T, 2), scores and weights (T,)."""
    d = Drawing(
        720,
        290,
        f"One query in four steps. The query of {query_token!r} is compared with the "
        "key of every token, which gives the scores. Softmax makes weights of them, "
        "and the context vector is the average of the values with these weights.",
    )
    top, below = 50, 250
    key = d.matrix(68, top, _plain(keys), tokens, ["noun", "adj."], "keys")
    ask = d.matrix(68, below, _plain(query[None]), [query_token], title="query")
    score = d.matrix(266, top, _plain(scores[:, None]), title="scores")
    weight = d.matrix(434, top, weights[:, None], title="weights", color="green")
    value = d.matrix(590, top, _plain(values), (), ["wet", "hard"], "values")
    context = d.matrix(583, below, (weights @ values)[None], color="purple")
    d.text(570, context.left[1], "context vector", anchor="end", bold=True)
    d.arrow(key, score, "dot products")
    d.arrow(ask, score, bend="across")
    d.arrow(score, weight, "softmax", "of score / √2")
    d.arrow(weight, value, "times")
    d.arrow(value.bottom, (value.bottom[0], below), "added up")
    for i in (weights > weights.mean()).nonzero().flatten().tolist():
        for matrix in (key, score, weight, value):
            d.mark(matrix.row(i))
    return d


def _plain(table) -> list[list[float]]:
    """Rows of numbers, whole ones without decimals."""
    return [[int(x) if x == int(x) else x for x in row] for row in table.tolist()]


def tables(steps: dict, tokens: list[str]) -> None:
    """Draw tables (T, any) side by side, each in colours of its own.

    The strongest colour is a table's largest number. Red is positive and blue negative;
    the weights, which are shares, are green.
    """
    arrays = {name: np.asarray(table) for name, table in steps.items()}
    widths = [array.shape[1] for array in arrays.values()]
    _, axes = plt.subplots(1, len(arrays), figsize=(11, 3), width_ratios=widths)
    for ax, (name, array) in zip(axes, arrays.items(), strict=True):
        most, shares = np.abs(array).max(), name == "weights"
        cmap, least = ("Greens", 0) if shares else ("RdBu_r", -most)
        ax.imshow(array, cmap=cmap, vmin=least, vmax=most, aspect="auto")
        for (row, column), value in np.ndenumerate(array):
            color = "white" if abs(value) > 0.7 * most else "black"
            place = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
            written = f"{value:.2f}".replace("-0.00", "0.00")
            ax.text(column, row, written, **place)
        square = array.shape[1] == len(tokens)
        labels = tokens if square else range(array.shape[1])
        ax.set_xticks(range(array.shape[1]), labels, rotation=45 if square else 0)
        ax.set(title=name, yticks=[])
        ax.grid(False)
    axes[0].set_yticks(range(len(tokens)), tokens)


def causal_mask(tokens: list[str]) -> Drawing:
    """Which token may attend to which: a lower triangle."""
    T = len(tokens)
    d = Drawing(
        520,
        222,
        "A table with a row for each query and a column for each token that it might "
        "attend to. The lower triangle and the diagonal are allowed, the rest is not.",
    )
    allowed = [[1.0 if j <= i else None for j in range(T)] for i in range(T)]
    table = d.matrix(80, 50, allowed, tokens, tokens, "attended to", show=False)
    d.text(72, 40, "query", anchor="end", bold=True)
    d.text(290, 63, "white is the future:", anchor="start")
    d.text(290, 81, "score -inf, weight 0", anchor="start")
    row = table.row(2)
    d.mark(row)
    d.text(290, row.left[1], '"fell" attends to "Soft",', anchor="start")
    d.text(290, row.left[1] + 18, '"rain" and itself', anchor="start")
    return d


def split_and_join() -> Drawing:
    """What becomes of the queries of three tokens in two heads."""
    d = Drawing(
        720,
        310,
        "Queries of three tokens, four numbers each. The left two columns go to head 0 "
        "and the right two to head 1. Each head attends by itself, the two results are "
        "put side by side again, and out_proj mixes them.",
    )
    tokens, middle = ["Soft", "rain", "fell"], 88

    def piece(x, y, color, rows=(), shape=""):
        empty = [[""] * 2 for _ in tokens]
        return d.matrix(x, y, empty, rows, color=color, cell=22, shape=shape)

    def side_by_side(x, title, rows=()):
        halves = piece(x, middle, "blue", rows), piece(x + 44, middle, "orange")
        d.text(x + 44, middle - 14, title, bold=True)
        d.text(x + 44, middle + 78, "(T, C)", SMALL)
        return halves

    start = side_by_side(50, "queries", tokens)
    end = side_by_side(606, "contexts")
    for h, (color, y) in enumerate((("blue", 34), ("orange", 142))):
        cut = piece(262, y, color, shape="(T, D)")
        attend = d.box(346, y + 5, f"head {h}\nattends", color=color, width=84)
        result = piece(474, y, color, shape="(T, D)")
        d.arrow(start[1].right, cut)
        d.arrow(cut, attend)
        d.arrow(attend, result)
        d.arrow(result, end[0].left)
    d.text(182, 50, "view,\ntranspose", SMALL)
    d.text(574, 50, "transpose,\nflatten", SMALL)
    d.text(94, middle + 130, "keys and values\nin the same way", SMALL)
    out = d.box(602, 234, "out_proj", shape="(T, C)", width=96)
    d.arrow((650, middle + 88), out)
    return d


def four_products() -> Drawing:
    """The product of queries and keys of two texts and two heads."""
    d = Drawing(
        720,
        325,
        "Two texts with two heads each make four pairs of matrices. In each pair, the "
        "queries (T, D) times the keys, transposed to (D, T), give scores (T, T). One "
        "product of (B, H, T, D) with (B, H, D, T) does all four.",
    )
    T, D, cell = 4, 2, 14
    for b in range(2):
        for h, color in enumerate(("blue", "orange")):
            x, y = 110 + 330 * h, 52 + 122 * b
            sizes = {"queries": (T, D, 0), "keys": (D, T, 70), "scores": (T, T, 170)}
            for name, (rows, columns, right) in sizes.items():
                empty = [[""] * columns for _ in range(rows)]
                down = y + 14 * (T - rows) / 2
                d.matrix(x + right, down, empty, color=color, cell=cell)
                title = "keys.T" if name == "keys" else name
                d.text(x + right + cell * columns / 2, y - 12, title, SMALL)
            d.text(x + 49, y + 28, "@")
            d.text(x + 148, y + 28, "=")
            shapes = {14: "(T, D)", 98: "(D, T)", 198: "(T, T)"}
            for right, shape in shapes.items():
                d.text(x + right, y + 68, shape, SMALL)
    for h in range(2):
        d.text(223 + 330 * h, 18, f"head {h}", bold=True)
    for b in range(2):
        d.text(50, 80 + 122 * b, f"text {b}", bold=True)
    d.text(360, 290, "in one line: queries @ keys.transpose(2, 3)", bold=True)
    d.text(360, 312, "(B, H, T, D) @ (B, H, D, T) gives (B, H, T, T)")
    return d


def two_layers(first, second, string: str) -> None:
    """Draw the weights (T, T) of two layers that read a string."""
    _, (left, right) = plots.panels(2, width=5.0, height=4.8)
    for ax, weights in ((left, first), (right, second)):
        plots.heatmap(weights, list(string), list(string), vmin=0, vmax=1, ax=ax)
        ax.set(xlabel="letter attended to")
    left.set(title="Layer 1: the letter before me", ylabel="query")
    right.set(title="Layer 2: the letter that followed me before")


def all_heads(weights, words: list[str]) -> None:
    """Draw the weights (blocks, H, T, T) of all heads as small tables."""
    L, H = weights.shape[:2]
    _, axes = plt.subplots(H, L, figsize=(10, 1.25 * H + 0.4))
    for ax, table in zip(axes.T.flat, weights.flatten(0, 1), strict=True):
        ax.imshow(table, cmap="Greens", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    for block in range(L):
        axes[0, block].set_title(f"block {block}", fontsize=9)
    for head in range(H):
        axes[head, 0].set_ylabel(f"head {head}", fontsize=9)
    axes[0, 0].set_yticks(range(len(words)), words, fontsize=7)


def rows_over_words(words: list[list[str]], texts: list[dict]) -> None:
    """Draw rows of weights (T,), by the heads' names, over the words of each text."""
    size = 0.52 * len(words[0]) + 1.2, 1.4 * len(texts)
    _, axes = plt.subplots(len(texts), 1, figsize=size)
    for ax, labels, rows in zip(axes, words, texts, strict=False):
        table = np.stack(list(rows.values()))
        ax.imshow(table, cmap="Greens", vmin=0, vmax=1)
        for (y, x), share in np.ndenumerate(table):
            if share > 0.1:
                color = "white" if share > 0.6 else "black"
                place = {"ha": "center", "va": "center", "color": color}
                ax.text(x, y, f"{share:.0%}", fontsize=8, **place)
        ax.set_xticks(range(len(labels)), labels, fontsize=9, va="baseline")
        ax.tick_params(axis="x", pad=12)
        ax.set_yticks(range(len(rows)), rows, fontsize=9)
        ax.grid(False)
