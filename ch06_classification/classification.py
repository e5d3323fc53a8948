"""Chapter 6: Classification.

Turn a pretrained GPT into a spam filter, measure what each choice on the way is worth,
and say when a simpler method would have done and when not.

Exported from classification.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from tqdm.auto import tqdm

from ch06_classification.guards import (
    check_batches,
    check_collection,
    check_counts,
    check_head,
    check_labels,
    check_message,
    check_no_contradiction,
    check_part,
    check_split,
    check_texts,
    check_threshold,
    classifier_settings,
    read_messages,
    warn_if_cut,
)
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import TensorFile, evaluating, in_order, load_checkpoint
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
    "last_real_position",
    "create_spam_loader",
    "create_loaders",
    "create_spam_loaders",
    "GPTClassifier",
    "class_logits",
    "calc_classification_loss",
    "evaluate_classifier",
    "calc_accuracy_loader",
    "train_classifier_simple",
    "set_trainable",
    "let_rate_fall",
    "frozen_features",
    "spam_probabilities",
    "Verdict",
    "classify_review",
    "load_classifier",
]


LABELS = ("ham", "spam")  # class 0 and class 1


_QUOTING = {"sms-spam": csv.QUOTE_MINIMAL, "sms-spam-uci": csv.QUOTE_NONE}


def load_sms(name: str = "sms-spam") -> pd.DataFrame:
    """The messages of a collection: columns Label ("ham" or "spam") and Text.

    "sms-spam" is a part that comes with an installed package, "sms-spam-uci" all of
    Almeida, Gomez Hidalgo and Yamakami (2011), Contributions to the Study of SMS Spam
    Filtering. Source: Build a Large Language Model (From Scratch), section 6.2.
    """
    check_collection(name, _QUOTING)
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
    """Of the messages with the same words, keep the first only, with its index."""
    labels, keys = check_labels(df), df["Text"].map(message_key)
    check_no_contradiction(df["Text"], keys, labels)
    return df[~keys.duplicated()]


def create_balanced_dataset(df: pd.DataFrame, seed: int = 123) -> pd.DataFrame:
    """As many ham messages as spam: all of the rarer class, a sample of the other.

    Source: Build a Large Language Model (From Scratch), section 6.2.
    """
    labels = check_labels(df, both=True)
    n = labels.value_counts().min()
    parts = [df[labels == label] for label in range(len(LABELS))]
    return pd.concat(
        [p if len(p) == n else p.sample(n, random_state=seed) for p in parts]
    )


def random_split(
    df: pd.DataFrame, train_frac: float, validation_frac: float, seed: int = 123
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Deal the rows of a table at random into training, validation and test part.

    The fractions are shares such as 0.7 and 0.1; the test part gets the rest.

    Source: Build a Large Language Model (From Scratch), section 6.2.
    """
    shuffled = df.sample(frac=1, random_state=seed)
    a = int(len(df) * train_frac)
    b = a + int(len(df) * validation_frac)
    parts = shuffled[:a], shuffled[a:b], shuffled[b:]
    check_split(train_frac, validation_frac, parts)
    return tuple(part.reset_index(drop=True) for part in parts)


def encode_message(
    text: str, tokenizer, max_length: int | None = None, pad_token_id: int = 50256
) -> list[int]:
    """The ids of a message, at most `max_length`, in which no token is special.

    An empty message becomes `[pad_token_id]`.
    """
    check_message(text, max_length)
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return encode(text)[:max_length] or [pad_token_id]


class SpamDataset(Dataset):
    """Messages as ids, all padded to one length, with their classes.

    Item i is a pair: ids (max_length,) and the class, 0 for ham and 1 for spam. The
    file, or table, has the columns Label (ham and spam, or 0 and 1) and Text; `data` is
    that table, and `lengths` counts the tokens of each message without padding.

    Source: Build a Large Language Model (From Scratch), section 6.3.
    """

    def __init__(
        self,
        csv_file: str | Path | pd.DataFrame,
        tokenizer,
        max_length: int | None = None,
        pad_token_id: int = 50256,
    ):
        self.data, labels = read_messages(csv_file)
        ids = [
            torch.tensor(encode_message(text, tokenizer, max_length, pad_token_id))
            for text in self.data["Text"]
        ]
        self.lengths = [len(row) for row in ids]
        self.max_length = max_length or max(self.lengths)
        self.pad_token_id = pad_token_id
        self._labels = torch.tensor(labels.tolist())
        padded = nn.utils.rnn.pad_sequence(ids, True, pad_token_id)  # (n, longest)
        missing = self.max_length - padded.shape[1]
        self._ids = F.pad(padded, (0, missing), value=pad_token_id)  # (n, max_length)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._ids[index], self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


class LengthGroupedSampler(Sampler[list[int]]):
    """Batches of texts of similar length, as lists of indices; the last may be smaller.

    With `shuffle`, each epoch draws pools of `pool` batches and sorts within a pool;
    chance comes from `generator`. Without, all are sorted, and the batches come in an
    order that is mixed, but the same each time, so that the first are a fair sample.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        shuffle: bool = True,
        generator: torch.Generator | None = None,
        pool: int = 8,
    ):
        check_counts(batch_size=batch_size, pool=pool)
        self.lengths, self.batch_size = list(lengths), batch_size
        self.shuffle, self.generator, self.pool = shuffle, generator, pool

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)  # rounded up

    def __iter__(self) -> Iterator[list[int]]:
        n, size = len(self.lengths), self.batch_size
        chance, order, pool_size = self.generator, list(range(n)), size * self.pool
        if self.shuffle:
            order = torch.randperm(n, generator=chance).tolist()
        else:  # one pool, and the same order of batches each time
            chance, pool_size = torch.Generator().manual_seed(0), max(1, n)
        batches = []
        for start in range(0, n, pool_size):
            pool = sorted(
                order[start : start + pool_size], key=self.lengths.__getitem__
            )
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        for i in torch.randperm(len(batches), generator=chance).tolist():
            yield batches[i]


def last_real_position(ids: torch.Tensor, pad_token_id: int = 50256) -> torch.Tensor:
    """The place of the last token of each row that is not padding: (B, T) -> (B,).

    A row of padding only gives 0.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    return ((ids != pad_token_id) * places).amax(dim=1)  # eq. 6.1


def create_spam_loader(
    dataset: SpamDataset,
    batch_size: int = 16,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """Batches of messages of similar length, each padded to its own longest only.

    Gives pairs: ids (B, T), where T differs from batch to batch, and classes (B,).
    """

    def collate(items: list) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = (torch.stack(parts) for parts in zip(*items, strict=True))
        longest = last_real_position(ids, dataset.pad_token_id).max() + 1
        return ids[:, :longest], labels

    sampler = LengthGroupedSampler(dataset.lengths, batch_size, shuffle, generator)
    return DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, generator=generator
    )


def create_loaders(
    parts: Sequence[pd.DataFrame], batch_size: int = 16, seed: int = 123, tokenizer=None
) -> tuple[DataLoader, ...]:
    """A loader for each table of texts and labels; the first is shuffled."""
    tokenizer = tokenizer or get_tokenizer()
    generators = [torch.Generator().manual_seed(seed) for _ in parts]
    return tuple(
        create_spam_loader(SpamDataset(part, tokenizer), batch_size, i == 0, generator)
        for i, (part, generator) in enumerate(zip(parts, generators, strict=True))
    )


def create_spam_loaders(
    name: str = "sms-spam", batch_size: int = 16, seed: int = 123, tokenizer=None
) -> tuple[DataLoader, ...]:
    """Training, validation and test loader of the spam, 70, 10 and 20 % of it.

    Without duplicates, and balanced. `loader.dataset.data` is the table of a part.
    """
    balanced = create_balanced_dataset(remove_duplicates(load_sms(name)), seed)
    parts = random_split(balanced, 0.7, 0.1, seed)
    return create_loaders(parts, batch_size, seed, tokenizer)


class GPTClassifier(nn.Module):
    """A GPT that sorts texts into classes: ids (B, T) -> logits (B, num_classes).

    It takes over `gpt` with its weights, and replaces its output head. The logits are
    read at the last token that is not padding. Padding stands on the right, where
    causal attention never sees it: any amount gives the same logits.

    Source: Build a Large Language Model (From Scratch), section 6.5; Radford et al.
    (2018), Improving Language Understanding by Generative Pre-Training, section 3.2.
    """

    def __init__(self, gpt: GPTModel, num_classes: int = 2, pad_token_id: int = 50256):
        super().__init__()
        check_head(num_classes)
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


def class_logits(
    model: nn.Module,
    inputs: torch.Tensor,
    device: torch.device | str,
    pad_token_id: int = 50256,
) -> torch.Tensor:
    """What a model says about each text: (B, num_classes).

    Of a model that answers at every token, like the book's, the last real one counts.
    """
    inputs = inputs.to(device)
    logits = model(inputs)
    if logits.dim() == 3:  # (B, T, num_classes)
        check_head(logits.shape[-1], model.tok_emb.num_embeddings)
        rows = torch.arange(len(inputs), device=inputs.device)
        logits = logits[rows, last_real_position(inputs, pad_token_id)]
    return logits


def calc_classification_loss(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a classifier's guesses, in nats per text: one number.

    Source: Build a Large Language Model (From Scratch), section 6.6.
    """
    logits = class_logits(model, input_batch, device)  # (B, num_classes)
    return F.cross_entropy(logits, target_batch.to(device))  # eq. 6.2


def evaluate_classifier(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> tuple[float, float]:
    """Mean loss and accuracy over a loader's texts, or its first `num_batches` batches.

    The texts are read in their order, without dropout, and without a trace.
    """
    check_batches(data_loader, num_batches)
    loss, right, count = 0.0, 0, 0
    with evaluating(model):
        for inputs, labels in islice(in_order(data_loader), num_batches):
            logits, labels = class_logits(model, inputs, device), labels.to(device)
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
    """Train; look at `eval_iter` batches of each loader (None: all). Ctrl-C ends it.

    Returns: training and validation losses, training and validation accuracies, an
        entry per look; how many texts were seen.
    Source: Build a Large Language Model (From Scratch), section 6.7.
    """
    check_counts(num_epochs=num_epochs, eval_freq=eval_freq)
    losses, accuracies, step, examples_seen = ([], []), ([], []), 0, 0

    def look(title: str, curves: tuple[list, list], number: int) -> None:
        for loader, curve in zip((train_loader, val_loader), curves, strict=True):
            found = evaluate_classifier(loader, model, device, eval_iter)
            curve.append(found[number])  # 0: the loss, 1: the accuracy
        tqdm.write(f"{title} {curves[0][-1]:.3f}, validation {curves[1][-1]:.3f}")

    model.train()
    try:
        for epoch in range(1, num_epochs + 1):
            for inputs, labels in tqdm(train_loader, f"epoch {epoch}", leave=False):
                if step % eval_freq == 0:
                    look(f"step {step:4d}: loss training", losses, 0)
                optimizer.zero_grad()
                calc_classification_loss(inputs, labels, model, device).backward()
                optimizer.step()
                step, examples_seen = step + 1, examples_seen + len(labels)
            look(f"epoch {epoch:3d}: accuracy training", accuracies, 1)
    except KeyboardInterrupt:
        tqdm.write(f"Interrupted after step {step}.")
    return *losses, *accuracies, examples_seen


def set_trainable(classifier: GPTClassifier | GPTModel, part: str) -> int:
    """Let one part of a classifier learn, and freeze the rest; count what will learn.

    `part` is "head", "last block" (with the final norm and the head) or "all".

    Source: Build a Large Language Model (From Scratch), section 6.5.
    """
    gpt = getattr(classifier, "gpt", classifier)
    parts = {
        "head": [gpt.out_head],
        "last block": [gpt.trf_blocks[-1], gpt.final_norm, gpt.out_head],
        "all": [gpt],
    }
    check_part(part, parts)
    classifier.requires_grad_(False)
    for module in parts[part]:
        module.requires_grad_(True)
    return sum(p.numel() for p in classifier.parameters() if p.requires_grad)


def let_rate_fall(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Let the learning rates fall from now on in a straight line to zero.

    Source: Radford et al. (2018), Improving Language Understanding by Generative
    Pre-Training, section 4.1.
    """
    check_counts(num_steps=num_steps)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, 1 - step / num_steps)
    )
    optimizer.register_step_post_hook(lambda *_: falling.step())


def frozen_features(
    classifier: GPTClassifier, data_loader: DataLoader, device: torch.device | str
) -> TensorDataset:
    """What the head of a classifier reads, for each text of a loader, and its class.

    Pairs of a vector (C,) and a class, in the order of the texts. As long as only the
    head learns, they stay the same.
    """
    with evaluating(classifier):
        pairs = [
            (classifier.last_features(ids.to(device)), labels.to(device))
            for ids, labels in in_order(data_loader)
        ]
    features, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return TensorDataset(features, labels)  # (n, C), (n,)


def spam_probabilities(
    texts: Sequence[str],
    model: GPTClassifier | GPTModel,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = 50256,
    batch_size: int = 32,
) -> torch.Tensor:
    """The probability of class 1 (spam) for each text: (n,), on the CPU.

    Of each text, the first `max_length` tokens are read, at most (and by default) as
    many as the model's context holds; if a text is cut, a UserWarning says so.
    """
    check_texts(texts, max_length)
    context = model.cfg["context_length"]
    longest = min(max_length or context, context)
    ids = [encode_message(text, tokenizer, None, pad_token_id) for text in texts]
    warn_if_cut(ids, longest)
    ids = [torch.tensor(row[:longest]) for row in ids]
    lengths, found = [len(row) for row in ids], torch.empty(len(ids))
    with evaluating(model):
        for batch in LengthGroupedSampler(lengths, batch_size, shuffle=False):
            rows = [ids[i] for i in batch]
            padded = nn.utils.rnn.pad_sequence(rows, True, pad_token_id)  # (B, T)
            logits = class_logits(model, padded, device, pad_token_id)  # (B, 2)
            found[batch] = logits.softmax(dim=-1)[:, 1].float().cpu()
    return found


class Verdict(str):
    """A string, "spam" or "not spam", that also has a `probability`: of being spam."""

    probability: float


def classify_review(
    text: str,
    model: GPTClassifier | GPTModel,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int = 50256,
    *,
    threshold: float = 0.5,
) -> Verdict:
    """Say whether a message is spam: whether its probability is above `threshold`.

    The other arguments are those of `spam_probabilities`.

    Source: Build a Large Language Model (From Scratch), section 6.8.
    """
    check_threshold(threshold)
    found = spam_probabilities(
        [text], model, tokenizer, device, max_length, pad_token_id
    )
    verdict = Verdict("spam" if found.item() > threshold else "not spam")
    verdict.probability = found.item()
    return verdict


def load_classifier(
    path: str | Path, device: torch.device | str = "cpu"
) -> GPTClassifier:
    """A classifier from a file of `save_checkpoint(path, classifier)`, in eval mode."""
    file = TensorFile(path)
    cfg, ours = classifier_settings(file.metadata, file.shapes, str(path))
    classifier = GPTClassifier(GPTModel(cfg), **ours).to(device)
    load_checkpoint(path, classifier)
    return classifier.eval()
