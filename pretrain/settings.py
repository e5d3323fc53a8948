"""The settings of a pretraining run: what there is to set, and what fits together."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import jsonargparse

from shared.ch04 import check_config


@dataclass
class ModelSettings:
    """The model: a `GPTConfig`, with the defaults of the course's first base model.

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
    """A part of the run in which all steps have the same shape.

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
        run_folder: folder for the log, the checkpoints and the model
        max_steps: optimizer steps in the whole run
        model: the model
        repeats: how often an epoch reads each source; once if it is not named here
        seed: decides the first weights, the order of the data, and dropout
        token_vectors: how much larger than usual the random token vectors are at first
        initial: folder of a model to begin with, instead of random weights
        stages: parts of the run whose steps have different shapes; by default one, of
            model.context_length, batch_size and vocabulary
        batch_size: sequences in a step, over all processes
        vocabulary: how many of the commonest tokens are in the loss of every step; the
            others are in it only when they come next somewhere in the batch, or are
            drawn. By default all tokens are, which is exact
        micro_batch_size: sequences that a process handles at once; by default its whole
            share of the batch
        learning_rate: the highest learning rate, at the end of the warm-up
        final_learning_rate: the learning rate of the last step
        warmup_steps: steps at the beginning, in which the learning rate rises
        decay_steps: steps at the end, in which the rate falls in a straight line; by
            default it falls along a cosine as soon as the warm-up is over
        matrix_learning_rate: the highest learning rate for the matrices of the blocks,
            which Muon then trains; by default AdamW trains them like the rest
        weight_decay: each step multiplies matrices by 1 - learning rate x weight_decay
        beta1: how much of the mean of gradients AdamW keeps from step to step
        beta2: the same for the mean of squared gradients
        mean_half_life: sets beta1 so that half of the mean of gradients is forgotten
            after so many tokens, whatever the size of a step
        square_half_life: the same for the mean of squared gradients and beta2
        average_half_life: the same for a running mean of the weights, which the model
            gets at the end; by default there is no such mean
        from_beginnings: whether training sequences begin where documents do, as the
            texts do that the model will be given; see prepare.TokenShards
        asked_weight: how often the words that a request asks for count in the loss,
            where the story after it first has them; see pretrain.asked
        guided_steps: steps at the beginning in which three heads are shown where to
            look for what came before; see ch05_pretraining.copying.Guide
        max_grad_norm: longer gradients are clipped to this length
        device: auto takes a GPU if there is one
        precision: of matrix products; auto takes bf16 where that is faster
        parallel: ddp gives each process a copy of the model, fsdp a part of it
        compile: whether torch.compile fuses operations (a CPU needs a C++ compiler)
        prompts: texts that the model continues for the log, before the first step,
            after steps 1, 2, 4, 8 and so on, and at the end; not with fsdp
        log_every: steps between two lines of the log
        eval_every: steps between two looks at the held-out text
        eval_sequences: held-out sequences of each source in a look (at the end: all)
        checkpoint_every: steps between two checkpoints
        keep_checkpoints: how many checkpoints are kept
    """

    shards: Path
    run_folder: Path
    max_steps: int
    model: ModelSettings = field(default_factory=ModelSettings)
    repeats: dict[str, float] = field(default_factory=dict)
    seed: int = 123
    token_vectors: float = 1.0
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
    from_beginnings: bool = False
    asked_weight: float = 1.0
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
        """The stages; without any in the settings, the run is one stage."""
        T = self.model.context_length
        whole = Stage(self.max_steps, T, self.batch_size, self.vocabulary)
        return self.stages or [whole]

    def stage(self, step: int) -> tuple[int, Stage, int]:
        """The stage of a step: its number, itself, and the step's number in it."""
        for number, stage in enumerate(self.plan()):
            if step < stage.steps:
                return number, stage, step
            step -= stage.steps
        return number, stage, step + stage.steps  # the end belongs to the last one

    def tokens(self, step: int) -> int:
        """Tokens trained on before a step."""
        number, stage, rest = self.stage(step)
        plan = self.plan()[:number]
        before = sum(earlier.steps * earlier.tokens_per_step for earlier in plan)
        return before + rest * stage.tokens_per_step

    def betas(self, tokens_per_step: int) -> tuple[float, float]:
        """AdamW's memory from step to step, for steps of so many tokens."""
        return tuple(
            beta if half_life is None else 0.5 ** (tokens_per_step / half_life)
            for beta, half_life in (
                (self.beta1, self.mean_half_life),
                (self.beta2, self.square_half_life),
            )
        )


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of a step: it rises in a straight line, then falls.

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


def read_settings(arguments: list[str] | None = None) -> Settings:
    """The settings from a command line, and from the file that its `--config` names.

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


# --- What cannot be -------------------------------------------------------------------

AT_LEAST = {
    0: "final_learning_rate warmup_steps guided_steps",
    1: "max_steps batch_size log_every eval_every eval_sequences checkpoint_every "
    "keep_checkpoints",
}
ABOVE_ZERO = (
    "learning_rate matrix_learning_rate max_grad_norm mean_half_life square_half_life "
    "average_half_life asked_weight token_vectors"
)


def check_settings(settings: Settings, processes: int) -> None:
    """Raise ValueError, with the setting and a remedy, if no run can have them."""
    check_config(asdict(settings.model))
    for least, names in AT_LEAST.items():
        for name in names.split():
            value = getattr(settings, name)
            if value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
    for name in ABOVE_ZERO.split():
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    if "" in settings.prompts:
        raise ValueError("prompts must not be empty; give each at least one word")
    _check_steps(settings)
    for stage in settings.plan():
        _check_stage(stage, settings, processes)
    for name in ("guided_steps", "matrix_learning_rate"):
        sharded = settings.parallel == "fsdp" and processes > 1
        if sharded and getattr(settings, name):
            raise ValueError(
                f"{name} needs whole layers, but fsdp gives each process a part of "
                f"them; use ddp, or leave {name} out"
            )


def _check_steps(settings: Settings) -> None:
    """Raise ValueError if the parts of the run do not fit into its steps."""
    total, warmup = settings.max_steps, settings.warmup_steps
    falling, guided = settings.decay_steps, settings.guided_steps
    steps = [stage.steps for stage in settings.plan()]
    if min(steps) < 1 or sum(steps) != total:
        raise ValueError(
            f"the stages have {' + '.join(map(str, steps))} steps; each must have 1 "
            f"or more, and they must add up to max_steps {total}"
        )
    if guided > total:
        raise ValueError(
            f"guided_steps must be at most max_steps {total}, not {guided}"
        )
    if falling is not None and not 1 <= falling <= total - warmup:
        raise ValueError(
            f"decay_steps must be between 1 and the {total} - {warmup} steps after "
            f"the warm-up, not {falling}"
        )
    if warmup >= total:
        raise ValueError(f"warmup_steps must be below max_steps {total}, not {warmup}")


def _check_stage(stage: Stage, settings: Settings, processes: int) -> None:
    """Raise ValueError if a stage does not fit the model or the processes."""
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


# --- Going on -------------------------------------------------------------------------

# What may change when a run goes on: where and how fast, but not what comes out.
FREE_SETTINGS = {
    *("shards", "run_folder", "micro_batch_size", "device", "precision", "parallel"),
    *("compile", "initial", "prompts", "log_every", "eval_every", "eval_sequences"),
    *("checkpoint_every", "keep_checkpoints"),
}
# What may change, too, as long as all steps made so far would have been the same.
END = {"max_steps", "decay_steps", "stages"}


def require_same_run(facts: dict, now: dict, path: Path) -> None:
    """Raise ValueError if a checkpoint's facts are damaged, or not those of this run.

    The end of a run may move while its learning rate has not begun to fall.

    Args:
        facts: of the checkpoint: its "settings", and the "data" that it was trained on.
        now: the same of this run.
        path: the checkpoint, for the message.
    """
    try:
        before, after = _flat(facts), _flat(now)
        free = FREE_SETTINGS | (END if _same_steps(before, after, facts) else set())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path / 'facts.json'} is damaged ({error!r}); delete {path} to go on "
            "from the checkpoint before it"
        ) from None
    differences = [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in {**before, **after}
        if key not in free and before.get(key) != after.get(key)
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to another run: {'; '.join(differences)}. Go on with its "
            "settings, or name a new folder with --run_folder"
        )


def _flat(facts: dict) -> dict:
    """Settings and data in one dictionary, without another one inside for the model."""
    settings = dict(facts["settings"])
    model = {f"model.{key}": value for key, value in settings.pop("model").items()}
    return {**settings, **model, "data": facts["data"]}


def _same_steps(before: dict, after: dict, facts: dict) -> bool:
    """Whether the steps that a checkpoint has made belong to both settings."""
    names = "max_steps batch_size vocabulary learning_rate final_learning_rate"
    names = f"{names} warmup_steps decay_steps".split()
    runs = [
        Settings(
            *(Path(), Path()),
            model=ModelSettings(context_length=flat["model.context_length"]),
            stages=[Stage(**stage) for stage in flat["stages"]],
            **{name: flat[name] for name in names},
        )
        for flat in (before, after)
    ]

    def made(run: Settings, step: int) -> tuple:
        number, stage, rest = run.stage(step)
        shape = stage.context_length, stage.batch_size, stage.vocabulary
        return learning_rate(run, step), number, rest, *shape

    return facts["step"] < min(run.max_steps for run in runs) and all(
        made(runs[0], step) == made(runs[1], step) for step in range(facts["step"])
    )
