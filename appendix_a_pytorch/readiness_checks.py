"""The questions of step zero: which answer is right, and where to read if not."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from shared.exercises import SHORT, close, number


@dataclass(frozen=True)
class Question:
    """What a question is about, what judges an answer, and where to read about it.

    `judge` returns a sentence on what is wrong, or None. It raises an error if it
    cannot work with an answer, and `wants` says what kind of answer would do.
    """

    topic: str
    wants: str
    judge: Callable[[object], str | None]
    read: str


class Readiness:
    """Judges answers one by one, without ever raising an error, and sums them up."""

    def __init__(self) -> None:
        self.right: dict[int, bool] = {}

    def __call__(self, n: int, *answer: object) -> None:
        """Judge the answer to question n, and say so in a sentence.

        Several values count as one answer, a tuple.
        """
        question = QUESTIONS[n]
        answer = answer[0] if len(answer) == 1 else answer
        if answer is ...:
            print(f"Question {n}: not answered yet; write your answer in place of ...")
            return
        try:
            wrong = question.judge(answer)
        except Exception as error:
            wrong = f"What is wanted is {question.wants}, not {SHORT.repr(answer)}."
            if callable(answer):
                wrong = f"It raises {type(error).__name__} ({error})."
        self.right[n] = wrong is None
        if wrong is None:
            print(f"Question {n}: right.")
        else:
            print(f"Question {n}: not yet. {wrong}\nRead {question.read}.")

    def report(self) -> None:
        """Say how many are right in each subject, and what to read before chapter 2."""
        for topic in dict.fromkeys(q.topic for q in QUESTIONS.values()):
            asked = [n for n, q in QUESTIONS.items() if q.topic == topic]
            right = sum(self.right.get(n, False) for n in asked)
            print(f"{topic:15} {right} of {len(asked)}")
        left = [n for n in QUESTIONS if not self.right.get(n)]
        print(f"{len(QUESTIONS) - len(left)} of {len(QUESTIONS)} are right.")
        if not left:
            print("You are ready for chapter 2: ../ch02_text_data/text_data.ipynb")
        for place in dict.fromkeys(QUESTIONS[n].read for n in left):
            print(f"Read {place}.")


def one_number(wanted: float, mistakes: dict[float, str], otherwise: str) -> Callable:
    """A judge of one number, which knows the reasons for some wrong ones."""

    def judge(answer: object) -> str | None:
        found = number(answer)
        if math.isclose(found, wanted, abs_tol=0.005):
            return None
        for mistake, why in mistakes.items():
            if math.isclose(found, mistake, abs_tol=0.005):
                return f"{found:g} {why}."
        return f"It is not {found:g}: {otherwise}."

    return judge


def some_numbers(wanted: tuple, mistakes: dict[tuple, str], otherwise: str) -> Callable:
    """A judge of a shape or a vector."""

    def judge(answer: object) -> str | None:
        found = tuple(map(number, answer))
        if found == wanted:
            return None
        shown = ", ".join(f"{value:g}" for value in found)
        return f"({shown}) {mistakes.get(found, 'is not it: ' + otherwise)}."

    return judge


def word_counts(answer: Callable) -> str | None:
    """Judge a function that counts words."""
    for text in ("the cat and the dog", "tea  tea\ntea", ""):
        wanted = {word: text.split().count(word) for word in text.split()}
        found = answer(text)
        if found is None:
            return "It returns nothing yet: write it, and `return` what it found."
        if not isinstance(found, Mapping):
            return f"It should return a dictionary, not {SHORT.repr(found)}."
        if dict(found) != wanted:
            return f"For {text!r} it should return {wanted}, not {SHORT.repr(found)}."
    return None


def train_step(answer: Callable) -> str | None:
    """Judge a training step by the weights after one, and after two."""
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    y = torch.tensor([[1.0], [0.0], [2.0]])
    torch.manual_seed(0)
    model, reference = nn.Linear(2, 1), nn.Linear(2, 1)
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    start = model.weight.detach().clone()
    for step in (1, 2):
        answer(model, x, y, optimizer)
        loss = F.mse_loss(reference(x), y)
        gradients = torch.autograd.grad(loss, list(reference.parameters()))
        with torch.no_grad():
            for p, gradient in zip(reference.parameters(), gradients, strict=True):
                p -= 0.05 * gradient
        if all(map(_close, model.parameters(), reference.parameters())):
            continue
        if torch.equal(model.weight, start):
            return "The weights have not moved: `backward` and then `step` move them."
        if step == 2:
            return (
                "The first step is right and the second is not: the gradients of the "
                "first are still there, because `backward` adds; clear them."
            )
        return "The weights moved, but not by one step on F.mse_loss(model(x), y)."
    return None


def _close(one: nn.Parameter, other: nn.Parameter) -> bool:
    return close(one.detach(), other.detach())


BOOK = "of Deisenroth, Faisal and Ong, Mathematics for Machine Learning"
PRIMER = "of pytorch.ipynb beside this notebook"
QUESTIONS = {
    1: Question(
        "linear algebra",
        "a shape such as (5, 6)",
        some_numbers(
            (2, 4),
            {
                (3, 3): "are the inner lengths, which disappear",
                (4, 2): "is the shape with rows and columns exchanged",
                (2, 3, 4): "has three axes, but a matrix has two",
            },
            "A has 2 rows, and B has 4 columns",
        ),
        f"section A.2 {PRIMER}, or section 2.2 {BOOK}",
    ),
    2: Question(
        "linear algebra",
        "two numbers such as [1, 2]",
        some_numbers(
            (17, 39),
            {
                (23, 34): "comes from columns; each *row* of A meets v",
                (5, 12, 15, 24): "still has to be added up for each row",
            },
            "each row of A times v, number by number, added up",
        ),
        f"section A.2 {PRIMER}, or section 2.2 {BOOK}",
    ),
    3: Question(
        "calculus",
        "one number",
        one_number(
            -18,
            {
                -6: "lacks the slope of what is in the parentheses, 3",
                18: "has the wrong sign: at w = 1, 3w - 6 is below 0",
                9: "is f itself, not its slope",
            },
            "the slope is 2 (3w - 6) times 3",
        ),
        f"sections A.4 and A.6 {PRIMER}, or section 5.1 {BOOK}",
    ),
    4: Question(
        "calculus",
        "one number",
        one_number(
            4,
            {
                8: "is f itself, not its slope",
                3: "comes from the product alone, but a is added as well",
                2: "is the slope for b",
            },
            "hold b still, and see how much f grows when a does",
        ),
        f"section A.6 {PRIMER}, or section 5.2 {BOOK}",
    ),
    5: Question(
        "probability",
        "one number between 0 and 1",
        one_number(
            0.75,
            {
                0.15: "is the share of all messages that are spam and contain it",
                0.2: "is the share of spam before you read anything",
                0.25: "is the probability that it is not spam",
            },
            "look only at the 20 messages with the word, and count the spam in them",
        ),
        f"section 6.3 {BOOK}",
    ),
    6: Question(
        "probability",
        "one number, such as math.log(3)",
        one_number(
            math.log(4),
            {
                -math.log(4): "has the wrong sign: the logarithm of 1/4 is below 0",
                2: "is the logarithm to base 2; ours is the natural one",
                math.log10(4): "is the logarithm to base 10; ours is the natural one",
                0.25: "is the probability itself",
            },
            "a mean of equal numbers is that number, here - ln 1/4 = ln 4",
        ),
        f"section A.11 {PRIMER}",
    ),
    7: Question(
        "Python",
        "one whole number",
        one_number(
            3,
            {2: "would be right for a copy, but b is the same list as a"},
            "b = a gives the list a second name",
        ),
        "the Python FAQ, 'Why did changing list y also change list x?' "
        "(docs.python.org/3/faq/programming.html)",
    ),
    8: Question(
        "Python",
        "a function that takes a text and returns a dictionary",
        word_counts,
        "chapters 4 and 5 of the Python tutorial (docs.python.org/3/tutorial)",
    ),
    9: Question(
        "PyTorch",
        "a shape such as (5, 6)",
        some_numbers(
            (4, 3),
            {
                (4, 1): "is the first shape, but its axis of length 1 is repeated",
                (3, 4): "is the wrong way round; shapes are lined up from the right",
                (7,): "adds lengths, but tensors are added number by number",
            },
            "lined up from the right, 1 meets 3, and 4 meets nothing",
        ),
        f"section A.3 {PRIMER}",
    ),
    10: Question(
        "PyTorch",
        "a function that takes model, x, y and optimizer",
        train_step,
        f"sections A.4 and A.9 {PRIMER}",
    ),
}
