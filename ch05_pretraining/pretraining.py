"""Chapter 5: Pretraining.

You will train chapter 4's GPT on a short story until it knows it by heart, and then
train a second one, your *storyteller*, which learns to keep track of who is who.

Exported from pretraining.ipynb and pretraining_deeper.ipynb, which explain every line:
change it there, then run `python -m tools.export`.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from itertools import count, islice
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ch05_pretraining.guards import (
    check_batches,
    check_counted,
    check_fractions,
    check_one_text,
    check_sampling,
    check_training,
)
from ch05_pretraining.interrupts import hold_interrupts
from ch05_pretraining.loaders import has_own_order, rows_of
from ch05_pretraining.muon import Muon
from ch05_pretraining.weights import save_checkpoint
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel, check_prompt, generate_text_simple, next_token_logits
from shared.precision import mixed_precision
from shared.terminal import say

__all__ = [
    "text_to_token_ids",
    "token_ids_to_text",
    "calc_loss_batch",
    "calc_loss_loader",
    "evaluate_model",
    "generate_and_print_sample",
    "next_token_probabilities",
    "generate",
    "tale_batches",
    "STORYTELLER",
    "new_storyteller",
    "learn_to_tell",
    "evaluating",
    "in_order",
    "train_model_simple",
    "plot_losses",
    "train_val_test_split",
    "longest_verbatim_run",
]


def text_to_token_ids(text: str, tokenizer) -> torch.Tensor:
    """Encode a text, in which `<|endoftext|>` is special, as a batch of one: (1, T).

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor([ids], dtype=torch.long)


def token_ids_to_text(token_ids: torch.Tensor, tokenizer) -> str:
    """Decode the ids of one text, (1, T) or (T,).

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    check_one_text(token_ids.shape)
    return tokenizer.decode(token_ids.flatten().tolist())


def calc_loss_batch(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a model's guesses, in nats per token: one number.

    Inputs and targets are ids (B, T), moved to `device`; a target of -100 is not
    counted. The model maps ids to logits (B, T, V).

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    logits = model(input_batch.to(device))  # (B, T, V)
    targets = target_batch.to(device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # eq. 5.2


def calc_loss_loader(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """Mean loss per token over a loader's data, or its first `num_batches` batches.

    The data are read in their order, without dropout, and without a trace.

    Source: Build a Large Language Model (From Scratch), section 5.1.
    """
    check_batches(num_batches, data_loader=data_loader)
    total, count = 0.0, 0
    with evaluating(model):
        for inputs, targets in islice(in_order(data_loader), num_batches):
            tokens = (targets != -100).sum().item()
            if tokens:
                loss = calc_loss_batch(inputs, targets, model, device)
                total += loss.item() * tokens
            count += tokens
    check_counted(count)
    return total / count


def evaluate_model(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    device: torch.device | str,
    eval_iter: int | None,
) -> tuple[float, float]:
    """Training and validation loss, each over `eval_iter` batches (None: all).

    Source: Build a Large Language Model (From Scratch), section 5.2.
    """
    check_batches(eval_iter, train_loader=train_loader, val_loader=val_loader)
    train_loss = calc_loss_loader(train_loader, model, device, eval_iter)
    return train_loss, calc_loss_loader(val_loader, model, device, eval_iter)


def generate_and_print_sample(
    model: GPTModel, tokenizer, device: torch.device | str, start_context: str
) -> None:
    """Print `start_context` and the 50 tokens that the model finds likeliest after it.

    Line ends and runs of spaces are printed as one space.

    Source: Build a Large Language Model (From Scratch), section 5.2.
    """
    prompt = text_to_token_ids(start_context, tokenizer)
    with evaluating(model):
        ids = generate_text_simple(
            model, prompt.to(device), 50, model.cfg["context_length"], use_cache=True
        )
    text = " ".join(token_ids_to_text(ids, tokenizer).split())
    say("    " + text)  # as print does, but it leaves a progress bar alone


def next_token_probabilities(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """The distribution from which the next token is drawn: (B, V) -> (B, V).

    `temperature` divides the logits (0: only the likeliest token is left); then the
    `top_k` likeliest are kept; of these the likeliest that together reach `top_p`.

    Source: Build a Large Language Model (From Scratch), section 5.3; for top_p Holtzman
    et al. (2020), The Curious Case of Neural Text Degeneration, section 3.1.
    """
    check_sampling(temperature, top_k, top_p, logits.shape[-1])
    if temperature == 0:
        temperature, top_k = 1.0, 1
    # Minus the largest logit changes no probability, and nothing can overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # eq. 5.5
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


def generate(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    top_p: float | None = None,
    *,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> torch.Tensor:
    """Continue texts by drawing token after token: ids (B, T) -> (B, T + n).

    It reads `context_size` tokens at most and draws by `next_token_probabilities`. A
    text that has drawn `eos_id` gets only that from then on; when all have, it ends.

    Source: Build a Large Language Model (From Scratch), section 5.3.
    """
    check_prompt(model, idx, max_new_tokens, context_size)
    check_sampling(temperature, top_k, top_p, model.cfg["vocab_size"])
    cache = model.new_cache(context_size) if use_cache else None
    done = torch.zeros_like(idx[:, :1], dtype=torch.bool)  # (B, 1)
    with evaluating(model):
        for _ in range(max_new_tokens):
            logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
            probs = next_token_probabilities(logits, temperature, top_k, top_p)
            if temperature == 0:
                new_ids = probs.argmax(-1, keepdim=True)  # (B, 1)
            else:
                new_ids = torch.multinomial(probs, 1, generator=generator)
            if eos_id is not None:
                new_ids = new_ids.masked_fill(done, eos_id)
                done |= new_ids == eos_id
            idx = torch.cat([idx, new_ids], dim=1)
            if done.all():
                break
    return idx


def tale_batches(
    tell: Callable, tokenizer: BPETokenizer, number: int = 0, batch_size: int = 8
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of new tales without end, from this number on: inputs, targets (B, T).

    `tell(seed)` gives a tale. A row is a tale between two end tokens, with 513 of its
    tokens at most; a target of -100 is not counted.
    """
    end, pool_size = tokenizer.special_tokens["<|endoftext|>"], 16 * batch_size
    for pool in count(number // 16):  # 16 batches at a time, sorted by length
        told = [tell(pool * pool_size + i).text for i in range(pool_size)]
        texts = sorted(([end, *tokenizer.encode(x), end][:513] for x in told), key=len)
        order = random.Random(pool).sample(range(16), 16)
        for n in order[number % 16 if pool == number // 16 else 0 :]:
            rows = [torch.tensor(x) for x in texts[n * batch_size :][:batch_size]]
            rows = pad_sequence(rows, batch_first=True, padding_value=-100)
            yield rows[:, :-1].clamp(min=0), rows[:, 1:]


STORYTELLER = {
    "vocab_size": 1000,
    "context_length": 512,
    "emb_dim": 192,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
    "tie_weights": True,
}


def new_storyteller(larger: float = 4, **changes) -> GPTModel:
    """A storyteller of random numbers, with token vectors so much `larger` than usual.

    `changes` are settings other than those in `STORYTELLER`.
    """
    model = GPTModel({**STORYTELLER, **changes})
    with torch.no_grad():
        model.tok_emb.weight.mul_(larger)
    return model


def learn_to_tell(
    model: GPTModel,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    optimizer: Muon,
    progress: dict,
    look: Callable[[dict], None],
    path: Path,
) -> None:
    """Train up to step `progress["last"]`; look, and save it in `path`, every 50 steps.

    The rate falls to zero over the second half. The stop button saves, too.
    """
    device, last = next(model.parameters()).device, progress["last"]
    try:
        for inputs, targets in batches:
            if progress["step"] % 50 == 0 or progress["step"] == last:
                look(progress)
                save_checkpoint(path, model, optimizer, progress)
            if progress["step"] == last:
                break
            optimizer.slow_down(min(1, 2 - 2 * progress["step"] / last))
            optimizer.zero_grad()
            with mixed_precision(device):
                loss = calc_loss_batch(inputs, targets, model, device)
            loss.backward()
            with hold_interrupts():
                optimizer.step()
                progress["step"] += 1
                progress["tokens"] += (targets != -100).sum().item()
    except KeyboardInterrupt:  # the stop button
        save_checkpoint(path, model, optimizer, progress)
        print(f"stopped after step {progress['step']}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A block without dropout and gradients; then the model is in its old mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def in_order(loader: DataLoader) -> DataLoader:
    """A second loader over the same rows, unshuffled, which draws no random numbers."""
    if has_own_order(loader):
        return loader
    return DataLoader(
        rows_of(loader),
        getattr(loader.batch_sampler, "batch_size", None),
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )


def _look(step: int, tokens_seen: int, *measured) -> tuple[float, float, int]:
    """Both losses and the tokens seen, printed too; `measured` as `evaluate_model`."""
    losses = evaluate_model(*measured)
    say(
        f"step {step:5d}, {tokens_seen:9,} tokens: training loss {losses[0]:6.3f}, "
        f"validation loss {losses[1]:6.3f}"
    )
    return *losses, tokens_seen


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
) -> tuple[list[float], list[float], list[int]]:
    """Train as in the book's section 5.2; a sample follows each epoch. Ctrl-C ends it.

    Returns training and validation losses and tokens seen, every `eval_freq` steps.
    """
    check_training(model, train_loader, val_loader, num_epochs, eval_freq, eval_iter)
    check_prompt(model, text_to_token_ids(start_context, tokenizer), 0, 1)
    measured = model, train_loader, val_loader, device, eval_iter
    looks, step, tokens_seen = [], 0, 0
    model.train()
    bar = tqdm(total=num_epochs * len(train_loader), unit="step", leave=False)
    try:
        for _ in range(num_epochs):
            for inputs, targets in train_loader:
                if step % eval_freq == 0:
                    looks.append(_look(step, tokens_seen, *measured))
                optimizer.zero_grad()
                calc_loss_batch(inputs, targets, model, device).backward()
                with hold_interrupts():
                    optimizer.step()
                    step, tokens_seen = step + 1, tokens_seen + inputs.numel()
                bar.update()
            generate_and_print_sample(model, tokenizer, device, start_context)
        looks.append(_look(step, tokens_seen, *measured))
    except KeyboardInterrupt:
        say(f"Interrupted after step {step} of {bar.total}.")
    bar.close()
    return tuple(map(list, zip(*looks, strict=True))) or ([], [], [])


def plot_losses(
    epochs_seen: Iterable[float],
    tokens_seen: Iterable[int],
    train_losses: Iterable[float],
    val_losses: Iterable[float],
) -> Axes:
    """Draw both losses over epochs (below) and tokens seen (above); return the axes.

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
    ax.xaxis.get_major_locator().set_params(integer=True)  # whole epochs
    return ax


def train_val_test_split(
    text: str, train_fraction: float = 0.8, val_fraction: float = 0.1
) -> tuple[str, str, str]:
    """Cut a text into three consecutive parts, each ending with a line if possible.

    The first two get these shares of its characters, roughly, and the third the rest;
    one may be empty. Joined they give the text again.
    """
    check_fractions(train_fraction, val_fraction)
    ends = []
    for share in (train_fraction, train_fraction + val_fraction):
        end = round(share * len(text))
        if end < len(text):
            end = text.rfind("\n", 0, end) + 1 or end  # after a line, if there is one
        ends.append(end)
    return text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]


def longest_verbatim_run(ids: Iterable[int], source_ids: Iterable[int]) -> list[int]:
    """The longest run of consecutive tokens of `ids` that stands in `source_ids`."""
    ids, source_ids = [int(i) for i in ids], [int(i) for i in source_ids]
    matcher = SequenceMatcher(None, ids, source_ids, autojunk=False)
    match = matcher.find_longest_match()
    return ids[match.a : match.a + match.size]
