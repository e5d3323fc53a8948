"""Chapter 7: Following instructions.

You will teach a model to do what it is asked: tell a story, repeat a sentence, find an
answer in a text, choose a label, and stop. Then you will measure how often it gets that
right, and see where it fails.

Exported from instructions.ipynb and deeper.ipynb, which explain every line: change it
there, then run `python -m tools.export`.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ch07_instructions.guards import (
    asked_by,
    check_entries,
    check_lengths,
    check_parts,
    check_prompt,
    check_room,
    check_some_targets,
    check_split,
    fit_input,
    own_style,
    read_entries,
)
from ch07_instructions.words import words_of
from shared.ch04 import GPTModel, next_token_logits
from shared.ch05 import (
    evaluating,
    load_checkpoint,
    next_token_probabilities,
    read_checkpoint,
)
from shared.ch06 import LengthGroupedSampler, let_rate_fall
from shared.data import get as data_path

__all__ = [
    "load_instructions",
    "format_input",
    "format_prompt",
    "format_answer",
    "InstructionDataset",
    "custom_collate_fn",
    "create_instruction_loader",
    "normalise",
    "exact_match",
    "split_entries",
    "calc_response_loss",
    "evaluate_responses",
    "train_on_responses",
    "finetune",
    "answer_together",
    "generate_answers",
    "load_instructed",
    "token_f1",
]


def load_instructions(name: str | Path = "instructions") -> list[dict[str, str]]:
    """The entries of a data set, without those that ask the same or answer nothing.

    `name` is "instructions", "instructions-book", "alpaca-52k", or the path of a JSON
    file: a list of objects with `instruction`, `output` and perhaps `input`.
    """
    kept: dict[tuple[str, str], dict[str, str]] = {}
    for entry in read_entries(name if isinstance(name, Path) else data_path(name)):
        if entry["output"] != "":  # Alpaca has some without an answer
            entry = {**entry, "input": entry.get("input", "")}
            kept.setdefault(asked_by(entry), entry)
    return list(kept.values())


def format_input(entry: Mapping[str, str]) -> str:
    """The question of an entry in Alpaca's form, without the heading of the answer.

    Source: Taori et al. (2023), Stanford Alpaca; Build a Large Language Model (From
    Scratch), section 7.2.
    """
    check_prompt(entry)
    text = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    return text + (f"\n\n### Input:\n{entry['input']}" if entry.get("input") else "")


def format_prompt(entry: Mapping[str, str], style: str) -> str:
    """All that comes before the answer, in the style "alpaca", "chat" or "plain"."""
    check_prompt(entry, style)
    if style == "alpaca":
        return format_input(entry) + "\n\n### Response:\n"
    asked = " ".join(filter(None, [entry["instruction"], entry.get("input")]))
    return f"User: {asked}\nAssistant:" if style == "chat" else f"{asked}\n\n"


def format_answer(output: str, style: str) -> str:
    """The answer as it follows the prompt: in a chat, after a space."""
    return f" {output}" if style == "chat" else output


class InstructionDataset(Dataset):
    """Entries as tokens: the prompt, then the answer, without an end.

    With `responses_only` an item is a pair (ids, length of the prompt) instead of ids:
    then `custom_collate_fn` leaves the prompt out of the loss.

    Source: Build a Large Language Model (From Scratch), section 7.3.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        tokenizer,
        responses_only: bool = False,
        style: str = "alpaca",
    ):
        check_entries(data)
        self.data, self.responses_only = list(data), responses_only
        self.eot_token = tokenizer.eot_token  # ends a text, and fills a batch
        self.encoded_texts: list[list[int]] = []
        self.prompt_lengths: list[int] = []
        for entry in self.data:
            prompt = tokenizer.encode_ordinary(format_prompt(entry, style))
            answer = format_answer(entry["output"], style)
            self.encoded_texts.append(prompt + tokenizer.encode_ordinary(answer))
            self.prompt_lengths.append(len(prompt))

    def __getitem__(self, index: int) -> list[int] | tuple[list[int], int]:
        ids = self.encoded_texts[index]
        return (ids, self.prompt_lengths[index]) if self.responses_only else ids

    def __len__(self) -> int:
        return len(self.data)


def custom_collate_fn(
    batch: Sequence[Sequence[int] | tuple[Sequence[int], int]],
    pad_token_id: int = 50256,
    ignore_index: int = -100,
    allowed_max_length: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of texts of different lengths: inputs and targets, (B, T) each.

    Texts are ids, or pairs (ids, length of the prompt), whose prompt is no target then.

    Source: Build a Large Language Model (From Scratch), section 7.3.
    """
    pairs = [item if isinstance(item, tuple) else (item, 0) for item in batch]
    lengths = [len(ids) for ids, _ in pairs]
    check_lengths(lengths, allowed_max_length)
    inputs = torch.full((len(pairs), max(lengths)), pad_token_id)  # (B, T)
    targets = torch.full((len(pairs), max(lengths)), ignore_index)  # (B, T)
    for row, (ids, prompt_length) in enumerate(pairs):
        ids = torch.tensor([*ids, pad_token_id])
        inputs[row, : len(ids) - 1] = ids[:-1]
        begin = max(prompt_length - 1, 0)  # the prompt's last token predicts the answer
        targets[row, begin : len(ids) - 1] = ids[begin + 1 :]
    inputs, targets = inputs[:, :allowed_max_length], targets[:, :allowed_max_length]
    check_some_targets(targets != ignore_index)
    return inputs.to(device), targets.to(device)


def create_instruction_loader(
    dataset: InstructionDataset,
    batch_size: int = 8,
    shuffle: bool = True,
    allowed_max_length: int | None = None,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """A loader of (inputs, targets); if it shuffles, batches are grouped by length."""
    collate = partial(
        custom_collate_fn,
        pad_token_id=dataset.eot_token,
        allowed_max_length=allowed_max_length,
    )
    if not shuffle:
        return DataLoader(dataset, batch_size, collate_fn=collate)
    lengths = [len(ids) for ids in dataset.encoded_texts]
    batches = LengthGroupedSampler(lengths, batch_size, generator=generator, pool=20)
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, generator=generator
    )


def normalise(text: str, kind: str = "") -> list[str]:
    """Words, numbers and signs of a text, in small letters, without punctuation.

    Apostrophes inside words stay, since "its" and "it's" differ; `6,000` is `6000`, and
    `-7` is not `7`. Where capitals and punctuation are the task, all stays as it is.
    """
    if kind == "punctuation_and_casing":
        return text.split()
    return words_of(text)


def exact_match(answer: str, reference: str, kind: str = "") -> bool:
    """Whether an answer is the reference, normalised for its kind."""
    return normalise(answer, kind) == normalise(reference, kind)


def split_entries(
    entries: Sequence[Mapping[str, str]],
    fractions: Sequence[float] = (0.75, 0.05, 0.2),
    seed: int = 123,
) -> list[list[Mapping[str, str]]]:
    """Deal entries into parts: each `kind` in its share, each `group` into one part."""
    check_split(entries, fractions)
    groups: dict[object, list] = {}
    for number, entry in enumerate(entries):
        groups.setdefault(entry.get("group", number), []).append(entry)
    chance = random.Random(seed)
    order = chance.sample(list(groups.values()), len(groups))
    order.sort(key=lambda group: group[0].get("kind", ""))  # within a kind, chance
    parts: list[list] = [[] for _ in fractions]
    dealt = 0
    for group in order:
        dealt += len(group)
        behind = [f * dealt - len(p) for f, p in zip(fractions, parts, strict=True)]
        parts[behind.index(max(behind))] += group
    for part in parts:
        chance.shuffle(part)
    return parts


def calc_response_loss(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: GPTModel,
    device: torch.device | str,
) -> torch.Tensor:
    """The same as `calc_loss_batch`; positions whose target is -100 get no logits."""
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    places = target_batch != -100  # (B, T), of which n count
    check_some_targets(places)
    features = model.features(input_batch)  # (B, T, C)
    logits = model.out_head(features[places])  # (n, V)
    return F.cross_entropy(logits, target_batch[places])  # eq. 7.1


def evaluate_responses(
    model: GPTModel, loader: DataLoader, device: torch.device | str
) -> float:
    """Mean loss over all targets that count in a loader's batches."""
    total, n = 0.0, 0
    with evaluating(model):
        for inputs, targets in loader:
            count = (targets != -100).sum().item()
            total += count * calc_response_loss(inputs, targets, model, device).item()
            n += count
    return total / n


def train_on_responses(
    model: GPTModel,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
) -> Iterator[float]:
    """Go through a loader once, a step for each batch; give the loss of each."""
    model.train()
    # not tqdm(loader): some bars begin a loader twice, which changes its order
    with tqdm(total=len(loader), unit="step", leave=False) as bar:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = calc_response_loss(inputs, targets, model, device)
            loss.backward()
            optimizer.step()
            bar.update()
            yield loss.item()


def finetune(
    model: GPTModel,
    train_entries: Sequence[Mapping[str, str]],
    val_entries: Sequence[Mapping[str, str]],
    tokenizer,
    *,
    style: str,
    learning_rate: float,
    batch_size: int = 8,
    num_epochs: int = 2,
    seed: int = 123,
    after_epoch: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Finetune a model in place; from then on it carries the prompt style.

    AdamW trains the parameters that are not frozen. Returns the loss of each step, and
    the validation loss before the first epoch and after each. Ctrl-C ends it early.
    `seed` orders the batches; dropout draws from torch's global generator.
    """
    train = InstructionDataset(train_entries, tokenizer, True, style)
    val = InstructionDataset(val_entries, tokenizer, True, style)
    context, chance = model.cfg["context_length"], torch.Generator().manual_seed(seed)
    check_parts(num_epochs, context, train_entries=train, val_entries=val)
    train_loader = create_instruction_loader(train, batch_size, True, context, chance)
    val_loader = create_instruction_loader(val, batch_size, False, context)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=learning_rate, fused=True)
    let_rate_fall(optimizer, num_epochs * len(train_loader))
    model.cfg = {**model.cfg, "prompt_style": style}
    device = learning[0].device
    losses, val_losses = [], [evaluate_responses(model, val_loader, device)]
    try:
        for _ in range(num_epochs):
            losses.extend(train_on_responses(model, train_loader, optimizer, device))
            val_losses.append(evaluate_responses(model, val_loader, device))
            after_epoch()
    except KeyboardInterrupt:
        tqdm.write(f"Interrupted after {len(losses)} steps.")
    return losses, val_losses


def answer_together(
    model: GPTModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    eos_id: int = 50256,
    *,
    temperature: float = 0.0,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """New tokens after each prompt up to its end, with one cache for all.

    They are the likeliest ones, or drawn if there is a `temperature`.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)  # (B,)
    start, end = min(map(len, prompts)), max(map(len, prompts)) + max_new_tokens
    rows = [ids + [eos_id] * (end - len(ids)) for ids in prompts]
    rows = torch.tensor(rows, device=device)  # (B, T)
    cache = model.new_cache(end)
    ended = torch.zeros_like(lengths, dtype=torch.bool)
    with evaluating(model):
        for t in range(start, end):
            logits = next_token_logits(model, rows[:, :t], end, cache)  # (B, V)
            guess = logits.argmax(-1)  # (B,)
            if temperature > 0:
                probs = torch.ones_like(logits)  # of texts that have ended, any will do
                probs[~ended] = next_token_probabilities(
                    logits[~ended], temperature, top_p=top_p
                )
                guess = torch.multinomial(probs, 1, generator=generator)[:, 0]
            own = t < lengths  # the prompt is not over
            ended |= (t >= lengths + max_new_tokens) | (~own & (guess == eos_id))
            if ended.all():
                break
            rows[:, t] = torch.where(own | ended, rows[:, t], guess)
    new = [row[n:].tolist() for row, n in zip(rows, lengths, strict=True)]
    return [ids[: (ids + [eos_id]).index(eos_id)] for ids in new]


def generate_answers(
    model: GPTModel,
    entries: Sequence[Mapping[str, str]],
    tokenizer,
    max_new_tokens: int = 40,
    style: str | None = None,
    batch_size: int = 128,
    **drawing,
) -> list[str]:
    """What a model answers to each entry, up to its end token.

    It is asked in the style that it carries; one that carries none needs `style`.
    `drawing` are `temperature`, `top_p` and `generator`; without them the answers
    consist of the likeliest tokens.
    """
    style = own_style(model.cfg, style)
    room = check_room(model.cfg["context_length"], max_new_tokens, batch_size)

    def encode(entry: Mapping[str, str]) -> list[int]:
        return tokenizer.encode_ordinary(format_prompt(entry, style))

    prompts = [fit_input(entry, encode, tokenizer, room) for entry in entries]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]  # of nearly the same length
        texts = [prompts[i] for i in batch]
        end = tokenizer.eot_token
        new = answer_together(model, texts, max_new_tokens, end, **drawing)
        for i, ids in zip(batch, new, strict=True):
            answers[i] = tokenizer.decode(ids).strip()
    return answers


def load_instructed(path: str | Path, model: GPTModel) -> GPTModel:
    """Put a finetuned model's weights and prompt style into one of the same shape.

    The file is one of `save_checkpoint(path, finetuned)`; if it does not fit, nothing
    is changed.
    """
    cfg = model.cfg
    style = own_style(read_checkpoint(path)[0]["config"] or {}, None)
    try:
        model.cfg = {**cfg, "prompt_style": style}
        load_checkpoint(path, model)
    except ValueError:
        model.cfg = cfg
        raise
    return model.eval()


def token_f1(answer: str, reference: str, kind: str = "") -> float:
    """How much answer and reference have in common, from 0 to 1.

    Source: Rajpurkar et al. (2016), SQuAD, section 6.1.
    """
    words, wanted = normalise(answer, kind), normalise(reference, kind)
    common = sum((Counter(words) & Counter(wanted)).values())  # m
    if common == 0:
        return 0.0
    P, R = common / len(words), common / len(wanted)
    return 2 * P * R / (P + R)  # eq. 7.2
