"""What a page refuses: models, tokenizers, labels, names, sizes; and it stays whole."""

import re

import pytest
import torch
from models import TINY, random_gpt

from shared.appendix_e import merge_lora, replace_linear_with_lora
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import load_storyteller
from shared.ch06 import GPTClassifier
from shared.ch08 import SMOLLM2_135M, LlamaModel
from shared.page import build_page, save_page
from shared.page_parts.checks import check_size


def tiny(**changes):
    """A random GPT with the storyteller's tokens."""
    return random_gpt({**TINY, "vocab_size": 1000, "context_length": 64, **changes})


@pytest.fixture(scope="module")
def tokens():
    return load_storyteller()[1]


def with_lora(model):
    replace_linear_with_lora(model.requires_grad_(False), 2, 4)
    return model


def with_nan(model):
    with torch.no_grad():
        model.trf_blocks[1].ff.layers[0].weight[0, :3] = torch.nan
    return model


def with_another_part(model, name, part):
    setattr(model.trf_blocks[0], name, part)
    return model


BAD_MODELS = {
    "no module": (lambda: {"a": 1}, TypeError, "dict, not a GPTModel"),
    "a layer": (
        lambda: torch.nn.Linear(2, 2),
        TypeError,
        "Linear, without the settings",
    ),
    "lora": (lambda: with_lora(tiny()), TypeError, "merge_lora"),
    "nan": (
        lambda: with_nan(tiny()),
        ValueError,
        r"3 of the 2,304 numbers in trf_blocks.1",
    ),
    "relu": (
        lambda: with_another_part(tiny(), "ff", torch.nn.ReLU()),
        TypeError,
        "trf_blocks.0.ff is a ReLU",
    ),
    "narrow": (
        lambda: with_another_part(tiny(), "ff", tiny(emb_dim=12).trf_blocks[0].ff),
        TypeError,
        "trf_blocks.0.ff.layers.0.bias has the shape",
    ),
    "classifier": (
        lambda: GPTClassifier(tiny(), 3, 999),
        ValueError,
        "Name its classes",
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_no_page_can_hold(name, tokens, tmp_path):
    make, error, says = BAD_MODELS[name]
    with pytest.raises(error, match=says):
        save_page(make(), tokens, tmp_path / "page.html")
    assert not [*tmp_path.iterdir()]


def test_chapter_8_s_model_is_refused(tokens):
    config = {**SMOLLM2_135M, "vocab_size": 1000, "context_length": 64, "emb_dim": 24}
    config |= {"n_heads": 4, "n_kv_heads": 2, "n_layers": 1, "hidden_dim": 48}
    with pytest.raises(TypeError, match="is a LlamaModel; a page reads the GPTModel"):
        build_page(LlamaModel(config), tokens)


def test_merged_lora_is_welcome(tokens):
    model = with_lora(tiny())
    merge_lora(model)
    build_page(model, tokens)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"labels": ("a", "b")}, ValueError, "leave the labels out"),
        ({"style": "haiku"}, ValueError, "alpaca, chat, plain, not 'haiku'"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer is a str"),
        ({"tokenizer": None}, TypeError, "tokenizer is a NoneType"),
        (
            {"tokenizer": BPETokenizer()},
            ValueError,
            "has 256 tokens and the model 1,000",
        ),
        ({"path": "page.txt"}, ValueError, "name it page.txt.html"),
        ({"path": "there.html"}, FileExistsError, "there.html exists already"),
    ],
)
def test_arguments_that_do_not_fit(given, error, says, tokens, tmp_path):
    (tmp_path / "there.html").write_text("mine")
    given = {"tokenizer": tokens, "path": "page.html", **given}
    path, tokenizer = tmp_path / given.pop("path"), given.pop("tokenizer")
    with pytest.raises(error, match=re.escape(says) if "name it" in says else says):
        save_page(tiny(), tokenizer, path, **given)
    assert [p.name for p in tmp_path.iterdir()] == ["there.html"]
    assert (tmp_path / "there.html").read_text() == "mine"


@pytest.mark.parametrize("labels", ["ab", ("a",), ("a", ""), ("a", "b", "c")])
def test_labels_that_are_not_one_for_each_class(labels, tokens):
    with pytest.raises(ValueError, match="has 2 classes|give a name"):
        build_page(GPTClassifier(tiny(), 2, 999), tokens, labels=labels)


def test_a_page_is_replaced_only_if_that_is_allowed_and_whole(tokens, tmp_path):
    path = save_page(tiny(), tokens, tmp_path / "page.html", title="first")
    with pytest.raises(ValueError):
        save_page(with_nan(tiny()), tokens, path, overwrite=True)
    assert "<title>first</title>" in path.read_text(encoding="utf-8")
    save_page(tiny(), tokens, str(path), title="second", overwrite=True)
    assert "<title>second</title>" in path.read_text(encoding="utf-8")
    assert [*tmp_path.iterdir()] == [path]


def test_a_large_page_is_written_only_if_asked_for():
    with torch.device("meta"):
        gpt = GPTModel({**TINY, "emb_dim": 768, "n_layers": 12, "vocab_size": 50257})
    n = sum(p.numel() for p in gpt.parameters())
    with pytest.raises(ValueError, match=r"make a page of \d{3} MB.*--large"):
        check_size(n, False)
    check_size(n, True)
    with pytest.raises(ValueError, match="a browser can hold 400 MB"):
        check_size(1_558_000_000, True)
