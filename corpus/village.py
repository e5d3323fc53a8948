"""Stories of a small village, each with what is true in it.

A program plays what happens (`plots.py`) in a world that it keeps track of
(`world.py`) and tells it in sentences (`sentences.txt`). So a story keeps its thread by
construction, there are as many as one likes, and a model that has read only the text
can be asked what it has understood.
"""

import random
import zlib
from collections.abc import Iterator

from corpus.grammar import events, words
from corpus.plots import PLOTS
from corpus.tale import Person, Said, Tale

PARTS = ("train", "held-out", "new-names")
TRAITS = [name[6:] for name in events() if name.startswith("trait_")]
HELD_OUT = 5  # one combination of five is never trained on
ORDER = list(PLOTS)
ARRIVES = ("go", "go_on", "takes_along", "goes_looking", "wrong_place")
GETS = ("lost", "swap", "stuck", "lend", "mixed_up", "moved")  # plots of a thing x has


class Teller:
    """Draws who and what a story is about, and writes down what the plots say."""

    def __init__(self, seed: int, part: str, simple: bool = False):
        self.random = random.Random(seed).random  # the same on every Python
        self.part, self.simple, self.words = part, simple, words()
        prefix = "new_" if part == "new-names" else ""
        self.names = {g: self.words[prefix + g] for g in ("she", "he")}
        self.said: list[Said] = []
        self.people: list[Person] = []
        self.known: set[Person] = set()
        self.used: set[str] = set()
        self.home, self.away = "", False  # of the first person
        self.has: dict[str, Person] = {}
        self.looks: dict[str, str] = {}
        self.topic: Person | None = None
        self.new_paragraph = False
        self.ending: tuple[str, dict] | None = None
        self.clear = True

    # --- Drawing ----------------------------------------------------------------------

    def one_of(self, entries):
        return entries[int(self.random() * len(entries))]

    def chance(self, p: float) -> bool:
        return self.random() < p

    def pick(self, name: str) -> str:
        """A word of a list that the story has not used."""
        while (word := self.one_of(self.words[name])) in self.used:
            pass
        self.used.add(word)
        return word

    def places(self, count: int) -> list[str]:
        drawn = []
        while len(drawn) < count:
            place = self.one_of(self.words["places"])
            if place not in drawn and place != self.home:
                drawn.append(place)
        return drawn

    def thing(self) -> str:
        return self.pick("things")

    def look(self, thing: str) -> str:
        return self.looks.setdefault(thing, self.one_of(self.words["looks"]))

    def person(self, name: str | None = None) -> Person:
        """Somebody who is not in the story yet, with this name or any."""
        gender = self.one_of(("she", "he"))
        if name is None:
            name = self.one_of(self.names[gender])
        else:
            gender = "she" if name in self.names["she"] else "he"
        kind = self.one_of(self.words["kinds"])
        if any(name == p.name or kind == p.kind for p in self.people):
            return self.person()
        return Person(name, gender, kind)

    def other(self) -> Person:
        """Somebody who has not been in the story yet."""
        self.people.append(self.person())
        return self.people[-1]

    # --- Saying -----------------------------------------------------------------------

    def __call__(self, event: str, **slots):
        lines = events()[event].lines
        pattern = lines[0][0] if self.simple else self.one_of(self.one_of(lines))
        pronoun = (
            pattern.may_open_with_pronoun
            and self.clear
            and slots[pattern.parts[0].name] is self.topic
            and not self.new_paragraph
            and self.random() < 0.75
        )
        if "t" in slots:
            slots["t.look"] = self.looks.get(slots["t"])
        self.said.append(Said(event, slots, pattern, pronoun, self.new_paragraph))
        self.new_paragraph = False
        people = pattern.people
        self.topic = None
        for name in "xyz":
            if name in people:
                self.topic = slots[name]
                break
        # "He" is clear if nobody else who was named is a he.
        self.clear = True
        for name in people:
            person = slots[name]
            self.known.add(person)
            if person is not self.topic and person.gender == self.topic.gender:
                self.clear = False
        if event in ARRIVES:
            self.away |= slots["x"] is self.people[0]
            if self.chance(0.8):
                self("arrives", x=slots["x"], p=slots["p"])

    def ends(self, x: Person, y: Person):
        """End the story as any story may end, or with the last event of the plot."""
        self.ending = ("end", {"x": x, "y": y}) if self.chance(0.5) else None

    def ends_with(self, event: str, **slots):
        """End the story in a way that fits this plot, or with its last event."""
        self.ending = (event, slots) if self.chance(0.7) else None

    def para(self):
        self.new_paragraph = True

    # --- Ways to bring in people and things -----------------------------------------

    def knows(self, person: Person) -> bool:
        return person in self.known

    def get(self, x: Person, t: str, event: str = "have"):
        """x has t: told now, or recalled."""
        if self.has.get(t) == x:
            self("still_has", x=x, t=t)
        else:
            self(event, x=x, t=t, a=self.look(t))

    def friend(self, x: Person, y: Person):
        if not self.knows(y):
            self("friend", x=x, y=y, k=y.kind)

    def meets(self, x: Person, y: Person):
        if self.knows(y):
            self("see", x=x, y=y)
        else:
            self("meet", x=x, y=y, k=y.kind)

    def visits(self, x: Person, y: Person, p: str):
        p = self.home if y is self.people[0] else p
        if self.knows(y):
            self("visit_again", x=x, y=y, p=p)
        else:
            self("visit", x=x, y=y, k=y.kind, p=p)

    # --- Putting a story together -----------------------------------------------------

    def draw_pair(self, hero: str | None) -> tuple[Person, Person]:
        """Two people whose names may be together in this part."""
        while True:
            x, y = self.person(hero), self.person()
            if x.name == y.name or x.kind == y.kind:
                continue
            together = "".join(sorted((x.name, y.name)))
            if self.part == "new-names" or self.belongs(together):
                return x, y

    def belongs(self, combination: str) -> bool:
        """Whether a combination is held out just as this part is."""
        held_out = zlib.crc32(combination.encode()) % HELD_OUT == 0
        return held_out == (self.part == "held-out")

    def draw_plot(
        self, x: Person, mine: list[str], plots: list[str]
    ) -> tuple[str, str]:
        """A plot and its main thing, which x has already if that is possible."""
        while True:
            name = self.one_of(plots)
            again = name in GETS and mine and self.chance(0.9)
            main = self.one_of(mine if again else self.words[PLOTS[name].takes])
            fresh = again or main not in self.used
            if fresh and self.belongs(f"{name} {x.kind} {main}"):
                self.used.add(main)
                return name, main
            if len(plots) == 1 and self.chance(0.05):
                return name, ""  # perhaps no thing goes with this animal

    def story(self, plot: str | None, hero: str | None) -> Tale:
        """Draw a story and tell it."""
        main = ""
        while not main:
            x, y = self.draw_pair(hero)
            name, main = self.draw_plot(x, [], [plot] if plot else ORDER)
        self.people = [x, y]
        (self.home,) = self.places(1)
        self("begin", x=x, k=x.kind, p=self.home)
        if self.chance(0.5):
            self("at_home", x=x, p=self.home)
        trait = self.one_of(TRAITS) if self.chance(0.35) else ""
        if trait:
            self(f"trait_{trait}", x=x)
        if self.chance(0.25):
            self("weather")
        self.ends(x, y)
        PLOTS[name].tell(self, x, y, main)
        plots = [(name, main, x)]
        if not plot and not self.simple and self.chance(0.25):
            self.para()
            plots.append(self.second(x, y, name))
        if trait:  # what was told of somebody comes back
            self(f"echo_{trait}", x=x)
        elif self.ending:
            ending, slots = self.ending
            self(ending, **slots)
        elif self.away:
            self("goes_home", x=self.people[0], p=self.home)
        return Tale(self.said, plots)

    def second(self, x: Person, y: Person, before: str) -> tuple[str, str, Person]:
        """Another plot with the same people, who may change their parts."""
        if self.chance(0.5):
            x, y = y, x
        self.ends(x, y)
        self("later", x=x, y=y)
        owners = Tale(self.said, []).owners()
        mine = [t for t in self.words["things"] if owners.get(t) == x.name]
        self.has.update(dict.fromkeys(mine, x))
        others = [plot for plot in ORDER if plot != before]
        if mine and self.chance(0.6):
            others = [plot for plot in others if plot in GETS]
        name, main = self.draw_plot(x, mine, others)
        PLOTS[name].tell(self, x, y, main)
        return name, main, x


def tell(
    seed: int,
    part: str = "train",
    plot: str | None = None,
    hero: str | None = None,
    simple: bool = False,
) -> Tale:
    """A story of the village, the same for the same seed on every machine.

    Args:
        seed: any whole number; another one gives another story.
        part: "train"; "held-out", whose combinations of plot, animal and thing, and of
            two names, never occur in "train"; or "new-names", whose names never do.
        plot: tell this plot alone, one of `PLOTS`.
        hero: tell it of somebody with this name, one of the part's names.
        simple: tell one plot alone, and every event in always the same way, as in a
            child's first book.

    Raises:
        TypeError: for a seed that is no whole number.
        ValueError: for a part, a plot or a name that does not exist.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"a seed is a whole number, not {seed!r}")
    if part not in PARTS:
        raise ValueError(f"there is no part {part!r}; take one of {', '.join(PARTS)}")
    if plot is not None and plot not in PLOTS:
        raise ValueError(f"there is no plot {plot!r}; take one of {', '.join(PLOTS)}")
    number = 2 * seed if seed >= 0 else -2 * seed - 1  # `random` forgets the sign
    teller = Teller(PARTS.index(part) + len(PARTS) * int(number), part, simple)
    names = teller.names["she"] + teller.names["he"]
    if hero is not None and hero not in names:
        raise ValueError(
            f"nobody in the part {part!r} of the village is called {hero!r}; take one "
            f"of {', '.join(names)}"
        )
    return teller.story(plot, hero)


def tales(count: int, part: str = "train", first: int = 0) -> Iterator[Tale]:
    """`count` stories, of the seeds from `first` on.

    Raises:
        ValueError: for fewer than one story; else as `tell`.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, not {count}")
    tell(first, part)  # complains now, not when the first story is taken
    return (tell(seed, part) for seed in range(first, first + count))
