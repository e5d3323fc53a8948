"""Pretraining with a tokenizer of one's own: learned, kept beside shards, obeyed."""

import json
import lzma
import os

import numpy as np
import pytest

from pretrain import prepare, tokenizer
from pretrain.prepare import (
    TOKENIZER,
    TokenShards,
    keep_tokenizer,
    open_tokenizer,
    prepare_source,
    tokenizer_name,
)
from shared.ch02 import END_OF_TEXT, BPETokenizer, get_tokenizer

TEXTS = [
    "A fox sat on the hill, and the fox was sad.",
    "The cat said: “Why is the fox on the hill?”\n\nNobody knew. 42!",
    "Then the fox and the cat ran down the hill, and they were glad.",
]


@pytest.fixture
def source(tmp_path):
    """A text file of three documents."""
    path = tmp_path / "texts" / "fox.txt"
    path.parent.mkdir()
    path.write_text("".join(f"{text}\n{END_OF_TEXT}\n" for text in TEXTS))
    return path


@pytest.fixture
def make_tokenizer(source, tmp_path):
    """A function that learns a tokenizer of some size and writes it to a file."""

    def make(name, vocab_size):
        arguments = ["--out", str(tmp_path / name), "--vocab_size", str(vocab_size)]
        tokenizer.main([str(source), *arguments])
        return tmp_path / name

    return make


def enlarge(text):
    """The file of a tokenizer with more tokens than two bytes can number."""
    content = json.loads(text)
    more = ({"content": f"<{i}>", "id": i} for i in range(33_000, 66_000))
    content["added_tokens"] += more
    return json.dumps(content)


def shard_ids(folder):
    """All tokens of a source, in training and held out, read by hand."""
    index = json.loads((folder / "index.json").read_text())
    files = [x["file"] for split in ("train", "held_out") for x in index[split]]
    return [i for file in files for i in np.fromfile(folder / file, "<u2").tolist()]


# Learning one


def test_it_is_chapter_2b_s_own(make_tokenizer):
    learned = BPETokenizer.load(make_tokenizer("t.json", 280))
    by_hand = BPETokenizer()
    by_hand.train(TEXTS, 280, {END_OF_TEXT})
    assert learned.vocab == by_hand.vocab and learned.n_vocab == 280
    assert learned.encode(TEXTS[1]) == by_hand.encode(TEXTS[1])
    assert learned.eot_token == 279


def test_it_learns_from_the_beginning_of_each_file(tmp_path, source):
    packed = tmp_path / "texts" / "owl.txt.xz"
    packed.write_bytes(lzma.compress(b"an owl\n<|endoftext|>\nhoohoohoohoo\n"))
    few = tokenizer.learn([packed, source], 262, characters=3)
    by_hand = BPETokenizer()
    by_hand.train(["an owl", TEXTS[0]], 262, {END_OF_TEXT})
    assert few.vocab == by_hand.vocab
    assert few.vocab != tokenizer.learn([packed, source], 262, characters=10**6).vocab


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--vocab_size", "256"], "error: vocab_size 256 is too small"),
        (["--vocab_size", "5000"], "error: the text runs out of pairs"),
        (["--characters", "0"], "error: characters must be 1 or more, not 0"),
        (["--out", "folder"], "error: folder must have a name that ends in .json"),
    ],
)
def test_what_cannot_be_learned_is_named_and_writes_nothing(
    source, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        tokenizer.main([str(source), "--out", "t.json", "--vocab_size", "270", *change])
    with pytest.raises(SystemExit, match="error: there is no file none.txt"):
        tokenizer.main([str(source), "none.txt", "--out", "t.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


# Preparing with it


def test_shards_hold_its_ids(source, make_tokenizer, tmp_path):
    path, out = make_tokenizer("t.json", 280), tmp_path / "out"
    arguments = ["--tokenizer", str(path), "--out", str(out), "--held-out", "0"]
    prepare.main([str(source), *arguments])
    learned = BPETokenizer.load(path)
    wanted = [i for text in TEXTS for i in [*learned.encode(text), 279]]
    assert shard_ids(out / "fox") == wanted
    index = json.loads((out / "fox/index.json").read_text())
    assert index["vocab_size"] == 280 and index["tokenizer"] == tokenizer_name(out)
    assert (out / TOKENIZER).read_bytes() == path.read_bytes()
    assert open_tokenizer(out).vocab == learned.vocab
    assert TokenShards(out / "fox", "train", 4)[0].tolist() == wanted[:5]


def test_without_one_the_tokens_are_gpt_2_s(source, tmp_path):
    index = prepare.prepare([source], tmp_path / "out", held_out=0)["fox"]
    assert (index["tokenizer"], index["vocab_size"]) == ("gpt2", 50257)
    oracle = get_tokenizer()
    wanted = [i for text in TEXTS for i in [*oracle.encode_ordinary(text), 50256]]
    assert shard_ids(tmp_path / "out/fox") == wanted
    assert open_tokenizer(tmp_path / "out") is get_tokenizer()


def test_a_folder_has_sources_of_one_tokenizer_only(source, make_tokenizer, tmp_path):
    first, second = make_tokenizer("a.json", 280), make_tokenizer("b.json", 270)
    owl = source.with_name("owl.txt")
    owl.write_text("An owl.")
    prepare.prepare([source], tmp_path / "gpt2")
    prepare.prepare([source], tmp_path / "own", tokenizer=first)
    for out, other, message in (
        ("gpt2", first, "fox was made with another tokenizer"),
        ("own", second, "fox was made with another tokenizer"),
        (
            "own",
            None,
            "own has a tokenizer of its own; add --tokenizer .*own.tokenizer",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            prepare.prepare([owl], tmp_path / out, tokenizer=other)
        assert not (tmp_path / out / "owl").exists()
    assert not (tmp_path / "gpt2" / TOKENIZER).exists()
    kept = tmp_path / "own" / TOKENIZER
    assert kept.read_bytes() == first.read_bytes()
    prepare.prepare([owl], tmp_path / "own", tokenizer=kept)  # its own copy will do
    assert kept.read_bytes() == first.read_bytes()
    assert (tmp_path / "own/owl/index.json").is_file()
    kept.unlink()  # the sources remember
    with pytest.raises(ValueError, match="fox was made with another tokenizer"):
        prepare.prepare([owl], tmp_path / "own")
    prepare.prepare([owl], tmp_path / "own", tokenizer=first)
    assert kept.read_bytes() == first.read_bytes()


def test_only_what_is_missing_is_made_again(source, make_tokenizer, tmp_path):
    path, out = make_tokenizer("t.json", 280), tmp_path / "out"
    prepare.prepare([source], out, tokenizer=path)
    shard = out / "fox/train-00000.bin"
    whole = shard.read_bytes()
    os.utime(shard, (1, 1))
    prepare.prepare([source], out, tokenizer=path)
    assert shard.stat().st_mtime == 1
    (out / "fox/index.json").write_text("{")  # a damaged index says nothing
    prepare.prepare([source], out, tokenizer=path)
    assert shard.stat().st_mtime > 1 and shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "t.json"),
        (lambda text: "[]", "t.json: expected an object"),
        (lambda text: "", "t.json"),
        (
            lambda text: text.replace("ByteLevel", "Bert"),
            "pre_tokenizer is not GPT-2's",
        ),
        (lambda text: text.replace(END_OF_TEXT, "<|end|>"), "280 tokens; it must have"),
        (enlarge, "66,000 tokens; .* at most 65,536"),
        (None, "t.json"),
    ],
    ids=["half", "list", "empty", "kind", "no end of text", "too large", "missing"],
)
def test_a_damaged_tokenizer_is_named_before_any_work(
    source, make_tokenizer, tmp_path, damage, message
):
    path = make_tokenizer("t.json", 280)
    if damage is None:
        path.unlink()
    else:
        text = path.read_text(encoding="utf-8")
        assert damage(text) != text
        path.write_text(damage(text), encoding="utf-8")
    arguments = ["--tokenizer", str(path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        prepare.main([str(source), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_damaged_copy_is_named_too(source, make_tokenizer, tmp_path):
    keep_tokenizer(make_tokenizer("t.json", 280), tmp_path / "out")
    (tmp_path / "out" / TOKENIZER).write_text("{}")
    with pytest.raises(ValueError, match=TOKENIZER):
        prepare_source(source, tmp_path / "out")


def test_all_of_a_text_can_be_held_out(source, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.main([str(source), "--out", str(out), "--held-out", "1"])
    assert "fox: 0 tokens to train on" in capsys.readouterr().out
    index = json.loads((out / "fox/index.json").read_text())
    assert index["train"] == [] and index["held_out_documents"] == 3
    assert len(TokenShards(out / "fox", "train", 4)) == 0
    oracle = get_tokenizer()
    wanted = [i for text in TEXTS for i in [*oracle.encode_ordinary(text), 50256]]
    assert shard_ids(out / "fox") == wanted
