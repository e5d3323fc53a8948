"""The sentences of the village as patterns, which can be filled in and recognised.

`sentences.txt` says how each event is told. A pattern is a list of literal text and
slots; the teller fills the slots, and the reader finds out what they were filled with.
Both go through the same list, so what one can write the other can read.
"""

import itertools
import json
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

HERE = Path(__file__).parent
CLASSES = {  # slot -> the list of words that it takes, in words.json
    **dict.fromkeys("xyz", "names"),
    **dict.fromkeys("tu", "things"),
    **dict.fromkeys("ab", "looks"),
    **dict.fromkeys("pq", "places"),
    **{"k": "kinds", "s": "sides", "o": "spots", "f": "foods", "i": "ingredients"},
    **{"l": "tools", "h": "holes"},
}
KIND_OF_MARK = {"names": "who", "kinds": "who"} | dict.fromkeys(
    ("places", "sides", "spots"), "where"
)
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
FORMS = ("he", "him", "his")
SLOT = re.compile(r"\{(\w)(?:\.(\w+))?([*!]?)\}")
TOKEN = re.compile(r"<\w+>|[^\W\d_]+|\S")


@dataclass(frozen=True)
class Slot:
    """A gap in a sentence: `{x.he}` has name x and form he, `{t!}` the mark "!"."""

    name: str
    form: str = ""
    mark: str = ""
    capital: bool = False
    article: bool = False  # "a" or "an" stands before it

    @property
    def words(self) -> str:
        """The list in words.json that its word comes from ("" for a pronoun)."""
        return {"": CLASSES[self.name], "look": "looks"}.get(self.form, "")


@dataclass(frozen=True, eq=False)
class Pattern:
    """One way to say something: text and slots in their order."""

    parts: tuple[str | Slot, ...]

    @cached_property
    def slots(self) -> list[Slot]:
        """Its slots, in order."""
        return [part for part in self.parts if isinstance(part, Slot)]

    @cached_property
    def people(self) -> str:
        """The names of the slots that stand for people."""
        names = (slot.name for slot in self.slots if CLASSES[slot.name] == "names")
        return "".join(dict.fromkeys(names))

    @cached_property
    def may_open_with_pronoun(self) -> bool:
        """Whether it opens with a name that may become "he" or "she"."""
        first, *rest = self.parts
        if not isinstance(first, Slot) or rest[0].startswith("'"):
            return False
        return (first.words, first.form, first.mark) == ("names", "", "")

    def skeleton(self, pronoun: bool) -> str:
        """Its text with a list's name for each slot, to look sentences up by."""
        text = []
        for number, part in enumerate(self.parts):
            if isinstance(part, str):
                text.append(part)
                continue
            kind = part.words or ("he" if part.form == "he" else "his")
            space = " " if part.article else ""
            text.append(f"{space}<{'he' if pronoun and number == 0 else kind}>")
        return skeleton(TOKEN.findall("".join(text)))


@dataclass(frozen=True)
class Rule:
    """One need or change of an event: `new x`, `idea u`, `t.with=x`, `t.with!=x`."""

    verb: str
    entity: str
    attribute: str = ""
    value: str = ""


@dataclass
class Event:
    """Something that can happen: what it needs, what it changes, how it is told."""

    name: str
    needs: list[Rule]
    changes: list[Rule]
    lines: list[list[Pattern]] = field(default_factory=list)  # patterns, by line
    questions: list[tuple[list[Pattern], Pattern]] = field(default_factory=list)


@cache
def words() -> dict[str, list[str]]:
    """The words of the village, by list."""
    return check_words(json.loads((HERE / "words.json").read_text(encoding="utf-8")))


def check_words(table: dict[str, str]) -> dict[str, list[str]]:
    """Split each list, and refuse one that is too short or has a word twice.

    Raises:
        ValueError: naming the list and the word.
    """
    lists = {name: text.split() for name, text in table.items()}
    for name, entries in lists.items():
        if len(entries) < 2:
            raise ValueError(
                f"the list of {name} has {len(entries)} words; a story needs two"
            )
        twice = sorted({word for word in entries if entries.count(word) > 1})
        if twice:
            raise ValueError(f"the list of {name} has {', '.join(twice)} twice")
    return lists


def _rules(text: str) -> list[Rule]:
    rules = []
    for part in filter(None, map(str.strip, text.split(","))):
        if match := re.fullmatch(r"(new|idea) (\w)", part):
            rules.append(Rule(*match.groups()))
        elif match := re.fullmatch(r"(\w+)\.(\w+)(!?=)(\w*)", part):
            entity, attribute, verb, value = match.groups()
            rules.append(Rule(verb, entity, attribute, value))
        else:
            raise ValueError(f"sentences.txt: {part!r} is no rule")
    return rules


def _pattern(line: str) -> Pattern:
    """A line without alternatives, as a pattern."""
    parts, end = [], 0
    for match in SLOT.finditer(line):
        literal = line[end : match.start()]
        name, form, mark = match.groups()
        article = bool(re.search(r"\b[Aa] $", literal))
        if article:
            literal = literal[:-1]
        parts.append(literal)
        form = form or ""
        capital = form[:1].isupper()
        parts.append(Slot(name, form.lower(), mark, capital, article))
        end = match.end()
    parts.append(line[end:])
    return Pattern(tuple(part for part in parts if part != ""))


@cache
def events() -> dict[str, Event]:
    """All events by name, read from `sentences.txt`."""
    return read_events((HERE / "sentences.txt").read_text(encoding="utf-8"))


def read_events(text: str) -> dict[str, Event]:
    """Events by name, from text in the form of `sentences.txt`."""
    found: dict[str, Event] = {}
    event = None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("= "):
            name, _, rules = line[2:].partition(":")
            needs, arrow, changes = rules.partition("->")
            event = found[name] = Event(name, _rules(needs), _rules(changes))
        elif line.startswith("? "):
            question, answer = line[2:].split(" | ")
            event.questions.append((_patterns(question), _pattern(answer)))
        else:
            event.lines.append(_patterns(line))
    return found


def _patterns(line: str) -> list[Pattern]:
    """All patterns of a line: one for each way through its alternatives."""
    choices = [
        part[1:-1].split("|") if part.startswith("[") else [part]
        for part in re.split(r"(\[[^]]*\])", line)
    ]
    return [_pattern("".join(parts)) for parts in itertools.product(*choices)]


def skeleton(tokens: list[str]) -> str:
    """Tokens as one text, to look a sentence up by."""
    return " ".join({"an": "a", "An": "A"}.get(token, token) for token in tokens)
