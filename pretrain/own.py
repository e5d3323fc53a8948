"""Train a model on texts of your own: one folder in, one folder out.

    python -m pretrain.own my_texts/ --out runs/mine --minutes 30

It gathers the text files of a folder and of those in it, each document once, learns a
tokenizer from them, tries some training steps to say how long it will take, trains, and
writes into the folder `--out`:

    model/         the model, in the format of Hugging Face's GPT-2, with its tokenizer
    page.html      the model as one file for any browser, to write with or to send on
    report.md      what it read, how the losses fell, and what it wrote on the way
    settings.json  the settings: `python -m pretrain --config` reads them, too

The same command goes on where an interrupted run stopped. `--tokens gpt2` takes GPT-2's
tokens instead. `--start base` begins with the course's own model and its tokens, so the
model knows some English already.
"""

import argparse
import json
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pretrain.card import describe, draw_losses, growing_up, read_log, readable
from pretrain.checkpoints import saved_states
from pretrain.hardware import start_workers
from pretrain.prepare import (
    TOKENIZER,
    open_tokenizer,
    prepare,
    read_documents,
    same_text,
    tokens_in,
)
from pretrain.run import Pretraining, pretrain
from pretrain.settings import ModelSettings, Settings, read_settings
from pretrain.tokenizer import learn
from shared.ch02 import END_OF_TEXT
from shared.ch04 import GPTModel
from shared.ch05 import build_pretrained, read_gpt2_folder
from shared.data import get as data_path
from shared.files import copy_file, write_atomically
from shared.page import save_page
from shared.terminal import say

LEAST, MOST = 20_000, 500_000_000  # bytes of text that this program is for
HELD_OUT = 0.03  # share of the text
T, B = 256, 8  # tokens in a sequence, sequences in a step
LEAST_STEPS = 20
EPOCHS = 20  # reading a text more often teaches hardly anything
WARM_UP, TRIAL = 3, 8.0  # steps that are not timed, then seconds in which some are
SIZES = {1e6: (128, 4, 4), 1e7: (192, 6, 6), MOST: (256, 4, 8)}  # width, heads, blocks
PROMPTS = 3  # beginnings of documents that the model continues on the way
WORDS, LETTERS = 5, 60  # of a beginning, at most; some scripts have no spaces


def text_files(folder: Path, out: Path) -> list[Path]:
    """The text files in a folder, but no empty or hidden ones, and none made here."""
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out is the folder of the texts, {folder}; choose another")
    runs = [out, *(path.parent for path in folder.rglob("asked.json"))]
    made = [  # by this run or an earlier one; not where the folder is in a run's
        run.resolve()
        for run in runs
        if (run == out or (run / "shards").is_dir())
        and not folder.resolve().is_relative_to(run.resolve())
    ]

    def is_meant(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        own = any(path.resolve().is_relative_to(run) for run in made)
        return path.suffix.lower() == ".txt" and not hidden and not own

    found = [path for path in folder.rglob("*") if is_meant(path)]
    return sorted(path for path in found if path.is_file() and path.stat().st_size)


def gather(folder: Path, out: Path) -> tuple[int, list[str]]:
    """Put all texts of a folder into one file, `texts.txt`, and look at them.

    A document of which there is a copy is taken once, or it would be held out and
    trained on.

    Returns:
        How many characters there are, and the first words of some documents.

    Raises:
        ValueError: if there is no text, too little or too much, or a file is no text.
    """
    paths = text_files(folder, out)
    if not paths:
        raise ValueError(
            f"{folder} holds no text; put files into it whose names end in .txt"
        )
    size = sum(path.stat().st_size for path in paths)
    if size > MOST:
        largest = max(paths, key=lambda path: path.stat().st_size)
        raise ValueError(
            f"{folder} holds {size / 1e9:.1f} GB of text, most of it {largest.name}; "
            f"this program is for at most {MOST / 1e9:.1f} GB: take some out, or see "
            "docs/scaling.md"
        )
    documents, copies = {}, 0
    for path in paths:
        try:
            found = [text for text in read_documents(path) if text.strip()]
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read as text in UTF-8 ({error.__cause__}); save it "
                "as UTF-8, or take it out if it is no text"
            ) from error
        if any("\0" in text for text in found):
            raise ValueError(f"{path} is no text but binary data; take it out")
        for text in found:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            documents.setdefault(same_text(text), text)
        copies += len(found)
    documents, copies = list(documents.values()), copies - len(documents)
    if copies:
        print(f"copies of other documents, left out: {copies:,}")
    characters = sum(map(len, documents))
    if characters < LEAST:
        besides = f", besides {copies:,} copies" if copies else ""
        raise ValueError(
            f"{folder} holds {characters:,} characters of text{besides}; a model needs "
            f"at least {LEAST:,} to learn from, and gets good from a few million on"
        )
    whole = "".join(f"{text}\n{END_OF_TEXT}\n" for text in documents)
    path = out / "texts.txt"
    if path.is_file() and path.read_bytes() != whole.encode():
        raise ValueError(
            f"{folder} has changed since the run in {out} began; choose another --out"
        )
    write_atomically(path, whole)
    starts = (" ".join(text[:1000].split()[:WORDS]) for text in documents[:100])
    beginnings = dict.fromkeys(start[:LETTERS].strip() for start in starts)
    return characters, list(filter(None, beginnings))[:PROMPTS]


def choose_tokens(tokens: str, start: str, characters: int, out: Path) -> Path | None:
    """The tokenizer's file: the base's, one learned here, or None for GPT-2's."""
    path = out / TOKENIZER
    if start == "base":
        copy_file(data_path("base/tokenizer.json"), path)
    elif tokens == "gpt2":
        return None
    elif not path.is_file():
        vocab_size = min(8192, max(384, characters // 400))
        try:
            learn([out / "texts.txt"], vocab_size, 5_000_000).save(path)
        except ValueError as error:
            raise ValueError(
                "no tokenizer can be learned from these texts, since they repeat "
                f"themselves ({error}); put other texts in, or take --tokens gpt2"
            ) from None
    return path


@dataclass
class Pace:
    """Seconds that the parts of a run take on this machine."""

    step: float  # a training step
    look: float  # the held-out losses on the way
    last_look: float  # the held-out losses at the end, of all held-out text
    writing: float  # going on from each of the prompts

    def seconds(self, settings: Settings, begin: int = 0) -> float:
        """How long a run takes from a step on."""
        end = settings.max_steps
        looks = end // settings.eval_every - begin // settings.eval_every
        doubled = (step.bit_count() < 2 for step in range(begin, end))  # see `Looks`
        return (
            (end - begin) * self.step
            + looks * self.look
            + self.last_look
            + (sum(doubled) + 1) * self.writing
        )


def measure(settings: Settings) -> Pace:
    """Try some steps of a run, look at its model as the run will, and keep nothing."""
    print(f"trying some steps for {TRIAL:g} seconds, to see how long they take")
    with start_workers(settings.device) as workers:
        run = Pretraining(settings, workers)
        times = []
        while run.step < settings.max_steps and (
            run.step <= WARM_UP or time.perf_counter() < times[WARM_UP] + TRIAL
        ):
            times.append(time.perf_counter())
            run.train_step()[0].item()  # item: a GPU may still be at work
        begin = times[WARM_UP]
        trained = time.perf_counter()
        run.evaluate(settings.eval_sequences)
        looked = time.perf_counter()
        run.looks.samples()
        written = time.perf_counter()
    held_out = sum(len(text) for text in run.looks.held_out[0].values())
    look = looked - trained
    return Pace(
        step=(trained - begin) / (run.step - WARM_UP),
        look=look,
        last_look=look * max(1, held_out / settings.eval_sequences),
        writing=written - looked,
    )


def context_of(start: str) -> int:
    """How many tokens the model reads at once."""
    if start == "base":
        return read_gpt2_folder(data_path("base/config.json").parent)[0][
            "context_length"
        ]
    return T


def plan(out: Path, start: str, steps: int, characters: int, prompts) -> Settings:
    """The settings of a run of so many steps."""
    vocab_size = open_tokenizer(out / "shards").n_vocab
    width, heads, blocks = next(v for most, v in SIZES.items() if characters <= most)
    model, initial = ModelSettings(vocab_size, T, width, heads, blocks), None
    if start == "base":
        initial = data_path("base/config.json").parent
        config, _ = read_gpt2_folder(initial)
        model = ModelSettings(**{name: config[name] for name in asdict(model)})
    return Settings(
        shards=out / "shards",
        run_folder=out,
        max_steps=steps,
        model=model,
        initial=initial,
        batch_size=B,
        learning_rate=5e-4 if start == "base" else 1e-3,
        matrix_learning_rate=2e-3 if start == "base" else 5e-3,
        warmup_steps=min(50, steps // 10),
        decay_steps=steps - min(50, steps // 10),
        prompts=prompts,
        log_every=max(1, steps // 100),
        eval_every=max(10, steps // 20),
        checkpoint_every=max(10, steps // 20),
    )


def fit(seconds: float, pace: Pace, most: int, settings_of) -> Settings:
    """The settings of a run that takes so many seconds, of at most `most` steps."""
    steps = seconds / pace.step
    for _ in range(3):  # looks take time too, and depend a little on the steps
        settings = settings_of(max(LEAST_STEPS, min(most, round(steps))))
        looks = pace.seconds(settings) - settings.max_steps * pace.step
        steps = (seconds - looks) / pace.step
    return settings


def settings_for(given: argparse.Namespace) -> tuple[Settings, float]:
    """The settings of the run in `--out`, old or new, and how long it will take.

    Returns:
        Settings, and the seconds from where the run begins or goes on to its end.
    """
    out = given.out
    asked = {"tokens": given.tokens, "start": given.start, "minutes": given.minutes}
    record, path = out / "asked.json", out / "settings.json"
    if record.is_file():
        begun = json.loads(record.read_text(encoding="utf-8-sig"))
        if begun != asked:
            raise ValueError(
                f"the run in {out} began with {begun}, not {asked}; give the same "
                "again to go on, or choose another --out"
            )
    characters, beginnings = gather(given.folder, out)
    write_atomically(record, json.dumps(asked) + "\n")
    tokenizer = choose_tokens(given.tokens, given.start, characters, out)
    least = context_of(given.start) + 1
    recipe = {"tokenizer": tokenizer, "least_held_out": least}
    prepare([out / "texts.txt"], out / "shards", HELD_OUT, workers=1, **recipe)
    if min(tokens_of(out / "shards", split) for split in ("train", "held_out")) < least:
        raise ValueError(
            f"{given.folder} holds too few tokens: a model reads {least - 1} at once, "
            "and as many are held out to see how well it learns; put more text into it"
        )
    if path.is_file():
        settings = read_settings(["--config", str(path)])
        begin = steps_done(settings)
        left = settings.max_steps - begin
        return settings, measure(settings).seconds(settings, begin) if left else 0.0

    def settings_of(steps: int) -> Settings:
        return plan(out, given.start, steps, characters, beginnings)

    worth = round(EPOCHS * tokens_of(out / "shards") / (context_of(given.start) * B))
    most = settings_of(max(LEAST_STEPS, worth))
    pace = measure(most)
    settings = fit(60 * given.minutes, pace, most.max_steps, settings_of)
    text = json.dumps(asdict(settings), default=str, indent=1)
    write_atomically(path, text + "\n")
    return settings, pace.seconds(settings)


def tokens_of(shards: Path, split: str = "train") -> int:
    """How many tokens there are to train on, or in another split."""
    index = json.loads((shards / "texts/index.json").read_text(encoding="utf-8"))
    return tokens_in(index, split)


def steps_done(settings: Settings) -> int:
    """The steps after which an earlier start of this command saved its state."""
    states = saved_states(settings.run_folder / "checkpoints")
    return int(states[-1].name.removeprefix("step-")) if states else 0


def announce(settings: Settings, seconds: float) -> None:
    """Print what is about to happen, and how long it will take."""
    index = json.loads((settings.shards / "texts/index.json").read_text("utf-8"))
    tokens, seen = tokens_of(settings.shards), settings.tokens(settings.max_steps)
    with torch.device("meta"):
        gpt = GPTModel(asdict(settings.model))
    parameters = sum(p.numel() for p in gpt.parameters())
    print(
        f"{index['documents']:,} documents, {tokens:,} tokens of "
        f"{settings.model.vocab_size:,} different ones to train on\n"
        f"a model of {parameters / 1e6:.1f} million parameters reads them "
        f"{seen / tokens:.1f} times, in {settings.max_steps:,} steps"
    )
    if seconds:
        print(f"at the pace of the steps tried, that takes {seconds / 60:.1f} minutes")
    if seen < tokens:
        print("it will not read them all; give it more --minutes, and another --out")


def report(out: Path, name: str, start: str = "nothing") -> Path:
    """Write `report.md`, with a picture of the losses."""
    logs = [read_log(out)]
    draw_losses(logs, out / "losses.png", copying=False)
    tokens = f"the base's (`{TOKENIZER}`)" if start == "base" else None
    parts = [
        f"# A model of {readable(name)}",
        describe(out / "model", logs, tokens, course_texts=False),
        "![losses](losses.png)",
        growing_up(logs).replace("# How it learned", "## How it learned", 1),
    ]
    path = out / "report.md"
    write_atomically(path, "\n\n".join(part.strip() for part in parts) + "\n")
    return path


def page_of(out: Path, name: str) -> Path:
    """Write `page.html`, in which the model writes in a browser."""
    model = build_pretrained(*read_gpt2_folder(out / "model"))
    title = f"A model of {readable(name)}"
    tokenizer, path = open_tokenizer(out / "model"), out / "page.html"
    return save_page(model, tokenizer, path, title=title, overwrite=True, large=True)


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.own",
        description="Train a model on the texts of a folder.",
    )
    parser.add_argument("folder", type=Path, help="folder with .txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument(
        "--minutes", type=float, default=10, help="time to train (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens",
        choices=["own", "gpt2"],
        default="own",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--start",
        choices=["nothing", "base"],
        default="nothing",
        help="what the model knows before (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    try:
        if not given.minutes > 0:
            raise ValueError(f"--minutes must be above 0, not {given.minutes:g}")
        if not given.folder.is_dir():
            raise FileNotFoundError(f"there is no folder {given.folder}")
        if readable(given.out.resolve()) != " ".join(str(given.out.resolve()).split()):
            raise ValueError(
                f"--out {readable(given.out)}: a model's file cannot be written into a "
                "folder whose name is not UTF-8; choose another"
            )
        settings, seconds = settings_for(given)
        announce(settings, seconds)
        if pretrain(settings):
            name = given.folder.resolve().name
            say(f"read {readable(report(given.out, name, given.start))}")
            say(f"open {readable(page_of(given.out, name))} in a browser")
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except BrokenProcessPool:
        sys.exit(
            "error: a process was killed, perhaps because memory ran out; close other "
            "programs and give the command again"
        )


if __name__ == "__main__":
    main()
