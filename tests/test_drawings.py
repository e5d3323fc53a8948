"""Drawings: every text fits and can be read, the same SVG comes out each time."""

import base64
import re
import xml.etree.ElementTree as ElementTree

import nbformat
import pytest
import torch

from shared import svg
from shared.drawings import Drawing
from shared.svg import COLORS, Box, contrast, text_width
from tools.export import ROOT, chapter_notebooks

ALT = "A drawing of everything that can be drawn."
WORDS = ["The", " cat", " sat"]


def everything():
    """A drawing that uses each method."""
    d = Drawing(720, 700, ALT)
    a, b, c = d.chain(20, 30, ["text", "token ids\nx 12", "logits"], ["(T,)"], gap=50)
    d.arrow(c, (660, 50), label="loss", shape="(1,)")
    for number, color in enumerate(COLORS):
        d.box(20 + 85 * number, 100, color, "(B, T)", color, width=80)
    rail = d.rail((100, 680), (100, 180), "residual\nstream")
    way = [d.box(150, 320, "attention", "(B, T, C)"), d.box(150, 240, "dropout")]
    d.frame([d.branch(rail, way), *way], "x 12")
    d.branch(d.rail((300, 660), (500, 660), "stream"), [d.box(330, 610, "f")])
    weights = torch.tensor([[1.0, -0.5, 0.0], [0.25, 0.5, 0.125]])
    m = d.matrix(420, 240, weights, ["a", "b"], WORDS, "weights", "(T, T)")
    d.mark(m.row(0))
    d.mark(m.column(1), "blue")
    d.matrix(600, 240, [[True, None, "x"]], color="black")
    t = d.tokens(420, 400, WORDS, [1, 2, 50256], color=["sky", "yellow", "orange"])
    d.brace(t[1:], "two of them", above=True)
    d.brace(t, "all")
    d.text(600, 470, "free text\nin two lines", size=12, bold=True)
    d.arrow(Box(420, 500, 10, 10), Box(500, 550, 10, 10), label="y", bend="across")
    d.arrow(Box(560, 500, 10, 10), Box(660, 600, 10, 10), shape="(C,)", bend="down")
    d.arrow((420, 620), (520, 520), via=[(420, 600), (520, 600)], tip=False)
    return d


def test_every_text_can_be_read_on_what_is_behind_it():
    drawing = everything()
    drawing.steps(["step 1", "step 2"])
    assert len(drawing.texts) > 50
    for text in drawing.texts:
        assert contrast(text.ink, text.behind) >= 4.5, text
    for color in COLORS.values():  # in cells of any shade
        for share in range(0, 101, 5):
            fill = svg.mix(color, share / 100)
            assert contrast(svg.readable(svg.INK, fill), fill) >= 4.5


def test_contrast_is_that_of_the_guidelines():
    """Published values: black on white has 21, #767676 just enough for text."""
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#FFFFFF", "#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#FFFFFF", "#777777") == pytest.approx(4.48, abs=0.005)


def test_a_panel_covers_all_that_a_page_s_theme_could_change():
    """The first thing drawn is as large as the drawing, and nothing is transparent."""
    root = ElementTree.fromstring(everything().svg)
    panel = next(x for x in root if x.tag.endswith("rect"))
    assert (panel.get("width"), panel.get("height")) == ("720", "700")
    assert panel.get("fill") == svg.PANEL
    assert "opacity" not in everything().svg
    assert "currentColor" not in everything().svg


def test_it_is_the_same_svg_every_time():
    one, other = everything(), everything()
    assert one.svg == other.svg
    assert one._repr_mimebundle_() == other._repr_mimebundle_()
    assert " id=" not in one.svg  # ids would meet those of the page's other drawings
    for number in re.findall(r'"(-?\d+\.\d+)"', one.svg):
        assert re.fullmatch(r"-?\d+\.\d", number) or number == "0.35", number


def test_a_notebook_shows_an_image_with_its_text():
    shown = Drawing(100, 50, 'A "drawing"\n  of <nothing>.')._repr_mimebundle_()
    assert list(shown) == ["text/plain", "text/html"]
    assert shown["text/plain"] == 'A "drawing" of <nothing>.'
    assert 'alt="A &quot;drawing&quot; of &lt;nothing&gt;."' in shown["text/html"]
    data = re.search('data:image/svg[+]xml;base64,([^"]*)', shown["text/html"])[1]
    root = ElementTree.fromstring(base64.b64decode(data))
    assert root[0].tag.endswith("title") and root[0].text == shown["text/plain"]


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_drawing_without_text_is_refused(alt):
    with pytest.raises(ValueError, match="the drawing's text is empty"):
        Drawing(100, 50, alt)


@pytest.mark.parametrize("size", [(721, 50), (0, 50), (100, 0)])
def test_a_drawing_has_a_size_that_fits_a_page(size):
    with pytest.raises(ValueError, match="it may be 720 wide"):
        Drawing(*size, ALT)


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: d.text(10, 50, "out on the left"),
        lambda d: d.text(190, 50, "out on the right", anchor="start"),
        lambda d: d.text(100, 3, "out above"),
        lambda d: d.text(100, 90, "two\nlines"),
        lambda d: d.box(150, 10, "out on the right"),
        lambda d: d.tokens(150, 10, ["out", "on", "the", "right"]),
        lambda d: d.matrix(10, 40, [[1]], rows=["out on the left"]),
        lambda d: d.brace([Box(80, 70, 40, 20)], "out below"),
    ],
)
def test_what_reaches_out_of_the_drawing_is_refused(draw):
    with pytest.raises(ValueError, match="out of a drawing of 200 x 100"):
        draw(Drawing(200, 100, ALT))


@pytest.mark.parametrize("size", [{"width": 60}, {"height": 30}])
def test_a_text_larger_than_its_box_is_refused(size):
    with pytest.raises(ValueError, match="'feed-forward' needs .* pixels"):
        Drawing(200, 100, ALT).box(10, 10, "feed-forward", "(B, T, C)", **size)


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: d.box(10, 10, "a", color="red"),
        lambda d: d.arrow((0, 0), (9, 9), color="red"),
        lambda d: d.tokens(10, 10, ["a"], color="red"),
        lambda d: d.mark(Box(10, 10, 10, 10), "red"),
        lambda d: d.rail((10, 10), (10, 90), color="red"),
        lambda d: d.matrix(10, 10, [["a"]], color="red"),
    ],
)
def test_a_colour_that_is_not_there_is_refused(draw):
    with pytest.raises(ValueError, match="no colour 'red'; choose of blue, orange, "):
        draw(Drawing(200, 100, ALT))


def inside(outer, inner):
    return (
        outer.x <= inner.x
        and outer.y <= inner.y
        and outer.x + outer.width >= inner.x + inner.width
        and outer.y + outer.height >= inner.y + inner.height
    )


def test_texts_lie_in_their_boxes_and_boxes_are_as_wide_as_they_need():
    d = Drawing(720, 200, ALT)
    small, large = (
        d.box(10, 10, "Wq"),
        d.box(60, 10, "multi-head attention\n(12 heads)"),
    )
    (token,) = d.tokens(300, 10, ["WWWWWW"], [50256])
    cells = d.matrix(400, 60, [["embedding", "a"]], columns=["x", "positions"]).cells[0]
    holders = [small, large, large, token, token, *cells]
    texts = [text for text in d.texts if text.words not in ("x", "positions")]
    assert len(texts) == len(holders)
    for holder, text in zip(holders, texts, strict=True):
        assert inside(holder, text.box), text
    assert cells[0].width == cells[1].width
    widths = [text_width(word, svg.SMALL) for word in ("embedding", "positions")]
    assert cells[0].width >= max(widths) + 8
    assert small.width < large.width


def test_widths_are_those_of_helvetica():
    """From the published metrics, at a size of 1000."""
    assert text_width("Hello, world", 1000) == 722 + 556 + 222 * 2 + 556 + 278 + 278 + (
        722 + 556 + 333 + 222 + 556
    )
    assert text_width("漢", 10) == 10  # what is not in the table counts as wide
    assert text_width("i", 14, bold=True) > text_width("i", 14)


def arrowheads(d):
    """The points of the arrows, in order."""
    return [
        tuple(map(float, p.split(" ")[0].split(",")))
        for p in re.findall(r'<polygon points="([^"]*)"', d.svg)
    ]


def test_arrows_go_from_side_to_side():
    d = Drawing(400, 200, ALT)
    a, b, c = Box(10, 10, 40, 20), Box(100, 10, 40, 20), Box(10, 100, 40, 20)
    for start, end in [(a, b), (b, a), (a, c), (c, a)]:
        d.arrow(start, end)
    assert arrowheads(d) == [b.left, a.right, c.top, a.bottom]


def test_a_corner_is_turned_once_and_the_way_may_be_given():
    d = Drawing(400, 200, ALT)
    a, b = Box(10, 10, 40, 20), Box(100, 100, 40, 20)
    d.arrow(a, b, bend="across")
    d.arrow(a, b, bend="down")
    d.arrow(a.bottom, b.bottom, via=[(30, 150), (120, 150)])
    lines = re.findall(r'polyline points="([^"]*)"', d.svg)
    assert lines[0].startswith("50,20 120,20 120,")
    assert lines[1].startswith("30,30 30,110 ")
    assert lines[2].startswith("30,30 30,150 120,150 120,")
    assert arrowheads(d) == [b.top, b.left, b.bottom]


@pytest.mark.parametrize("end", [(40, 190), (40, 10)])
def test_a_branch_leaves_a_rail_and_comes_back_further_on(end):
    d = Drawing(400, 200, ALT)
    first, last = Box(100, 60, 60, 20), Box(100, 120, 60, 20)
    if end[1] == 10:
        first, last = last, first
    plus = d.branch(d.rail((40, 200 - end[1]), end), [first, last], gap=12)
    down = end[1] == 190
    assert plus.left[1] == (152 if down else 48)
    assert plus.top[0] == 40
    tips = arrowheads(d)[1:]  # without the rail's own
    assert tips[0] == (first.top if down else first.bottom)
    assert tips[2] == (49, plus.left[1])


def colour_of_cells(d):
    return re.findall(r'<rect [^>]*rx="0"[^>]*fill="([^"]*)"', d.svg)


def test_a_matrix_s_colours_say_how_large_its_values_are():
    d = Drawing(400, 200, ALT)
    d.matrix(10, 10, [[0.0, 0.5, 1.0, -1.0, None]])
    zero, half, one, negative, empty = colour_of_cells(d)
    assert zero == "#FFFFFF" and empty == svg.PANEL
    assert contrast(half, "#FFFFFF") < contrast(one, "#FFFFFF")
    assert one == svg.mix(COLORS["blue"], 0.7)
    assert negative == svg.mix(COLORS["vermillion"], 0.7)
    plain = Drawing(400, 200, ALT)
    plain.matrix(10, 10, [[0.0, 1.0]], shade=False)
    assert len(set(colour_of_cells(plain))) == 1


def test_a_matrix_shows_its_values_and_knows_its_rows_and_columns():
    d = Drawing(400, 200, ALT)
    m = d.matrix(50, 60, torch.tensor([[1, -2], [3, 4], [5, 6]]), cell=30)
    assert [text.words for text in d.texts] == ["1", "-2", "3", "4", "5", "6"]
    assert m.row(1) == Box(50, 90, 60, 30) and m.column(1) == Box(80, 60, 30, 90)
    assert (m.x, m.y, m.width, m.height) == (50, 60, 60, 90)
    d = Drawing(400, 200, ALT)
    d.matrix(50, 60, [[0.126, 2.0, float("-inf"), True, "a", None]], digits=1)
    shown = ["0.1", "2.0", "-inf", "1", "a"]
    assert [text.words for text in d.texts] == shown
    hidden = Drawing(400, 200, ALT)
    hidden.matrix(50, 60, [[0.126]], show=False)
    assert hidden.texts == []


def test_a_matrix_is_the_same_where_a_processor_s_last_digits_differ():
    drawn = []
    for value in (0.125, 0.12500003, 0.12499998):  # 0.12 and 0.13 are as near
        d = Drawing(400, 200, ALT)
        d.matrix(10, 10, torch.tensor([[value, 1.0]]))
        drawn.append(d.svg)
    assert drawn[0] == drawn[1] == drawn[2]


def test_labels_that_do_not_match_a_matrix_are_refused():
    for labels in ({"rows": ["a"]}, {"columns": ["a", "b", "c"]}):
        with pytest.raises(ValueError, match="zip"):
            Drawing(400, 200, ALT).matrix(50, 60, [[1, 2], [3, 4]], **labels)


def test_steps_are_columns_of_the_same_width():
    places = Drawing(300, 100, ALT).steps(["1", "2", "3"])
    assert [place.x for place in places] == [0, 100, 200]
    assert {(place.y, place.width) for place in places} == {(34, 100)}


def shown_drawings(path):
    """The stored drawings of a notebook: text and HTML."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "data:image/svg+xml" in data.get("text/html", ""):
                yield data["text/plain"], data["text/html"]


def test_every_stored_drawing_has_a_text_of_its_own():
    for path in chapter_notebooks(ROOT):
        texts = [text for text, _ in shown_drawings(path)]
        assert len(texts) == len(set(texts)), path
        for text in texts:
            assert len(text.split()) >= 5, (path, text)
