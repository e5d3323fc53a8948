"""SmolLM2 in the course's code on a CPU, with weights stored in several ways.

    python -m benchmarks smollm2 [--quick]

It writes greedy text, one text at a time, beside transformers, which reads the same
file. The limit is the memory's speed divided by the bytes of weights that a token has
to read, or what multiplications allow, whichever is less. bfloat16 takes part if the
processor multiplies it faster than float32.
"""

from collections.abc import Callable
from copy import deepcopy

import pandas as pd
import torch
from torch import nn

from benchmarks import find_peer, summary, take_turns
from benchmarks.limits import measure_limits
from ch08_modern_models.gguf_files import read_gguf
from shared import data
from shared.ch08 import bytes_per_token, llama_from_gguf, shrink

CPU = torch.device("cpu")


def our_step(model: nn.Module, room: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that reads the next ids of a text and returns logits."""
    cache = model.new_cache(room)
    return lambda ids: model.out_head(model.features(ids, cache)[:, -1])


def their_step(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same for a model of transformers."""
    from transformers import DynamicCache

    cache = DynamicCache()
    return lambda ids: model(ids, past_key_values=cache).logits[:, -1]


@torch.no_grad()
def write(step: Callable[[torch.Tensor], torch.Tensor], tokens: int) -> None:
    """Write `tokens` tokens after the first one, always the likeliest."""
    idx = torch.ones(1, 1, dtype=torch.long)  # <|im_start|>
    for _ in range(tokens):
        idx = step(idx).argmax(-1, keepdim=True)


def load_models(with_bfloat16: bool) -> dict[str, nn.Module]:
    """Models with the same weights, stored in several ways."""
    metadata, stored = read_gguf(data.get("smollm2"))
    model = llama_from_gguf(metadata, stored)
    models = {"ours, float32": model}
    if with_bfloat16:
        models["ours, bfloat16"] = deepcopy(model).bfloat16()
    models["ours, int8 by rows"] = shrink(deepcopy(model))
    models["ours, int4 as stored"] = shrink(deepcopy(model), stored)
    return models


def load_peer() -> nn.Module:
    """transformers' model, from the same file, in float32."""
    from transformers import AutoModelForCausalLM

    path = data.get("smollm2")
    where = {"gguf_file": path.name, "local_files_only": True}
    return AutoModelForCausalLM.from_pretrained(path.parent, **where).eval()


def tables(quick: bool) -> dict[str, pd.DataFrame]:
    """Tokens a second, and the limit."""
    tokens, rounds = (8, 1) if quick else (64, 5)
    machine = measure_limits(CPU, quick)
    models = load_models(with_bfloat16="bfloat16" in machine)
    contestants = {
        name: lambda model=model: write(our_step(model, tokens), tokens)
        for name, model in models.items()
    }
    read = {name: bytes_per_token(model) for name, model in models.items()}
    peer = "transformers, float32"
    if find_peer("transformers"):
        reference = load_peer()
        contestants[peer] = lambda: write(their_step(reference), tokens)
        read[peer] = read["ours, float32"]
    multiplications = 2 * sum(p.numel() for p in models["ours, float32"].parameters())
    limits = {
        name: min(machine["bytes"] / n, machine["float32"] / multiplications)
        for name, n in read.items()
    }
    table = summary(take_turns(contestants, rounds, CPU), tokens, limits | {"": 1.0})
    table.insert(0, "MB a token", [round(read[name] / 1e6, 1) for name in table.index])
    return {"SmolLM2-135M, one text": table}
