"""Chapter 7's data: its form, and every answer that a program can compute."""

import functools
import itertools
import json
import re
from collections import Counter, defaultdict
from difflib import SequenceMatcher

import pytest

from ch07_instructions import make_entries as module
from ch07_instructions.make_entries import SOURCE, make_entries, read_kinds
from ch07_instructions.scoring import KNOWLEDGE, reworded
from shared.ch05 import load_base_tokenizer
from shared.ch07 import format_answer, format_prompt, load_instructions, split_entries
from shared.data import REPOSITORY_DATA, load_text

TALES = json.loads(load_text("tales"))


@pytest.fixture(scope="module")
def entries():
    return load_instructions()


@pytest.fixture(scope="module")
def kinds():
    return read_kinds(SOURCE.read_text(encoding="utf-8"))


def question(entry):
    return f"{entry['instruction']} {entry['input']}".strip()


def words_of(text):
    return re.findall(r"[a-z0-9']+(?::\d+)?", text.lower())


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
STORY = {"words": 130, "about": 72, "finish": 58}


def test_there_are_2152_entries_of_31_kinds_in_three_families(entries):
    assert len(entries) == 2152
    family = defaultdict(Counter)
    for entry in entries:
        family[entry["family"]][entry["kind"]] += 1
    assert {name: len(inside) for name, inside in family.items()} == {
        "copy": 21,
        "closed": 7,
        "story": 3,
    }
    assert min(family["copy"].values()) >= 60
    assert set(family["closed"]) == set(CLOSED) and min(family["closed"].values()) >= 60
    assert family["story"] == STORY
    others = [entry for entry in entries if entry["family"] != "story"]
    assert 0.55 < sum(bool(entry["input"]) for entry in others) / len(others) < 0.65


def test_the_file_is_what_the_program_makes(capsys):
    module.main(["--check"])
    made = make_entries(SOURCE.read_text(encoding="utf-8"), TALES)
    stored = (REPOSITORY_DATA / "instructions.json").read_text(encoding="utf-8")
    assert json.loads(stored) == made
    assert stored.count("\n") == len(made) + 2  # a line each, and the brackets


def test_the_program_says_that_a_file_is_stale_and_writes_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "REPOSITORY_DATA", tmp_path)
    path = tmp_path / "instructions.json"
    path.write_text("[]\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="is not what this program makes"):
        module.main(["--check"])
    assert path.read_text(encoding="utf-8") == "[]\n"
    module.main([])
    module.main(["--check"])
    assert "2152 entries" in capsys.readouterr().out


def test_a_row_that_does_not_fit_its_columns_is_named():
    text = "Head.\n\n# swap (copy): text | one | other | answer\n- Swap.\n\nA | b | c\n"
    with pytest.raises(ValueError, match=r"'A \| b \| c' does not fit .* of swap"):
        read_kinds(text)


def test_every_entry_is_tidy(entries):
    keys = "instruction input output kind family group rewording".split()
    for entry in entries:
        assert list(entry) == keys
        for text in entry.values():
            assert text.isascii() and text == " ".join(text.split()), entry
            assert text.count('"') % 2 == 0, entry
        for text in entry["instruction"], entry["rewording"]:
            assert text[0].isupper() and not re.search("[{}|]", text), entry
        if entry["family"] == "story":
            assert entry["output"][-1] in '.!?"' and entry["input"] == "", entry
            continue
        assert entry["output"][-1] in ".?!", entry
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
        text = f"{question(entry)} {entry['rewording']} {entry['output']}"
        if entry["family"] != "story":  # the tales' country is America
            assert not TWO_SPELLINGS.search(text), entry


def test_no_group_has_two_kinds(entries):
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["group"]].append(entry["kind"])
    for names in groups.values():
        assert len(set(names)) == 1, names
    sizes = {names[0]: len(names) for names in groups.values() if len(names) > 1}
    assert sizes == {"reading": 2, "extract": 2, "yes_no": 2, "lookup": 3}


def test_entries_with_the_same_text_share_a_group(entries, kinds):
    owners = defaultdict(set)
    for entry in entries:
        for row in kinds[entry["kind"]].rows:
            if row["answer"] == entry["output"] and row["text"] in question(entry):
                owners[entry["kind"], row["text"]].add(entry["group"])
    assert {len(groups) for groups in owners.values()} == {1}


def test_nothing_is_asked_twice(entries):
    asked = Counter(
        " ".join(words_of(question(entry))) for entry in [*entries, *reworded(entries)]
    )
    assert [text for text, times in asked.items() if times > 1] == []


# Wordings


@functools.cache
def pattern_of(wording):
    fixed = (re.escape(part) for part in re.split(r"\{\w+\}", wording))
    pattern = re.sub(r"\\\.$", "[.:]", ".+".join(fixed))
    if "{question}" in wording:
        return re.compile(rf"(.+[.?!] )?{pattern}")
    return re.compile(rf"{pattern}( .+)?")


def has_wording(text, wordings):
    """Whether one of the wordings is in a question, whatever stands in its slots."""
    return any(pattern_of(wording).fullmatch(text) for wording in wordings)


def test_every_fifth_wording_is_held_out_and_in_no_instruction(entries, kinds):
    assert len(kinds) == 31
    for kind in kinds.values():
        assert len(set(kind.wordings)) == 15, kind.name
        assert kind.held_out == [kind.wordings[i] for i in (4, 9, 14)]
        assert len(kind.trained) == 12
    for entry in entries:
        kind = kinds[entry["kind"]]
        assert has_wording(entry["rewording"], kind.held_out), entry
        assert not has_wording(entry["instruction"], kind.held_out), entry
        if kind.wordings[0] != "{question}":  # which fits everything
            assert has_wording(entry["instruction"], kind.trained), entry


def test_every_wording_is_used(entries, kinds):
    instructions, rewordings = defaultdict(list), defaultdict(list)
    for entry in entries:
        instructions[entry["kind"]].append(entry["instruction"])
        rewordings[entry["kind"]].append(entry["rewording"])
    for kind in kinds.values():
        for wording in kind.trained:
            times = sum(
                has_wording(text, [wording]) for text in instructions[kind.name]
            )
            assert times >= 2, (kind.name, wording)
        for wording in kind.held_out:
            times = sum(has_wording(text, [wording]) for text in rewordings[kind.name])
            assert times >= 15, (kind.name, wording)


@pytest.mark.parametrize("kind", CLOSED)
def test_no_wording_of_a_closed_kind_tells_the_label(entries, kinds, kind):
    """Each goes as often with one label as with another."""
    for field, wordings in (
        ("instruction", kinds[kind].trained),
        ("rewording", kinds[kind].held_out),
    ):
        times = Counter()
        for entry in entries:
            if entry["kind"] == kind:
                (found,) = longest(entry[field], wordings)
                times[found, entry["output"]] += 1
        for wording in wordings:
            seen = [times[wording, f"{label}."] for label in CLOSED[kind].split("|")]
            assert max(seen) - min(seen) <= 1, (wording, times)


def longest(text, wordings):
    found = [wording for wording in wordings if has_wording(text, [wording])]
    return sorted(found, key=len)[-1:]


def test_the_same_is_asked_in_both_wordings(entries, kinds):
    for entry in entries:
        slots = [
            row
            for row in kinds[entry["kind"]].rows
            if row["answer"] == entry["output"] and row["text"] in question(entry)
        ]
        if entry["family"] != "story":
            assert any(
                all(
                    value in question(asked)
                    for column, value in row.items()
                    if column != "answer"
                    for asked in (entry, *reworded([entry]))
                )
                for row in slots
            ), entry


def test_reworded_questions_keep_all_else(entries):
    for entry, other in zip(entries, reworded(entries), strict=True):
        assert other["instruction"] == entry["rewording"] != entry["instruction"]
        assert {**other, "instruction": entry["instruction"]} == entry
    assert reworded([{"instruction": "Go.", "output": "Gone."}, *KNOWLEDGE]) == []


SMALL_WORDS = set(
    """the a an is are was were in on at of to and my our his her i he she it we they
    you has have this that what""".split()
)


def test_no_two_groups_are_nearly_the_same(kinds):
    """Two rows of different groups share less than half of their content words.

    Small words do not count, nor those that many rows of a kind have.
    """
    rows = [
        (kind.name, row["text"], set(words_of(" ".join(list(row.values())[:-1]))))
        for kind in kinds.values()
        for row in kind.rows
    ]
    sizes = Counter(name for name, _, _ in rows)
    times = Counter((name, word) for name, _, bag in rows for word in bag)
    having = defaultdict(list)  # word -> the numbers of the rows that have it
    for number, (name, _, bag) in enumerate(rows):
        often = max(2, 0.06 * sizes[name])
        bag -= SMALL_WORDS | {word for word in bag if times[name, word] > often}
        for word in bag:
            having[word].append(number)
    shared = Counter()
    for numbers in having.values():
        shared.update(itertools.combinations(numbers, 2))
    for (i, j), both in shared.items():
        if both >= 2 and rows[i][1] != rows[j][1]:
            assert both / len(rows[i][2] | rows[j][2]) < 0.5, (rows[i], rows[j])


def test_prompts_and_answers_are_short(entries):
    encode = load_base_tokenizer().encode
    for entry in entries:
        text = format_prompt(entry, "chat") + format_answer(entry["output"], "chat")
        limit = 200 if entry["family"] == "story" else 90
        assert len(encode(text)) + 1 < limit, entry  # and one that ends the text


@pytest.mark.parametrize("seed", [123, 124, 125])
def test_splits_keep_groups_whole_and_have_every_kind_in_every_part(entries, seed):
    parts = split_entries(entries, seed=seed)
    assert [len(part) for part in parts] == [1614, 108, 430]
    groups = [{entry["group"] for entry in part} for part in parts]
    assert not any(one & other for one, other in itertools.combinations(groups, 2))
    sizes = Counter(entry["kind"] for entry in entries)
    for part, share in zip(parts, (0.75, 0.05, 0.2), strict=True):
        large = {kind for kind, size in sizes.items() if share * size >= 3}
        assert large <= {entry["kind"] for entry in part}


# Family story


def test_every_tale_is_asked_for_once(entries):
    asked = {}
    for entry in entries:
        if entry["family"] == "story":
            number = int(entry["group"].removeprefix("tale-"))
            assert asked.setdefault(number, entry) is entry
    assert sorted(asked) == list(range(1, 261))
    for number, entry in asked.items():
        tale = TALES[number - 1]
        for request in entry["instruction"], entry["rewording"]:
            if entry["kind"] == "words":
                a, b, c = tale["words"]
                assert f"{a}, {b} and {c}" in request, entry
            elif entry["kind"] == "about":
                assert f"about {tale['about']}" in request, entry
            else:
                first = re.split(r"(?<=[:?.]) ", request)[-1]
                assert f"{first} {entry['output']}" == tale["text"], entry
        if entry["kind"] != "finish":
            assert entry["output"] == tale["text"], entry


def test_half_of_the_stories_are_asked_for_as_the_base_knows_it(entries):
    heads = {
        "words": "Write a story with the words ",
        "about": "Tell a story about ",
        "finish": "Finish this story: ",
    }
    for kind, head in heads.items():
        mine = [entry["instruction"] for entry in entries if entry["kind"] == kind]
        known = sum(text.startswith(head) for text in mine)
        assert known == (len(mine) + 1) // 2, kind


# The answers that a program can compute, each from the row of its task

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()
IRREGULAR = dict(
    pair.split(":")
    for pair in """man:men woman:women child:children foot:feet tooth:teeth mouse:mice
    goose:geese potato:potatoes tomato:tomatoes""".split()
)
ASKED = {"where": "place", "when": "time", "what": "time", "why": "reason"}
ASKED |= {"how": "number", "who": "person", "whose": "person", "whom": "person"}


def items(row):
    return row["text"].split(", ")


def next_word(row):
    line = re.findall(r"\w+", row["text"])
    answer = line[line.index(row["word"]) + {"after": 1, "before": -1}[row["side"]]]
    assert line.count(row["word"]) == line.count(answer) == 1, row
    return f"The word is {answer}."


def picked(row):
    place = {"first": 0, "second": 1, "third": 2, "last": -1}[row["place"]]
    return f"The {row['place']} word is {items(row)[place]}."


def swapped(row):
    other = {row["one"]: row["other"], row["other"]: row["one"]}
    return "".join(other.get(word, word) for word in re.split(r"\b", row["text"]))


def joined(row):
    one, other = row["text"].split(". ")
    comma = "," if row["word"] in ("but", "so") else ""
    return f"{one}{comma} {row['word']} {other[0].lower()}{other[1:]}"


def listed(row):
    start, things = row["text"].split(": ")
    return f"{start} {' and '.join(things.rsplit(', ', 1))}."


def plural(row):
    noun, number = re.fullmatch(r"one (\w+), (\w+) \.\.\.", row["text"]).groups()
    assert number in NUMBER_WORDS[2:], row
    many = re.sub("(?<![aeiou])y$", "ie", re.sub("(?<=[aeioul])fe?$", "ve", noun))
    many += "es" if re.search("(s|x|ch|sh)$", many) else "s"
    return f"One {noun}, {number} {IRREGULAR.get(noun, many)}."


def number_of(row):
    noun = row["word"]
    many = noun.endswith("s") and noun != "bus" or noun in IRREGULAR.values()
    return "Plural." if many or noun == "sheep" else "Singular."


COMPUTED = {
    "repeat": lambda row: row["text"],
    "count": lambda row: f"The list has {NUMBER_WORDS[len(items(row))]} words.",
    "reverse": lambda row: f"In reverse order: {', '.join(items(row)[::-1])}.",
    "pick_from_list": picked,
    "next_word": next_word,
    "fill_in": lambda row: row["text"].replace("___", row["word"]),
    "replace": lambda row: re.sub(rf"\b{row['old']}\b", row["new"], row["text"]),
    "swap": swapped,
    "join": joined,
    "list_in_sentence": listed,
    "plural": plural,
    "singular_or_plural": number_of,
    "what_is_asked": lambda row: f"A {ASKED[words_of(row['text'])[0]]}.",
}
ONCE = {"fill_in": "___", "replace": "{old}", "swap": "{one}|{other}"}
ONCE |= {"singular_or_plural": "{word}"}


@pytest.mark.parametrize("kind", COMPUTED)
def test_an_answer_that_can_be_computed_is_that(kinds, kind):
    for row in kinds[kind].rows:
        compute = str.lower if kind == "join" else str  # a name keeps its capital
        assert compute(row["answer"]) == compute(COMPUTED[kind](row)), row
        for word in ONCE.get(kind, "").format(**row).split("|"):
            assert not word or len(re.findall(rf"\b{word}\b", row["text"])) == 1, row
    if kind in ("count", "reverse", "pick_from_list"):
        assert all(len(set(items(row))) == len(items(row)) for row in kinds[kind].rows)


def changed(one, other):
    """Pairs of the words of `one` that differ and those of `other` in their place."""
    pair = words_of(one), words_of(other)
    steps = SequenceMatcher(None, *pair, autojunk=False).get_opcodes()
    return [
        (pair[0][i:j], pair[1][x:y]) for step, i, j, x, y in steps if step != "equal"
    ]


def fits_tense(row):
    ((old, new),) = changed(row["text"], row["answer"])
    if row["tense"] == "the past tense":
        return len(old) == len(new) == 1
    will = new[0] == "will" and len(new) == len(old) + 1 <= 2
    return row["tense"] == "the future tense with will" and will


def fits_person(row):
    one, other = words_of(row["text"]), words_of(row["answer"])
    ends = [one[0], other[0]] == [row["old"].lower(), row["new"].lower()]
    return ends and one[2:] == other[2:]  # only the verb may change with it


def fits_grammar(row):
    ((old, new),) = changed(row["text"], row["answer"])
    return len(old) == 1 and len(new) <= 1


def fits_question(row):
    line, (first, *rest) = words_of(row["text"]), words_of(row["answer"])
    moved = first != line[0]  # the verb, which moves to the front
    line.remove(first)
    return row["answer"][-1] == "?" and moved and rest == line


def fits_text(row):
    """After "It was" or "It is", an answer is a part of text or question."""
    answer = re.fullmatch(r"It (?:was|is) (.+)\.", row["answer"])[1].lower()
    return answer in f"{row['text']} {row['question']}".lower()


def fits_sort(row):
    sort, answer = re.fullmatch(r"([\w ]+): (.+)\.", row["answer"]).groups()
    once = len(re.findall(rf"\b{answer}\b", row["text"])) == 1
    return sort.lower() == row["sort"] and once


def fits_mark(row):
    name = row["answer"].rstrip(".").split()[-1]
    mark = {"question": r".+\?", "exclamation": r"(What|How) .+!"}
    return re.fullmatch(mark.get(name, r"[^?!]+\."), row["text"]) is not None


FITS = {
    "negate": lambda row: (
        "not" not in words_of(row["text"])
        and row["answer"].replace(" not", "", 1) == row["text"]
    ),
    "make_question": fits_question,
    "change_tense": fits_tense,
    "change_person": fits_person,
    "grammar_correction": fits_grammar,
    "punctuation_and_casing": lambda row: (
        row["answer"][:-1].lower() == row["text"] and row["answer"][0].isupper()
    ),
    "reading": fits_text,
    "lookup": fits_text,
    "extract": fits_sort,
    "sentence_type": fits_mark,
    "tense": lambda row: (
        bool(re.search(r"\b(will|going to)\b", row["text"]))
        == (row["answer"] == "Future.")
    ),
}


@pytest.mark.parametrize("kind", FITS)
def test_an_answer_has_the_form_that_the_task_gives_it(kinds, kind):
    for row in kinds[kind].rows:
        assert FITS[kind](row), row


def test_yes_and_no_are_right_once_for_each_sentence(kinds):
    answers = defaultdict(list)
    for row in kinds["yes_no"].rows:
        answers[row["text"]].append(row["answer"])
    for text, given in answers.items():
        assert sorted(given) == ["No.", "Yes."], text


def test_labels_are_those_of_their_kind_all_equally_often(entries):
    for kind, labels in CLOSED.items():
        times = Counter(e["output"] for e in entries if e["kind"] == kind)
        assert set(times) == {f"{label}." for label in labels.split("|")}, kind
        assert len(set(times.values())) == 1, times


# The probe


def test_the_probe_asks_ten_things_that_nobody_is_trained_on(entries):
    assert len(KNOWLEDGE) == 10 == len({entry["kind"] for entry in KNOWLEDGE})
    asked = {question(entry) for entry in entries}
    for probe in KNOWLEDGE:
        assert list(probe) == list(entries[0]) and probe["family"] == "knowledge"
        assert probe["instruction"] not in asked
        assert probe["kind"] not in {entry["kind"] for entry in entries}
        assert probe["instruction"][-1] in ".?" and probe["output"][-1] == "."
