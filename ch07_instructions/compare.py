"""Finetune on splits of the instructions, and keep what the models answer.

    python -m ch07_instructions.compare               three splits
    python -m ch07_instructions.compare --seeds 1     one
    python -m ch07_instructions.compare --tune        try settings, on validation alone

With `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000` before it, as `make` sets
them, a call is done a quarter sooner: the same memory is used again for each step.

Each seed gives a split of its own, and another order of the batches. The answers of the
base model and of the finetuned one to the test questions are written to
`three_seeds.json` beside this file; `deeper.ipynb` scores and shows them. After Ctrl-C
the finished seeds are kept, and the next call goes on with those that are missing.
Another base model, other instructions, other settings or another kind of device begin
a new record; run `python -m ch07_instructions.judge` after it. What `--tune` finds is
written to `tries.json`.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from ch07_instructions.scoring import (
    classifier_answers,
    constant_answers,
    echo_answers,
    nearest_answers,
    reworded,
    score_answers,
)
from ch07_instructions.stories import retold, score_stories, was_cut
from shared.ch04 import GPTModel
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch07 import finetune, generate_answers, load_instructions, split_entries
from shared.data import FILES
from shared.files import extend_record, write_atomically
from shared.precision import has_fast_bfloat16, mixed_precision

RECORD = Path(__file__).with_name("three_seeds.json")
TRIES = Path(__file__).with_name("tries.json")
FIRST_SEED = 123
STORY_TOKENS = 200  # the longest story that is asked for
DRAWING = {"temperature": 0.8, "top_p": 0.9}  # of stories; colder ones go in circles
Entries = Sequence[Mapping[str, str]]

# How chapter 7 finetunes the base, here and in the notebook.
COPY = {"drop_rate": 0.0, "freeze_tokens": True}  # of `copy_to_finetune`
SETTINGS = {"style": "plain", "learning_rate": 1e-3, "batch_size": 16, "num_epochs": 4}
TRY_ENTRIES, TRY_EPOCHS = 600, 3  # of --tune, which takes less time so
TRIALS = [  # what --tune tries: changes of either
    {},
    {"told": False},
    {"style": "chat"},
    {"learning_rate": 5e-4},
]
BASELINES = {
    "echo": echo_answers,
    "constant": constant_answers,
    "nearest": nearest_answers,
    "words": classifier_answers,
}


def made_of() -> dict:
    """What a record depends on."""
    return {
        "base": FILES["base/model.safetensors"].sha256,
        "instructions": FILES["instructions"].sha256,
        "told": FILES["told"].sha256,
        "settings": {**COPY, **SETTINGS},
    }


def copy_to_finetune(
    model: GPTModel, drop_rate: float, freeze_tokens: bool = False
) -> GPTModel:
    """A copy of a model, where it is, that drops a share of its values in training.

    If told to, it keeps its token embedding, which is the output head as well.
    """
    cfg = {key: model.cfg[key] for key in model.cfg if key != "prompt_style"}
    copy = GPTModel({**cfg, "drop_rate": drop_rate})
    copy.load_state_dict(model.state_dict())
    copy.tok_emb.requires_grad_(not freeze_tokens)
    return copy.to(next(model.parameters()).device)


def finetuned(
    seed: int,
    train_entries: Entries,
    device: str,
    drop_rate: float,
    freeze_tokens: bool = False,
    told: bool = True,
    **settings,
) -> tuple[GPTModel, float]:
    """A fresh base, finetuned on a part, and the seconds that it took.

    Orders are answered by what the base told best, or else by the tales themselves.

    Nobody asks here for its loss on other entries, so one entry has to do for that.
    """
    torch.manual_seed(seed)
    model = copy_to_finetune(load_base(device), drop_rate, freeze_tokens)
    train_entries = retold(train_entries) if told else train_entries
    parts, start = (train_entries, train_entries[:1]), time.perf_counter()
    with mixed_precision(device):
        finetune(model, *parts, load_base_tokenizer(), seed=seed, **settings)
    return model, round(time.perf_counter() - start, 1)


def by_family(entries: Entries) -> tuple[list, list]:
    """The entries that have one right answer, and those that order a story."""
    short = [entry for entry in entries if entry.get("family") != "story"]
    return short, [entry for entry in entries if entry.get("family") == "story"]


def first_short(
    entries: Entries, answers: Sequence[str], count: int = 30
) -> tuple[list, list]:
    """The first entries that order no story, and their answers."""
    pairs = zip(entries, answers, strict=True)
    pairs = [(e, a) for e, a in pairs if e.get("family") != "story"]
    return tuple(map(list, zip(*pairs[:count], strict=True)))


def told_by(
    model: GPTModel, ordered: Entries, style: str | None = None, seed: int = FIRST_SEED
) -> list[str]:
    """The stories that a model tells to order, of `STORY_TOKENS` at most."""
    chance = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    tokenizer = load_base_tokenizer()
    return generate_answers(
        *(model, ordered, tokenizer, STORY_TOKENS, style), generator=chance, **DRAWING
    )


def answer_all(model: GPTModel, entries: Entries, new_tokens: int = 40) -> list[str]:
    """What a model answers to each entry; a story may have `STORY_TOKENS`."""
    tokenizer, style = load_base_tokenizer(), SETTINGS["style"]
    short, ordered = by_family(entries)
    texts = generate_answers(model, short, tokenizer, new_tokens, style)
    texts += told_by(model, ordered, style)
    answers = dict(zip(map(id, short + ordered), texts, strict=True))
    return [answers[id(entry)] for entry in entries]


def run(seed: int, device: str) -> dict:
    """The answers of the base and of a finetuned copy to one test part."""
    train_entries, _, test_entries = split_entries(load_instructions(), seed=seed)
    base = load_base(device)
    before = answer_all(base, test_entries, 24)
    pairs = zip(test_entries, before, strict=True)
    model, seconds = finetuned(seed, train_entries, device, **COPY, **SETTINGS)
    model.eval()
    return {
        "seed": seed,
        "seconds": seconds,
        "base": [a if e["family"] == "story" else a.split("\n")[0] for e, a in pairs],
        "finetuned": answer_all(model, test_entries),
        "reworded": answer_all(model, reworded(by_family(test_entries)[0])),
    }


def answers_of(kept: dict) -> tuple[list, list, dict[str, list[str]]]:
    """Training part, short test entries, and all answers to these, of one seed."""
    train_entries, _, test_entries = split_entries(
        load_instructions(), seed=kept["seed"]
    )
    short = by_family(test_entries)[0]
    all_of_them = len(test_entries)
    given = {"base": first_short(test_entries, kept["base"], all_of_them)[1]}
    for name, answer in BASELINES.items():
        given[name] = answer(train_entries, short)
    answers = first_short(test_entries, kept["finetuned"], all_of_them)[1]
    return train_entries, short, given | {"finetuned": answers}


def scores_of(
    entries: Entries, answers: Sequence[str], again: Sequence[str]
) -> dict[str, float]:
    """Of one part: exact matches, also in other wordings, and scores of the stories.

    All are in percent, but for the mean length of the stories in words.

    `again` are the answers to the same short questions in their other wordings.
    """
    short, _ = by_family(entries)
    said = first_short(entries, answers, len(entries))[1]
    found = {}
    for name, texts in (("", said), (", reworded", again)):
        exact = score_answers(short, texts).groupby("family")["exact"].mean()
        found |= {f"{family}{name}": share for family, share in exact.items()}
    pairs = [
        (e, a) for e, a in zip(entries, answers, strict=True) if e["family"] == "story"
    ]
    ordered, stories = map(list, zip(*pairs, strict=True))
    cut = was_cut(stories, load_base_tokenizer(), STORY_TOKENS)
    means = score_stories(ordered, stories, cut).mean(numeric_only=True)
    found |= means.dropna()
    scores = {name: round(float(100 * x), 1) for name, x in found.items()}
    length = sum(len(text.split()) for text in stories) / len(stories)
    return scores | {"length": round(length, 1)}


def tune(seeds: int, device: str) -> None:
    """Print and keep how each of `TRIALS` answers entries that it was not trained on.

    Both come from the training and validation part of the split that is shown; its test
    part is not looked at.
    """
    train_entries, val_entries, _ = split_entries(load_instructions())
    known, tokenizer = train_entries + val_entries, load_base_tokenizer()
    record = {"made_of": made_of(), "entries": TRY_ENTRIES, "epochs": TRY_EPOCHS}
    rows = []
    if TRIES.exists():
        old = json.loads(TRIES.read_text(encoding="utf-8"))
        rows = old.pop("tries") if record.items() <= old.items() else []
    done = {(row["change"], row["seed"]) for row in rows}
    for seed in range(FIRST_SEED - seeds, FIRST_SEED):
        shares = TRY_ENTRIES / len(known), 0.1, 0.9 - TRY_ENTRIES / len(known)
        train_entries, val_entries, _ = split_entries(known, shares, seed)
        short, ordered = by_family(val_entries)
        for change in TRIALS:
            name = ", ".join(f"{k} {v}" for k, v in change.items()) or "none"
            if (name, seed) in done:
                continue
            settings = {**COPY, **SETTINGS, "num_epochs": TRY_EPOCHS, **change}
            model, seconds = finetuned(seed, train_entries, device, **settings)
            said = generate_answers(model, short, tokenizer)
            again = generate_answers(model, reworded(short), tokenizer)
            stories = told_by(model, ordered)
            scores = scores_of(short + ordered, said + stories, again)
            rows.append({"change": name, "seed": seed, **scores, "seconds": seconds})
            print(rows[-1], flush=True)
            text = json.dumps({**record, "tries": rows}, indent=0)
            write_atomically(TRIES, text + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many splits")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    parser.add_argument("--tune", action="store_true", help="try settings instead")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.tune:
        return tune(options.seeds, device)
    products = "bfloat16" if has_fast_bfloat16(device) else "float32"
    kind = f"{device}, trained with products in {products}"
    facts = {"made_of": {**made_of(), "device": kind}}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    record = extend_record(options.out, facts, seeds, partial(run, device=device))
    for kept in record["runs"]:
        test_entries = split_entries(load_instructions(), seed=kept["seed"])[2]
        scores = scores_of(test_entries, kept["finetuned"], kept["reworded"])
        print(f"seed {kept['seed']}, {kept['seconds']} s: {scores}")


if __name__ == "__main__":
    main()
