"""Checks for the exercises of chapter 2: each says what is wrong, and hints at why."""

import random
from collections.abc import Callable
from itertools import zip_longest

import torch
import torch.nn.functional as F

from shared.ch02 import get_tokenizer, split_text
from shared.exercises import require_answer


def lossless_split(split: Callable[[str], list[str]]) -> None:
    """Exercise 1: the pieces must join to the text, and words must stay whole."""
    for line in (
        'The tide--"slack," he said--was\n  late. Well-known,  wasn\'t it?\n',
        "Oh (no): _she_ said;\tno! 'Tis me--me.",
    ):
        pieces = split(line)
        require_answer(pieces, "lossless_split")
        assert isinstance(pieces, list), (
            f"a list is wanted, not {type(pieces).__name__}"
        )
        joined = "".join(pieces)
        assert joined == line, (
            f"the pieces join to {joined!r}, not to {line!r}; were blanks or line ends "
            "dropped, as split_text drops them?"
        )
        assert "" not in pieces, (
            "there are empty pieces; re.split puts one between two matches that touch"
        )
        words = [piece for piece in pieces if not piece.isspace()]
        for word, wanted in zip_longest(words, split_text(line)):
            assert word == wanted, (
                f"{word!r} stands where split_text has {wanted!r}, among the pieces "
                f"{pieces}; cut where split_text cuts, at line ends and tabs too"
            )
    assert split("") == [], f"an empty text has no pieces, but you return {split('')}"
    print("Right: nothing is lost, and the words are those of split_text.")


def count_windows(count: Callable[[int, int, int], int]) -> None:
    """Exercise 2: as many windows as a loop finds, for any sizes."""
    require_answer(count(14, 4, 2), "count_windows")
    generator = random.Random(2)
    cases = [(14, 4, 1), (14, 4, 2), (14, 4, 4), (5, 4, 1), (4, 4, 1), (0, 4, 3)]
    cases += [
        (generator.randrange(60), generator.randint(1, 12), generator.randint(1, 15))
        for _ in range(300)
    ]
    for n, max_length, stride in cases:
        wanted = sum(start + max_length < n for start in range(0, n, stride))
        found = count(n, max_length, stride)
        if wanted == 0:
            hint = "a text without room for a window and its target has none"
        elif found % 1:
            hint = "windows come whole: divide with `//`"
        elif found > wanted:
            hint = "the last target lies one token beyond its window"
        else:
            hint = "the first window needs no stride, only the further ones do"
        assert found == wanted, (
            f"{n} tokens, max_length {max_length}, stride {stride}: you say {found}, "
            f"a loop finds {wanted}; {hint}"
        )
    print(f"Right: the same as a loop in all {len(cases)} cases.")


def embedding_sizes(size: Callable[[int, int, int], int]) -> None:
    """Exercise 3: the embedding parameters of the four GPT-2 models."""
    require_answer(size(50257, 1024, 768), "embedding_parameters")
    published = {  # C: parameters of the whole model, output head tied
        768: 124_439_808,
        1024: 354_823_168,
        1280: 774_030_080,
        1600: 1_557_611_200,
    }
    for width, total in published.items():
        found = size(50257, 1024, width)
        wanted = sum(
            layer.weight.numel()
            for layer in (
                torch.nn.Embedding(50257, width, device="meta"),
                torch.nn.Embedding(1024, width, device="meta"),
            )
        )
        assert found == wanted, (
            f"C = {width}: you say {found:,}, PyTorch counts {wanted:,}; two tables "
            "are wanted, one row per token and one row per place, each C wide"
        )
        print(f"C = {width:4}: {found:>11,} of {total:>13,}, {found / total:4.0%}")
    print("Right: the larger the model, the smaller the share of its tables.")


def streamed(stream: Callable) -> None:
    """Exercise 4: whole characters as soon as possible, and nothing lost."""
    tokenizer = get_tokenizer()
    for text in ("plain", "café 🙂 done", "你好，世界", "नमस्ते", "👩‍🚀"):
        ids = tokenizer.encode(text)
        result = stream(ids, tokenizer)
        require_answer(result, "stream")
        assert not isinstance(result, str), (
            "one string came back; `yield` each part as soon as it is complete"
        )
        parts = list(result)
        assert not any("\ufffd" in part for part in parts), (
            f"{text!r} came out as {parts}: the sign for half a character was printed; "
            "keep its bytes back until the rest has arrived"
        )
        assert "".join(parts) == text, (
            f"the parts join to {''.join(parts)!r}, not to {text!r}; are bytes left "
            "over, or bytes written twice?"
        )
        assert "" not in parts, "yield nothing while a character is incomplete, not ''"
        wanted = sum(
            "\ufffd" not in tokenizer.decode(ids[: i + 1]) for i in range(len(ids))
        )
        assert len(parts) >= wanted, (
            f"{text!r} came in {len(parts)} parts, but its {len(ids)} tokens can be "
            f"shown in {wanted}; do not wait longer than a character needs"
        )
    print("Right: every character appears as soon as its last byte has arrived.")


def embedding_gradient(gradient: Callable) -> None:
    """Exercise 5: the same gradient as autograd's, repeated ids included."""
    generator = torch.Generator().manual_seed(5)
    for shape in ((4,), (2, 3), (3, 8)):
        table = torch.randn(5, 2, generator=generator, requires_grad=True)
        ids = torch.randint(5, shape, generator=generator)
        upstream = torch.randn(*shape, 2, generator=generator)
        F.embedding(ids, table).backward(upstream)
        hint = "give ids one axis, and the outputs' gradients two: (tokens, C)"
        found = _call(gradient, ids, upstream, 5, where=f"ids {shape}", hint=hint)
        require_answer(found, "embedding_gradient")
        assert torch.is_tensor(found), f"a tensor is wanted, not {type(found).__name__}"
        assert tuple(found.shape) == (5, 2), (
            f"a gradient has the shape of its table, (V, C) = (5, 2), not "
            f"{tuple(found.shape)}"
        )
        wrong = ~torch.isclose(found.to(table), table.grad, atol=1e-5).all(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            uses = int((ids == row).sum())
            raise AssertionError(
                f"row {row} should be {table.grad[row].tolist()}, not "
                f"{found[row].tolist()}; id {row} occurs {uses} times: add up what "
                "each occurrence asks for (`table[ids] += x` keeps only one of them)"
            )
    print("Right: equal to autograd's, also where an id occurs more than once.")


def merge_most_frequent(merge: Callable[[list[int], int], list[int]]) -> None:
    """Exercise 6: one step, its edge cases, and a published worked example."""
    cases = [
        ([7, 8, 9, 7, 8], [256, 9, 256], "the pair (7, 8) occurs twice, others once"),
        (
            [5, 5, 5, 5, 5],
            [256, 256, 5],
            "after a match, go on behind the pair, so that no token is used twice",
        ),
        (
            [9, 8, 1, 2],
            [9, 8, 256],
            "all pairs occur once, and (1, 2) has the smallest left id",
        ),
        ([], [], "a text of fewer than two ids has no pair, and stays as it is"),
        ([3], [3], "a text of fewer than two ids has no pair, and stays as it is"),
    ]
    for ids, wanted, hint in cases:
        given = list(ids)
        result = _call(merge, given, 256, where=f"{ids}", hint=hint)
        require_answer(result, "merge_most_frequent")
        assert list(result) == wanted, (
            f"{ids} should become {wanted}, not {result}; {hint}"
        )
        assert given == ids, "you changed the list passed in; make a new one"

    ids = list(b"aaabdaaabac")
    for new_id in (256, 257, 258):
        ids = list(merge(ids, new_id))
    assert ids == [258, ord("d"), 258, ord("a"), ord("c")], (
        f"'aaabdaaabac' should be [258, 100, 258, 97, 99] after three merges, not {ids}"
    )
    print("Right: 'aaabdaaabac' became XdXac, as in the published example.")


def _call(answer: Callable, *arguments, where: str, hint: str):
    """What the answer returns; AssertionError with a hint if it raises an error."""
    try:
        return answer(*arguments)
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        raise AssertionError(
            f"for {where} your function raises {type(error).__name__}: {first_line}; "
            f"{hint}"
        ) from error
