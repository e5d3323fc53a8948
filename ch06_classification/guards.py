"""What chapter 6 refuses, and in which words."""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path

import pandas as pd

from ch05_pretraining.guards import check_counts, check_sizes

__all__ = [
    "check_collection",
    "check_labels",
    "check_one_label",
    "check_split",
    "read_messages",
    "check_dataset",
    "check_message",
    "check_texts",
    "check_counts",
    "check_batches",
    "check_head",
    "check_padding",
    "check_part",
    "check_threshold",
    "padding_id",
    "cut_to",
    "classifier_settings",
]

_CLASSES = {"ham": 0, "spam": 1, "0": 0, "1": 1}


def check_collection(name: str, known: Iterable[str]) -> None:
    """Refuse the name of a collection that is none."""
    if name not in known:
        raise ValueError(f"name must be {' or '.join(known)}, not {name!r}")


# How to read a file that is not as `read_messages` expects it; {} is another setting.
_READ = "pd.read_csv(path, {}, dtype=str, keep_default_na=False)"


def _remedy(df: pd.DataFrame) -> str:
    """What to do about a table whose columns are not Label and Text."""
    only = str(df.columns[0]) if len(df.columns) == 1 else ""
    for mark in (";", "\t", "|"):
        if mark in only:
            return (
                f"its columns seem to be separated by {mark!r}: give the table "
                f"{_READ.format(f'sep={mark!r}')}"
            )
    return "name them Label, Text"


def check_labels(
    df: pd.DataFrame, where: str = "the table", both: bool = False
) -> pd.Series:
    """The labels of a table of messages as 0 and 1; ValueError if it is none.

    With `both`, a table in which all labels are the same is refused too.
    """
    missing = [name for name in ("Label", "Text") if name not in df.columns]
    if missing:
        raise ValueError(
            f"{where} has no column {' and no column '.join(missing)}, only "
            f"{', '.join(map(str, df.columns)) or 'none at all'}; {_remedy(df)}"
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
    if both and labels.nunique() < 2:
        only = "spam" if labels.any() else "ham"
        raise ValueError(
            f"all {len(df)} messages of {where} are {only}; "
            "telling two classes apart takes examples of both"
        )
    return labels.astype(int)


def check_one_label(df: pd.DataFrame, key: Callable[[str], str]) -> None:
    """Refuse what is no table of messages, or has both labels for the same key."""
    labels = check_labels(df)
    keys = df["Text"].map(key)
    # by position: rows that were put together may have the same index
    both = labels.groupby(keys.to_numpy()).transform("nunique").to_numpy() > 1
    if both.any():
        raise ValueError(
            f"the message {df['Text'].iloc[both.argmax()]!r} has both labels; "
            "decide for one"
        )


def check_split(rows: int, train_frac: float, validation_frac: float) -> None:
    """Refuse shares that are none, or leave one of the parts empty."""
    shares = f"train_frac {train_frac} and validation_frac {validation_frac}"
    # all() instead of a minimum: nan is neither above nor below anything
    if not all((train_frac > 0, validation_frac > 0, train_frac + validation_frac < 1)):
        raise ValueError(
            f"{shares} must be above 0, and their sum below 1, so that something is "
            "left for the test; try 0.7 and 0.1"
        )
    sizes = int(rows * train_frac), int(rows * validation_frac)
    if min(sizes) == 0:
        raise ValueError(
            f"{shares} of {rows} rows leave a part empty: {sizes[0]} to train on, "
            f"{sizes[1]} to validate; take more rows"
        )


def _begins_as_utf_16(path: str | Path) -> bool:
    """Whether a file begins with the mark of UTF-16, which Excel can write."""
    with open(path, "rb") as file:
        return file.read(2) in (b"\xff\xfe", b"\xfe\xff")


def read_messages(
    csv_file: str | Path | pd.DataFrame,
) -> tuple[pd.DataFrame, pd.Series]:
    """A table, or the one in a CSV file, and its labels as 0 and 1; both classes."""
    if isinstance(csv_file, pd.DataFrame):
        df, where = csv_file.reset_index(drop=True), "the table"
    else:
        where = str(csv_file)
        try:
            df = pd.read_csv(csv_file, dtype=str, keep_default_na=False)
        except UnicodeError:
            encoding = "utf-16" if _begins_as_utf_16(csv_file) else "latin-1"
            raise ValueError(
                f"{where} is no CSV table in UTF-8, but perhaps in {encoding}: give "
                f"the table {_READ.format(f'encoding={encoding!r}')}"
            ) from None
        except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
            raise ValueError(f"{where} is no CSV table: {error}") from None
    return df, check_labels(df, where, both=True)


def check_dataset(dataset: object) -> None:
    """Refuse what is no `SpamDataset`, such as a part by torch's random_split."""
    if not hasattr(dataset, "pad_token_id") or not hasattr(dataset, "lengths"):
        raise TypeError(
            f"a {type(dataset).__name__} does not know how its messages are padded; "
            "split the table instead, with this chapter's random_split, and make a "
            "SpamDataset of each part"
        )


def check_message(text: object, max_length: int | None) -> None:
    """Refuse what is no string, and to keep no token of it."""
    if not isinstance(text, str):
        raise TypeError(f"a message must be a string, not {text!r}")
    check_counts(max_length=max_length)


def check_texts(texts: object, **counts: int | None) -> None:
    """Refuse a single string where a list is meant: its letters are no messages."""
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings; for one use classify_review")
    check_counts(**counts)


def check_batches(loader: Sized, num_batches: int | None) -> None:
    """Refuse a loader that has nothing to measure on, and to read none of it."""
    if len(loader) == 0:
        raise ValueError("the loader has no batches; is its dataset empty?")
    check_counts(num_batches=num_batches)


def check_head(num_classes: int, vocab_size: int | None = None) -> None:
    """Refuse a head of one class, and a language model's head, one per token."""
    if num_classes < 2:
        raise ValueError(f"num_classes must be 2 or more, not {num_classes}")
    if num_classes == vocab_size:
        raise ValueError(
            f"the model still scores the {vocab_size} tokens of its vocabulary, no "
            "classes; use GPTClassifier(model), or model.out_head = nn.Linear(emb_dim, "
            "2)"
        )


def padding_id(given: int | None, tokenizer=None, model=None) -> int:
    """The id given; or else the model's, the tokenizer's end of text, or GPT-2's."""
    if given is None:
        given = getattr(model, "pad_token_id", None)
    return getattr(tokenizer, "eot_token", 50256) if given is None else given


def check_padding(pad_token_id: int, vocab_size: int) -> None:
    """Refuse a padding id that the model has no vector for; it pads with another."""
    if not 0 <= pad_token_id < vocab_size:
        raise ValueError(
            f"pad_token_id {pad_token_id} is none of the model's {vocab_size} tokens; "
            "pass the one that fills up the messages, tokenizer.eot_token"
        )


def check_part(part: str, parts: Iterable[str]) -> None:
    """Refuse the name of a part that no classifier has."""
    if part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}, not {part!r}")


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is no probability."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not {threshold}")


def cut_to(longest: int, ids: Sequence[list[int]]) -> list[list[int]]:
    """At most the first `longest` ids of each text; a warning if that cuts any."""
    n_cut = sum(len(row) > longest for row in ids)
    if n_cut > 0:
        warnings.warn(
            f"{n_cut} of {len(ids)} messages have more than {longest} tokens (up to "
            f"{max(map(len, ids))}); what follows the first {longest} was not read",
            stacklevel=3,  # where the caller was called
        )
    return [row[:longest] for row in ids]


def classifier_settings(file) -> tuple[dict, dict]:
    """A saved classifier's GPT config, and its number of classes and padding id.

    `file` has a path, metadata and shapes. ValueError unless it is a classifier's, and
    its tensors are as large as it says: this is asked before anything is built.
    """
    where = str(file.path)
    try:
        record = json.loads(file.metadata.get("checkpoint", "null"))
        cfg = dict(record["config"])
        ours = {key: cfg.pop(key) for key in ("num_classes", "pad_token_id")}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{where} holds no classifier; save_checkpoint(path, classifier) writes one"
        ) from None
    check_sizes(cfg, file.shapes, where)
    found = tuple(file.shapes.get("model.gpt.out_head.weight", ()))
    if found != (ours["num_classes"], cfg["emb_dim"]):
        raise ValueError(
            f"{where} says {ours['num_classes']!r} classes, but its head has the shape "
            f"{found}; save the classifier again"
        )
    return cfg, ours
