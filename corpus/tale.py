"""A story of the village with what is true in it: facts, questions, requests, marks."""

import random
import re
import zlib
from functools import cached_property
from typing import NamedTuple

from corpus.grammar import FORMS, KIND_OF_MARK, PRONOUNS, Pattern, Slot, events
from corpus.plots import PLOTS
from corpus.world import World


class Person(NamedTuple):
    """Somebody in a story."""

    name: str
    gender: str
    kind: str


class Said(NamedTuple):
    """One event of a story, and how it was told."""

    event: str
    slots: dict[str, object]
    pattern: Pattern
    pronoun: bool
    paragraph: bool  # a paragraph begins here


class Tale:
    """A story of the village.

    Attributes:
        text: the story; paragraphs are separated by an empty line.
        plots: the names of its one or two plots.
        facts: what is true at its end, as (who or what, in which respect, value).
        questions: pairs of a question about it and the answer.
        requests: sentences that ask for this story.
        marks: (kind, start, end) of words that come back and that the text before them
            decides; kind is who, what, where or whose.
    """

    def __init__(self, said: list[Said], plots: list[tuple[str, str, Person]]):
        self._said, self._plots = said, plots
        self.plots = tuple(name for name, _, _ in plots)
        self.text = "".join([part[0] for part in self._parts()])

    def __repr__(self) -> str:
        return f"Tale({self.text[:60]!r}...)"

    def _parts(self) -> list[tuple[str, Slot | None, Pattern | None]]:
        """The story piece by piece: text, the slot that it fills, its pattern."""
        parts = []
        for number, (_, slots, pattern, pronoun, paragraph) in enumerate(self._said):
            if number:
                parts.append(("\n\n" if paragraph else " ", None, None))
            fill(pattern, slots, parts, pronoun)
        return parts

    def owners(self) -> dict[str, str]:
        """Who has each thing at the end."""
        return self._world.owners()

    @cached_property
    def _world(self) -> World:
        world = World()
        for said in self._said:
            slots = {
                name: value.name if isinstance(value, Person) else value
                for name, value in said.slots.items()
                if len(name) == 1
            }
            wrong = world.happen(events()[said.event], slots)
            assert not wrong, (said.event, slots, wrong)
        return world

    @property
    def facts(self) -> list[tuple[str, str, str]]:
        return [
            (who, what, value)
            for (who, what), value in self._world.state.items()
            if value and who != "it"
        ]

    @cached_property
    def questions(self) -> list[tuple[str, str]]:
        people = {
            p.name: p
            for s in self._said
            for p in s.slots.values()
            if isinstance(p, Person)
        }
        asked = [(said.event, said.slots) for said in self._said]
        asked += [
            ("owner", {"x": people[x], "t": t})
            for t, x in self.owners().items()
            if x in people
        ]
        found: dict[str, set[str]] = {}
        for number, (event, slots) in enumerate(asked):
            for wordings, answer in events()[event].questions:
                wording = wordings[(number + len(self.text)) % len(wordings)]
                question, reply = filled(wording, slots), filled(answer, slots)
                found.setdefault(question, set()).add(reply)
        # What has two answers in a story of two plots is not asked.
        return [(question, *a) for question, a in found.items() if len(a) == 1]

    @cached_property
    def requests(self) -> list[str]:
        seen = {text: slot for text, slot, _ in self._parts() if slot and slot.words}
        lists = ("things", "foods", "tools", "kinds", "places")
        asked = [text for text, slot in seen.items() if slot.words in lists]
        draw = random.Random(zlib.crc32(self.text.encode())).random
        asked.sort(key=lambda word: draw())
        first, *others = asked[:3]
        return [
            f"Write a story with the words {first}, {' and '.join(others)}.",
            *(
                f"Tell a story in which {with_articles(name, x.kind, main)}."
                for name, main, x in self._plots
            ),
            *(
                f"Tell a story about {x.name} the {x.kind}."
                for _, _, x in self._plots[:1]
            ),
        ]

    @cached_property
    def marks(self) -> list[tuple[str, int, int]]:
        found, seen, end = [], {}, 0
        before = " "
        for text, slot, pattern in self._parts():
            if slot and slot.words:
                rivals = seen.setdefault(slot.words, set())
                opens = slot is pattern.parts[0]  # nothing says yet what comes now
                if slot.mark and text in rivals and before == " " and not opens:
                    kind = _kind(slot, pattern, len(rivals))
                    found.append((kind, end, end + len(text)))
                rivals.add(text)
            before = text[-1:]
            end += len(text)
        return found


def fill(pattern: Pattern, slots: dict, parts: list, pronoun: bool = False):
    """Add a filled pattern to `parts`, piece by piece: text, its slot, its pattern."""
    for part in pattern.parts:
        if part.__class__ is str:
            parts.append((part, None, pattern))
            continue
        value = slots[part.name]
        if value.__class__ is Person:
            if part.form:
                value = PRONOUNS[value.gender][FORMS.index(part.form)]
            elif pronoun:
                value, pronoun = value.gender.capitalize(), False  # only the first one
            else:
                value = value.name
        elif part.form == "look":
            value = slots[part.name + ".look"]
        if part.article:
            parts.append(("n " if value[0] in "aeiou" else " ", None, pattern))
        parts.append((value.capitalize() if part.capital else value, part, pattern))


def with_articles(plot: str, kind: str, main: str) -> str:
    """What a plot is about, with "a" or "an" before its animal and its thing."""
    text = PLOTS[plot].about.format(k=kind, t=main)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def filled(pattern: Pattern, slots: dict) -> str:
    """A pattern, filled in, as text."""
    fill(pattern, slots, parts := [])
    return "".join([part[0] for part in parts])


def _kind(slot: Slot, pattern: Pattern, rivals: int) -> str:
    """Who, what or where; whose, if several could be named and one has something."""
    kind = KIND_OF_MARK.get(slot.words, "what")
    lists = {slot.words for slot in pattern.slots}
    owns = kind == "what" or not lists.isdisjoint(("things", "foods"))
    return "whose" if slot.mark == "!" and rivals > 1 and owns else kind
