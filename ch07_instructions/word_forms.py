"""The forms of a word: does a story that says "climbed" contain "climb"?"""

import re

# Verbs whose past does not end in -ed: the verb, its past and its participle.
IRREGULAR_VERBS = (
    "be was been, be were been, be is am, be are being, begin began begun, bend bent "
    "bent, bite bit bitten, bleed bled bled, blow blew blown, break broke broken, "
    "bring brought brought, build built built, burst burst burst, buy bought bought, "
    "catch caught caught, choose chose chosen, come came come, cut cut cut, dig dug "
    "dug, do did done, draw drew drawn, drink drank drunk, drive drove driven, eat "
    "ate eaten, fall fell fallen, feed fed fed, feel felt felt, fight fought fought, "
    "find found found, fly flew flown, forget forgot forgotten, forgive forgave "
    "forgiven, freeze froze frozen, get got got, give gave given, go went gone, grow "
    "grew grown, hang hung hung, have had had, hear heard heard, hide hid hidden, hit "
    "hit hit, hold held held, hurt hurt hurt, keep kept kept, know knew known, lead "
    "led led, leave left left, lend lent lent, let let let, lie lay lain, light lit "
    "lit, lose lost lost, make made made, mean meant meant, meet met met, pay paid "
    "paid, put put put, read read read, ride rode ridden, ring rang rung, rise rose "
    "risen, run ran run, say said said, see saw seen, sell sold sold, send sent sent, "
    "set set set, shake shook shaken, shine shone shone, shoot shot shot, shut shut "
    "shut, sing sang sung, sink sank sunk, sit sat sat, sleep slept slept, slide slid "
    "slid, speak spoke spoken, spend spent spent, spin spun spun, split split split, "
    "spread spread spread, stand stood stood, steal stole stolen, stick stuck stuck, "
    "sting stung stung, swim swam swum, swing swung swung, take took taken, teach "
    "taught taught, tear tore torn, tell told told, think thought thought, throw "
    "threw thrown, wake woke woken, wear wore worn, weave wove woven, weep wept wept, "
    "win won won, write wrote written"
)
IRREGULAR_OTHERS = (
    "child children, foot feet, tooth teeth, goose geese, mouse mice, man men, woman "
    "women, person people, leaf leaves, loaf loaves, wolf wolves, knife knives, shelf "
    "shelves, scarf scarves, half halves, life lives, wife wives, thief thieves, elf "
    "elves, fish fish, sheep sheep, deer deer, good better best, bad worse worst, far "
    "further furthest"
)

_FORMS: dict[str, set[str]] = {}
for _row in f"{IRREGULAR_VERBS}, {IRREGULAR_OTHERS}".split(", "):
    _base, *_others = _row.split()
    _FORMS.setdefault(_base, set()).update(_others)
_VERBS = {row.split()[0] for row in IRREGULAR_VERBS.split(", ")}
_NO_REGULAR_PAST = _VERBS - {"light", "shine", "wake", "hang", "lie"}

_ONE_SYLLABLE = re.compile(r"[^aeiou]*(?:qu)?[aeiouy][^aeiouwxy]")


def word_forms(word: str) -> set[str]:
    """A word in lower case with its other forms, by the rules of English spelling.

    The rules do not know whether a word is a noun, a verb or an adjective, so they also
    make forms that do not exist ("hoppest"). Rarely such a form is another word, as
    "corner" is for "corn".

    >>> sorted(word_forms("hop"))
    ['hop', 'hopped', 'hopper', 'hoppest', 'hopping', 'hops']
    >>> "flew" in word_forms("fly"), "cared" in word_forms("car")
    (True, False)
    """
    forms = {word} | _FORMS.get(word, set())
    stem, endings = word, ["ed", "er", "est"]
    if word.endswith("e"):
        stem = word[:-1]
        keeps_e = word.endswith(("ee", "ye", "oe"))
        ing = word[:-2] + "y" if word.endswith("ie") else word if keeps_e else stem
        forms |= {word + "s", ing + "ing"}
    elif re.search("[^aeiou]y$", word):
        forms |= {word[:-1] + "ies", word + "ing"}
        stem = word[:-1] + "i"
    elif _ONE_SYLLABLE.fullmatch(word):
        stem = word + word[-1]
        forms |= {word + "s", stem + "ing"}
    else:
        hisses = word.endswith(("s", "x", "z", "ch", "sh", "o"))
        forms |= {word + ("es" if hisses else "s"), word + "ing"}
    if word in _NO_REGULAR_PAST:
        endings = []
    return forms | {stem + ending for ending in endings}
