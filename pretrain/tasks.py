"""Write text in which the next word has often been said before: a source to copy from.

    python -m pretrain.tasks tasks.txt --documents 80000
    python -m pretrain.prepare corpus/*.txt.xz tasks.txt --out shards

A model learns to look back only where that pays. In books it rarely does. In these
documents it always does: lists that are repeated, keys and values, small dialogues,
questions about names and places. Their words are drawn from the whole vocabulary, so
all that can be learned about them is where they were said.

The same seed gives the same bytes on every machine: the only source of chance is
`random.Random(seed).random`, which Python promises never to change.
"""

import argparse
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

from shared.ch02 import END_OF_TEXT, get_tokenizer
from shared.files import write_atomically

# What the documents are built from, beside words of the whole vocabulary.
NAMES = (
    "Ada Ben Clara David Ella Femi Grace Hugo Ines Jonas Kofi Lena Marta Nadia Omar "
    "Paula Quinn Rosa Sami Tara Ugo Vera Wanda Yusuf Zoe Amir Bella Carl Dina Emil"
).split()
OWNERS = "my your our her his their the the this that".split()
THINGS = (
    "cat horse boat street school teacher village garden song film book river shop "
    "doctor sister brother friend team house room bakery museum neighbour bird poem "
    "engine island family company soup box parcel ticket meeting game uncle hotel"
).split()
RELATIONS = (  # what is said of a thing, and the question after it
    ("is called {v}", "what is {s} called"),
    ("is named {v}", "what is the name of {s}"),
    ("is {v}", "what is {s}"),
    ("was {v}", "what was {s}"),
    ("comes from {v}", "where does {s} come from"),
    ("lives in {v}", "where does {s} live"),
    ("belongs to {v}", "who does {s} belong to"),
    ("is made of {v}", "what is {s} made of"),
    ("was found in {v}", "where was {s} found"),
    ("likes {v}", "what does {s} like"),
    ("needs a {v}", "what does {s} need"),
    ("smells of {v}", "what does {s} smell of"),
    ("is waiting for {v}", "who is {s} waiting for"),
    ("has lost the {v}", "what has {s} lost"),
    ("is near {v}", "where is {s}"),
    ("was paid by {v}", "who paid {s}"),
    ("begins with {v}", "what does {s} begin with"),
    ("sold every {v}", "what did {s} sell"),
)
ASIDES = (
    "It was late. / Nobody was surprised. / The sun was shining. / Then it began to "
    "rain. / We had some tea. / That is all I know. / There was a long silence. / He "
    "looked out of the window. / It had been a good day. / I wrote it down. / She had "
    "heard of it before. / Everybody knew that. / The others were still talking. / It "
    "may be important later. / They laughed. / Let us go on."
).split(" / ")
DEEDS = (  # past tense, base form, participle
    *("carried carry carried", "painted paint painted", "found find found"),
    *("sold sell sold", "broke break broken", "hid hide hidden"),
    *("washed wash washed", "forgot forget forgotten", "bought buy bought"),
    *("dropped drop dropped", "repaired repair repaired", "saw see seen"),
    *("took take taken", "drew draw drawn", "opened open opened"),
)
TIMES = "in the morning / at noon / last week / on Monday / in winter / before dinner"


class Words:
    """Chance, and words of the whole vocabulary to draw by it.

    Args:
        seed: decides over everything that is drawn.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed).random
        tokens = [bytes_.decode(errors="replace") for bytes_ in _token_bytes()]
        self.whole = [x[1:] for x in tokens if re.fullmatch(r" [A-Za-z]{3,}", x)]
        self.endings = [x for x in tokens if re.fullmatch(r"[a-z]{2,5}", x)]

    def one(self, choices):
        """One of several things."""
        return choices[int(self.random() * len(choices))]

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return low + int(self.random() * (high - low + 1))

    def word(self) -> str:
        """A word; one in five is put together from two pieces, and known to nobody."""
        word = self.one(self.whole)
        return word + self.one(self.endings) if self.random() < 0.2 else word

    def words(self, low: int, high: int) -> list[str]:
        """Different words, between `low` and `high` of them."""
        count, found = self.number(low, high), {}
        while len(found) < count:
            found[self.word()] = None
        return list(found)

    def names(self, count: int) -> list[str]:
        """Different first names."""
        found = {}
        while len(found) < count:
            found[self.one(NAMES)] = None
        return list(found)


def _token_bytes() -> list[bytes]:
    tokenizer = get_tokenizer()
    return [
        tokenizer.decode_single_token_bytes(i) for i in range(tokenizer.n_vocab - 1)
    ]


# --- One function a kind of document --------------------------------------------------


def again(w: Words) -> str:
    """Words, and the same words again, two to four times."""
    words = w.words(3, 24)
    mark = w.one([" ", ", ", " - ", "\n", "; "])
    between = w.one(["\n", ". ", "\n\n", " | ", " Again: "])
    return between.join([mark.join(words)] * w.number(2, 4))


def listed(w: Words) -> str:
    """A list, and some of its members asked for by their place."""
    words = w.words(3, 7)
    places = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]
    text = w.one(["Here is a list: ", "On the table lay ", "They wrote down: "])
    lines = [text + ", ".join(words) + "."]
    for _ in range(w.number(2, 4)):
        i = w.number(0, len(words) - 1)
        last = i == len(words) - 1 and w.random() < 0.5
        place = "last" if last else places[i]
        ask = w.one(["The {} one is {}.", "What came {}? {}.", "{} word: {}"])
        lines.append(ask.format(place, words[i]))
    return "\n".join(lines)


def table(w: Words) -> str:
    """Keys with values, and some keys again, with what belongs to them."""
    keys, values = w.words(3, 8), w.words(8, 8)
    sign = w.one([": ", " = ", " -> ", " is ", ", "])
    pairs = [key + sign + value for key, value in zip(keys, values, strict=False)]
    asked = [w.one(pairs) for _ in range(w.number(2, 6))]
    return "\n".join([*pairs, w.one(["", "Once more:", "---"]), *asked])


def remember(w: Words) -> str:
    """Somebody is told a word, and says it."""
    word, other = w.words(2, 2)
    a, b = w.one([("User", "Assistant"), ("A", "B"), tuple(w.names(2))])
    kind = w.one(["word", "password", "code", "name of the ship", "answer", "title"])
    tell = w.one(["The {} is {}.", "Remember the {}: {}.", "Our {} will be {}."])
    small_talk = w.one(
        [f"{b}: I see.", f"{b}: All right.", f"{b}: Is it not {other}?\n{a}: No."]
    )
    ask = w.one(["What is the {}?", "Say the {}.", "Tell me the {} again."])
    reply = w.one(["{1}.", "The {0} is {1}.", "It is {1}.", '"{1}"', "{1}"])
    return (
        f"{a}: {tell.format(kind, word)}\n{small_talk}\n"
        f"{a}: {ask.format(kind)}\n{b}: {reply.format(kind, word)}"
    )


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def facts(w: Words) -> str:
    """What is true of a few things; then it is asked for, told again, or completed."""
    known = {}
    for _ in range(w.number(1, 4)):
        owner = w.one([w.one(OWNERS), w.one(NAMES) + "'s"])
        subject = w.one([w.one(NAMES), *3 * [f"{owner} {w.one(THINGS)}"]])
        said, asked = w.one(RELATIONS)
        statement = f"{subject} {said.format(v=w.word())}."
        known[subject] = capital(statement), asked.format(s=subject), statement
    lines = []
    for statement, _, _ in known.values():
        lines += [statement] + [w.one(ASIDES) for _ in range(w.number(0, 3) // 2)]
    for _ in range(w.number(1, 3)):
        full, question, statement = w.one(list(known.values()))
        short = statement.split()[-1]
        lines.append(
            w.one(
                [
                    f"{capital(question)}? {w.one([full, short])}",
                    f"Q: {capital(question)}?\nA: {w.one([full, short])}",
                    f"Somebody wanted to know: {question}? {full}",
                    f'"{capital(question)}?" asked {w.one(NAMES)}. "{full}"',
                    f"{w.one(['Yes', 'Indeed', 'As I said', 'So'])}, {statement}",
                    f"{w.one(NAMES)} said that {statement}",
                    full,
                ]
            )
        )
    return w.one(["\n", " ", " "]).join(lines)


def deed(w: Words) -> dict[str, str]:
    """Somebody did something to something somewhere: the parts of a sentence."""
    did, do, done = w.one(DEEDS).split()
    place = f"{w.one(['in', 'near', 'behind', 'under', 'outside'])} the {w.word()}"
    thing = w.one([w.word(), f"{w.word()} {w.word()}"])
    who = w.one([*2 * [w.one(NAMES)], f"the {w.word()}"])
    when = w.one(TIMES.split(" / "))
    return dict(who=who, did=did, do=do, done=done, thing=thing, place=place, when=when)


ORDERS = (  # ways to say a deed
    *2 * ("{who} {did} the {thing} {place}.",),
    "{place}, {who} {did} the {thing}.",
    "{who} {did} the {thing} {place} {when}.",
    "{when}, {who} {did} the {thing} {place}.",
    "the {thing} was {done} {place} by {who}.",
)
ASKED = (  # questions about it
    "Who {did} the {thing}? {who}.",
    "What did {who} {do}? The {thing}.",
    "What did {who} {do} {place}? {who} {did} the {thing}.",
    "Where did {who} {do} the {thing}? {place}.",
    "Where was the {thing} {done}? It was {done} {place}.",
    "Who: {who}\nWhat: the {thing}\nWhere: {place}",
    "By whom was the {thing} {done}? By {who}.",
    "{who} did it. {who} {did} the {thing}.",
)


def deeds(w: Words) -> str:
    """Who did what, where; then it is asked, or told in another order."""
    told = [deed(w) for _ in range(w.number(1, 3))]
    lines = [capital(w.one(ORDERS).format(**parts)) for parts in told]
    for _ in range(w.number(1, 3)):
        parts = w.one(told)
        lead = w.one(["", "", "In other words: ", "Again: ", "That is: "])
        again = lead + capital(w.one(ORDERS).format(**parts))
        lines.append(w.one([again, *2 * [capital(w.one(ASKED).format(**parts))]]))
    return w.one(["\n", " "]).join(lines)


def phrase(w: Words) -> str:
    """Some words, or a sentence."""
    return w.one([" ".join(w.words(1, 9)), capital(w.one(ORDERS).format(**deed(w)))])


def pointed(w: Words) -> str:
    """A word of a sentence, by its place, its neighbour or its beginning."""
    words = phrase(w).rstrip(".").split()
    lines = [w.one(["Sentence: ", "", "Read this: ", "Text: "]) + " ".join(words)]
    for _ in range(w.number(1, 3)):
        i = w.number(0, len(words) - 1)
        choices = [
            f"First word: {words[0]}",
            f"The sentence begins with {words[0]}.",
            f"Last word: {words[-1]}",
            f"It ends with {words[-1]}.",
            f'The word that begins with "{words[i][0]}": {words[i]}',
        ]
        if i > 0:
            choices.append(f'What comes after "{words[i - 1]}"? {words[i]}')
            choices.append(f'What comes before "{words[i]}"? {words[i - 1]}')
        lines.append(w.one(choices))
    return "\n".join(lines)


def dictation(w: Words) -> str:
    """A request to say something again, change its form, or quote it."""
    text = phrase(w)
    ask, answer = w.one(
        [
            ("Repeat: {}", "{}"),
            ("Say this again: {}", "{}"),
            ("Copy the line.\n{}", "{}"),
            ("Write in quotation marks: {}", '"{}"'),
            ("Echo this three times: {}", "{0} {0} {0}"),
            ("Put a full stop at the end: {}", "{}."),
            ("Remove the brackets: [{}]", "{}"),
        ]
    )
    mark = w.one(["\n", "\n-> ", "\nAnswer: ", "\nResult: "])
    return ask.format(text) + mark + answer.format(text)


def reordered(w: Words) -> str:
    """Words in another order, or some of them, after two examples of what is meant."""
    change = w.one(
        [
            lambda x: x[::-1],
            lambda x: x[:1],
            lambda x: x[-1:],
            lambda x: x[1:2],
            lambda x: [x[0], x[-1]],
            lambda x: x[1:] + x[:1],
        ]
    )
    sign, lines = w.one([" => ", " : ", "\nanswer: "]), []
    for _ in range(w.number(3, 5)):
        words = w.words(3, 5)
        lines.append(" ".join(words) + sign + " ".join(change(words)))
    return "\n".join(lines)


def joined(w: Words) -> str:
    """Single words, then a sentence that joins them."""
    words = w.words(2, 5)
    head = w.one(["Words: ", "Bring: ", "Names: ", "Colours: "])
    whole = ", ".join(words[:-1]) + " and " + words[-1]
    tail = w.one(["We need {}.", "There were {}.", "She spoke of {}.", "{}, then."])
    return head + " / ".join(words) + "\n" + tail.format(whole)


def missing(w: Words) -> str:
    """A sentence, then the same with a gap, and what belongs there."""
    words = w.words(4, 9)
    i = w.number(0, len(words) - 1)
    gap = [*words[:i], "___", *words[i + 1 :]]
    return f"{' '.join(words)}.\n{' '.join(gap)}.\nMissing: {words[i]}"


def story(w: Words) -> str:
    """A small story, in which names and things come back."""
    (a, b), (thing, place, third) = w.names(2), w.words(3, 3)
    lines = [
        f"{a} and {b} went to {place}.",
        f"In {place}, {a} found a {thing}.",
        f'"Look, a {thing}!" said {a}.',
        f"{b} had never seen a {thing} before, only a {third}.",
        f'"Is it not a {third}?" asked {b}.',
        f'"No," said {a}, "it is a {thing}, from {place}."',
        f"So {b} took the {thing}, and {a} took the {third}.",
        f"They left {place}, and the {thing} came along.",
    ]
    return w.one(["\n", " "]).join(x for x in lines if w.random() < 0.85)


KINDS: tuple[Callable[[Words], str], ...] = (
    *(again, again, listed, table, remember, remember, *5 * (facts,), *3 * (deeds,)),
    *(dictation, dictation, pointed, reordered, joined, missing, story),
)


def write_tasks(path: Path, documents: int, seed: int = 123) -> None:
    """Write so many documents, separated as `prepare` wants them.

    Raises:
        ValueError: for fewer than one document.
        OSError: if the file cannot be written; an older one stays as it was.
    """
    if documents < 1:
        raise ValueError(f"documents must be 1 or more, not {documents}")
    w = Words(seed)
    texts = (w.one(KINDS)(w) for _ in range(documents))
    write_atomically(path, "".join(f"{text}\n{END_OF_TEXT}\n" for text in texts))


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.tasks",
        description="Write text in which the next word has often been said before.",
    )
    parser.add_argument("path", type=Path, help="the text file to write (.txt)")
    for name, default, text in (
        ("--documents", 80_000, "how many to write"),
        ("--seed", 123, "decides what they say"),
    ):
        text += " (default: %(default)s)"
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)
    given = parser.parse_args(arguments)
    try:
        write_tasks(given.path, given.documents, given.seed)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
