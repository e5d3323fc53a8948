"""Checks for the exercises of chapter 7: each says what is wrong, and hints at why."""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence

import torch

from shared.exercises import require_answer


def extract_answer(answer: Callable[[str, str], str]) -> None:
    """Exercise 7.1: the answer alone."""
    prompt = "User: What follows Assistant: here?\nAssistant:"
    found = answer(prompt, prompt + " A pear.\n")
    require_answer(found, "extract_answer")
    assert found == "A pear.", (
        f"wanted 'A pear.', found {found!r}; a prompt may contain the mark, so "
        "count the prompt's letters instead of searching for a mark"
    )
    found = answer(prompt, prompt + "A pear.<|endoftext|>Name a colour.")
    assert found == "A pear.", (
        f"the answer ends before <|endoftext|>; you returned {found!r}"
    )
    assert answer(prompt, prompt) == "", "an answer may be empty"
    try:
        answer(prompt, "A pear.")
    except ValueError:
        pass
    else:
        raise AssertionError(
            "a text that does not begin with the prompt must raise a ValueError: its "
            "first letters would be cut off unseen"
        )
    print("Right: the prompt is known, so it need not be searched for.")


def has_loop(function: Callable) -> bool:
    """Whether the code of a function has a loop in it, as far as it can be read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    loops = ast.For | ast.While | ast.comprehension
    return any(isinstance(node, loops) for node in ast.walk(tree))


def mask_prompts(answer: Callable[[torch.Tensor, list[int]], torch.Tensor]) -> None:
    """Exercise 7.2: targets of the prompts become -100."""
    targets = torch.tensor([[2, 3, 4, 50256], [6, 7, 50256, -100]])
    given = targets.clone()
    found = answer(targets, [3, 1])
    require_answer(found, "mask_prompts")
    assert torch.equal(targets, given), "the given tensor was changed; return a new one"
    assert isinstance(found, torch.Tensor), (
        f"wanted a tensor (B, T), found a {type(found).__name__}"
    )
    wanted = torch.tensor([[-100, -100, 4, 50256], [6, 7, 50256, -100]])
    assert found.shape == wanted.shape, f"wanted (B, T), found {tuple(found.shape)}"
    late = torch.tensor([[-100, -100, -100, 50256], [-100, 7, 50256, -100]])
    assert not torch.equal(found, late), (
        "one place too many: at the prompt's last token the target is the answer's "
        "first token, and that is the one it must learn most"
    )
    assert torch.equal(found, wanted), (
        f"for prompts of 3 and 1 tokens wanted {wanted.tolist()}, found "
        f"{found.tolist()}"
    )
    assert torch.equal(answer(targets, [0, 0]), given), (
        "a prompt of no tokens masks nothing"
    )
    assert not has_loop(answer), (
        "the targets are right, but there is a loop: compare a row of places (T,) with "
        "a column of lengths (B, 1), and the whole mask is there at once"
    )
    print("Right: every prompt is silent, and no answer has lost its first token.")


def plain_list(values) -> list:
    """Numbers as a list, whether they came as a list, an array or a tensor."""
    values = torch.as_tensor(values).flatten() if hasattr(values, "shape") else values
    return [v.item() if hasattr(v, "item") else v for v in values]


def encode_conversation(
    answer: Callable[[Sequence[tuple[str, str]], object], tuple[list[int], list[bool]]],
    tokenizer,
) -> None:
    """Exercise 7.3: several turns, of which the answers are learned."""
    turns = [("Name a fruit.", "Pear."), ("Another?", "Plum.")]
    found = answer(turns, tokenizer)
    require_answer(found, "encode_conversation")
    assert isinstance(found, tuple | list) and len(found) == 2, (
        f"wanted two lists, ids and marks; found {found!r}"
    )
    ids, learned = map(plain_list, found)
    assert all(isinstance(i, int) and not isinstance(i, bool) for i in ids), (
        f"the first list must hold ids, whole numbers; yours begins with {ids[:3]}"
    )
    assert len(ids) == len(learned), (
        f"{len(ids)} ids and {len(learned)} marks: every id needs a mark"
    )
    text = tokenizer.decode(ids)
    wanted = (
        "User: Name a fruit.\nAssistant: Pear.<|endoftext|>"
        "User: Another?\nAssistant: Plum.<|endoftext|>"
    )
    assert text == wanted, f"the conversation reads {text!r} instead of {wanted!r}"
    assert ids.count(50256) == 2, (
        "each answer ends with the one token 50256, not with the letters of its name"
    )
    written = tokenizer.decode([i for i, yes in zip(ids, learned, strict=True) if yes])
    assert written != " Pear. Plum.", (
        "the model must learn to stop, too: the end after an answer counts"
    )
    assert written == " Pear.<|endoftext|> Plum.<|endoftext|>", (
        f"to be learned are the answers and their ends, not {written!r}"
    )
    print("Right: it learns to answer in every turn, and to ask in none.")


def fair_verdict(answer: Callable[[Callable, str, str], int]) -> None:
    """Exercise 7.4: both orders."""

    def longer(first: str, second: str) -> bool:
        return len(first) > len(second)

    found = answer(longer, "a long answer", "short")
    require_answer(found, "fair_verdict")
    assert found == 1, f"the first answer won in both orders, so 1, not {found}"
    assert answer(longer, "short", "a long answer") == 2, (
        "the second answer won in both orders, so 2: asked (other, one), a True means "
        "that `other` won"
    )
    for always in (True, False):
        assert answer(lambda first, second: always, "a", "b") == 0, (  # noqa: B023
            "a judge that names the same place in both orders has told nothing: 0"
        )
    print("Right: what depends on the order alone is a draw.")


def share_better(
    answer: Callable[[list[float], list[float], int, torch.Generator], float],
) -> None:
    """Exercise 7.5: the paired bootstrap, and the normal distribution."""
    chance = torch.Generator().manual_seed(7)
    difficulty = torch.rand(400, generator=chance)
    gains = 0.02 + 0.2 * torch.randn(400, generator=chance)
    one, other = (difficulty + gains).tolist(), difficulty.tolist()
    found = answer(one, other, 4000, torch.Generator().manual_seed(1))
    require_answer(found, "share_better")
    standard_error = (gains.std() / math.sqrt(400)).item()
    wanted = 0.5 * (1 + math.erf(gains.mean().item() / standard_error / math.sqrt(2)))
    assert not math.isclose(found, 1 - wanted, abs_tol=0.01), (
        "that is how often the second model wins"
    )
    spread = math.sqrt(2 * difficulty.var().item() + gains.var().item()) / 20
    apart = 0.5 * (1 + math.erf(gains.mean().item() / spread / math.sqrt(2)))
    assert not math.isclose(found, apart, abs_tol=0.02), (
        "the questions were drawn for each model apart, so that one may get the hard "
        "ones and the other the easy ones: draw one index, or draw differences"
    )
    assert math.isclose(found, wanted, abs_tol=0.02), (
        f"by the normal distribution the share is about {wanted:.3f}, yours is {found}"
    )
    same = answer([1.0] * 9, [1.0] * 9, 50, torch.Generator().manual_seed(1))
    assert same == 0, "equal means are not higher ones: count only what is above 0"
    print(f"Right: {found:.2f}, and the normal distribution says {wanted:.2f}.")
