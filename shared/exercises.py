"""Checks of exercises answer a wrong solution with one sentence, never a crash."""

import functools
import inspect
import linecache
import math
import numbers
import re
import reprlib
import textwrap
from collections.abc import Callable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn


class NotYet(AssertionError):
    """Why an answer is not right yet. A notebook shows only this sentence.

    `error` is the exception that the reader's own code raised, if that is the reason.
    """

    def __init__(self, sentence: str, error: Exception | None = None) -> None:
        super().__init__(sentence)
        self.error = error

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows; JupyterLab would break them within words."""
        whole = {"break_long_words": False, "break_on_hyphens": False}
        return textwrap.wrap(str(self), 88, **whole)


def checked(exercise: str, wants: str | None, keeps: bool = False) -> Callable:
    """Make a check raise `NotYet` and nothing else, whatever the answers do.

    Args:
        exercise: its number, for the sentence.
        wants: what the answers should return, in words; None if nothing.
        keeps: whether the answers must not change the tensors and lists they get.
    """

    def decorate(check: Callable) -> Callable:
        @functools.wraps(check)
        def run(*functions) -> None:
            answers: list[Answer] = []
            reason = None
            try:
                answers += [Answer(each, wants, keeps) for each in functions]
                return check(*answers)
            except AssertionError as wrong:
                sentence, reason = str(wrong), getattr(wrong, "error", None)
            except Exception as error:
                last = max(answers, key=lambda answer: answer.calls)
                if last.calls == 0:  # the check's own fault, and no answer's
                    sentence = (
                        f"the check itself fails with {_told(error)}, before it has "
                        f"called {last.name}; your answer may be right"
                    )
                    raise NotYet(f"Exercise {exercise}: {sentence}") from error
                found = SHORT.repr(last.found)  # with which the check cannot work
                sentence = (
                    f"{last.name} should return {last.wants}, but returned {found}"
                )
                if last.wants is None:
                    sentence = f"after {last.name} the check fails with {_told(error)}"
            sentence = re.sub(r"\s*\n\s*", " ", sentence)  # a tensor has line ends
            raise NotYet(f"Exercise {exercise}: {sentence}", reason)

        return run

    return decorate


class Answer:
    """The reader's function; if it fails, an AssertionError says why.

    It gets copies of tensors and lists, so that it cannot spoil the check. A check can
    set `hint` to the likely reason if the next calls fail, and `wants` if the answers
    of an exercise differ.
    """

    hint = ""
    clock = 0  # counts all calls, to know whose result came last

    def __init__(self, function: object, wants: str | None, keeps: bool) -> None:
        self.function, self.wants, self.keeps = function, wants, keeps
        self.name = getattr(function, "__name__", "your answer")
        self.name = "your function" if "<" in self.name else self.name
        self.found, self.calls = None, 0
        assert callable(function), f"pass a function, not {SHORT.repr(function)}"

    def __call__(self, *arguments, **settings):
        first = self.calls == 0
        Answer.clock += 1
        self.calls = Answer.clock
        given = [_copied(argument) for argument in arguments]
        call = f"{self.name}({', '.join(map(SHORT.repr, arguments))})"
        try:
            found = self.function(*given, **settings)
            if inspect.isgenerator(found):
                found = list(islice(found, 100_000))
        except Exception as error:
            hint = self.hint or (f"it should return {self.wants}" if self.wants else "")
            sentence = f"{call} raises {_told(error)}{_place(error, self.function)}"
            raise NotYet("; ".join(filter(None, [sentence, hint])), error) from error
        self.found = found
        if self.keeps:
            names = _parameters(self.function)
            for name, before, after in zip(names, arguments, given, strict=False):
                assert _same(before, after), (
                    f"{self.name} changed its argument `{name}`, which its caller may "
                    "still need; work on a copy"
                )
        unanswered = found is ... or (found is None and self.wants is not None)
        assert not (unanswered and first), (
            f"{self.name} returned {'...' if found is ... else 'nothing'}: it is still "
            "unanswered; replace the `...` with your code and `return` the result"
        )
        assert not unanswered, f"{call} returned nothing; is a `return` missing?"
        return found


class _Short(reprlib.Repr):
    """Short texts for values: a tensor's shape, a model's name."""

    def repr_Tensor(self, value: torch.Tensor, level: int) -> str:
        if value.numel() == 1 and value.dim() == 0:
            return f"tensor({value.item():.6g})"
        return f"a tensor {tuple(value.shape)}"

    repr_Parameter = repr_Tensor

    def repr_instance(self, value: object, level: int) -> str:
        if isinstance(value, nn.Module) or inspect.isroutine(value):
            return getattr(value, "__name__", type(value).__name__)
        return " ".join(super().repr_instance(value, level).split())


SHORT = _Short()
SHORT.maxstring = SHORT.maxother = 50


def _told(error: Exception) -> str:
    """An error in a few words."""
    message = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__} ({message})" if message else type(error).__name__


def _place(error: Exception, function: Callable) -> str:
    """The line of the reader's own code that raised an error."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    trace, line = error.__traceback__, None
    while trace is not None and code is not None:
        if trace.tb_frame.f_code.co_filename == code.co_filename:
            line = trace.tb_lineno  # the last one is the innermost
        trace = trace.tb_next
    source = linecache.getline(code.co_filename, line).strip() if line else ""
    return f" in your line {line}, `{source}`" if source else ""


def _parameters(function: Callable) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-in functions do not say
        return []


def _copied(value: object) -> object:
    """Copies of tensors and lists; anything else, weights too, is not copied."""
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return value


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or one == other


def number(value: object) -> float:
    """A number of any type as a Python number.

    Raises: TypeError or ValueError for anything else.
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        raise TypeError(f"not a number: {value!r}")
    return value if isinstance(value, int) else float(value)


def yes_or_no(value: object) -> bool:
    """One True or False; 0, 1 or a tensor with one element will do, too."""
    shape = tuple(getattr(value, "shape", ()))
    assert math.prod(shape) == 1, (
        f"return one True or False, not {math.prod(shape)} of them; finish with "
        "`.any()` or `.all()`"
    )
    if hasattr(value, "item"):
        value = value.item()
    if value not in (True, False):
        raise TypeError(f"neither True nor False: {value!r}")
    return bool(value)


def tensor(value: object, *shape: int) -> torch.Tensor:
    """A tensor of that shape, detached; TypeError if it is not a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"not a tensor: {value!r}")
    assert tuple(value.shape) == shape, (
        f"return a tensor of shape {shape}, not {tuple(value.shape)}"
    )
    return value.detach()


def close(found: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5) -> bool:
    """Whether two tensors of the same shape agree, whatever their precision."""
    return torch.allclose(found.double(), wanted.double(), atol=atol)


def one_of(value: object, choices: list[str]) -> str:
    """A prediction: it may be wrong, but it must be one of the choices."""
    assert value in choices, (
        f"predict one of {', '.join(map(repr, choices))}, not {SHORT.repr(value)}"
    )
    return value


# Ways in which later tokens (B, T, C) can leak into earlier ones, by what they do


def _from(later: slice, earlier: slice) -> Callable[[torch.Tensor], torch.Tensor]:
    def leak(x: torch.Tensor) -> torch.Tensor:
        leaked = torch.zeros_like(x)
        if x[:, later].shape[1]:  # a short prefix may have no later tokens
            leaked[:, earlier] = x[:, later]
        return leaked

    return leak


def _after_softmax(x: torch.Tensor) -> torch.Tensor:
    scores = x @ x.transpose(1, 2) / math.sqrt(x.shape[2])
    return torch.softmax(scores, dim=-1).tril() @ x


LEAKS = {
    "masks after the softmax, so that the size of the weights leaks": _after_softmax,
    "shows every token the mean of the text": lambda x: x.mean(1, True).expand_as(x),
    "lets each token see the next one": lambda x: F.pad(x[:, 1:], (0, 0, 0, 1)),
    "lets only the first token see only the last": _from(slice(-1, None), slice(1)),
    "lets only token 2 see only token 3": _from(slice(3, 4), slice(2, 3)),
}


class Leaky(nn.Module):
    """A causal layer or model, plus a path from later tokens to earlier ones."""

    def __init__(
        self,
        sound: nn.Module,
        leak: Callable[[torch.Tensor], torch.Tensor],
        enter: Callable = lambda x: x,
        leave: Callable = lambda x: x,
    ) -> None:
        super().__init__()
        self.sound, self.leak, self.enter, self.leave = sound, leak, enter, leave

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sound(x) + self.leave(self.leak(self.enter(x)))


def finds_leaks(detect: Callable[[nn.Module], object], leaky: Callable) -> int:
    """The number of leaks that a detector finds in `leaky(leak)`; it must find all.

    `leaky(None)` has no leak, so the detector must not find one there.
    """
    assert not yes_or_no(detect(leaky(None))), (
        "a causal model has no leak, but you found one; if token t changes, its output "
        "and later ones may change, and only those *before* it must stay the same, up "
        "to rounding (torch.allclose, not torch.equal)"
    )
    for does, leak in LEAKS.items():
        assert yes_or_no(detect(leaky(leak))), (
            f"you missed a model that {does}; change each token in turn, and compare "
            "all outputs before it"
        )
    return len(LEAKS)
