"""Checks for the exercises of chapter 2: each says what is wrong, and hints at why."""

import random
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, zip_longest

import torch
import torch.nn.functional as F

from ch02_text_data.bpe import count_words, token_bytes
from ch02_text_data.bpe_fast import learn_merges, merge_by_rank
from shared.ch02 import get_tokenizer, split_text
from shared.data import load_text
from shared.exercises import checked, number, one_of, tensor

BYTES = {byte: bytes([byte]) for byte in range(256)}


@checked("2.1", wants="a list of strings")
def lossless_split(split: Callable[[str], list[str]]) -> None:
    """The pieces must join to the text, and words must stay whole."""
    for line in (
        'The tide--"slack," he said--was\n  late. Well-known,  wasn\'t it?\n',
        "Oh (no): _she_ said;\tno! 'Tis me--me.",
    ):
        pieces = split(line)
        assert not isinstance(pieces, str), "a list is wanted, not one string"
        pieces = list(pieces)
        joined = "".join(pieces)
        assert joined == line, (
            f"the pieces join to {joined!r}, not to {line!r}; were spaces or line ends "
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
    nothing = list(split(""))
    assert nothing == [], f"an empty text has no pieces, but you return {nothing}"
    print("Right: nothing is lost, and the words are those of split_text.")


@checked("2.2", wants="a list of whole numbers, one for each token")
def context_sizes(sizes_of: Callable[[int, int, int], list[int]]) -> None:
    """For each token the most context that a window gives it, for any sizes."""
    generator = random.Random(2)
    cases = [(9, 4, 4), (9, 4, 2), (14, 4, 1), (10, 4, 4), (5, 4, 1), (4, 4, 1)]
    cases += [(12, 2, 5), (0, 4, 3)]
    cases += [
        (generator.randrange(40), generator.randint(1, 9), generator.randint(1, 12))
        for _ in range(200)
    ]
    for n, max_length, stride in cases:
        starts = range(0, n - max_length, stride)
        found = list(map(number, sizes_of(n, max_length, stride)))
        sizes = f"{n} tokens, max_length {max_length}, stride {stride}"
        assert len(found) == n, (
            f"{sizes}: you return {len(found)} numbers; one for each token is wanted, "
            "0 where it is never an answer"
        )
        for t, size in enumerate(found):
            windows = [start for start in starts if start < t <= start + max_length]
            seen = [t - start for start in windows]
            told = f"is the answer in the windows that begin at {windows}, after {seen}"
            if not windows:
                told = "is the answer in no window"
                told += "; nothing stands before it" if t == 0 else ""
            assert size == max(seen, default=0), (
                f"{sizes}: you say {size} for token {t}, but it {told}"
            )
    n, T = len(get_tokenizer().encode(load_text("short-story"))), 256
    for stride in (T, T // 2, 1):
        sizes = sizes_of(n, T, stride)
        mean = sum(sizes) / n
        print(f"the story, stride {stride:3}: {mean:.0f} tokens of context on average")
    print(f"Right: the windows show as much in all {len(cases)} cases.")


@checked("2.3", wants="one whole number")
def embedding_parameters(size: Callable[[int, int, int], int]) -> None:
    """The embedding parameters of the four GPT-2 models."""
    published = {  # C: parameters of the whole model, output head tied
        768: 124_439_808,
        1024: 354_823_168,
        1280: 774_030_080,
        1600: 1_557_611_200,
    }
    shares = []
    for width, total in published.items():
        found = number(size(50257, 1024, width))
        wanted = sum(
            torch.nn.Embedding(rows, width, device="meta").weight.numel()
            for rows in (50257, 1024)
        )
        assert found == wanted, (
            f"C = {width}: you say {found:,}, PyTorch counts {wanted:,}; two tables "
            "are wanted, one row per token and one row per position, each C wide"
        )
        shares.append(
            f"C = {width:4}: {found:>11,} of {total:>13,}, {found / total:4.0%}"
        )
    print(*shares, sep="\n")
    print("Right: the larger the model, the smaller the share of its tables.")


@checked("2.4", wants="strings, one `yield` for each part")
def stream(parts_of: Callable) -> None:
    """Whole characters as soon as possible, and nothing lost."""
    tokenizer = get_tokenizer()
    for text in ("plain", "café 🙂 done", "你好，世界", "नमस्ते", "👩‍🚀"):
        ids = tokenizer.encode(text)
        parts = parts_of(ids, tokenizer)
        assert not isinstance(parts, str), (
            "one string came back; `yield` each part as soon as it is complete"
        )
        parts = list(parts)
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


@checked("2.5", wants="a tensor (V, C)")
def embedding_gradient(gradient: Callable) -> None:
    """The same gradient as autograd's, repeated ids included."""
    generator = torch.Generator().manual_seed(5)
    for shape in ((4,), (2, 3), (3, 8)):
        table = torch.randn(5, 2, generator=generator, requires_grad=True)
        ids = torch.randint(5, shape, generator=generator)
        upstream = torch.randn(*shape, 2, generator=generator)
        F.embedding(ids, table).backward(upstream)
        gradient.hint = "give ids one axis, and the outputs' gradients two: (tokens, C)"
        found = tensor(gradient(ids, upstream, 5), 5, 2)
        wrong = ~torch.isclose(found.to(table), table.grad, atol=1e-5).all(dim=1)
        row = int(wrong.int().argmax())
        assert not wrong.any(), (
            f"row {row} should be {table.grad[row].tolist()}, not "
            f"{found[row].tolist()}; id {row} occurs {int((ids == row).sum())} times: "
            "add up what each occurrence asks for (`table[ids] += x` keeps only one of "
            "them)"
        )
    print("Right: equal to autograd's, also where an id occurs more than once.")


@checked("2.6", wants="a list of ids", keeps=True)
def write(writer: Callable) -> None:
    """Every step must stand in the text, and chance must matter; the rest is free."""
    tiny = [1, 2, 1, 3, 1, 2, 4]
    follows = set(pairwise(tiny))
    seen = set()
    for seed in range(40):
        writer.hint = "4 is followed by nothing there; go on with any id of the text"
        found = list(writer(tiny, [2, 1], 6, random.Random(seed)))
        assert len(found) == 6, (
            f"6 new ids are wanted, without the start; you return {len(found)}"
        )
        for pair in pairwise([1, *found]):
            anywhere = pair[0] == 4 and pair[1] in tiny
            assert pair in follows or anywhere, (
                f"in {tiny} no {pair[0]} is followed by {pair[1]!r}, but you wrote "
                f"{found} after [2, 1]"
            )
        again = list(writer(tiny, [2, 1], 6, random.Random(seed)))
        assert again == found, (
            "draw with `chance` alone, so that a text can be repeated"
        )
        seen.add(tuple(found))
    assert len(seen) > 3, (
        f"40 seeds gave {len(seen)} different texts; draw among all that has followed"
    )
    writer.hint = ""
    tokenizer = get_tokenizer()
    ids = tokenizer.encode(load_text("short-story"))
    start = tokenizer.encode("The box")
    written = list(writer(ids, start, 80, random.Random(1)))
    steps = set(pairwise(ids))
    strange = [p for p in pairwise([start[-1], *written]) if p not in steps]
    assert len(written) == 80 and not strange, (
        f"of the story you wrote {len(written)} tokens instead of 80, and "
        f"{len(strange)} of the steps are not in it"
    )
    print(tokenizer.decode(start + written))
    copied = longest_copy(written, ids)
    print(f"the longest stretch that stands in the story: {copied} of 80 tokens")
    print("Right: each step stands in the story. How good is the text?")


def longest_copy(written: list[int], ids: list[int]) -> int:
    """The length of the longest run of `written` that stands in `ids`, too."""
    longest, before = 0, {}  # by where a run ends in ids: its length
    for token in written:
        ends = (i for i, other in enumerate(ids) if other == token)
        before = {i: before.get(i - 1, 0) + 1 for i in ends}
        longest = max(longest, *before.values(), 0)
    return longest


@checked("2.7", wants="the names of the texts in a list")
def cheapest_first(order: Callable, predicted: Callable) -> None:
    """The number of tokens decides, not of characters or words; any guess will do."""
    tokenizer = get_tokenizer()
    texts = {  # by characters, bytes or words the order is another one
        "a": "1 2 3 4 5 6 7 8 9 0",
        "b": "internationalization organization",
        "c": "ab cd ef g",
        "d": "🙂🙂",
    }
    n_tokens = {name: len(tokenizer.encode(text)) for name, text in texts.items()}
    found, wanted = list(order(texts, tokenizer)), sorted(texts, key=n_tokens.get)
    assert found != wanted[::-1], "that begins with the most expensive text"
    assert found == wanted, (
        f"{texts} have {n_tokens} tokens, so the order is {wanted}, not {found}"
    )
    predicted.wants = "the five names in a list"
    texts = variants(load_text("short-story")[:2000])
    guess, found = list(predicted()), order(texts, tokenizer)
    assert sorted(guess) == sorted(texts), (
        f"predict an order of all the names, {', '.join(map(repr, texts))}, not {guess}"
    )
    print("rank   predicted        measured")
    for rank, (name, real) in enumerate(zip(guess, found, strict=True), start=1):
        n = len(tokenizer.encode(texts[real]))
        print(f"{rank:<5}  {name:15}  {real:15} {n:,} tokens")
    print("Right: that is the order of their tokens.")


def variants(text: str) -> dict[str, str]:
    """The same text, written in five ways."""
    return {
        "as it is": text,
        "upper case": text.upper(),
        "without spaces": text.replace(" ", ""),
        "spaces doubled": text.replace(" ", "  "),
        "without vowels": text.translate(str.maketrans("", "", "aeiouAEIOU")),
    }


def small_merges(n_merges: int) -> dict[tuple[int, int], int]:
    """Merges learned from the words of the story, as (left id, right id): new id."""
    words = count_words([load_text("short-story")])
    return learn_merges({tuple(w.encode()): n for w, n in words.items()}, n_merges)


@checked("2b.1", wants="bytes")
def expand(bytes_of: Callable[[int, dict], bytes]) -> None:
    """The bytes of every token of a tokenizer, from its merges alone."""
    merges = small_merges(300)
    vocab = token_bytes(BYTES, merges)
    for token_id, wanted in vocab.items():
        bytes_of.hint = "an id below 256 is a byte, any other was made of two ids"
        found = bytes_of(token_id, dict(merges))
        assert isinstance(found, bytes | bytearray), (
            f"bytes are wanted, such as {wanted}, not {found!r}"
        )
        left, right = next(
            (pair for pair, i in merges.items() if i == token_id), (0, 0)
        )
        whole = f"a byte is itself, bytes([{token_id}])"
        parts = f"it was made of {left} and {right}, in this order"
        assert found == wanted, (
            f"id {token_id} stands for {wanted}, not {bytes(found)}; "
            f"{whole if token_id < 256 else parts}"
        )
    print(f"Right: all {len(vocab)} tokens, without a vocabulary.")


@checked("2b.2", wants="a list of ids", keeps=True)
def drop_merges(encode: Callable[..., list[int]]) -> None:
    """With p = 0 it encodes as chapter 2b does, and with p = 1 the bytes stay."""
    merges = small_merges(300)
    vocab = token_bytes(BYTES, merges)
    texts = (b" lighthouse", b" the", b"a", b"", b" aaaaa", b" waiting")
    words = [list(text) for text in texts]
    for word in words:
        found = list(encode(word, dict(merges), 0.0, random.Random(1)))
        wanted = merge_by_rank(word, merges)
        assert found == wanted, (
            f"with p = 0 nothing is skipped, so {bytes(word)} should become {wanted}, "
            f"not {found}; take the possible merge with the smallest new id, the "
            "leftmost if it is possible at several positions"
        )
        found = list(encode(word, dict(merges), 1.0, random.Random(1)))
        assert found == word, (
            f"with p = 1 every merge is skipped, and {bytes(word)} should stay as it "
            f"is, not become {found}"
        )
    one_merge, chance = {(97, 98): 256}, random.Random(2)
    tries = [list(encode([97, 98], one_merge, 0.3, chance)) for _ in range(2000)]
    share = tries.count([256])
    assert 0.66 < share / 2000 < 0.74, (
        f"one possible merge and p = 0.3: it was done in {share / 2000:.0%} of 2,000 "
        "tries, where 70% are expected"
    )
    long, seen, chance = words[0], Counter(), random.Random(3)
    for _ in range(200):
        found = list(encode(long, merges, 0.5, chance))
        joined = b"".join(vocab[i] for i in found)
        assert joined == bytes(long), f"{bytes(long)} became {joined}"
        seen[tuple(found)] += 1
    assert len(set(map(len, seen))) > 3, (
        f"with p = 0.5 the word {bytes(long)} came in {len(seen)} ways, of "
        f"{sorted(set(map(len, seen)))} tokens; draw again for each possible merge in "
        "each step, not once for the word"
    )
    for ids, times in seen.most_common(4):
        print(f"{times:3} times", *[vocab[i].decode() for i in ids], sep="  ")
    print(f"Right: in 200 tries with p = 0.5, it was cut in {len(seen)} ways.")


@checked("2b.3", wants="a list of tokens, each of them bytes")
def longest_match(encode: Callable, predicted: Callable) -> None:
    """The longest token each time; then the number of tokens beside the merges'."""
    cases = [
        (b"abcd", {b"ab", b"abc", b"cd"}, [b"abc", b"d"], "abc is longer than ab"),
        (b"abcabd", {b"abd", b"ab"}, [b"ab", b"c", b"abd"], "look again each time"),
        (b"xyz", {b"abc"}, [b"x", b"y", b"z"], "where no token fits, take the byte"),
        (b"aaaaa", {b"aa", b"aaaa"}, [b"aaaa", b"a"], "go on behind the token"),
        (b"", {b"ab"}, [], "there is nothing to cut"),
    ]
    for word, some, wanted, why in cases:
        tokens = some | {bytes([byte]) for byte in range(256)}
        encode.hint = why
        found = list(encode(word, tokens))
        assert found == wanted, f"{word} with {some} is {wanted}, not {found}; {why}"
    predicted.wants = "a word"
    guess = one_of(predicted(), ["more", "fewer", "about as many"])
    merges = small_merges(300)
    vocab = token_bytes(BYTES, merges)
    tokens, words = set(vocab.values()), count_words([load_text("short-story")])
    pairs = []  # each word of the story, cut by both
    for word in map(str.encode, words):
        merged = [vocab[i] for i in merge_by_rank(list(word), merges)]
        pairs.append((merged, list(encode(word, tokens))))
    by_merges, by_length = (sum(map(len, cuts)) for cuts in zip(*pairs, strict=True))
    print(f"the longest match: {by_length:,} tokens for {len(words):,} words")
    print(f"the merges:        {by_merges:,} tokens; you predicted {guess!r} above")
    print(f"cut in another way: {sum(a != b for a, b in pairs)} words")
    print("Right: each token is the longest that fits.")


@checked("2b.4", wants="bytes")
def packed(pack: Callable, unpack: Callable) -> None:
    """Any text must come back, and prose must need little more than half its bytes."""
    tokenizer, unpack.wants = get_tokenizer(), "a text"
    story, unseen = load_text("short-story"), load_text("held-out")
    for text in ("hugs", "naïve 中文 🙂", "", "The end.<|endoftext|>", unseen, story):
        data = pack(text, tokenizer)
        assert isinstance(data, bytes | bytearray), (
            f"pack should return bytes, such as b'abc', not {type(data).__name__}"
        )
        found = unpack(bytes(data), tokenizer)
        assert found == text, (
            f"{text[:40]!r} was packed and came back as {found!r:.40}; each id must be "
            "written so that its bytes tell where it ends"
        )
    lines = []
    for name, text in (("the story", story), ("an unseen text", unseen)):
        plain, size = len(text.encode()), len(pack(text, tokenizer))
        zipped = len(zlib.compress(text.encode(), 9))
        lines.append(f"{name:14} {plain:6,} bytes   by zlib {zipped:6,}   {size:6,}")
        assert size < 0.55 * plain, (
            f"{name} needs {size / plain:.0%} of its bytes; ids below 65,536 fit into "
            "two bytes each, and that gives less than 55%"
        )
    print(*(f"{line} by yours" for line in lines), sep="\n")
    print("Right: every text comes back. How few bytes can you get?")
