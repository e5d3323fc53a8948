"""Chapter 2b: Byte-pair encoding from scratch.

Build GPT-2's tokenizer, train it on a text of your own, and get the very same ids as
OpenAI's.

Exported from bpe.ipynb, which explains every line: change it there, then run `python -m
tools.export`.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import regex

from ch02_text_data.bpe_files import (
    AFTER_UNICODE_16,
    BYTE_CHARACTERS,
    load_gpt2_tables,
    load_tables,
    save_tables,
)
from ch02_text_data.bpe_guards import (
    require_absent,
    require_has,
    require_learned,
    require_not_ordinary,
    require_text,
    require_vocab_size,
    unknown_id,
)
from ch02_text_data.text_data import END_OF_TEXT
from shared.data import get as data_path

__all__ = [
    "count_pairs",
    "merge_pair",
    "train_naive",
    "token_bytes",
    "split_words",
    "split_special",
    "count_words",
    "replace_pair",
    "index_pairs",
    "learn_merges",
    "BYTE_IDS",
    "BYTE_TOKENS",
    "byte_ids",
    "merge_by_rank",
    "BPETokenizer",
]


def count_pairs(sequences: Iterable[Sequence[int]]) -> Counter[tuple[int, int]]:
    """How often each pair of neighbours occurs; no pair spans two sequences."""
    counts: Counter[tuple[int, int]] = Counter()
    for ids in sequences:
        counts.update(zip(ids, ids[1:], strict=False))
    return counts


def merge_pair(ids: Sequence[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """The sequence with each `pair`, read from the left, replaced by `new_id`."""
    merged = []
    i = 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train_naive(
    sequences: Iterable[Sequence[int]], n_merges: int
) -> dict[tuple[int, int], int]:
    """Learn merges by counting everything again before each of them.

    Returns the id of each merged pair, in the order learned: 256, 257, ...; fewer than
    `n_merges` if no pair is left.
    """
    sequences = list(sequences)
    merges: dict[tuple[int, int], int] = {}
    while len(merges) < n_merges and (counts := count_pairs(sequences)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))  # eq. 2b.1
        merges[best] = 256 + len(merges)
        sequences = [merge_pair(ids, best, merges[best]) for ids in sequences]
    return merges


def token_bytes(
    alphabet: dict[int, bytes], merges: dict[tuple[int, int], int]
) -> dict[int, bytes]:
    """The bytes that each id stands for: the alphabet's, then one id per merge."""
    vocab = dict(alphabet)
    for (left, right), new_id in merges.items():
        vocab[new_id] = vocab[left] + vocab[right]
    return vocab


_LETTER = rf"[\p{{L}}--[{AFTER_UNICODE_16}]]"


_NUMBER = rf"[\p{{N}}--[{AFTER_UNICODE_16}]]"


_OTHER = rf"[^\s{_LETTER}{_NUMBER}]"


_WORD = regex.compile(  # V1: the syntax that knows `--`, the difference of two sets
    rf"(?V1)'(?:[sdmt]|ll|ve|re)| ?{_LETTER}+| ?{_NUMBER}+| ?{_OTHER}+|\s+(?!\S)|\s+"
)


def split_words(text: str) -> list[str]:
    """Cut a text as GPT-2 does; the pieces, joined, are the text.

    Source: "Language Models are Unsupervised Multitask Learners", section 2.2, and the
    pattern in the release's `encoder.py`, with the letters and digits of Unicode 16.
    """
    return _WORD.findall(text)


def split_special(text: str, special_tokens: Collection[str]) -> list[str]:
    """Cut a text at special tokens: ordinary text, special, ordinary, ..., ordinary.

    Ordinary texts, at the even places of the list, may be empty.
    """
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)


def count_words(
    texts: Iterable[str], special_tokens: Collection[str] = ()
) -> Counter[str]:
    """How often each word occurs in the texts; special tokens are not words."""
    words: Counter[str] = Counter()
    for text in texts:
        require_text(text)
        for part in split_special(text, special_tokens)[::2]:
            words.update(split_words(part))
    return words


def replace_pair(
    ids: list[int], pair: tuple[int, int], new_id: int
) -> Iterator[tuple[tuple[int, int], int]]:
    """Replace `pair` by `new_id` in the list itself, and report what that changes.

    Yields a pair of neighbours with +1 for each that arises and -1 for each that
    vanishes, other than `pair` itself. Nothing happens until the reports are read.
    """
    left, right = pair
    i = 0
    while i < len(ids) - 1:
        if ids[i] == left and ids[i + 1] == right:
            if i > 0:
                yield (ids[i - 1], left), -1
                yield (ids[i - 1], new_id), 1
            if i + 2 < len(ids):
                yield (right, ids[i + 2]), -1
                yield (new_id, ids[i + 2]), 1
            ids[i : i + 2] = [new_id]
        i += 1


def index_pairs(
    sequences: list[list[int]], times: list[int]
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], set[int]]]:
    """How often each pair occurs, and which sequences, counted `times`, hold it."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    holders: dict[tuple[int, int], set[int]] = defaultdict(set)
    for number, ids in enumerate(sequences):
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] += times[number]
            holders[pair].add(number)
    return counts, holders


def learn_merges(
    words: dict[tuple[int, ...], int], n_merges: int
) -> dict[tuple[int, int], int]:
    """Learn the same merges as `train_naive`, counting again only what changes.

    `words` tells how often each word, a tuple of byte ids, occurs.
    """
    sequences, times = [list(ids) for ids in words], list(words.values())
    counts, holders = index_pairs(sequences, times)
    heap = [(-count, pair) for pair, count in counts.items()]  # least first: eq. 2b.1
    heapq.heapify(heap)
    merges: dict[tuple[int, int], int] = {}
    while heap and len(merges) < n_merges:
        minus_count, pair = heapq.heappop(heap)
        if counts[pair] < -minus_count:  # out of date: the pair has become rarer
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        merges[pair] = 256 + len(merges)
        created = set()
        for number in holders.pop(pair):
            for changed, by in replace_pair(sequences[number], pair, merges[pair]):
                counts[changed] += by * times[number]
                if by > 0:
                    holders[changed].add(number)
                    created.add(changed)
        for new in created:
            if counts[new] > 0:
                heapq.heappush(heap, (-counts[new], new))
    return merges


BYTE_IDS = {byte: i for i, byte in enumerate(BYTE_CHARACTERS)}  # byte: its id


BYTE_TOKENS = {i: bytes([byte]) for byte, i in BYTE_IDS.items()}  # id: its byte


def byte_ids(word: str) -> tuple[int, ...]:
    """The ids of the word's UTF-8 bytes, in GPT-2's numbering."""
    return tuple(BYTE_IDS[byte] for byte in word.encode("utf-8"))


def merge_by_rank(ids: Sequence[int], merges: dict[tuple[int, int], int]) -> list[int]:
    """Apply merges to one word, the first learned first, each from left to right.

    A heap holds the pairs that can be merged, so that a word of n bytes takes
    n log n steps; words can be long: a line of `=`, a text without spaces.
    """
    parts: list[int | None] = list(ids)
    end = len(parts)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))  # neighbours
    pairs = enumerate(zip(ids, ids[1:], strict=False))
    heap = [(merges[pair], i) for i, pair in pairs if pair in merges]
    heapq.heapify(heap)
    while heap:
        new_id, i = heapq.heappop(heap)
        j = after[i]
        if j == end or merges.get((parts[i], parts[j])) != new_id:
            continue  # out of date: one of the two has been merged meanwhile
        parts[i], parts[j] = new_id, None
        h, k = before[i], after[j]  # the neighbours; -1 and `end` if there is none
        after[i] = k
        if k < end:
            before[k] = i
            if (merged := merges.get((new_id, parts[k]))) is not None:
                heapq.heappush(heap, (merged, i))
        if h >= 0 and (merged := merges.get((parts[h], new_id))) is not None:
            heapq.heappush(heap, (merged, h))
    return [part for part in parts if part is not None]


class BPETokenizer:
    """A byte-pair encoder like GPT-2's: any text to ids, and exactly back again.

    A new one knows the 256 bytes; `train`, `load` and `from_gpt2` give it merges. It
    encodes and decodes as a `tiktoken.Encoding` does.
    """

    def __init__(self) -> None:
        self._become(BYTE_TOKENS, {}, {})

    def _become(self, vocab, merges, special_tokens) -> None:
        """Take over complete tables at once, so that no error leaves half of them."""
        ids = {token: i for i, token in vocab.items()}
        require_not_ordinary(special_tokens, ids)
        self.vocab = vocab | {i: text.encode() for text, i in special_tokens.items()}
        self.n_vocab = max(self.vocab) + 1  # the width of a model's output
        self.merges = merges  # in the order learned; their ids ascend
        self.special_tokens = special_tokens
        self._byte_ids = [ids[bytes([byte])] for byte in range(256)]
        self._cache: dict[str, tuple[int, ...]] = {}

    def train(
        self,
        text: str | Iterable[str],
        vocab_size: int,
        allowed_special: Collection[str] = frozenset({END_OF_TEXT}),
    ) -> None:
        """Learn a vocabulary of this size from a text, or from several.

        The size counts bytes, merges and special tokens. Nothing is learned from the
        letters of `allowed_special`.

        >>> tokenizer = BPETokenizer()
        >>> tokenizer.train("hug pug hugs", vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("a hug 🙂"))
        'a hug 🙂'
        """
        special = sorted(set(allowed_special))
        require_vocab_size(vocab_size, special)
        words = count_words([text] if isinstance(text, str) else text, special)
        times = {byte_ids(word): count for word, count in words.items()}
        merges = learn_merges(times, vocab_size - 256 - len(special))
        require_learned(words, merges, vocab_size, special)
        vocab = token_bytes(BYTE_TOKENS, merges)
        last_ids = {token: len(vocab) + i for i, token in enumerate(special)}
        self._become(vocab, merges, last_ids)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which special tokens have no meaning."""
        require_text(text)
        return self._encode_words(text)

    def _encode_words(self, text: str) -> list[int]:
        """The ids of the text's words, each word encoded once and remembered."""
        ids: list[int] = []
        for word in split_words(text):
            found = self._cache.get(word)
            if found is None:
                as_bytes = [self._byte_ids[byte] for byte in word.encode("utf-8")]
                found = tuple(merge_by_rank(as_bytes, self.merges))
                if len(self._cache) >= _CACHED_WORDS:
                    self._cache.clear()
                if len(word) <= _LONGEST_CACHED:
                    self._cache[word] = found
            ids += found
        return ids

    def encode(
        self,
        text: str,
        allowed_special: Collection[str] | str = frozenset(),
        disallowed_special: Collection[str] | str = "all",
    ) -> list[int]:
        """The ids of a text, with the same treatment of special tokens as tiktoken's.

        `allowed_special` become their id; `disallowed_special`, as a rule "all" others,
        may not occur; what is in neither is ordinary text.
        """
        require_text(text)
        known = set(self.special_tokens)
        allowed = known if allowed_special == "all" else known & set(allowed_special)
        refused = known - allowed if disallowed_special == "all" else disallowed_special
        require_absent(text, refused)
        ids: list[int] = []
        for i, part in enumerate(split_special(text, allowed)):
            if i % 2 == 1:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode_words(part)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, whether or not they are text."""
        try:
            return b"".join([self.vocab[i] for i in ids])
        except KeyError as error:
            raise unknown_id(error.args[0], self.n_vocab) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text that the ids stand for.

        Bytes that are not UTF-8 become U+FFFD, or an error with `errors="strict"`.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    @property
    def eot_token(self) -> int:
        """The id of `<|endoftext|>`, the token between two documents."""
        require_has(END_OF_TEXT, self.special_tokens)
        return self.special_tokens[END_OF_TEXT]

    def save(self, path: str | Path) -> None:
        """Write `NAME.json` for Hugging Face, `NAME.tiktoken`, or a folder as GPT-2's.

        If that fails, the old file is still there. Special tokens are left out of
        `.tiktoken`, which has no place for them.
        """
        save_tables(Path(path), self.vocab, self.merges, self.special_tokens)

    @classmethod
    def load(
        cls, path: str | Path, special_tokens: dict[str, int] | None = None
    ) -> "BPETokenizer":
        """Read a tokenizer that `save`, or the program whose format it is, has written.

        `special_tokens` adds ids that the file does not tell. A broken file is a
        ValueError that names the place.
        """
        tokenizer = cls()
        tables = load_tables(Path(path), special_tokens or {}, merge_by_rank)
        tokenizer._become(*tables)
        return tokenizer

    @classmethod
    def from_gpt2(cls) -> "BPETokenizer":
        """GPT-2's own tokenizer, from the two files that OpenAI published."""
        encoder = data_path("gpt2-bpe/encoder.json")
        tables = load_gpt2_tables(encoder, data_path("gpt2-bpe/vocab.bpe"), {})
        tokenizer = cls()
        tokenizer._become(*tables)
        return tokenizer


_CACHED_WORDS = 2**17  # some 30 MB when full


_LONGEST_CACHED = 64  # characters; longer ones hardly ever return
