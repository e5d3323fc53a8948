"""Which forms a word has: those of English spelling, and hardly another word's."""

import doctest

import pytest

from ch07_instructions import word_forms as module
from ch07_instructions.word_forms import word_forms


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("climb", "climb climbs climbed climbing"),
        ("dance", "dance dances danced dancing"),  # drops its e
        ("see", "see sees seeing saw seen"),  # keeps it
        ("dye", "dye dyes dyed dyeing"),
        ("tie", "tie ties tied tying"),
        ("hop", "hop hops hopped hopping"),  # doubles its last letter
        ("stop", "stop stops stopped stopping"),
        ("quiz", "quiz quizzes quizzed quizzing"),
        ("play", "play plays played playing"),  # not after two vowels
        ("snow", "snow snows snowed snowing"),
        ("fix", "fix fixes fixed fixing"),
        ("visit", "visit visits visited visiting"),  # two syllables
        ("rain", "rain rains rained raining"),
        ("cry", "cry cries cried crying"),
        ("happy", "happy happier happiest"),
        ("big", "big bigger biggest"),
        ("brave", "brave braver bravest"),
        ("kite", "kite kites"),
        ("bus", "bus buses"),
        ("fox", "fox foxes"),
        ("wish", "wish wishes wished wishing"),
        ("church", "church churches"),
        ("kiss", "kiss kisses kissed kissing"),
        ("potato", "potato potatoes"),
        ("puppy", "puppy puppies"),
        ("toy", "toy toys"),
    ],
)
def test_regular_spelling(word, forms):
    assert set(forms.split()) <= word_forms(word)


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("be", "am is are was were been being"),
        ("go", "goes going went gone"),
        ("fly", "flies flying flew flown"),
        ("run", "runs running ran"),
        ("swim", "swims swimming swam swum"),
        ("write", "writes writing wrote written"),
        ("forget", "forgot forgotten"),
        ("shine", "shines shining shone shined"),
        ("child", "children"),
        ("mouse", "mice"),
        ("knife", "knives"),
        ("good", "better best"),
        ("sheep", "sheep"),
    ],
)
def test_irregular_words(word, forms):
    assert set(forms.split()) <= word_forms(word)


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("car", "cared caring care"),
        ("win", "wind winds wine"),
        ("hop", "hope hoped hoping"),
        ("star", "stare stared staring"),
        ("plan", "plane planes"),
        ("pin", "pine pines"),
        ("fall", "falled fallow"),
        ("run", "runed runned rung"),
        ("see", "seed seeed"),
        ("fly", "flied"),
        ("bring", "bringed"),
        ("cat", "catch cattle"),
        ("sing", "singed singe"),
        ("tap", "tape taped"),
        ("bee", "been"),
        ("bus", "buss"),
        ("mat", "matter"),
        ("corn", "corner"),
        ("bit", "bitter"),
        ("wand", "wander"),
        ("ham", "hammer"),
        ("for", "forest"),
    ],
)
def test_no_other_words_and_no_wrong_past(word, others):
    assert word_forms(word).isdisjoint(others.split())


def test_every_form_begins_like_the_word_or_is_in_the_tables():
    words = ["climb", "dance", "cry", "hop", "box", "tie", "free", "quiz", "a", "sky"]
    for word in words:
        stem = word.removesuffix("ie").removesuffix("e").removesuffix("y")
        assert all(form.startswith(stem) for form in word_forms(word)), word
        assert word in word_forms(word)


def test_the_tables_hold_a_word_once():
    rows = [row.split() for row in module.IRREGULAR_VERBS.split(", ")]
    assert all(len(row) == 3 for row in rows)
    bases = [row[0] for row in rows if row[0] != "be"]
    assert len(bases) == len(set(bases))
    others = [row.split()[0] for row in module.IRREGULAR_OTHERS.split(", ")]
    assert not set(bases) & set(others)


def test_its_example_is_true():
    assert doctest.testmod(module) == (0, 2)
