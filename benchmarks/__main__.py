"""Speed beside named peers, measured in turns within one run.

    python -m benchmarks                     all subjects
    python -m benchmarks training limits     some of them
    python -m benchmarks --quick             small models, few rounds
    python -m benchmarks --json PATH         the tables as JSON, too

Run it when nothing else runs. If a peer is not installed, a line says so and it is left
out. `transformers` comes with requirements.txt, the book's own code with
`pip install --no-deps -r requirements-benchmarks.txt`.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks import (
    bpe,
    choose_device,
    finetuning,
    generation,
    limits,
    scaling,
    smollm2,
    training,
)
from shared.files import write_atomically


def bpe_tables(quick: bool) -> dict[str, pd.DataFrame]:
    """The tokenizer's tables."""
    rounds = 1 if quick else bpe.ROUNDS
    text, source = bpe.load_text((1 if quick else 5) * bpe.MEGABYTE)
    return {
        f"BPE training; {source}": bpe.training_table(text, rounds),
        "BPE encoding, 1 MB": bpe.encoding_table(text[: bpe.MEGABYTE], rounds),
    }


def scaling_tables(quick: bool) -> dict[str, pd.DataFrame]:
    """The base model's training with parts of the vocabulary."""
    table = scaling.stages_table(2 if quick else 10).round(3)
    return {"The base's stages on a CPU": table}


SUBJECTS: dict[str, Callable[[bool], dict[str, pd.DataFrame]]] = {
    "limits": limits.tables,
    "training": training.tables,
    "generation": generation.tables,
    "finetuning": finetuning.tables,
    "smollm2": smollm2.tables,
    "bpe": bpe_tables,
    "scaling": scaling_tables,
}


def machine() -> dict[str, object]:
    """The machine that the tables were measured on."""
    device = choose_device()
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    return {
        "device": gpu or f"{platform.machine()}, {os.cpu_count()} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("subjects", nargs="*", metavar="subject", default=[])
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    parser.add_argument("--json", type=Path, help="write the tables here, too")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"unknown subject {unknown[0]!r}; use {', '.join(SUBJECTS)}")
    found = {"machine": machine(), "quick": options.quick}
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    for name in options.subjects or SUBJECTS:
        tables = SUBJECTS[name](options.quick)
        for title, table in tables.items():
            print(f"\n{title}\n{table.to_string()}", flush=True)
        found[name] = {
            title: json.loads(table.reset_index().to_json(orient="records"))
            for title, table in tables.items()
        }
    if options.json is not None:
        write_atomically(options.json, json.dumps(found, indent=1) + "\n")
        print(f"\nwritten: {options.json}")


if __name__ == "__main__":
    main()
