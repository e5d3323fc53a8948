"""Learn a tokenizer from the texts that a model will read.

    python -m pretrain.tokenizer texts/*.txt --vocab_size 8192 --out tokenizer.json
    python -m pretrain.prepare texts/*.txt --tokenizer tokenizer.json --out shards

GPT-2's table of 50,257 tokens would be two thirds of a small model, and children's
stories never use most of it. Chapter 2b's own code learns a smaller table here, and
writes it as Hugging Face's `tokenizer.json`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from pretrain.prepare import read_documents
from shared.ch02 import END_OF_TEXT, BPETokenizer


def beginning(path: Path, characters: int) -> Iterator[str]:
    """The first documents of a text file, until they have so many characters."""
    for document in read_documents(path):
        yield document
        characters -= len(document)
        if characters <= 0:
            return


def learn(paths: list[Path], vocab_size: int, characters: int) -> BPETokenizer:
    """A tokenizer of `vocab_size` tokens, one of them `<|endoftext|>`.

    Args:
        paths: .txt or .txt.xz files; see `pretrain.prepare`.
        vocab_size: bytes, merges and the special token together.
        characters: about how much of each file it learns from.

    Raises:
        FileNotFoundError: naming a file that does not exist.
        ValueError: if a file cannot be read, if the texts are too short for the size,
            or for fewer than one character.
    """
    if characters < 1:
        raise ValueError(f"characters must be 1 or more, not {characters}")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    tokenizer = BPETokenizer()
    texts = (text for path in paths for text in beginning(path, characters))
    tokenizer.train(texts, vocab_size, allowed_special={END_OF_TEXT})
    return tokenizer


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.tokenizer",
        description="Learn a tokenizer from the texts that a model will read.",
    )
    parser.add_argument("texts", nargs="+", type=Path, help=".txt or .txt.xz files")
    parser.add_argument("--out", type=Path, required=True, help="the file, NAME.json")
    parser.add_argument(
        "--vocab_size", type=int, default=8192, help="tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--characters",
        type=int,
        default=4_000_000,
        help="about how much of each file it learns from (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    try:
        if given.out.suffix != ".json":
            raise ValueError(f"{given.out} must have a name that ends in .json")
        learn(given.texts, given.vocab_size, given.characters).save(given.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
