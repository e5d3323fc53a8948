"""Chapter 5: Pretraining.

Teach a GPT to continue a story, watch it learn the story by heart, and save, resume,
sample and load models as one does with large ones.

Exported from pretraining.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

import huggingface_hub
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from shared.ch04 import (
    GPT2_CONFIGS,
    GPTConfig,
    GPTModel,
    check_prompt,
    generate_text_simple,
    next_token_logits,
)
from shared.data import DataUnavailable
from shared.data import get as data_path
from shared.files import replacing

__all__ = [
    "text_to_token_ids",
    "token_ids_to_text",
    "calc_loss_batch",
    "train_val_test_split",
    "random_state",
    "set_random_state",
    "evaluating",
    "calc_loss_loader",
    "evaluate_model",
    "Progress",
    "TrainingRun",
    "generate_and_print_sample",
    "train_model_simple",
    "plot_losses",
    "longest_verbatim_run",
    "next_token_probabilities",
    "generate",
    "TensorFile",
    "save_checkpoint",
    "load_checkpoint",
    "save_gpt2_folder",
    "read_gpt2_folder",
    "load_weights_into_gpt",
    "build_pretrained",
    "load_base",
    "GPT2_REPOSITORIES",
    "download_and_load_gpt2",
]


def text_to_token_ids(text: str, tokenizer) -> torch.Tensor:
    """Encode a text as a batch of one: ids (1, T).

    Args:
        text: any string; `<|endoftext|>` in it is read as the special token.
        tokenizer: has `encode(text, allowed_special=...)`, like `get_tokenizer()`.

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    return torch.tensor([tokenizer.encode(text, allowed_special={"<|endoftext|>"})])


def token_ids_to_text(ids: torch.Tensor, tokenizer) -> str:
    """Decode the ids of one text, (1, T) or (T,).

    Raises:
        ValueError: for a batch of several texts.

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    if ids.dim() > 2 or (ids.dim() == 2 and len(ids) != 1):
        raise ValueError(
            f"ids of shape {tuple(ids.shape)} are not one text; decode row by row"
        )
    return tokenizer.decode(ids.flatten().tolist())


def calc_loss_batch(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a model's guesses, in nats per token.

    Args:
        input_batch: ids, (B, T).
        target_batch: the ids that follow them, (B, T); -100 marks what not to count.
        model: any module that maps ids (B, T) to logits (B, T, V).
        device: where the model is; the batch is moved there.

    Returns:
        A scalar that can be differentiated.

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    logits = model(input_batch.to(device))  # (B, T, V)
    targets = target_batch.to(device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # eq. 5.2


def train_val_test_split(
    text: str, train_fraction: float = 0.8, val_fraction: float = 0.1
) -> tuple[str, str, str]:
    """Cut a text into three consecutive parts, each ending with a line if possible.

    Args:
        text: the whole text.
        train_fraction, val_fraction: their shares of its characters, roughly; the test
            part gets the rest.

    Returns:
        The three parts, which joined give the text again. One may be empty.

    Raises:
        ValueError: for a share below 0, or two with a sum above 1.
    """
    if min(train_fraction, val_fraction) < 0 or train_fraction + val_fraction > 1:
        raise ValueError(
            f"train_fraction {train_fraction} and val_fraction {val_fraction} must not "
            "be negative, nor their sum above 1; try 0.8 and 0.1"
        )
    ends = []
    for share in (train_fraction, train_fraction + val_fraction):
        end = round(share * len(text))
        if end < len(text):
            end = text.rfind("\n", 0, end) + 1 or end
        ends.append(end)
    return text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]


def random_state(loader: DataLoader | None = None) -> dict[str, torch.Tensor]:
    """Where torch's random generators stand, and the loader's if it has its own.

    They decide over dropout (on CPU or the current CUDA device) and the next batches.
    """
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    generator = getattr(loader, "generator", None)
    if generator is not None:
        state["loader"] = generator.get_state()
    return state


def set_random_state(
    state: Mapping[str, torch.Tensor], loader: DataLoader | None = None
) -> None:
    """Put the generators back to where `random_state` found them.

    Raises:
        ValueError: if only one of `state` and `loader` has a generator of the loader.
    """
    generator = getattr(loader, "generator", None)
    if (generator is None) == ("loader" in state):
        had, has = ("no", "one") if generator is not None else ("one", "none")
        raise ValueError(
            f"the loader had {had} generator of its own and now has {has}; see the "
            "argument generator of create_dataloader_v1"
        )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    if generator is not None:
        generator.set_state(state["loader"])


@contextmanager
def evaluating(model: nn.Module, loader: DataLoader | None = None) -> Iterator[None]:
    """A block without dropout and gradients, after which all is as it was.

    Args:
        model: put into evaluation mode, then back into the mode it was in.
        loader: if given, the random generators are put back too, so that reading from
            it in the block does not change the batches that it gives afterwards.
    """
    was_training, state = model.training, random_state(loader)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        if loader is not None:
            set_random_state(state, loader)


def _require_batches(loader: DataLoader, name: str) -> None:
    """Raise ValueError if a loader has nothing to give."""
    if len(loader) == 0:
        raise ValueError(
            f"{name} has no batches: its text is too short for one; use a longer text, "
            "a smaller max_length or batch_size, or drop_last=False"
        )


def calc_loss_loader(
    loader: DataLoader,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """Mean loss per token over a loader, without dropout and without a trace.

    Args:
        loader: gives pairs (inputs, targets), each (B, T).
        model, device: as in `calc_loss_batch`.
        num_batches: use at most so many batches; by default all.

    Raises:
        ValueError: for a loader without batches, or `num_batches` below 1.

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    _require_batches(loader, "the loader")
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"num_batches must be 1 or more, not {num_batches}")
    total, count = 0.0, 0
    with evaluating(model, loader):
        for inputs, targets in islice(loader, num_batches):
            tokens = (targets != -100).sum().item()
            total += calc_loss_batch(inputs, targets, model, device).item() * tokens
            count += tokens
    return total / count


def evaluate_model(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    device: torch.device | str,
    eval_iter: int | None,
) -> tuple[float, float]:
    """Training and validation loss, each over `eval_iter` batches (None: all).

    Raises:
        ValueError: for a loader without batches, or `eval_iter` below 1.

    Source: Build a Large Language Model (From Scratch), section 5.2.
    """
    _require_batches(train_loader, "train_loader")
    _require_batches(val_loader, "val_loader")
    train_loss = calc_loss_loader(train_loader, model, device, eval_iter)
    return train_loss, calc_loss_loader(val_loader, model, device, eval_iter)


@dataclass
class Progress:
    """How far a training run has come: what it needs to go on, beside the weights.

    Attributes:
        steps_per_epoch: batches in the training loader.
        epoch_start: the `random_state` when the present epoch began.
        now: the `random_state` after the last step.
        epoch: complete epochs.
        step: optimiser steps made.
        tokens_seen: tokens trained on, repetitions included.
        history: what each look found: step, tokens seen, training and validation loss.
    """

    steps_per_epoch: int
    epoch_start: dict[str, torch.Tensor]
    now: dict[str, torch.Tensor]
    epoch: int = 0
    step: int = 0
    tokens_seen: int = 0
    history: list[tuple[int, int, float, float]] = field(default_factory=list)


class TrainingRun:
    """A training run that can be watched, interrupted, saved and resumed.

    Args:
        model: maps ids (B, T) to logits (B, T, V).
        train_loader, val_loader: give pairs (inputs, targets), each (B, T).
        optimizer: made with the model's parameters.
        device: where the model is.
        checkpoint_path: the file that `save` writes; by default none.

    Attributes:
        progress: a `Progress`.

    Raises:
        ValueError: for a loader without batches.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader,
        val_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        device: torch.device | str,
        checkpoint_path: str | Path | None = None,
    ):
        _require_batches(train_loader, "train_loader")
        _require_batches(val_loader, "val_loader")
        self.model, self.optimizer, self.device = model, optimizer, device
        self.train_loader, self.val_loader = train_loader, val_loader
        self.checkpoint_path = checkpoint_path
        state = random_state(train_loader)
        self.progress = Progress(len(train_loader), epoch_start=state, now=state)

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Improve the model on one batch, wholly or, if interrupted, not at all."""
        self.optimizer.zero_grad()
        calc_loss_batch(inputs, targets, self.model, self.device).backward()
        progress = self.progress
        with _hold_interrupts():
            self.optimizer.step()
            progress.step += 1
            progress.tokens_seen += inputs.numel()
            progress.now = random_state(self.train_loader)

    def unused_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the present epoch that no step has used yet."""
        progress, loader = self.progress, self.train_loader
        used = progress.step - progress.epoch * progress.steps_per_epoch
        if used == 0:
            progress.epoch_start = random_state(loader)
        else:
            set_random_state(progress.epoch_start, loader)
        for number, batch in enumerate(loader, start=1):
            if number > used:
                yield batch
            elif number == used:
                set_random_state(progress.now, loader)
        with _hold_interrupts():
            progress.epoch += 1
            progress.now = random_state(loader)

    def look(self, eval_iter: int | None) -> None:
        """Note and print the losses of `eval_iter` batches; once per step at most."""
        progress = self.progress
        if progress.history and progress.history[-1][0] == progress.step:
            return
        losses = evaluate_model(
            self.model, self.train_loader, self.val_loader, self.device, eval_iter
        )
        progress.history.append((progress.step, progress.tokens_seen, *losses))
        tqdm.write(
            f"step {progress.step:5d}, {progress.tokens_seen:9,} tokens: "
            f"training loss {losses[0]:6.3f}, validation loss {losses[1]:6.3f}"
        )

    def curves(self) -> tuple[list[float], list[float], list[int]]:
        """Training losses, validation losses and tokens seen, one entry per look."""
        looks = self.progress.history
        return [x[2] for x in looks], [x[3] for x in looks], [x[1] for x in looks]

    def save(self) -> None:
        """Write a checkpoint to `checkpoint_path`, if there is one."""
        if self.checkpoint_path is not None:
            save_checkpoint(
                self.checkpoint_path, self.model, self.optimizer, self.progress
            )

    def train(
        self,
        num_epochs: int,
        eval_freq: int,
        eval_iter: int | None,
        sample: Callable[[], None] = lambda: None,
    ) -> None:
        """Train until `num_epochs` epochs are complete in all, or until Ctrl-C.

        Look at `eval_iter` batches every `eval_freq` steps and at the end; after each
        epoch call `sample`, then `save`.
        """
        for name, count in (("num_epochs", num_epochs), ("eval_freq", eval_freq)):
            if count < 1:
                raise ValueError(f"{name} must be 1 or more, not {count}")
        progress = self.progress
        total = num_epochs * progress.steps_per_epoch
        self.model.train()
        bar = tqdm(total=total, initial=progress.step, unit="step", leave=False)
        try:
            with bar:
                for _ in range(progress.epoch, num_epochs):
                    for inputs, targets in self.unused_batches():
                        if progress.step % eval_freq == 0:
                            self.look(eval_iter)
                        self.step(inputs, targets)
                        bar.update()
                    sample()
                    self.save()
                self.look(eval_iter)
        except KeyboardInterrupt:
            self.save()
            tqdm.write(f"Interrupted after step {progress.step} of {total}.")

    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint, whose run had the same loader.

        Raises:
            FileNotFoundError, ValueError: as `load_checkpoint`, and if the checkpoint
                is not of a run, or of one with another number of batches.
        """
        saved = _read_checkpoint(path)[0].get("progress")
        if saved is None:
            raise ValueError(f"{path} holds no run to resume; use load_checkpoint")
        there, here = saved["steps_per_epoch"], self.progress.steps_per_epoch
        if there != here:
            raise ValueError(
                f"{path} is of a run with {there} batches per epoch, but train_loader "
                f"has {here}; use the same text, batch_size, max_length and stride"
            )
        self.progress = load_checkpoint(path, self.model, self.optimizer)
        set_random_state(self.progress.now, self.train_loader)


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """A block that Ctrl-C cannot break into: it takes effect afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python interrupts the main thread only
        return
    received = []
    usual = signal.signal(signal.SIGINT, lambda *details: received.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if received:
        signal.raise_signal(signal.SIGINT)


def generate_and_print_sample(
    model: GPTModel, tokenizer, device: torch.device | str, start_context: str
) -> None:
    """Print `start_context` and the 50 tokens that the model finds likeliest after it.

    Source: Build a Large Language Model (From Scratch), section 5.2.
    """
    prompt = text_to_token_ids(start_context, tokenizer).to(device)
    with evaluating(model):
        ids = generate_text_simple(
            model, prompt, 50, model.cfg["context_length"], use_cache=True
        )
    tqdm.write("    " + token_ids_to_text(ids, tokenizer).replace("\n", " "))


def train_model_simple(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int | None,
    start_context: str,
    tokenizer,
    *,
    checkpoint_path: str | Path | None = None,
    resume_from: str | Path | None = None,
) -> tuple[list[float], list[float], list[int]]:
    """Train a model; print losses and samples meanwhile. Ctrl-C ends it without loss.

    Look every `eval_freq` steps, at `eval_iter` batches (None: all). After each epoch
    print how the model continues `start_context`, and save to `checkpoint_path`. With
    `resume_from`, a checkpoint, all goes on as if it had never stopped: `num_epochs`
    counts what was done before.

    Returns: training losses, validation losses and tokens seen, one entry per look.
    Raises: ValueError for a loader without batches, a count below 1, a checkpoint that
        is damaged or of another run; FileNotFoundError if there is none.
    Source: Build a Large Language Model (From Scratch), section 5.2.
    """
    run = TrainingRun(
        model, train_loader, val_loader, optimizer, device, checkpoint_path
    )
    if resume_from is not None:
        run.resume(resume_from)
    start = (model, tokenizer, device, start_context)
    run.train(
        num_epochs, eval_freq, eval_iter, lambda: generate_and_print_sample(*start)
    )
    return run.curves()


def plot_losses(
    epochs_seen: Iterable[float],
    tokens_seen: Iterable[int],
    train_losses: Iterable[float],
    val_losses: Iterable[float],
) -> Axes:
    """Draw both losses over epochs (below) and over tokens seen (above).

    Args:
        epochs_seen, tokens_seen: where the looks took place.
        train_losses, val_losses: what they found, in nats per token.

    Returns:
        The axes, for further drawing; call `plt.show()` in the end.

    Source: Build a Large Language Model (From Scratch), section 5.2.
    """
    _, ax = plt.subplots()
    ax.plot(epochs_seen, train_losses, label="training")
    ax.plot(epochs_seen, val_losses, linestyle="--", label="validation")
    ax.set(xlabel="epochs", ylabel="loss (nats per token)", ylim=(0, None))
    ax.legend(loc="lower left")
    above = ax.twiny()
    above.plot(tokens_seen, train_losses, alpha=0)  # only sets the scale
    above.set(xlabel="tokens seen")
    above.grid(False)
    return ax


def longest_verbatim_run(ids: Iterable[int], source_ids: Iterable[int]) -> list[int]:
    """The longest run of consecutive tokens of `ids` that also stands in `source_ids`.

    Args:
        ids, source_ids: two texts in tokens; lists or tensors (n,).
    """
    ids, source_ids = [int(i) for i in ids], [int(i) for i in source_ids]
    matcher = SequenceMatcher(None, ids, source_ids, autojunk=False)
    match = matcher.find_longest_match()
    return ids[match.a : match.a + match.size]


def _check_sampling(
    temperature: float, top_k: int | None, top_p: float | None, vocab_size: int
) -> None:
    """Raise ValueError for the first setting that describes no distribution."""
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature must be 0 (greedy) or a positive number, not {temperature}"
        )
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(
            f"top_k must be between 1 and the vocabulary's {vocab_size}, not {top_k}; "
            "None keeps all tokens"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f"top_p must be above 0 and at most 1, not {top_p}; None keeps all tokens"
        )


def next_token_probabilities(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """The distribution from which the next token is drawn.

    Args:
        logits: the model's scores, (B, V).
        temperature: divides them; 0 leaves only the likeliest token.
        top_k: then keep the k likeliest tokens (of equal ones any).
        top_p: then keep the likeliest tokens that together reach this probability.

    Returns:
        Probabilities (B, V); every row sums to 1.

    Raises:
        ValueError: for a negative temperature, a `top_k` that is not in 1 to V, or a
            `top_p` outside (0, 1].

    Source: Build a Large Language Model (From Scratch), section 5.3; for top_p Holtzman
    et al. (2020), The Curious Case of Neural Text Degeneration, section 3.1.
    """
    _check_sampling(temperature, top_k, top_p, logits.shape[-1])
    if temperature == 0:
        temperature, top_k = 1.0, 1
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # eq. 5.6
    if top_k is not None:
        highest, ids = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(-1, ids, highest)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, ids = probs.sort(descending=True)
        likelier = ranked.cumsum(-1) - ranked  # what the tokens before it add up to
        kept = ranked.masked_fill(likelier >= top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, ids, kept)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def _draw(
    probs: torch.Tensor, temperature: float, generator: torch.Generator | None
) -> torch.Tensor:
    """One id per row of probabilities (B, V): (B, 1)."""
    if temperature == 0:
        return probs.argmax(-1, keepdim=True)
    return torch.multinomial(probs, 1, generator=generator)


def generate(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> torch.Tensor:
    """Continue texts by drawing token after token, without dropout.

    The first four arguments and `use_cache` are those of `generate_text_simple`,
    `temperature`, `top_k` and `top_p` those of `next_token_probabilities`. A text that
    has drawn `eos_id` gets only that from then on, and when all have, it is the end.
    Chance comes from `generator`, by default torch's global one.

    Returns: prompts and continuations, (B, T + n) with n at most `max_new_tokens`.
    Raises: TypeError, ValueError for a prompt or a setting that makes no sense.
    Source: Build a Large Language Model (From Scratch), section 5.3.
    """
    check_prompt(idx, max_new_tokens)
    _check_sampling(temperature, top_k, top_p, model.cfg["vocab_size"])
    cache = model.new_cache(context_size) if use_cache else None
    done = torch.zeros_like(idx[:, :1], dtype=torch.bool)  # (B, 1)
    with evaluating(model):
        for _ in range(max_new_tokens):
            logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
            probs = next_token_probabilities(logits, temperature, top_k, top_p)
            new_ids = _draw(probs, temperature, generator)  # (B, 1)
            if eos_id is not None:
                new_ids = new_ids.masked_fill(done, eos_id)
                done |= new_ids == eos_id
            idx = torch.cat([idx, new_ids], dim=1)
            if eos_id is not None and done.all():
                break
    return idx


class TensorFile(Mapping):
    """A safetensors file as a mapping from names to tensors, read one at a time.

    Args:
        path: the file.

    Attributes:
        metadata: the strings stored beside the tensors, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short, or no safetensors file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}")
        try:
            with safe_open(self.path, framework="pt") as file:
                self.metadata, self._names = file.metadata() or {}, set(file.keys())
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is no complete safetensors file ({error}): it was cut "
                "short or overwritten; delete it, and get or save it again"
            ) from None

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def pieces(
        self, name: str, numbers: int = 2**22
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some rows of a tensor after the other: where they belong, and their values.

        The file is mapped into memory anew for each piece, since what has been read
        of it stays in memory as long as it is mapped.

        Args:
            name: the tensor, of one dimension at least.
            numbers: how many numbers a piece has at most, if a row has no more.
        """
        shape = self[name].shape
        n_rows = max(1, numbers // max(1, math.prod(shape[1:])))
        for start in range(0, shape[0], n_rows):
            rows = slice(start, start + n_rows)
            with safe_open(self.path, framework="pt") as file:
                yield rows, file.get_slice(name)[rows]


def _named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers that make up a model; tied ones once."""
    stored = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in stored}


def _require_same_shapes(
    found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], where: str
) -> None:
    """Raise ValueError naming tensors that are missing, unknown or misshapen."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    for name, shape in wanted.items():
        if name in found and tuple(found[name]) != tuple(shape):
            problems.append(
                f"{name} has the shape {tuple(found[name])} instead of {tuple(shape)}"
            )
    if len(problems) > 4:
        problems[4:] = [f"and {len(problems) - 4} more"]
    if problems:
        raise ValueError(f"{where} does not fit the model: {'; '.join(problems)}")


def _parameter_names(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> list[list[str]]:
    """The names of the parameters in each of the optimiser's groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    if any(parameter not in names for group in groups for parameter in group):
        raise ValueError(
            "the optimizer holds parameters that are not the model's; make it with "
            "model.parameters()"
        )
    return [[names[parameter] for parameter in group] for group in groups]


def _pack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict, dict[str, torch.Tensor]]:
    """An optimiser's settings, and its tensors by name."""
    kind, groups, tensors = type(optimizer).__name__, [], {}
    names = _parameter_names(optimizer, model)
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        groups.append({**group, "params": group_names})
        for parameter, name in zip(group["params"], group_names, strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor):
                    raise TypeError(f"{kind} keeps {key!r} as {value!r}, not a tensor")
                tensors[f"optimizer.{name}:{key}"] = value
    return {"kind": kind, "groups": groups}, tensors


def _pack_progress(progress: Progress) -> tuple[dict, dict[str, torch.Tensor]]:
    """A `Progress` as numbers, and its random states as tensors by name."""
    numbers = {
        key: getattr(progress, key)
        for key in ("steps_per_epoch", "epoch", "step", "tokens_seen", "history")
    }
    tensors = {
        f"random.{when}.{name}": tensor.clone()
        for when in ("epoch_start", "now")
        for name, tensor in getattr(progress, when).items()
    }
    return numbers, tensors


def _sha256(record: dict, tensors: Mapping[str, torch.Tensor]) -> str:
    """A fingerprint of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model, and what it takes to train it on, into one safetensors file.

    The file appears only when it is complete: if writing fails, an older one stays.

    Args:
        path: the file; missing folders are made.
        model: its `cfg`, if it has one, is stored with it.
        optimizer: made with this model's parameters.
        progress: of a `TrainingRun`.

    Raises:
        OSError: if the file cannot be written.
    """
    path = Path(path)
    record = {"config": getattr(model, "cfg", None)}
    tensors = {f"model.{name}": t for name, t in _named_tensors(model).items()}
    if optimizer is not None:
        record["optimizer"], parts = _pack_optimizer(optimizer, model)
        tensors |= parts
    if progress is not None:
        record["progress"], parts = _pack_progress(progress)
        tensors |= parts
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    record["sha256"] = _sha256(record, tensors)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"checkpoint": json.dumps(record)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None


def _read_checkpoint(path: str | Path) -> tuple[dict, TensorFile]:
    """The record and the tensors of an intact checkpoint."""
    file = TensorFile(path)
    if "checkpoint" not in file.metadata:
        raise ValueError(
            f"{path} was not written by save_checkpoint; for a folder in GPT-2's "
            "format use read_gpt2_folder"
        )
    record = json.loads(file.metadata["checkpoint"])
    sha256 = record.pop("sha256")
    if _sha256(record, file) != sha256:
        raise ValueError(
            f"{path} is damaged: its contents no longer have the sha256 that they were "
            "saved with; use an older checkpoint"
        )
    return record, file


def _require_same_config(
    saved: dict | None, cfg: dict | None, path: str | Path, ignore: str = ""
) -> None:
    """Raise ValueError naming each key in which two configs differ."""
    if saved is None or cfg is None:
        return
    saved, cfg = {"tie_weights": False, **saved}, {"tie_weights": False, **cfg}
    differences = [
        f"{key} is {saved.get(key)} there and {cfg.get(key)} here"
        for key in sorted({*saved, *cfg})
        if key != ignore and saved.get(key) != cfg.get(key)
    ]
    if differences:
        raise ValueError(f"{path} is of another config: {'; '.join(differences)}")


def _unpack_optimizer(
    record: dict, file: TensorFile, optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict:
    """The saved state as `optimizer.load_state_dict` wants it, or a ValueError."""
    saved, kind = record.get("optimizer"), type(optimizer).__name__
    if saved is None:
        raise ValueError(f"{file.path} holds a model only, no state of an optimizer")
    if saved["kind"] != kind:
        raise ValueError(
            f"{file.path} holds the state of {saved['kind']}, which {kind} cannot use"
        )
    names = _parameter_names(optimizer, model)
    if [group["params"] for group in saved["groups"]] != names:
        raise ValueError(
            f"{file.path}: the optimizer's parameters were in other groups, or in "
            "another order; make it as it was made when the run began"
        )
    number = {name: i for i, name in enumerate(name for g in names for name in g)}
    state = {}
    for entry in file:
        if entry.startswith("optimizer."):
            name, _, key = entry.removeprefix("optimizer.").rpartition(":")
            state.setdefault(number[name], {})[key] = file[entry].clone()
    groups = []
    for group in saved["groups"]:  # JSON has lists where Python had tuples
        settings = {k: tuple(v) if type(v) is list else v for k, v in group.items()}
        groups.append({**settings, "params": [number[n] for n in group["params"]]})
    return {"state": state, "param_groups": groups}


def _unpack_progress(record: dict, file: TensorFile) -> Progress | None:
    """The saved `Progress`, if there is one."""
    if "progress" not in record:
        return None
    states = {"epoch_start": {}, "now": {}}
    for entry in file:
        if entry.startswith("random."):
            _, when, name = entry.split(".")
            states[when][name] = file[entry].clone()
    numbers = dict(record["progress"])
    numbers["history"] = [tuple(look) for look in numbers["history"]]
    return Progress(**numbers, **states)


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
) -> Progress | None:
    """Put back what `save_checkpoint` saved; if it does not fit, change nothing.

    Args:
        path: the file.
        model: of the same config; if no `optimizer` is given, `drop_rate` may differ.
        optimizer: made as when the run began; gets the saved settings, too.

    Returns:
        The `Progress` saved with the model, if there was one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another model or optimizer.
    """
    record, file = _read_checkpoint(path)
    ignore = "drop_rate" if optimizer is None else ""
    _require_same_config(record["config"], getattr(model, "cfg", None), path, ignore)
    wanted = {f"model.{name}": t for name, t in _named_tensors(model).items()}
    found = {name: file[name].shape for name in file if name.startswith("model.")}
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    _require_same_shapes(found, shapes, str(path))
    if optimizer is not None:
        optimizer.load_state_dict(_unpack_optimizer(record, file, optimizer, model))
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(file[name])
    return _unpack_progress(record, file)


_GPT2_BLOCK = {
    "ln_1.weight": ["norm1.scale"],
    "ln_1.bias": ["norm1.shift"],
    "attn.c_attn.weight": [f"att.W_{x}.weight" for x in ("query", "key", "value")],
    "attn.c_attn.bias": [f"att.W_{x}.bias" for x in ("query", "key", "value")],
    "attn.c_proj.weight": ["att.out_proj.weight"],
    "attn.c_proj.bias": ["att.out_proj.bias"],
    "ln_2.weight": ["norm2.scale"],
    "ln_2.bias": ["norm2.shift"],
    "mlp.c_fc.weight": ["ff.layers.0.weight"],
    "mlp.c_fc.bias": ["ff.layers.0.bias"],
    "mlp.c_proj.weight": ["ff.layers.2.weight"],
    "mlp.c_proj.bias": ["ff.layers.2.bias"],
}


_GPT2_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def _gpt2_layout(n_layers: int) -> dict[str, list[str]]:
    """GPT-2's names of its tensors, each with the names of ours that it is made of."""
    layout = {
        "wte.weight": ["tok_emb.weight"],
        "wpe.weight": ["pos_emb.weight"],
        "ln_f.weight": ["final_norm.scale"],
        "ln_f.bias": ["final_norm.shift"],
        "lm_head.weight": ["out_head.weight"],
    }
    for i in range(n_layers):
        for theirs, ours in _GPT2_BLOCK.items():
            layout[f"h.{i}.{theirs}"] = [f"trf_blocks.{i}.{name}" for name in ours]
    return layout


def _as_gpt2(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """Our tensors, joined and transposed into GPT-2's."""
    joined = torch.cat(parts)
    return joined.T if name.endswith(_GPT2_TRANSPOSED) else joined


def _gpt2_shape(name: str, shapes: list[torch.Size]) -> tuple[int, ...]:
    """The shape that `_as_gpt2` gives to tensors of these shapes."""
    joined = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return joined[::-1] if name.endswith(_GPT2_TRANSPOSED) else joined


def save_gpt2_folder(
    gpt: GPTModel, folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Write a model as Hugging Face stores GPT-2, for `transformers` and others.

    Args:
        gpt: any `GPTModel`.
        folder: gets `config.json` and `model.safetensors`; made if it is missing.
        dtype: of the stored numbers, such as `torch.bfloat16`; by default the model's.

    Raises:
        ValueError: if `dtype` is not one of floating-point numbers.
    """
    folder, C = Path(folder), gpt.cfg["emb_dim"]
    dtype = dtype or gpt.tok_emb.weight.dtype
    if not dtype.is_floating_point:
        raise ValueError(f"weights cannot be stored as {dtype}; try torch.bfloat16")
    own = {name: p.detach() for name, p in gpt.state_dict().items()}
    no_bias = gpt.final_norm.shift.detach().new_zeros(C)
    layout = _gpt2_layout(gpt.cfg["n_layers"])
    if gpt.cfg.get("tie_weights", False):
        del layout["lm_head.weight"]
    tensors = {}
    for theirs, ours in layout.items():
        tensor = _as_gpt2(theirs, [own.get(name, no_bias) for name in ours])
        prefix = "" if theirs == "lm_head.weight" else "transformer."
        tensors[prefix + theirs] = tensor.to("cpu", dtype).contiguous()
    with replacing(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    with replacing(folder / "config.json") as temporary:
        text = json.dumps(_gpt2_settings(gpt, dtype), indent=2) + "\n"
        temporary.write_text(text, encoding="utf-8")


_GPT2_KEYS = {  # our setting -> GPT-2's
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}


_GPT2_FIXED = {  # what every GPT-2 has in common, and GPTModel computes
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def _gpt2_settings(gpt: GPTModel, dtype: torch.dtype) -> dict:
    """The contents of `config.json`."""
    drops = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    last = gpt.cfg["vocab_size"] - 1  # where GPT-2 has <|endoftext|>
    return {
        "architectures": ["GPT2LMHeadModel"],
        **_GPT2_FIXED,
        **{theirs: gpt.cfg[ours] for ours, theirs in _GPT2_KEYS.items()},
        "n_ctx": gpt.cfg["context_length"],  # n_positions by its older name
        **dict.fromkeys(drops, gpt.cfg["drop_rate"]),
        "tie_word_embeddings": gpt.cfg.get("tie_weights", False),
        "bos_token_id": last,
        "eos_token_id": last,
        "dtype": str(dtype).removeprefix("torch."),
    }


def read_gpt2_folder(folder: str | Path) -> tuple[GPTConfig, TensorFile]:
    """Open a model folder as Hugging Face has it for GPT-2.

    Args:
        folder: holds `config.json` and `model.safetensors`.

    Returns:
        Settings, from which `GPTModel(settings)` builds the right model, and its
        tensors under GPT-2's names, for `load_weights_into_gpt`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or the model is no GPT-2.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; see save_gpt2_folder")
    try:
        published = dict(json.loads(path.read_text(encoding="utf-8")))
        settings = {ours: published[theirs] for ours, theirs in _GPT2_KEYS.items()}
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; that is no GPT-2") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); get or save it again") from None
    for key, value in _GPT2_FIXED.items():
        wanted = (value, 4 * settings["emb_dim"]) if key == "n_inner" else (value,)
        if published.get(key, value) not in wanted:
            raise ValueError(
                f"{path}: {key} is {published[key]!r}, but GPTModel computes {value!r}"
            )
    settings["drop_rate"] = published.get("resid_pdrop", 0.1)
    settings["qkv_bias"] = True
    settings["tie_weights"] = published.get("tie_word_embeddings", True)
    return settings, TensorFile(path.with_name("model.safetensors"))


def _pieces(params: Mapping, name: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """A tensor as `TensorFile.pieces`; one that is in memory already is one piece."""
    if isinstance(params, TensorFile):
        yield from params.pieces(name)
    else:
        yield slice(None), torch.as_tensor(params[name])


def _gpt2_sources(gpt: GPTModel, params: Mapping) -> dict[str, str]:
    """GPT-2's plain names of the tensors in `params`, each with its name there."""
    masks = (".attn.bias", ".attn.masked_bias")
    sources = {
        name.removeprefix("transformer."): name
        for name in params
        if not name.endswith(masks)
    }
    tied = gpt.out_head.weight is gpt.tok_emb.weight
    if not tied and "wte.weight" in sources:
        sources.setdefault("lm_head.weight", sources["wte.weight"])
    elif tied and {"lm_head.weight", "wte.weight"} <= sources.keys():
        pair = sources.pop("lm_head.weight"), sources["wte.weight"]
        pieces = zip(*(_pieces(params, name) for name in pair), strict=False)
        if not all(
            torch.equal(head, embedding) for (_, head), (_, embedding) in pieces
        ):
            raise ValueError(
                "these weights have an output head of their own; build the model with "
                "tie_weights False"
            )
    return sources


@torch.no_grad()
def load_weights_into_gpt(gpt: GPTModel, params: Mapping[str, torch.Tensor]) -> None:
    """Copy GPT-2's weights into a model, piece by piece; if they do not fit, none.

    Args:
        gpt: built from the settings that came with the weights, so with `qkv_bias`.
        params: tensors by GPT-2's names, with or without `transformer.` before them.

    Raises:
        ValueError: if tensors are missing, unknown or of another shape.

    Source: Build a Large Language Model (From Scratch), section 5.5; the layout is that
    of Radford et al. (2019), Language Models are Unsupervised Multitask Learners.
    """
    if not gpt.cfg["qkv_bias"]:
        raise ValueError("GPT-2 has biases in attention: set qkv_bias to True")
    own = dict(gpt.named_parameters())
    layout = _gpt2_layout(gpt.cfg["n_layers"])
    if gpt.out_head.weight is gpt.tok_emb.weight:
        del layout["lm_head.weight"]
    sources = _gpt2_sources(gpt, params)
    found = {name: params[source].shape for name, source in sources.items()}
    wanted = {
        theirs: _gpt2_shape(theirs, [own[name].shape for name in ours])
        for theirs, ours in layout.items()
    }
    _require_same_shapes(found, wanted, "the set of weights")
    for theirs, ours in layout.items():
        for place, piece in _pieces(params, sources[theirs]):
            if theirs.endswith(_GPT2_TRANSPOSED):
                place, piece = (slice(None), place), piece.T
            for name, part in zip(ours, piece.chunk(len(ours)), strict=True):
                own[name][place].copy_(part)


def build_pretrained(
    settings: GPTConfig,
    params: Mapping[str, torch.Tensor],
    device: torch.device | str = "cpu",
) -> GPTModel:
    """A model with the given weights, in evaluation mode.

    At no time does this take much more memory than the model.

    Args:
        settings, params: from `read_gpt2_folder` or `download_and_load_gpt2`.
        device: where the model shall be.

    Raises:
        ValueError: if the weights do not fit the settings.
    """
    with torch.device(device):
        gpt = GPTModel(settings)
    load_weights_into_gpt(gpt, params)
    return gpt.eval()


_GPT2_FILES = ("config.json", "model.safetensors")


def load_base(device: torch.device | str = "cpu") -> GPTModel:
    """The course's own pretrained model, in float32 and in evaluation mode.

    Args:
        device: where the model shall be.

    Raises:
        shared.data.DataUnavailable: a FileNotFoundError, if its files are missing or
            damaged.
    """
    config, _ = (data_path(f"base/{name}") for name in _GPT2_FILES)
    return build_pretrained(*read_gpt2_folder(config.parent), device=device)


GPT2_REPOSITORIES = {
    "124M": "openai-community/gpt2",
    "355M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}


def _fetch_gpt2(repository: str, folder: Path) -> Path:
    """A folder that holds the repository's two files, fetched if need be."""
    if all((folder / name).is_file() for name in _GPT2_FILES):
        return folder
    cached = [
        huggingface_hub.try_to_load_from_cache(repository, name) for name in _GPT2_FILES
    ]
    if all(isinstance(path, str) for path in cached):
        return Path(cached[0]).parent
    try:
        for name in _GPT2_FILES:
            huggingface_hub.hf_hub_download(repository, name, local_dir=folder)
    except Exception as error:  # no network, no space, no such repository, ...
        raise DataUnavailable(
            f"{repository} could not be fetched. Tried:\n"
            f"  folder: {folder}: not there\n"
            "  Hugging Face's cache: not there\n"
            f"  https://huggingface.co/{repository}: {type(error).__name__}: {error}\n"
            "Remedy: connect to the network and try again (it goes on where it "
            f"stopped), or copy {' and '.join(_GPT2_FILES)} into {folder}."
        ) from error
    return folder


def download_and_load_gpt2(
    model_size: str, models_dir: str | Path
) -> tuple[GPTConfig, TensorFile]:
    """Fetch GPT-2's published weights, unless they are there, and open them.

    Args:
        model_size: "124M", "355M", "774M" or "1558M"; 0.5, 1.5, 3.2 or 6.4 GB.
        models_dir: the files are kept in its subfolder `model_size`.

    Returns:
        Settings and tensors, as `read_gpt2_folder`.

    Raises:
        ValueError: for another size, or files that are damaged or not of this size.
        shared.data.DataUnavailable: a FileNotFoundError that says what was tried.

    Source: Build a Large Language Model (From Scratch), section 5.5.
    """
    if model_size not in GPT2_REPOSITORIES:
        sizes = ", ".join(GPT2_REPOSITORIES)
        raise ValueError(f"model_size must be one of {sizes}, not {model_size!r}")
    folder = Path(models_dir) / model_size
    settings, params = read_gpt2_folder(
        _fetch_gpt2(GPT2_REPOSITORIES[model_size], folder)
    )
    _require_same_config(settings, GPT2_CONFIGS[model_size], params.path, "drop_rate")
    return settings, params
