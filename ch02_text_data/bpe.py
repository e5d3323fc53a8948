"""Chapter 2: Byte-pair encoding from scratch.

Build GPT-2's tokenizer, train it on a text of your own, and get the very same ids as
OpenAI's.

Exported from bpe.ipynb, which explains every line: change it there, then run `python -m
tools.export`.
"""

import base64
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import regex

from shared.data import get as data_path
from shared.files import replacing, write_atomically

__all__ = [
    "require_text",
    "count_pairs",
    "merge_pair",
    "train_naive",
    "token_bytes",
    "AFTER_UNICODE_16",
    "WORD_PATTERN",
    "split_words",
    "split_special",
    "count_words",
    "byte_characters",
    "BYTE_CHARACTERS",
    "BYTE_IDS",
    "BYTE_TOKENS",
    "byte_ids",
    "spell",
    "replace_pair",
    "index_pairs",
    "learn_merges",
    "DOCUMENT_END",
    "BPETokenizer",
    "merge_by_rank",
    "CACHED_WORDS",
    "LONGEST_CACHED_WORD",
]


def require_text(text: str) -> None:
    """Refuse what is not text, or not text that UTF-8 can write.

    Raises:
        TypeError: if `text` is no string.
        ValueError: if it holds half of a surrogate pair; such halves are an artefact of
            UTF-16 and stand for no character.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a text (str), not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half of a "
            "surrogate pair; mend the text with text.encode('utf-16', 'surrogatepass')"
            ".decode('utf-16', 'replace')"
        ) from None


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

    Returns:
        The id of each merged pair, in the order learned: 256, 257, ...; fewer than
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


# Letters and digits newer than Unicode 16, whose lists tiktoken 0.14 uses.
AFTER_UNICODE_16 = (
    r"\u0558\u058B-\u058C\u088F\u0C5C\u0CDC\u208F\u209D-\u209F\uA7CE-\uA7CF\uA7D2\uA7D4"
    r"\uA7DD-\uA7F1\uAB6C-\uAB6D\U000107BB-\U000107BF\U00010940-\U00010959"
    r"\U00010EC5-\U00010EEE\U00011B0A\U00011DB0-\U00011DF1\U0001246F-\U0001247F"
    r"\U00012550-\U00012686\U00016EA0-\U00016ED3\U00016FF2-\U00016FF6"
    r"\U000187F8-\U000187FF\U00018CD6-\U00018CDA\U00018D09-\U000191D2"
    r"\U0001B123-\U0001B128\U0001B168\U0001D6A6\U0001DF1F-\U0001DF24"
    r"\U0001DF2B-\U0001DFFF\U0001E6C0-\U0001E6FF\U0002B73A-\U0002B73F\U0002B81E"
    r"\U0002CEA2-\U0002CEAD\U000323B0-\U0003FC3F"
)


_LETTER = rf"[\p{{L}}--[{AFTER_UNICODE_16}]]"


_NUMBER = rf"[\p{{N}}--[{AFTER_UNICODE_16}]]"


_OTHER = rf"[^\s{_LETTER}{_NUMBER}]"


# Version 1 of the regex syntax knows differences of sets. English words come first
# because an ASCII letter is the quickest to test.
WORD_PATTERN = regex.compile(
    rf"(?V1) ?[A-Za-z]++{_LETTER}*+| ?{_LETTER}++| ?{_NUMBER}++|'(?:[sdmt]|ll|ve|re)"
    rf"| ?{_OTHER}++|\s+(?!\S)|\s+"
)


def split_words(text: str) -> list[str]:
    """Cut a text as GPT-2 does; the pieces, joined, are the text.

    Source: "Language Models are Unsupervised Multitask Learners", section 2.2, and the
    pattern in the release's `encoder.py`, with the letters and digits of Unicode 16.
    """
    return WORD_PATTERN.findall(text)


def split_special(text: str, special_tokens: Collection[str]) -> list[str]:
    """Cut a text at special tokens: ordinary text, special, ordinary, ..., ordinary.

    Ordinary texts, at the even places of the list, may be empty.

    Raises:
        ValueError: if a special token is shorter than two characters.
    """
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if len(longest_first[-1]) < 2:
        raise ValueError(
            f"special token {longest_first[-1]!r} is too short; give special tokens as "
            "a set of texts such as {'<|endoftext|>'}"
        )
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


def byte_characters() -> dict[int, str]:
    """A visible character for each byte, in the order of GPT-2's ids.

    Bytes that Latin-1 prints come first and stand for themselves; the other 68 follow
    and are written as the characters from U+0100 on: a space as U+0120, `Ġ`.
    Source: `bytes_to_unicode` in the `encoder.py` of GPT-2's release.
    """
    visible = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    hidden = [b for b in range(256) if b not in visible]
    written = {byte: chr(byte) for byte in visible}
    return written | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


BYTE_CHARACTERS = byte_characters()  # byte: its visible character


BYTE_IDS = {byte: i for i, byte in enumerate(BYTE_CHARACTERS)}  # byte: its id


BYTE_TOKENS = {i: bytes([byte]) for i, byte in enumerate(BYTE_CHARACTERS)}  # id: byte


def byte_ids(word: str) -> tuple[int, ...]:
    """The ids of the word's UTF-8 bytes, in GPT-2's numbering."""
    return tuple(BYTE_IDS[byte] for byte in word.encode("utf-8"))


def spell(token: bytes) -> str:
    """A token as GPT-2's files write it: one visible character per byte."""
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def replace_pair(
    ids: list[int], pair: tuple[int, int], new_id: int
) -> Iterator[tuple[tuple[int, int], int]]:
    """Replace `pair` by `new_id` in the list itself, and report what that changes.

    As with every generator, nothing happens until the reports are read; read them all.

    Yields:
        A pair of neighbours with +1 for each that arises and -1 for each that vanishes;
        `pair` itself is not reported where it is replaced.
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
    """How often each pair occurs, and the numbers of the sequences that hold it.

    Args:
        times: how often each sequence counts.
    """
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

    Args:
        words: how often each word, a tuple of byte ids, occurs.

    Returns:
        The id of each merged pair, in the order learned: 256, 257, ...; fewer than
        `n_merges` if no pair is left.
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


DOCUMENT_END = "<|endoftext|>"


class BPETokenizer:
    """A byte-pair encoder like GPT-2's: any text to ids, and exactly back again.

    A new one knows the 256 bytes; `train` makes it learn merges, `load` and `from_gpt2`
    read a finished one. It encodes and decodes as a `tiktoken.Encoding` does.

    >>> tokenizer = BPETokenizer()
    >>> tokenizer.train("hug pug hugs", vocab_size=260)
    >>> tokenizer.decode(tokenizer.encode("a hug 🙂"))
    'a hug 🙂'

    Attributes:
        vocab: the bytes of each id, special tokens included.
        n_vocab: the largest id plus one: the width of a model's output.
        merges: the id of each merged pair, in the order learned; ids ascend.
        special_tokens: the id of each special token's text.
    """

    def __init__(self) -> None:
        self._become(BYTE_TOKENS, {}, {})

    def _become(
        self,
        vocab: dict[int, bytes],
        merges: dict[tuple[int, int], int],
        special_tokens: dict[str, int],
    ) -> None:
        """Take over complete tables at once, so that no error leaves half of them."""
        known = {token: i for i, token in vocab.items()}
        if taken := [text for text in special_tokens if text.encode() in known]:
            raise ValueError(f"special tokens that are ordinary tokens too: {taken}")
        self.vocab = vocab | {i: text.encode() for text, i in special_tokens.items()}
        self.n_vocab = max(self.vocab) + 1
        self.merges = merges
        self.special_tokens = special_tokens
        self._byte_ids = [known[bytes([byte])] for byte in range(256)]
        self._cache: dict[str, tuple[int, ...]] = {}

    def train(
        self,
        text: str | Iterable[str],
        vocab_size: int,
        allowed_special: Collection[str] = frozenset({DOCUMENT_END}),
    ) -> None:
        """Learn a vocabulary from a text, or from several: an iterable of texts.

        Args:
            vocab_size: 256 bytes, the merges and the special tokens together.
            allowed_special: texts that become one token each and are not learned from.

        Raises:
            ValueError: if the size is too small, or too large for the text, or the text
                is empty, or a special token is too short to be one.
        """
        special = sorted(set(allowed_special))
        least = 256 + len(special)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(special)} "
                f"special tokens need {least}"
            )
        words = count_words([text] if isinstance(text, str) else text, special)
        if not words:
            raise ValueError("the text to train on is empty; it needs at least a word")
        times = {byte_ids(word): count for word, count in words.items()}
        merges = learn_merges(times, vocab_size - least)
        if len(merges) < vocab_size - least:
            raise ValueError(
                f"the text runs out of pairs after {len(merges)} merges; give more "
                f"text, or a vocab_size of at most {least + len(merges)}"
            )
        vocab = token_bytes(BYTE_TOKENS, merges)
        special_ids = {token: len(vocab) + i for i, token in enumerate(special)}
        self._become(vocab, merges, special_ids)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text in which special tokens have no meaning."""
        require_text(text)
        ids: list[int] = []
        for word in split_words(text):
            found = self._cache.get(word)
            ids += self._encode_word(word) if found is None else found
        return ids

    def _encode_word(self, word: str) -> list[int]:
        """The ids of a word, which is put into the cache."""
        as_bytes = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        ids = merge_by_rank(as_bytes, self.merges)
        if len(word) <= LONGEST_CACHED_WORD:
            if len(self._cache) >= CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = tuple(ids)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, whether or not they are text.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        try:
            return b"".join([self.vocab[i] for i in ids])
        except KeyError as error:
            raise ValueError(
                f"token id {error.args[0]!r} is not in the vocabulary: ids are "
                f"integers from 0 to {self.n_vocab - 1} (for a tensor, its tolist())"
            ) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text that the ids stand for.

        Args:
            errors: what to do with bytes that are not UTF-8: "replace" them by U+FFFD,
                or be "strict" and raise UnicodeDecodeError.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def encode(
        self,
        text: str,
        allowed_special: Collection[str] | str = frozenset(),
        disallowed_special: Collection[str] | str = "all",
    ) -> list[int]:
        """The ids of a text, with the same treatment of special tokens as tiktoken's.

        Args:
            allowed_special: special tokens that become their id; "all" for every one.
            disallowed_special: those that may not occur; "all" for every one that is
                not allowed, () to encode the others as ordinary text.

        Raises:
            ValueError: if a disallowed special token occurs in the text, or the text
                holds half of a surrogate pair.
        """
        require_text(text)
        known = set(self.special_tokens)
        allowed = known if allowed_special == "all" else known & set(allowed_special)
        if disallowed_special == "all":
            disallowed_special = known - allowed
        for token in sorted(disallowed_special):
            if token in text:
                raise ValueError(
                    f"the text holds the special token {token!r}; pass it in "
                    "allowed_special to encode it as such, or disallowed_special=() to "
                    "encode it as ordinary text"
                )
        ids: list[int] = []
        for i, part in enumerate(split_special(text, allowed)):
            if i % 2 == 1:
                ids.append(self.special_tokens[part])
            else:
                ids += self.encode_ordinary(part)
        return ids

    @property
    def eot_token(self) -> int:
        """The id of `<|endoftext|>`, the token between two documents.

        Raises:
            ValueError: if this tokenizer has no such token.
        """
        if DOCUMENT_END not in self.special_tokens:
            raise ValueError(f"this tokenizer has no special token {DOCUMENT_END!r}")
        return self.special_tokens[DOCUMENT_END]

    def save(self, path: str | Path) -> None:
        """Write the tokenizer in the format that the path's name asks for.

        Args:
            path: `NAME.json` for Hugging Face's format; `NAME.tiktoken` for tiktoken's,
                which leaves out special tokens; otherwise a folder, made if it is not
                there, for GPT-2's `encoder.json` and `vocab.bpe`.

        Raises:
            ValueError: if a special token is spelled like another token.
            OSError: if writing fails; the old file is still there.
        """
        path = Path(path)
        if path.suffix == ".json":
            write_atomically(path, _tokenizer_json(self))
        elif path.suffix == ".tiktoken":
            write_atomically(path, _tiktoken_ranks(self))
        else:
            encoder, merges = _gpt2_files(self)
            files = path / "encoder.json", path / "vocab.bpe"
            with replacing(files[0]) as ids, replacing(files[1]) as rules:
                ids.write_text(encoder, encoding="utf-8", newline="\n")
                rules.write_text(merges, encoding="utf-8", newline="\n")

    @classmethod
    def _assemble(
        cls,
        source: str,
        ids: dict[str, int],
        merges: list[tuple[str, str, str]],
        special_tokens: dict[str, int],
    ) -> "BPETokenizer":
        """A tokenizer from the parts of a file, if they fit together."""
        special = {t: i for t, i in ids.items() if _SPECIAL_FORM.fullmatch(t)}
        special |= special_tokens
        ordinary = {t: i for t, i in ids.items() if t not in special}
        entries = {*ids.items(), *special.items()}
        different = {i for _, i in entries if type(i) is int}
        if not len(entries) == len(different) == len(ordinary) + len(special):
            raise ValueError(f"{source}: ids must be integers, each for one token")
        vocab, merge_ids = _connect(source, ordinary, merges)
        for token, i in ordinary.items():
            if i not in vocab:
                raise ValueError(
                    f"{source}: {token!r} (id {i}) is neither a byte nor made by a "
                    "merge. If it is a special token, pass it in special_tokens; if "
                    "not, merges are missing"
                )
        tokenizer = cls()
        tokenizer._become(vocab, merge_ids, special)
        return tokenizer

    @classmethod
    def load(
        cls, path: str | Path, special_tokens: dict[str, int] | None = None
    ) -> "BPETokenizer":
        """Read a tokenizer that `save`, or the program whose format it is, has written.

        Args:
            path: `NAME.json`, `NAME.tiktoken`, or a folder with GPT-2's two files.
            special_tokens: ids of special tokens that the file does not tell: all of
                them in a `.tiktoken` file, and in GPT-2's those unlike `<|name|>`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a file is broken or two do not belong together; the message
                names the file and the line.
        """
        path = Path(path)
        special = dict(special_tokens or {})
        if path.suffix == ".json":
            ids, merges, added = _read_tokenizer_json(path)
            return cls._assemble(str(path), ids, merges, added | special)
        if path.suffix == ".tiktoken":
            return cls._assemble(str(path), *_read_tiktoken_ranks(path), special)
        encoder = path / "encoder.json"
        parts = _read_gpt2_files(encoder, path / "vocab.bpe")
        return cls._assemble(str(encoder), *parts, special)

    @classmethod
    def from_gpt2(cls) -> "BPETokenizer":
        """GPT-2's own tokenizer, from the two files that OpenAI published."""
        encoder = data_path("gpt2-bpe/encoder.json")
        parts = _read_gpt2_files(encoder, data_path("gpt2-bpe/vocab.bpe"))
        return cls._assemble(str(encoder), *parts, {})


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


CACHED_WORDS = 2**17  # some 30 MB when full


LONGEST_CACHED_WORD = 64  # characters; longer ones hardly ever return


def _gpt2_files(tokenizer: "BPETokenizer") -> tuple[str, str]:
    """What GPT-2's `encoder.json` and `vocab.bpe` say about this tokenizer."""
    lines = ["#version: 0.2", *_spelled_merges(tokenizer), ""]
    return json.dumps(_spelled_vocabulary(tokenizer)), "\n".join(lines)


def _spelled_vocabulary(tokenizer: "BPETokenizer") -> dict[str, int]:
    """The id of each token: ordinary ones spelled, special ones as they are."""
    special = {i: text for text, i in tokenizer.special_tokens.items()}
    vocab = sorted(tokenizer.vocab.items())
    ids = {special.get(i) or spell(token): i for i, token in vocab}
    if len(ids) < len(vocab):
        raise ValueError(f"one of {list(special.values())} looks like another token")
    return ids


def _spelled_merges(tokenizer: "BPETokenizer") -> list[str]:
    """The merges in order, each as two spelled tokens with a space between."""
    spelled = {i: spell(token) for i, token in tokenizer.vocab.items()}
    return [f"{spelled[left]} {spelled[right]}" for left, right in tokenizer.merges]


def _tiktoken_ranks(tokenizer: "BPETokenizer") -> str:
    """What a `.tiktoken` file says: bytes and id of each token that is not special."""
    special = tokenizer.special_tokens.values()
    return "".join(
        f"{base64.b64encode(token).decode()} {i}\n"
        for i, token in sorted(tokenizer.vocab.items())
        if i not in special
    )


_HF_SETTINGS = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
}


_HF_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


_HF_ADDED = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)


def _tokenizer_json(tokenizer: "BPETokenizer") -> str:
    """What Hugging Face's `tokenizer.json` says about this tokenizer."""
    ids = _spelled_vocabulary(tokenizer)
    added = [
        {"id": i, "content": text, **_HF_ADDED, "special": True}
        for text, i in tokenizer.special_tokens.items()
    ]
    parts = {"version": "1.0", "truncation": None, "padding": None}
    parts |= {"added_tokens": added, **_HF_SETTINGS, "post_processor": None}
    parts |= {"decoder": _HF_SETTINGS["pre_tokenizer"]}
    parts |= {"model": _HF_MODEL | {"vocab": ids, "merges": _spelled_merges(tokenizer)}}
    return json.dumps(parts, ensure_ascii=False, indent=1)


def _connect(
    source: str, ids: dict[str, int], spelled_merges: Iterable[tuple[str, str, str]]
) -> tuple[dict[int, bytes], dict[tuple[int, int], int]]:
    """The tables of a tokenizer from what a file says.

    Args:
        source: the name of the file with the ids, for messages.
        ids: the id of each spelled token.
        spelled_merges: for each merge its place in the file and its two tokens.

    Raises:
        ValueError: if a byte has no id, or a merge does not fit what came before it.
    """
    missing = [c for c in BYTE_CHARACTERS.values() if c not in ids]
    if missing:
        raise ValueError(f"{source}: no id for the bytes {missing[:9]}")
    vocab = {ids[c]: bytes([byte]) for byte, c in BYTE_CHARACTERS.items()}
    merges: dict[tuple[int, int], int] = {}
    newest = -1
    for place, left, right in spelled_merges:
        for part in (left, right):
            if ids.get(part) not in vocab:
                raise ValueError(
                    f"{place}: {part!r} is neither a byte nor made by an earlier merge"
                )
        new_id = ids.get(left + right, -1)
        if new_id <= newest or new_id in vocab:
            raise ValueError(
                f"{place}: {left + right!r} has "
                + ("no id" if new_id < 0 else f"id {new_id}, not above {newest}")
                + "; the merges and the vocabulary do not belong together"
            )
        merges[ids[left], ids[right]] = newest = new_id
        vocab[new_id] = vocab[ids[left]] + vocab[ids[right]]
    return vocab, merges


def _read_text(path: Path) -> str:
    """The text of a file, or a ValueError that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text") from None


def _read_json(path: Path) -> dict:
    """The JSON object in a file, or a ValueError that names it."""
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, not a {type(content).__name__}")
    return content


def _read_gpt2_files(encoder: Path, bpe: Path) -> tuple[dict, list]:
    """Ids and merges, as `_connect` wants them, of `encoder.json` and `vocab.bpe`."""
    lines = _read_text(bpe).removesuffix("\n").split("\n")
    merges = []
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        place = f"{bpe}, line {number}"
        parts = line.split(" ")
        if len(parts) != 2 or "" in parts:
            raise ValueError(f"{place}: expected two tokens, not {line!r}")
        merges.append((place, *parts))
    return _read_json(encoder), merges


def _read_tokenizer_json(path: Path) -> tuple[dict, list, dict[str, int]]:
    """Ids, merges and special tokens of Hugging Face's `tokenizer.json`."""
    content = _read_json(path)
    cut = content.get("pre_tokenizer") or {}
    if cut.get("type") != "ByteLevel" or not cut.get("use_regex", True):
        raise ValueError(f"{path}: the pre_tokenizer is not GPT-2's, but {cut}")
    if cut.get("add_prefix_space", True) or content.get("normalizer"):
        raise ValueError(f"{path}: add_prefix_space and normalizer would change texts")
    model = content.get("model") or {}
    for name, plain in _HF_MODEL.items():
        if (model.get(name) or plain) != plain:
            raise ValueError(f"{path}: model.{name} is {model[name]!r}, not {plain!r}")
    merges = []
    for number, merge in enumerate(model.get("merges", []), start=1):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2:
            raise ValueError(f"{path}, merge {number}: not two tokens: {merge!r}")
        merges.append((f"{path}, merge {number}", *parts))
    added = content.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added}
    return model.get("vocab", {}), merges, special


def _read_tiktoken_ranks(path: Path) -> tuple[dict, list]:
    """Ids and merges, as `_connect` wants them, of a `.tiktoken` file."""
    tokens: dict[int, tuple[str, bytes]] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        place = f"{path}, line {number}"
        try:
            token, rank = line.split()
            entry = place, base64.b64decode(token, validate=True)
        except ValueError:
            raise ValueError(f"{place}: expected base64 and an id: {line!r}") from None
        if not rank.isdecimal() or int(rank) in tokens:
            raise ValueError(f"{place}: {rank!r} is no id, or another token's")
        tokens[int(rank)] = entry
    byte_ids = {token[0]: i for i, (_, token) in tokens.items() if len(token) == 1}
    if len(byte_ids) < 256:
        raise ValueError(f"{path}: only {len(byte_ids)} of the 256 bytes have an id")
    found: dict[tuple[int, ...], int] = {}
    merges = []
    for rank, (place, token) in sorted(tokens.items()):
        if len(token) == 1:
            continue
        pair = merge_by_rank([byte_ids[byte] for byte in token], found)
        if len(pair) != 2:
            raise ValueError(f"{place}: {token!r} does not consist of two older tokens")
        found[tuple(pair)] = rank
        merges.append((place, *(spell(tokens[i][1]) for i in pair)))
    return {spell(token): i for i, (_, token) in tokens.items()}, merges


# No merge makes such a token: letters and signs are cut apart before merging.
_SPECIAL_FORM = regex.compile(r"<\|.*\p{L}.*\|>")
