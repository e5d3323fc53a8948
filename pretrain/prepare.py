"""Turn text files into shards of tokens, which pretraining reads.

    python -m pretrain.prepare corpus/*.txt.xz --out shards

Each file is one source: `corpus/news.txt.xz` becomes the folder `shards/news/` with

    train-00000.bin ...      token ids as little-endian uint16, two bytes a token
    held_out-00000.bin ...   the same, of documents that training never sees
    index.json               what the folder holds; written last, so that a folder
                             without it is unfinished, and is made again

The tokens are GPT-2's. With `--tokenizer` (see `pretrain.tokenizer`) they are those of
another tokenizer, and the folder keeps a copy of its file.

In the text, `<|endoftext|>` separates two documents, as a rule on a line of its own; in
the shards, each document ends with that token. Copies of a document in a file are held
out together or not at all. Several files are worked on at once. What is complete is not
made again, so an interrupted command goes on where it stopped.
"""

import argparse
import contextlib
import hashlib
import json
import lzma
import multiprocessing
import os
import re
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared.ch02 import END_OF_TEXT, BPETokenizer, get_tokenizer
from shared.files import copy_file, write_atomically
from shared.terminal import say

TOKEN = np.dtype("<u2")  # 65,536 values hold GPT-2's 50,257 ids
TOKENIZER = "tokenizer.json"  # in the folder of the shards, if it is not GPT-2's
SUFFIXES = (".txt", ".txt.xz")
OWN_SHARD = re.compile(r"(train|held_out)-\d{5,}\.bin")
MARK, BOM = END_OF_TEXT.encode(), "\ufeff"  # Windows begins some texts with a BOM
LARGEST = 0.1  # of all tokens, in a document that is held out because too little was


def source_name(path: Path) -> str:
    """The name of a text file as a source: without `.txt` or `.txt.xz`.

    Raises:
        ValueError: for a file of another kind, or a name such as `..`, which cannot be
            that of a new folder.
    """
    for suffix in SUFFIXES:
        name = path.name.removesuffix(suffix)
        if name not in ("", path.name):
            break
    else:
        raise ValueError(
            f"{path} is not a text file; its name must end in .txt or .txt.xz"
        )
    if name != name.strip(". "):
        raise ValueError(
            f"{path} would become the source {name!r}, which begins or ends with a dot "
            "or a space; rename the file"
        )
    return name


def read_documents(path: Path, done: "multiprocessing.Value" = None) -> Iterator[str]:
    """The documents of a text file, one by one, without the blank lines around them.

    Args:
        path: a UTF-8 text, packed (`.txt.xz`) or not, in which `<|endoftext|>`
            separates documents, on a line of its own or within one.
        done: a shared counter, to which the bytes read are added.

    Raises:
        ValueError: if the file is no UTF-8 text or its packing is damaged.
    """
    with path.open("rb") as raw:
        text = lzma.open(raw) if path.suffix == ".xz" else raw
        lines, counted = [], 0

        def document() -> str:
            text = b"".join(lines).decode().strip("\r\n")
            return text.removeprefix(BOM).lstrip("\r\n")

        try:
            for line in text:
                *ended, rest = line.split(MARK)
                for part in ended:
                    lines.append(part.strip(b" \t"))
                    yield document()
                    lines = []
                if ended and done is not None:
                    with done.get_lock():
                        done.value += raw.tell() - counted
                    counted = raw.tell()
                lines.append(rest.lstrip(b" \t") if ended else rest)
            if b"".join(lines).strip():
                yield document()
        except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); it must be UTF-8 text, or such a "
                "text packed by xz"
            ) from error


def same_text(document: str) -> str:
    """The same for documents that differ in blanks, line ends, capitals or encoding."""
    text = unicodedata.normalize("NFC", " ".join(document.split())).casefold()
    return hashlib.sha256(text.encode()).hexdigest()


def choose_held_out(
    lengths: list[int],
    keys: list[str],
    share: float,
    texts: list[str] | None = None,
    least: int = 0,
) -> set[int]:
    """Numbers of the documents to hold out: whole ones, about `share` of all tokens.

    They are taken in the order of `keys`, as long as they fit. The keys are hashes of
    the texts, so the order is random, and the same in every run.

    Args:
        lengths, keys: of each document.
        share: of all tokens.
        texts: equal for copies of a document, which stay together.
        least: tokens that should be held out in any case, if documents are short.
    """
    copies: dict[str, list[int]] = {}
    for i in sorted(range(len(lengths)), key=keys.__getitem__):
        copies.setdefault((texts or keys)[i], []).append(i)
    sizes = {text: sum(lengths[i] for i in same) for text, same in copies.items()}
    total, held, chosen = sum(lengths), 0, set()
    for text, size in sizes.items():
        if size <= share * total - held:
            chosen.add(text)
            held += size
    for text, size in sizes.items():
        if held < least and text not in chosen and size <= LARGEST * total:
            chosen.add(text)
            held += size
    return {i for text in chosen for i in copies[text]}


def write_shards(
    tokens: np.ndarray, spans: list[tuple[int, int]], stem: Path, shard_tokens: int
) -> list[dict]:
    """Write the spans of `tokens`, one after another, to `stem`-00000.bin and so on.

    Returns:
        For each shard its file name and its number of tokens.
    """
    shards = []
    for start, end in spans:
        while start < end:
            if not shards or shards[-1]["tokens"] == shard_tokens:
                name = f"{stem.name}-{len(shards):05d}.bin"
                shards.append({"file": name, "tokens": 0})
            shard = shards[-1]
            size = min(shard_tokens - shard["tokens"], end - start)
            with stem.with_name(shard["file"]).open("ab") as file:
                file.write(tokens[start : start + size].tobytes())
            shard["tokens"] += size
            start += size
    return shards


def file_sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_tokenizer(folder: Path):
    """The tokenizer of a folder of shards, or of a model: its own, or else GPT-2's."""
    path = folder / TOKENIZER
    return BPETokenizer.load(path) if path.is_file() else get_tokenizer()


def tokenizer_name(folder: Path) -> str:
    """What tells tokenizers apart: "gpt2", or the checksum of the folder's own."""
    path = folder / TOKENIZER
    return file_sha256(path) if path.is_file() else "gpt2"


def keep_tokenizer(path: Path | None, out: Path) -> None:
    """Copy the tokenizer's file into the folder of shards.

    All sources in a folder must have the same tokenizer, because one model reads them.

    Raises:
        ValueError: if the file is no tokenizer with `<|endoftext|>`, if its ids do not
            fit into two bytes, or if a source in the folder has another tokenizer.
    """
    if path is None and (out / TOKENIZER).is_file():
        raise ValueError(
            f"{out} has a tokenizer of its own; add --tokenizer {out / TOKENIZER}, or "
            "choose another --out for GPT-2's tokens"
        )
    if path is not None:
        tokenizer = BPETokenizer.load(path)
        if END_OF_TEXT not in tokenizer.special_tokens or tokenizer.n_vocab > 2**16:
            raise ValueError(
                f"{path} has {tokenizer.n_vocab:,} tokens; it must have the special "
                f"token {END_OF_TEXT}, and at most {2**16:,} tokens"
            )
    name = "gpt2" if path is None else file_sha256(path)
    for index_path in sorted(out.glob("*/index.json")):
        index = None
        with contextlib.suppress(ValueError):  # damaged: it is made again
            index = json.loads(index_path.read_text(encoding="utf-8"))
        if isinstance(index, dict) and index.get("tokenizer", name) != name:
            raise ValueError(
                f"{index_path.parent} was made with another tokenizer; name that one "
                "with --tokenizer, or choose another --out"
            )
    if path is not None:
        copy_file(path, out / TOKENIZER)


def encode_document(tokenizer, document: str, path: Path) -> list[int]:
    """The tokens of a document of a file, and the token that ends it.

    Raises:
        ValueError: if the tokenizer gives up; tiktoken does by a panic of Rust's, which
            is no `Exception`.
    """
    try:
        return [*tokenizer.encode_ordinary(document), tokenizer.eot_token]
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        longest = max(
            re.finditer(r"(.)\1*", document, re.DOTALL), key=lambda m: len(m[0])
        )
        start = " ".join(document.split()[:5])[:40]
        raise ValueError(
            f"{path} cannot be tokenised: in the document that begins {start!r} the "
            f"character {longest[1]!r} stands {len(longest[0]):,} times in a row; "
            "shorten that, or take the file out"
        ) from None


def prepare_source(
    path: Path,
    out: Path,
    held_out: float = 0.005,
    shard_tokens: int = 2**26,
    without: str | None = None,
    least_held_out: int = 0,
    done: "multiprocessing.Value" = None,
) -> dict:
    """Tokenise one text file into `out`/<source>, unless that is done already.

    Args:
        path: the text; see `read_documents`.
        out: the folder that gets the source's folder.
        held_out: share of the tokens to hold out, in whole documents. If no document
            is small enough, the end of one of the last is held out.
        shard_tokens: the most tokens that a shard holds.
        without: leave out the documents in which this text stands.
        least_held_out: tokens to hold out at least, if there are so many.
        done: see `read_documents`.

    Returns:
        The contents of `index.json`.

    Raises:
        ValueError: if the file cannot be read or holds no text.
    """
    folder, tokenizer = out / source_name(path), open_tokenizer(out)
    recipe = {
        "text": {"file": path.name, "sha256": file_sha256(path)},
        "tokenizer": tokenizer_name(out),
        "vocab_size": tokenizer.n_vocab,
        "held_out_share": held_out,
        "shard_tokens": shard_tokens,
    }
    index_path = folder / "index.json"
    if index_path.is_file():
        index = {"tokenizer": "unknown"}  # a damaged index is made again
        with contextlib.suppress(ValueError):
            index = json.loads(index_path.read_text(encoding="utf-8"))
        if not isinstance(index, dict) or "tokenizer" not in index:
            raise ValueError(
                f"{index_path} is not of a source that this program made; choose "
                "another --out"
            )
        same = recipe.items() <= index.items() and index.get("without") == without
        if same and tokens_in(index, "held_out") >= least_held_out:
            return index
        index_path.unlink()  # made otherwise, or from another text: make it again
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if OWN_SHARD.fullmatch(old.name):
            old.unlink()

    lengths, keys, texts, empty, left_out = [], [], [], 0, 0
    scratch = folder / "tokens.partial"
    with scratch.open("wb") as file:
        for document in read_documents(path, done):
            if not document.strip():
                empty += 1
                continue
            if without is not None and without in document:
                left_out += 1
                continue
            ids = encode_document(tokenizer, document, path)
            file.write(np.array(ids, TOKEN).tobytes())
            lengths.append(len(ids))
            keys.append(hashlib.sha256(document.encode()).hexdigest())
            texts.append(same_text(document))
    if not lengths:
        scratch.unlink()
        raise ValueError(f"{path} holds no text; take it out of the list of files")

    tokens = np.memmap(scratch, TOKEN, "r")
    ends = np.cumsum(lengths).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    chosen = choose_held_out(lengths, keys, held_out, texts, least_held_out)
    held = [spans[i] for i in sorted(chosen)]
    train = [span for i, span in enumerate(spans) if i not in chosen]
    lacking = least_held_out - sum(end - start for start, end in held)
    if train and held_out > 0 and (not held or lacking > 0):
        lacking = max(lacking, 0 if held else round(held_out * ends[-1]))
        number = last_long_one(
            train, lacking, [texts[i] for i in range(len(texts)) if i not in chosen]
        )
        start, end = train[number]
        cut = end - min(end - start, lacking)
        train[number] = start, cut
        held.append((cut, end))
    index = {
        **recipe,
        "documents": len(lengths),
        "empty_documents": empty,
        "without": without,
        "left_out_documents": left_out,
        "held_out_documents": len(chosen),
        "train": write_shards(tokens, train, folder / "train", shard_tokens),
        "held_out": write_shards(tokens, held, folder / "held_out", shard_tokens),
    }
    del tokens
    scratch.unlink()
    write_atomically(index_path, json.dumps(index, indent=2) + "\n")
    return index


def last_long_one(spans: list[tuple[int, int]], tokens: int, texts: list[str]) -> int:
    """The last document of more than so many tokens of which there is no copy.

    If there is none, the longest.
    """
    times = Counter(texts)
    sizes = [end - start for start, end in spans]
    fitting = [
        i for i, text in enumerate(texts) if times[text] == 1 and sizes[i] > tokens
    ]
    return fitting[-1] if fitting else sizes.index(max(sizes))


def tokens_in(index: dict, split: str) -> int:
    """How many tokens the index of a source counts in a split."""
    return sum(shard["tokens"] for shard in index.get(split, []))


_bytes_done = None  # in a worker process: the counter that all of them share


def _start_worker(counter) -> None:
    global _bytes_done
    _bytes_done = counter


def _work(arguments: tuple) -> dict:
    return prepare_source(*arguments, done=_bytes_done)


def prepare(
    paths: list[Path],
    out: Path,
    held_out: float = 0.005,
    shard_tokens: int = 2**26,
    workers: int | None = None,
    tokenizer: Path | None = None,
    without: str | None = None,
    least_held_out: int = 0,
) -> dict[str, dict]:
    """Tokenise several text files at once, with a progress bar over their bytes.

    Args:
        paths, out, held_out, shard_tokens: see `prepare_source`.
        workers: how many processes; by default one for each core.
        tokenizer: file of a tokenizer; by default GPT-2's is used.
        without, least_held_out: see `prepare_source`.

    Returns:
        For each source its `index.json`.

    Raises:
        FileNotFoundError: naming a file that does not exist.
        ValueError: for two files with the same name, a share outside [0, 1], shards
            below 2 tokens, or a file that `prepare_source` or `keep_tokenizer` refuses.
    """
    if not 0 <= held_out <= 1:
        raise ValueError(f"held_out must lie in [0, 1], not {held_out}; try 0.005")
    if shard_tokens < 2:
        raise ValueError(f"shard_tokens must be 2 or more, not {shard_tokens}")
    names = [source_name(path) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        if names.count(name) > 1:
            raise ValueError(f"two files are called {name}; rename one of them")
    keep_tokenizer(tokenizer, out)
    recipe = held_out, shard_tokens, without, least_held_out
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    workers = min(len(paths), workers or os.cpu_count() or 1)
    total = sum(path.stat().st_size for path in paths)
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="tokenising")
    with bar, ProcessPoolExecutor(workers, context, _start_worker, (counter,)) as pool:
        jobs = [pool.submit(_work, (path, out, *recipe)) for path in paths]
        while not all(job.done() for job in jobs):
            time.sleep(0.2)
            if counter.value > bar.n:
                bar.update(counter.value - bar.n)
        bar.update(total - bar.n)
        return dict(zip(names, [job.result() for job in jobs], strict=True))


class TokenShards:
    """The tokens of one source, as windows of T + 1 ids, read from disk when needed.

    Args:
        folder: what `prepare_source` made.
        split: "train" or "held_out".
        window: T, tokens of input in a window; its targets are one token further on.
        end: the token that ends a document. If it is given, a window begins where a
            document does: with the one that no longer fitted into the window before.
            A document longer than a window goes on in further ones. Every second
            window has the `end` before its document, too. Without `end`, windows
            follow each other.

    Raises:
        FileNotFoundError: if the folder has no `index.json`, or a shard is missing.
        ValueError: if the index is damaged, or a shard does not have the size in it.
    """

    def __init__(self, folder: Path, split: str, window: int, end: int | None = None):
        self.folder, self.name, self.T = folder, folder.name, window
        path = folder / "index.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no index.json, so it is not finished; run "
                "`python -m pretrain.prepare` (again)"
            )
        try:
            self.index = json.loads(path.read_text(encoding="utf-8"))
            shards, self.vocab_size = self.index[split], self.index["vocab_size"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error!r}); delete {folder} and prepare it again"
            ) from None
        self.shards = [self._open(shard) for shard in shards]
        self.starts = [self._starts(shard, end) for shard in self.shards]
        self.ends = np.cumsum([0, *map(len, self.starts)])
        self.tokens = sum(len(shard) for shard in self.shards)

    def _open(self, shard: dict) -> np.ndarray:
        """Map a shard into memory."""
        path = self.folder / shard["file"]
        size, wanted = path.stat().st_size, shard["tokens"] * TOKEN.itemsize
        if size != wanted:
            odd = "an odd number of bytes, " if size % TOKEN.itemsize else ""
            raise ValueError(
                f"{path} has {odd}{size}, but index.json says {wanted}: it is damaged; "
                f"delete {self.folder} and prepare it again"
            )
        return np.memmap(path, TOKEN, "r") if size else np.empty(0, TOKEN)

    def _starts(self, shard: np.ndarray, end: int | None) -> Sequence[int]:
        """Where the windows of a shard begin."""
        last = len(shard) - 1 - self.T  # a window that begins here is still whole
        if end is None:
            return range(0, last + 1, self.T)
        documents = np.append(0, np.flatnonzero(shard == end) + 1)
        starts, start = [], 0
        while start <= last:
            starts.append(start - (start > 0 and len(starts) % 2))
            end_of_window = start + self.T + 1
            next_one = np.searchsorted(documents, end_of_window, side="right") - 1
            following = int(documents[next_one])
            start = following if following > start else start + self.T  # a long one
        return np.array(starts, np.int64)

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each of `vocab_size` tokens occurs, (V,)."""
        found = [np.bincount(shard, minlength=vocab_size) for shard in self.shards]
        return sum(found, np.zeros(vocab_size, np.int64))

    def __len__(self) -> int:
        """How many windows there are; each lies in one shard."""
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> np.ndarray:
        """Window i, (T + 1,), int64.

        Raises:
            IndexError: if there is no window i.
            ValueError: if an id in it is outside the vocabulary.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has {len(self)} windows, so none is {i}")
        shard = int(np.searchsorted(self.ends, i, side="right")) - 1
        start = int(self.starts[shard][i - self.ends[shard]])
        ids = self.shards[shard][start : start + self.T + 1].astype(np.int64)
        if ids.max() >= self.vocab_size:
            where = start + int(ids.argmax())
            raise ValueError(
                f"{self.shards[shard].filename}: token {where} is {ids.max()}, but the "
                f"vocabulary ends at {self.vocab_size - 1}: the shard is "
                f"damaged; delete {self.folder} and prepare it again"
            )
        return ids


def open_sources(
    folder: Path, split: str, window: int, end: int | None = None
) -> dict[str, TokenShards]:
    """The sources in a folder that `prepare` filled, in alphabetical order.

    The other arguments are those of `TokenShards`.

    Raises:
        FileNotFoundError: if there is no source.
        ValueError: if a source was not made with the folder's tokenizer.
    """
    names = sorted(path.name for path in folder.glob("*/") if path.is_dir())
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no sources; run `python -m pretrain.prepare "
            f"TEXTS --out {folder}`"
        )
    sources = {name: TokenShards(folder / name, split, window, end) for name in names}
    tokenizer = tokenizer_name(folder)
    for name, shards in sources.items():
        if shards.index.get("tokenizer", tokenizer) != tokenizer:
            raise ValueError(
                f"source {name} was made with another tokenizer than the one in "
                f"{folder}; delete {folder / name} and prepare it again"
            )
    return sources


def copies_across(folder: Path, names: list[str]) -> dict[tuple[str, str], int]:
    """How many documents that one source holds out another one trains on.

    Returns:
        Numbers above 0 by (the one, the other).
    """
    end, found = open_tokenizer(folder).eot_token, Counter()

    def documents(name: str, split: str) -> set[bytes]:
        shards = TokenShards(folder / name, split, 1).shards
        ends = [np.flatnonzero(shard == end) + 1 for shard in shards]
        pairs = zip(shards, ends, strict=True)
        parts = (part for shard, cuts in pairs for part in np.split(shard, cuts))
        return {hashlib.sha256(part).digest() for part in parts if len(part)}

    held = {name: documents(name, "held_out") for name in names}
    for other in names:
        trained = documents(other, "train")
        for name in names:
            if name != other:
                found[name, other] += len(held[name] & trained)
    return {pair: number for pair, number in found.items() if number}


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.prepare",
        description="Turn text files into shards of tokens, one folder per file.",
    )
    parser.add_argument("texts", nargs="+", type=Path, help=".txt or .txt.xz files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="share of the tokens that training never sees (default: %(default)s); "
        "take more of a short text, such as 0.1; 1 holds out all of it",
    )
    parser.add_argument(
        "--shard-tokens",
        type=int,
        default=2**26,
        metavar="N",
        help="the most tokens in a file (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="made by pretrain.tokenizer (default: GPT-2's)"
    )
    parser.add_argument(
        "--without",
        metavar="TEXT",
        help="leave out the documents in which this stands, such as '[name]'",
    )
    given = parser.parse_args(arguments)
    try:
        indexes = prepare(
            given.texts,
            given.out,
            given.held_out,
            given.shard_tokens,
            given.workers,
            given.tokenizer,
            given.without,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except BrokenProcessPool:
        sys.exit(
            "error: a process was killed, perhaps because memory ran out; give the "
            "command again with --workers 1"
        )
    for name, index in indexes.items():
        train, held = tokens_in(index, "train"), tokens_in(index, "held_out")
        empty = index["empty_documents"]
        skipped = f", {empty} empty ones skipped" if empty else ""
        say(
            f"{name}: {train:,} tokens to train on, {held:,} held out, "
            f"{index['documents']:,} documents{skipped}"
        )
    for (name, other), number in copies_across(given.out, list(indexes)).items():
        documents = "document" if number == 1 else "documents"
        say(
            f"{name} holds out {number:,} {documents} that {other} has too, and "
            "training reads there; put both texts into one file to hold them out for "
            "good"
        )


if __name__ == "__main__":
    main()
