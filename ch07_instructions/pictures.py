"""The picture of a batch in chapter 7."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from shared import plots
from shared.ch07 import InstructionDataset, custom_collate_fn

COLOURS = {"prompt": plots.COLORS[5], "answer": plots.COLORS[1], "end": plots.COLORS[3]}
COLOURS |= {"padding": "#C8C8C8", "-100: no target": "white"}


def batch_of_entries(dataset: InstructionDataset, tokenizer) -> Figure:
    """Inputs and targets of one batch, a cell for each token, coloured by its role.

    `dataset` is made with `responses_only`; all of its entries are the batch.
    """
    items, end = [dataset[i] for i in range(len(dataset))], tokenizer.eot_token
    inputs, targets = custom_collate_fn(items, end)
    roles = {end: "end", -100: "-100: no target"}
    figure, axes = plt.subplots(2, 1, figsize=(9.6, 0.3 + 0.9 * len(items)))
    for i, (ids, prompt_length) in enumerate(items):
        row = len(items) - 1 - i
        for place, token in enumerate(inputs[i].tolist()):
            role = "prompt" if place < prompt_length else "answer"
            role = role if place < len(ids) else "padding"
            _draw_cell(axes[0], place, row, _word(token, tokenizer), role)
        for place, token in enumerate(targets[i].tolist()):
            role = roles.get(token, "answer")
            _draw_cell(axes[1], place, row, _word(token, tokenizer), role)
    axes[0].set(title="inputs: padded")
    axes[1].set(title="targets: shifted by one; only answers and their end count")
    limits = {"xlim": (0, inputs.shape[1]), "ylim": (0, len(items))}
    plt.setp(axes, **limits, xticks=[], yticks=[])
    patches = [plt.Rectangle((0, 0), 1, 1, fc=c, ec="grey") for c in COLOURS.values()]
    figure.legend(patches, COLOURS, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _word(token: int, tokenizer) -> str:
    """A token as text, its space and line breaks made visible."""
    if token in (-100, tokenizer.eot_token):
        return "-100" if token == -100 else "end"
    text = tokenizer.decode([token])
    return text.replace(" ", "\u2423").replace("\n", "\u21b5")


def _draw_cell(ax, place: int, row: int, word: str, role: str) -> None:
    ax.add_patch(plt.Rectangle((place, row), 1, 1, fc=COLOURS[role], ec="grey"))
    ax.text(place + 0.5, row + 0.5, word, ha="center", va="center", fontsize=7)
