"""A race to a loss: CPU seconds from random weights to a held-out loss on stories.

    python -m benchmarks.race STORIES.txt.xz            all three parts -> race.json
    python -m benchmarks.race STORIES.txt.xz race       one part: tuning, race or parts
    python -m benchmarks.race STORIES.txt.xz --quick --json PATH     tiny, in seconds

STORIES is a text in which a line `<|endoftext|>` ends each story, packed or not. All
contestants read windows of the same GPT-2 tokens, and have as many blocks of the same
width; benchmarks/racers.py has what they do. Each is a process with one thread. They
take turns of some steps, so that other work on the machine disturbs all alike. After
each turn the held-out loss is measured, in float32 and over the whole vocabulary. Only
the CPU seconds of training count, with those of the compilers that it starts, but not
reading the text, building the model and measuring.

"tuning" tries three learning rates for each contestant, about a minute each. "race" has
the best of them and two seeds. "parts" takes one thing at a time away from ours.
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from benchmarks import PEERS, find_peer
from benchmarks.__main__ import machine
from benchmarks.racers import CPU, LOOPS, OURS, Clock, Course, Finished, Plan
from pretrain.hardware import choose_precision, keep_freed_memory
from pretrain.prepare import prepare, source_name
from shared.files import write_atomically

RECORD = Path(__file__).with_name("race.json")
TARGET = 4.75  # nats a token
CFG = {  # 17.6 million parameters, 12.9 of them in the table of tokens
    **{"vocab_size": 50257, "context_length": 256, "emb_dim": 256, "n_heads": 4},
    **{"n_layers": 6, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True},
}
TINY = {"context_length": 32, "emb_dim": 32, "n_heads": 2, "n_layers": 2}  # --quick


PLANS = {
    "book": Plan("book", (4e-4, 1e-3, 2.5e-3), 1e-3, 50, 320),
    "book, fast": Plan("book, fast", (4e-4, 1e-3, 2.5e-3), 1e-3, 50, 260),
    "transformers": Plan("transformers", (1e-3, 2e-3, 4e-3), 1e-3, 120, 240),
    "plain loop": Plan("plain loop", (1e-3, 2e-3, 4e-3), 1e-3, 140, 220),
    "ours": Plan("ours", (1.5e-3, 3e-3, 6e-3), 3e-3, 160, 120),
}
PARTS = {  # what changes in ours, and the steps that it gets
    "without the part of the vocabulary": ({"vocabulary": None}, 120),
    "without short windows": ({"window": CFG["context_length"]}, 120),
    "without bfloat16": ({"precision": "fp32"}, 120),
    "without Muon": ({"matrices": 0}, 360),
    "without the falling rate": ({"falling": 0}, 240),
    "in the order of the file": ({"shuffled": False}, 120),
    "with compiled blocks": ({"compile": True}, 120),
}
WITHOUT_MUON = 7.5e-4  # the best of the learning rates that we tried in the same way

# --- The race -------------------------------------------------------------------------


def take_part(connection, course: Course, plan: Plan) -> None:
    """A process of one contestant."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(course.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.suppress(Finished),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        # compile in this process, and nothing that an earlier run has compiled
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        LOOPS[plan.loop](course, plan, Clock(connection, course, plan.steps))


def run_in_turn(
    plans: dict[str, Plan], course: Course, target: float = 0.0
) -> dict[str, list]:
    """Each contestant's curve: step, CPU seconds and held-out loss after each turn.

    Whoever has come down to the target stops.
    """
    context = multiprocessing.get_context("spawn")
    curves, running = {name: [] for name in plans}, {}
    for name, plan in plans.items():
        connection, other = context.Pipe()
        arguments = (other, course, plan)
        process = context.Process(target=take_part, args=arguments, daemon=True)
        process.start()
        other.close()  # so that a process that dies does not leave us waiting
        running[name] = process, connection
    while running:
        for name, (process, connection) in list(running.items()):
            connection.send("go")
            step, seconds, loss = connection.recv()
            curves[name].append((step, seconds, loss))
            print(course.seed, name, step, seconds, loss, flush=True)
            if step == plans[name].steps or loss <= target:
                process.terminate()
                del running[name]
    return curves


def tuning(course: Course, plans: dict[str, Plan]) -> dict[str, list]:
    """Curves of about a minute with each contestant's learning rates."""
    curves = {}
    for number in range(3):
        tried = {
            f"{name}, {plan.rates[number]:g}": replace(
                plan, rate=plan.rates[number], steps=plan.minute
            )
            for name, plan in plans.items()
        }
        curves |= run_in_turn(tried, replace(course, turns=4))
    return curves


def parts(course: Course, plans: dict[str, Plan]) -> dict[str, list]:
    """Curves of ours, and of ours with one change."""
    whole = plans["ours"]
    tried = {"ours": whole} | {
        name: replace(whole, steps=steps, changes=changes)
        for name, (changes, steps) in PARTS.items()
    }
    without = tried["without Muon"]
    tried["without Muon"] = replace(without, rate=WITHOUT_MUON)
    return run_in_turn(tried, course, TARGET)


def race(course: Course, plans: dict[str, Plan]) -> dict[str, list]:
    """Curves of all contestants."""
    return run_in_turn(plans, course, TARGET)


JOBS = {"tuning": (tuning, 1), "race": (race, 2), "parts": (parts, 1)}  # how many seeds


def seconds_to(target: float, curve: list) -> float | None:
    """CPU seconds until the held-out loss is `target`, by straight lines between looks.

    None if the curve ends above it.
    """
    before = (0.0, math.inf)
    for _, seconds, loss in curve:
        if loss <= target:
            share = (before[1] - target) / (before[1] - loss) if before[0] else 1.0
            return before[0] + share * (seconds - before[0])
        before = seconds, loss
    return None


def table(curves: dict[str, list]) -> pd.DataFrame:
    """For each curve its end, and the CPU seconds to the target."""
    ends = {name: curve[-1] for name, curve in curves.items()}
    found = pd.DataFrame(ends, index=["steps", "CPU seconds", "loss"]).T
    to = {name: seconds_to(TARGET, curve) for name, curve in curves.items()}
    found[f"to {TARGET}"] = pd.Series(to, dtype=float)
    return found.round(2)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("stories", type=Path, help="the text (.txt or .txt.xz)")
    parser.add_argument("part", nargs="?", choices=list(JOBS), help="by default all")
    parser.add_argument("--seeds", type=int, help="by default 2 for the race, else 1")
    parser.add_argument("--quick", action="store_true", help="tiny models, a few steps")
    parser.add_argument("--json", type=Path, default=RECORD, help="of the results")
    given = parser.parse_args(arguments)
    if given.quick and given.json == RECORD:
        parser.error("--quick needs --json PATH; without, it would replace the record")
    there = [name for name in PEERS if find_peer(name)] + ["plain loop", "ours"]
    plans = {n: plan for n, plan in PLANS.items() if n.split(",")[0] in there}
    record = json.loads(given.json.read_text()) if given.json.exists() else {}
    record |= {"machine": machine(), "target": TARGET, "model": CFG, "ours": OURS}
    record["parts of ours"] = PARTS
    with tempfile.TemporaryDirectory() as folder:
        prepare([given.stories], Path(folder), held_out=0.01, workers=1)
        precision = choose_precision("auto", CPU)
        course = Course(CFG, Path(folder), source_name(given.stories), precision)
        if given.quick:
            course = replace(course, cfg={**CFG, **TINY}, turns=2, held_out=2)
            few = {"minute": 4, "steps": 4}
            plans = {name: replace(plan, **few) for name, plan in plans.items()}
        for part in [given.part] if given.part else JOBS:
            run, seeds = JOBS[part]
            made_of = json.loads(json.dumps([asdict(p) for p in plans.values()]))
            if record.get(part, {}).get("plans") != made_of:
                record[part] = {"plans": made_of}
            for seed in range(1, (given.seeds or seeds) + 1):
                if f"seed {seed}" in record[part]:
                    continue  # an earlier call has run it
                curves = run(replace(course, seed=seed), plans)
                print(f"\n{part}, seed {seed}\n{table(curves).to_string()}\n")
                record[part][f"seed {seed}"] = curves
                write_atomically(given.json, json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
