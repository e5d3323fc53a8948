"""Checks for the exercises of chapter 6: each says what is wrong, and hints at why."""

import math
import random
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from shared.exercises import checked, number, one_of


@checked("6.1", wants="one number")
def padding_share(answer: Callable[[list[int], int], float]) -> None:
    """The share of padding in batches."""
    found = number(answer([4, 2, 3, 1], 2))
    # batches (4, 2) and (3, 1): 8 + 6 tokens are read, 10 are real
    assert not near(found, 10 / 14), (
        "that is the share of real tokens; the share of padding is 1 minus it"
    )
    assert not near(found, 1 - 10 / 16), (
        "each batch is padded to its own longest message, not to the longest of all"
    )
    assert not near(found, (2 / 8 + 2 / 6) / 2), (
        "that is the mean of the batches' shares; count tokens over all batches instead"
    )
    assert near(found, 4 / 14), (
        "lengths 4, 2, 3, 1 in batches of two: 4 of the 14 tokens are padding, so "
        f"{4 / 14:.4f}, not {found}"
    )
    found = number(answer([5, 5, 5, 1, 2], 2))
    assert near(found, 4 / 22), (
        "the last batch may be smaller, and is not filled up then: lengths 5, 5, 5, 1, "
        f"2 in batches of two have 4 padding tokens of 22, not a share of {found}"
    )
    assert near(number(answer([7], 3)), 0), "one message needs none"
    print("Right: equal lengths side by side leave nothing to fill up.")


def near(found: float, wanted: float) -> bool:
    """Equal up to the rounding of float32."""
    return math.isclose(found, wanted, rel_tol=1e-5, abs_tol=1e-6)


@checked("6.2", wants="one number")
def allowed_false_alarms(answer: Callable[[float, float, float], float]) -> None:
    """Equation 6.4, solved for the false alarms."""
    for precision, recall, share in (
        (0.9, 0.9, 0.5),
        (0.99, 0.95, 0.13),
        (0.5, 1, 0.01),
    ):
        f = number(answer(precision, recall, share))
        assert f > 0, f"a rate of false alarms is positive, not {f}"
        again = recall * share / (recall * share + f * (1 - share))
        assert near(again, precision), (
            f"with recall {recall}, {share:.0%} spam and your {f:.4g} false alarms, "
            f"equation 6.4 gives a precision of {again:.4f} instead of {precision}"
        )
    print("Right: the rarer the spam, the fewer mistakes a filter may make with ham.")


@checked("6.3", wants="two lists of indices, `return train, test`")
def split_by_key(
    answer: Callable[[list[str], float, int], tuple[list[int], list[int]]],
) -> None:
    """Whole groups are dealt, not messages."""
    chance = random.Random(1)
    keys = [f"key {chance.randrange(40)}" for _ in range(200)]
    groups = len(set(keys))
    train, test = _two_lists(answer(keys, 0.75, 5))
    assert sorted(train + test) == list(range(200)), (
        "every index must be in exactly one of the two lists"
    )
    shared = {keys[i] for i in train} & {keys[i] for i in test}
    assert not shared, f"{min(shared)!r} is in both parts; deal keys, not messages"
    n_train = len({keys[i] for i in train})
    assert n_train == int(0.75 * groups), (
        f"of {groups} keys {int(0.75 * groups)} belong into training, not {n_train}"
    )
    assert _two_lists(answer(keys, 0.75, 5)) == (train, test), (
        "the same seed must give the same parts"
    )
    others = [
        {keys[i] for i in _two_lists(answer(keys, 0.75, seed))[0]} for seed in range(6)
    ]
    assert any(other != others[0] for other in others), (
        "another seed must give other parts: shuffle the keys before you cut"
    )
    print("Right: nothing is thrown away, and nothing leaks.")


def _two_lists(found: tuple) -> tuple[list[int], list[int]]:
    train, test = ([int(number(i)) for i in part] for part in found)
    return train, test


@checked("6.4", wants="a tensor of one number, which can be differentiated")
def balanced_loss(
    answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Each class weighs the same."""
    logits = torch.randn(10, 2, generator=torch.Generator().manual_seed(3))
    logits.requires_grad_(True)
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 0, 0])
    loss = answer(logits, labels)
    assert isinstance(loss, torch.Tensor), (
        f"return a tensor, which can be differentiated, not {loss!r}: no .item()"
    )
    assert loss.numel() == 1, f"the loss must be one number, not {tuple(loss.shape)}"
    found = loss.detach().float().squeeze()
    plain = F.cross_entropy(logits, labels)
    # PyTorch's weighted mean, with weights that make up for the class sizes
    oracle = F.cross_entropy(logits, labels, weight=torch.tensor([1 / 8, 1 / 2]))
    assert not torch.isclose(found, plain), (
        "that is the plain mean: eight ham messages outweigh two spam messages"
    )
    assert not torch.isclose(found, 2 * oracle), (
        "that is the sum of the two class means; take their mean"
    )
    assert torch.isclose(found, oracle, rtol=1e-4), (
        f"wanted {oracle:.4f}, the mean of the two classes' means, not {found:.4f}"
    )
    assert loss.requires_grad, (
        "the loss must be differentiable: no .detach(), no torch.no_grad()"
    )
    answer.hint = "that was a batch without spam"
    one_class = number(answer(logits.detach(), torch.zeros(10, dtype=torch.long)))
    assert math.isfinite(one_class), (
        "a batch without spam must not give nan: leave the missing class out"
    )
    print("Right: all messages are used, and neither class shouts the other down.")


@checked("6.5", wants="one number")
def area_under_curve(answer: Callable[[torch.Tensor, torch.Tensor], float]) -> None:
    """The same number as scikit-learn's `roc_auc_score`."""
    p_spam = torch.tensor([0.9, 0.8, 0.4, 0.3, 0.1])
    labels = torch.tensor([1, 0, 1, 0, 0])
    found = number(answer(p_spam, labels))
    assert not near(found, 1 / 6), "turned round: spam should be rated higher"
    assert near(found, 5 / 6), (
        "of the six pairs of a spam and a ham message five are in the right order, so "
        f"0.8333, not {found}"
    )
    same = number(answer(torch.full((6,), 0.3), torch.tensor([1, 0, 1, 0, 0, 0])))
    assert near(same, 0.5), (
        f"who says the same to every message has only ties, which count half: 0.5, not "
        f"{same}"
    )
    generator = torch.Generator().manual_seed(7)
    p_spam = torch.randint(20, (300,), generator=generator) / 20
    labels = torch.randint(2, (300,), generator=generator)
    oracle = roc_auc_score(labels.numpy(), p_spam.numpy())
    found = number(answer(p_spam, labels))
    assert near(found, oracle), (
        f"scikit-learn finds {oracle:.6f} for 300 messages with many ties, you {found}"
    )
    print("Right: the same as scikit-learn's roc_auc_score.")


@checked("6.6", wants="a row of numbers for each text")
def tfidf_rows(answer: Callable[[list[list[str]]], list[list[float]]]) -> None:
    """The same numbers as scikit-learn's `TfidfVectorizer`."""
    texts = [
        "call now to win win win",
        "call me",
        "i am home now",
        "",
        "win a prize now",
    ]
    words = [text.split() for text in texts]
    oracle = TfidfVectorizer(token_pattern=r"\S+").fit(texts)
    wanted = torch.tensor(oracle.transform(texts).toarray(), dtype=torch.float64)
    n_words = wanted.shape[1]
    rows = [[float(x) for x in row] for row in answer(words)]
    assert len(rows) == len(texts) and all(len(row) == n_words for row in rows), (
        f"wanted {len(texts)} rows with a column for each of the {n_words} words"
    )
    got = torch.tensor(rows, dtype=torch.float64)
    lengths = got.norm(dim=1)
    assert lengths[3] == 0, "the row of an empty text has only zeros"
    ones = torch.ones(4, dtype=torch.float64)
    assert torch.allclose(lengths[[0, 1, 2, 4]], ones, atol=1e-5), (
        f"the other rows must have the length 1, not {lengths.tolist()}"
    )
    worst = (got - wanted).abs().max().item()
    assert worst < 1e-5, (  # float32 is exact enough
        f"scikit-learn's numbers differ by up to {worst:.4f}; the columns are the "
        "words in sorted order; n_w counts texts, not occurrences; the logarithm is "
        "natural; the + 1 stands outside of it"
    )
    print("Right: the same as scikit-learn's, up to rounding.")


@checked("6.7", wants="one number, the share of right answers")
def accuracy_after(measure: Callable, predicted: Callable) -> None:
    """Changed in both parts, learned from one and scored on the other."""
    ham = ["see you at home now", "call me later then", "i am late sorry"] * 4
    spam = ["WIN 5000 now", "call 0800 111 to WIN", "free prize 90210"] * 4
    train = ham + spam, [0] * 12 + [1] * 12
    test = ["call me now", "sorry i WIN", "late 5000", "home 111"], [0, 1, 1, 1]
    for change in (str, str.lower, lambda text: re.sub(r"\d", "", text)):
        found, wanted = (
            number(measure(change, train, test)),
            _accuracy(change, *train, *test),
        )
        assert found <= 1, f"a share is at most 1, not {found}; divide by their number"
        assert not (near(found, 1 - wanted) and wanted != 0.5), (
            "that is the share of errors"
        )
        assert near(found, wanted), (
            f"{wanted:.0%} of the check's test messages are sorted rightly, not "
            f"{found:.0%}; change the texts of both parts, fit both steps on the "
            "training part alone, and score on the test part"
        )
    predicted.wants = "a name"
    one_of(predicted(), [*CHANGES, "none of them"])
    print("Right: learned from one part, scored on the other, changed in both.")


CHANGES: dict[str, Callable[[str], str]] = {
    "digits": lambda text: re.sub(r"\d", "", text),
    "capital letters": str.lower,
    "signs": lambda text: re.sub(r"[^\w\s]", "", text),
    "order of words": lambda text: " ".join(sorted(text.split())),
}


def _accuracy(change, texts, labels, test_texts, test_labels) -> float:
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
    features = vectorizer.fit_transform(map(change, texts))
    classifier = LogisticRegression(C=10).fit(features, labels)
    return classifier.score(vectorizer.transform(map(change, test_texts)), test_labels)
