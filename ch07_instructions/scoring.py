"""Scores of answers, what a model has to beat, and how sure a mean is.

Section 7.6 of the notebook explains them; exact match and F1 are exported there.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from shared.ch07 import exact_match, normalise, token_f1

__all__ = ["question_of", "score_answers", "form_of_answers", "words_from"]
__all__ += ["constant_answers", "nearest_answers", "classifier_answers"]
__all__ += ["echo_answers", "bootstrap_interval", "rank_agreement"]
__all__ += ["reworded", "KNOWLEDGE"]

Entries = Sequence[Mapping[str, str]]


def question_of(entry: Mapping[str, str]) -> str:
    """Instruction and input as one text."""
    return f"{entry['instruction']} {entry.get('input', '')}".strip()


def reworded(entries: Entries) -> list[dict[str, str]]:
    """The same questions in wordings that no training entry has.

    Entries without a `rewording`, such as those of other data sets, are left out.
    """
    return [
        {**entry, "instruction": entry["rewording"]}
        for entry in entries
        if entry.get("rewording")
    ]


# Ten questions whose answers they do not contain. A small model cannot learn these
# from a few others, so they are asked, and never trained on.
_PROBE = """\
definition | Give a short definition of "anchor". | An anchor is a heavy metal object \
that keeps a ship in one place.
arithmetic | One ticket costs 7 dollars. How many dollars do 3 tickets cost? | The \
answer is 21.
unit_conversion | My cousin was away for 2 years. How many months is that? | 2 years \
is 24 months.
simple_fact | Which planet is known as the Red Planet? | The planet known as the Red \
Planet is Mars.
odd_one_out | Which of these does not fit: red, green, spoon, blue? | The odd one out \
is spoon.
idiom_meaning | What does "to hit the hay" mean? | It means to go to bed.
spelling_correction | What is the right spelling of "goverment"? | The correct \
spelling is "government".
synonym | What is a synonym of "journey"? | A synonym of "journey" is "trip".
antonym | Give an antonym of "buy". | The opposite of "buy" is "sell".
sequence | What number comes next: 2, 4, 6, 8? | The next number is 10."""
KNOWLEDGE: list[dict[str, str]] = [
    {
        "instruction": question,
        "input": "",
        "output": answer,
        "kind": kind,
        "family": "knowledge",
        "group": kind,
        "rewording": "",
    }
    for kind, question, answer in (row.split(" | ") for row in _PROBE.splitlines())
]


# --- Scores ---------------------------------------------------------------------------


def score_answers(entries: Entries, answers: Sequence[str]) -> pd.DataFrame:
    """A row per entry: its `kind` and `family`, `exact` (0 or 1) and `f1`.

    Raises:
        ValueError: if there are not as many answers as entries.
    """
    if len(entries) != len(answers):
        raise ValueError(f"{len(answers)} answers do not fit {len(entries)} entries")
    rows = []
    for entry, answer in zip(entries, answers, strict=True):
        kind = entry.get("kind", "")
        pair = answer, entry["output"], kind
        scores = float(exact_match(*pair)), token_f1(*pair)
        rows.append((kind, entry.get("family", "all"), *scores))
    return pd.DataFrame(rows, columns=["kind", "family", "exact", "f1"])


def form_of_answers(
    train_entries: Entries, entries: Entries, answers: Sequence[str]
) -> pd.DataFrame:
    """A row per entry: is the answer a `sentence`, and one of its kind's `labels`?

    A sentence is one line that ends with a full stop, question or exclamation mark.
    Labels are the training answers of a closed kind; elsewhere the column is empty.
    """
    labels: dict[str, set] = {}
    for entry in train_entries:
        if entry.get("family") == "closed":
            known = labels.setdefault(entry["kind"], set())
            known.add(tuple(normalise(entry["output"])))
    rows = []
    for entry, answer in zip(entries, answers, strict=True):
        sentence = re.fullmatch(r"[^\n]*\w[^\n]*[.?!]", answer.strip()) is not None
        known = labels.get(entry.get("kind"))
        valid = None if known is None else float(tuple(normalise(answer)) in known)
        rows.append((entry.get("family", "all"), float(sentence), valid))
    return pd.DataFrame(rows, columns=["family", "sentence", "label"])


def words_from(entry: Mapping[str, str], answer: str, copied: bool) -> float | None:
    """Of the reference's words that the question has (or has not), the answer's share.

    None if the reference has no such word.
    """
    asked = set(normalise(question_of(entry)))
    wanted = {word for word in normalise(entry["output"]) if (word in asked) == copied}
    return len(wanted & set(normalise(answer))) / len(wanted) if wanted else None


def bootstrap_interval(
    values: Sequence[float],
    confidence: float = 0.95,
    repeats: int = 2000,
    seed: int = 123,
) -> tuple[float, float]:
    """An interval for the mean of values, by drawing them again with repetition.

    Raises:
        ValueError: for no values, or a confidence that is not between 0 and 1.

    Source: Efron (1979), Bootstrap Methods: Another Look at the Jackknife.
    """
    if len(values) == 0 or not 0 < confidence < 1:
        raise ValueError(
            f"{len(values)} values and a confidence of {confidence} give no interval; "
            "it needs at least one value and a confidence such as 0.95"
        )
    data = torch.as_tensor(list(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(data), (repeats, len(data)), generator=generator)
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = data[drawn].mean(dim=1).quantile(ends).tolist()
    return low, high


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation of two lists of scores; equal scores share a rank.

    Raises:
        ValueError: for lists of different or too small length, or one that does not
            vary, in which there is no order to compare.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(
            f"{len(one)} and {len(other)} scores cannot be compared; give two lists of "
            "the same length, 2 or more"
        )
    ranks = [pd.Series(list(scores)).rank() for scores in (one, other)]
    if any(r.nunique() == 1 for r in ranks):
        raise ValueError("all scores of a list are equal, so it has no order")
    return float(ranks[0].corr(ranks[1]))


# --- What a model has to beat ---------------------------------------------------------


def echo_answers(train_entries: Entries, entries: Entries) -> list[str]:
    """For each entry what it is about: its input, or what follows its last colon."""
    return [
        entry.get("input") or re.split(r"[:?] ", entry["instruction"])[-1]
        for entry in entries
    ]


def constant_answers(train_entries: Entries, entries: Entries) -> list[str]:
    """For each entry the one answer that fits its kind best, whatever it asks.

    It is the training answer that is most like the others by F1, among the first 200 of
    the kind; for a kind without training answers it is empty.
    """
    # math.fsum: `sum` rounds otherwise since Python 3.12, and then another answer wins
    outputs: dict[str, list[str]] = {}
    for entry in train_entries:
        outputs.setdefault(entry.get("kind", ""), []).append(entry["output"])
    best = {
        kind: max(
            known[:200],
            key=lambda o: math.fsum(token_f1(o, x, kind) for x in known[:200]),
        )
        for kind, known in outputs.items()
    }
    return [best.get(entry.get("kind", ""), "") for entry in entries]


def _texts(*parts: Entries) -> list[list[str]]:
    return [[question_of(entry).casefold() for entry in part] for part in parts]


def nearest_answers(train_entries: Entries, entries: Entries) -> list[str]:
    """For each entry the answer to the training question that is most like its own.

    Likeness is the cosine of TF-IDF vectors, see
    `sklearn.feature_extraction.text.TfidfVectorizer`.
    """
    asked, wanted = _texts(train_entries, entries)
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    known = vectorizer.fit_transform(asked)  # (n_train, n_words), rows of length 1
    likeness = vectorizer.transform(wanted) @ known.T  # (n, n_train)
    nearest = likeness.toarray().argmax(axis=1)
    return [train_entries[i]["output"] for i in nearest]


def classifier_answers(train_entries: Entries, entries: Entries) -> list[str]:
    """For each entry an answer chosen by the words of its question.

    A logistic regression on TF-IDF chooses among the training answers that occur twice
    or more. It is not told the kind of an entry.

    Raises:
        ValueError: if there are no two such answers.
    """
    times = Counter(entry["output"] for entry in train_entries)
    known = [entry for entry in train_entries if times[entry["output"]] > 1]
    if len({entry["output"] for entry in known}) < 2:
        raise ValueError("fewer than two training answers occur twice or more")
    asked, wanted = _texts(known, entries)
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[?!.]")
    classifier = LogisticRegression(C=100, max_iter=2000)
    classifier.fit(vectorizer.fit_transform(asked), [e["output"] for e in known])
    return classifier.predict(vectorizer.transform(wanted)).tolist()
