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

# Only these are compared. Many nouns look as if they could be: a corner is no corn.
ADJECTIVES = frozenset(
    "angry bad big black blue bold brave bright brown busy calm cheap clean clear "
    "clever cloudy cold cool cozy crazy curly cute damp dark dear deep dirty dry dull "
    "easy fair fast fat fierce fine flat fluffy fresh friendly full fun funny furry "
    "fuzzy gentle good grand gray great green grumpy happy hard healthy heavy high hot "
    "huge hungry kind large late lazy light little lonely long loose loud lovely low "
    "lucky mad mean messy mighty muddy narrow naughty near neat new nice noisy old "
    "pale pink plain poor pretty proud pure quick quiet rainy rare red rich ripe rough "
    "round rude sad safe scary shady shallow sharp shiny short shy silly simple sleepy "
    "slim slow small smart smooth soft sour spicy spiky stiff strange strict strong "
    "sunny sweet tall tasty thick thin thirsty tidy tight tiny tough ugly warm weak "
    "wealthy weird wet white wide wild windy wise worthy young yummy".split()
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

    The rules do not know a noun from a verb, so they also make forms that do not exist
    ("foxed"). Only the words in `ADJECTIVES` are compared ("braver", "bravest").

    >>> sorted(word_forms("hop"))
    ['hop', 'hopped', 'hopping', 'hops']
    >>> "flew" in word_forms("fly"), "cared" in word_forms("car")
    (True, False)
    """
    forms = {word} | _FORMS.get(word, set())
    stem = word
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
        plural = {"s": "es", "z": "zes"}.get(word[-1], "s")
        forms |= {word + plural, stem + "ing"}
    else:
        hisses = word.endswith(("s", "x", "z", "ch", "sh", "o"))
        forms |= {word + ("es" if hisses else "s"), word + "ing"}
    if word in ADJECTIVES:
        forms |= {stem + "er", stem + "est"}
    if word not in _NO_REGULAR_PAST:
        forms.add(stem + "ed")
    return forms
