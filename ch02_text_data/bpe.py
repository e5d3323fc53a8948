"""Chapter 2b: Byte-pair encoding from scratch.

Build GPT-2's tokenizer, train it on a text of your own, and get the very same ids as
OpenAI's.

Exported from bpe.ipynb, which explains every line: change it there, then run `python -m
tools.export`.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise, repeat

import regex

from ch02_text_data.bpe_fast import learn_merges
from ch02_text_data.bpe_files import AFTER_UNICODE_16, BYTE_CHARACTERS, TokenTables
from ch02_text_data.bpe_guards import (
    require_allowed,
    require_learned,
    require_text,
    require_vocab_size,
)
from ch02_text_data.guards import require_no_name
from ch02_text_data.text_data import END_OF_TEXT

__all__ = [
    "merge_pair",
    "BPETokenizerSimple",
    "split_words",
    "count_pairs",
    "train_naive",
    "BYTE_IDS",
    "BYTE_TOKENS",
    "byte_ids",
    "token_bytes",
    "split_special",
    "count_words",
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

    def train(self, text: str, vocab_size: int, verbose: bool = False) -> None:
        """Learn merges from a text until there are `vocab_size` tokens."""
        self.vocab = {byte: bytes([byte]) for byte in range(256)}  # id: its bytes
        self.merges = {}  # (left id, right id): the id of both together
        ids = list(text.encode("utf-8"))
        for new_id in range(256, vocab_size):
            if not (counts := Counter(pairwise(ids))):
                break  # the whole text is one token
            pair = min(counts, key=lambda pair: (-counts[pair], pair))  # eq. 2b.1
            ids = merge_pair(ids, pair, new_id)
            self.merges[pair] = new_id
            self.vocab[new_id] = self.vocab[pair[0]] + self.vocab[pair[1]]
            if verbose:
                print(new_id, self.vocab[new_id], counts[pair], "times", sep="  ")

    def encode(self, text: str) -> list[int]:
        """The ids of a text: its bytes, merged in the order that was learned."""
        ids = list(text.encode("utf-8"))
        for pair, new_id in self.merges.items():
            ids = merge_pair(ids, pair, new_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for."""
        return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="replace")


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


def count_pairs(
    sequences: Iterable[Sequence[int]], times: Iterable[int] | None = None
) -> Counter[tuple[int, int]]:
    """How often each pair of neighbours occurs; a sequence counts `times` times.

    >>> count_pairs([[5, 6, 7], [5, 6]])
    Counter({(5, 6): 2, (6, 7): 1})
    """
    counts: Counter[tuple[int, int]] = Counter()
    for ids, n in zip(sequences, times or repeat(1), strict=False):
        for pair in pairwise(ids):
            counts[pair] += n
    return counts


def train_naive(
    sequences: Iterable[Sequence[int]],
    n_merges: int,
    times: Sequence[int] | None = None,
) -> dict[tuple[int, int], int]:
    """Learn up to `n_merges` merges, counting everything again before each."""
    sequences = list(sequences)
    merges: dict[tuple[int, int], int] = {}
    while len(merges) < n_merges and (counts := count_pairs(sequences, times)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))  # eq. 2b.1
        merges[best] = 256 + len(merges)
        sequences = [merge_pair(ids, best, merges[best]) for ids in sequences]
    return merges


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


def split_special(text: str, special_tokens: Collection[str]) -> list[str]:
    """Cut a text at special tokens: ordinary text, special, ordinary, ..., ordinary.

    The ordinary texts, the first, third and so on, may be empty.
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
        require_no_name(text)
        for part in split_special(text, special_tokens)[::2]:  # ordinary text
            words.update(split_words(part))
    return words


class BPETokenizer(TokenTables):
    """GPT-2's kind of tokenizer: any text to ids, and exactly back again."""

    def train(
        self,
        text: str | Iterable[str],
        vocab_size: int,
        allowed_special: Collection[str] = frozenset({END_OF_TEXT}),
    ) -> None:
        """Learn so many tokens: 256 bytes, merges, and the special ones at the end."""
        special = sorted(set(allowed_special))
        require_vocab_size(vocab_size, special)
        words = count_words([text] if isinstance(text, str) else text, special)
        times = {byte_ids(word): n for word, n in words.items()}
        merges = learn_merges(times, vocab_size - 256 - len(special))
        require_learned(words, merges, vocab_size, special)
        vocab = token_bytes(BYTE_TOKENS, merges)
        last_ids = {token: len(vocab) + i for i, token in enumerate(special)}
        self._become(vocab, merges, last_ids)  # the three tables

    def encode(
        self,
        text: str,
        allowed_special: Collection[str] = frozenset(),
        disallowed_special: Collection[str] = "all",
    ) -> list[int]:
        """The ids of a text; a special token is an id if allowed, else an error."""
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
