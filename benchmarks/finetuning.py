"""Finetuning the course's base model as chapters 6 and 7 do, beside the book's loops.

    python -m benchmarks finetuning [--quick]

A run is one epoch without evaluation, with the same initial weights, the same texts and
batches of 8. The book pads messages to the longest of all and reads the last position,
computes logits for every token, and uses AdamW's default loop; its output head is not
tied. Without its package, our model runs in the book's loop. "ours" is appendix F's
way. In chapter 6 the last block, the final norm and the head learn. There "ours" reads
all messages in the first epoch and keeps what the frozen blocks compute for later ones.
"""

import copy
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import book_module, choose_device, find_peer, take_turns
from pretrain.hardware import keep_freed_memory
from shared.appendix_f import KeptBelow
from shared.ch04 import GPTModel
from shared.ch05 import calc_loss_batch, load_base, load_base_tokenizer
from shared.ch06 import (
    GPTClassifier,
    SpamDataset,
    calc_classification_loss,
    create_balanced_dataset,
    create_spam_loader,
    load_sms,
    remove_duplicates,
    set_trainable,
)
from shared.ch07 import (
    InstructionDataset,
    calc_response_loss,
    create_instruction_loader,
    custom_collate_fn,
    load_instructions,
)

BATCH = 8


def epoch(
    model: nn.Module, loader: Iterable, loss_of: Callable, fused: bool | None = True
) -> Callable[[], float]:
    """A function that goes through a loader once and returns the mean loss."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=5e-5, weight_decay=0.1, fused=fused)
    device = learning[0].device

    def run() -> float:
        losses = []
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_of(inputs, targets, model, device)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    return run


def book_model(base: GPTModel) -> tuple[str, nn.Module]:
    """The base model in the book's classes, or in ours without them; and its name."""
    if not find_peer("book"):
        return "like the book", copy.deepcopy(base)
    device = base.tok_emb.weight.device
    model = book_module("ch04").GPTModel(dict(base.cfg)).to(device)
    model.load_state_dict(base.state_dict(), strict=False)  # all but the masks
    return "book", model


def last_token_loss(inputs, targets, model, device) -> torch.Tensor:
    """The book's loss of section 6.7: only the logits of the last position count."""
    logits = model(inputs.to(device))[:, -1]
    return nn.functional.cross_entropy(logits, targets.to(device))


def classification_runs(
    base: GPTModel, messages: pd.DataFrame
) -> dict[str, Callable[[], float]]:
    """An epoch of chapter 6 by each contestant."""
    dataset = SpamDataset(messages, load_base_tokenizer())
    grouped = create_spam_loader(dataset, BATCH, True)

    def classifier():
        torch.manual_seed(123)
        new = GPTClassifier(copy.deepcopy(base), pad_token_id=dataset.pad_token_id)
        set_trainable(new, "last block")
        return new

    again = classifier()
    ways = {
        "ours, first epoch": lambda: epoch(
            KeptBelow(again), grouped, calc_classification_loss
        )(),
        "ours, later epochs": epoch(
            KeptBelow(classifier()), grouped, calc_classification_loss
        ),
        "ours, chapter 6": epoch(classifier(), grouped, calc_classification_loss),
    }
    name, model = book_model(base)
    model.out_head = copy.deepcopy(again.gpt.out_head)
    set_trainable(model, "last block")
    shuffled = DataLoader(dataset, BATCH, shuffle=True)
    ways[name] = epoch(model, shuffled, last_token_loss, fused=None)
    return ways


def instruction_runs(
    base: GPTModel, entries: list[dict[str, str]]
) -> dict[str, Callable[[], float]]:
    """An epoch of chapter 7 by each contestant, in Alpaca's form; all weights learn."""
    tokenizer = load_base_tokenizer()
    dataset = InstructionDataset(entries, tokenizer, responses_only=True)
    longest = base.cfg["context_length"]
    grouped = create_instruction_loader(dataset, BATCH, True, longest)
    name, model = book_model(base)
    collate = partial(
        custom_collate_fn,
        pad_token_id=tokenizer.eot_token,
        allowed_max_length=longest,
    )
    shuffled = DataLoader(dataset, BATCH, shuffle=True, collate_fn=collate)
    return {
        "ours": epoch(copy.deepcopy(base), grouped, calc_response_loss),
        name: epoch(model, shuffled, calc_loss_batch, fused=None),
    }


def per_epoch(seconds: pd.DataFrame) -> pd.DataFrame:
    """Seconds of an epoch, and how many times as fast as the last contestant it is."""
    ratios = seconds.rdiv(seconds.iloc[:, -1], axis=0)
    table = pd.DataFrame({"seconds": seconds.median()})
    table["from"], table["to"] = seconds.min(), seconds.max()
    table[f"x {seconds.columns[-1]}"] = ratios.median()
    table["least"], table["most"] = ratios.min(), ratios.max()
    return table.round(2)


def tables(quick: bool) -> dict[str, pd.DataFrame]:
    """Seconds of an epoch of each chapter; `quick`: few texts, one round."""
    keep_freed_memory()
    device, rounds = choose_device(), 1 if quick else 3
    base = load_base(device)
    messages = create_balanced_dataset(remove_duplicates(load_sms()))
    messages = messages.sample(64 if quick else 728, random_state=123)
    entries = load_instructions()[: 32 if quick else 256]
    runs = {
        f"Chapter 6, {len(messages)} messages": classification_runs(base, messages),
        f"Chapter 7, {len(entries)} entries": instruction_runs(base, entries),
    }
    return {
        title: per_epoch(take_turns(contestants, rounds, device))
        for title, contestants in runs.items()
    }
