"""What training the course's GPT costs at any size, by formula and by counting.

    python benchmarks/scaling.py              all tables but the last two
    python benchmarks/scaling.py flops        operations per token
    python benchmarks/scaling.py memory       bytes per parameter and per token
    python benchmarks/scaling.py days         model x tokens x GPUs -> days
    python benchmarks/scaling.py exchange     what swapping gradients adds to a step
    python benchmarks/scaling.py fit          bytes on each GPU, DDP and FSDP
    python benchmarks/scaling.py freed        a CPU step with and without freed memory
    python benchmarks/scaling.py stages       with the whole vocabulary and a part of it

All but the last two only count and compute, so they print the same on any machine. The
last two are timings: run them when nothing else runs. docs/scaling.md explains the
tables.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.utils.flop_counter import FlopCounterMode

from pretrain.checkpoints import Checkpoints
from pretrain.hardware import Workers, flops_per_token, keep_freed_memory
from pretrain.objective import Objective, PartOfVocabulary
from shared.ch04 import GPT2_CONFIGS, GPTModel

GPT2 = {name: {**cfg, "drop_rate": 0.0} for name, cfg in GPT2_CONFIGS.items()}
SMALL = {**GPT2["124M"], "emb_dim": 384, "n_heads": 6, "n_layers": 6}  # 30M
BASE = {  # the course's base model in its first four runs, with GPT-2's tokens
    **SMALL,
    **{"context_length": 512, "emb_dim": 256, "n_heads": 4, "n_layers": 8},
    **{"qkv_bias": True, "tie_weights": True},
}
LARGE = {  # "GPT-3 6.7B" of Brown et al. (2020), table 2.1
    **GPT2["124M"],
    **{"context_length": 2048, "emb_dim": 4096, "n_heads": 32, "n_layers": 32},
}

PEAK_FLOPS = 989e12  # H100 SXM, bf16, without sparsity: NVIDIA's data sheet
GPU_BYTES = 80e9  # the same
UTILISATION = 0.4  # see docs/scaling.md
STEP_TOKENS = 2**19  # half a million, as in Brown et al. (2020), table 2.1
LINKS = {  # GPUs, and bytes per second at which they exchange gradients
    "8 GPUs, NVLink": (8, 450e9),  # each way: half of the data sheet's 900 GB/s
    "64 GPUs, 8 x 400 Gb/s a machine": (64, 8 * 50e9),
    "64 GPUs, 1 x 100 Gb/s a machine": (64, 12.5e9),
}
FP32, BF16 = 4, 2  # bytes


def meta_model(cfg):
    """A model whose tensors have shapes but no numbers."""
    with torch.device("meta"):
        return GPTModel(cfg)


def count_parameters(model):
    """P."""
    return sum(p.numel() for p in model.parameters())


def flops_table(sizes):
    """The trainer's formula and PyTorch's count, forward and backward."""
    rows = {}
    for name, cfg in sizes.items():
        model, T = meta_model(cfg), cfg["context_length"]
        ids = torch.zeros(1, T, dtype=torch.int64, device="meta")
        with FlopCounterMode(display=False) as counter:
            Objective(model)(ids, ids).backward()
        predicted, counted = flops_per_token(model), counter.get_total_flops() / T
        attention = 12 * cfg["n_layers"] * T * cfg["emb_dim"]
        rows[name] = {
            "parameters": f"{count_parameters(model):,}",
            "predicted": f"{predicted / 1e6:,.1f} M",
            "counted": f"{counted / 1e6:,.1f} M",
            "ratio": f"{predicted / counted:.4f}",
            "6 P": f"{6 * count_parameters(model) / 1e6:,.1f} M",
            "attention": f"{attention / predicted:.0%}",
        }
    return pd.DataFrame(rows).T


def predict_activations(cfg, bf16):
    """Bytes per token that the forward pass keeps: in a block, and in the whole model.

    A block keeps, in units of C: the two inputs of norms (the residual stream, always
    fp32); the norms' outputs; queries, keys, values; the heads' outputs; 4 before GELU
    and 4 after it. Autocast makes one bf16 copy of the first norm's output for each of
    the three layers that read it. Each norm also keeps two statistics, and the softmax
    one per head. After the blocks come the last norm, the log-probabilities of the loss
    (V, fp32), and the ids and targets.
    """
    C, H, V = cfg["emb_dim"], cfg["n_heads"], cfg["vocab_size"]
    if bf16:
        block = 2 * FP32 * C + (3 + 1 + 3 + 1 + 4 + 4) * BF16 * C
        last = FP32 * C + BF16 * C
    else:
        block = (2 + 1 + 1 + 3 + 1 + 4 + 4) * FP32 * C
        last = 2 * FP32 * C
    block += 4 * FP32 + FP32 * H
    whole = cfg["n_layers"] * block + last + 2 * FP32 + FP32 * V + 2 * 8
    return block, whole


def count_saved_bytes(objective, T, bf16):
    """Bytes of all storages that a forward pass over T tokens keeps."""
    own = {p.untyped_storage()._cdata for p in objective.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:  # views of one storage count once
            saved[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(1, T, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        loss = objective(ids, ids)  # it keeps what was saved, so addresses stay unique
        del loss
    return sum(saved.values())


def activations_table(sizes):
    """Bytes that a forward pass keeps, per token and per parameter."""
    rows = {}
    for name, cfg in sizes.items():
        torch.manual_seed(123)
        model = GPTModel(cfg)
        objective = Objective(model)
        for precision, bf16 in (("fp32", False), ("bf16", True)):
            block, predicted = predict_activations(cfg, bf16)
            short, long = (count_saved_bytes(objective, T, bf16) for T in (16, 32))
            counted = (long - short) / 16
            constant = (short - 16 * counted) / count_parameters(model)
            rows[f"{name}, {precision}"] = {
                "in a block": f"{block / 1e3:,.1f} kB",
                "log-probabilities": f"{FP32 * cfg['vocab_size'] / 1e3:,.1f} kB",
                "whole, predicted": f"{predicted / 1e3:,.1f} kB",
                "whole, counted": f"{counted / 1e3:,.1f} kB",
                "per parameter": f"{constant:.2f} B",
            }
    return pd.DataFrame(rows).T


def states_table(sizes):
    """Bytes of parameters, gradients and AdamW's averages: 4 + 4 + 8 per parameter."""
    rows = {}
    for name, cfg in sizes.items():
        model = meta_model(cfg)
        ids = torch.zeros(1, 1, dtype=torch.int64, device="meta")
        optimizer = torch.optim.AdamW(model.parameters())
        Objective(model)(ids, ids).backward()
        optimizer.step()
        parts = {
            "parameters": sum(p.nbytes for p in model.parameters()),
            "gradients": sum(p.grad.nbytes for p in model.parameters()),
            "averages": sum(
                tensor.nbytes
                for state in optimizer.state.values()
                for tensor in state.values()
                if tensor.dim() > 0  # the number of steps is a scalar
            ),
        }
        total, P = sum(parts.values()), count_parameters(model)
        rows[name] = {key: f"{value / 1e9:.2f} GB" for key, value in parts.items()}
        rows[name] |= {"sum": f"{total / 1e9:.2f} GB", "per parameter": total / P}
    return pd.DataFrame(rows).T


def checkpoint_table():
    """What the trainer writes for a small model, and 12 bytes per parameter."""
    cfg = {**SMALL, "emb_dim": 64, "n_heads": 1, "n_layers": 2}
    rows = {}
    for tied in (False, True):
        model = GPTModel({**cfg, "tie_weights": tied})
        objective = Objective(model)
        optimizer = torch.optim.AdamW(model.parameters())
        ids = torch.zeros(1, 1, dtype=torch.int64)
        objective(ids, ids).backward()
        optimizer.step()
        state = {
            "model": get_model_state_dict(objective),
            "averages": get_optimizer_state_dict(objective, optimizer)["state"],
        }
        with tempfile.TemporaryDirectory() as folder:
            workers = Workers(0, 1, torch.device("cpu"))
            Checkpoints(Path(folder), 1, workers).save(1, state, {})
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            written = sum(path.stat().st_size for path in files)
        P = count_parameters(model)
        rows["tied head" if tied else "own head"] = {
            "parameters": f"{P:,}",
            "12 P": f"{12 * P / 1e6:.1f} MB",
            "written": f"{written / 1e6:.1f} MB",
            "4 V C": f"{4 * cfg['vocab_size'] * cfg['emb_dim'] / 1e6:.1f} MB",
        }
    return pd.DataFrame(rows).T


def format_days(days):
    """Days; if they are few, hours or minutes."""
    if days < 0.95 / 24:
        return f"{days * 24 * 60:.0f} min"
    return f"{days * 24:.1f} h" if days < 2 else f"{days:,.1f} d"


def days_table():
    """How long GPT-2's four sizes train."""
    rows = {}
    for name, cfg in GPT2.items():
        model = meta_model(cfg)
        budgets = {"20 P": 20 * count_parameters(model), "10 B": 10e9, "100 B": 100e9}
        for budget, tokens in budgets.items():
            label = f"{budget} = {tokens / 1e9:.1f} B" if budget == "20 P" else budget
            flops = tokens * flops_per_token(model)
            rows[name, label] = {"FLOPs": f"{flops:.1e}"} | {
                f"{gpus} GPU": format_days(
                    flops / (gpus * PEAK_FLOPS * UTILISATION) / 86400
                )
                for gpus in (1, 8, 64)
            }
    return pd.DataFrame(rows).T


def exchange_table():
    """Time to add up the gradients, as a share of a step's computing time.

    A ring sends 2 (N - 1) / N of the gradients' bytes through each GPU: Patarasuk and
    Yuan (2009). DDP sends them in fp32, once a step.
    """
    rows = {}
    for name in ("124M", "1558M"):
        model = meta_model(GPT2[name])
        for link, (gpus, rate) in LINKS.items():
            flops = STEP_TOKENS * flops_per_token(model)
            computing = flops / (gpus * PEAK_FLOPS * UTILISATION)
            sent = 2 * (gpus - 1) / gpus * FP32 * count_parameters(model)
            rows[name, link] = {
                "computing": f"{computing * 1e3:,.0f} ms",
                "exchange": f"{sent / rate * 1e3:,.0f} ms",
                "share": f"{sent / rate / computing:.0%}",
            }
    return pd.DataFrame(rows).T


def fit_table():
    """Bytes on each GPU: the part that does not depend on the batch, and a sequence."""
    rows = {}
    for name, cfg in {"1558M": GPT2["1558M"], "6.7B": LARGE}.items():
        model = meta_model(cfg)
        P, V = count_parameters(model), cfg["vocab_size"]
        matrices = sum(p.numel() for p in model.trf_blocks.parameters() if p.dim() == 2)
        matrices += model.out_head.weight.numel()
        block = sum(p.numel() for p in model.trf_blocks[0].parameters())
        # two more tensors of V numbers a token while the loss is differentiated
        one = predict_activations(cfg, bf16=True)[1] + 2 * FP32 * V
        one *= cfg["context_length"]
        gathered = BF16 * (model.out_head.weight.numel() + 2 * block)
        plans = {"DDP": 20 * P + BF16 * matrices}
        for gpus in (8, 16, 64):
            plans[f"FSDP, {gpus} GPUs"] = 16 * P / gpus + gathered
        for plan, fixed in plans.items():
            more = fixed + 4 * P * plan.startswith("FSDP")
            rows[name, plan] = {
                "fixed": f"{fixed / 1e9:.1f} GB",
                "with micro-batches": f"{more / 1e9:.1f} GB",
                "a sequence": f"{one / 1e9:.1f} GB",
                "sequences in 80 GB": max(0, int((GPU_BYTES - fixed) // one)),
                "with micro-batches ": max(0, int((GPU_BYTES - more) // one)),
            }
    return pd.DataFrame(rows).T


def take_steps(connection, cfg, batch, context, vocabulary=None, keep=True):
    """A process that makes a training step whenever it is asked.

    Its tokens are as frequent as in real text, by Zipf's law: the k-th most common
    appears 1 / k times as often as the most common.
    """
    if keep:
        keep_freed_memory()
    torch.manual_seed(123)
    counts, part = 1e6 / torch.arange(1, cfg["vocab_size"] + 1), None
    if vocabulary is not None:
        part = PartOfVocabulary(counts, vocabulary, batch * context)
    objective = Objective(GPTModel(cfg), [part])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, fused=True)
    ids = torch.multinomial(counts, batch * (context + 1), replacement=True)
    ids = ids.view(batch, context + 1)
    with contextlib.suppress(EOFError):
        while connection.recv():
            start = time.perf_counter()
            objective(ids[:, :-1], ids[:, 1:], stage=0).backward()
            optimizer.step()
            optimizer.zero_grad()
            connection.send(time.perf_counter() - start)


def in_turn(plans, rounds):
    """The median seconds of a step of each plan; the processes take turns."""
    context = multiprocessing.get_context("spawn")
    connections, seconds = {}, {name: [] for name in plans}
    for name, arguments in plans.items():
        connections[name], other = context.Pipe()
        process = context.Process(
            target=take_steps, args=(other,), kwargs=arguments, daemon=True
        )
        process.start()
    for round_number in range(rounds + 1):
        for name, connection in connections.items():
            connection.send(True)
            taken = connection.recv()
            if round_number > 0:  # the first round warms up
                seconds[name].append(taken)
    for connection in connections.values():
        connection.send(False)
    return pd.Series(
        {name: statistics.median(taken) for name, taken in seconds.items()}
    )


def freed_table(rounds):
    """Seconds of a step with and without keeping freed memory."""
    step = {"cfg": SMALL, "batch": 4, "context": 256}
    seconds = in_turn(
        {"given back": {**step, "keep": False}, "kept": {**step, "keep": True}}, rounds
    )
    return pd.DataFrame({"seconds": seconds, "times kept": seconds / seconds["kept"]})


def stages_table(rounds):
    """Tokens per second of the base with GPT-2's tokens, 1,024 tokens a step."""
    plans = {
        (
            f"{batch} x {context}",
            "all" if size is None else f"{size:,} and some drawn",
        ): {
            **{"cfg": BASE, "batch": batch, "context": context, "vocabulary": size},
        }
        for batch, context in ((2, 512), (8, 128))
        for size in (None, 8192, 4096)
    }
    rate = 1024 / in_turn(plans, rounds)
    return pd.DataFrame({"tokens per second": rate, "ratio": rate / rate.iloc[0]})


def main():
    """Run the command line."""
    both = {"30M": SMALL, "124M": GPT2["124M"]}
    tables = {
        "flops": {"FLOPs per token": lambda: flops_table(both)},
        "memory": {
            "Bytes per parameter": lambda: states_table(both),
            "Bytes per token": lambda: activations_table(both),
            "A checkpoint": checkpoint_table,
        },
        "days": {f"Time at {UTILISATION:.0%} of {PEAK_FLOPS:.3g} FLOP/s": days_table},
        "exchange": {f"Gradients in a step of {STEP_TOKENS:,} tokens": exchange_table},
        "fit": {"On each GPU, bf16": fit_table},
        "freed": {"A CPU step, 30M": lambda: freed_table(options.rounds)},
        "stages": {"The base on a CPU": lambda: stages_table(options.rounds)},
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="?", choices=["all", *tables], default="all")
    parser.add_argument("--rounds", type=int, default=10, help="of the last two")
    options = parser.parse_args()
    chosen = [what for what in tables if what not in ("freed", "stages")]
    for what in chosen if options.what == "all" else [options.what]:
        for title, make_table in tables[what].items():
            print(f"\n{title}\n{make_table().round(3).to_string()}")


if __name__ == "__main__":
    main()
