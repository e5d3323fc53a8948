"""Scores of stories by rule, on good and bad stories, and requests for tales."""

import doctest
import json

import pandas as pd
import pytest

from ch07_instructions import stories as module
from ch07_instructions.make_entries import SOURCE, STORY_KINDS, read_kinds
from ch07_instructions.stories import (
    ask_in_every_way,
    asked_words,
    beginning_of,
    copied_share,
    has_ending,
    has_one_hero,
    names_in,
    nearest_stories,
    repeated_fours,
    score_stories,
    uses_word,
    was_cut,
)
from shared.ch05 import load_base_tokenizer
from shared.ch07 import load_instructions, split_entries
from shared.data import load_text

TALES = json.loads(load_text("tales"))
GOOD = (
    "Tim had a red kite. One day it flew into a tree, and Tim climbed up to get it. "
    '"You are braver than I am," said his sister Mia. Tim laughed and gave her the '
    "string."
)
REQUEST = {
    "instruction": "Write a story with the words kite, brave and climb.",
    "input": "",
    "output": GOOD,
    "kind": "words",
    "family": "story",
    "group": "tale-1",
}
ABOUT = {
    **REQUEST,
    "kind": "about",
    "instruction": "Tell a story about a kite in a tree.",
}
FINISH = {
    **REQUEST,
    "kind": "finish",
    "instruction": "Finish this story: Tim had a red kite.",
}


@pytest.fixture(scope="module")
def parts():
    return split_entries(load_instructions())


def stories_of(part):
    return [entry for entry in part if entry["family"] == "story"]


def test_its_examples_are_true():
    assert doctest.testmod(module) == (0, 1)


# What was asked for


@pytest.mark.parametrize(
    ("kind", "request_line", "words"),
    [
        ("words", "Write a story with the words kite, brave and climb.", 3),
        ("words", "My words are Kite, Brave and Climb. Tell me a story.", 3),
        ("words", "Use kite, brave, and climb!", 3),
        ("words", "Write a story.", 0),
    ],
)
def test_three_words_are_asked_for(kind, request_line, words):
    entry = {"kind": kind, "instruction": request_line}
    assert asked_words(entry) == ["kite", "brave", "climb"][:words]


def test_small_words_are_not_asked_for():
    entry = {"kind": "about", "instruction": "Tell me a story about a fox who is shy."}
    assert asked_words(entry) == ["fox", "shy"]
    entry["instruction"] = "My story should be about a dog who has no bone. Go on."
    assert asked_words(entry) == ["dog", "bone"]
    assert asked_words({**entry, "instruction": "Tell a story."}) == []
    assert asked_words(FINISH) == []


def test_every_request_of_the_data_is_understood(parts):
    kinds = read_kinds(SOURCE.read_text(encoding="utf-8"))
    wordings = {wording for name in STORY_KINDS for wording in kinds[name].wordings}
    assert len(wordings) == 45
    for entry in stories_of(parts[0] + parts[1] + parts[2]):
        tale = TALES[int(entry["group"].removeprefix("tale-")) - 1]
        for line in entry["instruction"], entry["rewording"]:
            request = {**entry, "instruction": line}
            if entry["kind"] == "words":
                assert asked_words(request) == tale["words"]
            elif entry["kind"] == "about":
                words = asked_words(request)
                assert words and set(words) <= set(tale["about"].split())
            else:
                assert beginning_of(request) + entry["output"] == tale["text"]


def test_a_word_is_found_in_any_form_and_only_as_a_word():
    assert uses_word("climb", "He climbed up.") and uses_word("Fox", "the fox's tail")
    assert uses_word("brave", GOOD) and uses_word("fly", "It FLEW away")
    assert not uses_word("car", "She cared for the cart.")
    assert not uses_word("kite", "")


# Names


@pytest.mark.parametrize(
    ("story", "names"),
    [
        (GOOD, "Tim Tim Mia Tim"),
        ("There was a fox named Ben. He ran.", "Ben"),
        ("Lily had a cat. Lily loved it.", "Lily Lily"),  # only begins sentences
        ("Lily had a cat.", ""),  # once: it could be any word
        ("Then he ran. Then he sat. She ran. She sat.", ""),
        ("Birds sang. Birds flew. All the birds were gone.", ""),
        ('"Mom," said Tom, "look!" On Monday I saw Mom and Grandpa.', "Tom"),
        ("He met Mrs. Hill. Mrs. Hill waved.", "Hill Hill"),
        ("It was Sara's ball, and I took it.", "Sara"),
        ('He said, "Stop!" and she said, "Go!"', ""),
        ("", ""),
    ],
)
def test_names_are_found(story, names):
    assert names_in(story) == names.split()


@pytest.mark.parametrize(
    ("story", "one"),
    [
        (GOOD, True),
        ("A mole sat in the sun. He was warm.", None),
        ("There was a fox named Ben. He ran. Then Tom ate. Tom slept well.", False),
        ("There was a fox named Ben. He ran and slept.", False),  # never comes back
        ("A girl named Ana met Bo. Ana and Bo and Bo's dog ran.", False),
        ("A girl named Ana met Bo. Ana and Bo ran.", True),
    ],
)
def test_the_hero_keeps_the_name(story, one):
    assert has_one_hero(story) is one


def test_nearly_every_tale_has_one_hero_or_nobody_with_a_name():
    found = [has_one_hero(tale["text"]) for tale in TALES]
    assert found.count(False) <= 5 and found.count(None) <= 40


# Ending, repeats, copies


@pytest.mark.parametrize("end", [".", "!", "?", '."', '!"', "?'", ".\n"])
def test_a_story_ends_where_a_sentence_ends(end):
    assert has_ending(f"They went home{end}")


@pytest.mark.parametrize("end", ["", ",", " and", ';"', ". And then he", '"', ":"])
def test_a_story_without_its_last_sentence_has_no_ending(end):
    assert not has_ending(f"They went home{end}")
    assert not has_ending("")


def test_four_words_that_come_again_are_counted():
    assert repeated_fours(GOOD) == 0
    assert repeated_fours("He ran to the tree. He ran to the house.") == 1
    assert repeated_fours("He ran to the tree. He RAN, to the tree!") == 2
    assert repeated_fours("go go go go go go") == 2
    assert repeated_fours("Too short.") == repeated_fours("") == 0


def test_what_other_stories_have_is_copied():
    assert copied_share(GOOD, [GOOD]) == 1
    assert copied_share(GOOD, ["A goat ate the whole tent."]) == 0
    assert copied_share("One day a dog ran.", ["There, one day a dog sat."]) == 0.5
    assert copied_share("Two words.", [GOOD]) == copied_share(GOOD, []) == 0


def test_an_answer_that_fills_its_limit_was_cut():
    tokenizer = load_base_tokenizer()
    length = len(tokenizer.encode(GOOD))
    assert was_cut([GOOD, "Short."], tokenizer, length) == [True, False]
    assert was_cut([GOOD], tokenizer, length + 1) == [True]  # a token for its space
    assert was_cut([GOOD], tokenizer, length + 2) == [False]


# The table


def test_a_good_story_scores_everything():
    scores = score_stories([REQUEST, ABOUT, FINISH], [GOOD] * 3)
    columns = ["kind", "words", "all_words", "one_name", "ended", "no_repeats"]
    assert list(scores.columns) == columns
    assert list(scores["kind"]) == list(STORY_KINDS)
    assert list(scores.loc[0, columns[1:]]) == [1, 1, 1, 1, 1]
    assert scores.loc[1, "words"] == 1 and pd.isna(scores.loc[1, "all_words"])
    assert scores.loc[2, ["words", "all_words"]].isna().all()


def test_each_fault_costs_its_own_score():
    bad = "There was a boy named Tim. He had a kite. Ben ran and ran. Then Ben"
    scores = score_stories([REQUEST], [bad]).iloc[0]
    assert scores["words"] == pytest.approx(1 / 3) and scores["all_words"] == 0
    assert scores["one_name"] == 0 and scores["ended"] == 0
    assert scores["no_repeats"] == 1
    again = GOOD + " One day it flew into a tree."
    assert score_stories([REQUEST], [again]).iloc[0]["no_repeats"] == 0
    assert score_stories([REQUEST], [GOOD], [True]).iloc[0]["ended"] == 0
    assert pd.isna(score_stories([REQUEST], ["A fox ran."]).iloc[0]["one_name"])


def test_the_given_beginning_is_part_of_the_story():
    assert beginning_of(FINISH) == "Tim had a red kite. " and beginning_of(ABOUT) == ""
    other = 'It flew away. "I see it," said Ben. Ben found it.'
    scores = score_stories([FINISH, REQUEST], [other, other])
    assert list(scores["one_name"]) == [1, 1]  # one "Tim" that begins could be a word
    given = {**FINISH, "instruction": "Finish this story: A boy named Tim had a kite."}
    assert score_stories([given], [other]).iloc[0]["one_name"] == 0
    copied = "A boy named Tim had a kite."
    assert score_stories([given], [copied]).iloc[0]["no_repeats"] == 0


def test_no_answer_scores_nothing():
    scores = score_stories([REQUEST], [""]).iloc[0]
    assert scores["words"] == scores["all_words"] == scores["ended"] == 0
    assert pd.isna(scores["one_name"])
    assert len(score_stories([], [])) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="1 entries, 2 answers and 1 values of cut"):
        score_stories([REQUEST], [GOOD, GOOD])
    with pytest.raises(ValueError, match="1 answers and 3 values"):
        score_stories([REQUEST], [GOOD], [True] * 3)
    with pytest.raises(ValueError, match="kind 'tense' asks for no story"):
        score_stories([{**REQUEST, "kind": "tense"}], ["Past."])


def test_the_tales_themselves_score_almost_everything(parts):
    entries = stories_of(parts[2])
    scores = score_stories(entries, [entry["output"] for entry in entries])
    means = scores.mean(numeric_only=True)
    assert means["all_words"] == means["ended"] == 1
    assert means["one_name"] > 0.9 and means["no_repeats"] > 0.9


# More requests, and the baseline


def test_each_tale_is_asked_for_in_every_way(parts):
    entries = stories_of(parts[2])
    asked = ask_in_every_way(entries)
    groups = {entry["group"] for entry in entries}
    assert {entry["group"] for entry in asked} == groups
    heads = {
        "words": "Write a story with the words",
        "about": "Tell a story about",
        "finish": "Finish this story:",
    }
    for kind, head in heads.items():
        mine = [entry for entry in asked if entry["kind"] == kind]
        wanted = groups if kind != "finish" else {entry["group"] for entry in mine}
        assert {entry["group"] for entry in mine} == wanted and len(mine) > 30
        assert len(mine) == len(wanted)  # each once
        assert all(entry["instruction"].startswith(head) for entry in mine)
        assert len({entry["rewording"].split()[0] for entry in mine}) > 1
    assert list(asked[0]) == list(entries[0])
    assert ask_in_every_way([]) == []


def test_the_nearest_story_has_most_of_the_words():
    fox = {**REQUEST, "output": "A fox ate a plum. A fox slept."}
    kite = {**REQUEST, "output": "A brave girl climbed after a kite."}
    tense = {**REQUEST, "family": "closed", "kind": "tense", "output": "kite climb"}
    plum = {**ABOUT, "instruction": "Tell a story about two plums."}
    known = [fox, kite, tense]
    assert nearest_stories(known, [REQUEST, plum]) == [kite["output"], fox["output"]]
    owl = {**FINISH, "instruction": "Finish this story: The girl climbed the tree."}
    assert nearest_stories(known, [owl]) == [kite["output"]]
    nobody = {**ABOUT, "instruction": "Tell a story about an owl."}
    assert nearest_stories(known, [nobody]) == [fox["output"]]  # the first of equals


def test_a_rare_word_counts_more_than_a_common_one():
    texts = ["A dog met a fox.", "The dog bit the fox.", "A dog ate a plum."]
    known = [{**REQUEST, "output": text} for text in texts]
    asked = {**REQUEST, "instruction": "Write a story with dog, fox and plum."}
    assert nearest_stories(known, [asked]) == [texts[2]]


def test_the_nearest_training_story_seldom_has_all_three_words(parts):
    entries = [entry for entry in stories_of(parts[2]) if entry["kind"] == "words"]
    near = nearest_stories(parts[0], entries)
    means = score_stories(entries, near).mean(numeric_only=True)
    assert means["all_words"] < 0.2 and means["ended"] == 1
