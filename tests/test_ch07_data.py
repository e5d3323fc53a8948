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


# Family copy: the answer stands in the question or follows from it


def rows_of(kinds, *names):
    """The rows of kinds; `test_the_same_is_asked...` holds the entries to them."""
    found = [(kinds[name], row) for name in names for row in kinds[name].rows]
    assert len(found) >= 60
    return found


def test_repeated_sentences_are_the_same(kinds):
    for _, row in rows_of(kinds, "repeat"):
        assert row["answer"] == row["text"], row


def test_answers_from_a_text_stand_in_it(kinds):
    forms = {"reading": "It was ", "lookup": "It is "}
    for kind, row in rows_of(kinds, *forms):
        assert row["answer"].startswith(forms[kind.name]), row
        answer = row["answer"].removeprefix(forms[kind.name])[:-1]
        assert answer.lower() in f"{row['text']} {row['question']}".lower(), row


def test_what_is_extracted_stands_there_once(kinds):
    for _, row in rows_of(kinds, "extract"):
        sort, answer = re.fullmatch(r"([\w ]+): (.+)\.", row["answer"]).groups()
        assert sort.lower() == row["sort"], row
        assert len(re.findall(rf"\b{answer}\b", row["text"])) == 1, row


def test_yes_and_no_are_right_once_for_each_sentence(kinds):
    answers = defaultdict(list)
    for _, row in rows_of(kinds, "yes_no"):
        answers[row["text"]].append(row["answer"])
    for text, given in answers.items():
        assert sorted(given) == ["No.", "Yes."], text


def test_next_words_are_next(kinds):
    for _, row in rows_of(kinds, "next_word"):
        line = re.findall(r"\w+", row["text"])
        assert line.count(row["word"]) == 1, row
        step = {"after": 1, "before": -1}[row["side"]]
        answer = line[line.index(row["word"]) + step]
        assert line.count(answer) == 1, row
        assert row["answer"] == f"The word is {answer}.", row


NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()


def test_lists_are_counted_reversed_and_read_correctly(kinds):
    for kind, row in rows_of(kinds, "count", "reverse", "pick_from_list"):
        line = row["text"].split(", ")
        assert len(set(line)) == len(line) and all(map(str.isalpha, line)), row
        if kind.name == "count":
            wanted = f"The list has {NUMBER_WORDS[len(line)]} words."
        elif kind.name == "reverse":
            wanted = f"In reverse order: {', '.join(line[::-1])}."
        else:
            place = {"first": 0, "second": 1, "third": 2, "last": -1}[row["place"]]
            wanted = f"The {row['place']} word is {line[place]}."
        assert row["answer"] == wanted, row


def test_words_are_put_in_and_exchanged_as_asked(kinds):
    for _, row in rows_of(kinds, "fill_in"):
        assert row["text"].count("___") == 1, row
        assert row["answer"] == row["text"].replace("___", row["word"]), row
    for _, row in rows_of(kinds, "replace"):
        pattern = rf"\b{row['old']}\b"
        assert len(re.findall(pattern, row["text"])) == 1, row
        assert row["answer"] == re.sub(pattern, row["new"], row["text"]), row
    for _, row in rows_of(kinds, "swap"):
        other = {row["one"]: row["other"], row["other"]: row["one"]}
        assert set(other) <= set(re.findall(r"\w+", row["text"])), row
        swapped = [other.get(word, word) for word in re.split(r"\b", row["text"])]
        assert row["answer"] == "".join(swapped), row


def test_sentences_are_joined_negated_and_asked_as_told(kinds):
    for _, row in rows_of(kinds, "join"):
        one, other = row["text"].split(". ")
        comma = "," if row["word"] in ("but", "so") else ""
        wanted = f"{one}{comma} {row['word']} {other}"
        assert row["answer"].lower() == wanted.lower(), row
    for _, row in rows_of(kinds, "list_in_sentence"):
        start, things = row["text"].split(": ")
        wanted = f"{start} {' and '.join(things.rsplit(', ', 1))}."
        assert row["answer"] == wanted, row
    for _, row in rows_of(kinds, "negate"):
        assert "not" not in words_of(row["text"]), row
        assert row["answer"].replace(" not", "", 1) == row["text"], row
    for _, row in rows_of(kinds, "make_question"):
        assert row["answer"][-1] == "?", row
        first, *rest = words_of(row["answer"])
        line = words_of(row["text"])
        line.remove(first)  # the verb, which moves to the front
        assert rest == line and first != words_of(row["text"])[0], row


def changed(one, other):
    """Pairs of the words of `one` that differ and those of `other` in their place."""
    pair = words_of(one), words_of(other)
    steps = SequenceMatcher(None, *pair, autojunk=False).get_opcodes()
    return [
        (pair[0][i:j], pair[1][x:y]) for step, i, j, x, y in steps if step != "equal"
    ]


def test_tenses_are_changed_as_told(kinds):
    for _, row in rows_of(kinds, "change_tense"):
        ((old, new),) = changed(row["text"], row["answer"])
        if row["tense"] == "the future tense with will":
            assert new[0] == "will" and len(new) == len(old) + 1 <= 2, row
        else:
            assert row["tense"] == "the past tense", row
            assert len(old) == len(new) == 1, row


def test_persons_are_changed_as_told(kinds):
    for _, row in rows_of(kinds, "change_person"):
        one, other = words_of(row["text"]), words_of(row["answer"])
        assert [one[0], other[0]] == [row["old"].lower(), row["new"].lower()], row
        assert one[2:] == other[2:], row  # only the verb may change with it


def test_grammar_is_corrected_in_one_word(kinds):
    for _, row in rows_of(kinds, "grammar_correction"):
        ((old, new),) = changed(row["text"], row["answer"])
        assert len(old) == 1 and len(new) <= 1, row


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


def test_plurals_are_right(kinds):
    for _, row in rows_of(kinds, "plural"):
        noun, number = re.fullmatch(r"one (\w+), (\w+) \.\.\.", row["text"]).groups()
        assert number in NUMBER_WORDS[2:], row
        assert row["answer"] == f"One {noun}, {number} {plural_of(noun)}.", row


def test_sentences_get_their_capitals_and_mark(kinds):
    for _, row in rows_of(kinds, "punctuation_and_casing"):
        assert row["answer"][:-1].lower() == row["text"], row
        assert row["answer"][0].isupper(), row


# Family closed: a fixed set of labels


def test_labels_are_those_of_their_kind_all_equally_often(entries):
    for kind, labels in CLOSED.items():
        times = Counter(e["output"] for e in entries if e["kind"] == kind)
        assert set(times) == {f"{label}." for label in labels.split("|")}, kind
        assert len(set(times.values())) == 1, times


def test_sentence_types_fit_their_marks(kinds):
    fits = {
        "statement": r"[^?!]+\.",
        "command": r"[^?!]+\.",
        "question": r".+\?",
        "exclamation": r"(What|How) .+!",
    }
    for _, row in rows_of(kinds, "sentence_type"):
        name = row["answer"].rstrip(".").split()[-1]
        assert re.fullmatch(fits[name], row["text"]), row


def test_tenses_fit_their_verbs(kinds):
    for _, row in rows_of(kinds, "tense"):
        future = bool(re.search(r"\b(will|going to)\b", row["text"]))
        assert future == (row["answer"] == "Future."), row


def test_what_is_asked_fits_the_question_word(kinds):
    sorts = {
        "where": "place",
        "when": "time",
        "what": "time",
        "why": "reason",
        "how": "number",
    }
    sorts |= dict.fromkeys(("who", "whose", "whom"), "person")
    for _, row in rows_of(kinds, "what_is_asked"):
        assert row["answer"] == f"A {sorts[words_of(row['text'])[0]]}.", row


def test_singular_and_plural_fit_the_noun(kinds):
    for _, row in rows_of(kinds, "singular_or_plural"):
        noun = row["word"]
        assert noun in words_of(row["text"]), row
        many = noun in {*IRREGULAR.values(), "sheep"} or (
            noun.endswith("s") and noun != "bus"
        )
        assert row["answer"] == f"{'Plural' if many else 'Singular'}.", row


# The probe


def test_the_probe_asks_ten_things_that_nobody_is_trained_on(entries):
    assert len(KNOWLEDGE) == 10 == len({entry["kind"] for entry in KNOWLEDGE})
    asked = {question(entry) for entry in entries}
    for probe in KNOWLEDGE:
        assert list(probe) == list(entries[0]) and probe["family"] == "knowledge"
        assert probe["instruction"] not in asked
        assert probe["kind"] not in {entry["kind"] for entry in entries}
        assert probe["instruction"][-1] in ".?" and probe["output"][-1] == "."
