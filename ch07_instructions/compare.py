"""Finetune on three splits of the instructions, and keep what the models answer.

    python -m ch07_instructions.compare               three splits
    python -m ch07_instructions.compare --seeds 1     one

Each seed gives a split of its own, and another order of the batches. The answers of the
base model and of the finetuned one to the test questions are written to
`three_seeds.json` beside this file; the notebook scores and shows them. A seed takes
about three minutes on two CPU cores. After Ctrl-C the finished seeds are kept, and the
next call goes on with those that are missing. Another base model, other instructions or
other settings begin a new record; run `python -m ch07_instructions.judge` after it.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from shared.ch02 import get_tokenizer
from shared.ch05 import load_base
from shared.ch07 import (
    constant_answers,
    finetune,
    generate_answers,
    load_instructions,
    nearest_answers,
    score_answers,
    split_entries,
    with_dropout,
)
from shared.data import FILES
from shared.files import write_atomically

RECORD = Path(__file__).with_name("three_seeds.json")
FIRST_SEED = 123
STYLE, DROP_RATE = "chat", 0.1
SETTINGS = {"learning_rate": 1e-3, "batch_size": 8, "num_epochs": 6}
MADE_OF = {  # what the record depends on
    "base": FILES["base/model.safetensors"].sha256,
    "instructions": FILES["instructions"].sha256,
    "settings": {"style": STYLE, "drop_rate": DROP_RATE, **SETTINGS},
}


def run(seed: int, device: str) -> dict:
    """Finetune a fresh base on one split; return its answers and the seconds."""
    tokenizer = get_tokenizer()
    train_entries, val_entries, test_entries = split_entries(
        load_instructions(), seed=seed
    )
    torch.manual_seed(seed)
    model = with_dropout(load_base(device), DROP_RATE)
    before = generate_answers(model, test_entries, tokenizer, 24, STYLE)
    start = time.perf_counter()
    finetune(
        *(model, train_entries, val_entries, tokenizer),
        style=STYLE,
        seed=seed,
        **SETTINGS,
    )
    seconds = time.perf_counter() - start
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "base": [text.split("\n")[0] for text in before],
        "finetuned": generate_answers(model, test_entries, tokenizer, style=STYLE),
    }


def means(answers: dict) -> str:
    """Exact match and F1 of one seed's answers and of the baselines, as text."""
    train_entries, _, test_entries = split_entries(
        load_instructions(), seed=answers["seed"]
    )
    baselines = {
        "constant": constant_answers(train_entries, test_entries),
        "nearest": nearest_answers(train_entries, test_entries),
    }
    parts = []
    for name in ("base", "constant", "nearest", "finetuned"):
        given = baselines.get(name) or answers[name]
        exact, f1 = score_answers(test_entries, given)[["exact", "f1"]].mean()
        parts.append(f"{name} {exact:.1%} {f1:.3f}")
    return ", ".join(parts)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many splits")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = {
        "made_of": MADE_OF,
        "device": f"{device}, {torch.get_num_threads()} threads",
        "runs": [],
    }
    if options.out.exists():
        old = json.loads(options.out.read_text(encoding="utf-8"))
        if old["made_of"] == MADE_OF:
            record["runs"] = old["runs"]
    done = {answers["seed"] for answers in record["runs"]}
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        if seed not in done:
            print(f"seed {seed}", flush=True)
            record["runs"].append(run(seed, device))
            write_atomically(options.out, json.dumps(record, indent=0) + "\n")
    for answers in record["runs"]:
        print(f"seed {answers['seed']}, {answers['seconds']} s: {means(answers)}")


if __name__ == "__main__":
    main()
