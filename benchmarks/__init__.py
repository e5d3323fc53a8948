"""Speed beside named peers, measured in the same run: `python -m benchmarks`."""

import importlib
import importlib.util
import time
from collections.abc import Callable
from types import ModuleType

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from shared.ch04 import GPT_CONFIG_124M

# GPT-2's smallest size, and a model with a quarter of its parameters.
SIZES = {
    name: {**GPT_CONFIG_124M, "drop_rate": 0.0, "qkv_bias": True, **changes}
    for name, changes in {
        "124M": {},
        "30M": {"emb_dim": 384, "n_heads": 6, "n_layers": 6},
    }.items()
}
PEERS = {  # the module of each peer, and how to get it
    "transformers": ("transformers", "pip install -r requirements.txt"),
    "book": (
        "llms_from_scratch",
        "pip install --no-deps -r requirements-benchmarks.txt",
    ),
}


KINDS = {  # kinds of PyTorch's operations, by parts of their names
    "matrix products": ("mm", "mkl_linear"),
    "attention": ("attention",),
    "optimizer": ("adam",),
}


def find_peer(name: str) -> bool:
    """Whether a peer is installed; if not, print how to get it."""
    module, remedy = PEERS[name]
    if importlib.util.find_spec(module) is None:
        print(f"without {name}, which is not installed: {remedy}")
        return False
    return True


def book_module(name: str) -> ModuleType:
    """A module of the book's own package, such as "ch04"."""
    return importlib.import_module(f"llms_from_scratch.{name}")


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def take_turns(
    contestants: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> pd.DataFrame:
    """Seconds of each contestant in each round; a first round is not counted."""
    rows = []
    for _ in tqdm(range(rounds + 1), unit="round", leave=False):
        row = {}
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            row[name] = time.perf_counter() - start
        rows.append(row)
    return pd.DataFrame(rows[1:])


def summary(
    seconds: pd.DataFrame, tokens: int, limits: dict[str, float]
) -> pd.DataFrame:
    """Rates, their range, ratios to the peers, and the share of the limit.

    A ratio is computed within each round, because a disturbance affects both of a pair;
    the table shows the median over the rounds. `limits` are tokens a second by the name
    of the contestant; "" is for all others.
    """
    rates = tokens / seconds
    table = pd.DataFrame({"tokens/s": rates.median()})
    table["from"], table["to"] = rates.min(), rates.max()
    for peer in (p for p in seconds if p.split(",")[0] in PEERS):
        pairs = rates.div(rates[peer], axis=0)
        table[f"x {peer}"] = pairs.median()
    most = pd.Series({name: limits.get(name, limits[""]) for name in seconds})
    table["of limit"] = table["tokens/s"] / most
    return table.round(2)


def where_time_goes(run: Callable[[], object], **work: float) -> pd.DataFrame:
    """How much of a run's time each kind of operation takes on a CPU.

    `work` is what the matrix products have to do, by unit, such as GFLOP/s; the table
    shows how much of it, in 10^9, they did in a second.
    """
    with profile(activities=[ProfilerActivity.CPU]) as record:
        start = time.perf_counter()
        run()
        whole = time.perf_counter() - start
    spent = dict.fromkeys(KINDS, 0.0)
    for event in record.key_averages():
        for kind, parts in KINDS.items():
            if any(part in event.key for part in parts):
                spent[kind] += event.self_cpu_time_total / 1e6
    spent["all else"] = whole - sum(spent.values())
    table = pd.DataFrame({"of the time": pd.Series(spent) / whole})
    for unit, amount in work.items():
        rate = amount / 1e9 / spent["matrix products"]
        table[unit] = pd.Series({"matrix products": rate})
    return table.round(2)
