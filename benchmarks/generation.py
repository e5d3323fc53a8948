"""Greedy text by the course's GPT, beside transformers' and the book's.

    python -m benchmarks generation [--quick]

"ours" is appendix F's way, "ours, chapter 5" the simple loop with its cache. The book's
loop has no cache, because the one in its package stops with an error. A limit is what
bytes or multiplications allow, whichever is less; int8 has a quarter of the bytes. The
appendix measures its error.
"""

from collections.abc import Callable

import pandas as pd
import torch

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
from benchmarks.training import transformers_model
from shared.appendix_f import generate_fast, packed, quantised
from shared.ch04 import GPTConfig, GPTModel
from shared.ch05 import generate

PROMPT_TOKENS, NEW_TOKENS, TEXTS = 16, 64, 32


def generation_runs(
    cfg: GPTConfig,
    texts: int,
    new: int,
    device: torch.device,
    dtype: torch.dtype,
    peers: tuple[str, ...],
) -> dict[str, Callable[[], object]]:
    """Greedy generation by each contestant, as functions."""
    torch.manual_seed(123)
    ours = GPTModel({**cfg, "tie_weights": True}).to(device, dtype).eval()
    V, context = cfg["vocab_size"], cfg["context_length"]
    prompt = torch.randint(V, (texts, PROMPT_TOKENS), device=device)
    fast = packed(ours, texts)
    runs = {
        "ours": lambda: generate_fast(fast, prompt, new, context),
        "ours, chapter 5": lambda: generate(ours, prompt, new, context),
    }
    if texts == 1 and device.type == "cpu":
        small = quantised(ours, 8)
        runs["ours, int8"] = lambda: generate_fast(small, prompt, new, context)
    if "transformers" in peers:
        theirs = transformers_model(cfg).to(device, dtype).eval()
        theirs.generation_config.pad_token_id = 0
        theirs.generation_config.eos_token_id = None
        mask = torch.ones_like(prompt)
        runs["transformers"] = lambda: theirs.generate(
            prompt, attention_mask=mask, max_new_tokens=new, do_sample=False
        )
    if "book" in peers and texts == 1:
        ch04 = book_module("ch04")
        book = ch04.GPTModel(dict(cfg)).to(device, dtype).eval()
        runs["book"] = lambda: ch04.generate_text_simple(book, prompt, new, context)
    return runs


def tokens_limit(
    cfg: GPTConfig, texts: int, limits: dict[str, float], name: str, n_bytes: int
) -> float:
    """Tokens a second if each weight is fetched once for all texts of a step."""
    C, L, V = cfg["emb_dim"], cfg["n_layers"], cfg["vocab_size"]
    P = 12 * L * C**2 + V * C
    return min(texts * limits["bytes"] / (n_bytes * P), limits[name] / (2 * P))


def passes_work(cfg: GPTConfig, texts: int, new: int, n_bytes: int) -> dict[str, float]:
    """Bytes of the matrices, and operations of their products, in all passes."""
    C, L, V = cfg["emb_dim"], cfg["n_layers"], cfg["vocab_size"]
    blocks, head = 12 * L * C**2, V * C
    read = texts * (PROMPT_TOKENS + new - 1)
    return {
        "GB/s": new * n_bytes * (blocks + head),
        "GFLOP/s": 2 * (read * blocks + texts * new * head),
    }


def tables(quick: bool) -> dict[str, pd.DataFrame]:
    """Tokens a second for one text and for many; `quick`: a small model, few tokens."""
    device = choose_device()
    peers = tuple(name for name in ("transformers", "book") if find_peer(name))
    limits = measure_limits(device, quick)
    found = {"Limits, before writing": as_table(limits)}
    size, new = ("30M", 16) if quick else ("124M", NEW_TOKENS)
    cfg = SIZES[size]
    for name in [name for name in ("float32", "bfloat16") if name in limits]:
        dtype = getattr(torch, name)
        for texts in (1, TEXTS):
            runs = generation_runs(cfg, texts, new, device, dtype, peers)
            seconds = take_turns(runs, 1 if quick else 5, device)
            most = {"": tokens_limit(cfg, texts, limits, name, dtype.itemsize)}
            most["ours, int8"] = tokens_limit(cfg, texts, limits, name, 1)
            title = f"Greedy text, {size}, {texts} at once, {new} new tokens, {name}"
            found[title] = summary(seconds, texts * new, most)
            if device.type == "cpu":
                work = passes_work(cfg, texts, new, dtype.itemsize)
                found[f"{title}, where ours goes"] = where_time_goes(
                    runs["ours"], **work
                )
    return found
