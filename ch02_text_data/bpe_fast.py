"""Byte-pair encoding, fast: `learn_merges` learns as `train_naive` does in bpe.ipynb.

And `merge_by_rank` merges a word as `encode_word` does there. bpe_deeper.ipynb shows
how both work.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

__all__ = [
    "replace_pair",
    "index_pairs",
    "learn_merges",
    "merge_by_rank",
    "WordCache",
]


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
