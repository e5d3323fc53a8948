"""What chapter 7 refuses, and in which words; imports nothing of the course."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

__all__ = ["STYLES", "asked_by", "check_prompt", "check_entries", "read_entries"]
__all__ += ["check_split", "own_style", "check_lengths", "check_some_targets"]
__all__ += ["check_parts", "check_room", "fit_input"]

STYLES = ("alpaca", "chat", "plain")  # forms of a prompt


def _check_entry(entry: object, keys: Sequence[str], place: str) -> None:
    """Refuse an entry that lacks a text, or has an empty one, for one of the keys."""
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


def asked_by(entry: Mapping[str, str]) -> tuple[str, str]:
    """What an entry asks, whatever its spaces and capital letters."""
    parts = entry["instruction"], entry.get("input", "")
    return tuple(" ".join(part.casefold().split()) for part in parts)


def check_prompt(entry: object, style: object = "alpaca") -> None:
    """Refuse an entry that asks nothing, and a prompt style that there is none of."""
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, not {style!r}")
    _check_entry(entry, ["instruction"], "the entry")


def check_entries(entries: Sequence, answer_key: str = "output") -> None:
    """Refuse entries that lack something, or hold no answer under a key of its own."""
    for number, entry in enumerate(entries, start=1):
        _check_entry(entry, ["instruction", "output"], f"entry {number}")
        if not isinstance(entry.get(answer_key), str):
            raise ValueError(f"entry {number} has no answer under {answer_key!r}")


def read_entries(path: Path) -> list[dict[str, str]]:
    """The entries of a JSON file; each has an instruction and an output, perhaps "".

    Raises ValueError for another file, naming the first entry that lacks something.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(entries, list):
        kind = type(entries).__name__
        raise ValueError(f"{path} holds no list of entries but a {kind}")
    for number, entry in enumerate(entries, start=1):
        unanswered = isinstance(entry, Mapping) and entry.get("output") == ""
        keys = ["instruction"] if unanswered else ["instruction", "output"]
        _check_entry(entry, keys, f"entry {number} of {path.name}")
    return entries


def check_split(entries: Sequence[Mapping], fractions: Sequence[float]) -> None:
    """Refuse shares that make up no whole, and entries that ask the same.

    Those might come into two parts.
    """
    # in this form nan is refused, too
    if not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-9):
        raise ValueError(
            f"the fractions {tuple(fractions)} must be shares that sum to 1"
        )
    for question, times in Counter(map(asked_by, entries)).most_common(1):
        if times > 1:
            raise ValueError(
                f"{question[0]!r} is asked {times} times with the same input; take "
                "what load_instructions returns, which has no repeats"
            )


def own_style(cfg: Mapping, style: str | None) -> str:
    """The style in which to ask a model: its own; refuse another, or none at all."""
    own = cfg.get("prompt_style")
    if own is None and style is None:
        raise ValueError(
            "this model was taught no prompt style (finetune teaches one, and "
            "load_instructed brings it back); name one, such as style='alpaca'"
        )
    if None not in (own, style) and own != style:
        raise ValueError(
            f"the model was taught the style {own!r}, not {style!r}; leave style out"
        )
    check_prompt({"instruction": "any"}, style or own)
    return style or own


def check_lengths(lengths: Sequence[int], allowed_max_length: int | None) -> None:
    """Refuse a batch without tokens or an impossible length; warn of what is cut."""
    longest = max(lengths, default=0)
    if longest == 0:
        raise ValueError("a batch needs at least one text of at least one token")
    if allowed_max_length is None:
        return
    if allowed_max_length < 1:
        raise ValueError(
            f"allowed_max_length must be 1 or more, not {allowed_max_length}"
        )
    if longest > allowed_max_length:
        warnings.warn(
            f"a text of {longest} tokens in a batch of {len(lengths)} was cut to "
            f"allowed_max_length {allowed_max_length}: its last "
            f"{longest - allowed_max_length} are not trained on",
            stacklevel=3,
        )


def check_some_targets(places: torch.Tensor) -> None:
    """Refuse a batch in which no target counts: its loss would be 0 / 0."""
    if not places.any():
        raise ValueError(
            f"all {places.numel()} targets of the batch are masked, so there is no "
            "loss: after the prompts no answer is left; raise allowed_max_length, or "
            "leave out texts whose answer is empty or was cut off"
        )


def check_parts(num_epochs: int, context: int, **parts) -> None:
    """Refuse to train or to measure on nothing, not at all, or without the answers.

    The parts are instruction data sets.
    """
    for name, part in parts.items():
        if len(part) == 0:
            raise ValueError(f"{name} is empty; split_entries deals all three parts")
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be 1 or more, not {num_epochs}")
    _check_answers_fit(context, **parts)


def _check_answers_fit(context: int, **datasets) -> None:
    """Refuse entries whose prompt fills the context: of the answer nothing is left."""
    for name, dataset in datasets.items():
        sizes = dataset.prompt_lengths
        too_long = [number for number, size in enumerate(sizes) if size > context]
        if too_long:
            first = dataset.data[too_long[0]]["instruction"]
            raise ValueError(
                f"{len(too_long)} of the {len(sizes)} {name} have a prompt longer than "
                f"the model's context of {context} tokens, so none of their answer is "
                f"left to learn; the first is entry {too_long[0] + 1}, {first:.40} "
                f"({sizes[too_long[0]]} tokens): shorten them, or leave them out"
            )


def check_room(context: int, max_new_tokens: int, batch_size: int) -> int:
    """How many tokens a prompt may have; refuse a request that leaves it none."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if not 1 <= max_new_tokens < context:
        raise ValueError(
            f"max_new_tokens must be between 1 and {context - 1}, not {max_new_tokens}"
            f": the model's context of {context} tokens holds the prompt, too"
        )
    return context - max_new_tokens


def fit_input(
    entry: Mapping[str, str],
    encode_prompt: Callable[[Mapping[str, str]], list[int]],
    tokenizer,
    room: int,
) -> list[int]:
    """The ids of a prompt, its input cut at the end, with a warning, if it is too long.

    What can be given up is the end of the input, never the instruction or what ends the
    prompt. Raises ValueError if even without the input it has more than `room` tokens.
    """
    ids = encode_prompt(entry)
    if len(ids) <= room:
        return ids
    length = len(ids)
    whole = kept = tokenizer.encode_ordinary(entry.get("input") or "")
    while len(ids) > room and kept:
        kept = kept[: -(len(ids) - room)]
        shorter = {**entry, "input": tokenizer.decode(kept).rstrip("\ufffd")}
        ids = encode_prompt(shorter)
    if len(ids) > room:
        raise ValueError(
            f"the instruction {entry['instruction'][:40]!r}... makes a prompt of "
            f"{len(ids)} tokens, but there is room for {room}; shorten it, or generate "
            "fewer new tokens"
        )
    lost = tokenizer.decode(whole[len(kept) :])
    warnings.warn(
        f"a prompt of {length} tokens was cut to {len(ids)}: its input lost the last "
        f"{len(whole) - len(kept)} tokens, from {lost[:30]!r} on",
        stacklevel=4,
    )
    return ids
