"""Checks for chapter 2's text data: each names the value at fault and the remedy."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

_FILE_NAME = re.compile(
    r"\S+\.(?:txt|text|md|csv|tsv|jsonl?|html?|xml|pdf|docx?)", re.I
)


def require_no_name(text: object) -> None:
    """Refuse what is no text, and a file's name where its text is meant."""
    remedy = "read the file first, with Path(...).read_text(encoding='utf-8')"
    if not isinstance(text, str):
        raise TypeError(f"expected a text (str), not {text!r:.99}; {remedy}")
    short = len(text) < 1000 and text.isprintable()  # what else is no name
    try:
        named = short and (_FILE_NAME.fullmatch(text) or Path(text).is_file())
    except OSError:  # no name that this system could have
        named = False
    if named:
        raise ValueError(f"{text!r} is the name of a file, not its text; {remedy}")


def require_known_tokens(tokens: Iterable[str], vocab: Collection[str]) -> None:
    """Raise KeyError for the first token that the vocabulary lacks."""
    for token in tokens:
        if token not in vocab:
            raise KeyError(
                f"the token {token!r} is not in the vocabulary; build one from a text "
                "that has it, or use SimpleTokenizerV2"
            )


def require_known_ids(ids: Iterable[int], known: Collection[int]) -> None:
    """Raise KeyError for the first id that no token has."""
    for token_id in ids:
        if token_id not in known:
            raise KeyError(
                f"no token has the id {token_id}; the vocabulary holds {len(known)} "
                "tokens and their ids start at 0"
            )


def require_unknown_token(token: str, vocab: Collection[str]) -> None:
    """Raise ValueError if the vocabulary lacks the token for unknown words."""
    if token not in vocab:
        raise ValueError(
            f"the vocabulary of {len(vocab)} tokens lacks {token!r}; make one by "
            f"build_vocabulary(tokens, ['<|endoftext|>', {token!r}])"
        )


def require_windows(n_tokens: int, max_length: int, stride: int) -> None:
    """Raise ValueError unless the sizes are positive and one window fits the text."""
    _require_positive("max_length", max_length)
    _require_positive("stride", stride)
    if n_tokens < max_length + 1:
        shorter = f", or max_length at most {n_tokens - 1}" if n_tokens > 1 else ""
        raise ValueError(
            f"the text has {n_tokens} tokens, but a window of max_length {max_length} "
            f"and its target need {max_length + 1}; use a longer text{shorter}"
        )


def require_batches(n_windows: int, batch_size: int, drop_last: bool) -> None:
    """Raise ValueError if a loader of these sizes would hand out no batch at all."""
    _require_positive("batch_size", batch_size)
    if drop_last and n_windows < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the data set of {n_windows} "
            "windows, and drop_last=True would drop them all; use a batch_size of at "
            f"most {n_windows}, a longer text, a smaller stride or drop_last=False"
        )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} {value} is not positive; use 1 or more")
