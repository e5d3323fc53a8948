"""The little stories that the course brings, and what can be asked of them by rule."""

import json
import re
from collections import Counter

import pytest

from ch07_instructions.word_forms import word_forms
from shared.data import load_text

TALES = json.loads(load_text("tales"))


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def test_there_are_260_and_no_two_are_asked_for_in_the_same_way():
    assert len(TALES) == 260
    assert len({tale["about"] for tale in TALES}) == 260
    assert len({tuple(sorted(tale["words"])) for tale in TALES}) == 260
    assert len({tale["text"] for tale in TALES}) == 260


@pytest.mark.parametrize("tale", TALES, ids=lambda tale: tale["about"])
def test_a_tale_keeps_its_promises(tale):
    text = tale["text"]
    assert set(tale) == {"about", "words", "text"} and len(tale["words"]) == 3
    assert all(word_forms(word) & set(words(text)) for word in tale["words"])
    assert text.isascii() and text == " ".join(text.split())
    assert text[-1] in '.!?"' and text.count('"') % 2 == 0
    assert 65 <= len(text.split()) <= 120
    assert re.match(r"[a-z' -]+$", tale["about"]) and len(tale["about"].split()) > 3


def test_hardly_any_tale_repeats_four_words():
    repeats = 0
    for tale in TALES:
        found = words(tale["text"])
        fours = Counter(zip(found, found[1:], found[2:], found[3:], strict=False))
        repeats += sum(count - 1 for count in fours.values())
    assert repeats <= 10


def test_the_tales_begin_in_many_ways():
    openings = Counter(" ".join(tale["text"].split()[:3]) for tale in TALES)
    assert max(openings.values()) <= 15
