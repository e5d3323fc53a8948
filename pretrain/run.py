"""Pretrain a GPT on shards of tokens: on one processor, on many, across machines.

    python -m pretrain --config pretrain/configs/base-1.yaml
    torchrun --nproc-per-node 8 -m pretrain --config CONFIG

The shards come from `python -m pretrain.prepare`. Every setting stands in the
file, or after the command (`--learning_rate 0.001 --model.n_layers 8`); `--help` lists
them. The same command goes on where an interrupted run stopped. In the run's folder:

    log.jsonl                 what happened, one JSON object a line
    checkpoints/step-.../     the last few states from which the run can go on
    model/                    at the end: the model, as Hugging Face stores GPT-2

Whatever decides over a step (its sequences, learning rate and dropout) follows from the
settings and the step's number, not from what happened before. So a checkpoint is the
weights, the optimizer's averages and a number, and a run that was killed, or moved to
more or fewer processes, ends as an undisturbed one.
"""

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import jsonargparse
import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ch05_pretraining.copying import (
    induction_scores,
    random_text_twice,
    repeat_losses,
)
from pretrain.checkpoints import Checkpoints, Log
from pretrain.hardware import (
    Workers,
    choose_precision,
    keep_freed_memory,
    matmul_flops,
    seed_dropout,
    start_workers,
)
from pretrain.objective import Objective, PartOfVocabulary
from pretrain.prepare import (
    TOKENIZER,
    TokenShards,
    open_sources,
    open_tokenizer,
    tokenizer_name,
)
from shared.ch04 import GPTModel, check_config
from shared.ch05 import (
    evaluating,
    generate,
    load_weights_into_gpt,
    read_gpt2_folder,
    save_gpt2_folder,
    text_to_token_ids,
    token_ids_to_text,
)
from shared.files import copy_file

AVERAGE_EVERY = 10  # steps between two looks of the running mean: it is slow anyway
REPEAT_LENGTH = 64  # random tokens that the model is shown twice, when looked at
SAMPLE_TOKENS, TEMPERATURE, TOP_P = 120, 0.6, 0.9  # of what the model writes

# --- Settings -------------------------------------------------------------------------


@dataclass
class ModelSettings:
    """The model: a `GPTConfig`, with the defaults of the course's base model.

    Args:
        vocab_size: how many tokens the tokenizer knows
        context_length: T, tokens in a training sequence
        emb_dim: C, width of a token's vector
        n_heads: attention heads in a block
        n_layers: transformer blocks
        drop_rate: share of values that training drops
        qkv_bias: whether queries, keys and values have a bias
        tie_weights: whether the output head is the token embedding
    """

    vocab_size: int = 50257
    context_length: int = 512
    emb_dim: int = 256
    n_heads: int = 4
    n_layers: int = 6
    drop_rate: float = 0.0
    qkv_bias: bool = True
    tie_weights: bool = True


@dataclass
class Stage:
    """A part of the run, with steps of its own shape.

    Args:
        steps: how many
        context_length: T, tokens in a training sequence
        batch_size: sequences in a step, over all processes
        vocabulary: see `Settings`
    """

    steps: int
    context_length: int
    batch_size: int
    vocabulary: int | None = None

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context_length


@dataclass
class Settings:
    """The run.

    Args:
        shards: folder of the sources, made by pretrain.prepare
        run_folder: gets the log, the checkpoints and the model
        max_steps: optimizer steps in the whole run
        model: the model
        repeats: how often an epoch uses each source, 1 where nothing is said
        seed: decides over the first weights, the order of the data, and dropout
        initial: folder of a model to begin with, instead of random weights
        stages: parts of the run that differ in the shape of their steps; by default
            one, of model.context_length, batch_size and vocabulary
        batch_size: sequences in a step, over all processes
        vocabulary: the commonest tokens in every step's loss; of the others only those
            that come next somewhere in the batch. By default all, which is exact
        micro_batch_size: sequences that a process handles at once, by default its share
        learning_rate: the highest, reached at the end of the warm-up
        final_learning_rate: the last, at the end of the fall
        warmup_steps: steps of linear warm-up
        decay_steps: the last steps, over which the rate falls in a straight line; by
            default it falls from the warm-up on, along a cosine
        matrix_learning_rate: the highest for the matrices of the blocks, which Muon
            then moves; by default AdamW moves them, too
        weight_decay: of matrices, in each step times the learning rate
        beta1: memory of the optimizer's mean of gradients
        beta2: memory of its mean of squared gradients
        mean_half_life: tokens after which the mean of gradients has forgotten half;
            sets beta1, whatever the size of a step
        square_half_life: the same for the mean of squared gradients and beta2
        average_half_life: the same for a running mean of the weights, which is then
            the model that the run ends with; by default there is none
        guided_steps: steps at the beginning in which three heads are shown where to
            look for what stood before; see `ch05_pretraining.copying.Guide`
        max_grad_norm: longer gradients are shortened to this length
        device: auto takes a GPU where there is one
        precision: of matrix products, auto takes bf16 where that is faster
        parallel: ddp copies the model to every process, fsdp shares it out
        compile: whether torch.compile fuses operations (a CPU needs a C++ compiler)
        prompts: texts that the model continues, for the log, before the first step,
            after every step whose number is a power of two, and at the end
        log_every: steps between two lines of the log
        eval_every: steps between two evaluations on the held-out text
        eval_sequences: held-out sequences of each source in them (at the end: all)
        checkpoint_every: steps between two checkpoints
        keep_checkpoints: how many are kept
    """

    shards: Path
    run_folder: Path
    max_steps: int
    model: ModelSettings = field(default_factory=ModelSettings)
    repeats: dict[str, float] = field(default_factory=dict)
    seed: int = 123
    initial: Path | None = None
    stages: list[Stage] = field(default_factory=list)
    batch_size: int = 2
    vocabulary: int | None = None
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    matrix_learning_rate: float | None = None
    warmup_steps: int = 200
    decay_steps: int | None = None
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    mean_half_life: float | None = None
    square_half_life: float | None = None
    average_half_life: float | None = None
    guided_steps: int = 0
    max_grad_norm: float = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    prompts: list[str] = field(default_factory=list)
    log_every: int = 10
    eval_every: int = 500
    eval_sequences: int = 16
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def micro_batch(self, stage: Stage, processes: int) -> int:
        """Sequences of a stage that each of so many processes handles at once."""
        return self.micro_batch_size or stage.batch_size // processes

    def plan(self) -> list[Stage]:
        """The stages, of which a run without any has one."""
        T = self.model.context_length
        whole = Stage(self.max_steps, T, self.batch_size, self.vocabulary)
        return self.stages or [whole]

    def stage(self, step: int) -> tuple[int, int]:
        """Number of the stage to which a step belongs, and of the step within it."""
        for number, stage in enumerate(self.plan()):
            if step < stage.steps:
                return number, step
            step -= stage.steps
        return number, step + stage.steps  # the end belongs to the last one

    def tokens(self, step: int) -> int:
        """Tokens trained on before a step."""
        number, rest = self.stage(step)
        plan = self.plan()
        before = sum(stage.steps * stage.tokens_per_step for stage in plan[:number])
        return before + rest * plan[number].tokens_per_step

    def betas(self, tokens_per_step: int) -> tuple[float, float]:
        """The optimizer's memory from step to step, for steps of so many tokens."""
        return tuple(
            beta if half_life is None else 0.5 ** (tokens_per_step / half_life)
            for beta, half_life in (
                (self.beta1, self.mean_half_life),
                (self.beta2, self.square_half_life),
            )
        )


# What may change when a run goes on: where and how fast, but not what comes out.
FREE_SETTINGS = {
    *("shards", "run_folder", "micro_batch_size", "device", "precision", "parallel"),
    *("compile", "initial", "prompts", "log_every", "eval_every", "eval_sequences"),
    *("checkpoint_every", "keep_checkpoints"),
}


def read_settings(arguments: list[str] | None = None) -> Settings:
    """The settings from a command line, and the file that its `--config` names.

    Exits with a message that names the fault if a setting is unknown, missing or of
    the wrong type.
    """
    parser = jsonargparse.ArgumentParser(
        prog="python -m pretrain",
        description="Pretrain a GPT on shards of tokens.",
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings")
    parser.add_class_arguments(Settings)
    given = parser.parse_args(arguments)
    given.pop("config")
    return Settings(**vars(parser.instantiate(given)))


def check_settings(settings: Settings, processes: int) -> None:
    """Raise ValueError, naming the setting and a remedy, if no run can have them."""
    check_config(asdict(settings.model))
    for name in (
        *("max_steps", "batch_size", "log_every", "eval_every", "eval_sequences"),
        *("checkpoint_every", "keep_checkpoints"),
    ):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be 1 or more, not {getattr(settings, name)}")
    steps = [stage.steps for stage in settings.plan()]
    if min(steps) < 1 or sum(steps) != settings.max_steps:
        raise ValueError(
            f"the stages have {' + '.join(map(str, steps))} steps; each must have 1 "
            f"or more, and they must add up to max_steps {settings.max_steps}"
        )
    for stage in settings.plan():
        _check_stage(stage, settings, processes)
    for name in ("mean_half_life", "square_half_life", "average_half_life"):
        tokens = getattr(settings, name)
        if tokens is not None and not tokens > 0:
            raise ValueError(f"{name} must be above 0 tokens, not {tokens}")
    if not 0 <= settings.guided_steps <= settings.max_steps:
        raise ValueError(
            f"guided_steps must be between 0 and max_steps {settings.max_steps}, not "
            f"{settings.guided_steps}"
        )
    if settings.guided_steps and settings.parallel == "fsdp" and processes > 1:
        raise ValueError(
            "guided_steps need whole layers, and fsdp shares them out; use ddp, or set "
            "guided_steps to 0"
        )
    falling = settings.decay_steps
    if falling is not None and not (
        1 <= falling <= settings.max_steps - settings.warmup_steps
    ):
        raise ValueError(
            f"decay_steps must be between 1 and the {settings.max_steps} - "
            f"{settings.warmup_steps} steps after the warm-up, not {falling}"
        )
    if not 0 <= settings.warmup_steps < settings.max_steps:
        raise ValueError(
            f"warmup_steps must be at least 0 and below max_steps "
            f"{settings.max_steps}, not {settings.warmup_steps}; set either"
        )
    for name in ("learning_rate", "max_grad_norm", "matrix_learning_rate"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    if settings.matrix_learning_rate and settings.parallel == "fsdp" and processes > 1:
        raise ValueError(
            "matrix_learning_rate needs whole matrices, and fsdp shares them out; use "
            "ddp, or no matrix_learning_rate"
        )
    if settings.matrix_learning_rate and not hasattr(torch.optim, "Muon"):
        raise ValueError(
            "matrix_learning_rate needs PyTorch 2.9 or newer, not "
            f"{torch.__version__}; update it, or set no matrix_learning_rate"
        )
    if settings.final_learning_rate < 0:
        raise ValueError(
            f"final_learning_rate must be 0 or more, not {settings.final_learning_rate}"
        )


def _check_stage(stage: Stage, settings: Settings, processes: int) -> None:
    """Raise ValueError if the model, its vocabulary or the processes rule it out."""
    longest, V = settings.model.context_length, settings.model.vocab_size
    if not 1 <= stage.context_length <= longest:
        raise ValueError(
            f"a stage's context_length must be between 1 and the model's {longest}, "
            f"not {stage.context_length}"
        )
    if stage.vocabulary is not None and not 1 <= stage.vocabulary <= V:
        raise ValueError(
            f"vocabulary must be between 1 and the model's {V} tokens, not "
            f"{stage.vocabulary}"
        )
    share, micro = stage.batch_size / processes, settings.micro_batch_size
    if share % 1 or share < 1 or micro is not None and (micro < 1 or share % micro):
        raise ValueError(
            f"batch_size {stage.batch_size} cannot be shared by {processes} "
            f"processes in micro-batches of {'any size' if micro is None else micro}; "
            "it must be a multiple of processes x micro_batch_size"
        )


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of a step: a straight rise, then half a cosine down.

    Step 0 has the first part of the rise, step `warmup_steps` - 1 the whole
    `learning_rate`, and the last step `final_learning_rate`. With `decay_steps` the
    rate stays at its height until the last steps, and falls in a straight line.

    Source: Loshchilov and Hutter (2017), SGDR, equation 5, for the cosine; Hu et al.
    (2024), MiniCPM, section 4, for the late fall.
    """
    highest, lowest = settings.learning_rate, settings.final_learning_rate
    if step < settings.warmup_steps:
        return highest * (step + 1) / settings.warmup_steps
    if settings.decay_steps is not None:
        left = settings.max_steps - step - 1
        return lowest + (highest - lowest) * min(1.0, left / settings.decay_steps)
    rest = settings.max_steps - settings.warmup_steps
    done = (step + 1 - settings.warmup_steps) / rest
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * done)) / 2


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


# --- Data -----------------------------------------------------------------------------


class Mixture:
    """All training sequences in the order of the run, as a function of their number.

    An epoch has every window of a source as often as `repeats` says (0.5: a random
    half of them), shuffled together; the next epoch has another order.

    Args:
        sources: `TokenShards` by name.
        repeats: see `Settings`.
        seed: decides over the order.

    Raises:
        ValueError: for repeats of an unknown source or below 0, or no window at all.
    """

    def __init__(
        self, sources: dict[str, TokenShards], repeats: dict[str, float], seed: int
    ):
        for name, times in repeats.items():
            if name not in sources:
                raise ValueError(
                    f"repeats names {name!r}, but the sources are "
                    f"{', '.join(sources)}; name those, or none (--repeats '{{}}')"
                )
            if times < 0:
                raise ValueError(f"repeats of {name} must be 0 or more, not {times}")
        self.sources, self.seed, self.epoch = list(sources.values()), seed, None
        self.counts = [
            round(repeats.get(name, 1.0) * len(shards))
            for name, shards in sources.items()
        ]
        if sum(self.counts) == 0:
            raise ValueError(
                "the sources hold no full sequence; prepare more text, or train with "
                "a smaller model.context_length"
            )

    def __len__(self) -> int:
        """Sequences in an epoch."""
        return sum(self.counts)

    def _plan(self, epoch: int) -> np.ndarray:
        """The pairs (source, window) of an epoch in their order, (sequences, 2)."""
        rng = np.random.default_rng([self.seed, epoch])
        pairs = []
        for number, (shards, count) in enumerate(
            zip(self.sources, self.counts, strict=True)
        ):
            times = math.ceil(count / len(shards)) if count else 0
            order = [rng.permutation(len(shards)) for _ in range(times)]
            windows = np.concatenate([*order, np.empty(0, np.int64)])[:count]
            pairs.append(np.stack([np.full(count, number), windows], axis=1))
        return rng.permutation(np.concatenate(pairs).astype(np.int32))

    def __getitem__(self, i: int) -> np.ndarray:
        """Sequence i of the run, (T + 1,)."""
        epoch, place = divmod(i, len(self))
        if epoch != self.epoch:
            self.epoch, self.plan = epoch, self._plan(epoch)
        source, window = self.plan[place]
        return self.sources[source][window]


def as_batch(
    sequences: list[np.ndarray], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, each (B, T), of sequences of T + 1 tokens."""
    ids = torch.from_numpy(np.stack(sequences))
    if device.type == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    return ids[:, :-1], ids[:, 1:]


def require_same_run(facts: dict, now: dict, path: Path) -> None:
    """Raise ValueError if a saved run's facts are damaged, or not the present ones."""
    try:
        before, after = _flat(facts), _flat(now)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path / 'facts.json'} is damaged ({error!r}); delete {path} to go on "
            "from the checkpoint before it"
        ) from None
    differences = [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in {**before, **after}
        if key not in FREE_SETTINGS and before.get(key) != after.get(key)
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to another run: {'; '.join(differences)}. Go on with its "
            "settings, or name a new folder with --run_folder"
        )


def _flat(facts: dict) -> dict:
    """The settings and the data of a run, by names without a level below them."""
    settings = dict(facts["settings"])
    model = {f"model.{key}": value for key, value in settings.pop("model").items()}
    return {**settings, **model, "data": facts["data"]}


# --- Training -------------------------------------------------------------------------


class Optimizers:
    """Several optimizers, each with parameters of its own, as one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


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
        self.mixtures, self.held_out, parts = [], [], []
        for number, stage in enumerate(settings.plan()):
            T = stage.context_length
            sources = open_sources(settings.shards, "train", T)
            mixture = Mixture(sources, settings.repeats, settings.seed + number)
            self.mixtures.append(mixture)
            self.held_out.append(open_sources(settings.shards, "held_out", T))
            parts.append(self._part(stage, sources))
        self.tokenizer = open_tokenizer(settings.shards) if settings.prompts else None
        tokenizer = tokenizer_name(settings.shards)
        for name, shards in sources.items():
            if shards.index.get("tokenizer", tokenizer) != tokenizer:
                raise ValueError(
                    f"source {name} was made with another tokenizer than the one in "
                    f"{settings.shards}; delete {name} and prepare it again"
                )
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
        if settings.initial is not None:
            self._start_from(settings.initial)
        self.parameters = sum(p.numel() for p in self.gpt.parameters())
        self.gpt.to(workers.device)
        objective = Objective(self.gpt, parts, settings.guided_steps > 0)
        self.objective = self._distribute(objective)
        self.optimizer = self._new_optimizer()
        self.average = (
            None
            if settings.average_half_life is None
            else {n: p.detach().clone() for n, p in self.gpt.named_parameters()}
        )
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
            counts += settings.repeats.get(name, 1.0) * torch.from_numpy(
                shards.counts(V)
            )
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
            raise ValueError(f"the model in {folder} is another: {'; '.join(wrong)}")
        load_weights_into_gpt(self.gpt, tensors)

    def _distribute(self, objective: Objective) -> nn.Module:
        """The objective, shared with the other processes."""
        settings, workers = self.settings, self.workers
        sharded = settings.parallel == "fsdp" and workers.count > 1
        if settings.compile:
            for block in objective.gpt.trf_blocks:
                block.compile()
        if sharded:
            bf16 = torch.bfloat16 if self.precision == "bf16" else None
            policy = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32)
            mesh = init_device_mesh(workers.device.type, (workers.count,))
            for module in [*objective.gpt.trf_blocks, objective]:
                # reshard: an evaluation must leave the parameters as it found them
                fully_shard(
                    module, mesh=mesh, mp_policy=policy, reshard_after_forward=True
                )
            return objective
        if workers.count > 1:
            return DistributedDataParallel(objective)
        return objective

    def _new_optimizer(self) -> Optimizers:
        """AdamW that decays matrices, but neither biases nor norms; and perhaps Muon.

        Source: Jordan et al. (2024), Muon; Liu et al. (2025), Muon is Scalable for LLM
        Training, section 2.2, for the length of its steps.
        """
        settings, muon = self.settings, {}
        if settings.matrix_learning_rate is not None:
            blocks = self.gpt.trf_blocks.named_parameters()
            muon = {f"trf_blocks.{name}": p for name, p in blocks if p.dim() == 2}
        rest = [p for name, p in self.gpt.named_parameters() if name not in muon]
        decay = settings.weight_decay
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, settings.learning_rate, fused=True)
        if not muon:
            return Optimizers(adam)
        rate = settings.matrix_learning_rate
        matrices = {
            "params": list(muon.values()),
            "times": rate / settings.learning_rate,
        }
        return Optimizers(
            adam,
            torch.optim.Muon([matrices], rate, decay, adjust_lr_fn="match_rms_adamw"),
        )

    # Saving and going on

    def _state(self) -> dict:
        """The tensors that a checkpoint holds, by the names of the plain model."""
        optimizer = get_optimizer_state_dict(self.objective, self.optimizer.parts)
        model = get_model_state_dict(self.objective)
        state = {"model": model, "averages": optimizer["state"]}
        return state if self.average is None else {**state, "mean": self.average}

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint, if there is one."""
        saved = checkpoints.complete()
        if not saved:
            return
        facts = checkpoints.facts(saved[-1])
        require_same_run(facts, self.facts, saved[-1])
        model = get_model_state_dict(self.objective)
        optimizer = get_optimizer_state_dict(self.objective, self.optimizer.parts)
        state = {"model": model, "averages": optimizer["state"]}
        if self.average is not None:
            state["mean"] = self.average
        checkpoints.load(saved[-1], state)
        set_model_state_dict(self.objective, model)
        set_optimizer_state_dict(self.objective, self.optimizer.parts, optimizer)
        self.step, self.seconds = facts["step"], facts["seconds"]

    def export(self, folder: Path) -> None:
        """Write the model in Hugging Face's format, in bfloat16."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.objective, options=options)
        if self.workers.first:
            gpt = GPTModel(self.gpt.cfg)
            gpt.load_state_dict({k.removeprefix("gpt."): v for k, v in state.items()})
            save_gpt2_folder(gpt, folder, dtype=torch.bfloat16)
            own = self.settings.shards / TOKENIZER
            if own.is_file():
                copy_file(own, folder / TOKENIZER)
        self.workers.wait()

    # One step

    def _autocast(self) -> torch.autocast:
        """Matrix products in bfloat16, if that is the run's precision."""
        on = self.precision == "bf16"
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=on)

    def _stage(self) -> tuple[int, Stage, int]:
        """The present stage: its number, itself, and the next step's number in it."""
        number, step = self.settings.stage(self.step)
        return number, self.settings.plan()[number], step

    def micro_batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """This process's part of the next step's batch."""
        settings, workers = self.settings, self.workers
        number, stage, step = self._stage()
        mixture = self.mixtures[number]
        share = stage.batch_size // workers.count
        start = step * stage.batch_size + workers.rank * share
        micro = settings.micro_batch(stage, workers.count)
        return [
            as_batch([mixture[i] for i in range(j, j + micro)], workers.device)
            for j in range(start, start + share, micro)
        ]

    def train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the next step; returns this process's mean loss and the gradient's norm.

        Gradients of the micro-batches add up; the processes exchange them once, with
        the last.
        """
        place = (self.settings.seed, self.step, self.workers.rank)
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        seed_dropout(seed, self.workers.device)
        number, stage, _ = self._stage()
        rate = learning_rate(self.settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("times", 1.0)
            if "betas" in group:
                group["betas"] = self.settings.betas(stage.tokens_per_step)
        guided = self.step < self.settings.guided_steps
        batches, loss = self.micro_batches(), 0.0
        for count, (inputs, targets) in enumerate(batches, start=1):
            with self._exchange(count == len(batches)), self._autocast():
                part = self.objective(inputs, targets, number, guided) / len(batches)
                part.backward()
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(
            self.gpt.parameters(), self.settings.max_grad_norm
        )
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

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager:
        """Let a backward pass exchange gradients only if it is the step's last."""
        if isinstance(self.objective, DistributedDataParallel):
            return contextlib.nullcontext() if last else self.objective.no_sync()
        if hasattr(self.objective, "set_requires_gradient_sync"):
            self.objective.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    # A look at the held-out text

    def evaluate(self, sequences: int | None) -> dict[str, float]:
        """Loss of each source on its held-out text, of at most so many sequences.

        They have the length of the present stage, and are compared over the whole
        vocabulary.
        """
        losses, (number, _, _) = {}, self._stage()
        # the compiled code is for the shapes of training, and these differ
        eager = torch.compiler.set_stance("force_eager")
        with eager, evaluating(self.objective), self._autocast():
            for name, shards in self.held_out[number].items():
                count = min(len(shards), sequences or len(shards))
                if count:
                    losses[name] = self._held_out_loss(shards, count)
        return losses

    def _held_out_loss(self, shards: TokenShards, count: int) -> float:
        """Mean loss of the first `count` windows, which the processes share.

        All make the same number of calls with the same shape; where windows run out,
        the targets are -100, which the loss does not count.
        """
        workers, (_, stage, _) = self.workers, self._stage()
        size = self.settings.micro_batch(stage, workers.count)
        total, calls = 0.0, math.ceil(count / (size * workers.count))
        for call in range(calls):
            first = (call * workers.count + workers.rank) * size
            numbers = range(first, first + size)
            real = sum(i < count for i in numbers)
            inputs, targets = as_batch(
                [shards[min(i, count - 1)] for i in numbers], workers.device
            )
            targets = targets.clone()  # it shares its memory with the inputs
            targets[real:] = -100
            loss = self.objective(inputs, targets)
            total += loss.item() * real if real else 0.0
        return workers.sum([total])[0] / count

    # The whole run

    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.settings.tokens(self.step)

    def _must_stop(self) -> bool:
        """Whether any process was asked to stop."""
        return self.workers.sum([float(self.stop_asked)])[0] > 0

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
                stop, end = self._must_stop(), self.step == settings.max_steps
                save = self.step % settings.checkpoint_every == 0 or end or stop
                look = self.step % settings.log_every == 0 or end or stop
                if look or save:
                    mean_sum, norm = self._over_processes(loss_sum, norm)
                if look:
                    steps, seconds = meter.lap(self.step)
                    self.seconds += seconds
                    tokens = self.tokens() - settings.tokens(self.step - steps)
                    self._log_train(log, bar, mean_sum / steps, norm, tokens / seconds)
                    loss_sum = 0.0
                if end and self.average is not None:
                    self._end_with_average()
                with meter.paused():
                    if self.step.bit_count() == 1 or end:  # a power of two
                        self._log_samples(log)
                    if self.step % settings.eval_every == 0 or end:
                        self._log_eval(log, None if end else settings.eval_sequences)
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

    def _log_end(self, log: Log) -> None:
        """Note that the run is complete."""
        seconds = round(self.seconds, 1)
        log.write("end", self.step, tokens=self.tokens(), seconds=seconds)

    def _log_start(self, log: Log) -> None:
        """Note what runs where, or that it goes on."""
        if self.step == 0:
            log.write(
                "start", 0, **self._description(), settings=self.facts["settings"]
            )
        else:
            log.write("resume", self.step, **self._description())
        if self.step == 0:
            self._log_samples(log)
        self._warn_if_nothing_is_held_out()

    def _log_samples(self, log: Log) -> None:
        """Note how the model continues each prompt, always with the same seed."""
        if not self.settings.prompts or any(
            isinstance(p, DTensor) for p in self.gpt.parameters()
        ):
            return
        T, texts = self.settings.model.context_length, []
        eager = torch.compiler.set_stance("force_eager")
        for prompt in self.settings.prompts:
            idx = text_to_token_ids(prompt, self.tokenizer).to(self.workers.device)
            seed = torch.Generator(self.workers.device).manual_seed(self.settings.seed)
            with eager, evaluating(self.objective):
                idx = generate(
                    self.gpt,
                    idx,
                    SAMPLE_TOKENS,
                    T,
                    TEMPERATURE,
                    eos_id=self.tokenizer.eot_token,
                    top_p=TOP_P,
                    generator=seed,
                )
            texts.append(token_ids_to_text(idx, self.tokenizer))
        log.write("sample", self.step, tokens=self.tokens(), texts=texts)

    def _warn_if_nothing_is_held_out(self) -> None:
        """Say so if no evaluation of the run will have a sequence to look at."""
        held_out = [text for sources in self.held_out for text in sources.values()]
        if self.workers.first and not any(map(len, held_out)):
            print(
                "no held-out text is as long as a training sequence, so nothing will "
                "be evaluated; prepare the text with a larger --held-out, say 0.1",
                file=sys.stderr,
            )

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
        _, stage, _ = self._stage()
        return flops_per_token(self.gpt, stage.context_length, stage.vocabulary)

    def _log_train(
        self,
        log: Log,
        bar: tqdm,
        loss: float,
        norm: float,
        rate: float,
    ) -> None:
        """Note how training goes, in the log and beside the bar."""
        used = rate * self._flops_per_token() / self.peak_flops
        log.write(
            "train",
            self.step,
            tokens=self.tokens(),
            loss=round(loss, 6),
            learning_rate=learning_rate(self.settings, self.step - 1),
            gradient_norm=round(norm, 4),
            tokens_per_second=round(rate, 1),
            utilisation=round(used, 4),
        )
        bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tok/s, {used:.0%} of peak")

    def _log_eval(self, log: Log, sequences: int | None) -> None:
        """Note the held-out losses, and their mean by the sources' shares of training.

        The mean is what the training loss would be on text that it has not seen.
        """
        losses = self.evaluate(sequences)
        number, _, _ = self._stage()
        counts = self.mixtures[number].counts
        shares = dict(zip(self.held_out[number], counts, strict=True))
        total = sum(shares[name] for name in losses)
        if total:
            mean = sum(losses[name] * shares[name] for name in losses) / total
            rounded = {name: round(loss, 4) for name, loss in losses.items()}
            log.write(
                "eval",
                self.step,
                tokens=self.tokens(),
                sequences=sequences,
                loss=round(mean, 4),
                losses=rounded,
                **self._copying(),
            )

    def _copying(self) -> dict:
        """How well the model repeats random tokens, and its best head for that."""
        if any(isinstance(p, DTensor) for p in self.gpt.parameters()):
            return {}  # a process has only its part of each layer
        half = min(REPEAT_LENGTH, self.settings.model.context_length // 2)
        ids = random_text_twice(4, half, self.settings.model.vocab_size)
        ids = ids.to(self.workers.device)
        eager = torch.compiler.set_stance("force_eager")
        with eager, evaluating(self.objective):
            first, second = repeat_losses(self.gpt, ids)
            scores = induction_scores(self.gpt, ids)
        return {
            "repeat": [round(first, 4), round(second, 4)],
            "induction": [[round(x, 4) for x in row] for row in scores.tolist()],
        }


class Meter:
    """A stopwatch for steps, which stands still during evaluations and checkpoints."""

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
