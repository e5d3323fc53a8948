"""Figures: one look, readable on any page, each with a text for who cannot see it."""

import base64
import io

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from shared import plots
from tools.course import stored_run
from tools.export import ROOT, chapter_notebooks

NOTEBOOKS = [*chapter_notebooks(), *sorted(ROOT.glob("*/exercises.ipynb"))]


def pictures(notebook):
    """The outputs of a notebook that hold a picture."""
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def problems(notebook):
    """What is wrong with the stored pictures of a notebook, in words."""
    found, texts = [], []
    for output in pictures(notebook):
        texts.append(output.metadata.get("image/png", {}).get("alt", "").strip())
        if len(texts[-1].split()) < 5:
            found.append(f"no text, or next to none: {texts[-1]!r}; use plots.show")
        pixels = plt.imread(io.BytesIO(base64.b64decode(output.data["image/png"])))
        if pixels.shape[2] == 4 and pixels[..., 3].min() < 1:
            found.append(f"a dark page shines through: {texts[-1]!r}")
    if len(set(texts)) < len(texts):
        found.append("two figures with the same text")
    return found


@pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_every_stored_figure_has_a_text_and_a_background(path):
    assert not problems(stored_run(path) or pytest.skip("only read; no git here"))


def stored(figure_options=None, alt="Two points: the second lies higher."):
    """A notebook of one cell that shows a figure, as it would be stored."""
    figure, ax = plt.subplots(figsize=(1, 1), **(figure_options or {}))
    ax.plot([0, 1])
    file = io.BytesIO()
    figure.savefig(file, facecolor="auto")
    plt.close(figure)
    picture = base64.b64encode(file.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": picture})
    output.metadata = nbformat.from_dict({"image/png": {"alt": alt}} if alt else {})
    cell = nbformat.v4.new_code_cell(outputs=[output])
    return nbformat.v4.new_notebook(cells=[cell])


def test_the_rule_for_stored_figures_can_fail():
    plots.use_style()
    assert problems(stored()) == []
    assert "no text" in problems(stored(alt=None))[0]
    assert "no text" in problems(stored(alt="A figure."))[0]
    assert "shines through" in problems(stored({"facecolor": "none"}))[0]
    twice = stored()
    twice.cells *= 2
    assert problems(twice) == ["two figures with the same text"]


@pytest.fixture
def shown(monkeypatch):
    """What `show` hands to the notebook: figures and their metadata."""
    calls = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda figure, metadata: calls.append((figure, metadata)),
    )
    plt.close("all")
    return calls


def test_show_hands_over_the_last_figure_with_its_text(shown):
    plt.subplots()
    figure, _ = plt.subplots()
    plots.show("Nothing is drawn yet.")
    assert shown == [(figure, {"image/png": {"alt": "Nothing is drawn yet."}})]
    assert not plt.fignum_exists(figure.number) and len(plt.get_fignums()) == 1
    plt.close("all")


def test_show_refuses_a_figure_without_text_and_a_text_without_figure(shown):
    with pytest.raises(ValueError, match="no figure to show; draw one first"):
        plots.show("Nothing is drawn yet.")
    plt.subplots()
    with pytest.raises(ValueError, match="text is empty; say what one sees"):
        plots.show("  ")
    plt.close("all")
    assert shown == []


def brightness(color):
    """Relative luminance of a colour, as WCAG 2.2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in plt.matplotlib.colors.to_rgb(color)
    ]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def test_words_stand_out_from_the_background():
    plots.use_style()
    back = brightness(plt.rcParams["figure.facecolor"])
    for name in ("text.color", "axes.labelcolor", "xtick.labelcolor"):
        color = plt.rcParams[name]
        color = plt.rcParams["xtick.color"] if color == "inherit" else color
        assert (back + 0.05) / (brightness(color) + 0.05) >= 7


def test_a_path_shows_each_station_with_its_shape_and_numbers():
    vectors = torch.arange(32.0).view(4, 8) / 100
    heads = vectors.view(4, 2, 4).transpose(0, 1)
    ids = torch.tensor([464, 4512, 373, 2739])
    figure = plots.path(
        {"ids": ids, "vectors": vectors, "heads": heads}, list("abcd"), columns=3
    )
    axes = figure.get_axes()
    assert [ax.get_title() for ax in axes] == ["ids", "→ vectors", "→ heads", ""]
    assert [ax.get_xlabel() for ax in axes] == ["(4,)", "(4, 8)", "", "(2, 4, 4)"]
    texts = [[text.get_text() for text in ax.texts] for ax in axes]
    assert texts[0] == ["464", "4512", "373", "2739"]
    assert texts[1][:4] == ["0.00", "0.01", "0.02", "0.08"]  # row by row
    assert texts[3][:4] == ["0.04", "0.05", "0.06", "0.12"]  # the second head
    plt.close(figure)


@pytest.mark.parametrize("shape", [(), (3, 8), (1, 1, 4, 8), (3,), (2, 8, 4)])
def test_a_path_refuses_other_texts_tensors(shape):
    with pytest.raises(ValueError, match="'vectors'.*4 tokens"):
        plots.path({"vectors": torch.zeros(shape)}, list("abcd"))
