"""Ask SmolLM2: as a judge of answers, and the questions that our model is asked.

    python -m ch07_instructions.judge

As a judge, it rates the first answers that `python -m ch07_instructions.compare` has
kept, and the reference answers, answers to other questions, longer answers and swapped
pairs beside them. The scores are written to `smollm2_scores.jsonl` beside this file,
where the notebooks find them. Then it answers the first test questions itself; what it
says is written to `smollm2_answers.json`. Both together take some minutes on two CPU
cores; after an interruption the next call goes on with what is missing. SmolLM2 is read
in chapter 8: a program may ask it before it is explained.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from ch07_instructions.compare import RECORD, by_family, first_short
from ch07_instructions.judging import (
    generate_model_scores,
    judge_trials,
    reworded_trials,
    small_judge,
)
from ch07_instructions.scoring import question_of
from shared.ch04 import next_token_logits
from shared.ch07 import answer_together, load_instructions, split_entries
from shared.files import write_atomically

SCORES = Path(__file__).with_name("smollm2_scores.jsonl")
SMOLLM2_ANSWERS = Path(__file__).with_name("smollm2_answers.json")
N_SHORT, N_STORIES, NEW_TOKENS = 12, 4, (40, 200)  # of what it answers itself


def load_small_judge() -> Callable[[str], str]:
    """SmolLM2-135M-Instruct as a judge for `ask`, see `small_judge`."""
    from shared.ch08 import chat_ids, load_smollm2  # only when it is asked

    model, tokenizer = load_smollm2()
    words = [tokenizer.encode(word)[0] for word in ("Yes", "No")]

    @torch.no_grad()
    def share_of_yes(question: str) -> float:
        """Of the two words that may begin the answer."""
        ids = chat_ids(tokenizer, [{"role": "user", "content": question}])
        logits = next_token_logits(model, torch.tensor([ids]), len(ids))  # (1, V)
        return logits[0, words].softmax(-1)[0].item()

    return small_judge(share_of_yes)


def stored_judge(folder: str | Path) -> dict:
    """The small judge as keyword arguments of `generate_model_scores`.

    What it has said before is copied into `folder` and taken from there. The model is
    loaded only if something else is asked.
    """
    loaded: list[Callable[[str], str]] = []

    def ask(prompt: str) -> str:
        if not loaded:
            loaded.append(load_small_judge())
        return loaded[0](prompt)

    known = Path(folder) / SCORES.name
    if not known.exists():
        shutil.copyfile(SCORES, known)
    return {"model": "smollm2", "ask": ask, "path": known}


def answer_as_smollm2(entries: list[dict[str, str]]) -> dict[str, str]:
    """What SmolLM2 answers to each question, by question; the likeliest tokens."""
    from shared.ch08 import chat_ids, load_smollm2

    model, tokenizer = load_smollm2()
    end, answers = tokenizer.special_tokens["<|im_end|>"], {}
    for part, most in zip(by_family(entries), NEW_TOKENS, strict=True):
        asked = [question_of(entry) for entry in part]
        prompts = [chat_ids(tokenizer, [{"role": "user", "content": q}]) for q in asked]
        new = answer_together(model, prompts, most, end) if asked else []
        answers |= {q: tokenizer.decode(ids) for q, ids in zip(asked, new, strict=True)}
    return answers


def main() -> None:
    """Ask what is not known yet, and print the means."""
    run = json.loads(RECORD.read_text(encoding="utf-8"))["runs"][0]
    entries = split_entries(load_instructions(), seed=run["seed"])[2]
    judge = {"model": "smollm2", "ask": load_small_judge(), "path": SCORES}
    for trials in (
        reworded_trials(),
        judge_trials(*first_short(entries, run["finetuned"])),
    ):
        verdicts = {
            name: generate_model_scores(asked, **judge)
            for name, asked in trials.items()
        }
        print(pd.DataFrame(verdicts).agg(["count", "mean"]).T.round(1))
    short, ordered = by_family(entries)
    asked = short[:N_SHORT] + ordered[:N_STORIES]
    known = {}
    if SMOLLM2_ANSWERS.exists():
        known = json.loads(SMOLLM2_ANSWERS.read_text(encoding="utf-8"))
    missing = [entry for entry in asked if question_of(entry) not in known]
    known |= answer_as_smollm2(missing) if missing else {}
    kept = {question_of(entry): known[question_of(entry)] for entry in asked}
    write_atomically(SMOLLM2_ANSWERS, json.dumps(kept, indent=0) + "\n")


if __name__ == "__main__":
    main()
