"""Checks for the exercises of chapter 7: each says what is wrong, and hints at why."""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch07 import format_answer, format_prompt
from shared.exercises import NotYet, checked, number, one_of, tensor


@checked("7.1", wants="the answer, a string")
def extract_answer(answer: Callable[[str, str], str]) -> None:
    """The answer alone."""
    prompt = "User: What follows Assistant: here?\nAssistant:"
    found = answer(prompt, prompt + " A pear.\n")
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
        refused = False
    except NotYet as failure:
        if not (refused := isinstance(failure.error, ValueError)):
            raise
    assert refused, (
        "a text that does not begin with the prompt must raise a ValueError: its first "
        "letters would be cut off unseen"
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


class _Count(TorchFunctionMode):
    """Counts the calls of PyTorch's functions."""

    calls = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.calls += 1
        return function(*arguments, **(options or {}))


def work_grows(answer: Callable) -> bool:
    """Whether more texts in a batch mean more calls of PyTorch's functions."""
    calls = []
    for B in (2, 9):
        with _Count() as count:
            answer(torch.full((B, 5), 7), [2] * B)
        calls.append(count.calls)
    return calls[1] > calls[0]


@checked("7.2", wants="a tensor (B, T) of targets", keeps=True)
def mask_prompts(answer: Callable[[torch.Tensor, list[int]], torch.Tensor]) -> None:
    """Targets of the prompts become -100."""
    targets = torch.tensor([[2, 3, 4, 50256], [6, 7, 50256, -100]])
    found = tensor(answer(targets, [3, 1]), 2, 4)
    wanted = torch.tensor([[-100, -100, 4, 50256], [6, 7, 50256, -100]])
    late = torch.tensor([[-100, -100, -100, 50256], [-100, 7, 50256, -100]])
    assert not torch.equal(found, late), (
        "one place too many: at the prompt's last token the target is the answer's "
        "first token, and that is the one it must learn most"
    )
    assert torch.equal(found, wanted), (
        f"for prompts of 3 and 1 tokens wanted {wanted.tolist()}, found "
        f"{found.tolist()}"
    )
    assert torch.equal(tensor(answer(targets, [0, 0]), 2, 4), targets), (
        "a prompt of no tokens masks nothing"
    )
    assert not has_loop(answer.function) and not work_grows(answer), (
        "the targets are right, but there is a loop: compare a row of positions (T,) "
        "with a column of lengths (B, 1), and the whole mask is there at once"
    )
    print("Right: every prompt is silent, and no answer has lost its first token.")


def plain_list(values) -> list:
    """Numbers as a list, whether they came as a list, an array or a tensor."""
    values = torch.as_tensor(values).flatten() if hasattr(values, "shape") else values
    return [v.item() if hasattr(v, "item") else v for v in values]


@checked("7.3", wants="two lists, ids and marks")
def encode_conversation(answer: Callable) -> None:
    """Several turns, of which the answers are learned."""
    tokenizer = get_tokenizer()
    turns = [("Name a fruit.", "Pear."), ("Another?", "Plum.")]
    ids, learned = map(plain_list, answer(turns, tokenizer))
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
    end = tokenizer.eot_token
    assert ids.count(end) == 2, (
        f"each answer ends with the one token {end}, `tokenizer.eot_token`, not with "
        "the letters of its name"
    )
    written = tokenizer.decode([i for i, yes in zip(ids, learned, strict=True) if yes])
    assert written != " Pear. Plum.", (
        "the model must learn to stop, too: the end after an answer counts"
    )
    assert written == " Pear.<|endoftext|> Plum.<|endoftext|>", (
        f"to be learned are the answers and their ends, not {written!r}"
    )
    print("Right: it learns to answer in every turn, and to ask in none.")


@checked("7.4", wants="1, 2 or 0")
def fair_verdict(answer: Callable[[Callable, str, str], int]) -> None:
    """Both orders."""

    def longer(first: str, second: str) -> bool:
        return len(first) > len(second)

    found = number(answer(longer, "a long answer", "short"))
    assert found == 1, f"the first answer won in both orders, so 1, not {found}"
    assert number(answer(longer, "short", "a long answer")) == 2, (
        "the second answer won in both orders, so 2: asked (other, one), a True means "
        "that `other` won"
    )
    for always in (True, False):
        found = number(answer(lambda first, second, says=always: says, "a", "b"))
        assert found == 0, (
            "a judge that names the same place in both orders has told nothing: 0"
        )
    print("Right: what depends on the order alone is a draw.")


@checked("7.5", wants="one number")
def share_better(
    answer: Callable[[list[float], list[float], int, torch.Generator], float],
) -> None:
    """The paired bootstrap, and the normal distribution."""
    chance = torch.Generator().manual_seed(7)
    difficulty = torch.rand(400, generator=chance)
    gains = 0.02 + 0.2 * torch.randn(400, generator=chance)
    one, other = (difficulty + gains).tolist(), difficulty.tolist()
    given = torch.Generator().manual_seed(1)
    before = given.get_state()
    found = number(answer(one, other, 4000, given))
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
    assert not torch.equal(given.get_state(), before), (
        "the share is right, but nobody can repeat it: draw with the generator given"
    )
    same = number(answer([1.0] * 9, [1.0] * 9, 50, torch.Generator().manual_seed(1)))
    assert same == 0, "equal means are not higher ones: count only what is above 0"
    print(f"Right: {found:.2f}, and the normal distribution says {wanted:.2f}.")


TINY = {
    "vocab_size": 50257,
    "context_length": 64,
    "emb_dim": 8,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
ENTRIES = [
    {"instruction": "Name a fruit.", "output": "Pear."},
    {
        "instruction": "Say it again.",
        "input": "Wind and rain",
        "output": "Wind and rain",
    },
]


def _losses(model, entry, tokenizer, style) -> tuple[torch.Tensor, int]:
    """The loss of every token but the first, and how many belong to the prompt."""
    prompt = tokenizer.encode(format_prompt(entry, style))
    said = tokenizer.encode(format_answer(entry["output"], style))
    ids = torch.tensor([*prompt, *said, tokenizer.eot_token])
    losses = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
    return losses, len(prompt) - 1


@checked("7.6", wants="one number")
@torch.no_grad()
def answer_loss(answer: Callable, predicted: Callable) -> None:
    """Every token of the answers and their ends, and no other; any guess will do."""
    torch.manual_seed(5)
    model = GPTModel(TINY).eval()
    tokenizer = get_tokenizer()
    model.out_head.weight.mul_(20)  # losses that differ from token to token
    for style in ("chat", "alpaca", "plain"):
        found = number(answer(model, ENTRIES, tokenizer, style))
        pairs = [_losses(model, entry, tokenizer, style) for entry in ENTRIES]
        parts = [each[begin:] for each, begin in pairs]
        wrong = {
            "the prompts must not count, only answers": [each for each, _ in pairs],
            "the end after each answer counts, too": [x[:-1] for x in parts],
            "the answer's first token counts too": [x[1:] for x in parts],
            "count tokens, not entries: a long answer weighs more": [
                torch.stack([x.mean() for x in parts])
            ],
        }
        for reason, others in wrong.items():
            mean = torch.cat(others).mean()
            assert not math.isclose(found, mean, rel_tol=1e-4), reason
        wanted = torch.cat(parts).mean().item()
        assert math.isclose(found, wanted, rel_tol=1e-4), (
            f"in the style {style!r} the check's two answers have a loss of "
            f"{wanted:.4f} per token, not {found:.4f}"
        )
    predicted.wants = "the name of a style"
    one_of(predicted(), ["chat", "alpaca", "plain"])
    print("Right: only what the model is to write counts.")
