"""Write stories of the course's village, as a source that pretraining reads.

    python -m pretrain.village --out texts --tales 150000
    python -m pretrain.prepare texts/village.txt --held-out 0 --out shards

There are as many stories as one likes, and no text of anybody else is needed. One of
five tells each event in always the same way: from such tales a model learns sooner that
it can look back. Half of all (`--asked`) follow a line that asks for them, as in
`pretrain.stories`. Stories with combinations that training never sees go into
`held-out-village.txt`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from pretrain.stories import Chance
from shared.ch02 import END_OF_TEXT
from shared.files import write_atomically
from shared.village import tell

HELD_OUT = 300  # tales
SIMPLE = 5  # one tale of five is simple


def asked_for(seed: int, asked: float) -> str:
    """A tale to train on, often after a line that asks for it."""
    tale, chance = tell(seed, simple=seed % SIMPLE == 0), Chance(seed)
    if chance.random() >= asked or not tale.requests:
        return tale.text
    return f"{chance.draw(tale.requests, 1)[0]}\n\n{tale.text}"


def write_village(out: Path, tales: int, asked: float = 0.5) -> list[Path]:
    """Write `village.txt` and `held-out-village.txt` into the folder `out`.

    Args:
        out: the folder, which is made if there is none.
        tales: how many to train on: those of the seeds from 0 on.
        asked: share of them that follow a request.

    Raises:
        ValueError: for fewer than one tale, or for a share that is none.
        OSError: if a file cannot be written; an older one stays as it was.
    """
    if tales < 1:
        raise ValueError(f"tales must be 1 or more, not {tales}")
    if not 0 <= asked <= 1:
        raise ValueError(f"asked must be a share from 0 to 1, not {asked}")
    held_out = (tell(seed, "held-out").text for seed in range(HELD_OUT))
    train = (asked_for(seed, asked) for seed in tqdm(range(tales), desc="tales"))
    paths = [out / "village.txt", out / "held-out-village.txt"]
    for path, texts in zip(paths, (train, held_out), strict=True):
        write_atomically(path, "".join(_documents(texts)))
    return paths


def _documents(texts: Iterator[str]) -> Iterator[str]:
    return (f"{text}\n{END_OF_TEXT}\n" for text in texts)


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.village",
        description="Write stories of the village, as a source for pretraining.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the texts")
    text = "how many to train on (default: %(default)s)"
    parser.add_argument("--tales", type=int, default=150_000, metavar="N", help=text)
    text = "share of the tales that follow a request (default: %(default)s)"
    parser.add_argument("--asked", type=float, default=0.5, metavar="SHARE", help=text)
    given = parser.parse_args(arguments)
    try:
        write_village(given.out, given.tales, given.asked)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
