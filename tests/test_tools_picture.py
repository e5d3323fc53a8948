"""The picture of the front page shows what the base model does."""

from pathlib import Path

import pytest
import torch

from shared.ch05 import load_base, load_base_tokenizer, text_to_token_ids
from tools import picture

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def parts():
    return load_base(), load_base_tokenizer()


def test_the_head_looks_at_what_came_after_the_word_before(parts):
    model, tokenizer = parts
    ids = text_to_token_ids(picture.BEGINNING, tokenizer)
    given = picture.look_back(model, ids)
    assert given.shape == (ids.shape[1],)
    assert given.sum().item() == pytest.approx(1, abs=1e-4)
    tokens = [tokenizer.decode([i]) for i in ids[0].tolist()]
    after = tokens.index(tokens[-1]) + 1
    assert tokens[after] == " kite" and given.argmax() == after


def test_it_draws_the_story_that_the_model_tells(parts):
    model, tokenizer = parts
    story = picture.tell(model, tokenizer, picture.BEGINNING)
    assert story.startswith(picture.BEGINNING) and "<|endoftext|>" not in story
    drawn = [text.words for text in picture.draw(model, tokenizer).texts]
    assert " ".join(story.split()) in " ".join(" ".join(drawn).split())
    with torch.no_grad():
        ids = text_to_token_ids(picture.BEGINNING, tokenizer)
        best = model(ids)[0, -1].argmax().item()
    assert tokenizer.decode([best]).strip() in drawn


def test_the_picture_shows_its_beginning():
    svg = (ROOT / "docs/pictures/what-you-build.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and picture.BEGINNING in svg


def test_the_command_writes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "NEW_TOKENS", 5)
    picture.main([str(tmp_path / "picture.svg")])
    assert (tmp_path / "picture.svg").read_text(encoding="utf-8").endswith("</svg>\n")
