"""The messages of chapter 6, read as they were written, and loaders over them."""

import csv
from collections.abc import Sequence

import pandas as pd
import torch
from torch.utils.data import DataLoader

from ch06_classification.classification import (
    SpamDataset,
    create_balanced_dataset,
    create_spam_loader,
    random_split,
    remove_duplicates,
)
from ch06_classification.guards import check_collection
from shared.ch05 import load_base_tokenizer
from shared.data import get as data_path

__all__ = ["load_sms", "create_loaders", "create_spam_loaders"]

# The package's file was written with CSV quotes. UCI's was not, and a message that
# begins with a quotation mark would swallow those that follow.
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


def create_loaders(
    parts: Sequence[pd.DataFrame], batch_size: int = 16, seed: int = 123, tokenizer=None
) -> tuple[DataLoader, ...]:
    """A loader for each table of texts and labels; the first is shuffled.

    The tokenizer is by default the base model's.
    """
    tokenizer, loaders = tokenizer or load_base_tokenizer(), []
    for part in parts:
        dataset, chance = SpamDataset(part, tokenizer), torch.Generator()
        chance.manual_seed(seed)
        loaders.append(create_spam_loader(dataset, batch_size, not loaders, chance))
    return tuple(loaders)


def create_spam_loaders(
    name: str = "sms-spam", batch_size: int = 16, seed: int = 123, tokenizer=None
) -> tuple[DataLoader, ...]:
    """Training, validation and test loader of the spam, 70, 10 and 20 % of it.

    Without duplicates, and balanced. `loader.dataset.data` is the table of a part.
    """
    balanced = create_balanced_dataset(remove_duplicates(load_sms(name)), seed)
    parts = random_split(balanced, 0.7, 0.1, seed)
    return create_loaders(parts, batch_size, seed, tokenizer)
