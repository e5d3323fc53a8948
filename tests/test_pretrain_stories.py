"""Stories told again: other names and things, and requests that fit what follows."""

import doctest
import hashlib
import re
from dataclasses import replace

import pytest

from ch07_instructions.word_forms import word_forms
from pretrain import stories
from pretrain.prepare import read_documents
from pretrain.stories import (
    BOYS,
    GIRLS,
    KINDS,
    PETS,
    Chance,
    Requests,
    exchange,
    name_places,
    rename,
    retell,
    split_stories,
    write_versions,
)
from shared import data

SHA256 = "cf8fe3e5a4cb612af2231997673b12607baab167e08c181a99c79042acf2386b"
SEEDS = range(40)
SAMPLE = [
    "Once upon a time, there was a little girl named Lily. She wanted to climb the old "
    "tower, but Tom was afraid. \"Will you hold my hand?\" asked Lily's friend. Tom's "
    "hand was warm, and Lily smiled.",
    "One day, a small fox named Spot found a red hat. The hat was too big for Spot. "
    '"An apple would fit into it," said a bear. So Spot gave the hat to the bear.',
    "Will and Rose lived near a quiet lake. Rose planted a rose, and Will watered it. "
    'Every morning Will asked, "Did it grow?" Then one morning it had grown.',
    "Ann saw Anna in the garden. There was a brave boy called Tim, too, and a baby "
    'called Timmy. "Come and dance," said Anna to Ann. They danced until Timmy slept.',
    "A kind truck carried cookies to the market. The road was muddy, and it got stuck. "
    "A van pulled it out of the mud. They shared the cookies and were glad.",
]


def tokens(text):
    """Words, and all that is between them."""
    return re.findall(r"\w+|\W", text)


def renamed(text, seed):
    """Which name became which, when nothing else of a story may change."""
    new = rename(text, Chance(seed))
    pairs = {
        pair
        for pair in zip(tokens(text), tokens(new), strict=True)
        if pair[0] != pair[1]
    }
    found = dict(pairs)
    assert len(found) == len(pairs), "one name became two"
    assert len(set(found.values())) == len(found), "two people became one"
    assert not set(found.values()) & set(tokens(text))
    for old, other in found.items():
        (pool,) = (pool for pool in (GIRLS, BOYS, PETS) if old in pool)
        assert other in pool
    return found


@pytest.fixture
def requests(monkeypatch):
    """Requests for the sample, where only these words are too common."""
    ordinary = "the and was it to that they of in is he she had an his her so by"
    monkeypatch.setattr(stories, "ORDINARY", len(ordinary.split()))
    return Requests([*SAMPLE * 5, *[ordinary] * 30])


# Names


def test_names_change_and_nothing_else_does():
    names = [{"Lily", "Tom"}, {"Spot"}, {"Will", "Rose"}]
    names += [{"Ann", "Anna", "Tim", "Timmy"}, set()]
    for text, wanted in zip(SAMPLE, names, strict=True):
        for seed in SEEDS:
            assert renamed(text, seed).keys() == wanted


def test_a_name_that_is_also_a_word():
    text = 'Tom met Will. Will had a kite. "Will you fly it?" asked Tom. "I will."'
    new = rename(text, Chance(1))
    assert "Will you fly it?" in new and new.endswith('"I will."')
    assert new.count("Will") == 1 and "Tom" not in new
    assert "Will" not in rename("Tom told Will that it was late.", Chance(1))
    flower = 'Rose petals fell. "Will it rain?" asked Tom. May it rain!'
    assert [m[0] for m in name_places(flower)] == ["Tom"]
    spot = "Spot barked. There is a spot on Spot. Spot the dog ran."
    assert len(name_places(spot)) == 2  # "Spot the dog" might be an order
    for seed in SEEDS:
        given = set(renamed(SAMPLE[3], seed).values())
        assert not given & stories.ALSO_WORDS


def test_names_that_contain_each_other_stay_apart():
    text = "Then Ann met Anna, Annie and Hanna. Hannah and JoAnn came, too, with Ben."
    for seed in SEEDS:
        assert renamed(text, seed).keys() == {"Ann", "Anna", "Annie", "Hanna", "Ben"}


def test_possessives_and_quotes_follow():
    text = 'It was Lily\'s hat. "Lily!" said James. James\' hat was "Lily-blue".'
    new = rename(text, Chance(3))
    names = {
        old: new_name for old, new_name in zip(tokens(text), tokens(new), strict=True)
    }
    girl, boy = names["Lily"], names["James"]
    assert new == text.replace("Lily", girl).replace("James", boy)


def test_a_story_without_names_stays():
    for text in ("", " ", "A cat sat.", "Lily", "lily and tom", "the "):
        assert rename(text, Chance(1)) == text


def test_tables_that_run_out_make_no_two_people_one(monkeypatch):
    text = "Then Lily met Mia. Lily liked Mia."
    for pools, new in (
        ((("Lily",), ("Mia",)), text),
        ((("Lily", "Mia", "Zoe"), ()), "Then Zoe met Mia. Zoe liked Mia."),
    ):
        monkeypatch.setattr(stories, "POOLS", pools)
        monkeypatch.setattr(stories, "_NAMES", frozenset(pools[0] + pools[1]))
        assert rename(text, Chance(1)) == new


def test_the_tables_share_no_name():
    names = [*GIRLS, *BOYS, *PETS]
    assert len(names) == len(set(names))
    assert set(names) >= stories.ALSO_WORDS
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in names)


# Things


def test_articles_and_capitals_follow_the_thing():
    kind = "apple apples, pear pears, orange oranges, plum plums"
    text = "An apple fell. A pear and an orange saw it. Two plums, the apple's friends."
    found = set()
    for seed in SEEDS:
        new = exchange(text, kind, Chance(seed))
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", new), new
        assert re.match("An? (apple|pear|orange|plum) fell. An? ", new)
        (plural,) = re.findall(r"Two (\w+)s,", new)
        (single,) = re.findall(r"the (\w+)'s friends", new)
        assert re.match(r"An? (\w+)", new)[1] == single  # the same one again
        assert len({*re.findall(r"[Aa]n? (\w+)", new), plural}) == 4
        found.add(new)
    assert len(found) > 10
    assert exchange("Apples! PEAR", "apple apples, pear pears", Chance(1)) in (
        *("Apples! Pear", "Pears! Apple"),
    )


def test_only_whole_words_are_exchanged():
    text = "A carpet, a scar, a Carl and the pineapple in the hatbox."
    for seed in SEEDS:
        for kind, _ in KINDS:
            assert exchange(text, kind, Chance(seed)) == text


def test_a_word_that_fits_one_thing_only_keeps_the_kind():
    for seed in SEEDS:
        kept = retell("The rabbit hopped to the red apple.", Chance(seed))
        assert kept == "The rabbit hopped to the red apple."
    free = {retell("The rabbit sat on a chair.", Chance(seed)) for seed in SEEDS}
    animals = {re.match(r"The (\w+)", text)[1] for text in free}
    seats = {re.search(r"(\w+)\.", text)[1] for text in free}
    assert len(animals) > 4 and len(seats) == 4
    assert any("rabbit" in text and "chair" not in text for text in free)


def test_the_kinds_are_pairs_and_share_no_word_but_orange():
    words = [word for kind, _ in KINDS for word in re.findall(r"\w+", kind)]
    assert {w for w in words if words.count(w) > 1} == {"orange", "oranges"}
    assert all(len(pair.split()) == 2 for kind, _ in KINDS for pair in kind.split(","))


def test_its_example_is_true():
    assert doctest.testmod(stories) == (0, 1)


# Requests


def test_three_words_are_in_the_story(requests):
    asked = set()
    function_words = set("the and was it to that they of in is he she had an".split())
    for text in SAMPLE:
        for seed in SEEDS:
            line = requests.words(text, Chance(seed))
            words = re.fullmatch(
                r"Write a story with the words (\w+), (\w+) and (\w+)\.", line
            ).groups()
            assert len(set(words)) == 3
            for word in words:
                assert word_forms(word) & set(re.findall("[a-z]+", text)), word
            asked |= set(words)
    assert not asked & function_words and len(asked) > 30
    assert {"climb", "dance", "grow"} <= asked  # not in the form that the story has
    assert not asked & {"danced", "grown", "lily", "spot"}


def test_common_words_are_never_asked_for():
    texts = [
        f"The day was long. The {x} sang. The {x} was glad." for x in ("owl", "hen")
    ]
    requests = Requests(texts * 9)  # fewer than 400 words: all are common
    assert requests.plain == {} and requests.words(texts[0], Chance(1)) is None
    assert Requests([]).plain == {}


def test_the_hero_is_the_one_that_is_introduced():
    wanted = ["little girl named Lily", "small fox named Spot", None]
    wanted += ["brave boy called Tim"]
    for text, hero in zip(SAMPLE, wanted, strict=False):
        line = hero and f"Tell a story about a {hero}."
        assert Requests(SAMPLE).hero(text, Chance(1)) == line


def test_every_request_stands_before_what_it_asks_for(requests):
    kinds = {"": 0, "Write": 0, "Tell": 0, "Finish": 0}
    for text in SAMPLE:
        for seed in range(200):
            line, _, rest = requests.before(text, Chance(seed)).rpartition("\n\n")
            kinds[line.split(" ")[0]] += 1
            if line.startswith("Finish this story: "):
                first = line.removeprefix("Finish this story: ")
                assert f"{first} {rest}" == text and first[-1] in ".!?"
                assert rest[0].isupper() and "." not in first[:-1]
            else:
                assert rest == text
    assert kinds[""] > 400  # of 1,000, and some stories have no hero
    assert kinds["Write"] > kinds["Finish"] > 50 and kinds["Tell"] > 30


@pytest.mark.parametrize(
    "text",
    [
        *("", "Short.", "No end", "One long sentence is all here."),
        "He sold apples, pears etc. and lived alone.",
    ],
)
def test_a_story_of_one_sentence_gets_no_request(text):
    requests = Requests(SAMPLE)
    assert {requests.before(text, Chance(seed)) for seed in SEEDS} == {text}


# Files


def write(path, texts):
    path.write_text("".join(f"{text}\n<|endoftext|>\n" for text in texts))
    return path


def numbered(texts):
    """The sample again and again, each story with a number that no version changes."""
    return [f"{texts[i % len(texts)]} {i}" for i in range(60)]


def told(path):
    """The stories of a file by their numbers."""
    found = {int(text.split(" ")[-1]): text for text in read_documents(path)}
    assert len(found) == len(list(read_documents(path)))
    return found


def test_versions_differ_and_leave_out_what_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "HELD_OUT", 0.2)
    texts = numbered(SAMPLE[:4])
    path = write(tmp_path / "in.txt", ["", *texts, " \n"])
    stories.main([str(path), "--out", str(tmp_path / "out"), "--versions", "3"])
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["held-out-stories.txt", *(f"stories-{i}.txt" for i in (1, 2, 3))]
    held_out, *versions = (told(tmp_path / "out" / name) for name in names)
    assert 4 < len(held_out) < 24
    assert all(text == texts[i] for i, text in held_out.items())
    for version in versions:
        assert version.keys() == set(range(60)) - held_out.keys()
    for i in versions[0]:
        different = {version[i].rpartition("\n\n")[2] for version in versions}
        assert len(different | {texts[i]}) > 2, different


def test_the_same_stories_are_held_out_whatever_stands_beside_them():
    texts = [f"Story {i}." for i in range(3000)]
    train, held_out = split_stories(texts)
    assert sorted(train + held_out) == sorted(texts)
    assert 15 < len(held_out) < 50
    again = split_stories(texts[::-2])[1]
    assert set(again) == set(held_out) & set(texts[::-2])


def test_a_seed_gives_the_same_bytes_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "ORDINARY", 16)
    path = write(tmp_path / "in.txt", numbered(SAMPLE))
    found = []
    for seed in (123, 123, 124):
        files = write_versions(path, tmp_path / str(seed), 2, seed)
        found.append(b"".join(file.read_bytes() for file in files))
    assert found[0] == found[1] != found[2]
    assert hashlib.sha256(found[0]).hexdigest() == SHA256


def test_as_many_stories_are_asked_for_as_one_wishes(tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "ORDINARY", 16)
    path = write(tmp_path / "in.txt", numbered(SAMPLE))
    found = []
    for asked in ("0", "1"):
        out = ["--out", str(tmp_path / asked), "--versions", "1"]
        stories.main([str(path), *out, "--asked", asked])
        texts = list(read_documents(tmp_path / asked / "stories-1.txt"))
        found.append(sum("\n\n" in text for text in texts) / len(texts))
    assert found[0] == 0 and found[1] > 0.8  # some have no hero, or no first sentence
    with pytest.raises(SystemExit, match="asked must be a share from 0 to 1, not 2"):
        stories.main([str(path), "--out", str(tmp_path / "no"), "--asked", "2"])
    assert not (tmp_path / "no").exists()


def test_stories_of_one_line_go_through(tmp_path):
    path = write(tmp_path / "in.txt", ["Lily ran.", "The end.", "x"])
    files = write_versions(path, tmp_path / "out", 1)
    assert [list(read_documents(file)) for file in files] == [
        *([], ["Lily ran.", "The end.", "x"])
    ]


@pytest.mark.parametrize(
    ("content", "versions", "message"),
    [
        (b"A story.", "0", "versions must be 1 or more, not 0"),
        (b"", "1", "in.txt holds no story to train on"),
        (b"\n<|endoftext|>\n \n<|endoftext|>\n", "1", "in.txt holds no story"),
        ("Größe".encode("latin-1"), "1", "in.txt cannot be read"),
        (None, "1", "No such file or directory"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path, content, versions, message):
    if content is not None:
        (tmp_path / "in.txt").write_bytes(content)
    arguments = ["--out", str(tmp_path / "out"), "--versions", versions]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        stories.main([str(tmp_path / "in.txt"), *arguments])
    assert not (tmp_path / "out").exists()


def test_an_old_version_stays_if_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = write(tmp_path / "in.txt", SAMPLE)
    write_versions(path, tmp_path / "out", 1, seed=1)
    before = (tmp_path / "out/stories-1.txt").read_bytes()

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(stories, "retell", fail)
    with pytest.raises(OSError, match="No space left"):
        write_versions(path, tmp_path / "out", 1, seed=2)
    assert (tmp_path / "out/stories-1.txt").read_bytes() == before


def test_stories_are_found_by_their_name(tmp_path, monkeypatch):
    content = write(tmp_path / "mirrored.txt", SAMPLE).read_bytes()
    row = data.FILES["tinystories-valid"]
    digest = hashlib.sha256(content).hexdigest()
    row = replace(row, sha256=digest, size=len(content), mirror="mirrored.txt")
    monkeypatch.setitem(data.FILES, "tinystories-valid", row)
    monkeypatch.setenv("LLM_COURSE_MIRROR", str(tmp_path))
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "cache"))
    arguments = ["--out", str(tmp_path / "out"), "--versions", "1"]
    stories.main(["tinystories-valid", *arguments])
    found = list(read_documents(tmp_path / "out/stories-1.txt"))
    found += read_documents(tmp_path / "out/held-out-stories.txt")
    assert len(found) == len(SAMPLE)
    with pytest.raises(SystemExit, match="tinystories.* could not be found"):
        stories.main(["tinystories", *arguments])
