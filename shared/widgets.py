"""Pictures with controls to move; without a kernel you see the picture alone."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from shared import plots

BARS = 15  # tokens of a distribution that get a bar of their own
WIDEST = 60  # bytes of a sentence that fit into a picture


class Live:
    """A picture with controls; a cell shows it if it is the cell's last line.

    `draw` gets the controls' values by name and returns a figure and its alt text.
    """

    def __init__(
        self, draw: Callable[..., tuple[Figure, str]], **controls: ipywidgets.Widget
    ):
        self.draw, self.controls, self.shown = draw, controls, None
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")

    def redraw(self, moved: dict | None = None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        try:
            self.figure, alt = self.draw(**values)
        except ValueError as error:
            if moved is None:
                raise
            self.figure, ax = plt.subplots(figsize=(8, 1))  # a reader may type anything
            ax.text(0, 0.5, alt := str(error))
            ax.axis("off")
        plt.close(self.figure)  # or the notebook would show it again
        self.metadata = {"image/png": {"alt": alt}}
        if self.shown is not None:
            self.shown.update(self.figure, metadata=self.metadata)

    def _ipython_display_(self) -> None:
        wrapped = ipywidgets.Layout(flex_flow="row wrap")
        display(ipywidgets.Box(list(self.controls.values()), layout=wrapped))
        self.shown = display(self.figure, metadata=self.metadata, display_id=True)


def label(text: str) -> str:
    """A token as figures can show it; a letter that the font lacks becomes a number."""
    font = get_font(findfont(FontProperties()))
    text = text.replace("\n", "⏎").replace(" ", "·")
    text = "".join(c if font.get_char_index(ord(c)) else f"<{ord(c):x}>" for c in text)
    return text.replace("$", r"\$")  # or matplotlib would see a formula


# One attention head


def attention_steps(
    queries: torch.Tensor, keys: torch.Tensor, scale: bool = True, mask: bool = True
) -> dict[str, torch.Tensor]:
    """The scores (T, T) of queries and keys (T, D), scaled and masked, and the weights.

    Source: Vaswani et al. (2017), section 3.2.1.
    """
    scores = (queries @ keys.T).detach()
    scaled = scores / math.sqrt(keys.shape[1]) if scale else scores
    if mask:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scaled = scaled.masked_fill(future, -torch.inf)
    weights = torch.softmax(scaled, dim=-1)
    return {"scores": scores, "scaled": scaled, "weights": weights}


def attention_head(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tokens: list[str],
    query: int = 0,
) -> Live:
    """The steps of one head, from (T, D) each, for a query that the reader chooses."""
    T = len(tokens)
    shapes = [tuple(each.shape) for each in (queries, keys, values)]
    if any(len(s) != 2 or s[0] != T for s in shapes) or shapes[0] != shapes[1]:
        raise ValueError(f"queries, keys, values {shapes} are not (T, D) with T = {T}")

    def draw(query: int, scale: bool, mask: bool) -> tuple[Figure, str]:
        steps = attention_steps(queries, keys, scale, mask)
        most = 1.6 * steps["scores"].abs().max().item() or 1.0
        figure, axes = plots.panels(4, width=2.6, height=1.0 + 0.3 * T)
        changes = ["divided by √D"] * scale + ["masked"] * mask
        titles = ["query · key", ", ".join(changes) or "as they are", "softmax"]
        for ax, step, title in zip(axes, steps.values(), titles, strict=False):
            row = step[query].tolist()
            drawn = ax.barh(range(T), [x if math.isfinite(x) else 0 for x in row])
            numbers = [f"{x:.2f}".replace("-inf", "−∞") for x in row]
            ax.bar_label(drawn, numbers, padding=2, fontsize=8)
            least = -most if steps["scores"].min() < 0 else 0
            ax.set(title=title, xlim=(least, most), xlabel="score")
        axes[2].set(xlabel="weight", xlim=(0, 1.3))
        terms = steps["weights"][query, :, None] * values.detach()  # (T, D)
        table = torch.cat([terms, terms.sum(dim=0, keepdim=True)])
        plots.heatmap(table, annotate=table.shape[1] <= 8, ax=axes[3])
        axes[3].set(title="weight · value, and sum", xlabel="column")
        axes[3].xaxis.get_major_locator().set_params(integer=True)
        axes[3].axhline(T - 0.5, color="black", linewidth=1)
        peak = 1.5 * table.abs().max().item() or 1.0  # so that 0 is white
        axes[3].images[0].set(cmap="RdBu_r", clim=(-peak, peak))
        plt.setp(axes[3].texts, color="black")
        for ax in axes:
            ax.set(ylim=(T + 0.5, -0.5), yticks=[])  # the last row is the sum
        axes[0].set_yticks(range(T + 1), [*map(label, tokens), "sum"])
        axes[0].set_ylabel(f"query: {label(tokens[query])}")
        return figure, (
            f"What {tokens[query]!r} attends to, in four panels: its scores; the "
            f"scores {titles[1]}; the weights; each value times its weight, and their "
            "sum."
        )

    options = [(token, i) for i, token in enumerate(tokens)]
    narrow = {"button_width": "auto"}
    return Live(
        draw,
        query=ipywidgets.ToggleButtons(options=options, value=query, style=narrow),
        scale=ipywidgets.Checkbox(True, description="divide by √D", indent=False),
        mask=ipywidgets.Checkbox(True, description="mask the future", indent=False),
    )


# Merges of a sentence


class Piece(NamedTuple):
    """A piece of a text: the bytes from start to end; `depth` counts nested merges."""

    start: int
    end: int
    depth: int
    id: int


def merge_steps(
    tokenizer, split: Callable[[str], list[str]], text: str
) -> tuple[list[Piece], list[Piece]]:
    """A text's bytes, and the pieces that they are merged into, in order.

    `tokenizer` has `vocab` and `merges`; a merge never crosses the pieces of `split`.
    """
    ids = {token: i for i, token in tokenizer.vocab.items() if len(token) == 1}
    words, made, end = [], [], 0
    for data in (word.encode() for word in split(text)):
        places = enumerate(data, start=end)
        words.append([Piece(i, i + 1, 0, ids[bytes([byte])]) for i, byte in places])
        end += len(data)
    leaves = [piece for word in words for piece in word]
    while candidates := [
        (new_id, i, word)
        for word in words
        for i in range(len(word) - 1)
        if (new_id := tokenizer.merges.get((word[i].id, word[i + 1].id))) is not None
    ]:
        new_id, i, word = min(candidates, key=lambda found: found[0])  # learned first
        left, right = word[i : i + 2]
        depth = 1 + max(left.depth, right.depth)
        word[i : i + 2] = [Piece(left.start, right.end, depth, new_id)]
        made.append(word[i])
    return leaves, made


def standing(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces that are not part of a later one, from left to right."""
    owner = {i: piece for piece in pieces for i in range(piece.start, piece.end)}
    return list(dict.fromkeys(owner[i] for i in sorted(owner)))


def merges(
    tokenizers: dict[str, object], split: Callable[[str], list[str]], sentence: str
) -> Live:
    """The merges of any sentence, one by one; the reader chooses the tokenizer."""

    def draw(tokenizer: str, sentence: str, done: int) -> tuple[Figure, str]:
        data = sentence.encode()
        if not 1 <= len(data) <= WIDEST:
            raise ValueError(f"{len(data)} bytes; there is room for 1 to {WIDEST}")
        leaves, made = merge_steps(tokenizers[tokenizer], split, sentence)
        tokens = standing([*leaves, *made[:done]])
        levels = 1 + max(piece.depth for piece in [*leaves, *made])
        figure, ax = plt.subplots(figsize=(10, 1.2 + 0.3 * levels))
        for piece in [*leaves, *made[:done]]:
            color = plots.COLORS[5] if piece in tokens else "0.9"
            color = plots.COLORS[1] if piece in made[:done][-1:] else color
            middle, width = (piece.start + piece.end) / 2, piece.end - piece.start
            ax.bar(middle, 0.9, width - 0.1, bottom=piece.depth, color=color)
            if piece.depth:
                at = {"xy": (middle, piece.depth + 0.4), "ha": "center", "fontsize": 7}
                ax.annotate(piece.id, va="center", **at)
        signs = [label(chr(byte)) if byte < 128 else f"{byte:x}" for byte in data]
        ax.set_xticks([i + 0.5 for i in range(len(data))], signs, fontsize=8)
        count = f"{len(made[:done])} of {len(made)} merges, {len(tokens)} tokens"
        ax.set(title=f"{tokenizer}: {count} (orange: the last merge)", xlabel="bytes")
        ax.set(xlim=(-0.2, len(data) + 0.2), ylim=(0, levels), yticks=[])
        ax.set_ylabel("merges of merges")
        ax.grid(False)
        return figure, (
            f"The bytes of {sentence!r} in a row; above them the pieces that they are "
            f"merged into, each with its id. {tokenizer}: {count}."
        )

    def count_again(moved: dict | None = None) -> None:
        text = typed.value[:WIDEST]
        made = merge_steps(tokenizers[which.value], split, text)[1]
        done.max = max(1, len(made))
        done.value = len(made)

    which = ipywidgets.ToggleButtons(options=list(tokenizers))
    typed = ipywidgets.Text(sentence, continuous_update=False, layout={"width": "36em"})
    done = ipywidgets.IntSlider(description="merges")
    count_again()
    which.observe(count_again, "value")
    typed.observe(count_again, "value")
    return Live(draw, tokenizer=which, sentence=typed, done=done)


# Sampling


def bars(probabilities: torch.Tensor, ids: torch.Tensor) -> list[float]:
    """The probabilities of some of (V,) tokens, and then of all the others together."""
    some = probabilities[ids].tolist()
    return [*some, max(0.0, 1 - sum(some))]


def sampling(
    logits: torch.Tensor,
    decode: Callable[[list[int]], str],
    distribution: Callable[..., torch.Tensor],
) -> Live:
    """The distribution of the next token, with controls for temperature, top-k, top-p.

    `distribution(logits, temperature, top_k, top_p)` turns (1, V) into probabilities.
    """
    if logits.dim() != 1:
        shape = tuple(logits.shape)
        raise ValueError(f"logits {shape} are not (V,); take model(ids)[0, -1]")
    logits = logits.detach().float().cpu()[None]  # (1, V)
    V = logits.shape[1]
    ids = logits[0].topk(min(BARS, V)).indices
    names = [*(label(decode([i])) for i in ids.tolist()), "all others"]
    before = bars(distribution(logits, 1.0, None, None)[0], ids)

    def draw(temperature: float, top_k: int, top_p: float) -> tuple[Figure, str]:
        p = distribution(logits, temperature, top_k or None, top_p)[0]
        figure, ax = plt.subplots(figsize=(8, 4.2))
        rows = range(len(names))
        ax.barh(rows, before, fc="none", ec="0.3", label="as the model says")
        ax.barh(rows, bars(p, ids), 0.5, label="to be drawn from")
        ax.set_yticks(rows, names)
        ax.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), xlabel="probability")
        ax.set(title=f"tokens left: {(p > 0).sum():,} of {V:,}", ylabel="next token")
        ax.legend(loc="center right")
        settings = f"{temperature:.1f}, top-k {top_k or 'all'}, top-p {top_p:.2f}"
        return figure, (
            "Bars for the likeliest next tokens and for all others together, as the "
            f"model says and at temperature {settings}."
        )

    choices = {str(k): k for k in (1, 2, 3, 5, 10, 20, 50, 100) if k < V} | {"all": 0}
    whole = {"description_width": "initial"}  # or the word would be cut off
    return Live(
        draw,
        temperature=ipywidgets.FloatSlider(
            1, min=0, max=2, description="temperature", style=whole
        ),
        top_k=ipywidgets.SelectionSlider(options=choices, value=0, description="top-k"),
        top_p=ipywidgets.FloatSlider(
            0.9, min=0.05, max=1, step=0.05, description="top-p"
        ),
    )


# Gradient descent


def descend(
    loss: Callable, start: Sequence[float], rate: float, steps: int
) -> torch.Tensor:
    """The path (steps + 1, 2) of gradient descent on `loss(w, b)`."""
    slope = torch.func.grad(lambda point: loss(*point))
    path = [torch.tensor(start, dtype=torch.float64)]
    for _ in range(steps):
        path.append(path[-1] - rate * slope(path[-1]))
    return torch.stack(path)


def loss_surface(
    loss: Callable,
    start: tuple[float, float],
    w: tuple[float, float],
    b: tuple[float, float],
    rates: tuple[float, float],
) -> Live:
    """Two descents on `loss(w, b)` from one start; `w` and `b` are the drawn ranges."""
    sides = [torch.linspace(*ends, 81, dtype=torch.float64) for ends in (w, b)]
    plane = torch.cartesian_prod(*sides)  # (81 * 81, 2)
    surface = torch.vmap(loss)(*plane.T)
    if surface.shape != plane.shape[:1] or not surface.isfinite().all():
        raise ValueError("loss(w, b) must be one finite number in the whole picture")
    low, high = surface.min().item(), surface.max().item()
    levels = low + (high - low) * torch.linspace(0, 1, 14)[1:] ** 3

    def draw(steps: int, **rates: float) -> tuple[Figure, str]:
        figure, (left, right) = plots.panels(2, width=4.5, height=3.6)
        left.contour(*sides, surface.view(81, 81).T, levels, colors="0.7")
        left.plot(*plane[surface.argmin()], "k*", markersize=10)
        for rate, style in zip(rates.values(), ("o-", "s--"), strict=True):
            path = descend(loss, start, rate, steps)
            left.plot(*path.T, style, markersize=3)
            fell = torch.vmap(loss)(*path.T)
            right.semilogy(fell, style, markersize=3, label=f"rate {rate:.2f}")
        left.set(xlim=w, ylim=b, xlabel="w", ylabel="b", title="lines of equal loss")
        right.set(xlim=(0, 50), ylim=(1e-6 * high, 10 * high), xlabel="step")
        right.set(ylabel="loss", title=f"loss in {steps} steps")
        right.minorticks_off()  # half of the drawing time
        right.legend(loc="lower left")
        named = " and ".join(f"{rate:.2f}" for rate in rates.values())
        return figure, (
            f"Left, {steps} steps from one point towards the lowest, marked by a star, "
            f"at the rates {named}; right, the loss at each step."
        )

    span = {"min": 0, "max": 1.6 * max(rates), "step": min(rates) / 10}
    return Live(
        draw,
        steps=ipywidgets.IntSlider(20, max=50, description="steps"),
        first=ipywidgets.FloatSlider(rates[0], **span, description="rate ●"),
        second=ipywidgets.FloatSlider(rates[1], **span, description="rate ■"),
    )
