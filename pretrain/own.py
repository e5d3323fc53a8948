"""Train a model on texts of your own: one folder in, one folder out.

    python -m pretrain.own my_texts/ --out runs/mine --minutes 30

It gathers the text files of a folder, learns a tokenizer from them, says how long the
training will take, trains, and writes into the folder `--out`:

    model/         the model, in the format of Hugging Face's GPT-2, with its tokenizer
    report.md      what it read, how the losses fell, and what it wrote on the way
    settings.json  the settings: `python -m pretrain --config` reads them, too

The same command goes on where an interrupted run stopped. `--tokens gpt2` takes GPT-2's
tokens instead. `--start base` begins with the course's own model and its tokens, so the
model knows some English already.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from pretrain.card import describe, draw_losses, growing_up, read_log
from pretrain.hardware import flops_per_token, matmul_flops
from pretrain.prepare import TOKENIZER, open_tokenizer, prepare, read_documents
from pretrain.run import pretrain
from pretrain.settings import ModelSettings, Settings, read_settings
from pretrain.tokenizer import learn
from shared.ch02 import END_OF_TEXT
from shared.ch04 import GPTModel
from shared.ch05 import read_gpt2_folder
from shared.data import get as data_path
from shared.files import copy_file, write_atomically

LEAST, MOST = 20_000, 500_000_000  # bytes of text that this program is for
HELD_OUT = 0.03  # share of the text
T, B = 256, 8  # tokens in a sequence, sequences in a step
EPOCHS = 20  # reading a text more often teaches hardly anything
USED = 0.5  # share of the processor's peak that a training step reaches
SIZES = {1e6: (128, 4, 4), 1e7: (192, 6, 6), MOST: (256, 4, 8)}  # width, heads, blocks
PROMPTS = 3  # beginnings of documents that the model continues on the way


def gather(folder: Path, out: Path) -> tuple[int, list[str]]:
    """Put all texts of a folder into one file, `texts.txt`, and look at them.

    Returns:
        How many characters there are, and the first words of some documents.

    Raises:
        ValueError: if there is no text, too little or too much, or a file is no text.
    """
    paths = sorted(p for p in folder.rglob("*.txt") if p.is_file() and p.stat().st_size)
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
    documents = []
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
        documents += found
    characters = sum(map(len, documents))
    if characters < LEAST:
        raise ValueError(
            f"{folder} holds {characters:,} characters of text; a model needs at least "
            f"{LEAST:,} to learn from, and gets good from a few million on"
        )
    whole = "".join(f"{text}\n{END_OF_TEXT}\n" for text in documents)
    path = out / "texts.txt"
    if path.is_file() and path.read_text(encoding="utf-8") != whole:
        raise ValueError(
            f"{folder} has changed since the run in {out} began; choose another --out"
        )
    write_atomically(path, whole)
    beginnings = [" ".join(text.split()[:5]) for text in documents[:PROMPTS]]
    return characters, beginnings


def choose_tokens(tokens: str, start: str, characters: int, out: Path) -> Path | None:
    """The tokenizer's file: the base's, one learned here, or None for GPT-2's."""
    path = out / TOKENIZER
    if start == "base":
        copy_file(data_path("base/tokenizer.json"), path)
    elif tokens == "gpt2":
        return None
    elif not path.is_file():
        vocab_size = min(8192, max(384, characters // 400))
        learn([out / "texts.txt"], vocab_size, 5_000_000).save(path)
    return path


def plan(out: Path, start: str, minutes: float, characters: int, prompts) -> Settings:
    """The settings of a run that takes about so many minutes on this machine."""
    index = json.loads((out / "shards/texts/index.json").read_text(encoding="utf-8"))
    tokens = sum(shard["tokens"] for shard in index["train"])
    vocab_size = open_tokenizer(out / "shards").n_vocab
    width, heads, blocks = next(v for most, v in SIZES.items() if characters <= most)
    model, initial = ModelSettings(vocab_size, T, width, heads, blocks), None
    if start == "base":
        initial = data_path("base/config.json").parent
        config, _ = read_gpt2_folder(initial)
        model = ModelSettings(**{name: config[name] for name in asdict(model)})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matmul_flops(device, torch.float32, 2)  # long enough for a free moment
    with torch.device("meta"):
        per_token = flops_per_token(GPTModel(asdict(model)), T)
    wanted = minutes * 60 * USED * peak / (per_token * T * B)
    steps = max(20, round(min(wanted, EPOCHS * tokens / (T * B))))
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


def settings_for(given: argparse.Namespace) -> Settings:
    """The settings of the run in `--out`: those that it began with, or new ones."""
    out = given.out
    asked = {"tokens": given.tokens, "start": given.start, "minutes": given.minutes}
    record, path = out / "asked.json", out / "settings.json"
    if record.is_file():
        begun = json.loads(record.read_text(encoding="utf-8"))
        if begun != asked:
            raise ValueError(
                f"the run in {out} began with {begun}, not {asked}; give the same "
                "again to go on, or choose another --out"
            )
    characters, beginnings = gather(given.folder, out)
    write_atomically(record, json.dumps(asked) + "\n")
    tokenizer = choose_tokens(given.tokens, given.start, characters, out)
    texts = [out / "texts.txt"]
    prepare(texts, out / "shards", HELD_OUT, workers=1, tokenizer=tokenizer)
    if not path.is_file():
        settings = plan(out, given.start, given.minutes, characters, beginnings)
        text = json.dumps(asdict(settings), default=str, indent=1)
        write_atomically(path, text + "\n")
    return read_settings(["--config", str(path)])


def announce(settings: Settings, minutes: float) -> None:
    """Print what is about to happen, and how long it will take."""
    index = json.loads((settings.shards / "texts/index.json").read_text("utf-8"))
    tokens = sum(shard["tokens"] for shard in index["train"])
    seen = settings.tokens(settings.max_steps)
    with torch.device("meta"):
        gpt = GPTModel(asdict(settings.model))
    parameters = sum(p.numel() for p in gpt.parameters())
    print(
        f"{index['documents']:,} documents, {tokens:,} tokens of "
        f"{settings.model.vocab_size:,} different ones to train on\n"
        f"a model of {parameters / 1e6:.1f} million parameters reads them "
        f"{seen / tokens:.1f} times, in {settings.max_steps:,} steps\n"
        f"that takes about {minutes:.0f} minutes or less; the bar below knows better"
    )
    if seen < tokens:
        print("it will not read them all; give it more --minutes, and another --out")


def report(out: Path, name: str) -> Path:
    """Write `report.md`, with a picture of the losses."""
    logs = [read_log(out)]
    draw_losses(logs, out / "losses.png")
    parts = [
        f"# A model of {name}",
        describe(out / "model", logs),
        "![losses](losses.png)",
        growing_up(logs).replace("# How it learned", "## How it learned", 1),
    ]
    path = out / "report.md"
    write_atomically(path, "\n\n".join(part.strip() for part in parts) + "\n")
    return path


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
        settings = settings_for(given)
        announce(settings, given.minutes)
        if pretrain(settings):
            print(f"read {report(given.out, given.folder.resolve().name)}")
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
