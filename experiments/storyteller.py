"""Train chapter 5's storyteller to its end, or try other settings of it.

    python -m experiments.storyteller          the whole run, to its end; later
                                               chapters go on with your model
    python -m experiments.storyteller --store  the same for the course's copy and record
    python -m experiments.storyteller tried    other settings, until people and things
                                               come back: tried.json

All can be stopped and called again: a run goes on, and a setting that was tried stays.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ch05_pretraining.pictures import come_back
from ch05_pretraining.storyteller import (
    go_on,
    keep_storyteller,
    storyteller_folder,
)
from shared import ladder
from shared.ch02 import BPETokenizer
from shared.ch05 import (
    STORYTELLER,
    Muon,
    calc_loss_batch,
    learn_to_tell,
    new_storyteller,
    tale_batches,
)
from shared.files import extend_record, write_atomically
from shared.precision import has_fast_bfloat16, mixed_precision
from shared.village import Tale, tales, tell

ROOT = Path(__file__).parents[1]
RECORDS = Path(__file__).with_name("records")
SEED = 123
FIRST_STEPS, STEPS = 800, 4000  # on simple tales, as in chapter 5; and on all of them
LOOK, TELL = 200, 800  # steps from look to look in the second part, and between tales
SIMPLE = 0.3  # the share of simple tales in the second part


def storyteller_tokenizer() -> BPETokenizer:
    """A tokenizer of 1,000 tokens, learned from the first tales of the village."""
    tokenizer = BPETokenizer()
    tokenizer.train([tale.text for tale in tales(1500)], vocab_size=1000)
    return tokenizer


def whole_run(store: bool) -> None:
    """The run of the chapter, and then another one on all tales, from its model."""
    tokenizer = storyteller_tokenizer()
    first = part_of_run("first", None, FIRST_STEPS, 1)
    model, looks = part_of_run("second", first, STEPS, SIMPLE)
    keep_storyteller(model, tokenizer)
    if store:
        keep_storyteller(
            model, tokenizer, ROOT / "data" / "storyteller", torch.bfloat16
        )
        record = {"bfloat16": has_fast_bfloat16(), "first": first[1], "second": looks}
        write(RECORDS / "storyteller.json", record)


def part_of_run(name: str, before: tuple | None, last: int, simple: float) -> tuple:
    """The model and its looks, at the last step of a part of the run."""
    tokenizer = storyteller_tokenizer()
    path = storyteller_folder() / f"{name}.safetensors"
    torch.manual_seed(SEED)
    model = new_storyteller()
    if before is not None:
        model.load_state_dict(before[0].state_dict())
    optimizer = Muon(model)
    progress = go_on(path, model, optimizer, last, anew=False)
    exams = {"all": ladder.exam(60), "simple": ladder.exam(60, simple=True)}

    def look(progress: dict) -> None:
        if simple < 1 and progress["step"] % LOOK:
            return
        rows = {key: ladder.examine(model, tokenizer, exams[key]) for key in exams}
        row = {"step": progress["step"], "tokens": progress["tokens"]}
        row |= {key: rounded(marks) for key, marks in rows.items()}
        if progress["step"] % (FIRST_STEPS if simple == 1 else TELL) == 0:
            only = simple == 1
            row["tales"] = ladder.tales_without_contradiction(
                model, tokenizer, simple=only
            )
            row["text"] = ladder.continued(model, tokenizer, [ladder.BEGINNING])[0]
        print(json.dumps(row), flush=True)
        progress["looks"].append(row)

    if progress["step"] < last:
        batches = tale_batches(teller(simple), tokenizer, progress["step"])
        learn_to_tell(model, batches, optimizer, progress, look, path)
    if progress["step"] < last:
        raise SystemExit("Stopped; the same command goes on.")
    return model, progress["looks"]


def teller(simple: float) -> Callable[[int], Tale]:
    """Tells a tale for a seed; this share of all tales is simple."""
    return lambda seed: tell(seed, simple=seed % 10 < 10 * simple)


def rounded(row: dict) -> dict:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}


def write(path: Path, record: dict) -> None:
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


# --- What was tried -----------------------------------------------------------------

TRIED = {  # changes of the first one
    "two blocks, all simple, Muon": {},
    "the same, with another seed": {"seed": 2},
    "all tales, not only simple ones": {"simple": 0.0},
    "embeddings begin as small as GPT-2's": {"larger": 1},
    "AdamW for all, rate 0.003": {"adam": 3e-3},
    "AdamW for all, rate 0.001": {"adam": 1e-3},
    "half the rates, as in the chapter": {"rate": 0.5},
    "twice the rates": {"rate": 2.0},
    "one block": {"n_layers": 1},
    "four blocks": {"n_layers": 4},
    "width 128": {"emb_dim": 128},
    "batches of 4 tales": {"batch_size": 4},
    "batches of 16 tales": {"batch_size": 16},
    "windows that begin anywhere": {"cut": True},
}
MOST_TOKENS = 700_000


def windows(
    tokenizer, batch_size: int, number: int, length: int = 160
) -> Iterator[tuple]:
    """Batches of windows of one endless text: a row begins in the middle of a tale."""
    end, ids, first = ladder.end_of(tokenizer), [], number * batch_size
    size = batch_size * length
    while True:
        while len(ids) <= size:
            for seed in range(first, first + 64):
                ids += [*tokenizer.encode(tell(seed, simple=True).text), end]
            first += 64
        rows = torch.tensor(ids[: size + 1])
        yield rows[:-1].view(batch_size, length), rows[1:].view(batch_size, length)
        ids = ids[size:]


def trial(name: str) -> dict:
    """How soon people and things come back with other settings: a look every 25,000."""
    changes = {"seed": 1, "simple": 1.0, "larger": 4, "adam": None, "rate": 1.0}
    changes |= {"batch_size": 8, "cut": False, **TRIED[name]}
    config = {key: changes.get(key, STORYTELLER[key]) for key in STORYTELLER}
    tokenizer, exam = storyteller_tokenizer(), ladder.exam(60, simple=True)
    torch.manual_seed(changes["seed"])
    model = new_storyteller(changes["larger"], **config)
    optimizer = Muon(model, lr=0.0012, adam_lr=0.002)  # twice the chapter's
    optimizer.slow_down(changes["rate"])
    if changes["adam"]:
        settings = {"betas": (0.9, 0.98), "weight_decay": 0.0, "fused": True}
        optimizer = torch.optim.AdamW(model.parameters(), changes["adam"], **settings)
    size, first = changes["batch_size"], 4000 * changes["seed"]
    batches = tale_batches(teller(changes["simple"]), tokenizer, first, size)
    if changes["cut"]:
        batches = windows(tokenizer, size, first)
    looks, tokens, seconds = [], 0, 0.0
    for inputs, targets in batches:
        if tokens >= len(looks) * 25_000:
            row = rounded(ladder.examine(model, tokenizer, exam))
            looks.append({"tokens": tokens, "seconds": round(seconds, 1), **row})
            if come_back(row) or tokens > MOST_TOKENS:
                break
        start = time.process_time()
        optimizer.zero_grad()
        with mixed_precision():
            loss = calc_loss_batch(inputs, targets, model, "cpu")
        loss.backward()
        optimizer.step()
        seconds += time.process_time() - start
        tokens += (targets != -100).sum().item()
    print(name, round(tokens / seconds), json.dumps(looks[-1]), flush=True)
    return {"seed": name, "speed": round(tokens / seconds), "looks": looks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["whole", "tried"], default="whole")
    parser.add_argument("--store", action="store_true", help="for the course's files")
    chosen = parser.parse_args()
    if chosen.what == "whole":
        whole_run(chosen.store)
        return
    facts = {"bfloat16": has_fast_bfloat16(), "made_of": {"settings": STORYTELLER}}
    extend_record(RECORDS / "tried.json", facts, TRIED, trial)


if __name__ == "__main__":
    main()
