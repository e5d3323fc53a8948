"""Chapter 7's data: its form, and every answer that a program can compute."""

import itertools
import operator
import re
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from fractions import Fraction

import pytest

from shared.ch02 import get_tokenizer
from shared.ch07 import format_answer, format_prompt, load_instructions, split_entries


@pytest.fixture(scope="module")
def entries():
    return load_instructions()


def of_kind(entries, *kinds):
    found = [entry for entry in entries if entry["kind"] in kinds]
    assert {entry["kind"] for entry in found} == set(kinds)
    return found


def question(entry):
    return f"{entry['instruction']} {entry['input']}".strip()


def words_of(text):
    return re.findall(r"[a-z0-9']+(?::\d+)?", text.lower())


def material(entry):
    """What is to be changed or searched: the input, or what follows the wording."""
    text = entry["instruction"]
    return entry["input"] or re.split(r"(?<=[:?]) ", text, maxsplit=1)[-1]


def wording_and_sentence(entry):
    return entry["instruction"].removesuffix(material(entry)), material(entry)


# Form

CLOSED = {
    "tense": "Past|Present|Future",
    "sentiment": "Positive|Negative|Neutral",
    "topic": "Sport|Food|Weather|Music|Travel|Health",
    "formality": "Formal|Informal",
    "singular_or_plural": "Singular|Plural",
    "what_is_asked": "A person|A place|A time|A reason|A number",
    "sentence_type": "A statement|A question|A command|An exclamation",
}
KNOWLEDGE = """antonym synonym rhyme simple_fact definition idiom_meaning odd_one_out
    arithmetic unit_conversion sequence spelling_correction""".split()


def test_there_are_2068_entries_of_39_kinds_in_three_families(entries):
    assert len(entries) == 2068
    kinds = Counter((entry["family"], entry["kind"]) for entry in entries)
    family = defaultdict(dict)
    for (name, kind), times in kinds.items():
        family[name][kind] = times
    assert {name: len(inside) for name, inside in family.items()} == {
        "copy": 21,
        "closed": 7,
        "knowledge": 11,
    }
    assert min(family["copy"].values()) >= 60
    assert set(family["closed"]) == set(CLOSED) and min(family["closed"].values()) >= 60
    assert family["knowledge"] == dict.fromkeys(KNOWLEDGE, 16)
    assert 0.55 < sum(bool(entry["input"]) for entry in entries) / 2068 < 0.63


def test_every_entry_is_tidy(entries):
    for entry in entries:
        assert list(entry) == "instruction input output kind family group".split()
        for text in entry.values():
            assert text.isascii() and text == " ".join(text.split()), entry
            assert text.count('"') % 2 == 0, entry
        assert entry["instruction"][0].isupper() and entry["output"][-1] in ".?!", entry
        assert 1 <= len(entry["output"].split()) <= 16, entry
        if entry["kind"] != "grammar_correction":
            assert not re.search(r"\b(\w+) \1\b", question(entry)), entry


TWO_SPELLINGS = re.compile(
    r"""\b(\w*(colou?r|neighbou?r|harbou?r|favou?r|flavou?r)\w*|gr[ae]y|theat(er|re)
    |cent(er|re)|lit(er|re)s?|\w*met(er|re)s?|maths?|mom|mum|plow|plough|autumn
    |fall\ season|jewel\w+|travell?ed|pounds|apologi[sz]e|cancell?ed
    |practi[sc]es?)\b""",
    re.IGNORECASE | re.VERBOSE,
)


def test_no_word_is_spelled_in_two_ways_in_two_countries(entries):
    for entry in entries:
        text = f"{question(entry)} {entry['output']}"
        assert not TWO_SPELLINGS.search(text), entry


def test_no_group_has_two_kinds(entries):
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["group"]].append(entry["kind"])
    for kinds in groups.values():
        assert len(set(kinds)) == 1, kinds
    sizes = {kinds[0]: len(kinds) for kinds in groups.values() if len(kinds) > 1}
    assert sizes == {"reading": 2, "extract": 2, "yes_no": 2, "lookup": 3}


def test_nothing_is_asked_twice(entries):
    asked = Counter(" ".join(words_of(question(entry))) for entry in entries)
    assert [text for text, times in asked.items() if times > 1] == []


SMALL_WORDS = set(
    """the a an is are was were in on at of to and my our his her i he she it we they
    you has have this that""".split()
)


def test_no_two_groups_are_nearly_the_same(entries):
    """Two questions of different groups share less than half of their content words.

    Small words do not count, nor those of a kind's wordings, which many of it have.
    """
    bags = [set(words_of(question(entry))) for entry in entries]
    sizes = Counter(entry["kind"] for entry in entries)
    times = Counter(
        (entry["kind"], word)
        for entry, bag in zip(entries, bags, strict=True)
        for word in bag
    )
    for entry, bag in zip(entries, bags, strict=True):
        kind = entry["kind"]
        often = max(2, 0.06 * sizes[kind])
        bag -= SMALL_WORDS | {word for word in bag if times[kind, word] > often}
    having = defaultdict(list)  # word -> the numbers of the entries that have it
    for number, bag in enumerate(bags):
        for word in bag:
            having[word].append(number)
    shared = Counter()
    for numbers in having.values():
        shared.update(itertools.combinations(numbers, 2))
    for (i, j), both in shared.items():
        if both >= 2 and entries[i]["group"] != entries[j]["group"]:
            pair = question(entries[i]), question(entries[j])
            assert both / len(bags[i] | bags[j]) < 0.5, pair


def test_prompt_and_answer_are_shorter_than_120_tokens(entries):
    encode = get_tokenizer().encode
    for entry in entries:
        text = format_prompt(entry, "alpaca") + format_answer(entry["output"], "alpaca")
        assert len(encode(text)) + 1 < 120, entry  # and one that ends the text


@pytest.mark.parametrize("seed", [123, 124, 125])
def test_splits_keep_groups_whole_and_have_every_kind_in_every_part(entries, seed):
    parts = split_entries(entries, seed=seed)
    assert [len(part) for part in parts] == [1551, 103, 414]
    groups = [{entry["group"] for entry in part} for part in parts]
    assert not any(one & other for one, other in itertools.combinations(groups, 2))
    sizes = Counter(entry["kind"] for entry in entries)
    for part, share in zip(parts, (0.75, 0.05, 0.2), strict=True):
        large = {kind for kind, size in sizes.items() if share * size >= 3}
        assert large <= {entry["kind"] for entry in part}


# Family copy: the answer stands in the question or follows from it


def test_repeated_sentences_are_the_same(entries):
    for entry in of_kind(entries, "repeat"):
        assert entry["output"] == material(entry), entry


def test_answers_from_a_text_stand_in_it(entries):
    forms = {"reading": "It was ", "lookup": "It is "}
    for entry in of_kind(entries, *forms):
        assert entry["output"].startswith(forms[entry["kind"]]), entry
        answer = entry["output"].removeprefix(forms[entry["kind"]])[:-1]
        assert answer.lower() in question(entry).lower(), entry


def test_what_is_extracted_stands_there_once(entries):
    for entry in of_kind(entries, "extract"):
        sort, answer = re.fullmatch(r"([\w ]+): (.+)\.", entry["output"]).groups()
        assert sort.lower() in entry["instruction"], entry
        assert len(re.findall(rf"\b{answer}\b", question(entry))) == 1, entry


def test_yes_and_no_are_right_once_for_each_sentence(entries):
    answers = defaultdict(list)
    for entry in of_kind(entries, "yes_no"):
        answers[entry["group"]].append(entry["output"])
    for group, given in answers.items():
        assert sorted(given) == ["No.", "Yes."], group


def test_next_words_are_next(entries):
    for entry in of_kind(entries, "next_word"):
        side, asked = re.search(
            r"(before|after) the word (\w+)", entry["instruction"]
        ).groups()
        row = re.findall(r"\w+", material(entry))
        assert row.count(asked) == 1, entry
        answer = row[row.index(asked) + (1 if side == "after" else -1)]
        assert row.count(answer) == 1, entry
        assert entry["output"] == f"The word is {answer}.", entry


NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()


def test_lists_are_counted_reversed_and_read_correctly(entries):
    for entry in of_kind(entries, "count", "reverse", "pick_from_list"):
        row = material(entry).split(", ")
        assert len(set(row)) == len(row) and all(map(str.isalpha, row)), entry
        if entry["kind"] == "count":
            wanted = f"The list has {NUMBER_WORDS[len(row)]} words."
        elif entry["kind"] == "reverse":
            wanted = f"In reverse order: {', '.join(row[::-1])}."
        else:
            places = {"first": 0, "second": 1, "third": 2, "last": -1}
            wording = words_of(entry["instruction"].removesuffix(material(entry)))
            (place,) = places.keys() & wording
            wanted = f"The {place} word is {row[places[place]]}."
        assert entry["output"] == wanted, entry


def test_words_are_put_in_and_exchanged_as_asked(entries):
    for entry in of_kind(entries, "fill_in"):
        wording, sentence = wording_and_sentence(entry)
        word = re.search(r"word (?:is )?(\w+)", wording)[1]
        assert sentence.count("___") == 1, entry
        assert entry["output"] == sentence.replace("___", word), entry
    for entry in of_kind(entries, "replace"):
        wording, sentence = wording_and_sentence(entry)
        pair = r"(\w+) (with the word|with|to|instead of|in place of) (\w+)"
        old, between, new = re.search(pair, wording).groups()
        if between.endswith("of"):
            old, new = new, old
        assert len(re.findall(rf"\b{old}\b", sentence)) == 1, entry
        assert entry["output"] == re.sub(rf"\b{old}\b", new, sentence), entry
    for entry in of_kind(entries, "swap"):
        wording, sentence = wording_and_sentence(entry)
        one, two = re.search(r"(\w+) and (\w+)", wording).groups()
        other = {one: two, two: one}
        assert {one, two} <= set(re.findall(r"\w+", sentence)), entry
        swapped = re.sub(r"\w+", lambda word: other.get(word[0], word[0]), sentence)  # noqa: B023
        assert entry["output"] == swapped, entry


def test_sentences_are_joined_negated_and_asked_as_told(entries):
    for entry in of_kind(entries, "join"):
        wording, sentences = wording_and_sentence(entry)
        word = re.search(r"the word (\w+)", wording)[1]
        one, other = sentences.split(". ")
        comma = "," if word in ("but", "so") else ""
        wanted = f"{one}{comma} {word} {other}"
        assert entry["output"].lower() == wanted.lower(), entry
    for entry in of_kind(entries, "list_in_sentence"):
        start, things = material(entry).split(": ")
        wanted = f"{start} {' and '.join(things.rsplit(', ', 1))}."
        assert entry["output"] == wanted, entry
    for entry in of_kind(entries, "negate"):
        assert "not" not in words_of(material(entry)), entry
        assert entry["output"].replace(" not", "", 1) == material(entry), entry
    for entry in of_kind(entries, "make_question"):
        assert entry["output"][-1] == "?", entry
        first, *rest = words_of(entry["output"])
        row = words_of(material(entry))
        row.remove(first)  # the verb, which moves to the front
        assert rest == row and first != words_of(material(entry))[0], entry


def changed(one, other):
    """Pairs of the words of `one` that differ and those of `other` in their place."""
    pair = words_of(one), words_of(other)
    steps = SequenceMatcher(None, *pair, autojunk=False).get_opcodes()
    return [
        (pair[0][i:j], pair[1][x:y]) for step, i, j, x, y in steps if step != "equal"
    ]


def test_tenses_are_changed_as_told(entries):
    for entry in of_kind(entries, "change_tense"):
        wording, sentence = wording_and_sentence(entry)
        ((old, new),) = changed(sentence, entry["output"])
        if re.search(r"\bfuture\b", wording):
            assert new[0] == "will" and len(new) == len(old) + 1 <= 2, entry
        else:
            assert "past" in words_of(wording) and len(old) == len(new) == 1, entry


def test_persons_are_changed_as_told(entries):
    for entry in of_kind(entries, "change_person"):
        wording, sentence = wording_and_sentence(entry)
        old, joint, new = re.search(
            r"(\w+) (to|instead of) (\w+)", wording.lower()
        ).groups()
        if joint == "instead of":
            old, new = new, old
        one, other = words_of(sentence), words_of(entry["output"])
        assert (one[0], other[0]) == (old, new), entry
        assert one[2:] == other[2:], entry  # only the verb may change with it


def test_grammar_is_corrected_in_one_word(entries):
    for entry in of_kind(entries, "grammar_correction"):
        ((old, new),) = changed(material(entry), entry["output"])
        assert len(old) == 1 and len(new) <= 1, entry


IRREGULAR = dict(
    pair.split(":")
    for pair in """man:men woman:women child:children foot:feet tooth:teeth mouse:mice
    goose:geese potato:potatoes tomato:tomatoes""".split()
)


def plural_of(noun):
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    noun = re.sub("(?<=[aeioul])fe?$", "ve", noun)
    noun = re.sub("(?<![aeiou])y$", "ie", noun)
    return f"{noun}es" if re.search("(s|x|ch|sh)$", noun) else f"{noun}s"


def test_plurals_are_right(entries):
    for entry in of_kind(entries, "plural"):
        noun, number = re.search(r"one (\w+), (\w+) \.\.\.$", question(entry)).groups()
        assert number in NUMBER_WORDS[2:], entry
        assert entry["output"] == f"One {noun}, {number} {plural_of(noun)}.", entry


def test_sentences_get_their_capitals_and_mark(entries):
    for entry in of_kind(entries, "punctuation_and_casing"):
        assert entry["output"][:-1].lower() == material(entry), entry
        assert entry["output"][0].isupper(), entry


# Family closed: a fixed set of labels


def test_labels_are_those_of_their_kind_all_equally_often(entries):
    for kind, labels in CLOSED.items():
        times = Counter(entry["output"] for entry in of_kind(entries, kind))
        assert set(times) == {f"{label}." for label in labels.split("|")}, kind
        assert len(set(times.values())) == 1, times


def test_sentence_types_fit_their_marks(entries):
    fits = {
        "statement": r"[^?!]+\.",
        "command": r"[^?!]+\.",
        "question": r".+\?",
        "exclamation": r"(What|How) .+!",
    }
    for entry in of_kind(entries, "sentence_type"):
        name = entry["output"].rstrip(".").split()[-1]
        assert re.fullmatch(fits[name], material(entry)), entry


def test_tenses_fit_their_verbs(entries):
    for entry in of_kind(entries, "tense"):
        future = bool(re.search(r"\b(will|going to)\b", material(entry)))
        assert future == (entry["output"] == "Future."), entry


def test_what_is_asked_fits_the_question_word(entries):
    sorts = {
        "where": "place",
        "when": "time",
        "what": "time",
        "why": "reason",
        "how": "number",
    }
    sorts |= dict.fromkeys(("who", "whose", "whom"), "person")
    for entry in of_kind(entries, "what_is_asked"):
        word = words_of(material(entry))[0]
        assert entry["output"] == f"A {sorts[word]}.", entry


def test_singular_and_plural_fit_the_noun(entries):
    for entry in of_kind(entries, "singular_or_plural"):
        wording, sentence = wording_and_sentence(entry)
        noun = re.search(r"(?:word|noun|whether|plural:) (\w+)", wording)[1]
        assert noun in words_of(sentence), entry
        many = noun in {*IRREGULAR.values(), "sheep"} or (
            noun.endswith("s") and noun != "bus"
        )
        assert entry["output"] == f"{'Plural' if many else 'Singular'}.", entry


# Family knowledge: what a program can compute of it


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def numbers_in(text):
    return [Fraction(found.replace(",", "")) for found in NUMBER.findall(text)]


UNITS = {  # what is measured, and how much of its smallest unit
    "kilogram": ("weight", 1_000_000),
    "gram": ("weight", 1000),
    "milligram": ("weight", 1),
    "week": ("time", 604_800),
    "day": ("time", 86_400),
    "hour": ("time", 3600),
    "minute": ("time", 60),
    "second": ("time", 1),
    "year": ("months", 12),
    "month": ("months", 1),
}


def quantities_in(text):
    """Pairs of a number and a unit, with "half a" read as 1/2."""
    text = re.sub(r"\bhalf an? ", "0.5 ", text, flags=re.IGNORECASE)
    names = "|".join(UNITS)
    found = re.findall(rf"({NUMBER.pattern}) ({names})s?\b", text)
    return [(Fraction(number.replace(",", "")), unit) for number, unit in found]


def test_unit_conversions_are_right(entries):
    for entry in of_kind(entries, "unit_conversion"):
        left, right = entry["output"].rstrip(".").split(" is ")
        if "dozen" in left:
            dozens = numbers_in(left) or [Fraction(1, 2)]  # "half a dozen"
            assert numbers_in(right) == [12 * dozens[0]], entry
            assert left.lower() in question(entry).lower(), entry
            continue
        ((number, unit),), ((answer, wanted),) = map(quantities_in, (left, right))
        assert UNITS[unit][0] == UNITS[wanted][0], entry
        assert number * UNITS[unit][1] == answer * UNITS[wanted][1], entry
        assert quantities_in(question(entry)) == [(number, unit)], entry
        assert re.search(rf"\b{wanted}s?\b", question(entry)), entry


OPERATIONS = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "divided by": operator.truediv,
}


def calculated(text):
    """The value of "half of 26" or "2 plus 4 plus 6"."""
    if text.startswith("half of"):
        return numbers_in(text)[0] / 2
    first, *rest = re.split(rf" ({'|'.join(OPERATIONS)}) ", text)
    value = Fraction(first)
    for name, number in zip(rest[::2], rest[1::2], strict=True):
        value = OPERATIONS[name](value, Fraction(number))
    return value


def in_digits(text):
    return re.sub(
        r"[a-z]+",
        lambda word: (
            str(NUMBER_WORDS.index(word[0])) if word[0] in NUMBER_WORDS else word[0]
        ),
        text.lower(),
    )


def test_sums_are_right(entries):
    checked = 0
    for entry in of_kind(entries, "arithmetic"):
        if entry["output"].startswith("The answer is"):
            continue  # a story, checked below
        text = in_digits(entry["output"].rstrip("."))
        left, right = text.split(" is ")
        assert calculated(left) == Fraction(right), entry
        asked = Counter(numbers_in(in_digits(question(entry))))
        assert asked == Counter(numbers_in(left)), entry
        checked += 1
    assert checked == 9


STORIES = {  # a word of the story -> its sum
    "marbles": "8 + 5",
    "pens": "4 * 6",
    "ticket": "7 * 3",
    "chair": "4 * 5",
    "beans": "3 * 9",
    "seat": "6 * 10",
    "goals": "2 + 3",
}


def test_stories_with_numbers_are_right(entries):
    found = set()
    for entry in of_kind(entries, "arithmetic"):
        if not entry["output"].startswith("The answer is"):
            continue
        (key,) = (
            k for k in STORIES if re.search(rf"\b{k}s?\b", question(entry).lower())
        )
        left, sign, right = STORIES[key].split()
        asked = numbers_in(question(entry))
        assert asked == [int(left), int(right)], entry
        name = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
        answer = OPERATIONS[name](int(left), int(right))
        assert numbers_in(entry["output"]) == [answer], entry
        found.add(key)
    assert found == set(STORIES)


ROWS = [
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    (
        "January February March April May June July August September October "
        "November December"
    ).split(),
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
]


def test_sequences_go_on_correctly(entries):
    for entry in of_kind(entries, "sequence"):
        given = entry["input"] or re.search(r": (.+)[?.]$", entry["instruction"])[1]
        items, answer = given.split(", "), entry["output"].rstrip(".").split()[-1]
        if items[0].isdigit():
            row = [int(item) for item in items]
            steps = {b - a for a, b in itertools.pairwise(row)}
            ratios = {Fraction(b, a) for a, b in itertools.pairwise(row)}
            assert 1 in (len(steps), len(ratios)), entry
            wanted = (
                row[-1] + steps.pop() if len(steps) == 1 else row[-1] * ratios.pop()
            )
            assert int(answer) == wanted, entry
        else:
            cycle = next(row for row in ROWS if items[0] in row)
            places = [cycle.index(item) for item in (*items, answer)]
            steps = {(b - a) % len(cycle) for a, b in itertools.pairwise(places)}
            assert len(steps) == 1, entry


def test_the_odd_one_out_is_one_of_four(entries):
    for entry in of_kind(entries, "odd_one_out"):
        found = re.search(r"(?:: |from )(.+)[?.]$", entry["instruction"])
        items = re.split(r", | and ", entry["input"] or found[1])
        assert len(set(items)) == 4, entry
        assert entry["output"].split()[-1].rstrip(".") in items, entry


def test_answers_about_words_name_the_word_and_another(entries):
    for kind, style in {
        "antonym": r'The opposite of "(\w+)" is "(\w+)"\.',
        "synonym": r'A synonym of "(\w+)" is "(\w+)"\.',
        "rhyme": r'A word that rhymes with "(\w+)" is "(\w+)"\.',
    }.items():
        for entry in of_kind(entries, kind):
            word, answer = re.fullmatch(style, entry["output"]).groups()
            assert word in words_of(question(entry)) and word != answer, entry


def distance(one, other):
    """How many letters must be changed, added or removed."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        last, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


def test_spelling_changes_one_word_by_a_letter_or_two(entries):
    for entry in of_kind(entries, "spelling_correction"):
        quoted = re.search(r'"([^"]+)"', entry["instruction"])
        given = quoted[1] if quoted else material(entry)
        single = re.fullmatch(r'The correct spelling is "(\w+)"\.', entry["output"])
        right = (single[1] if single else entry["output"]).split()
        pairs = zip(given.split(), right, strict=True)
        ((bad, good),) = [pair for pair in pairs if pair[0] != pair[1]]
        assert 1 <= distance(bad, good) <= 2, entry
