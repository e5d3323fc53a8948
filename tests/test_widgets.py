"""Pictures with controls: right numbers, other pictures when moved, nothing random."""

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from IPython.core.pylabtools import print_figure
from nbformat.v4 import new_code_cell, new_notebook

from shared import data, plots, widgets
from shared.ch02 import BPETokenizer, split_words
from shared.ch03 import CausalAttention, SelfAttention_v2
from shared.ch05 import next_token_probabilities
from tools.course import run

TOKENS = ["Soft", "rain", "fell", "on", "the", "roof"]
SENTENCE = "Those boys weighed 🙂 naïve shillings."
RATES = {"start": (-1.0, -0.5), "w": (-2, 4), "b": (-1, 3), "rates": (0.1, 0.7)}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BPETokenizer()
    tokenizer.train(data.load_text("short-story"), 1_000)
    return tokenizer


def loss(w, b):
    x = torch.arange(8.0) / 8
    return (w * x + b - (2 * x + 1)).square().mean()


def head(layer):
    """The layer's queries, keys and values of six random vectors, and these."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    return [layer.W_query(x), layer.W_key(x), layer.W_value(x)], x


def word(ids):
    return ["$a$", "中\n b"][ids[0] % 2]


def made(name, tokenizer):
    torch.manual_seed(1)
    if name == "attention_head":
        return widgets.attention_head(*head(SelfAttention_v2(3, 2))[0], TOKENS, query=2)
    if name == "merges":
        byte_wise = BPETokenizer()
        both = {"story": tokenizer, "bytes": byte_wise}
        return widgets.merges(both, split_words, "Those $ boys $.")
    if name == "sampling":
        return widgets.sampling(torch.randn(30), word, next_token_probabilities)
    return widgets.loss_surface(loss, **RATES)


def png(live):
    """The picture as IPython sends it, which is none if a figure has no axes."""
    return print_figure(live.figure, dpi=50)


MOVES = {
    "attention_head": {"query": 4, "scale": False, "mask": False},
    "merges": {"done": 1, "tokenizer": "bytes", "sentence": "Other boys."},
    "sampling": {"temperature": 0.5, "top_k": 3, "top_p": 0.3},
    "loss_surface": {"steps": 3, "first": 0.2, "second": 0.9},
}


@pytest.mark.parametrize("name", MOVES)
def test_every_control_changes_the_picture_and_its_text(name, tokenizer, capfd):
    plots.use_style()
    live = made(name, tokenizer)
    picture, text = png(live), live.metadata
    assert png(made(name, tokenizer)) == picture  # the same twice
    assert set(live.controls) == set(MOVES[name])
    for control, value in MOVES[name].items():
        kept, live.controls[control].value = live.controls[control].value, value
        assert png(live) != picture and live.metadata != text, control
        live.controls[control].value = kept
        assert png(live) == picture and live.metadata == text, control
    assert not plt.get_fignums()  # none is left for the notebook to show again
    assert capfd.readouterr() == ("", "")


def test_attention_is_that_of_chapter_3():
    layer = SelfAttention_v2(3, 2)
    (queries, keys, values), x = head(layer)
    weights = widgets.attention_steps(queries, keys, mask=False)["weights"]
    torch.testing.assert_close(weights @ values, layer(x))
    causal = CausalAttention(3, 2, context_length=6, dropout=0.0)
    (queries, keys, values), x = head(causal)
    steps = widgets.attention_steps(queries, keys)
    torch.testing.assert_close(steps["weights"] @ values, causal(x[None])[0])
    assert steps["scaled"].isneginf().equal(torch.ones(6, 6).triu(1).bool())
    bare = widgets.attention_steps(queries, keys, scale=False, mask=False)
    torch.testing.assert_close(bare["scaled"], bare["scores"])
    torch.testing.assert_close(bare["weights"], (queries @ keys.T).softmax(-1))


@pytest.mark.parametrize("text", [SENTENCE, "a", " \n\n", "aaaaaaa", "12345 $x$"])
def test_merges_are_those_of_the_tokenizer(text, tokenizer):
    for each in (tokenizer, BPETokenizer.from_gpt2()):
        leaves, made = widgets.merge_steps(each, split_words, text)
        tokens = widgets.standing([*leaves, *made])
        assert [piece.id for piece in tokens] == each.encode(text)
        for done in range(len(made) + 1):  # each merge takes one token away
            tokens = widgets.standing([*leaves, *made[:done]])
            assert len(tokens) == len(leaves) - done
            assert each.decode([piece.id for piece in tokens]) == text


def test_all_merges_of_a_new_sentence_are_shown(tokenizer):
    live = made("merges", tokenizer)
    live.controls["done"].value = 2
    live.controls["sentence"].value = SENTENCE
    n = len(widgets.merge_steps(tokenizer, split_words, SENTENCE)[1])
    assert live.controls["done"].value == live.controls["done"].max == n
    assert f"{n} of {n} merges" in live.metadata["image/png"]["alt"]


@pytest.mark.parametrize(
    "settings", [(1.0, 0, 1.0), (0.0, 0, 0.9), (1.7, 5, 1.0), (0.6, 10, 0.5)]
)
def test_the_bars_are_the_probabilities_of_chapter_5(settings):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 2
    live = widgets.sampling(logits, word, next_token_probabilities)
    for control, value in zip(live.controls.values(), settings, strict=True):
        control.value = value
    temperature, top_k, top_p = settings
    p = next_token_probabilities(logits[None], temperature, top_k or None, top_p)[0]
    wanted = p[logits.argsort(descending=True)][: widgets.BARS].tolist()
    before, after = live.figure.axes[0].containers
    drawn = [bar.get_width() for bar in after]
    assert drawn == pytest.approx([*wanted, 1 - sum(wanted)], abs=1e-6)
    assert sum(bar.get_width() for bar in before) == pytest.approx(1)
    assert f"{(p > 0).sum()} of 40" in live.figure.axes[0].get_title()


@pytest.mark.parametrize("rate", [0.1, 0.7, 2.0])
def test_the_path_is_that_of_torch_s_gradient_descent(rate):
    w, b = (torch.tensor(float(start), requires_grad=True) for start in (-1, 2))
    optimizer = torch.optim.SGD([w, b], lr=rate)
    for point in widgets.descend(loss, (-1.0, 2.0), rate, steps=8):
        assert [w.item(), b.item()] == pytest.approx(point.tolist(), rel=1e-3)
        optimizer.zero_grad()
        loss(w, b).backward()
        optimizer.step()


def test_what_the_font_lacks_or_would_read_as_a_formula():
    assert widgets.label("a b\n é") == "a·b⏎·é"
    assert widgets.label("中\t$") == r"<4e2d><9>\$"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widgets.attention_head(*[torch.ones(5, 2)] * 3, TOKENS), "T = 6"),
        (lambda: widgets.attention_head(*[torch.ones(1, 6, 2)] * 3, TOKENS), "T, D"),
        (
            lambda: widgets.attention_head(
                torch.ones(6, 2), torch.ones(6, 3), torch.ones(6, 2), TOKENS
            ),
            r"\(6, 3\)",
        ),
        (lambda: widgets.merges({"x": BPETokenizer()}, split_words, ""), "0 bytes"),
        (lambda: widgets.sampling(torch.ones(1, 9), word, None), r"\[0, -1\]"),
        (lambda: widgets.loss_surface(lambda w, b: w / 0, **RATES), "finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("typed", ["", "x" * 61, "€" * 21])
def test_a_sentence_that_cannot_be_drawn_is_answered_in_the_picture(tokenizer, typed):
    live = made("merges", tokenizer)
    live.controls["sentence"].value = typed
    assert png(live) and "room for" in live.figure.axes[0].texts[0].get_text()
    live.controls["sentence"].value = "Good again."
    assert "Good again." in live.metadata["image/png"]["alt"]


HEAD = """
from types import SimpleNamespace
import torch
from shared import plots, widgets
plots.use_style()
x = torch.eye(3)
ab = SimpleNamespace(vocab={1: b'a', 2: b'b', 3: b'ab'}, merges={(1, 2): 3})
def heated(logits, temperature, top_k, top_p):
    return (logits / temperature).softmax(-1)
def loss(w, b):
    return w * w + b * b
"""
CELLS = {
    "attention_head": "(x, x, x, ['a', 'b', 'c'])",
    "merges": "({'ab': ab}, lambda text: [text], 'abba')",
    "sampling": "(x[0], str, heated)",
    "loss_surface": "(loss, (1, 1), (-2, 2), (-2, 2), (0.1, 0.5))",
}
MOVE = """
name, control = next(iter(live.controls.items()))
control.value = {'query': 1, 'tokenizer': 'ab', 'temperature': 0.5, 'steps': 3}[name]
if name == 'tokenizer':
    live.controls['done'].value = 0
"""


def test_a_kernel_stores_one_picture_of_each_and_moves_it_in_place(tmp_path):
    """Each as it is, and again, moved by the next cell."""
    calls = [f"live = widgets.{name}{given}\nlive" for name, given in CELLS.items()]
    sources = [HEAD, *(source for call in calls for source in (call, call, MOVE))]
    notebook = tmp_path / "live.ipynb"
    nbformat.write(new_notebook(cells=list(map(new_code_cell, sources))), notebook)
    assert run(notebook, write=True).error is None
    cells = nbformat.read(notebook, as_version=4).cells[1:]
    for still, moved, move in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        assert [output.output_type for output in still.outputs] == ["display_data"]
        assert set(still.outputs[0].data) == {"image/png", "text/plain"}
        assert len(still.outputs[0].metadata["image/png"]["alt"].split()) > 5
        assert still.outputs[0].data["image/png"] != moved.outputs[0].data["image/png"]
        assert still.outputs[0].metadata != moved.outputs[0].metadata
        assert move.outputs == []
