"""The state of the village: who is where and has what, and what may happen next."""

from corpus.grammar import CLASSES, Event, Rule

# What must be settled before a story may end, and what is wrong if it is not.
OPEN = {
    "lost": "the {0} is lost and never found",
    "stuck": "{0} never gets out of the {1}",
    "broken": "the {0} is broken and never mended",
    "birthday": "{0} never gets a present",
    "raw": "the {0} is never made",
    "lent": "the {0} is never given back",
    "for": "{1} never gets the {0}",
    "noise": "nobody finds out what the noise was",
    "mixed": "everybody has the wrong thing",
    "prize": "nobody wins the {0}",
    "moved": "nobody finds out where the {0} is",
    "blamed": "nobody asks {0} for forgiveness",
    "missing": "the {0} is eaten and no new one is made",
    "ill": "{0} never gets well",
}


class World:
    """What is true at a moment of a story.

    `state` maps (somebody or something, attribute) to a value. It is changed by events
    only, and an event says what it needs: see `sentences.txt`.
    """

    def __init__(self):
        self.state: dict[tuple[str, str], str] = {}
        self.known: dict[str, str] = {}  # what the story has brought in: its list

    def get(self, entity: str, attribute: str) -> str:
        """A value, "" if nothing is known."""
        return self.state.get((entity, attribute), "")

    def happen(self, event: Event, slots: dict[str, str]) -> list[str]:
        """Let an event happen, and say what in the world speaks against it.

        Slots that the sentence does not name are filled in from what the event needs.
        """
        wrong = self._strangers(event, slots)
        people = [slots[name] for name in "xyz" if name in slots]
        if len(set(people)) < len(people):
            wrong.append(f"{max(people, key=people.count)} is two people at once")
        for need in event.needs:
            wrong += self._check(need, slots)
        for rule in event.needs:
            if rule.verb == "new" and rule.entity in slots:
                self.known[slots[rule.entity]] = CLASSES[rule.entity]
        for change in event.changes:
            entity = slots.get(change.entity, change.entity)
            value = slots.get(change.value, change.value)
            if len(value) == 1:  # a slot that a contradictory text leaves empty
                value = ""
            self.state[entity, change.attribute] = value
        return wrong

    def _strangers(self, event: Event, slots: dict[str, str]) -> list[str]:
        new = {rule.entity for rule in event.needs if rule.verb == "new"}
        ideas = {rule.entity for rule in event.needs if rule.verb == "idea"}
        wrong = []
        for name, word in slots.items():
            of = CLASSES[name]
            if of not in ("names", "things", "foods", "ingredients", "tools"):
                continue
            if name not in new | ideas and word not in self.known:
                what = word if of == "names" else f"a {word}"
                wrong.append(f"the story has not told of {what}")
            if name in new and word in self.known and of != "ingredients":
                what = "people are called" if of == "names" else "things are called"
                wrong.append(f"two {what} {word}")
        return wrong

    def _check(self, need: Rule, slots: dict[str, str]) -> list[str]:
        if need.verb in ("new", "idea"):
            return []
        entity = "it" if need.entity == "it" else slots.get(need.entity)
        if entity is None:
            return []
        value = self.get(entity, need.attribute)
        wanted = slots.get(need.value, need.value)
        if need.verb == "!=":
            return [f"{_say(entity, need.attribute, value)}"] * (value == wanted)
        if len(need.value) == 1 and need.value not in slots and value:
            slots[need.value] = value
            return []
        if value == wanted:
            return []
        return [f"{_say(entity, need.attribute, value)}, not {wanted}"]

    def unsettled(self) -> list[str]:
        """What a story that ends here has left open."""
        return [
            OPEN[attribute].format(entity, value)
            for (entity, attribute), value in self.state.items()
            if attribute in OPEN and value
        ]

    def owners(self) -> dict[str, str]:
        """Who has each thing."""
        return {
            entity: value
            for (entity, attribute), value in self.state.items()
            if attribute == "with" and value in self.known
        }


def _say(entity: str, attribute: str, value: str) -> str:
    value = value or "nobody" if attribute in ("with", "of") else value or "unknown"
    if entity == "it":
        return f"here the story is about {value}"
    return f"{entity}: {attribute} is {value}"
