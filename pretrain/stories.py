"""Tell each story again with other names, and ask for it first.

    python -m pretrain.stories tinystories-valid --out texts --versions 8
    python -m pretrain.prepare texts/stories-?.txt --held-out 0 --out shards

A small model can learn to tell stories from a few million words, if it reads each story
several times. But then it learns the names by heart. So each version of a story has
other names, and some have other animals, colours or things. Now the model can only find
the next name by looking back in the story.

Half of the stories (`--asked`) begin with a line that asks for what follows ("Write a
story with the words kite, brave and climb."). Chapter 7 asks in the same words.

`tinystories-valid` has some 27,600 stories, `tinystories` a hundred times as many. Both
are downloaded when they are first used. A file of your own will do as well.

A few stories are held out: they go into a file of their own with the names that they
have, and no version contains them. Curly quotation marks become plain ones everywhere.
The same seed gives the same bytes on every machine.
"""

import argparse
import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ch07_instructions.word_forms import word_forms
from pretrain.prepare import read_documents
from shared import data
from shared.ch02 import END_OF_TEXT
from shared.files import write_atomically

PLAIN_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")  # from ‘’“”
HELD_OUT = 0.01  # share of the stories
CHANGED = 0.5  # chance that a story gets other things of a kind

# --- Tables ---------------------------------------------------------------------------

GIRLS = (
    "Lily Mia Sue Lucy Anna Amy Sally Sara Sarah Jane Molly Jill Bella Mimi Emma Mary "
    "Lisa Jen Jenny Ann Ella Emily Lulu Polly Susie Lola Ellie Tina Betty Kate Penny "
    "Grace Sophie Ruby Alice Milly Maria Julie Bessie Rosie Lilly Zara Olive Clara "
    "Chloe Mandy Maggie Annie Millie Cindy Abby Zoe Linda Tilly Jenna Abigail Tara "
    "Jessie Jessica Lena Rachel Sofia Claire Liz Lizzy Carla Mabel Lila Luna Kim Daisy "
    "Poppy Rose Joy May June Ivy Ada Agnes Aisha Amina Asha Beth Bonnie Carmen Cleo "
    "Cora Dana Dora Edith Elena Elsa Erin Esther Eva Fatima Fiona Flora Freya Gemma "
    "Gina Greta Hana Hanna Hazel Heidi Helen Ida Ines Iris Isla Jasmine Jia Joanna "
    "Juno Kira Laila Lara Laura Leah Leila Lina Lotte Lydia Maya Megan Mei Mona Nadia "
    "Naomi Nell Nina Noor Nora Paula Petra Pia Priya Rania Rita Rosa Ruth Sana Selma "
    "Sonia Stella Suki Tess Thea Uma Vera Violet Wanda Willa Yara Yasmin Yuki Zadie"
).split()
BOYS = (
    "Tim Tom Ben Max Sam Bob Timmy Jack John Billy Tommy Joe Leo Benny Jerry Fred "
    "Bobby Jake Sammy Ollie Andy Jim Jimmy Peter Pete Freddy Dave Charlie Johnny Toby "
    "Paul Ted Finn Danny Joey Henry Mike George James Dan Frank Robby Carl Harry Luke "
    "Tony David Rob Oliver Gary Lenny Jamie Ray Jay Mark Bill Will Pat Adam Alan Ali "
    "Amir Anton Arlo Axel Basil Boris Bruno Callum Cem Cyrus Darius Diego Dylan Eddie "
    "Eli Emil Enzo Eric Ethan Ezra Felix Femi Gus Hamid Hans Hassan Hugo Ian Idris "
    "Igor Isaac Ivan Jamal Jonas Joshua Juan Kai Karim Kenji Kofi Kurt Lars Leon Liam "
    "Louis Lucas Malik Marco Mateo Milo Musa Nico Niko Noah Nils Omar Oscar Otto Owen "
    "Pablo Pavel Percy Quinn Rafi Ravi Remy Rico Roman Rory Rufus Sanjay Sean Seth "
    "Simon Stan Sven Tariq Theo Tobias Umar Victor Vikram Walter Yusuf Zack Zeno"
).split()
PETS = (
    "Spot Fluffy Kitty Bobo Buddy Momo Whiskers Rex Spike Chirpy Mittens Binky Snowy "
    "Zip Pippin Finny Bubbles Tweetie Squeaky Buzzy Brownie Pepper Zoomy Gigi Kiki "
    "Tweety Rover Pinky Speedy Bouncy Nutty Pip Dodo Coco Wiggly Toto Bluey Sparky "
    "Patch Biscuit Button Waffles Muffin Nibbles Socks Tippy Fuzzy Ginger Scout Hopper "
    "Peanut Noodle Pickle Bingo Boots Puddles Twinkle Fidget Pompom Tumble Sniffles"
).split()

# Names that are also words. They are never given, and where one begins a sentence, the
# word after it tells whether it is the name ("Will saw") or the word ("Will you").
ALSO_WORDS = frozenset(
    "Will May Mark Bill Rob Pat Ray Jay Frank Spot Spike Patch Button Scout Tumble "
    "Rose Joy June Grace Ruby Penny Olive Daisy Poppy Ivy Hazel Iris Jasmine Violet "
    "Fluffy Bubbles Pepper Brownie Speedy Bouncy Nutty Biscuit Muffin Nibbles Socks "
    "Peanut Noodle Pickle Boots Puddles Twinkle Fidget Buddy Kitty Snowy".split()
)
NEVER_AFTER_A_NAME = "I a he his it my she that the their they this we you your"

# Kinds of things that can replace each other, each with its plural. The words below
# a kind fit only some of its things (a rabbit hops): a story that has one of them keeps
# its things of that kind.
KINDS = (
    (
        "fox foxes, rabbit rabbits, bear bears, squirrel squirrels, mouse mice, badger "
        "badgers, hedgehog hedgehogs, otter otters",
        "hop hopped hopping carrot carrots nut nuts acorn acorns honey cheese cave "
        "tail ears cub den hole teddy trap hunter roar roared squeak squeaked river "
        "swim cat",
    ),
    (
        "lion lions, tiger tigers, elephant elephants, giraffe giraffes, zebra zebras, "
        "hippo hippos, camel camels",
        "roar roared roaring trunk neck stripes mane king spots tall hump water circus",
    ),
    (
        "red reds, blue blues, green greens, yellow yellows, pink pinks, purple "
        "purples, orange oranges",
        "sky grass leaf leaves sun sea water rainbow color colors colour colours "
        "apple apples tomato banana juice fruit frog blood fire rose cheeks light mix "
        "berries",
    ),
    (
        "apple apples, pear pears, peach peaches, plum plums, orange oranges",
        "red green yellow purple juice core peel pie color",
    ),
    ("hat hats, scarf scarves, cap caps, coat coats", "head neck magic sleeve warm"),
    ("cookie cookies, muffin muffins, cupcake cupcakes, bun buns", "jar dough"),
    ("car cars, truck trucks, van vans, bus buses", "fire race racing stop ticket"),
    ("chair chairs, bench benches, stool stools, sofa sofas", "table rock park"),
)

# --- Other names and things -----------------------------------------------------------

POOLS = (GIRLS, BOYS, PETS)
_NAMES = frozenset(name for pool in POOLS for name in pool)
_CAPITAL = re.compile(r"\b[A-Z][a-z]+\b")
_INSIDE = re.compile("[a-z,;] ")  # comes before a word inside a sentence
_NOT_A_NAME = re.compile(rf" (?:{'|'.join(NEVER_AFTER_A_NAME.split())})\b")


class Chance:
    """Random draws that are the same on every machine.

    They use only `random.Random(seed).random`, which Python promises never to change.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed).random

    def draw(self, choices: Sequence, count: int) -> list:
        """`count` different ones of the choices, in random order."""
        left, drawn = list(choices), []
        for _ in range(count):
            drawn.append(left.pop(int(self.random() * len(left))))
        return drawn


def name_places(text: str) -> list[re.Match]:
    """Where the names of people and pets are in a story.

    A word of the tables is a name in this story if it has a capital letter inside a
    sentence somewhere. Then it is also a name where it begins a sentence, except for
    words such as the first one of "Will you come?".
    """
    places = [m for m in _CAPITAL.finditer(text) if m[0] in _NAMES]
    inside = [m for m in places if _INSIDE.fullmatch(text[: m.start()][-2:])]
    names = {m[0] for m in inside}
    verbs = {
        m
        for m in places
        if m[0] in ALSO_WORDS and m not in inside and _NOT_A_NAME.match(text, m.end())
    }
    return [m for m in places if m[0] in names and m not in verbs]


def rename(text: str, chance: Chance) -> str:
    """The story with every name replaced by another one from the same table.

    Two names before are two names after, and none of the new names was in the story
    already. If a table runs out of names, the last old ones stay.
    """
    places = name_places(text)
    old = list(dict.fromkeys(m[0] for m in places))
    words = set(re.findall(r"\w+", text))
    new = {}
    for pool in POOLS:
        mine = [name for name in old if name in pool]
        free = [n for n in pool if n not in words and n not in ALSO_WORDS]
        new |= zip(mine, chance.draw(free, min(len(mine), len(free))), strict=False)
    return _replace(text, places, new)


def _replace(text: str, places: list[re.Match], new: dict[str, str]) -> str:
    parts, end = [], 0
    for m in places:
        parts += [text[end : m.start()], new.get(m[0], m[0])]
        end = m.end()
    return "".join([*parts, text[end:]])


def exchange(text: str, kind: str, chance: Chance) -> str:
    """The story with the things of one kind exchanged, a plural for a plural.

    An `a` or `an` before them is corrected, and a capital letter stays one.

    >>> exchange("An apple and two plums.", "apple apples, plum plums", Chance(2))
    'A plum and two apples.'
    """
    forms = [pair.split() for pair in kind.split(",")]
    drawn = chance.draw(forms, len(forms))
    new = {
        a: b
        for old, other in zip(forms, drawn, strict=True)
        for a, b in zip(old, other, strict=True)
    }

    def replace(m: re.Match) -> str:
        article, word = m[1] or "", new[m[2].lower()]
        if article:
            article = article[0] + ("n " if word[0] in "aeiou" else " ")
        return article + (word.capitalize() if m[2][0].isupper() else word)

    words = "|".join(new)
    return re.sub(rf"\b([Aa]n? )?((?i:{words}))\b", replace, text)


def retell(text: str, chance: Chance) -> str:
    """A story with other names and, where that makes sense, other things."""
    text = rename(text, chance)
    words = set(re.findall(r"[a-z]+", text.lower()))
    for kind, belongs_to_one in KINDS:
        wanted = chance.random() < CHANGED
        if wanted and words.isdisjoint(belongs_to_one.split()):
            text = exchange(text, kind, chance)
    return text


# --- Requests -------------------------------------------------------------------------

ORDINARY = 400  # the commonest words, which nobody would ask for
_WORD = re.compile(r"(?<!')\b[a-z]{2,}\b(?!')")  # in lower case; not "I'll", "wasn't"
_HERO = re.compile(r"\b(an? (?:[a-z]+ ){1,3}(?:named|called) [A-Z][a-z]+)\b")
_FIRST_SENTENCE = re.compile(r"[^.!?\n]{20,150}(?<!\bMr)(?<!\bMrs)[.!?] (?=[A-Z])")


class Requests:
    """Makes lines that ask for a given story.

    Args:
        stories: all of them, to find out which words are too common to ask for.
        asked: share of the stories that begin with a request.
    """

    def __init__(self, stories: Sequence[str], asked: float = 0.5):
        self.asked = asked
        counts = Counter(word for text in stories for word in _WORD.findall(text))
        known = [w for w, count in counts.most_common() if count >= 5]
        self.plain: dict[str, str] = {}  # climbed: climb
        ordinary: set[str] = set()
        for rank, word in enumerate(known):  # the commonest first
            for form in word_forms(word) & counts.keys():
                if self.plain.get(form, form) == form:
                    self.plain[form] = word
            if rank < ORDINARY:
                ordinary = set(self.plain)
        for word in ordinary:
            del self.plain[word]

    def words(self, text: str, chance: Chance) -> str | None:
        """Ask for three of the story's words."""
        words = _WORD.findall(text)
        found = list(dict.fromkeys(self.plain[w] for w in words if w in self.plain))
        if len(found) < 3:
            return None
        a, b, c = chance.draw(found, 3)
        return f"Write a story with the words {a}, {b} and {c}."

    def hero(self, text: str, chance: Chance) -> str | None:
        """Ask for a story about the one whom it introduces first: "a fox named Ben"."""
        found = _HERO.search(text)
        return f"Tell a story about {found[1]}." if found else None

    def before(self, text: str, chance: Chance) -> str:
        """The story, often with a request before it.

        The third kind of request shows the first sentence and asks for the rest.
        """
        if chance.random() >= self.asked:
            return text
        kind = chance.random()
        if kind < 0.6:
            line = self.words(text, chance)
        elif kind < 0.8:
            line = self.hero(text, chance)
        else:
            first = _FIRST_SENTENCE.match(text)
            line = f"Finish this story: {first[0].strip()}" if first else None
            text = text[first.end() :] if first else text
        return text if line is None else f"{line}\n\n{text}"


# --- Files ----------------------------------------------------------------------------


def split_stories(stories: Sequence[str]) -> tuple[list[str], list[str]]:
    """Stories to train on, and stories to hold out.

    A hash of its text decides where a story goes, so it always goes there.
    """
    parts: tuple[list[str], list[str]] = [], []
    for text in stories:
        digest = hashlib.sha256(text.encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64
        parts[held_out].append(text)
    return parts


def write_versions(
    path: Path, out: Path, versions: int, seed: int = 123, asked: float = 0.5
) -> list[Path]:
    """Write `stories-1.txt` ... and `held-out-stories.txt` into the folder `out`.

    Args:
        path: the stories, each followed by a line `<|endoftext|>`.
        out: the folder, which is made if there is none.
        versions: how often each story is told.
        seed: decides which names and things are drawn.
        asked: share of the stories that begin with a line that asks for them.

    Raises:
        ValueError: for fewer than one version, for a share that is none, or if no
            story is left to train on.
        OSError: if a file cannot be read or written; an older one stays as it was.
    """
    if versions < 1:
        raise ValueError(f"versions must be 1 or more, not {versions}")
    if not 0 <= asked <= 1:
        raise ValueError(f"asked must be a share from 0 to 1, not {asked}")
    texts = (text.translate(PLAIN_QUOTES) for text in read_documents(path))
    stories = [text for text in texts if text.strip()]
    train, held_out = split_stories(stories)
    if not train:
        raise ValueError(f"{path} holds no story to train on; name a file with some")
    requests = Requests(train, asked)
    written = [out / "held-out-stories.txt"]
    _write(written[0], held_out)
    for number in tqdm(range(1, versions + 1), desc="versions"):
        chance = Chance(seed * 1000 + number)
        texts = (requests.before(retell(text, chance), chance) for text in train)
        written.append(out / f"stories-{number}.txt")
        _write(written[-1], texts)
    return written


def _write(path: Path, texts: Iterable[str]) -> None:
    write_atomically(path, "".join(f"{text}\n{END_OF_TEXT}\n" for text in texts))


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.stories",
        description="Tell each story again with other names, and ask for it first.",
    )
    text = "a file (.txt or .txt.xz), or a name of shared.data such as tinystories"
    parser.add_argument("stories", help=text)
    parser.add_argument("--out", type=Path, required=True, help="folder of the texts")
    for name, default, text in (
        ("--versions", 8, "how often each story is told"),
        ("--seed", 123, "decides which names and things are drawn"),
    ):
        text += " (default: %(default)s)"
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)
    text = "share of the stories that begin with a request (default: %(default)s)"
    parser.add_argument("--asked", type=float, default=0.5, metavar="SHARE", help=text)
    given = parser.parse_args(arguments)
    try:
        named = given.stories in data.FILES
        path = data.get(given.stories) if named else Path(given.stories)
        write_versions(path, given.out, given.versions, given.seed, given.asked)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
