"""Finetune on three splits of the instructions, and keep what the models answer.

    python -m ch07_instructions.compare               three splits
    python -m ch07_instructions.compare --seeds 1     one
    python -m ch07_instructions.compare --tune        try settings, on validation alone

With `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000` before it, as `make` sets
them, a call is done a quarter sooner: the same memory is used again for each step.

Each seed gives a split of its own, and another order of the batches. The answers of the
base model and of the finetuned one to the test questions are written to
`three_seeds.json` beside this file; the notebook scores and shows them. After Ctrl-C
the finished seeds are kept, and the next call goes on with those that are missing.
Another base model, other instructions or other settings begin a new record; run
`python -m ch07_instructions.judge` after it.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from ch07_instructions.scoring import (
    classifier_answers,
    constant_answers,
    echo_answers,
    nearest_answers,
    score_answers,
)
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import load_base
from shared.ch07 import finetune, generate_answers, load_instructions, split_entries
from shared.data import FILES
from shared.files import write_atomically

RECORD = Path(__file__).with_name("three_seeds.json")
FIRST_SEED = 123

# How chapter 7 finetunes the base, here and in the notebook: chosen by the scores
# on a validation part of a split with another seed than those shown.
COPY = {"drop_rate": 0.0, "freeze_tokens": True}  # of `copy_to_finetune`
SETTINGS = {"style": "chat", "learning_rate": 1e-3, "batch_size": 16, "num_epochs": 6}
TRIALS = [  # what --tune tries: changes of either
    {},
    {"drop_rate": 0.1},
    {"freeze_tokens": False},
    {"learning_rate": 5e-4},
    {"learning_rate": 2e-3},
    {"num_epochs": 4},
    {"style": "alpaca"},
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
    train_entries,
    device: str,
    drop_rate: float,
    freeze_tokens: bool = False,
    **settings,
) -> tuple[GPTModel, float]:
    """A fresh base, finetuned on a part, and the seconds that it took.

    Nobody asks here for its loss on other entries, so one entry has to do for that.
    """
    torch.manual_seed(seed)
    model = copy_to_finetune(load_base(device), drop_rate, freeze_tokens)
    parts, start = (train_entries, train_entries[:1]), time.perf_counter()
    finetune(model, *parts, get_tokenizer(), seed=seed, **settings)
    return model, round(time.perf_counter() - start, 1)


def run(seed: int, device: str) -> dict:
    """The answers of the base and of a finetuned copy to one test part."""
    train_entries, _, test_entries = split_entries(load_instructions(), seed=seed)
    before = generate_answers(
        load_base(device), test_entries, get_tokenizer(), 24, SETTINGS["style"]
    )
    model, seconds = finetuned(seed, train_entries, device, **COPY, **SETTINGS)
    return {
        "seed": seed,
        "seconds": seconds,
        "base": [text.split("\n")[0] for text in before],
        "finetuned": generate_answers(model, test_entries, get_tokenizer()),
    }


def answers_of(kept: dict) -> tuple[list, list, dict[str, list[str]]]:
    """Training and test part of one seed's record, and all answers to the latter."""
    train_entries, _, test_entries = split_entries(
        load_instructions(), seed=kept["seed"]
    )
    given = {"base": kept["base"]}
    for name, answer in BASELINES.items():
        given[name] = answer(train_entries, test_entries)
    return train_entries, test_entries, given | {"finetuned": kept["finetuned"]}


def tune(seeds: int, device: str) -> None:
    """Print how each of `TRIALS` answers the validation parts of other splits.

    A fifth of the other entries is held out for it; no test part is looked at.
    """
    train_entries, val_entries, _ = split_entries(load_instructions())
    known = train_entries + val_entries
    for change in TRIALS:
        for seed in range(FIRST_SEED - seeds, FIRST_SEED):
            train_entries, val_entries = split_entries(known, (0.8, 0.2), seed)
            settings = {**COPY, **SETTINGS, **change}
            model, seconds = finetuned(seed, train_entries, device, **settings)
            answers = generate_answers(model, val_entries, get_tokenizer())
            scores = score_answers(val_entries, answers)
            by_family = scores.groupby("family")["exact"].mean().round(3).to_dict()
            exact, f1 = scores[["exact", "f1"]].mean()
            print(f"{change} seed {seed}: exact {exact:.3f}, F1 {f1:.3f}", end=" ")
            print(f"{by_family} in {seconds} s", flush=True)


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
    threads = f"{device}, {torch.get_num_threads()} threads"
    record = {"made_of": made_of(), "device": threads, "runs": []}
    if options.out.exists():
        old = json.loads(options.out.read_text(encoding="utf-8"))
        if old.get("made_of") == record["made_of"]:
            record["runs"] = old["runs"]
    done = {kept["seed"] for kept in record["runs"]}
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        if seed not in done:
            print(f"seed {seed}", flush=True)
            record["runs"].append(run(seed, device))
            write_atomically(options.out, json.dumps(record, indent=0) + "\n")
    for kept in record["runs"]:
        _, test_entries, given = answers_of(kept)
        means = []
        for name, answers in given.items():
            exact, f1 = score_answers(test_entries, answers)[["exact", "f1"]].mean()
            means.append(f"{name} {exact:.1%} {f1:.3f}")
        print(f"seed {kept['seed']}, {kept['seconds']} s: {', '.join(means)}")


if __name__ == "__main__":
    main()
