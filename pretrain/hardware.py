"""What pretraining runs on: processes, devices, and how fast they multiply."""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from shared.ch04 import GPTModel


@dataclass(frozen=True)
class Workers:
    """This process among all: its number, how many there are, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            dist.barrier()

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes, element by element."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()


@contextlib.contextmanager
def start_workers(device: str) -> Iterator[Workers]:
    """Join the other processes if `torchrun` started us, and leave them at the end.

    Raises:
        ValueError: if a GPU is asked for that torch does not see.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))  # both are set by torchrun
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and local >= gpus:
        raise ValueError(
            f"device cuda is asked for by process {local} on this machine, but torch "
            f"sees {gpus} GPUs; use --device cpu, fewer processes, or a CUDA build of "
            "torch"
        )
    if device == "cuda":
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")
    where = torch.device(device, local) if device == "cuda" else torch.device("cpu")
    if count == 1:
        yield Workers(0, 1, where)
        return
    _meet("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), count, where)
    finally:
        dist.destroy_process_group()


def _meet(backend: str) -> None:
    """Make the process group that torchrun has described in the environment.

    When a process has died, torchrun starts all of them again with the same store. It
    still holds the addresses of the old processes, and a new one that reads them waits
    for ever. So every start gets its own part of the store. (Each machine counts its
    starts alone; for more than one machine see docs/scaling.md.)
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend)
        return
    store, rank, count = next(rendezvous("env://"))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"start {start}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)


def share_out(
    objective: nn.Module, blocks: nn.ModuleList, workers: Workers, precision: str
) -> nn.Module:
    """Give each process a part of every layer (FSDP); blocks are gathered in turn."""
    bf16 = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(workers.device.type, (workers.count,))
    for module in [*blocks, objective]:
        # reshard: an evaluation must leave the parameters as it found them
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return objective


def exchanging(
    objective: nn.Module, last: bool
) -> contextlib.AbstractContextManager[None]:
    """A block whose backward pass exchanges gradients only if it is a step's last."""
    if isinstance(objective, DistributedDataParallel) and not last:
        return objective.no_sync()
    if hasattr(objective, "set_requires_gradient_sync"):  # FSDP's
        objective.set_requires_gradient_sync(last)
    return contextlib.nullcontext()


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library can.

    A training step allocates and frees the same hundreds of megabytes each time. By
    default glibc gives large blocks back to the system at once. The system then clears
    every page again, which can take nearly half of a step's time on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
        mallopt(M_MMAP_MAX, 0)  # no block has pages of its own
        mallopt(M_TRIM_THRESHOLD, -1)  # the heap never shrinks


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator from which a device draws dropout masks.

    `torch.manual_seed` would seed those of all kinds of devices, and record the call
    stack for each kind that is not in use: in a notebook a tenth of a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The most floating-point operations a second that a matrix product reaches."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = torch.ones(2, n, n, dtype=dtype, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or best == 0:
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * n**3 / (time.perf_counter() - start))
    return best


def choose_precision(wanted: str, device: torch.device) -> str:
    """`wanted`, or for "auto" bf16 if its products are faster by half, else fp32."""
    if wanted != "auto":
        return wanted
    bf16, fp32 = (
        matmul_flops(device, dtype, 0.3) for dtype in (torch.bfloat16, torch.float32)
    )
    return "bf16" if bf16 > 1.5 * fp32 else "fp32"


@contextlib.contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """A block in which matrix products are made in bfloat16, if that is wanted.

    On a CPU torch's fused attention in bfloat16 takes half as long again as the plain
    products and softmax that it replaces, at the lengths of a small model.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        )
        if precision == "bf16" and device.type == "cpu":
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of CPUs, too
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def flops_per_token(
    model: GPTModel, window: int | None = None, vocabulary: int | None = None
) -> float:
    """Floating-point operations that training spends on one token.

    Six for each parameter in a matrix product (a product and a sum, forward and twice
    backward), and 12 n_layers T C for attention's two products with a full context.

    Args:
        model: a `GPTModel`.
        window: T, by default the model's context_length.
        vocabulary: rows of the output head that are used, by default all.

    Source: Kaplan et al. (2020), Scaling Laws for Neural Language Models, section 2.1;
    Chowdhery et al. (2022), PaLM, appendix B.
    """
    cfg = model.cfg
    used = sum(p.numel() for p in model.trf_blocks.parameters())
    T, C = window or cfg["context_length"], cfg["emb_dim"]
    used += (vocabulary or cfg["vocab_size"]) * C
    return 6 * used + 12 * cfg["n_layers"] * T * C
