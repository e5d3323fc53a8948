"""Speed of the byte-pair encoder beside the plain one, Rust's tokenizers, and tiktoken.

    python benchmarks/bpe.py             one to two minutes
    python benchmarks/bpe.py --quick     one round, some 20 seconds

The contestants take turns, round after round, so that anything else on the machine
disturbs all of them. The tables show medians, and each time divided by ours. The text
is a little of each file of the mirror's corpus (`LLM_COURSE_MIRROR`). Without a mirror
it is the short story again and again; then every word after the first 20 kB is known,
which flatters contestants that count or remember words.
"""

import argparse
import json
import lzma
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ch02_text_data.bpe_files import spell
from shared import data
from shared.ch02 import (
    END_OF_TEXT,
    BPETokenizer,
    byte_ids,
    get_tokenizer,
    merge_pair,
    split_words,
    train_naive,
)

ROUNDS = 5
MEGABYTE = 1_000_000
DOCUMENT_END = END_OF_TEXT + "\n"
TASKS = [(200_000, 512), (MEGABYTE, 2_000), (5 * MEGABYTE, 10_000)]
# Then the story has no more pairs to merge.
LARGEST_VOCABULARY = 1_900 if not os.environ.get("LLM_COURSE_MIRROR") else 10_000
# Every merge takes the plain trainer the same time, so a few are enough.
PLAIN_TRAINING = {"bytes": 200_000, "merges": 8}
PLAIN_ENCODING = 50_000  # characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round")
    rounds = 1 if parser.parse_args().quick else ROUNDS
    text, source = load_text(5 * MEGABYTE)
    print(f"text: {source}; {os.cpu_count()} cores; medians of {rounds} rounds\n")
    print("Training\n" + training_table(text, rounds).to_string() + "\n")
    encoding = encoding_table(text[:MEGABYTE], rounds)
    print("Encoding 1 MB with GPT-2's vocabulary\n" + encoding.to_string() + "\n")
    print("Growth of our training time\n" + growth_table(text, rounds).to_string())


def load_text(n_bytes: int) -> tuple[str, str]:
    """A text of about `n_bytes` bytes, and where it is from."""
    mirror = os.environ.get("LLM_COURSE_MIRROR")
    files = sorted(Path(mirror, "corpus").glob("*.txt.xz")) if mirror else []
    if not files:
        story = data.load_text("short-story") + DOCUMENT_END
        return story * (n_bytes // len(story) + 1), "the short story, repeated"
    streams = [lzma.open(file) for file in files]
    chunk, chunks = 50_000, []
    while len(chunks) * chunk < n_bytes:
        chunks.append(streams[len(chunks) % len(streams)].read(chunk))
    text = b"".join(chunks).decode("utf-8", "ignore")
    return text, f"{len(files)} files of the corpus, {chunk // 1000} kB of each in turn"


def documents(text: str) -> list[str]:
    """The documents of a text; the Rust library spreads them over the cores."""
    return text.split(DOCUMENT_END)


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contestant; in every round each runs once."""
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def train_ours(text: str, vocab_size: int) -> BPETokenizer:
    tokenizer = BPETokenizer()
    tokenizer.train(documents(text), vocab_size, allowed_special=())
    return tokenizer


def train_rust(text: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(text), trainer)
    return tokenizer


def same_merges(ours: BPETokenizer, rust: Tokenizer) -> bool:
    spelled = {i: spell(token) for i, token in ours.vocab.items()}
    merges = [[spelled[left], spelled[right]] for left, right in ours.merges]
    return merges == json.loads(rust.to_str())["model"]["merges"]


def training_table(text: str, rounds: int) -> pd.DataFrame:
    """Seconds to train, one row for each contestant in each task."""
    rows = []
    for size, vocab_size in TASKS:
        vocab_size = min(vocab_size, LARGEST_VOCABULARY)
        part, trained = text[:size], {}

        def ours(part=part, vocab_size=vocab_size, trained=trained):
            trained["ours"] = train_ours(part, vocab_size)

        def rust(part=part, vocab_size=vocab_size, trained=trained):
            trained["rust"] = train_rust(part, vocab_size)

        def plain(part=part):
            start = part[: PLAIN_TRAINING["bytes"]]
            train_naive([start.encode()], PLAIN_TRAINING["merges"])

        seconds = race({"ours": ours, "tokenizers": rust, "plain": plain}, rounds)
        bytes_ratio = size / PLAIN_TRAINING["bytes"]
        merges_ratio = (vocab_size - 256) / PLAIN_TRAINING["merges"]
        seconds["plain, scaled up"] = seconds.pop("plain") * bytes_ratio * merges_ratio
        same = same_merges(trained["ours"], trained["rust"])
        for name, value in seconds.items():
            rows.append(
                {
                    "task": f"{size / MEGABYTE:g} MB to {vocab_size:,}",
                    "contestant": name,
                    "seconds": round(value, 3),
                    "times ours": round(value / seconds["ours"], 1),
                    "merges": "same" if name == "tokenizers" and same else "",
                }
            )
        if not same:
            rows[-2]["merges"] = "DIFFERENT"
    return pd.DataFrame(rows).set_index(["task", "contestant"])


def encoding_table(text: str, rounds: int) -> pd.DataFrame:
    """Megabytes per second of each contestant; all give the same ids."""
    gpt2, tiktoken = BPETokenizer.from_gpt2(), get_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        gpt2.save(Path(folder, "tokenizer.json"))
        rust = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    same = gpt2.encode_ordinary(text) == tiktoken.encode_ordinary(text)
    assert same, "ids differ from tiktoken's"
    parts = documents(text)

    def ours_cold():
        gpt2._cache.clear()
        gpt2.encode_ordinary(text)

    def rust_cold():
        rust.model._clear_cache()
        rust.encode(text)

    seconds = race(
        {
            "ours, cold cache": ours_cold,
            "ours, warm cache": lambda: gpt2.encode_ordinary(text),
            "tiktoken": lambda: tiktoken.encode_ordinary(text),
            "tokenizers, cold cache": rust_cold,
            "tokenizers, warm cache": lambda: rust.encode(text),
            "tokenizers, all cores": lambda: rust.encode_batch_fast(parts),
            "plain": lambda: encode_plainly(gpt2, text[:PLAIN_ENCODING]),
        },
        rounds,
    )
    seconds["plain, scaled up"] = seconds.pop("plain") * len(text) / PLAIN_ENCODING
    ours = seconds["ours, warm cache"]
    return pd.DataFrame(
        {
            "MB/s": {n: len(text.encode()) / s / MEGABYTE for n, s in seconds.items()},
            "times ours, warm": {name: s / ours for name, s in seconds.items()},
        }
    ).round(2)


def encode_plainly(tokenizer: BPETokenizer, text: str) -> list[int]:
    """Search all pairs of a word before each merge, and remember nothing."""
    merges, result = tokenizer.merges, []
    for word in split_words(text):
        ids = list(byte_ids(word))
        while found := [p for p in zip(ids, ids[1:], strict=False) if p in merges]:
            first = min(found, key=merges.get)
            ids = merge_pair(ids, first, merges[first])
        result += ids
    return result


def growth_table(text: str, rounds: int) -> pd.DataFrame:
    """Seconds of ours for texts (rows) and vocabularies (columns) of growing size."""
    vocabularies = sorted({min(v, LARGEST_VOCABULARY) for v in (512, 2_000, 5_000)})
    table = {}
    for size in (MEGABYTE // 4, MEGABYTE, 4 * MEGABYTE):
        part = text[:size]
        seconds = race(
            {
                f"to {v:,}": lambda part=part, v=v: train_ours(part, v)
                for v in vocabularies
            },
            rounds,
        )
        table[f"{size / MEGABYTE:g} MB"] = seconds
    return pd.DataFrame(table).T.round(3)


if __name__ == "__main__":
    main()
