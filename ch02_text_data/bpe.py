"""Chapter 2b: Byte-pair encoding from scratch.

Build GPT-2's tokenizer, train it on a text of your own, and get the very same ids as
OpenAI's.

Exported from bpe.ipynb and bpe_deeper.ipynb, which explain every line: change it there,
then run `python -m tools.export`.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
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
    require_allowed,
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
    "merge_pair",
    "BPETokenizerSimple",
    "split_special",
    "split_words",
    "BYTE_IDS",
    "BYTE_TOKENS",
    "byte_ids",
    "token_bytes",
    "count_pairs",
    "train_naive",
    "count_words",
    "replace_pair",
    "index_pairs",
    "learn_merges",
    "merge_by_rank",
    "WordCache",
    "BPETokenizer",
]


def merge_pair(ids: Iterable[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replace each `pair` in `ids`, from left to right, by an id that is new there."""
    merged: list[int] = []
    for i in ids:
        if merged and (merged[-1], i) == pair:
            merged[-1] = new_id
        else:
            merged.append(i)
    return merged


class BPETokenizerSimple:
    """Byte-pair encoding as plainly as possible: complete, and slow."""

    def train(self, text: str, vocab_size: int) -> None:
        """Learn merges from a text until the vocabulary has `vocab_size` tokens."""
        self.vocab = {byte: bytes([byte]) for byte in range(256)}  # id: its bytes
        self.merges = {}  # (left id, right id): the id of both together
        ids = list(text.encode("utf-8"))
        for new_id in range(256, vocab_size):
            counts = Counter(pairwise(ids))
            pair = min(counts, key=lambda pair: (-counts[pair], pair))  # eq. 2b.1
            ids = merge_pair(ids, pair, new_id)
            self.merges[pair] = new_id
            self.vocab[new_id] = self.vocab[pair[0]] + self.vocab[pair[1]]

    def encode(self, text: str) -> list[int]:
        """The ids of a text: its bytes, merged in the order that was learned."""
        ids = list(text.encode("utf-8"))
        for pair, new_id in self.merges.items():
            ids = merge_pair(ids, pair, new_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for."""
        return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="replace")


def split_special(text: str, special_tokens: Collection[str]) -> list[str]:
    """Cut a text at special tokens: ordinary text, special, ordinary, ..., ordinary.

    The ordinary texts, the first, third and so on, may be empty.
    """
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)


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

    >>> split_words("It's 2 dogs.")
    ['It', "'s", ' 2', ' dogs', '.']
    """
    return _WORD.findall(text)


BYTE_IDS = {byte: i for i, byte in enumerate(BYTE_CHARACTERS)}  # byte: its id


BYTE_TOKENS = {i: bytes([byte]) for byte, i in BYTE_IDS.items()}  # id: its byte


def byte_ids(word: str) -> tuple[int, ...]:
    """The ids of the word's UTF-8 bytes, in GPT-2's numbering."""
    return tuple(BYTE_IDS[byte] for byte in word.encode("utf-8"))


def token_bytes(
    alphabet: dict[int, bytes], merges: dict[tuple[int, int], int]
) -> dict[int, bytes]:
    """The bytes that each id stands for: the alphabet's, then one id per merge."""
    vocab = dict(alphabet)
    for (left, right), new_id in merges.items():
        vocab[new_id] = vocab[left] + vocab[right]
    return vocab


def count_pairs(sequences: Iterable[Sequence[int]]) -> Counter[tuple[int, int]]:
    """How often each pair of neighbours occurs; no pair spans two sequences.

    >>> count_pairs([[5, 6, 7], [5, 6]])
    Counter({(5, 6): 2, (6, 7): 1})
    """
    counts: Counter[tuple[int, int]] = Counter()
    for ids in sequences:
        counts.update(pairwise(ids))
    return counts


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


def count_words(
    texts: Iterable[str], special_tokens: Collection[str] = ()
) -> Counter[str]:
    """How often each word occurs in the texts; special tokens are not words."""
    words: Counter[str] = Counter()
    for text in texts:
        require_text(text)
        for part in split_special(text, special_tokens)[::2]:  # ordinary text
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
        for pair in pairwise(ids):
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


def merge_by_rank(ids: Sequence[int], merges: dict[tuple[int, int], int]) -> list[int]:
    """Apply merges to one word, the first learned first, each from left to right.

    A heap holds the pairs that can be merged, so that a word of n bytes takes
    n log n steps; words can be long: a line of `=`, a text without spaces.

    >>> merge_by_rank([104, 117, 103], {(117, 103): 256})
    [104, 256]
    """
    parts: list[int | None] = list(ids)
    end = len(parts)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))  # neighbours
    heap = [(merges[p], i) for i, p in enumerate(pairwise(ids)) if p in merges]
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


_CACHED_WORDS = 2**17  # some 30 MB when full


_LONGEST_CACHED = 64  # characters; longer ones hardly ever return


class WordCache(dict):
    """The ids of each word, encoded when first asked for and then remembered."""

    def __init__(self, vocab: dict[int, bytes], merges: dict[tuple[int, int], int]):
        super().__init__()
        ids = {token: i for i, token in vocab.items()}
        self.byte_ids = [ids[bytes([byte])] for byte in range(256)]
        self.merges = merges

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = [self.byte_ids[byte] for byte in word.encode("utf-8")]
        found = tuple(merge_by_rank(ids, self.merges))
        if len(self) >= _CACHED_WORDS:
            self.clear()
        if len(word) <= _LONGEST_CACHED:
            self[word] = found
        return found


class BPETokenizer:
    """A byte-pair encoder like GPT-2's: any text to ids, and exactly back again.

    A new one knows the 256 bytes; `train`, `load` and `from_gpt2` give it merges.
    """

    def __init__(self) -> None:
        self._become(BYTE_TOKENS, {}, {})

    def _become(self, vocab, merges, special_tokens) -> None:
        require_not_ordinary(special_tokens, set(vocab.values()))
        self.vocab = vocab | {i: text.encode() for text, i in special_tokens.items()}
        self.n_vocab = max(self.vocab) + 1  # the width of a model's output
        self.merges = merges  # in the order learned; their ids ascend
        self.special_tokens = special_tokens
        self._cache = WordCache(vocab, merges)

    def train(
        self,
        text: str | Iterable[str],
        vocab_size: int,
        allowed_special: Collection[str] = frozenset({END_OF_TEXT}),
    ) -> None:
        """Learn a vocabulary of this size from a text, or from several.

        It holds bytes, merges and `allowed_special`, from whose letters nothing is
        learned.
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

    def encode(
        self,
        text: str,
        allowed_special: Collection[str] | str = frozenset(),
        disallowed_special: Collection[str] | str = "all",
    ) -> list[int]:
        """The ids of a text; in `allowed_special`, a special token becomes its id.

        `disallowed_special`, by default all others, may not occur: a ValueError.
        """
        special = self.special_tokens
        allowed = require_allowed(text, special, allowed_special, disallowed_special)
        ids: list[int] = []
        for part in split_special(text, allowed):
            ids += [special[part]] if part in allowed else self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which special tokens have no meaning."""
        require_text(text)
        return [i for word in split_words(text) for i in self._cache[word]]

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the ids; bytes that are no text become U+FFFD, or an error."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, whether or not they are text."""
        try:
            return b"".join([self.vocab[i] for i in ids])
        except KeyError as error:
            raise unknown_id(error.args[0], self.n_vocab) from None

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

        `special_tokens` adds ids that the file does not contain. A broken file is a
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

    @property
    def eot_token(self) -> int:
        """The id of `<|endoftext|>`, the token between two documents."""
        require_has(END_OF_TEXT, self.special_tokens)
        return self.special_tokens[END_OF_TEXT]
