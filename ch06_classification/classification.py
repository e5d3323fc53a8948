"""Chapter 6: Classification.

Turn a pretrained GPT into a spam filter, measure what each choice on the way is worth,
and say when a simpler method would have done.

Exported from classification.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import csv
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from tqdm.auto import tqdm

from shared.ch04 import GPTModel
from shared.ch05 import TensorFile, evaluating, load_checkpoint
from shared.data import get as data_path

__all__ = [
    "LABELS",
    "load_sms",
    "message_key",
    "remove_duplicates",
    "create_balanced_dataset",
    "random_split",
    "encode_message",
    "SpamDataset",
    "LengthGroupedSampler",
    "trim_padding",
    "create_spam_loader",
    "last_real_position",
    "GPTClassifier",
    "calc_classification_loss",
    "evaluate_classifier",
    "calc_accuracy_loader",
    "train_classifier_simple",
    "set_trainable",
    "let_rate_fall",
    "frozen_features",
    "accuracy_interval",
    "confusion_counts",
    "spam_probabilities",
    "Verdict",
    "classify_review",
    "load_classifier",
]


LABELS = ("ham", "spam")  # class 0 and class 1


_QUOTING = {"sms-spam": csv.QUOTE_MINIMAL, "sms-spam-uci": csv.QUOTE_NONE}


def load_sms(name: str = "sms-spam") -> pd.DataFrame:
    """The messages of a collection: columns Label ("ham" or "spam") and Text.

    Args:
        name: "sms-spam", 4,862 messages that come with an installed package, or
            "sms-spam-uci", all 5,574 of the SMS Spam Collection.

    Raises:
        ValueError: for another name.
        shared.data.DataUnavailable: a FileNotFoundError, if no source has the file.

    Source: Almeida, Gomez Hidalgo and Yamakami (2011), Contributions to the Study of
    SMS Spam Filtering: New Collection and Results; Build a Large Language Model (From
    Scratch), section 6.2.
    """
    if name not in _QUOTING:
        raise ValueError(f"name must be {' or '.join(_QUOTING)}, not {name!r}")
    return pd.read_csv(
        data_path(name),
        sep="\t",
        names=["Label", "Text"],
        dtype=str,
        keep_default_na=False,  # a message may well say "NA"
        quoting=_QUOTING[name],
        encoding="utf-8",
    )


def message_key(text: str) -> str:
    """What two versions of a message share: its words, in lower case.

    Digits and punctuation do not count, unless there is nothing else.
    """
    return " ".join(re.findall(r"[^\W\d_]+", text.lower())) or text


def remove_duplicates(df: pd.DataFrame) -> pd.DataFrame:
    """Of the messages with the same words, keep the first only.

    Args:
        df: has the columns Label and Text.

    Returns:
        Some of its rows, with their index.

    Raises:
        ValueError: if the table holds no labelled messages, or the same message with
            two different labels.
    """
    labels = _labels_of(df, "the table")
    keys = df["Text"].map(message_key)
    contradicted = keys[labels.groupby(keys).transform("nunique") > 1]
    if len(contradicted) > 0:
        raise ValueError(
            f"the message {df['Text'][contradicted.index[0]]!r} has both labels; "
            "decide for one"
        )
    return df[~keys.duplicated()]


_CLASSES = {"ham": 0, "spam": 1, "0": 0, "1": 1}


def _labels_of(df: pd.DataFrame, where: str) -> pd.Series:
    """The labels of a table of messages as 0 and 1; ValueError if it is none."""
    missing = [name for name in ("Label", "Text") if name not in df.columns]
    if missing:
        raise ValueError(
            f"{where} has no column {' and no column '.join(missing)}, only "
            f"{', '.join(map(str, df.columns)) or 'none at all'}; name them Label, Text"
        )
    if len(df) == 0:
        raise ValueError(f"{where} holds no messages")
    labels = df["Label"].astype(str).map(_CLASSES)
    if labels.isna().any():
        place = labels.isna().to_numpy().argmax()
        raise ValueError(
            f"{where}: row {place} has the unknown label {df['Label'].iloc[place]!r}; "
            "use ham and spam, or 0 and 1"
        )
    for place, text in enumerate(df["Text"]):
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: the text of row {place} is {text!r}, no string; read the "
                "file with dtype=str, keep_default_na=False"
            )
    return labels.astype(int)


def _require_counts(**counts: int | None) -> None:
    """Raise ValueError for the first count that is below 1; None means no limit."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be 1 or more, not {count}")


def _require_both_classes(labels: pd.Series, where: str) -> None:
    """Raise ValueError if all labels are the same."""
    if labels.nunique() < 2:
        raise ValueError(
            f"all {len(labels)} messages of {where} are {LABELS[labels.iloc[0]]}; "
            "telling two classes apart takes examples of both"
        )


def create_balanced_dataset(df: pd.DataFrame, seed: int = 123) -> pd.DataFrame:
    """As many ham messages as spam: all of the rarer class, a sample of the other.

    Args:
        df: has the columns Label and Text.
        seed: decides which messages are drawn.

    Returns:
        Some of its rows, with their index: first the ham, then the spam.

    Raises:
        ValueError: for a table without these columns, with an unknown label, or with
            one class only.

    Source: Build a Large Language Model (From Scratch), section 6.2.
    """
    labels = _labels_of(df, "the table")
    _require_both_classes(labels, "the table")
    n = labels.value_counts().min()
    parts = [df[labels == label] for label in range(len(LABELS))]
    return pd.concat(
        [p if len(p) == n else p.sample(n, random_state=seed) for p in parts]
    )


def random_split(
    df: pd.DataFrame, train_frac: float, validation_frac: float, seed: int = 123
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Deal the rows of a table at random into training, validation and test part.

    Args:
        df: any table.
        train_frac, validation_frac: their shares, such as 0.7 and 0.1; the test part
            gets the rest.
        seed: decides about the order.

    Returns:
        Three tables, numbered from 0 each, in which every row is once.

    Raises:
        ValueError: for shares that are not between 0 and 1, or leave a part empty.

    Source: Build a Large Language Model (From Scratch), section 6.2.
    """
    shares = f"train_frac {train_frac} and validation_frac {validation_frac}"
    if min(train_frac, validation_frac) <= 0 or train_frac + validation_frac >= 1:
        raise ValueError(
            f"{shares} must be above 0, and their sum below 1, so that something is "
            "left for the test; try 0.7 and 0.1"
        )
    shuffled = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    parts = (
        shuffled[:train_end],
        shuffled[train_end:validation_end],
        shuffled[validation_end:],
    )
    if any(len(part) == 0 for part in parts):
        raise ValueError(
            f"{shares} of {len(df)} rows leave a part empty: "
            f"{', '.join(str(len(part)) for part in parts)}; take more rows"
        )
    return tuple(part.reset_index(drop=True) for part in parts)


def encode_message(
    text: str, tokenizer, max_length: int | None = None, pad_token_id: int = 50256
) -> list[int]:
    """The ids of a message, in which special tokens have no meaning.

    Args:
        text: any string; an empty one becomes `[pad_token_id]`.
        tokenizer: has `encode_ordinary`, like `get_tokenizer()`, or else `encode`.
        max_length: keep at most so many tokens, the first ones.

    Raises:
        TypeError: if `text` is no string.
        ValueError: for a `max_length` below 1.
    """
    if not isinstance(text, str):
        raise TypeError(f"a message must be a string, not {text!r}")
    _require_counts(max_length=max_length)
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return encode(text)[:max_length] or [pad_token_id]


def _read_messages(csv_file: str | Path) -> tuple[pd.DataFrame, pd.Series]:
    """The table in a CSV file, and its labels as 0 and 1."""
    try:
        df = pd.read_csv(csv_file, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{csv_file} is no CSV table: {error}") from None
    labels = _labels_of(df, str(csv_file))
    _require_both_classes(labels, str(csv_file))
    return df, labels


class SpamDataset(Dataset):
    """Messages of a CSV file as ids, all padded to one length, with their classes.

    Item i is a pair: ids (max_length,) and the class, 0 for ham and 1 for spam.

    Args:
        csv_file: has the columns Label (ham and spam, or 0 and 1) and Text.
        tokenizer, pad_token_id: as in `encode_message`.
        max_length: longer messages are cut; by default that of the longest.

    Attributes:
        data: the table.
        lengths: tokens in each message, without padding.
        max_length: the length of all items.

    Raises: FileNotFoundError if there is no such file; ValueError if it is no table of
        messages of both classes, or for a `max_length` below 1.
    Source: Build a Large Language Model (From Scratch), section 6.3.
    """

    def __init__(
        self,
        csv_file: str | Path,
        tokenizer,
        max_length: int | None = None,
        pad_token_id: int = 50256,
    ):
        self.data, labels = _read_messages(csv_file)
        ids = [
            torch.tensor(encode_message(text, tokenizer, max_length, pad_token_id))
            for text in self.data["Text"]
        ]
        self.lengths = [len(row) for row in ids]
        self.max_length = max_length or max(self.lengths)
        self.pad_token_id = pad_token_id
        self._labels = torch.tensor(labels.tolist())
        self._ids = torch.full((len(ids), self.max_length), pad_token_id)
        for row, message in zip(self._ids, ids, strict=True):
            row[: len(message)] = message

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._ids[index], self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


class LengthGroupedSampler(Sampler[list[int]]):
    """Batches of messages of similar length, as lists of indices.

    Args:
        lengths: the length of each message.
        batch_size: messages in a batch; the last one may be smaller.
        shuffle: draw other batches in each epoch. Otherwise all messages are sorted,
            and the batches come in an order that is mixed, but the same each time; so
            the first few are a fair sample.
        generator: makes the draws; by default torch's global one.
        pool: how many batches are drawn at random and then sorted together.

    Raises:
        ValueError: for a `batch_size` or a `pool` below 1.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        pool: int = 8,
    ):
        _require_counts(batch_size=batch_size, pool=pool)
        self.lengths, self.batch_size = list(lengths), batch_size
        self.shuffle, self.generator, self.pool = shuffle, generator, pool

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)  # rounded up

    def __iter__(self) -> Iterator[list[int]]:
        n, size = len(self.lengths), self.batch_size
        if self.shuffle:
            chance, pool_size = self.generator, size * self.pool
            order = torch.randperm(n, generator=chance).tolist()
        else:  # one pool, and the same order of batches each time
            chance, pool_size = torch.Generator().manual_seed(0), max(1, n)
            order = list(range(n))
        batches = []
        for start in range(0, n, pool_size):
            pool = order[start : start + pool_size]
            pool.sort(key=self.lengths.__getitem__)
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        for i in torch.randperm(len(batches), generator=chance).tolist():
            yield batches[i]


def trim_padding(ids: torch.Tensor, pad_token_id: int = 50256) -> torch.Tensor:
    """A batch (B, T) without the columns at its end that are padding in every row.

    One column is always left.
    """
    is_used = (ids != pad_token_id).any(dim=0)  # (T,)
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    return ids[:, : max(1, (is_used * places).max().item())]


def create_spam_loader(
    dataset: SpamDataset,
    batch_size: int = 16,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """Batches of messages of similar length, each padded to its own longest only.

    Args:
        dataset, batch_size, shuffle: as everywhere.
        generator: decides about the order.

    Returns:
        A loader of pairs: ids (B, T), where T differs from batch to batch, and classes
        (B,). Every message is in one batch of an epoch.

    Raises:
        ValueError: for a `batch_size` below 1.
    """

    def collate(items: list) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = (torch.stack(parts) for parts in zip(*items, strict=True))
        return trim_padding(ids, dataset.pad_token_id), labels

    sampler = LengthGroupedSampler(dataset.lengths, batch_size, shuffle, generator)
    return DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, generator=generator
    )


def last_real_position(ids: torch.Tensor, pad_token_id: int = 50256) -> torch.Tensor:
    """The place of the last token of each row that is not padding: (B, T) -> (B,).

    A row of padding only gives 0.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    return ((ids != pad_token_id) * places).amax(dim=1)  # eq. 6.1


class GPTClassifier(nn.Module):
    """A GPT that sorts texts into classes: ids (B, T) -> logits (B, num_classes).

    The logits are read at the last token that is not padding. Padding stands on the
    right, where causal attention never sees it: any amount gives the same logits.

    Args:
        gpt: is taken over, with its weights; its output head is replaced.
        num_classes: how many outputs the new head has.
        pad_token_id: the id that marks padding, and is no part of any text.

    Attributes:
        gpt: the model; `gpt.out_head` is the new head.
        cfg: the model's config, with `num_classes` and `pad_token_id`.

    Raises:
        ValueError: for fewer than two classes.

    Source: Build a Large Language Model (From Scratch), section 6.5; Radford et al.
    (2018), Improving Language Understanding by Generative Pre-Training, section 3.2.
    """

    def __init__(self, gpt: GPTModel, num_classes: int = 2, pad_token_id: int = 50256):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, not {num_classes}")
        head = nn.Linear(gpt.cfg["emb_dim"], num_classes)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        gpt.out_head = head.to(gpt.tok_emb.weight.device)
        self.gpt, self.pad_token_id = gpt, pad_token_id
        self.cfg = {**gpt.cfg, "num_classes": num_classes, "pad_token_id": pad_token_id}

    def last_features(self, ids: torch.Tensor) -> torch.Tensor:
        """The vectors that the head reads: ids (B, T) -> (B, C)."""
        hidden = self.gpt.features(ids)  # (B, T, C)
        rows = torch.arange(len(ids), device=ids.device)
        return hidden[rows, last_real_position(ids, self.pad_token_id)]  # (B, C)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.gpt.out_head(self.last_features(ids))  # (B, num_classes)


def calc_classification_loss(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a classifier's guesses, in nats per text.

    Args:
        input_batch: what the model reads, such as ids (B, T).
        target_batch: the true classes, (B,).
        model: any module that maps the inputs to logits (B, num_classes).
        device: where the model is; the batch is moved there.

    Returns:
        A scalar that can be differentiated.

    Source: Build a Large Language Model (From Scratch), section 6.6.
    """
    logits = model(input_batch.to(device))  # (B, num_classes)
    return F.cross_entropy(logits, target_batch.to(device))  # eq. 6.2


def evaluate_classifier(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> tuple[float, float]:
    """Mean loss and accuracy over a loader, without dropout and without a trace.

    Args:
        data_loader: gives pairs: inputs, and classes (B,).
        model, device: as in `calc_classification_loss`.
        num_batches: use at most so many batches; by default all.

    Raises:
        ValueError: for a loader without batches, or `num_batches` below 1.
    """
    if len(data_loader) == 0:
        raise ValueError("the loader has no batches; is its dataset empty?")
    _require_counts(num_batches=num_batches)
    loss, right, count = 0.0, 0, 0
    with evaluating(model, data_loader):
        for inputs, labels in islice(data_loader, num_batches):
            logits, labels = model(inputs.to(device)), labels.to(device)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(dim=-1) == labels).sum().item()
            count += len(labels)
    return loss / count, right / count


def calc_accuracy_loader(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> float:
    """The share of texts whose class a model guesses; see `evaluate_classifier`.

    Source: Build a Large Language Model (From Scratch), section 6.6.
    """
    return evaluate_classifier(data_loader, model, device, num_batches)[1]


def _look(
    number: int,
    title: str,
    curves: tuple[list[float], list[float]],
    loaders: tuple[DataLoader, DataLoader],
    *settings,
) -> None:
    """Append to a training and a validation curve, and print what was appended.

    `number` is 0 for losses and 1 for accuracies.
    """
    found = [evaluate_classifier(loader, *settings)[number] for loader in loaders]
    for value, curve in zip(found, curves, strict=True):
        curve.append(value)
    tqdm.write("{} training {:.3f}, validation {:.3f}".format(title, *found))


def train_classifier_simple(
    model: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    num_epochs: int,
    eval_freq: int,
    eval_iter: int | None,
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Train a classifier; print losses and accuracies meanwhile. Ctrl-C ends it.

    Look at the losses every `eval_freq` steps, at the accuracies after each epoch, at
    `eval_iter` batches of each loader (None: all); they give inputs and classes (B,).

    Returns: training and validation losses, training and validation accuracies, an
        entry per look; how many texts were seen.
    Raises: ValueError for a loader without batches, or a count below 1.
    Source: Build a Large Language Model (From Scratch), section 6.7.
    """
    _require_counts(num_epochs=num_epochs, eval_freq=eval_freq)
    losses, accuracies, step, examples_seen = ([], []), ([], []), 0, 0
    looking = (train_loader, val_loader), model, device, eval_iter
    model.train()
    try:
        for epoch in range(1, num_epochs + 1):
            for inputs, labels in tqdm(train_loader, f"epoch {epoch}", leave=False):
                if step % eval_freq == 0:
                    _look(0, f"step {step:4d}: loss", losses, *looking)
                optimizer.zero_grad()
                calc_classification_loss(inputs, labels, model, device).backward()
                optimizer.step()
                step, examples_seen = step + 1, examples_seen + len(labels)
            _look(1, f"epoch {epoch:3d}: accuracy", accuracies, *looking)
    except KeyboardInterrupt:
        tqdm.write(f"Interrupted after step {step}.")
    return *losses, *accuracies, examples_seen


def set_trainable(classifier: GPTClassifier, part: str) -> int:
    """Let one part of a classifier learn, and freeze the rest.

    Args:
        classifier: its parameters get or lose `requires_grad`.
        part: "head", "last block" (with the final norm and the head) or "all".

    Returns:
        How many numbers will learn.

    Raises:
        ValueError: for another part.

    Source: Build a Large Language Model (From Scratch), section 6.5.
    """
    gpt = classifier.gpt
    parts = {
        "head": [gpt.out_head],
        "last block": [gpt.trf_blocks[-1], gpt.final_norm, gpt.out_head],
        "all": [gpt],
    }
    if part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}, not {part!r}")
    classifier.requires_grad_(False)
    for module in parts[part]:
        module.requires_grad_(True)
    return sum(p.numel() for p in classifier.parameters() if p.requires_grad)


def let_rate_fall(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Let the learning rates fall with each step, in a straight line to zero.

    Args:
        optimizer: its next step is made with the rates that it has now.
        num_steps: after so many steps the rates are zero.

    Raises:
        ValueError: for less than one step.

    Source: Radford et al. (2018), Improving Language Understanding by Generative
    Pre-Training, section 4.1.
    """
    _require_counts(num_steps=num_steps)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, 1 - step / num_steps)
    )
    optimizer.register_step_post_hook(lambda *_: falling.step())


def frozen_features(
    classifier: GPTClassifier, data_loader: DataLoader, device: torch.device | str
) -> TensorDataset:
    """What the head of a classifier reads, for each text of a loader, and its class.

    Args:
        classifier: only its head will learn, so that these vectors stay the same.
        data_loader: gives pairs: ids (B, T), and classes (B,).
        device: where the classifier is.

    Returns:
        Pairs of a vector (C,) and a class, in the order of the loader.
    """
    with evaluating(classifier, data_loader):
        pairs = [(classifier.last_features(x.to(device)), y) for x, y in data_loader]
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return TensorDataset(features, labels.to(device))  # (n, C), (n,)


def accuracy_interval(
    right: int, count: int, deviations: float = 1.96
) -> tuple[float, float]:
    """Wilson's interval: where a true accuracy lies, given how many answers were right.

    Near 0 and 1 it is better than eq. 6.3, and never leaves [0, 1].

    Args:
        right: correct answers.
        count: all answers, at least one.
        deviations: half the width in standard errors; 1.96 for 95 %.

    Raises:
        ValueError: unless 0 <= right <= count and count >= 1.

    Source: Wilson (1927), Probable Inference, the Law of Succession, and Statistical
    Inference.
    """
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"{right} right answers of {count} make no accuracy")
    share, z2 = right / count, deviations**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = (share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5
    half *= deviations / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def confusion_counts(
    labels: torch.Tensor, guesses: torch.Tensor, num_classes: int = 2
) -> torch.Tensor:
    """How often each true class (row) was taken for each class (column).

    Args:
        labels, guesses: classes (n,), from 0 to num_classes - 1.

    Returns:
        (num_classes, num_classes) counts with the sum n.

    Raises:
        ValueError: if the two differ in shape.
    """
    if labels.shape != guesses.shape:
        raise ValueError(
            f"{tuple(labels.shape)} labels and {tuple(guesses.shape)} guesses"
        )
    pairs = labels * num_classes + guesses
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, -1)


def _ids_of(
    texts: Sequence[str], tokenizer, longest: int, pad_token_id: int
) -> list[torch.Tensor]:
    """The ids of each text; warn if some had to be cut."""
    ids = [encode_message(text, tokenizer, None, pad_token_id) for text in texts]
    n_cut = sum(len(row) > longest for row in ids)
    if n_cut > 0:
        warnings.warn(
            f"{n_cut} of {len(ids)} messages have more than {longest} tokens (up to "
            f"{max(map(len, ids))}); what follows the first {longest} was not read",
            stacklevel=3,
        )
    return [torch.tensor(row[:longest]) for row in ids]


def spam_probabilities(
    texts: Sequence[str],
    model: GPTClassifier,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = 50256,
    batch_size: int = 32,
) -> torch.Tensor:
    """The probability of class 1 (spam) for each text: (n,), on the CPU.

    Of each text, at most `max_length` tokens are read, the first ones; by default, and
    at most, as many as the model's context holds. An empty text is read as the padding
    token alone.

    Warns: UserWarning if a text is cut.
    Raises: TypeError if a text is no string, or `texts` is one; ValueError for a
        `max_length` or `batch_size` below 1.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings; for one use classify_review")
    _require_counts(max_length=max_length)
    context = model.gpt.cfg["context_length"]
    ids = _ids_of(texts, tokenizer, min(max_length or context, context), pad_token_id)
    lengths, found = [len(row) for row in ids], torch.empty(len(ids))
    with evaluating(model):
        for batch in LengthGroupedSampler(lengths, batch_size, shuffle=False):
            rows = [ids[i] for i in batch]
            padded = nn.utils.rnn.pad_sequence(rows, True, pad_token_id)  # (B, T)
            logits = model(padded.to(device))  # (B, 2)
            found[batch] = logits.softmax(dim=-1)[:, 1].float().cpu()
    return found


class Verdict(str):
    """A string, "spam" or "not spam", that also has a `probability`: of being spam."""

    probability: float


def classify_review(
    text: str,
    model: GPTClassifier,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = 50256,
    *,
    threshold: float = 0.5,
) -> Verdict:
    """Say whether a message is spam.

    Args:
        text: any string, also an empty one.
        model, tokenizer, device, max_length, pad_token_id: as `spam_probabilities`.
        threshold: it is spam if its probability of being spam is above this.

    Returns:
        "spam" or "not spam", with the attribute `probability`.

    Warns:
        UserWarning: if the text is cut.

    Raises:
        TypeError: if `text` is no string.
        ValueError: for a `max_length` below 1, or a threshold outside [0, 1].

    Source: Build a Large Language Model (From Scratch), section 6.8.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not {threshold}")
    found = spam_probabilities(
        [text], model, tokenizer, device, max_length, pad_token_id
    )
    verdict = Verdict("spam" if found.item() > threshold else "not spam")
    verdict.probability = found.item()
    return verdict


def load_classifier(
    path: str | Path, device: torch.device | str = "cpu"
) -> GPTClassifier:
    """A classifier from a file of `save_checkpoint(path, classifier)`, in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds no classifier.
    """
    record = json.loads(TensorFile(path).metadata.get("checkpoint", "{}"))
    cfg = dict(record.get("config") or {})
    if "num_classes" not in cfg:
        raise ValueError(
            f"{path} holds no classifier; save_checkpoint(path, classifier) writes one"
        )
    ours = {key: cfg.pop(key) for key in ("num_classes", "pad_token_id")}
    classifier = GPTClassifier(GPTModel(cfg), **ours).to(device)
    load_checkpoint(path, classifier)
    return classifier.eval()
