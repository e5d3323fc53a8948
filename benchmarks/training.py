"""A training step of the course's GPT, beside transformers' and the book's.

    python -m benchmarks training [--quick]

All have GPT-2's shapes, AdamW and the same tokens. The heads of ours and transformers
are tied, the book's is not. "ours" is appendix F's step, "ours, chapter 5" uses the
plain loss. The book trains in float32 with AdamW's default loop, as it does here. The
limit counts only the matrix products. All contestants keep freed memory.
"""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import (
    SIZES,
    book_module,
    choose_device,
    find_peer,
    summary,
    take_turns,
    where_time_goes,
)
from benchmarks.limits import as_table, measure_limits
from pretrain.hardware import keep_freed_memory
from shared.appendix_f import chunked_cross_entropy
from shared.ch04 import GPTConfig, GPTModel
from shared.ch05 import calc_loss_batch

TASKS = {"124M": (2, 256), "30M": (4, 256)}  # batch, context


def transformers_model(cfg: GPTConfig) -> nn.Module:
    """GPT-2 of `transformers`, with the same shapes and without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg["vocab_size"],
            n_positions=cfg["context_length"],
            n_embd=cfg["emb_dim"],
            n_head=cfg["n_heads"],
            n_layer=cfg["n_layers"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def steps(
    cfg: GPTConfig,
    batch: int,
    context: int,
    device: torch.device,
    dtype: torch.dtype,
    peers: tuple[str, ...],
) -> dict[str, Callable[[], float]]:
    """A training step of each contestant, as a function that returns the loss."""
    torch.manual_seed(123)
    ids = torch.randint(cfg["vocab_size"], (batch, context + 1), device=device)
    inputs, targets = ids[:, :-1], ids[:, 1:]

    def stepper(model, optimizer, loss_of, dtype):
        def step():
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_of(model)
            loss.backward()
            optimizer.step()
            return loss.item()

        return step

    def in_chunks(model):
        features, head = model.features(inputs), model.out_head.weight
        return chunked_cross_entropy(features, head, targets)

    def all_logits(model):
        logits = model(inputs)
        logits = getattr(logits, "logits", logits)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def chapter_5(model):
        return calc_loss_batch(inputs, targets, model, device)

    def contestant(model, loss_of, fused=True, dtype=dtype):
        model = model.to(device).train()
        options = {"fused": True} if fused else {}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, **options)
        return stepper(model, optimizer, loss_of, dtype)

    ours = GPTModel({**cfg, "tie_weights": True}).to(device).train()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-4, fused=True)
    found = {
        "ours": stepper(ours, optimizer, in_chunks, dtype),
        "ours, chapter 5": stepper(ours, optimizer, chapter_5, dtype),
    }
    if "transformers" in peers:
        found["transformers"] = contestant(transformers_model(cfg), all_logits)
    if "book" in peers:
        ch04 = book_module("ch04")
        for name, build in (("book", ch04.GPTModel), ("book, fast", ch04.GPTModelFast)):
            model = build(dict(cfg))
            found[name] = contestant(model, all_logits, False, torch.float32)
    return found


def token_operations(cfg: GPTConfig) -> int:
    """Operations per token of the matrix products of a training step."""
    C, L, V = cfg["emb_dim"], cfg["n_layers"], cfg["vocab_size"]
    return 6 * (12 * L * C**2 + V * C)


def tables(quick: bool) -> dict[str, pd.DataFrame]:
    """Tokens a second, for each size and precision; `quick`: only the small size."""
    keep_freed_memory()
    device = choose_device()
    peers = tuple(name for name in ("transformers", "book") if find_peer(name))
    limits = measure_limits(device, quick)
    found = {"Limits, before training": as_table(limits)}
    precisions = [name for name in ("float32", "bfloat16") if name in limits]
    for size in ["30M"] if quick else TASKS:
        cfg, (batch, context) = SIZES[size], TASKS[size]
        for name in precisions:
            dtype = getattr(torch, name)
            runs = steps(cfg, batch, context, device, dtype, peers)
            seconds = take_turns(runs, 1 if quick else 5, device)
            operations, tokens = token_operations(cfg), batch * context
            most = {"": limits[name] / operations}
            for book in ("book", "book, fast"):
                most[book] = limits["float32"] / operations
            title = f"Training step, {size}, {batch} x {context}, {name}"
            found[title] = summary(seconds, tokens, most)
            if device.type == "cpu":
                work = {"GFLOP/s": tokens * operations}
                found[f"{title}, where ours goes"] = where_time_goes(
                    runs["ours"], **work
                )
    return found
