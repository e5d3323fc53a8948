"""What this machine can do at most: multiplications and bytes a second.

    python -m benchmarks limits [--quick]

The other tables say what share of these limits each contestant reaches.
"""

import time

import pandas as pd
import torch

from benchmarks import choose_device
from pretrain.hardware import matmul_flops

MEMORY_BYTES = 2**28


def read_rate(device: torch.device, seconds: float) -> float:
    """The most bytes a second that the sum of a large array fetches."""
    large = torch.ones(MEMORY_BYTES // 4, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or best == 0:
        start = time.perf_counter()
        large.sum().item()
        best = max(best, MEMORY_BYTES / (time.perf_counter() - start))
    return best


def measure_limits(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Operations a second in float32 and, if it is faster, bfloat16; bytes a second."""
    seconds = 0.3 if quick else 2.0
    limits = {"float32": matmul_flops(device, torch.float32, seconds)}
    bfloat16 = matmul_flops(device, torch.bfloat16, seconds)
    if bfloat16 > 1.2 * limits["float32"]:  # or else it is only converted
        limits["bfloat16"] = bfloat16
    return limits | {"bytes": read_rate(device, seconds)}


def as_table(limits: dict[str, float]) -> pd.DataFrame:
    """The result of `measure_limits` with units."""
    units = {"float32": "GFLOP/s", "bfloat16": "GFLOP/s", "bytes": "GB/s read"}
    names = [f"{name}, {units[name]}" for name in limits]
    values = [value / 1e9 for value in limits.values()]
    return pd.DataFrame({"at most": values}, index=names).round(1)


def tables(quick: bool) -> dict[str, pd.DataFrame]:
    """The limits, as one table."""
    return {"Limits": as_table(measure_limits(choose_device(), quick))}
