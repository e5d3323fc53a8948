"""Chapter 6: Classification.

You will turn the pretrained GPT into a classifier, train it on two tasks, and measure
it beside methods that only count words.

Exported from classification.ipynb and deeper.ipynb, which explain every line: change it
there, then run `python -m tools.export`.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import regex
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from tqdm.auto import tqdm

from ch06_classification.guards import (
    check_batches,
    check_counts,
    check_dataset,
    check_head,
    check_labels,
    check_message,
    check_one_label,
    check_padding,
    check_part,
    check_split,
    check_texts,
    check_threshold,
    classifier_settings,
    cut_to,
    padding_id,
    read_messages,
)
from shared.ch04 import GPTModel
from shared.ch05 import TensorFile, evaluating, in_order, load_checkpoint

__all__ = [
    "last_real_position",
    "GPTClassifier",
    "SpamDataset",
    "calc_classification_loss",
    "evaluate_classifier",
    "calc_accuracy_loader",
    "LABELS",
    "create_balanced_dataset",
    "random_split",
    "set_trainable",
    "encode_message",
    "class_logits",
    "LengthGroupedSampler",
    "create_spam_loader",
    "frozen_features",
    "let_rate_fall",
    "message_key",
    "remove_duplicates",
    "spam_probabilities",
    "Verdict",
    "classify_review",
    "load_classifier",
    "train_classifier_simple",
]


def last_real_position(ids: torch.Tensor, pad_token_id: int = 50256) -> torch.Tensor:
    """Where the last token that is no padding stands, or 0: (B, T) -> (B,)."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return ((ids != pad_token_id) * places).amax(dim=1)  # eq. 6.1


class GPTClassifier(nn.Module):
    """A GPT that sorts texts into classes: ids (B, T) -> logits (B, num_classes).

    It takes over `gpt`, replaces its output head, and reads the last token that is not
    padding; padding on the right is never seen (Radford et al., 2018, section 3.2).
    """

    def __init__(self, gpt: GPTModel, num_classes: int = 2, pad_token_id: int = 50256):
        super().__init__()
        check_head(num_classes)
        check_padding(pad_token_id, gpt.cfg["vocab_size"])
        head = nn.Linear(gpt.cfg["emb_dim"], num_classes)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        gpt.out_head = head.to(gpt.tok_emb.weight.device)
        self.gpt, self.pad_token_id = gpt, pad_token_id
        self.cfg = {**gpt.cfg, "num_classes": num_classes, "pad_token_id": pad_token_id}

    def last_features(self, ids: torch.Tensor) -> torch.Tensor:
        """The vectors that the head reads: ids (B, T) -> (B, C)."""
        hidden = self.gpt.features(ids)  # (B, T, C)
        return hidden[range(len(ids)), last_real_position(ids, self.pad_token_id)]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.gpt.out_head(self.last_features(ids))  # (B, num_classes)


class SpamDataset(Dataset):
    """Messages as ids, all padded to one length, and their classes (book, section 6.3).

    The file, or table, has the columns Label (ham and spam, or 0 and 1) and Text.
    `data` is that table, `lengths` the tokens of each message without padding. The
    padding is by default the tokenizer's `eot_token`.
    """

    def __init__(
        self,
        csv_file: str | Path | pd.DataFrame,
        tokenizer,
        max_length: int | None = None,
        pad_token_id: int | None = None,
    ):
        self.data, labels = read_messages(csv_file)
        self.pad_token_id = padding_id(pad_token_id, tokenizer)
        ids = [
            encode_message(text, tokenizer, max_length, self.pad_token_id)
            for text in self.data["Text"]
        ]
        self.lengths = [len(row) for row in ids]
        self.max_length = max_length or max(self.lengths)
        self.ids = torch.full((len(ids), self.max_length), self.pad_token_id)
        for padded, row in zip(self.ids, ids, strict=True):
            padded[: len(row)] = torch.tensor(row)
        self.labels = torch.tensor(labels.tolist())

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.ids[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.ids)


def calc_classification_loss(
    input_batch: torch.Tensor,
    target_batch: torch.Tensor,
    model: nn.Module,
    device: torch.device | str,
) -> torch.Tensor:
    """Mean cross-entropy of a classifier's guesses, in nats per text."""
    logits = class_logits(model, input_batch, device)  # (B, num_classes)
    return F.cross_entropy(logits, target_batch.to(device))  # eq. 6.2


def evaluate_classifier(
    data_loader: DataLoader,
    model: nn.Module,
    device: torch.device | str,
    num_batches: int | None = None,
) -> tuple[float, float]:
    """Mean loss and accuracy over a loader's texts, or of its first `num_batches`."""
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
    """The share of texts whose class a model guesses; see `evaluate_classifier`."""
    return evaluate_classifier(data_loader, model, device, num_batches)[1]


LABELS = ("ham", "spam")  # class 0 and class 1


def create_balanced_dataset(df: pd.DataFrame, seed: int = 123) -> pd.DataFrame:
    """All messages of the rarer class, and as many of the other, drawn at random."""
    labels = check_labels(df, both=True)  # 0 and 1
    n = labels.value_counts().min()
    parts = [df[labels == label] for label in (0, 1)]
    return pd.concat(
        [p if len(p) == n else p.sample(n, random_state=seed) for p in parts]
    )


def random_split(
    df: pd.DataFrame, train_frac: float, validation_frac: float, seed: int = 123
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Deal the rows at random into training, validation and (the rest) test part."""
    check_split(len(df), train_frac, validation_frac)
    shuffled = df.sample(frac=1, random_state=seed)
    a = int(len(df) * train_frac)
    b = a + int(len(df) * validation_frac)
    parts = shuffled[:a], shuffled[a:b], shuffled[b:]
    return tuple(part.reset_index(drop=True) for part in parts)


def set_trainable(classifier: GPTClassifier | GPTModel, part: str) -> int:
    """Let one part of a classifier learn, and freeze the rest; count what will learn.

    `part` is "head", "last block" (with the final norm and the head) or "all".
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


def encode_message(
    text: str, tokenizer, max_length: int | None = None, pad_token_id: int | None = None
) -> list[int]:
    """A message's first `max_length` ids, none special; an empty one is padding.

    `pad_token_id` is by default the tokenizer's `eot_token`.
    """
    check_message(text, max_length)
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return encode(text)[:max_length] or [padding_id(pad_token_id, tokenizer)]


def class_logits(
    model: nn.Module,
    inputs: torch.Tensor,
    device: torch.device | str,
    pad_token_id: int | None = None,
) -> torch.Tensor:
    """What a model says of each text, or at its last real token: (B, num_classes).

    `pad_token_id` is by default the model's, or GPT-2's if the model has none.
    """
    inputs = inputs.to(device)
    logits = model(inputs)
    if logits.dim() == 3:  # (B, T, num_classes), like the book's
        vocab_size = model.tok_emb.num_embeddings
        check_head(logits.shape[-1], vocab_size)
        pad_token_id = padding_id(pad_token_id, model=model)
        check_padding(pad_token_id, vocab_size)
        logits = logits[range(len(inputs)), last_real_position(inputs, pad_token_id)]
    return logits


class LengthGroupedSampler(Sampler[list[int]]):
    """Batches of texts of similar length, drawn anew each epoch: lists of indices.

    Pools of `pool` batches are drawn, and sorted within; the last batch may be smaller.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
        pool: int = 8,
    ):
        check_counts(texts=len(lengths), batch_size=batch_size, pool=pool)
        self.lengths, self.batch_size = torch.tensor(lengths), batch_size
        self.generator, self.pool = generator, pool

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)  # rounded up

    def __iter__(self) -> Iterator[list[int]]:
        size, batches = self.batch_size, []
        order = torch.randperm(len(self.lengths), generator=self.generator)
        for pool in order.split(size * self.pool):
            by_length = self.lengths[pool].argsort(stable=True)
            batches += pool[by_length].split(size)
        for i in torch.randperm(len(batches), generator=self.generator):
            yield batches[i].tolist()


def create_spam_loader(
    dataset: SpamDataset,
    batch_size: int = 16,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """Batches of ids (B, T), each padded to its own longest, and of classes (B,).

    With `shuffle`, messages of similar length come together, in an order ever new.
    """

    check_dataset(dataset)

    def collate(items: list) -> tuple[torch.Tensor, torch.Tensor]:
        ids, labels = (torch.stack(parts) for parts in zip(*items, strict=True))
        longest = last_real_position(ids, dataset.pad_token_id).max() + 1
        return ids[:, :longest], labels

    if not shuffle:
        return DataLoader(dataset, batch_size, collate_fn=collate, generator=generator)
    batches = LengthGroupedSampler(dataset.lengths, batch_size, generator)
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, generator=generator
    )


def frozen_features(
    classifier: GPTClassifier, data_loader: DataLoader, device: torch.device | str
) -> TensorDataset:
    """What the head reads, (n, C), and the classes, (n,), in the order of the texts.

    The loader is one over a `SpamDataset`.
    """
    dataset, features = data_loader.dataset, []
    check_dataset(dataset)
    order = torch.tensor(dataset.lengths).argsort()  # so that little is padded
    with evaluating(classifier):
        for batch in order.split(32):
            ids, _ = data_loader.collate_fn([dataset[i] for i in batch])
            features.append(classifier.last_features(ids.to(device)))  # (B, C)
    in_order = torch.cat(features)[order.argsort()]
    return TensorDataset(in_order, dataset.labels.to(device))


def let_rate_fall(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Let the rates fall from now on to zero, on a line (Radford et al., 2018, 4.1).

    To go on with a saved run, call this first and load the optimizer then: the rates
    themselves tell how far they have come.
    """
    check_counts(num_steps=num_steps)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]

    def fall(optimizer: torch.optim.Optimizer, *_) -> None:
        for group in optimizer.param_groups:
            first = group.setdefault("initial_lr", group["lr"]) or 1.0
            step = round(num_steps * (1 - group["lr"] / first)) + 1
            group["lr"] = first * max(0.0, 1 - step / num_steps)

    optimizer.register_step_post_hook(fall)


def message_key(text: str) -> str:
    """The words of a message in lower case; if it has none, the message.

    A word is letters with their marks: accents, and the vowel signs of Hindi or Thai.
    """
    text = unicodedata.normalize("NFC", text)
    return " ".join(regex.findall(r"\p{L}[\p{L}\p{M}]*", text.lower())) or text


def remove_duplicates(df: pd.DataFrame) -> pd.DataFrame:
    """Of the messages with the same words, keep the first only, with its index."""
    check_one_label(df, message_key)
    return df[~df["Text"].map(message_key).duplicated()]


def spam_probabilities(
    texts: Sequence[str],
    model: GPTClassifier | GPTModel,
    tokenizer,
    device: torch.device | str,
    max_length: int | None = None,
    pad_token_id: int | None = None,
    batch_size: int = 32,
) -> torch.Tensor:
    """The probability of class 1 (spam) for each text: (n,), on the CPU.

    Of each, the first `max_length` tokens are read, at most (and by default) what the
    model's context holds; a UserWarning says if that cuts a text. `pad_token_id` is by
    default the model's, or the tokenizer's `eot_token` if the model has none.
    """
    check_texts(texts, max_length=max_length, batch_size=batch_size)
    longest = model.cfg["context_length"]
    longest = min(max_length or longest, longest)
    pad_token_id = padding_id(pad_token_id, tokenizer, model)
    ids = [encode_message(text, tokenizer, None, pad_token_id) for text in texts]
    ids, found = cut_to(longest, ids), torch.empty(len(ids))
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    with evaluating(model):
        for start in range(0, len(ids), batch_size):
            batch = by_length[start : start + batch_size]
            rows = [torch.tensor(ids[i]) for i in batch]
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
    pad_token_id: int | None = None,
    *,
    threshold: float = 0.5,
) -> Verdict:
    """Whether a message is spam: its probability is above `threshold` (book, 6.8).

    The other arguments are those of `spam_probabilities`.
    """
    check_threshold(threshold)
    p_spam = spam_probabilities(
        [text], model, tokenizer, device, max_length, pad_token_id
    ).item()
    verdict = Verdict("spam" if p_spam > threshold else "not spam")
    verdict.probability = p_spam
    return verdict


def load_classifier(
    path: str | Path, device: torch.device | str = "cpu"
) -> GPTClassifier:
    """A classifier from a file of `save_checkpoint(path, classifier)`, in eval mode."""
    cfg, ours = classifier_settings(TensorFile(path))
    classifier = GPTClassifier(GPTModel(cfg), **ours).to(device)
    load_checkpoint(path, classifier)
    return classifier.eval()


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

    Returns training and validation losses, training and validation accuracies, an
    entry per look, and how many texts were seen, as the book's section 6.7.
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
            bar = tqdm(iter(train_loader), f"epoch {epoch}", len(train_loader), False)
            for inputs, labels in bar:  # iter: some bars would begin a loader twice
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
