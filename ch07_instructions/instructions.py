"""Chapter 7: Following instructions.

Finetune the pretrained model until it answers instructions, see what it learns by that
and what not, and score its answers by rule and by a judge.

Exported from instructions.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ch07_instructions.guards import (
    check_answered,
    check_asked_once,
    check_entry,
    check_lengths,
    check_parts,
    check_room,
    check_shares,
    check_some_targets,
    check_style,
    fit_input,
    own_style,
    parse_entries,
)
from ch07_instructions.judging import OLLAMA_URL, KeptScores, ask_for_score, post_chat
from shared.ch04 import GPTModel
from shared.ch05 import evaluating, generate, load_checkpoint, read_checkpoint
from shared.ch06 import LengthGroupedSampler, let_rate_fall
from shared.data import get as data_path

__all__ = [
    "load_instructions",
    "split_entries",
    "PREAMBLE",
    "format_input",
    "format_prompt",
    "format_answer",
    "InstructionDataset",
    "custom_collate_fn",
    "calc_response_loss",
    "create_instruction_loader",
    "evaluate_responses",
    "with_dropout",
    "train_on_responses",
    "finetune",
    "generate_answers",
    "EXACT_KINDS",
    "normalise",
    "exact_match",
    "token_f1",
    "judge_prompt",
    "query_model",
    "generate_model_scores",
    "load_instructed",
]


def _question(entry: Mapping[str, str]) -> tuple[str, str]:
    """What an entry asks, whatever its spaces and capital letters."""
    parts = entry["instruction"], entry.get("input", "")
    return tuple(" ".join(part.casefold().split()) for part in parts)


def load_instructions(name: str | Path = "instructions") -> list[dict[str, str]]:
    """The entries of a data set, without those that ask the same or answer nothing.

    `name` is "instructions", "instructions-book", "alpaca-52k", or the path of a JSON
    file: a list of objects with `instruction`, `output` and perhaps `input`.

    Raises: ValueError, naming the entry that lacks something; FileNotFoundError.
    """
    path = name if isinstance(name, Path) else data_path(name)
    kept: dict[tuple[str, str], dict[str, str]] = {}
    for entry in parse_entries(path.read_text(encoding="utf-8"), path):
        if entry["output"] != "":  # Alpaca has some without an answer
            entry = {**entry, "input": entry.get("input", "")}
            kept.setdefault(_question(entry), entry)
    return list(kept.values())


def split_entries(
    entries: Sequence[Mapping[str, str]],
    fractions: Sequence[float] = (0.75, 0.05, 0.2),
    seed: int = 123,
) -> list[list[Mapping[str, str]]]:
    """Deal entries into parts: each `kind` in proportion, each `group` into one part.

    Raises: ValueError for fractions that do not sum to 1, or entries that ask the same.
    """
    check_shares(fractions)
    check_asked_once([_question(entry) for entry in entries])
    groups: dict[object, list] = {}
    for number, entry in enumerate(entries):
        groups.setdefault(entry.get("group", number), []).append(entry)
    chance = random.Random(seed)
    order = chance.sample(list(groups.values()), len(groups))
    order.sort(
        key=lambda group: group[0].get("kind", "")
    )  # stable: chance stays inside
    parts: list[list] = [[] for _ in fractions]
    dealt = 0
    for group in order:
        dealt += len(group)
        behind = [f * dealt - len(p) for f, p in zip(fractions, parts, strict=True)]
        parts[behind.index(max(behind))] += group
    for part in parts:
        chance.shuffle(part)
    return parts


PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def format_input(entry: Mapping[str, str]) -> str:
    """The question of an entry in Alpaca's form, without the heading of the answer.

    Source: Taori et al. (2023), Stanford Alpaca; Build a Large Language Model (From
    Scratch), section 7.2.
    """
    check_entry(entry, ["instruction"])
    text = f"{PREAMBLE}\n\n### Instruction:\n{entry['instruction']}"
    if entry.get("input"):
        text += f"\n\n### Input:\n{entry['input']}"
    return text


def format_prompt(entry: Mapping[str, str], style: str) -> str:
    """Everything that stands before the answer.

    `style` is "chat", which says who speaks, or "alpaca", headings.
    """
    check_style(style)
    if style == "alpaca":
        return format_input(entry) + "\n\n### Response:\n"
    check_entry(entry, ["instruction"])
    asked = " ".join(filter(None, [entry["instruction"], entry.get("input")]))
    return f"User: {asked}\nAssistant:"


def format_answer(output: str, style: str) -> str:
    """The answer as it follows the prompt: in a chat, behind a blank."""
    return f" {output}" if style == "chat" else output


class InstructionDataset(Dataset):
    """Entries as tokens: the prompt, then the answer, without an end.

    With `responses_only` an item is a pair (ids, length of the prompt) instead of ids:
    then `custom_collate_fn` leaves the prompt out of the loss.

    Raises: ValueError, naming the first entry that lacks something.
    Source: Build a Large Language Model (From Scratch), section 7.3.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, str]],
        tokenizer,
        responses_only: bool = False,
        style: str = "alpaca",
    ):
        encode = partial(tokenizer.encode, disallowed_special=())
        self.data, self.responses_only = list(data), responses_only
        self.encoded_texts: list[list[int]] = []
        self.prompt_lengths: list[int] = []
        for number, entry in enumerate(self.data, start=1):
            check_entry(entry, ["instruction", "output"], f"entry {number}")
            prompt = encode(format_prompt(entry, style))
            answer = encode(format_answer(entry["output"], style))
            self.encoded_texts.append(prompt + answer)
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

    Raises: ValueError for an empty batch, a length below 1, or if no target counts.
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
        begin = max(prompt_length - 1, 0)  # the prompt's last token foresees the answer
        targets[row, begin : len(ids) - 1] = ids[begin + 1 :]
    inputs, targets = inputs[:, :allowed_max_length], targets[:, :allowed_max_length]
    check_some_targets(targets != ignore_index)
    return inputs.to(device), targets.to(device)


def calc_response_loss(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: GPTModel,
    device: torch.device | str,
) -> torch.Tensor:
    """The same as `calc_loss_batch`, without scoring places whose target is -100.

    Raises: ValueError if every target is -100.
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    places = target_batch != -100  # (B, T), of which n count
    check_some_targets(places)
    features = model.features(input_batch)  # (B, T, C)
    logits = model.out_head(features[places])  # (n, V)
    return F.cross_entropy(logits, target_batch[places])  # eq. 7.1


def create_instruction_loader(
    dataset: InstructionDataset,
    batch_size: int = 8,
    shuffle: bool = True,
    allowed_max_length: int | None = None,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """A loader of (inputs, targets); if it shuffles, batches are grouped by length."""
    collate = partial(custom_collate_fn, allowed_max_length=allowed_max_length)
    if not shuffle:
        return DataLoader(dataset, batch_size, collate_fn=collate)
    lengths = [len(ids) for ids in dataset.encoded_texts]
    batches = LengthGroupedSampler(lengths, batch_size, generator=generator, pool=20)
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, generator=generator
    )


def evaluate_responses(
    model: GPTModel, loader: DataLoader, device: torch.device | str
) -> float:
    """Mean loss over all targets that count in a loader's batches."""
    total, n = 0.0, 0
    with evaluating(model), torch.no_grad():
        for inputs, targets in loader:
            count = (targets != -100).sum().item()
            total += count * calc_response_loss(inputs, targets, model, device).item()
            n += count
    return total / n


def with_dropout(model: GPTModel, drop_rate: float) -> GPTModel:
    """A copy of a model, where it is, that drops a share of the values in training."""
    cfg = {key: model.cfg[key] for key in model.cfg if key != "prompt_style"}
    copy = GPTModel({**cfg, "drop_rate": drop_rate})
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).device)


def train_on_responses(
    model: GPTModel,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    after_epoch: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Train a model on what counts in its batches.

    Returns the training loss of each step, and the validation loss before the first
    epoch and after each. Ctrl-C ends it early, and what was learned stays.
    """
    train_losses, val_losses = [], [evaluate_responses(model, val_loader, device)]
    bar = tqdm(total=num_epochs * len(train_loader), unit="step", leave=False)
    try:
        for _ in range(num_epochs):
            model.train()
            for inputs, targets in train_loader:
                optimizer.zero_grad()
                loss = calc_response_loss(inputs, targets, model, device)
                loss.backward()
                optimizer.step()
                train_losses.append(loss.item())
                bar.update()
            val_losses.append(evaluate_responses(model, val_loader, device))
            after_epoch()
    except KeyboardInterrupt:
        tqdm.write(f"Interrupted after {len(train_losses)} steps of {bar.total}.")
    bar.close()
    return train_losses, val_losses


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
    """Finetune a model on entries, in place; from then on it carries the prompt style.

    Returns the losses of `train_on_responses`. `seed` orders the batches; dropout draws
    from torch's global generator.

    Raises: ValueError for entries that lack something, or a part without entries.
    """
    check_parts(num_epochs, train_entries=train_entries, val_entries=val_entries)
    train, val = (
        InstructionDataset(part, tokenizer, True, style)
        for part in (train_entries, val_entries)
    )
    context, chance = model.cfg["context_length"], torch.Generator().manual_seed(seed)
    train_loader = create_instruction_loader(train, batch_size, True, context, chance)
    val_loader = create_instruction_loader(val, batch_size, False, context)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=learning_rate, fused=True)
    let_rate_fall(optimizer, num_epochs * len(train_loader))
    model.cfg = {**model.cfg, "prompt_style": style}
    device = learning[0].device
    return train_on_responses(
        model, train_loader, val_loader, optimizer, device, num_epochs, after_epoch
    )


def generate_answers(
    model: GPTModel,
    entries: Sequence[Mapping[str, str]],
    tokenizer,
    max_new_tokens: int = 40,
    style: str | None = None,
    batch_size: int = 32,
    eos_id: int = 50256,
) -> list[str]:
    """What a model answers to each entry, greedily, up to its end token.

    It is asked in the style that it carries; one that carries none needs `style`.

    Raises: ValueError for no style or a wrong one, or an instruction that does not fit.
    """
    style, context = own_style(model.cfg, style), model.cfg["context_length"]
    room = check_room(context, max_new_tokens)
    encode = partial(tokenizer.encode, disallowed_special=())
    prompts = [
        fit_input(entry, lambda e: encode(format_prompt(e, style)), tokenizer, room)
        for entry in entries
    ]
    left = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    device, answers = next(model.parameters()).device, [""] * len(prompts)
    while left:
        T = len(prompts[left[0]])
        batch = [i for i in left[:batch_size] if len(prompts[i]) == T]
        left = left[len(batch) :]
        idx = torch.tensor([prompts[i] for i in batch], device=device)  # (B, T)
        rows = generate(model, idx, max_new_tokens, context, eos_id=eos_id)
        for i, row in zip(batch, rows[:, T:].tolist(), strict=True):
            end = row.index(eos_id) if eos_id in row else len(row)
            answers[i] = tokenizer.decode(row[:end]).strip()
    return answers


EXACT_KINDS = frozenset({"punctuation_and_casing"})


def normalise(text: str) -> list[str]:
    """The words and numbers of a text, in small letters and without punctuation.

    Apostrophes inside words stay, since "its" and "it's" differ; `6,000` is `6000`.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold().replace("\u2019", "'"))
    return re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*", text)


def exact_match(answer: str, reference: str, kind: str = "") -> bool:
    """Whether an answer is the reference, normalised unless `kind` is exact."""
    cut = str.split if kind in EXACT_KINDS else normalise
    return cut(answer) == cut(reference)


def token_f1(answer: str, reference: str, kind: str = "") -> float:
    """How much answer and reference have in common, from 0 to 1.

    Source: Rajpurkar et al. (2016), SQuAD, section 6.1.
    """
    cut = str.split if kind in EXACT_KINDS else normalise
    words, wanted = cut(answer), cut(reference)
    common = sum((Counter(words) & Counter(wanted)).values())  # m
    if common == 0:
        return 0.0
    P, R = common / len(words), common / len(wanted)
    return 2 * P * R / (P + R)  # eq. 7.2


def judge_prompt(entry: Mapping[str, str], answer: str) -> str:
    """What a judge is asked: rate this answer from 0 to 100."""
    task = "\n".join(filter(None, [entry["instruction"], entry.get("input")]))
    return (
        "Compare an answer with the reference answer, and rate it.\n\n"
        f"Task: {task}\nReference answer: {entry['output']}\nAnswer: {answer}\n\n"
        "A wrong answer gets 0, one as good as the reference 100. "
        "Reply with one whole number from 0 to 100 and nothing else."
    )


def query_model(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_URL,
    timeout: float = 120.0,
    attempts: int = 3,
) -> str:
    """Ask a model of an Ollama server, always in the same way; return its reply.

    Raises: JudgeUnavailable, which says what is missing and what to do.
    Source: Build a Large Language Model (From Scratch), section 7.8.
    """
    options = {"temperature": 0, "seed": 123, "num_ctx": 2048, "num_predict": 256}
    request = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": False,
        "options": options,
    }
    return post_chat(request, url, timeout, attempts)


def generate_model_scores(
    json_data: Sequence[Mapping[str, str]],
    json_key: str = "model_response",
    model: str = "llama3",
    *,
    url: str = OLLAMA_URL,
    ask: Callable[[str], str] | None = None,
    path: str | Path | None = None,
) -> list[int | None]:
    """What a judge says about each answer: 0 to 100, None if its reply is no score.

    The judge is `model` at `url`, or `ask`, a function from prompt to reply; then
    `model` is its name. An empty answer gets 0 unasked. `path` is the file to keep
    scores in.

    Raises: ValueError for an entry that lacks something; JudgeUnavailable if the judge
        stays away: its `scores` are those so far.
    Source: Build a Large Language Model (From Scratch), section 7.8.
    """
    check_answered(json_data, json_key)
    ask = ask or partial(query_model, model=model, url=url)
    known, scores = KeptScores(path, model), []
    try:
        for entry in tqdm(json_data, unit="answer", leave=False):
            prompt = judge_prompt(entry, entry[json_key])
            if prompt not in known:
                empty = not entry[json_key].strip()
                known[prompt] = 0 if empty else ask_for_score(ask, prompt)
            scores.append(known[prompt])
    except (ConnectionError, TimeoutError) as error:
        raise known.lost(error, scores) from error
    return scores


def load_instructed(path: str | Path, model: GPTModel) -> GPTModel:
    """Put a finetuned model's weights and prompt style into one of the same shape.

    The file is one of `save_checkpoint(path, finetuned)`; if it does not fit, nothing
    is changed.

    Raises: ValueError if it carries no prompt style, or does not fit.
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
