"""Teach SmolLM2 chapter 7's instructions with LoRA, and keep what it answers.

    python -m ch08_modern_models.finetune              three splits
    python -m ch08_modern_models.finetune --seeds 1    one

The splits are those of `python -m ch07_instructions.compare`, so both models answer the
same test questions. Stories are left out: here a model learns to answer in a sentence.
The questions and the answers, before and after, are written to `smollm2_answers.json`
beside this file; the notebook scores and shows them. A split takes about twenty minutes
on one CPU core. After Ctrl-C the finished ones are kept, and the next call goes on with
those that are missing; other instructions or other settings begin a new record.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ch07_instructions.compare import FIRST_SEED
from ch07_instructions.scoring import question_of, score_answers
from shared.appendix_e import replace_linear_with_lora
from shared.ch06 import LengthGroupedSampler, let_rate_fall
from shared.ch07 import (
    answer_together,
    custom_collate_fn,
    load_instructions,
    split_entries,
    train_on_responses,
)
from shared.ch08 import LlamaModel, SmolLM2Tokenizer, chat_ids, load_smollm2
from shared.data import FILES
from shared.files import extend_record

RECORD = Path(__file__).with_name("smollm2_answers.json")
# Chosen beforehand: the rank of appendix E, a rate that is usual for LoRA, one epoch.
SETTINGS = {"rank": 8, "alpha": 16.0, "learning_rate": 1e-3, "batch_size": 8}
NEW_TOKENS = 24
Entries = Sequence[Mapping[str, str]]


def made_of() -> dict:
    """What a record depends on."""
    parts = {name: FILES[name].sha256 for name in ("smollm2", "instructions")}
    return {**parts, "settings": {**SETTINGS, "new_tokens": NEW_TOKENS}}


def prompt_ids(tokenizer: SmolLM2Tokenizer, entry: Mapping[str, str]) -> list[int]:
    """An entry's question as the model was taught to be asked."""
    return chat_ids(tokenizer, [{"role": "user", "content": question_of(entry)}])


def answer_loader(
    entries: Entries, tokenizer: SmolLM2Tokenizer, batch_size: int, seed: int
) -> DataLoader:
    """Batches of conversations of nearly the same length; only answers are targets."""
    items = []
    for entry in entries:
        prompt = prompt_ids(tokenizer, entry)
        items.append((prompt + tokenizer.encode(entry["output"]), len(prompt)))
    chance = torch.Generator().manual_seed(seed)
    lengths = [len(ids) for ids, _ in items]
    end = tokenizer.special_tokens["<|im_end|>"]
    return DataLoader(
        items,
        batch_sampler=LengthGroupedSampler(
            lengths, batch_size, generator=chance, pool=20
        ),
        collate_fn=partial(custom_collate_fn, pad_token_id=end),
        generator=chance,
    )


def teach(
    model: LlamaModel,
    tokenizer: SmolLM2Tokenizer,
    entries: Entries,
    *,
    seed: int,
    rank: int,
    alpha: float,
    learning_rate: float,
    batch_size: int,
) -> list[float]:
    """Give a model LoRA layers, in place, and go through the entries once.

    Returns the loss of each step.
    """
    torch.manual_seed(seed)
    replace_linear_with_lora(model.requires_grad_(False), rank, alpha)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=learning_rate, fused=True)
    loader = answer_loader(entries, tokenizer, batch_size, seed)
    let_rate_fall(optimizer, len(loader))
    device = learning[0].device
    losses = list(train_on_responses(model, loader, optimizer, device))
    model.eval()
    return losses


def answers(
    model: LlamaModel,
    tokenizer: SmolLM2Tokenizer,
    entries: Entries,
    batch_size: int = 64,
) -> list[str]:
    """The likeliest answer to each entry, up to its end or the end of its line."""
    prompts = [prompt_ids(tokenizer, entry) for entry in entries]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    end, texts = tokenizer.special_tokens["<|im_end|>"], [""] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), unit="batch", leave=False):
        batch = order[start : start + batch_size]
        asked = [prompts[i] for i in batch]
        new = answer_together(model, asked, NEW_TOKENS, eos_id=end)
        for i, ids in zip(batch, new, strict=True):
            texts[i] = tokenizer.decode(ids).strip().split("\n")[0]
    return texts


def short_answers(entries: Entries) -> list[Mapping[str, str]]:
    """The entries whose answers are no stories."""
    return [entry for entry in entries if entry.get("family") != "story"]


def run(seed: int) -> dict:
    """The answers to one test part, before and after the training part."""
    parts = split_entries(load_instructions(), seed=seed)
    train_entries, _, test_entries = (short_answers(part) for part in parts)
    model, tokenizer = load_smollm2()
    before = answers(model, tokenizer, test_entries)
    start = time.perf_counter()
    losses = teach(model, tokenizer, train_entries, seed=seed, **SETTINGS)
    seconds = round(time.perf_counter() - start, 1)
    after = answers(model, tokenizer, test_entries)
    losses = [round(loss, 4) for loss in losses]
    return {
        "seed": seed,
        "seconds": seconds,
        "n_train": len(train_entries),
        "losses": losses,
        "questions": [as_kept(entry) for entry in test_entries],
        "before": before,
        "after": after,
    }


def as_kept(entry: Mapping[str, str]) -> dict[str, str]:
    """What the record keeps of a test entry, to score its answers."""
    kept = {name: entry[name] for name in ("output", "kind", "family")}
    return {"question": question_of(entry), **kept}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many splits")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    options = parser.parse_args()
    facts = {"made_of": made_of(), "threads": torch.get_num_threads()}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    record = extend_record(options.out, facts, seeds, run)
    for kept in record["runs"]:
        for name in ("before", "after"):
            scores = score_answers(kept["questions"], kept[name])
            by_family = scores.groupby("family")["exact"].mean().round(3).to_dict()
            exact, f1 = scores[["exact", "f1"]].mean()
            print(f"seed {kept['seed']} {name}: {exact:.1%} {f1:.3f} {by_family}")


if __name__ == "__main__":
    main()
