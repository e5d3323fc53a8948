"""Pretrain a GPT on shards of tokens: on one processor, on many, across machines.

    python -m pretrain --config pretrain/configs/base-1.yaml
    torchrun --nproc-per-node 8 -m pretrain --config CONFIG

The shards come from `python -m pretrain.prepare`. Every setting can be in the file, or
after the command (`--learning_rate 0.001 --model.n_layers 8`); `--help` lists them all.
The same command goes on where an interrupted run stopped. The run's folder holds

    log.jsonl                 what happened, one JSON object a line
    checkpoints/step-.../     the last few states from which the run can go on
    model/                    at the end: the model, in the format of Hugging Face's
                              GPT-2, with its tokenizer if that is not GPT-2's

Everything that decides a step (its sequences, learning rate and dropout) follows from
the settings and the step's number, never from what happened before. So a checkpoint is
the weights, the optimizer's averages and a number. A run that was killed, or that moved
to more or fewer processes, ends like one that was left alone.
"""

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pretrain.asked import AskedWords
from pretrain.checkpoints import Checkpoints, Log
from pretrain.hardware import (
    Workers,
    autocast,
    choose_precision,
    exchanging,
    flops_per_token,
    keep_freed_memory,
    matmul_flops,
    seed_dropout,
    share_out,
    start_workers,
)
from pretrain.looks import Looks
from pretrain.mixture import Mixture, as_batch
from pretrain.objective import Objective, PartOfVocabulary
from pretrain.optimizers import new_optimizer, set_rates
from pretrain.prepare import TOKENIZER, TokenShards, open_sources, open_tokenizer
from pretrain.settings import (
    ModelSettings,  # noqa: F401 (a notebook takes all that it needs from here)
    Settings,
    Stage,
    check_settings,
    learning_rate,
    read_settings,
    require_same_run,
)
from shared.ch04 import GPTModel
from shared.ch05 import load_weights_into_gpt, read_gpt2_folder, save_gpt2_folder
from shared.files import copy_file

AVERAGE_EVERY = 10  # steps between two updates of the running mean, which is slow


class Pretraining:
    """A run: its model, optimizer, data and place.

    Args:
        settings: see `Settings`.
        workers: the processes.

    Raises:
        FileNotFoundError, ValueError: if the data or a checkpoint is missing, damaged
            or another run's, or the settings do not fit.
    """

    def __init__(self, settings: Settings, workers: Workers):
        check_settings(settings, workers.count)
        keep_freed_memory()
        self.settings, self.workers, self.step = settings, workers, 0
        self.mixtures, parts, end = [], [], None
        if settings.from_beginnings:
            end = open_tokenizer(settings.shards).eot_token
        for number, stage in enumerate(settings.plan()):
            T = stage.context_length
            sources = open_sources(settings.shards, "train", T, end)
            mixture = Mixture(sources, settings.repeats, settings.seed + number)
            self.mixtures.append(mixture)
            parts.append(self._part(stage, sources))
        for name, shards in sources.items():
            if shards.vocab_size > settings.model.vocab_size:
                raise ValueError(
                    f"source {name} has token ids up to {shards.vocab_size - 1}, but "
                    f"model.vocab_size is {settings.model.vocab_size}"
                )
        self.precision = choose_precision(settings.precision, workers.device)
        if workers.count > 1:  # the first process decides for all
            decision = [self.precision]
            dist.broadcast_object_list(decision)
            self.precision = decision[0]
        torch.manual_seed(settings.seed)
        self.gpt = GPTModel(asdict(settings.model))
        with torch.no_grad():
            self.gpt.tok_emb.weight.mul_(settings.token_vectors)
        if settings.initial is not None:
            self._start_from(settings.initial)
        self.parameters = sum(p.numel() for p in self.gpt.parameters())
        self.gpt.to(workers.device)
        objective = Objective(self.gpt, parts, settings.guided_steps > 0)
        self.objective = self._distribute(objective)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.optimizer = new_optimizer(self.gpt, settings, dtype)
        self.asked = None
        if settings.asked_weight != 1:
            tokenizer = open_tokenizer(settings.shards)
            self.asked = AskedWords(tokenizer, settings.asked_weight)
        self.average = None
        if settings.average_half_life is not None:
            named = self.gpt.named_parameters()
            self.average = {name: p.detach().clone() for name, p in named}
        parts = self.gpt, self.objective, self.mixtures, self.precision
        self.looks = Looks(settings, workers, *parts)
        self.facts = {
            "settings": json.loads(json.dumps(asdict(settings), default=str)),
            "data": {name: shards.tokens for name, shards in sources.items()},
        }
        self.seconds, self.stop_asked = 0.0, False

    def _part(
        self, stage: Stage, sources: dict[str, TokenShards]
    ) -> PartOfVocabulary | None:
        """The part of the vocabulary that a stage's loss compares."""
        if stage.vocabulary is None:
            return None
        settings, V = self.settings, self.settings.model.vocab_size
        counts = torch.zeros(V, dtype=torch.float64)
        for name, shards in sources.items():
            found = torch.from_numpy(shards.counts(V))
            counts += settings.repeats.get(name, 1.0) * found
        tokens = settings.micro_batch(stage, self.workers.count) * stage.context_length
        part = PartOfVocabulary(counts, stage.vocabulary, tokens)
        return part.to(self.workers.device)

    def _start_from(self, folder: Path) -> None:
        """Begin with the weights of a saved model of the same shape."""
        config, tensors = read_gpt2_folder(folder)
        wrong = [
            f"{key} is {config[key]} there and {value} here"
            for key, value in asdict(self.settings.model).items()
            if key != "drop_rate" and config[key] != value
        ]
        if wrong:
            raise ValueError(
                f"the model in {folder} has another shape: {'; '.join(wrong)}"
            )
        load_weights_into_gpt(self.gpt, tensors)

    def _distribute(self, objective: Objective) -> nn.Module:
        """The objective as the processes share it."""
        blocks, workers = objective.gpt.trf_blocks, self.workers
        if self.settings.compile:
            for block in blocks:
                block.compile()
        if workers.count == 1:
            return objective
        if self.settings.parallel == "fsdp":
            return share_out(objective, blocks, workers, self.precision)
        return DistributedDataParallel(objective)

    # Saving and going on

    def _state(self) -> dict:
        """The tensors that a checkpoint holds, by the names of the plain model."""
        mean = {} if self.average is None else {"mean": self.average}
        model = state_dict.get_model_state_dict(self.objective)
        return {"model": model, "averages": self._averages()["state"], **mean}

    def _averages(self) -> dict:
        """What the optimizer keeps from step to step, by the same names."""
        parts = self.optimizer.parts
        return state_dict.get_optimizer_state_dict(self.objective, parts)

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint, if there is one."""
        saved = checkpoints.complete()
        if not saved:
            return
        facts = checkpoints.facts(saved[-1])
        require_same_run(facts, self.facts, saved[-1])
        state = self._state()
        checkpoints.load(saved[-1], state)
        state_dict.set_model_state_dict(self.objective, state["model"])
        state_dict.set_optimizer_state_dict(
            *(self.objective, self.optimizer.parts),
            {**self._averages(), "state": state["averages"]},
        )
        self.step, self.seconds = facts["step"], facts["seconds"]

    def export(self, folder: Path) -> None:
        """Write the model in Hugging Face's format, in bfloat16, and its tokenizer."""
        options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = state_dict.get_model_state_dict(self.objective, options=options)
        if self.workers.first:
            gpt = GPTModel(self.gpt.cfg)
            gpt.load_state_dict({k.removeprefix("gpt."): v for k, v in state.items()})
            save_gpt2_folder(gpt, folder, dtype=torch.bfloat16)
            tokenizer = self.settings.shards / TOKENIZER
            if tokenizer.is_file():
                copy_file(tokenizer, folder / TOKENIZER)
        self.workers.wait()

    # One step

    def micro_batches(self) -> list[tuple[torch.Tensor, ...]]:
        """This process's part of the next step's batch: inputs, targets, weights.

        There are weights, how often each target counts, with `asked_weight` only.
        """
        settings, workers = self.settings, self.workers
        number, stage, step = settings.stage(self.step)
        mixture = self.mixtures[number]
        share = stage.batch_size // workers.count
        start = step * stage.batch_size + workers.rank * share
        micro = settings.micro_batch(stage, workers.count)
        batches = []
        for j in range(start, start + share, micro):
            sequences = [mixture[i] for i in range(j, j + micro)]
            batch = as_batch(sequences, workers.device)
            if self.asked is not None:
                weights = np.stack([self.asked.weights(ids) for ids in sequences])
                batch += (torch.from_numpy(weights).to(workers.device),)
            batches.append(batch)
        return batches

    def train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the next step; returns this process's mean loss and the gradient's norm.

        Gradients of the micro-batches add up; the processes exchange them once, with
        the last.
        """
        settings, device = self.settings, self.workers.device
        place = (settings.seed, self.step, self.workers.rank)
        seed_dropout(int(np.random.SeedSequence(place).generate_state(1)[0]), device)
        set_rates(self.optimizer, settings, self.step)
        number, stage, _ = settings.stage(self.step)
        guided = self.step < settings.guided_steps
        batches, loss = self.micro_batches(), 0.0
        for count, (inputs, targets, *weights) in enumerate(batches, start=1):
            last = count == len(batches)
            with exchanging(self.objective, last), autocast(self.precision, device):
                part = self.objective(inputs, targets, number, guided, *weights)
                part = part / len(batches)
                part.backward()
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self.gpt.parameters(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None and self.step % AVERAGE_EVERY == 0:
            self._average(AVERAGE_EVERY * stage.tokens_per_step)
        return loss, norm

    @torch.no_grad()
    def _average(self, tokens: int) -> None:
        """Move the running mean towards the weights, as far as so many tokens do."""
        new = 1 - 0.5 ** (tokens / self.settings.average_half_life)
        for name, parameter in self.gpt.named_parameters():
            self.average[name].mul_(1 - new).add_(parameter, alpha=new)

    @torch.no_grad()
    def _end_with_average(self) -> None:
        """Make the running mean the model."""
        for name, parameter in self.gpt.named_parameters():
            parameter.copy_(self.average[name])

    def evaluate(self, sequences: int | None) -> dict[str, float]:
        """The present held-out losses; see `Looks.held_out_losses`."""
        return self.looks.held_out_losses(self.step, sequences)

    # The whole run

    def train(self) -> bool:
        """Train to the end, or until SIGTERM or Ctrl-C; returns whether it is the end.

        Raises:
            FloatingPointError: if the loss is no longer a number.
            OSError: if a checkpoint or the log cannot be written.
        """
        settings, workers = self.settings, self.workers
        checkpoints = Checkpoints(
            settings.run_folder / "checkpoints", settings.keep_checkpoints, workers
        )
        self.resume(checkpoints)
        log = Log(settings.run_folder / "log.jsonl", self.step, workers.first)
        if self.step == settings.max_steps:
            self._log_end(log)
            return True
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        (self.peak_flops,) = workers.sum([matmul_flops(workers.device, dtype, 0.5)])
        self._log_start(log)
        bar = tqdm(
            total=settings.max_steps,
            initial=self.step,
            unit="step",
            disable=not workers.first,
            mininterval=0.5 if sys.stderr.isatty() else 60,
        )
        meter, loss_sum = Meter(self.step), 0.0
        with bar, stopping_on_signals(self):
            while self.step < settings.max_steps:
                loss, norm = self.train_step()
                loss_sum += loss
                bar.update()
                stop = workers.sum([float(self.stop_asked)])[0] > 0  # any process
                end = self.step == settings.max_steps
                save = self.step % settings.checkpoint_every == 0 or end or stop
                look = self.step % settings.log_every == 0 or end or stop
                if look or save:
                    mean_sum, norm = self._over_processes(loss_sum, norm)
                if look:
                    steps, seconds = meter.lap(self.step)
                    self.seconds += seconds
                    tokens = settings.tokens(self.step)
                    rate = (tokens - settings.tokens(self.step - steps)) / seconds
                    self._log_train(log, bar, mean_sum / steps, norm, rate)
                    loss_sum = 0.0
                if end and self.average is not None:
                    self._end_with_average()
                with meter.paused():
                    self.looks.note(log, self.step, end)
                    if save:
                        facts = {"seconds": self.seconds, **self.facts}
                        checkpoints.save(self.step, self._state(), facts)
                        log.write("checkpoint", self.step)
                if stop and not end:
                    log.write("stop", self.step)
                    return False
        self._log_end(log)
        return True

    def _over_processes(
        self, loss: torch.Tensor, norm: torch.Tensor
    ) -> tuple[float, float]:
        """The mean of the processes' losses, and the gradient's norm, which they share.

        Raises FloatingPointError if training has diverged: before that is saved.
        """
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        total = self.workers.sum([loss.item(), norm.item()])
        loss, norm = (value / self.workers.count for value in total)
        if not math.isfinite(loss + norm):
            raise FloatingPointError(
                f"training has diverged by step {self.step} (its last losses sum to "
                f"{loss}, the gradient's length is {norm}); set a learning_rate below "
                f"{self.settings.learning_rate} and begin a new run"
            )
        return loss, norm

    # The log

    def _log_start(self, log: Log) -> None:
        """Note what runs where, or that it goes on."""
        if self.step == 0:
            settings = self.facts["settings"]
            log.write("start", 0, **self._description(), settings=settings)
            self.looks.note(log, 0)
        else:
            log.write("resume", self.step, **self._description())
        self.looks.warn_if_nothing_is_held_out()

    def _description(self) -> dict:
        """What the log says about the model, the machine and the program."""
        settings, device = self.settings, self.workers.device
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": self.parameters,
            "tokens_per_step": [stage.tokens_per_step for stage in settings.plan()],
            "processes": self.workers.count,
            "parallel": settings.parallel,
            "device": name,
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "torch": torch.__version__,
            "peak_flops": self.peak_flops,
            "flops_per_token": self._flops_per_token(),
        }

    def _flops_per_token(self) -> float:
        """Operations on a token of the present stage."""
        _, stage, _ = self.settings.stage(self.step)
        return flops_per_token(self.gpt, stage.context_length, stage.vocabulary)

    def _log_train(
        self, log: Log, bar: tqdm, loss: float, norm: float, rate: float
    ) -> None:
        """Note how training goes, in the log and beside the bar."""
        used = rate * self._flops_per_token() / self.peak_flops
        log.write(
            "train",
            self.step,
            tokens=self.settings.tokens(self.step),
            loss=round(loss, 6),
            learning_rate=learning_rate(self.settings, self.step - 1),
            gradient_norm=round(norm, 4),
            tokens_per_second=round(rate, 1),
            utilisation=round(used, 4),
        )
        bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tok/s, {used:.0%} of peak")

    def _log_end(self, log: Log) -> None:
        """Note that the run is complete."""
        tokens = self.settings.tokens(self.step)
        log.write("end", self.step, tokens=tokens, seconds=round(self.seconds, 1))


class Meter:
    """A stopwatch for steps, which can be paused."""

    def __init__(self, step: int):
        self.step, self.start = step, time.perf_counter()

    def lap(self, step: int) -> tuple[int, float]:
        """Steps and seconds since the last lap."""
        now = time.perf_counter()
        steps, seconds = step - self.step, now - self.start
        self.step, self.start = step, now
        return steps, seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that does not count."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before


@contextlib.contextmanager
def stopping_on_signals(run: Pretraining) -> Iterator[None]:
    """A block in which SIGTERM and the first Ctrl-C ask the run to save and stop."""

    def ask(number, frame):
        run.stop_asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one kills

    old = {x: signal.signal(x, ask) for x in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def pretrain(settings: Settings) -> bool:
    """Train, or go on training, and at the end write the model to `run_folder`/model.

    Returns:
        Whether the run has come to its end.

    Raises:
        FileNotFoundError, ValueError: as `Pretraining`.
        FloatingPointError, OSError: as `Pretraining.train`.
    """
    with start_workers(settings.device) as workers:
        run = Pretraining(settings, workers)
        complete = run.train()
        if complete:
            run.export(settings.run_folder / "model")
        if workers.first:
            print(
                f"the model is in {settings.run_folder / 'model'}"
                if complete
                else f"stopped after step {run.step} of {settings.max_steps}; "
                "the same command goes on from there"
            )
        return complete


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    settings = read_settings(arguments)
    try:
        pretrain(settings)
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
