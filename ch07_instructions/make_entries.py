"""Make the instructions of chapter 7: what is asked, in many wordings.

    python -m ch07_instructions.make_entries            write data/instructions.json
    python -m ch07_instructions.make_entries --check    only say whether it would change

`tasks.txt` beside this file has 31 kinds of tasks. A kind has 15 wordings and its rows,
such as a sentence, two words to swap in it, and the answer. The stories' rows are in
`data/tales.json`. Each row becomes one entry:

* Every fifth wording is held out. No `instruction` has it, so no model is trained on
  it; an entry's `rewording` asks the same question in such a wording. The others take
  turns, so that each goes equally often with each label.
* Three entries in five have their text as `input`, the others inside the instruction.
* A tale is asked for by three of its words (half of the tales), by what it is about,
  or by its first sentence. Half of these requests are worded as the base model read
  them while it was pretrained (`pretrain/stories.py`).
* Rows with the same text, and tales, have a `group` that no other entry has.

The same bytes come out on every machine: chance is `random.Random(123).random`, which
Python promises never to change. A new file needs its sha256 in `shared/data.py`.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.data import REPOSITORY_DATA, load_text
from shared.files import write_atomically

__all__ = ["Kind", "read_kinds", "story_entry", "make_entries", "STORY_KINDS"]

SOURCE = Path(__file__).with_name("tasks.txt")
SEED = 123
HOLD_OUT_EVERY = 5  # wordings
WITH_INPUT = 0.6  # share of the entries that have an input
STORY_KINDS = "words", "about", "finish"
TURNS = "words", "about", "words", "finish"  # which tale is asked for in which way
LABELLED = {"yes_no"}  # beside the family closed
_FIRST_SENTENCE = re.compile(r'([^".:!?]{20,160}(?<!Mr)(?<!Mrs)[.!?]) (?=["A-Z])')


@dataclass
class Kind:
    """A kind of task: its wordings, and its rows, which map columns to texts."""

    name: str
    family: str
    columns: list[str]
    wordings: list[str] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)

    @property
    def held_out(self) -> list[str]:
        """The wordings that no instruction has."""
        return self.wordings[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]

    @property
    def trained(self) -> list[str]:
        """The wordings that instructions have."""
        return [wording for wording in self.wordings if wording not in self.held_out]


def read_kinds(text: str) -> dict[str, Kind]:
    """The kinds of a text in the form of `tasks.txt`.

    Raises:
        ValueError: for a row that does not fit the columns of its kind.
    """
    kinds: dict[str, Kind] = {}
    for line in text[text.index("\n# ") :].splitlines():
        if heading := re.fullmatch(r"# (\w+) \((\w+)\): (.+)", line):
            kind = Kind(heading[1], heading[2], heading[3].split(" | "))
            kinds[kind.name] = kind
        elif line.startswith("- "):
            kind.wordings.append(line[2:])
        elif line:
            cells = line.split(" | ")
            if len(cells) != len(kind.columns):
                raise ValueError(f"{line!r} does not fit {kind.columns} of {kind.name}")
            row = dict(zip(kind.columns, cells, strict=True))
            if row["answer"] == "=":
                row["answer"] = row["text"]
            kind.rows.append(row)
    return kinds


# --- Entries --------------------------------------------------------------------------


def _ask(wording: str, row: Mapping[str, str], with_input: bool) -> tuple[str, str]:
    """Instruction and input: a row asked in a wording."""
    asked = wording.format(**row)
    if "text" not in row or "{text}" in wording:
        return asked, ""
    if with_input:
        return asked, row["text"]
    if "question" in row:  # comes after what it is about
        stop = "." if row["text"][-1].isalnum() else ""
        return f"{row['text']}{stop} {asked}", ""
    colon = ":" if asked.endswith(".") else ""
    return f"{asked.removesuffix('.')}{colon} {row['text']}", ""


def _entry(
    kind: Kind,
    row: Mapping[str, str],
    wording: str,
    held_out: str,
    group: str,
    with_input: bool = False,
) -> dict[str, str]:
    instruction, text = _ask(wording, row, with_input)
    return {
        "instruction": instruction,
        "input": text,
        "output": row["answer"],
        "kind": kind.name,
        "family": kind.family,
        "group": group,
        "rewording": _ask(held_out, row, with_input)[0],
    }


def _task_entries(kind: Kind, chance: random.Random) -> list[dict[str, str]]:
    """The entries of a kind that is no story; wordings take turns within a label."""
    texts = list(dict.fromkeys(row["text"] for row in kind.rows))
    labelled = kind.family == "closed" or kind.name in LABELLED
    turns, entries = Counter(), []
    for row in _shuffled(kind.rows, chance):
        label = row["answer"] if labelled else ""
        wording = kind.trained[turns[label] % len(kind.trained)]
        held_out = kind.held_out[turns[label] % len(kind.held_out)]
        turns[label] += 1
        group = f"{kind.name}-{texts.index(row['text']) + 1}"
        with_input = chance.random() < WITH_INPUT
        entries.append(_entry(kind, row, wording, held_out, group, with_input))
    return entries


def story_entry(
    kind: Kind, number: int, tale: Mapping, turn: int = 0
) -> dict[str, str] | None:
    """A tale as an entry of a kind of story.

    None if the tale has no first sentence to go on from. Every second turn asks in the
    kind's first wording, the other turns in the others.
    """
    a, b, c = tale["words"]
    row = {"words": f"{a}, {b} and {c}", "about": tale["about"], "answer": tale["text"]}
    if kind.name == "finish":
        first = _FIRST_SENTENCE.match(tale["text"])
        if first is None:
            return None
        row |= {"text": first[1], "answer": tale["text"][first.end() :]}
    main, *others = kind.trained
    wording = others[turn // 2 % len(others)] if turn % 2 else main
    held_out = kind.held_out[turn % len(kind.held_out)]
    return _entry(kind, row, wording, held_out, f"tale-{number}")


def _story_entries(
    kinds: Mapping[str, Kind], tales: Sequence[Mapping], chance: random.Random
) -> list[dict[str, str]]:
    """An entry a tale."""
    turns, entries = Counter(), []
    order = _shuffled(list(enumerate(tales, start=1)), chance)
    for place, (number, tale) in enumerate(order):
        name = TURNS[place % len(TURNS)]
        entry = story_entry(kinds[name], number, tale, turns[name])
        if entry is None:
            name = "about"
            entry = story_entry(kinds[name], number, tale, turns[name])
        turns[name] += 1
        entries.append(entry)
    return entries


def _shuffled(items: Sequence, chance: random.Random) -> list:
    keys = [chance.random() for _ in items]
    return [
        item for _, item in sorted(zip(keys, items, strict=True), key=lambda p: p[0])
    ]


def make_entries(text: str, tales: Sequence[Mapping]) -> list[dict[str, str]]:
    """All entries: a row of `tasks.txt` each, and a tale each."""
    kinds, chance = read_kinds(text), random.Random(SEED)
    entries = []
    for kind in kinds.values():
        if kind.family != "story":
            entries += _task_entries(kind, chance)
    entries += _story_entries(kinds, tales, chance)
    return _shuffled(entries, chance)


# --- Command --------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m ch07_instructions.make_entries", description=__doc__[:62]
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    tales = json.loads(load_text("tales"))
    entries = make_entries(SOURCE.read_text(encoding="utf-8"), tales)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    content, path = f"[\n{lines}\n]\n", REPOSITORY_DATA / "instructions.json"
    if options.check:
        if path.read_text(encoding="utf-8") != content:
            sys.exit(f"error: {path} is not what this program makes; run it")
        return
    write_atomically(path, content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    print(f"{len(entries)} entries, {len(content)} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
