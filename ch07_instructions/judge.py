"""Let the small judge rate answers whose worth is known, and keep what it says.

    python -m ch07_instructions.judge

It rates the first answers that `python -m ch07_instructions.compare` has kept, and the
reference answers, answers to other questions, longer answers and swapped pairs beside
them. The scores are written to `smollm2_scores.jsonl` beside this file, where section
7.14 of the notebook finds them. Three hundred questions take some minutes on two CPU
cores; after an interruption the next call goes on with those that are missing. The
judge is SmolLM2, which chapter 8 reads: a program may ask it before it is explained.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from ch07_instructions.compare import RECORD
from ch07_instructions.judging import (
    generate_model_scores,
    judge_trials,
    reworded_trials,
    small_judge,
)
from shared.ch04 import next_token_logits
from shared.ch07 import load_instructions, split_entries
from shared.ch08 import chat_ids, load_smollm2

SCORES = Path(__file__).with_name("smollm2_scores.jsonl")
N_ENTRIES = 60


def load_small_judge() -> Callable[[str], str]:
    """SmolLM2-135M-Instruct as a judge for `ask`, see `small_judge`."""
    model, tokenizer = load_smollm2()
    words = [tokenizer.encode(word)[0] for word in ("Yes", "No")]

    @torch.no_grad()
    def share_of_yes(question: str) -> float:
        """Of the two words that may begin the answer."""
        ids = chat_ids(tokenizer, [{"role": "user", "content": question}])
        logits = next_token_logits(model, torch.tensor([ids]), len(ids))  # (1, V)
        return logits[0, words].softmax(-1)[0].item()

    return small_judge(share_of_yes)


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
