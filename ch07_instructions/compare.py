"""Finetune on three splits of the instructions, and keep what the models answer.

    python -m ch07_instructions.compare               three splits
    python -m ch07_instructions.compare --seeds 1     one
    python -m ch07_instructions.compare --tune        try settings, on validation alone

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
from shared.ch05 import load_base
from shared.ch07 import (
    finetune,
    generate_answers,
    load_instructions,
    split_entries,
    with_dropout,
)
from shared.data import FILES
from shared.files import write_atomically

RECORD = Path(__file__).with_name("three_seeds.json")
FIRST_SEED = 123

# How chapter 7 finetunes the base, here and in the notebook. The rate was chosen by the
# scores on a validation part of a split with another seed than those shown.
DROP_RATE = 0.1
SETTINGS = {"style": "chat", "learning_rate": 2e-3, "batch_size": 16, "num_epochs": 2}
TRIALS = [  # what --tune tries: changes of the settings, or of the rate of dropout
    {},
    {"learning_rate": 5e-4},
    {"learning_rate": 1e-3},
    {"drop_rate": 0.0},
    {"batch_size": 8},
    {"num_epochs": 3},
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
        "settings": {"drop_rate": DROP_RATE, **SETTINGS},
    }


def finetuned(seed: int, parts, device: str, drop_rate: float, **settings):
    """A fresh base, finetuned on one split, and the seconds that it took."""
    torch.manual_seed(seed)
    model = with_dropout(load_base(device), drop_rate)
    start = time.perf_counter()
    finetune(model, *parts[:2], get_tokenizer(), seed=seed, **settings)
    return model, round(time.perf_counter() - start, 1)


def run(seed: int, device: str) -> dict:
    """The answers of the base and of a finetuned copy to one test part."""
    parts, tokenizer = split_entries(load_instructions(), seed=seed), get_tokenizer()
    style = SETTINGS["style"]
    before = generate_answers(load_base(device), parts[2], tokenizer, 24, style)
    model, seconds = finetuned(seed, parts, device, DROP_RATE, **SETTINGS)
    return {
        "seed": seed,
        "seconds": seconds,
        "base": [text.split("\n")[0] for text in before],
        "finetuned": generate_answers(model, parts[2], tokenizer),
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

    A quarter of the entries is held out for it; no test part is looked at.
    """
    for change in TRIALS:
        settings = {"drop_rate": DROP_RATE, **SETTINGS, **change}
        for seed in range(FIRST_SEED - seeds, FIRST_SEED):
            known = [e for part in split_entries(load_instructions())[:2] for e in part]
            parts = split_entries(known, (0.8, 0.2), seed)
            model, seconds = finetuned(seed, parts, device, **settings)
            answers = generate_answers(model, parts[1], get_tokenizer())
            scores = score_answers(parts[1], answers)
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
