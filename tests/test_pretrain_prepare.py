"""Pretraining: texts become shards of tokens, and shards windows."""

import json
import lzma
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken

from pretrain import prepare
from pretrain.prepare import (
    TokenShards,
    choose_held_out,
    main,
    open_sources,
    prepare_source,
    read_documents,
    source_name,
)
from shared.ch02 import get_tokenizer
from tools.export import ROOT


def make_documents(n, seed=1):
    """Documents of 3 to 60 words, no two alike."""
    draw = random.Random(seed)
    words = "the a cat“s né dog ran up, and\ndown 42 hills; \n\nthen slept".split(" ")
    return [
        f"{i}: " + " ".join(draw.choices(words, k=draw.randint(3, 60)))
        for i in range(n)
    ]


def write_text(path, documents):
    path.parent.mkdir(exist_ok=True)
    text = "\n<|endoftext|>\n".join(documents) + "\n"
    packed = path.suffix == ".xz"
    path.write_bytes(lzma.compress(text.encode()) if packed else text.encode())
    return path


def token_ids(folder, split):
    """All tokens of a split, read without the code under test."""
    index = json.loads((folder / "index.json").read_text())
    files = [folder / shard["file"] for shard in index[split]]
    assert files == sorted(folder.glob(f"{split}-*.bin"))
    return [i for file in files for i in np.fromfile(file, "<u2").tolist()]


def as_documents(ids):
    """Token ids, cut behind each end of text."""
    ends = [i + 1 for i, token in enumerate(ids) if token == 50256]
    assert not ids or ends[-1] == len(ids)
    return [ids[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def encode(document):
    """A document as tiktoken has it, with the token that ends it."""
    oracle = get_tokenizer()
    assert isinstance(oracle, tiktoken.Encoding) and oracle.name == "gpt2"
    return [*oracle.encode_ordinary(document), 50256]


@pytest.fixture
def source(tmp_path):
    """A function that writes hand-made shards and opens them."""

    def make(*shards, window=4, vocab_size=64, split="train", end=None):
        folder = tmp_path / "source"
        folder.mkdir()
        index = {"vocab_size": vocab_size, "train": [], "held_out": []}
        for number, ids in enumerate(shards):
            file = f"{split}-{number:05d}.bin"
            np.array(ids, "<u2").tofile(folder / file)
            index[split].append({"file": file, "tokens": len(ids)})
        (folder / "index.json").write_text(json.dumps(index))
        return TokenShards(folder, split, window, end)

    return make


# From texts to shards


@pytest.mark.parametrize("name", ["news.txt", "news.txt.xz"])
def test_shards_are_the_tokens_that_tiktoken_gives(tmp_path, name):
    documents = make_documents(40)
    path = write_text(tmp_path / name, documents)
    index = prepare_source(path, tmp_path / "out", held_out=0.2)
    assert index["documents"] == 40 and index["empty_documents"] == 0
    folder = tmp_path / "out" / "news"
    assert json.loads((folder / "index.json").read_text()) == index
    assert {p.name for p in folder.iterdir()} == {
        *("index.json", "train-00000.bin", "held_out-00000.bin")
    }

    wanted = [encode(document) for document in documents]
    train, held = (as_documents(token_ids(folder, s)) for s in ("train", "held_out"))
    assert train == [ids for ids in wanted if ids in train]  # in the text's order
    assert held == [ids for ids in wanted if ids in held]
    assert sorted(train + held) == sorted(wanted)  # none lost, none in both
    assert len(held) == index["held_out_documents"]
    share = sum(map(len, held)) / sum(map(len, wanted))
    assert 0.15 < share <= 0.2


def test_nothing_is_held_out_if_nothing_shall_be(tmp_path):
    documents = make_documents(5)
    path = write_text(tmp_path / "news.txt", documents)
    index = prepare_source(path, tmp_path, held_out=0)
    assert index["held_out"] == [] and index["held_out_documents"] == 0
    wanted = [encode(document) for document in documents]
    assert as_documents(token_ids(tmp_path / "news", "train")) == wanted


def test_a_single_document_holds_out_its_end(tmp_path):
    path = write_text(tmp_path / "novel.txt", [" ".join(make_documents(30))])
    ids = encode(" ".join(make_documents(30)))
    prepare_source(path, tmp_path, held_out=0.1)
    train, held = (token_ids(tmp_path / "novel", s) for s in ("train", "held_out"))
    assert train + held == ids
    assert len(held) == round(0.1 * len(ids))


def test_what_is_held_out_depends_on_the_texts_alone():
    lengths, keys = [10, 20, 30, 40], ["d", "b", "c", "a"]
    assert choose_held_out(lengths, keys, 0.61) == {1, 3}  # 40, then 20: 30 is too much
    assert choose_held_out(lengths, keys, 0.4) == {3}
    assert choose_held_out(lengths, keys, 0.05) == set()
    turned = choose_held_out(lengths[::-1], keys[::-1], 0.61)
    assert turned == {0, 2}


@pytest.mark.parametrize("shard_tokens", [2, 7, 100, 10**6])
def test_split_into_shards_they_hold_the_same_tokens(tmp_path, shard_tokens):
    documents = make_documents(6)
    path = write_text(tmp_path / "news.txt", documents)
    index = prepare_source(path, tmp_path, 0.3, shard_tokens)
    whole = prepare_source(path, tmp_path / "whole", 0.3)
    for split in ("train", "held_out"):
        ids = token_ids(tmp_path / "news", split)
        assert ids == token_ids(tmp_path / "whole" / "news", split)
        sizes = [shard["tokens"] for shard in index[split]]
        assert sizes[:-1] == [shard_tokens] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= shard_tokens and sum(sizes) == len(ids)
    assert whole["train"][0]["file"] == "train-00000.bin"


def test_documents_with_a_placeholder_can_be_left_out(tmp_path):
    texts = ["A: Hello, [name]!", "A: Hello, Ada!", "a [name] b", "name"]
    path = write_text(tmp_path / "talk.txt", texts)
    index = prepare_source(path, tmp_path / "out", 0, without="[name]")
    assert (index["documents"], index["left_out_documents"]) == (2, 2)
    ids = token_ids(tmp_path / "out/talk", "train")
    assert ids == [*encode("A: Hello, Ada!"), *encode("name")]
    again = prepare_source(path, tmp_path / "out", 0)  # another recipe: made again
    assert (again["documents"], again["left_out_documents"]) == (4, 0)


def test_the_command_leaves_documents_out(tmp_path, capsys):
    path = write_text(tmp_path / "talk.txt", ["a [name]", "b", "c"])
    main([str(path), "--out", str(tmp_path / "out"), "--without", "["])
    assert "2 documents" in capsys.readouterr().out


def test_empty_documents_are_skipped_and_counted(tmp_path):
    documents = ["", "one", " \n\n\t", "two\n\n  three", "", ""]
    index = prepare_source(write_text(tmp_path / "x.txt", documents), tmp_path, 0)
    assert (index["documents"], index["empty_documents"]) == (2, 3)
    wanted = encode("one") + encode("two\n\n  three")
    assert token_ids(tmp_path / "x", "train") == wanted


def test_the_separator_counts_on_a_line_of_its_own_and_within_one(tmp_path):
    text = "a | b\n  |\r\n\r\n c \r\nd||\ne".replace("|", "<|endoftext|>")
    (tmp_path / "x.txt").write_bytes(text.encode())
    found = list(read_documents(tmp_path / "x.txt"))
    assert found == ["a", "b", " c \r\nd", "", "e"]
    prepare_source(tmp_path / "x.txt", tmp_path, 0)
    ids = token_ids(tmp_path / "x", "train")
    assert as_documents(ids) == [encode(text) for text in found if text]
    assert ids.count(50256) == 4  # it never becomes thirteen letters


@pytest.mark.parametrize("name", ["x.txt", "x.txt.xz"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name):
    path = write_text(tmp_path / name, ["\ufeffone", "\ufefftwo", "three\ufeff"])
    assert list(read_documents(path)) == ["one", "two", "three\ufeff"]


def test_copies_of_a_document_are_held_out_together_or_not_at_all(tmp_path):
    documents = make_documents(40)
    copies = [text.upper().replace(" ", "\n ") for text in documents[::2]]
    path = write_text(tmp_path / "x.txt", documents + documents[:9] + copies)
    prepare_source(path, tmp_path / "out", held_out=0.3)
    tokenizer = get_tokenizer()
    train, held = (
        {
            " ".join(tokenizer.decode(ids[:-1]).casefold().split())
            for ids in as_documents(token_ids(tmp_path / "out/x", split))
        }
        for split in ("train", "held_out")
    )
    assert len(train) + len(held) == 40 and not train & held and len(held) > 3


def test_copies_in_another_file_are_told(tmp_path, capsys):
    documents = make_documents(40)
    texts = {"a": documents, "b": documents[20:] + make_documents(30, 9), "c": ["x"]}
    paths = [str(write_text(tmp_path / f"{n}.txt", texts[n])) for n in texts]
    main([*paths, "--out", str(tmp_path / "out"), "--held-out", "0.3"])
    splits = [
        {tuple(ids) for ids in as_documents(token_ids(tmp_path / "out" / name, split))}
        for name, split in (("a", "held_out"), ("b", "train"))
    ]
    printed = capsys.readouterr().out
    number = len(splits[0] & splits[1])
    plural = "s" if number > 1 else ""
    assert number and f"a holds out {number} document{plural} that b has" in printed
    assert "c has too" not in printed and "c holds" not in printed


def test_the_end_that_is_held_out_is_of_no_document_with_a_copy(tmp_path):
    long, copied = (" ".join(make_documents(30, seed)) for seed in (1, 2))
    path = write_text(tmp_path / "x.txt", [long, copied, copied])
    prepare_source(path, tmp_path, held_out=0.05)
    held = token_ids(tmp_path / "x", "held_out")
    assert encode(long)[-len(held) :] == held


def test_a_little_text_holds_out_as_much_as_is_asked_for(tmp_path):
    documents = make_documents(60)
    path = write_text(tmp_path / "x.txt", documents)
    few = prepare_source(path, tmp_path, held_out=0.01)
    assert prepare.tokens_in(few, "held_out") < 100
    more = prepare_source(path, tmp_path, held_out=0.01, least_held_out=100)
    assert 100 <= prepare.tokens_in(more, "held_out") < 200
    held = as_documents(token_ids(tmp_path / "x", "held_out"))
    assert all(ids in map(encode, documents) for ids in held)  # whole ones
    times = [os.utime(p, (1, 1)) for p in (tmp_path / "x").iterdir()]
    prepare_source(path, tmp_path, held_out=0.01)  # enough is held out: it stays
    assert times and all(p.stat().st_mtime == 1 for p in (tmp_path / "x").iterdir())


class Panic(BaseException):
    """What Rust's panics are in Python."""


Panic.__name__ = "PanicException"


def test_a_text_that_the_tokenizer_cannot_take_is_named(tmp_path, monkeypatch):
    def encode_ordinary(text):
        raise Panic

    broken = SimpleNamespace(encode_ordinary=encode_ordinary, n_vocab=9, eot_token=8)
    monkeypatch.setattr(prepare, "open_tokenizer", lambda folder: broken)
    path = write_text(tmp_path / "x.txt", ["A tale" + "!" * 500])
    message = "x.txt cannot be tokenised: .*'A tale!!!.*' the character '!' stands 500 "
    with pytest.raises(ValueError, match=message):
        prepare_source(path, tmp_path)
    broken.encode_ordinary = lambda text: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_source(path, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_a_name_that_is_no_utf8_can_be_printed(tmp_path, capsys):
    path = write_text(tmp_path / os.fsdecode(b"M\xe4rchen.txt"), ["text"])
    main([str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert "rchen: " in capsys.readouterr().out


def test_progress_counts_the_bytes_of_the_file(tmp_path):
    for name in ("x.txt", "y.txt.xz"):
        path = write_text(tmp_path / name, make_documents(30))
        done = multiprocessing.get_context("spawn").Value("q", 0)
        seen = []
        for _ in read_documents(path, done):
            seen.append(done.value)
        assert seen == sorted(seen) and 0 < seen[-1] <= path.stat().st_size


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bare.txt", b"", "bare.txt holds no text"),
        ("blank.txt", b" \n<|endoftext|>\n\n<|endoftext|>\n", "holds no text"),
        ("latin.txt", "Größe".encode("latin-1"), "latin.txt cannot be read"),
        ("half.txt.xz", lzma.compress(os.urandom(999))[:-300], "half.txt.xz cannot be"),
        ("plain.txt.xz", b"not packed at all", "plain.txt.xz cannot be read"),
        ("empty.txt.xz", b"", "empty.txt.xz cannot be read"),
    ],
)
def test_unreadable_texts_are_named_and_leave_no_index(
    tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare_source(tmp_path / name, tmp_path / "out")
    assert not list(tmp_path.glob("out/*/index.json"))
    assert not list(tmp_path.glob("out/*/*.bin"))


@pytest.mark.parametrize("name", ["book.pdf", "book.xz", ".txt", ".txt.xz", "txt"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must end in .txt or .txt.xz"):
        source_name(tmp_path / name)


@pytest.mark.parametrize("name", ["...txt", "..txt", "....txt.xz", ".x.txt", "x. .txt"])
def test_a_name_that_would_lead_out_of_the_folder_is_refused(tmp_path, name):
    path = write_text(tmp_path / "texts" / name, ["text"])
    (tmp_path / "out").mkdir()
    others = [tmp_path / "train-00000.bin", tmp_path / "out" / "held_out-00000.bin"]
    for other in others:
        other.write_bytes(b"mine")
    with pytest.raises(
        ValueError, match="begins or ends with a dot or a space; rename"
    ):
        prepare.prepare([path], tmp_path / "out")
    with pytest.raises(ValueError, match="rename"):
        prepare_source(path, tmp_path / "out")
    assert [other.read_bytes() for other in others] == [b"mine", b"mine"]


@pytest.mark.parametrize("text", ['{"name": "a web page"}', "[]", "7"])
def test_a_folder_of_something_else_keeps_its_files(tmp_path, text):
    path = write_text(tmp_path / "news.txt", ["text"])
    folder = tmp_path / "out" / "news"
    folder.mkdir(parents=True)
    for name in ("scan.bin", "train-1.bin", "train-00000.bin"):
        (folder / name).write_bytes(b"mine")
    (folder / "index.json").write_text(text)
    with pytest.raises(
        ValueError, match="index.json is not of a source.*another --out"
    ):
        prepare_source(path, tmp_path / "out")
    assert len(list(folder.iterdir())) == 4
    (folder / "index.json").unlink()
    prepare_source(path, tmp_path / "out", held_out=0)
    kept = [(folder / name).read_bytes() for name in ("scan.bin", "train-1.bin")]
    assert kept == [b"mine", b"mine"]
    assert token_ids(tmp_path / "out" / "news", "held_out") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 1.01}, "held_out must lie in .0, 1., not 1.01"),
        ({"held_out": -0.1}, "held_out must lie in .0, 1., not -0.1"),
        ({"shard_tokens": 1}, "shard_tokens must be 2 or more, not 1"),
    ],
)
def test_shares_and_sizes_out_of_range(tmp_path, change, message):
    path = write_text(tmp_path / "x.txt", ["text"])
    with pytest.raises(ValueError, match=message):
        prepare.prepare([path], tmp_path / "out", **change)


def test_missing_files_and_shared_names_are_found_before_any_work(tmp_path):
    path = write_text(tmp_path / "x.txt", ["text"])
    with pytest.raises(FileNotFoundError, match="there is no file .*y.txt"):
        prepare.prepare([path, tmp_path / "y.txt"], tmp_path / "out")
    packed = write_text(tmp_path / "x.txt.xz", ["text"])
    with pytest.raises(ValueError, match="two files are called x; rename"):
        prepare.prepare([path, packed], tmp_path / "out")
    with pytest.raises(ValueError, match="book.pdf is not a text file"):
        prepare.prepare([path, tmp_path / "book.pdf"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Going on after an interruption


def test_only_what_is_missing_or_changed_is_made_again(tmp_path):
    path = write_text(tmp_path / "x.txt", make_documents(9))
    folder = tmp_path / "x"

    def made_again(held_out=0.3, shard_tokens=50):
        for file in folder.iterdir():
            os.utime(file, (1, 1))
        prepare_source(path, tmp_path, held_out, shard_tokens)
        old = {file.stat().st_mtime == 1 for file in folder.iterdir()}
        assert len(old) == 1  # all of it or nothing
        ids = token_ids(folder, "train") + token_ids(folder, "held_out")
        documents = read_documents(path)
        assert sorted(ids) == sorted(i for text in documents for i in encode(text))
        return not old.pop()

    prepare_source(path, tmp_path, 0.3, 50)
    assert not made_again()
    (folder / "index.json").unlink()
    (folder / "train-00099.bin").write_bytes(b"left over")
    (folder / "tokens.partial").write_bytes(b"left over")
    assert made_again() and not made_again()
    assert not (folder / "train-00099.bin").exists()
    assert made_again(held_out=0.2) and not made_again(held_out=0.2)
    assert made_again(0.2, shard_tokens=60)
    write_text(path, make_documents(9, seed=2))
    assert made_again(0.2, 60) and not made_again(0.2, 60)
    (folder / "index.json").write_text('{"text": {"fi')
    assert made_again(0.2, 60) and not made_again(0.2, 60)


def test_killed_in_the_middle_it_leaves_no_index_and_goes_on(tmp_path, capfd):
    """The whole command: two files; its workers are killed; then it is given again."""
    texts = [
        write_text(tmp_path / "one.txt", make_documents(3)),
        write_text(tmp_path / "two.txt.xz", make_documents(10_000)),
    ]
    arguments = [*map(str, texts), "--out", str(tmp_path / "out"), "--held-out", "0.1"]
    command = [sys.executable, "-m", "pretrain.prepare", *arguments, "--workers", "2"]
    running = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    scratch = tmp_path / "out" / "two" / "tokens.partial"
    deadline = time.monotonic() + 120
    while not (scratch.exists() and (tmp_path / "out/one/index.json").exists()):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert not (tmp_path / "out" / "two" / "index.json").exists()

    finished = tmp_path / "out" / "one" / "train-00000.bin"
    os.utime(finished, (1, 1))
    write_text(texts[1], make_documents(50))
    main([*arguments, "--workers", "1"])
    assert finished.stat().st_mtime == 1
    ids = [
        i for s in ("train", "held_out") for i in token_ids(tmp_path / "out" / "two", s)
    ]
    assert sorted(ids) == sorted(i for d in make_documents(50) for i in encode(d))
    said = capfd.readouterr()
    first, second, third = said.out.splitlines()
    assert third.startswith("two holds out 1 document that one has too")
    assert first.startswith("one: ") and second.startswith("two: ")
    train = len(token_ids(tmp_path / "out" / "two", "train"))
    assert f"two: {train:,} tokens to train on" in second and "50 documents" in second
    assert "tokenising: 100%" in said.err


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    arguments = [str(tmp_path / "none.txt"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    assert stop.value.code == f"error: there is no file {tmp_path / 'none.txt'}"
    with pytest.raises(SystemExit) as stop:
        prepare.main([str(tmp_path / "none.txt")])
    assert stop.value.code == 2 and "--out" in capsys.readouterr().err


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out


def test_a_worker_that_dies_is_reported(tmp_path, monkeypatch, capsys):
    path = write_text(tmp_path / "x.txt", ["text"])
    monkeypatch.setattr(prepare, "_work", die)
    with pytest.raises(SystemExit) as stop:
        prepare.main([str(path), "--out", str(tmp_path / "out")])
    assert "error: a process was killed" in stop.value.code
    assert not (tmp_path / "out" / "x" / "index.json").exists()


# From shards to windows


def test_windows_follow_each_other_and_stay_in_their_shard(source):
    shards = source(range(0, 13), range(20, 24), range(30, 39), [], [40])
    windows = [shards[i].tolist() for i in range(len(shards))]
    assert windows == [
        [0, 1, 2, 3, 4],  # the last token is the first of the next window
        [4, 5, 6, 7, 8],
        [8, 9, 10, 11, 12],
        [30, 31, 32, 33, 34],  # the second shard is too short for one
        [34, 35, 36, 37, 38],
    ]
    assert shards[0].dtype == np.int64 and shards.tokens == 13 + 4 + 9 + 1
    for i in (-1, 5):
        with pytest.raises(IndexError, match=f"source has 5 windows, so none is {i}"):
            shards[i]


def test_windows_can_begin_where_documents_do(source):
    END = 63
    first = [1, 2, END, 3, 4, 5, 6, 7, 8, 9, 10, END, 11, END, 12, 13, 14, 15]
    shards = source(first, [16, 17, 18, 19, 20], [21, 22, END], [], end=END)
    assert [shards[i].tolist() for i in range(len(shards))] == [
        [1, 2, END, 3, 4],
        [END, 3, 4, 5, 6],  # every second one shows that a document begins
        [7, 8, 9, 10, END],  # the same document goes on
        [END, 11, END, 12, 13],
        [16, 17, 18, 19, 20],  # another shard; after 12 too few were left
    ]


def test_windows_of_a_shard_beyond_two_billion_tokens(source, tmp_path):
    shards = source([1, 2, 3])
    tokens = 2**31 + 9  # a file with a hole, which takes no space
    path = shards.folder / "train-00000.bin"
    os.truncate(path, 2 * tokens)
    with path.open("r+b") as file:
        file.seek(2 * (tokens - 5))
        file.write(np.array([5, 6, 7, 8, 9], "<u2").tobytes())
    index = {"vocab_size": 64, "train": [{"file": path.name, "tokens": tokens}]}
    (shards.folder / "index.json").write_text(json.dumps(index))
    shards = TokenShards(shards.folder, "train", 4)
    last = np.int32(len(shards) - 1)
    assert shards[last].tolist() == [5, 6, 7, 8, 9]


def test_a_source_without_index_is_not_finished(tmp_path):
    (tmp_path / "news").mkdir()
    with pytest.raises(FileNotFoundError, match="news has no index.json, so it is not"):
        open_sources(tmp_path, "train", 4)
    with pytest.raises(FileNotFoundError, match="holds no sources; run .*prepare"):
        open_sources(tmp_path / "news", "train", 4)
    with pytest.raises(FileNotFoundError, match="holds no sources"):
        open_sources(tmp_path / "nowhere", "train", 4)


def test_a_damaged_index_is_named(source):
    path = source(range(9)).folder / "index.json"
    for damage in ("{", "[]", '{"train": []}'):
        path.write_text(damage)
        with pytest.raises(ValueError, match="index.json is damaged.*prepare it again"):
            TokenShards(path.parent, "train", 4)


def test_sources_come_in_alphabetical_order(tmp_path):
    for name in ("b", "c", "a"):
        prepare_source(write_text(tmp_path / f"{name}.txt", ["x " * 99]), tmp_path)
    assert list(open_sources(tmp_path, "train", 4)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("size", "message"),
    [(25, "has an odd number of bytes, 25, but"), (20, "has 20, but"), (28, "has 28")],
)
def test_a_shard_of_the_wrong_size_is_named(source, size, message):
    path = source(range(9), range(13)).folder / "train-00001.bin"
    os.truncate(path, size)
    with pytest.raises(ValueError, match=f"train-00001.bin {message}.*prepare it"):
        TokenShards(path.parent, "train", 4)


def test_a_missing_shard_is_named(source):
    path = source(range(9), range(13)).folder / "train-00001.bin"
    path.unlink()
    with pytest.raises(FileNotFoundError, match="train-00001.bin"):
        TokenShards(path.parent, "train", 4)


def test_ids_beyond_the_vocabulary_are_found_with_their_place(source):
    ids = np.arange(21) % 63
    ids[17] = 64
    shards = source(range(9), ids, vocab_size=64)
    assert len(shards) == 7 and shards[4].max() == 12
    message = "train-00001.bin: token 17 is 64, but the vocabulary ends at 63"
    with pytest.raises(ValueError, match=message):
        shards[6]
