"""Sentences in which only the order of the words says who has the thing in the end.

Anna and Ben hand things over: "On Monday dear Anna sold the bicycle to Ben." Who has
it now? Each sentence has a twin in which the two names have changed places, so that
both have the same words, and opposite answers. Written for this course; CC0.
"""

import random

import pandas as pd

NAMES = ("Anna", "Ben")  # class 0 and class 1: who has the thing in the end
OPENERS = (
    "On Monday",
    "Last week",
    "In the end",
    "After lunch",
    "Before the holidays",
    "At the station",
    "Two days ago",
    "In front of the house",
    "As far as I know",
    "To everyone's surprise",
)
KINDS = ("kind", "tired", "cheerful", "old", "young", "patient", "clever", "quiet")
ROLES = ("neighbour", "cousin", "teacher", "friend", "colleague", "dentist", "partner")
ASIDES = (
    ", after a long talk,",
    ", without a word,",
    ", as we all saw,",
    ", not for the first time,",
    ", with a smile,",
    ", late in the evening,",
)
THINGS = (
    *("the bicycle", "the red book", "an old map", "the car keys", "a box of apples"),
    *("the blue coat", "the last ticket", "a small radio", "the photographs"),
    *("a bag of coins", "the garden chair", "the letter", "a warm blanket", "the cake"),
    *("the guitar", "a silver watch", "the tent", "the umbrella", "two pictures"),
    *("a pair of gloves",),
)
# {one} and {other} hand over {thing}; who has it then. The verbs stand below.
GIVING = (
    "{one}{aside} {gave} {thing} to {other}",
    "{one}{aside} {gave} {other} {thing}",
    "it was {one} who{aside} {gave} {thing} to {other}",
    "it was to {other} that {one}{aside} {gave} {thing}",
    "{thing}{aside} went to {other} from {one}",
    "{one}{aside} let {other} have {thing}",
)
TAKING = (
    "{one}{aside} {took} {thing} from {other}",
    "{one}{aside} {took} from {other} {thing}",
    "it was {one} who{aside} {took} {thing} from {other}",
    "it was from {other} that {one}{aside} {took} {thing}",
    "{thing}{aside} came from {other} to {one}",
)
GAVE = ("gave", "sold", "lent", "handed", "sent")
TOOK = ("took", "bought", "borrowed", "got", "received")


def make_twins(n_pairs: int = 500, seed: int = 123) -> pd.DataFrame:
    """Sentences and who has the thing then: columns Text, Label (0 or 1) and pair.

    The two rows of a pair are twins: the same words, and the other label.
    """
    chance, rows, known = random.Random(seed), [], set()
    while len(known) < n_pairs:
        giving = chance.random() < 0.5
        parts = {
            "thing": chance.choice(THINGS),
            "aside": chance.choice(ASIDES),
            "gave": chance.choice(GAVE),
            "took": chance.choice(TOOK),
        }
        people = [f"my {chance.choice(KINDS)} {chance.choice(ROLES)} " for _ in NAMES]
        opener = chance.choice(OPENERS)
        pattern = chance.choice(GIVING if giving else TAKING)
        twins = []
        for first in (0, 1):
            one, other = NAMES[first], NAMES[1 - first]
            names = {"one": people[0] + one, "other": people[1] + other}
            text = f"{opener} {pattern.format(**names, **parts)}."
            twins.append((text, 1 - first if giving else first))
        if twins[0][0] not in known:
            known.add(twins[0][0])
            rows += [(text, label, len(known) - 1) for text, label in twins]
    return pd.DataFrame(rows, columns=["Text", "Label", "pair"])


def split_twins(twins: pd.DataFrame) -> list[pd.DataFrame]:
    """Training, validation and test part (70, 10 and 20 %); twins stay together."""
    n_pairs = twins["pair"].max() + 1
    share = twins["pair"] / n_pairs
    parts = (share < 0.7, (share >= 0.7) & (share < 0.8), share >= 0.8)
    return [twins[part].reset_index(drop=True) for part in parts]
