"""Chapter 5c: which heads look back, and tales whose hero is exchanged."""

import pytest
import torch
from models import village_tokenizer

from ch05_pretraining import pictures
from ch05_pretraining.copying import (
    about_somebody_else,
    all_attention_weights,
    look_back_scores,
)
from shared import ladder
from shared.ch05 import new_storyteller
from shared.svg import color_of, mix


@pytest.fixture(scope="module")
def tokenizer():
    return village_tokenizer(300)


@pytest.fixture(scope="module")
def exam():
    return ladder.exam(4, simple=True)


@torch.no_grad()
def test_look_back_scores_are_those_of_a_loop(tokenizer, exam):
    torch.manual_seed(1)
    model = new_storyteller(emb_dim=16, n_heads=2, larger=8).eval()
    scores = look_back_scores(model, tokenizer, exam, ["what", "who"])
    wanted = torch.zeros(2, 2)
    count = 0
    for tale in exam:
        ids, marks = ladder.encode_tale(tokenizer, tale)
        weights = all_attention_weights(
            model, torch.tensor([[ladder.end_of(tokenizer), *ids]])
        )
        for kind, number in marks:
            before = [i for i in range(number) if ids[i] == ids[number]]
            if kind in ("what", "who") and before:
                count += 1
                for block in range(2):
                    for head in range(2):  # the end stands in front: one further on
                        seen = [weights[block][0, head, number, i + 1] for i in before]
                        wanted[block, head] += sum(seen)
    assert count > 3
    assert torch.allclose(scores, wanted / count, atol=1e-6)


def test_scores_need_a_word_that_comes_back(tokenizer, exam):
    model = new_storyteller(emb_dim=16, n_heads=2).eval()
    with pytest.raises(ValueError, match="of the kinds who.* give more tales"):
        look_back_scores(model, tokenizer, [], ["who"])
    with pytest.raises(ValueError, match="of the kinds when"):
        look_back_scores(model, tokenizer, exam, ["when"])


def test_a_tale_of_somebody_else_differs_in_the_name_alone(tokenizer):
    exam = ladder.exam(30, simple=True)
    (gus,) = tokenizer.encode(" Gus")
    pairs = list(about_somebody_else(tokenizer, exam, "Gus"))
    names = {name for tale in exam for name in tale.owners().values()}
    found = set()
    for text, other in pairs:
        assert other[-1] == gus and gus not in text
        changed = text != other
        assert (text[changed] == text[-1]).all() and (other[changed] == gus).all()
        assert changed[:-1].any()  # the name has been there before
        found.add(tokenizer.decode([text[-1].item()]).strip())
        begins = tokenizer.decode(text[1:].tolist())
        assert any(tale.text.startswith(begins) for tale in exam)
    assert len(pairs) > 30 and len(found) > 10 and "Gus" not in found
    assert found & names


def test_tales_of_the_stranger_are_left_out(tokenizer):
    exam = [tale for tale in ladder.exam(200, simple=True) if "Gus" in tale.text]
    assert exam and not list(about_somebody_else(tokenizer, exam, "Gus"))
    with pytest.raises(ValueError, match="'Xanthippe' is . tokens; give a name"):
        list(about_somebody_else(tokenizer, exam, "Xanthippe"))


def test_a_picture_colours_what_a_head_looks_at():
    tokens = ["", "Ben", " met", " To", "by", ".", " He", " said"]
    seen = [0.0, 0.04, 0.1, 0.0, 0.3, 0.56, 0.0, 0.0]
    svg = pictures.looks_back(tokens, [("head 1.3", 7, seen, "orange")]).svg
    shades = [mix(color_of("orange"), share) for share in (0.25, 0.5, 0.85)]
    assert [svg.count(f'fill="{shade}"') for shade in shades] == [1, 1, 1]
    assert "head 1.3" in svg and ">Ben<" in svg and ">by<" in svg


def test_a_long_text_is_broken_between_words():
    tokens = ["", *([" vil", "lage"] * 60)]
    svg = pictures.looks_back(tokens, []).svg
    rows = {}
    for part in svg.split("<text ")[1:]:
        y = part.split(' y="')[1].split('"')[0]
        rows.setdefault(y, []).append(part.split(">")[1].split("<")[0])
    assert len(rows) > 3
    assert all(
        row[0] in ("", "vil") and row[-1] in ("", "lage") for row in rows.values()
    )
