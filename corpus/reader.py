"""Read a story of the village and find what contradicts it.

Each sentence is looked up among the patterns that the teller uses. That gives the event
and what filled its slots; the world then says whether that can have happened.
"""

import re
from functools import cache

from corpus.grammar import (
    PRONOUNS,
    TOKEN,
    Slot,
    events,
    skeleton,
    words,
)
from corpus.world import World

LONGEST = 100_000  # characters; a story has about a thousand
ENDS = (".", "!", "?")


@cache
def _lexicon() -> dict[str, str]:
    """Each word that can fill a slot, and the list it is from."""
    lists = words()
    names = [
        word for name in ("she", "he", "new_she", "new_he") for word in lists[name]
    ]
    found = dict.fromkeys(names, "names")
    for name, entries in lists.items():
        if name not in ("she", "he", "new_she", "new_he", "breakable", "noisy"):
            found.update(dict.fromkeys(entries, name))
    found.update({"he": "he", "she": "he", "He": "he", "She": "he"})
    for word in ("him", "his", "her"):
        found[word] = found[word.capitalize()] = "his"
    return found


@cache
def _genders() -> dict[str, str]:
    lists = words()
    return {
        word: gender
        for gender in ("she", "he")
        for word in lists[gender] + lists[f"new_{gender}"]
    }


@cache
def _patterns() -> tuple[dict[str, list[tuple[str, list[Slot]]]], set[str], int]:
    """Events and slots by skeleton, all literal words, the most pieces of a pattern."""
    found: dict[str, list[tuple[str, list[Slot]]]] = {}
    literal, most = {"An"}, 1
    for event in events().values():
        for pattern in (p for line in event.lines for p in line):
            for pronoun in (False, True)[: 1 + pattern.may_open_with_pronoun]:
                key = pattern.skeleton(pronoun)
                found.setdefault(key, []).append((event.name, pattern.slots))
                most = max(most, len(_pieces(key.split())))
                literal.update(key.split())
    return found, literal, most


def _pieces(tokens: list[str]) -> list[list[str]]:
    """Tokens cut after each full stop, question or exclamation mark."""
    pieces, start, quoted = [], 0, False
    for number, token in enumerate(tokens):
        quoted ^= token == '"'
        after = tokens[number + 1] if number + 1 < len(tokens) else ""
        closes = token == '"' and not quoted and tokens[number - 1] in ENDS
        if closes or (token in ENDS and not (after == '"' and quoted)):
            if after not in ENDS:
                pieces.append(tokens[start : number + 1])
                start = number + 1
    return pieces + [tokens[start:]] * (start < len(tokens))


def contradictions(text: str) -> list[str]:
    """What is wrong in a story of the village: [] if it keeps its thread and ends.

    Each entry names the sentence and what the story had said before: a stranger, a
    thing that somebody else has, a place that was not meant, something left open, no
    end. A sentence that nobody in the village would say is an entry, too.

    Raises:
        TypeError: if `text` is no text.
        ValueError: if it is longer than 100,000 characters.
    """
    if not isinstance(text, str):
        raise TypeError(f"a story is a text, not {type(text).__name__}")
    if len(text) > LONGEST:
        raise ValueError(
            f"the text has {len(text):,} characters, a story at most {LONGEST:,}; "
            "read the stories one by one"
        )
    return _Reading(text).wrong


class _Reading:
    """One pass over a story."""

    def __init__(self, text: str):
        self.world, self.topic, self.ended = World(), "", False
        self.wrong: list[str] = []
        self.genders = dict(_genders())
        for paragraph in re.split(r"\n\s*\n", text):
            self._paragraph(TOKEN.findall(paragraph))
        if not self.ended:
            self.wrong.append("the story has no end")
        self.wrong += self.world.unsettled()

    def _paragraph(self, tokens: list[str]):
        """Read a paragraph, sentence by sentence."""
        found, literal, most = _patterns()
        lexicon = _lexicon()
        classes = [lexicon.get(token, "") for token in tokens]
        for number, token in enumerate(tokens):
            unknown = token[0].isupper() and token not in literal
            if not classes[number] and unknown:
                classes[number] = "names"  # somebody whose name is on no list
        keys = [f"<{c}>" if c else t for c, t in zip(classes, tokens, strict=True)]
        pieces, start = _pieces(keys), 0
        while pieces:
            for count in range(min(most, len(pieces)), 0, -1):
                key = skeleton([token for piece in pieces[:count] for token in piece])
                if key in found:
                    break
            else:
                key, count = "", 1
            size = sum(map(len, pieces[:count]))
            said = tokens[start : start + size]
            values = [
                token
                for token, c in zip(said, classes[start : start + size], strict=True)
                if c
            ]
            if key:
                self._event(found[key], values, _join(said))
            else:
                self.ended = False
                self.wrong.append(f"{_join(said)} - nobody in the village says that")
            pieces, start = pieces[count:], start + size

    def _event(self, choices, values: list[str], said: str):
        """Let the event of a sentence happen."""
        best = None
        for name, slots in choices:
            bound, wrong = self._bind(slots, values)
            trial = wrong + self._try(name, dict(bound))
            if best is None or len(trial) < len(best[2]):
                best = name, bound, trial
        name, bound, wrong = best
        self.wrong += [f"{said} - {reason}" for reason in wrong]
        self.topic = bound.get("x") or bound.get("y") or bound.get("z") or ""
        self.world.happen(events()[name], bound)
        self.ended = any(c.attribute == "end" for c in events()[name].changes)

    def _try(self, name: str, bound: dict[str, str]) -> list[str]:
        world = World()
        world.state, world.known = dict(self.world.state), dict(self.world.known)
        return world.happen(events()[name], bound)

    def _bind(self, slots: list[Slot], values: list[str]):
        """What fills each slot, and what does not go together."""
        bound: dict[str, str] = {}
        wrong: list[str] = []
        later = []
        for number, (slot, value) in enumerate(zip(slots, values, strict=True)):
            if number == 0 and not slot.form and value.lower() in PRONOUNS:
                bound[slot.name] = self.topic
                later.append((slot, value))
            elif slot.form:
                later.append((slot, value))
            elif bound.setdefault(slot.name, value) != value:
                wrong.append(f"{bound[slot.name]} and {value} cannot both be meant")
        for slot, value in later:
            who = bound.get(slot.name)
            if slot.form == "look":
                look = self.world.get(bound.get(slot.name, ""), "look")
                if look != value:
                    wrong.append(f"the {bound.get(slot.name)} is {look or 'unknown'}")
            elif who:
                gender = self.genders.setdefault(who, _gender(value))
                if value.lower() not in PRONOUNS[gender]:
                    wrong.append(f"{who} is a {gender}")
        return bound, wrong


def _gender(pronoun: str) -> str:
    return "she" if pronoun.lower() in PRONOUNS["she"] else "he"


def _join(tokens: list[str]) -> str:
    return re.sub(r"(\w) (['.,!?])", r"\1\2", " ".join(tokens)).replace("' s", "'s")
