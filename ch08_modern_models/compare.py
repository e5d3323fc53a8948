"""Train small models that differ from GPT-2 in one part, or in all, over several seeds.

    python -m ch08_modern_models.compare                  all of them, five seeds
    python -m ch08_modern_models.compare --arms all --seeds 2

All read the same batches of chapter 6's messages and chapter 7's instructions. The
results are printed, and written to `ablation.json` beside this file. A seed takes four
minutes on one CPU core. After Ctrl-C the finished runs are kept, and the next call goes
on with those that are missing; runs with other settings are made again.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from shared.ch02 import END_OF_TEXT, BPETokenizer
from shared.ch04 import GPTModel
from shared.ch06 import load_sms, remove_duplicates
from shared.ch07 import format_prompt, load_instructions, split_entries
from shared.ch08 import GroupedQueryAttention, LlamaConfig, RMSNorm, SwiGLU
from shared.data import FILES
from shared.files import write_atomically

RECORD = Path(__file__).with_name("ablation.json")
CHANGES = (
    "rotation",
    "RMSNorm",
    "SwiGLU",
    "grouped queries",
    "no biases",
    "tied head",
)
ARMS: dict[str, tuple[str, ...]] = {
    "GPT-2": (),
    **{change: (change,) for change in CHANGES},
    "all": CHANGES,
    "all but the head": CHANGES[:-1],
}
SMALL: LlamaConfig = {
    "vocab_size": 1024,
    "context_length": 256,  # four times what training shows
    "emb_dim": 96,
    "n_heads": 6,
    "n_kv_heads": 2,
    "n_layers": 4,
    "hidden_dim": 256,  # 8/3 of the width: as many numbers as 4C with two matrices
    "rope_base": 10_000.0,
    "norm_eps": 1e-5,
}
# "GPT-2" learned about as well with rates of 3e-3 and 6e-3, and worse with 12e-3; that
# was tried with one seed, none of the record's.
TRAINING = {
    "steps": 250,
    "warmup": 25,
    "batch": 16,
    "length": 64,
    "rate": 4e-3,
    "decay": 0.1,
}
PLACES = (0, 16, 32, 64, 128, 256)  # where the loss of long texts is averaged between


def course_text() -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the course's messages and instructions: to train on, and held out.

    A tenth of the texts is held out; no message is in both parts, and no group of
    instructions. The vocabulary is learned from the first part.
    """
    messages = remove_duplicates(load_sms())["Text"].tolist()
    chance = random.Random(0)
    chance.shuffle(messages)
    cut = len(messages) // 10
    parts = [messages[cut:], messages[:cut]]
    dealt = split_entries(load_instructions(), (0.9, 0.1))
    for part, entries in zip(parts, dealt, strict=True):
        part += [f"{format_prompt(e, 'chat')} {e['output']}" for e in entries]
        chance.shuffle(part)
    tokenizer = BPETokenizer()
    tokenizer.train(parts[0], SMALL["vocab_size"])
    texts = [END_OF_TEXT.join(part) for part in parts]
    return tuple(torch.tensor(tokenizer.encode(t, {END_OF_TEXT})) for t in texts)


class NoPositions(nn.Module):
    """Stands where the vectors of positions were, and adds nothing."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=positions.device)


class Unrotated(GroupedQueryAttention):
    """Grouped queries alone: every angle is zero."""

    def angles(self, first: int, end: int, device: torch.device) -> torch.Tensor:
        """No rotation: (T, D / 2) zeros."""
        return torch.zeros(end - first, self.head_dim // 2, device=device)


def model_for(
    changes: Collection[str], seed: int, cfg: LlamaConfig = SMALL
) -> nn.Module:
    """Chapter 4's model with some `CHANGES`; with all of them it is a `LlamaModel`.

    "no positions" is a control: the learned vectors go, and nothing takes their place.
    """
    keys = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
    gpt_cfg = {key: cfg[key] for key in keys} | {"drop_rate": 0.0, "qkv_bias": True}
    model = GPTModel({**gpt_cfg, "tie_weights": "tied head" in changes})
    C, heads = cfg["emb_dim"], dict(cfg)
    if "grouped queries" not in changes:
        heads["n_kv_heads"] = cfg["n_heads"]
    for block in model.trf_blocks:
        if "rotation" in changes:
            block.att = GroupedQueryAttention(heads)
        elif "grouped queries" in changes:
            block.att = Unrotated(heads)
        if "SwiGLU" in changes:
            block.ff = SwiGLU(cfg)
        if "RMSNorm" in changes:
            block.norm1, block.norm2 = RMSNorm(C), RMSNorm(C)
    if "RMSNorm" in changes:
        model.final_norm = RMSNorm(C)
    if "rotation" in changes or "no positions" in changes:
        model.pos_emb = NoPositions()
    for layer in model.trf_blocks.modules():
        if isinstance(layer, nn.Linear):  # new parts come without biases
            biases = nn.Parameter(torch.zeros(layer.out_features))
            layer.bias = None if "no biases" in changes else biases
    draw_weights(model, seed)
    return model


def draw_weights(model: nn.Module, seed: int) -> None:
    """GPT-2's initial weights, for whatever parts a model has; in place.

    A matrix that two models have in common gets the same numbers in both, so that less
    of a comparison is chance.
    """
    residual_std = 0.02 / math.sqrt(2 * len(model.trf_blocks))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.constant_(parameter, 1.0 if name.endswith("scale") else 0.0)
        else:
            last = name.endswith(("out_proj.weight", "layers.2.weight", "down.weight"))
            chance = torch.Generator().manual_seed(crc32(f"{name} {seed}".encode()))
            std = residual_std if last else 0.02
            nn.init.normal_(parameter, std=std, generator=chance)


def rate_at(step: int, steps: int, warmup: int) -> float:
    """The share of the highest rate: a rise, then half a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / (steps - warmup))


def train(model: nn.Module, ids: torch.Tensor, seed: int, steps: int, how=TRAINING):
    """Train a model in place on windows drawn with a seed; the losses of all steps."""
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        how["rate"],
        (0.9, 0.95),
        weight_decay=how["decay"],
        fused=True,
    )
    losses = []
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = how["rate"] * rate_at(step, steps, how["warmup"])
        starts = torch.randint(
            len(ids) - how["length"], (how["batch"],), generator=chance
        )
        windows = ids[starts[:, None] + torch.arange(how["length"] + 1)]  # (B, T + 1)
        loss = F.cross_entropy(
            model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def loss_by_place(model: nn.Module, ids: torch.Tensor, length: int) -> torch.Tensor:
    """The mean loss at each position of consecutive windows of a text: (length,)."""
    model.eval()
    windows = ids[: (len(ids) - 1) // length * length].view(-1, length)  # (N, T)
    targets = ids[1 : windows.numel() + 1].view(-1, length)
    losses = [
        F.cross_entropy(model(some).transpose(1, 2), wanted, reduction="none")
        for some, wanted in zip(windows.split(64), targets.split(64), strict=True)
    ]
    return torch.cat(losses).mean(dim=0)


def run(arm: str, seed: int, train_ids: torch.Tensor, val_ids: torch.Tensor) -> dict:
    """Train one model; its losses, its size, and what it costs."""
    model = model_for(ARMS[arm], seed)
    start = time.process_time()  # of this process alone, whatever else is running
    train(model, train_ids, seed, TRAINING["steps"])
    seconds = time.process_time() - start
    long = loss_by_place(model, val_ids, SMALL["context_length"])
    return {
        "arm": arm,
        "seed": seed,
        "loss": loss_by_place(model, val_ids, TRAINING["length"]).mean().item(),
        "by_place": [long[a:b].mean().item() for a, b in pairwise(PLACES)],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
    }


def made_of() -> dict:
    """What every run depends on, in the form that a record keeps."""
    return {
        "data": [FILES[name].sha256 for name in ("sms-spam", "instructions")],
        "model": SMALL,
        "training": TRAINING,
        "runs": [],
    }


def read_record(path: Path = RECORD) -> pd.DataFrame:
    """The runs of a record as a table; ValueError if its settings are not today's.

    It may be of earlier texts: the record says by their sha256 which they were.
    """
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    wanted = made_of()
    changed = [key for key in ("model", "training") if record[key] != wanted[key]]
    if changed:
        raise ValueError(
            f"{Path(path).name} was made with another {' and '.join(changed)}; "
            "python -m ch08_modern_models.compare makes it again"
        )
    return pd.DataFrame(record["runs"])


def against_first(runs: pd.DataFrame) -> pd.DataFrame:
    """Each arm's mean loss, its mean difference from "GPT-2", seed by seed, and costs.

    `error` is the standard error of that difference; times are shares of GPT-2's.
    """
    losses = runs.pivot(index="seed", columns="arm", values="loss")[list(ARMS)]
    gaps = losses.sub(losses["GPT-2"], axis=0)
    means = runs.groupby("arm")[["parameters", "seconds"]].mean().loc[list(ARMS)]
    return pd.DataFrame(
        {
            "loss": losses.mean(),
            "spread": losses.std(),
            "difference": gaps.mean(),
            "error": gaps.std() / len(gaps) ** 0.5,
            "parameters": means["parameters"].astype(int),
            "time": means["seconds"] / means.loc["GPT-2", "seconds"],
        }
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=RECORD, help="the record to extend")
    options = parser.parse_args()
    record = made_of()
    if options.out.exists():
        old = json.loads(options.out.read_text(encoding="utf-8"))
        if record == {**old, "runs": []}:
            record = old
    done = {(entry["arm"], entry["seed"]) for entry in record["runs"]}
    torch.set_num_threads(1)  # so that times can be compared
    texts = course_text()
    for seed in range(options.seeds):
        for arm in options.arms:
            if (arm, seed) not in done:
                record["runs"].append(run(arm, seed, *texts))
                write_atomically(options.out, json.dumps(record, indent=1) + "\n")
                print(record["runs"][-1], flush=True)
    print(pd.DataFrame(record["runs"]).groupby("arm")["loss"].agg(["mean", "std"]))


if __name__ == "__main__":
    main()
