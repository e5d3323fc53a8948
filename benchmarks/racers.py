"""The contestants of `benchmarks.race`, and what all of them share."""

import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks import book_module
from benchmarks.training import transformers_model
from pretrain.hardware import Workers, autocast
from pretrain.mixture import as_batch
from pretrain.prepare import TokenShards
from pretrain.run import Pretraining
from pretrain.settings import ModelSettings, Settings, Stage
from shared.ch04 import GPTModel
from shared.ch05 import calc_loss_batch, evaluating

CPU = torch.device("cpu")
BATCH = 2  # windows of the whole length in a step, as in the book


@dataclass(frozen=True)
class Plan:
    """What a contestant does.

    Args:
        loop: its function, by its name in `LOOPS`
        rates: learning rates that tuning tries; with a schedule, the highest ones
        rate: the best of them
        minute: steps of the tuning, which take most of a minute
        steps: how many it makes in the race; a schedule ends with them
        changes: of `OURS`
    """

    loop: str
    rates: tuple[float, float, float]
    rate: float
    minute: int
    steps: int
    changes: dict = field(default_factory=dict)

    @property
    def warmup(self) -> int:
        return math.ceil(self.steps / 20)


@dataclass(frozen=True)
class Course:
    """What is the same for all: model, text, seed, and how they are judged."""

    cfg: dict
    shards: Path
    source: str
    precision: str
    seed: int = 1
    turns: int = 12
    held_out: int = 16  # windows

    def windows(self, split: str) -> TokenShards:
        """Windows of tokens, each as long as the model's context and one more."""
        T = self.cfg["context_length"]
        return TokenShards(self.shards / self.source, split, T)

    def training_windows(self, plan: Plan) -> Subset:
        """As many windows as a run reads, drawn with the seed."""
        windows = self.windows("train")
        chance = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(windows), generator=chance)
        count = BATCH * plan.steps
        order = order.repeat(math.ceil(count / len(order)))[:count]
        return Subset(windows, order.tolist())

    def batches(self, plan: Plan) -> DataLoader:
        """Their inputs and targets, (B, T), step by step."""
        windows = self.training_windows(plan)
        return DataLoader(windows, BATCH, collate_fn=lambda rows: as_batch(rows, CPU))

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """The model's mean loss on the first held-out windows."""
        windows, total = self.windows("held_out"), 0.0
        count = min(self.held_out, len(windows))
        with torch.compiler.set_stance("force_eager"), evaluating(model):
            for i in range(count):
                inputs, targets = as_batch([windows[i]], CPU)
                logits = model(inputs)
                logits = getattr(logits, "logits", logits)
                total += F.cross_entropy(logits[0], targets[0]).item()
        return total / count


class Finished(Exception):
    """The last step is done."""


class Clock:
    """Counts CPU seconds from `start` on, except while the model is looked at.

    It watches an optimizer, so a loop that others wrote needs no change. After each
    turn it sends the step, the seconds and the held-out loss, and waits for the next.
    """

    def __init__(self, connection, course: Course, steps: int):
        turns = range(1, course.turns + 1)
        self.ends = {math.ceil(steps * turn / course.turns) for turn in turns}
        self.connection, self.course, self.steps = connection, course, steps
        self.step, self.seconds = 0, 0.0

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begin with the first turn."""
        optimizer.register_step_post_hook(self.after_step)
        self.model = model
        self.wait()

    def wait(self) -> None:
        self.connection.recv()
        self.since = sum(os.times()[:4])  # of this process, and of those it waited for

    def after_step(self, *_) -> None:
        self.step += 1
        if self.step in self.ends:
            self.seconds += sum(os.times()[:4]) - self.since
            loss = self.course.loss(self.model)
            self.connection.send((self.step, round(self.seconds, 2), round(loss, 4)))
            if self.step == self.steps:
                raise Finished
            self.wait()


# --- The contestants ------------------------------------------------------------------

OURS = {
    "window": 64,  # tokens in a sequence, in the first steps
    "whole_windows": 0.3,  # share of the last steps, with as many as the model has
    "matrices": 3.0,  # Muon's learning rate divided by AdamW's
    "vocabulary": 4096,
    "falling": 0.6,  # share of the last steps, in which the learning rate falls
    "compile": False,
    "precision": None,  # that of the others
    "shuffled": True,
}
NEVER = {"eval_freq": 10**9, "eval_iter": 1, "start_context": "", "tokenizer": None}


def read_book(course, plan, clock, model, loop, **settings) -> None:
    """Train a model of the book's package with one of its loops and plain AdamW."""
    loader, model = course.batches(plan), model(course.cfg)
    optimizer = torch.optim.AdamW(model.parameters(), plan.rate, weight_decay=0.1)
    clock.start(model, optimizer)
    loop(model, loader, loader, optimizer, CPU, 1, **NEVER, **settings)


def book(course: Course, plan: Plan, clock: Clock) -> None:
    """Chapter 5 of the book: its model, and its loop with one learning rate."""
    loop = book_module("ch05").train_model_simple
    read_book(course, plan, clock, book_module("ch04").GPTModel, loop)


def book_fast(course: Course, plan: Plan, clock: Clock) -> None:
    """The package's faster model with appendix D's loop: warm-up, cosine, clipping."""
    model = book_module("ch04").GPTModelFast
    loop = book_module("appendix_d").train_model
    read_book(course, plan, clock, model, loop, warmup_steps=plan.warmup)


def transformers(course: Course, plan: Plan, clock: Clock) -> None:
    """GPT-2 and `Trainer`: fused AdamW, warm-up, linear fall, clipping, autocast."""
    from transformers import Trainer, TrainingArguments  # takes seconds

    def collate(rows: list) -> dict:
        ids = torch.stack([torch.from_numpy(row) for row in rows])
        return {"input_ids": ids, "labels": ids}  # the model shifts its targets itself

    longer = course.cfg["context_length"] + 1
    model = transformers_model({**course.cfg, "context_length": longer})
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            max_steps=plan.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=plan.rate,
            warmup_steps=plan.warmup,
            weight_decay=0.1,
            bf16=course.precision == "bf16",
            use_cpu=True,
            seed=course.seed,
            disable_tqdm=True,
            **{"save_strategy": "no", "logging_strategy": "no", "report_to": "none"},
        )
        windows = course.training_windows(plan)
        run = Trainer(model, settings, collate, windows)
        clock.start(model, run.create_optimizer())
        run.train()


def plain_loop(course: Course, plan: Plan, clock: Clock) -> None:
    """A loop like nanoGPT's: fused AdamW, warm-up, cosine, clipping, autocast."""
    model = GPTModel(course.cfg).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    options = {"betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
    optimizer = torch.optim.AdamW(groups, plan.rate, **options)

    def factor(step: int) -> float:
        if step < plan.warmup:
            return (step + 1) / plan.warmup
        done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    clock.start(model, optimizer)
    for inputs, targets in course.batches(plan):
        with autocast(course.precision, CPU):
            loss = calc_loss_batch(inputs, targets, model, CPU)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def ours(course: Course, plan: Plan, clock: Clock) -> None:
    """The course's pretraining with the settings of `OURS` and the plan's changes."""
    own, T = {**OURS, **plan.changes}, course.cfg["context_length"]
    whole = math.ceil(plan.steps * own["whole_windows"])
    falling = math.ceil(plan.steps * own["falling"])
    settings = Settings(
        shards=course.shards,
        run_folder=course.shards,  # nothing is written
        max_steps=plan.steps,
        model=ModelSettings(**course.cfg),
        seed=course.seed,
        stages=[
            Stage(steps, window, BATCH * T // window, own["vocabulary"])
            for steps, window in (
                (plan.steps - whole, min(own["window"], T)),
                (whole, T),
            )
        ],
        learning_rate=plan.rate,
        final_learning_rate=0.0 if falling else plan.rate,
        matrix_learning_rate=plan.rate * own["matrices"] or None,
        warmup_steps=plan.warmup,
        decay_steps=falling or None,
        precision=own["precision"] or course.precision,
        compile=own["compile"],
    )
    run = Pretraining(settings, Workers(0, 1, CPU))
    if not own["shuffled"]:
        run.mixtures = [mixture.sources[0] for mixture in run.mixtures]
    clock.start(run.gpt, run.optimizer.parts[-1])
    while True:
        run.train_step()


LOOPS = {
    **{"book": book, "book, fast": book_fast, "transformers": transformers},
    **{"plain loop": plain_loop, "ours": ours},
}
