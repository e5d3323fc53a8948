"""Make the model in data/base: from texts and random numbers, by one command.

    python -m pretrain.base tinystories.txt.xz corpus --out runs/base

The first argument is TinyStories, a file or a name as in `pretrain.stories`, the second
a folder with the other texts that `configs/base.yaml` names, such as
`dialog_sgd.txt.xz`. The village and the tasks are written here. The folder `--out` gets

    texts/       the stories with names drawn anew, the village, the tasks
    shards-V/    all sources in tokens, with the tokenizer of V tokens that wrote them
    run/         the log, the checkpoints and at the end the model; see `pretrain.run`

What is there already is not made again, so the same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from pretrain.prepare import TOKENIZER, prepare
from pretrain.run import pretrain
from pretrain.settings import Settings, read_settings
from pretrain.stories import write_versions
from pretrain.tasks import write_tasks
from pretrain.tokenizer import learn
from pretrain.village import write_village
from shared import data

CONFIG = Path(__file__).parent / "configs" / "base.yaml"
VERSIONS, STORIES_SEED, ASKED = 8, 200, 0.6  # how TinyStories are told again
TALES, TASKS = 120_000, 80_000
CHARACTERS = 2_000_000  # of each text that the tokenizer learns from
WITHOUT = "[user"  # left out: dialogues with a placeholder for somebody's name


def write_texts(stories: Path, texts: Path) -> None:
    """Write what no collection has: stories told again, the village, tasks."""
    if not (texts / f"stories-{VERSIONS}.txt").is_file():
        write_versions(stories, texts, VERSIONS, STORIES_SEED, ASKED)
    if not (texts / "held-out-village.txt").is_file():
        write_village(texts, TALES)
    if not (texts / "tasks.txt").is_file():
        write_tasks(texts / "tasks.txt", TASKS)


def make_shards(texts: Path, corpus: Path, shards: Path, vocab_size: int) -> None:
    """Learn a tokenizer from all texts, and turn them into its tokens."""
    told = [texts / f"stories-{i + 1}.txt" for i in range(VERSIONS)]
    village, tasks = texts / "village.txt", texts / "tasks.txt"
    held_out = [texts / f"held-out-{name}.txt" for name in ("stories", "village")]
    others = sorted(corpus.glob("*.txt.xz"))
    tokenizer = shards / TOKENIZER
    if not tokenizer.is_file():
        shards.mkdir(parents=True, exist_ok=True)
        read = [*told[:2], village, *others]
        learn(read, vocab_size, CHARACTERS).save(tokenizer)
    for paths, share, without in (
        ([village, *told], 0.0, None),
        (held_out, 1.0, None),
        ([tasks, *others], 0.005, WITHOUT),
    ):
        prepare(paths, shards, share, tokenizer=tokenizer, without=without)


def settings_for(out: Path, others: list[str]) -> Settings:
    """The settings of the run, in the folders of `out`."""
    settings = read_settings(["--config", str(CONFIG), *others])
    settings.shards = out / f"shards-{settings.model.vocab_size}"
    settings.run_folder = out / "run"
    return settings


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.base",
        description="Make the base model. Further settings are those of pretrain.",
    )
    parser.add_argument("stories", help="TinyStories: a file, or its name in the data")
    parser.add_argument("corpus", type=Path, help="folder of the other texts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument(
        "--only-shards", action="store_true", help="prepare the texts and do not train"
    )
    given, others = parser.parse_known_args(arguments)
    try:
        named = given.stories in data.FILES
        stories = data.get(given.stories) if named else Path(given.stories)
        settings = settings_for(given.out, others)
        texts, vocab_size = given.out / "texts", settings.model.vocab_size
        write_texts(stories, texts)
        make_shards(texts, given.corpus, settings.shards, vocab_size)
        if not given.only_shards:
            pretrain(settings)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
