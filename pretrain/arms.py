"""Compare configurations of the base model, each given the same seconds.

    python -m pretrain.arms --seconds 300 --arms reference rows --seeds 1 2

An arm is `configs/base.yaml` with some settings changed. It trains for so many seconds
of a processor, with a whole schedule in that time, and is judged by `measures`. What
comes out is added to `arms.json`. `python -m pretrain.base --only-shards` makes the
shards, with `--model.vocab_size 4096` those of the arm with 4,096 tokens.
"""

import argparse
import json
import time
from pathlib import Path

from pretrain.hardware import start_workers
from pretrain.measures import held_out_texts, measure
from pretrain.prepare import open_tokenizer
from pretrain.run import Pretraining
from pretrain.settings import Settings, learning_rate, read_settings
from shared.files import write_atomically

HERE = Path(__file__).parent
RECORD = HERE / "arms.json"
TALES = 40
TRIED, WARM_UP = 6, 2  # steps that show how long one takes, and those not counted
ARMS = {  # what each changes
    "reference": "",
    "rows begin anywhere": "--from_beginnings false",
    "usual token vectors": "--token_vectors 1",
    "4,096 tokens": "--shards {folder}-4096 --model.vocab_size 4096",
    "AdamW": "--matrix_learning_rate null --learning_rate 3e-3",
    "eight blocks": "--model.n_layers 8",
    "192 wide, 8 blocks": "--model.emb_dim 192 --model.n_heads 3 --model.n_layers 8",
    "320 wide": "--model.emb_dim 320 --model.n_heads 5",
    "without tasks": "--repeats.tasks 0",
    "twice the rates": "--matrix_learning_rate 1e-2 --learning_rate 3e-3",
    "batches of 8": "--batch_size 8",
}


def settings_of(arm: str, seed: int, folder: Path, steps: int = TRIED) -> Settings:
    """The settings of an arm, with a schedule of so many steps."""
    decay, warmup = max(1, round(0.4 * steps)), min(50, max(1, steps // 10))
    given = "--shards {folder}-8192 --batch_size 4 --prompts []"
    given += f" --seed {seed} --max_steps {steps} --warmup_steps {warmup}"
    given += f" --decay_steps {decay} {ARMS[arm]}"
    config = ["--config", str(HERE / "configs" / "base.yaml")]
    return read_settings([*config, *given.format(folder=folder).split()])


def train(settings: Settings, workers) -> tuple[Pretraining, list[float]]:
    """Make all steps; returns the run and the seconds that each took."""
    run, seconds = Pretraining(settings, workers), []
    while run.step < settings.max_steps:
        start = time.process_time()  # what else runs on the machine does not count
        loss = run.train_step()[0].item()
        seconds.append(time.process_time() - start)
        if run.step % 50 == 0:
            rate = learning_rate(settings, run.step - 1)
            print(f"step {run.step}: {loss:.3f}, rate {rate:.1e}", flush=True)
    return run, seconds


def try_arm(arm: str, seed: int, seconds: float, folder: Path) -> dict:
    """Train an arm for so many seconds and measure what it can do."""
    with start_workers("cpu") as workers:
        _, took = train(settings_of(arm, seed, folder), workers)
        step = sum(took[WARM_UP:]) / len(took[WARM_UP:])
        settings = settings_of(arm, seed, folder, round(seconds / step))
        run, took = train(settings, workers)
    tokenizer = open_tokenizer(settings.shards)
    texts = held_out_texts(settings.shards, tokenizer)
    return {
        "changed": ARMS[arm],
        "parameters": run.parameters,
        "tokens": settings.tokens(run.step),
        "seconds": round(sum(took)),
        **measure(run.gpt, tokenizer, texts, TALES),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.arms",
        description="Compare configurations of the base, each given the same seconds.",
    )
    parser.add_argument("--seconds", type=float, default=300, help="(%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args(arguments)
    for seed in given.seeds:
        for arm in given.arms:
            found = try_arm(arm, seed, given.seconds, given.shards)
            print(arm, seed, json.dumps(found), flush=True)
            old = given.record.read_text("utf-8") if given.record.is_file() else "{}"
            record = json.loads(old)
            record.setdefault(arm, {})[str(seed)] = found
            write_atomically(given.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
