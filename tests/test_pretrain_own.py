"""A folder of texts becomes a model, a report, and clear words if it cannot."""

import json
import os
import random
import re
import shutil
import sys
import unicodedata
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from pretrain import own
from pretrain.prepare import TOKENIZER, open_sources
from pretrain.run import Pretraining
from pretrain.settings import Settings
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import (
    build_pretrained,
    generate,
    read_gpt2_folder,
    save_gpt2_folder,
)
from shared.data import get as data_path


@pytest.fixture(scope="module")
def tales(tmp_path_factory):
    """A folder with the course's own little stories, in two files, one deeper."""
    folder = tmp_path_factory.mktemp("own") / "tales"
    (folder / "more").mkdir(parents=True)
    texts = [t["text"] for t in json.loads(data_path("tales").read_text("utf-8"))]
    ends = "\n<|endoftext|>\n"
    (folder / "one.txt").write_text(ends.join(texts[:150]), encoding="utf-8")
    (folder / "more/two.txt").write_text(ends.join(texts[150:]), encoding="utf-8")
    (folder / "empty.txt").write_text("", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    return folder


@pytest.fixture(autouse=True)
def short_trial(monkeypatch):
    monkeypatch.setattr(own, "TRIAL", 0.1)


def command(folder, out, *more) -> None:
    own.main([str(folder), "--out", str(out), "--minutes", "0.01", *more])


def test_a_folder_becomes_a_model_and_a_report(tales, tmp_path, monkeypatch, capsys):
    out = tmp_path / "mine"
    with monkeypatch.context() as patch:  # stopped before its first step
        patch.setattr(own, "pretrain", lambda settings: False)
        command(tales, out)
    assert not (out / "report.md").exists()
    begun = (out / "settings.json").read_text(encoding="utf-8")
    drawn, savefig = [], Figure.savefig
    with monkeypatch.context() as patch:
        patch.setattr(
            Figure, "savefig", lambda *a, **k: (drawn.append(a[0]), savefig(*a, **k))
        )
        command(tales, out)
    assert (out / "settings.json").read_text(encoding="utf-8") == begun
    printed = capsys.readouterr().out
    assert printed.count("260 documents") == 2
    estimates = re.findall(r"pace of the steps tried, that takes ([\d.]+) min", printed)
    assert len(estimates) == 2 and max(map(float, estimates)) < 2
    assert printed.count("it will not read them all; give it more --minutes") == 2
    tokenizer = BPETokenizer.load(out / "model" / TOKENIZER)
    model = build_pretrained(*read_gpt2_folder(out / "model"))
    assert tokenizer.n_vocab == model.cfg["vocab_size"] == 384

    ids = generate(model, torch.tensor([tokenizer.encode("The")]), 3, 256)
    assert ids.shape == (1, 4) or ids.shape[1] > 4
    report = (out / "report.md").read_text(encoding="utf-8")
    for words in ("# A model of tales", "| texts |", "losses.png", "20 steps"):
        assert words in report
    first = json.loads(begun)["prompts"][0]
    assert report.count(first) > 2  # continued after 0, 1, 2, 4, ... steps
    assert (out / "losses.png").stat().st_size > 1000
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "<title>A model of tales</title>" in page and f"open {out}" in printed
    lines = [line for figure in drawn for axes in figure.axes for line in axes.lines]
    labels = [line.get_label() for line in lines]
    assert labels == ["training", "texts", "all held-out text, at the end"]
    assert [len(line.get_xdata()) for line in lines[1:]] == [1, 1]  # 10 steps, 20 steps
    losses = [
        json.loads(x) for x in (out / "log.jsonl").read_text("utf-8").split("\n")[:-1]
    ]
    losses = [line["loss"] for line in losses if line["event"] == "train"]
    assert losses[-1] < losses[0] - 0.3

    command(tales, out)  # nothing is left to do
    printed = capsys.readouterr().out
    assert "in 20 steps" in printed and "read " in printed
    assert "trying" not in printed and "pace" not in printed


def test_pace_is_that_of_the_steps_of_this_run(tales, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "pretrain", lambda settings: False)
    out = tmp_path / "mine"
    command(tales, out)
    settings = own.read_settings(["--config", str(out / "settings.json")])
    step, second = Pretraining.train_step, 0.0

    def slow(run):
        nonlocal second
        second += 60 if run.step < own.WARM_UP else 1
        return step(run)

    monkeypatch.setattr(Pretraining, "train_step", slow)
    monkeypatch.setattr(own, "time", SimpleNamespace(perf_counter=lambda: second))
    monkeypatch.setattr(own, "TRIAL", 5)
    before = sorted(p.name for p in out.rglob("*"))
    pace = own.measure(settings)
    assert pace.step == 1  # the slow first steps do not count
    assert sorted(p.name for p in out.rglob("*")) == before
    pace = own.Pace(step=2, look=10, last_look=30, writing=5)
    assert settings.max_steps == 20 and settings.eval_every == 10
    # 20 steps, looks after 10 and 20, one more at the end, 7 samples: 0 1 2 4 8 16 20
    assert pace.seconds(settings) == 40 + 20 + 30 + 35
    assert pace.seconds(settings, begin=10) == 20 + 10 + 30 + 10


@pytest.mark.parametrize(("minutes", "steps"), [(0.1, 20), (60, 1700), (600, 2000)])
def test_a_run_is_as_long_as_asked_unless_more_teaches_nothing(minutes, steps):
    def settings_of(steps):
        return Settings("shards", "run", steps, eval_every=max(10, steps // 20))

    pace = own.Pace(step=2, look=5, last_look=20, writing=5)
    settings = own.fit(60 * minutes, pace, 2000, settings_of)
    assert settings.max_steps == pytest.approx(steps, rel=0.02)
    if steps == 1700:
        assert pace.seconds(settings) == pytest.approx(3600, rel=0.01)


def test_it_can_begin_with_the_base(tales, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "pretrain", lambda settings: False)
    out = tmp_path / "mine"
    command(tales, out, "--start", "base")
    settings = own.read_settings(["--config", str(out / "settings.json")])
    config, _ = read_gpt2_folder(settings.initial)
    assert settings.model.vocab_size == config["vocab_size"] == 8192
    assert (out / TOKENIZER).read_bytes() == data_path(
        "base/tokenizer.json"
    ).read_bytes()


def test_other_wishes_and_other_texts_need_another_folder(tales, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "pretrain", lambda settings: False)
    texts, out = tmp_path / "texts", tmp_path / "mine"
    texts.mkdir()
    (texts / "a.txt").write_text((tales / "one.txt").read_text("utf-8"), "utf-8")
    command(texts, out)
    with pytest.raises(SystemExit, match="began with .* choose another --out"):
        command(texts, out, "--tokens", "gpt2")
    (texts / "b.txt").write_text("More.", encoding="utf-8")
    with pytest.raises(SystemExit, match="has changed since"):
        command(texts, out)


# What a folder of texts may contain


def words(seed, letters):
    """A document of made-up words, unlike those of other seeds."""
    draw = random.Random(seed)
    text = ""
    while len(text) < letters:
        text += "".join(draw.choices("aeioustrlnm", k=draw.randint(2, 8))) + " "
    return text[:letters].strip()


@pytest.fixture
def gathered(tmp_path):
    """A function that writes files into a folder; what is gathered from them."""

    def run(files, out="mine"):
        folder, out = tmp_path / "texts", tmp_path / out
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
        found = own.gather(folder, out)
        whole = (out / "texts.txt").read_text(encoding="utf-8")
        documents = whole.split("\n<|endoftext|>\n")
        assert documents.pop() == ""
        return documents, found[1]

    return run


def test_hidden_files_and_those_of_other_systems_are_no_texts(gathered):
    text = words(1, 21_000)
    hidden = [".git/a.txt", ".b.txt", "c/.ipynb_checkpoints/d.txt", "__MACOSX/._e.txt"]
    documents, _ = gathered({**dict.fromkeys(hidden, "hidden"), "LOUD.TXT": text})
    assert documents == [text]


def test_what_a_run_wrote_into_the_folder_is_no_text(gathered, tmp_path):
    text = words(1, 21_000)
    first, _ = gathered({"a.txt": text}, "texts/runs/1")
    (tmp_path / "texts/runs/1/shards").mkdir()
    (tmp_path / "texts/runs/1/asked.json").write_text("{}")
    assert gathered({}, "texts/runs/1")[0] == gathered({}, "texts/2")[0] == [text]
    with pytest.raises(ValueError, match="--out is the folder of the texts"):
        gathered({}, "texts")
    documents, _ = gathered(
        {"b.txt": words(2, 99)}, "."
    )  # texts in the folder of a run
    assert sorted(documents) == sorted([text, words(2, 99)])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: x.replace("\n", "\r\n"),
        lambda x: "\ufeff" + x.replace(" ", "  "),
        lambda x: unicodedata.normalize("NFD", x),
    ],
)
def test_copies_of_a_document_are_taken_once(gathered, change, capsys):
    texts = [f"Café {i}\n{words(i, 400)}" for i in range(60)]
    mark = "\n<|endoftext|>\n"
    both = {"a.txt": mark.join(texts), "b/copy.txt": change(mark.join(texts[:40]))}
    documents, _ = gathered(both)
    assert documents == texts
    assert "copies of other documents, left out: 40\n" in capsys.readouterr().out


def test_copies_do_not_make_a_text_long_enough(gathered):
    with pytest.raises(ValueError, match="300 characters of text, besides 99 copies"):
        gathered({f"{i}.txt": words(1, 300) for i in range(100)})


def test_a_byte_order_mark_is_no_letter(gathered):
    text = words(1, 21_000)
    documents, beginnings = gathered({"a.txt": "\ufeff" + text})
    assert documents == [text] and beginnings == [" ".join(text.split()[:5])]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_are_line_ends(gathered, end):
    lines = [words(i, 300) for i in range(80)]
    for _ in range(2):  # the same command again has the same texts
        assert gathered({"a.txt": end.join(lines)})[0] == ["\n".join(lines)]


@pytest.mark.parametrize(
    "joined", ["{}<|endoftext|>{}", "{} <|endoftext|> {}", "{} <|endoftext|>\n{}"]
)
def test_the_mark_between_documents_may_stand_in_a_line(gathered, joined):
    texts = [words(i, 7_100) for i in range(3)]
    documents, _ = gathered(
        {"a.txt": joined.format(joined.format(*texts[:2]), texts[2])}
    )
    assert documents == texts


@pytest.mark.parametrize("letters", ["字", "ab", "a\u0301"])
def test_beginnings_are_short_where_words_have_no_spaces(gathered, letters):
    files = {f"{i}.txt": f"{i}" + letters * 20_000 for i in range(2)}
    _, beginnings = gathered(files)
    assert [x[0] for x in beginnings] == ["0", "1"]
    assert all(len(x) <= own.LETTERS for x in beginnings)


def test_beginnings_differ_where_they_can(gathered):
    files = {f"{i}.txt": "Once upon a time there " + words(i, 900) for i in range(30)}
    assert gathered(files)[1] == ["Once upon a time there"]
    files = {"z.txt": "Long ago in a town " + words(99, 900)}
    assert gathered(files, "2")[1] == ["Once upon a time there", "Long ago in a town"]


@pytest.mark.parametrize("options", [(), ("--start", "base"), ("--tokens", "gpt2")])
@pytest.mark.parametrize("documents", [1, 57])
def test_of_little_text_enough_is_held_out(tmp_path, monkeypatch, options, documents):
    monkeypatch.setattr(own, "pretrain", lambda settings: False)
    monkeypatch.setattr(own, "measure", lambda settings: own.Pace(1, 1, 1, 1))
    texts, out = tmp_path / "texts", tmp_path / "mine"
    texts.mkdir()
    size = 20_200 // documents
    found = [f"{i} {words(i, size)}" for i in range(documents)]
    (texts / "a.txt").write_text("\n<|endoftext|>\n".join(found), encoding="utf-8")
    command(texts, out, *options)
    context = 512 if "base" in options else 256
    for split in ("train", "held_out"):
        [source] = open_sources(out / "shards", split, context).values()
        assert len(source) >= 1
    held_out = own.tokens_of(out / "shards", "held_out")
    assert held_out < 0.2 * own.tokens_of(out / "shards")


def test_a_text_of_too_few_tokens_is_refused_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "measure", None)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a" * 30_000)
    with pytest.raises(
        SystemExit, match="since they repeat themselves .* --tokens gpt2"
    ):
        command(tmp_path / "texts", tmp_path / "1")
    monkeypatch.setattr(own, "context_of", lambda start: 30_000)
    message = "too few tokens: a model reads 30000 at once, and as many are held out"
    with pytest.raises(SystemExit, match=message):
        command(tmp_path / "texts", tmp_path / "2", "--tokens", "gpt2")


def test_what_the_tokenizer_cannot_take_is_named(tmp_path):  # Rust panics
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x" + " " * 1_000_100 + "y")
    message = "texts.txt cannot be tokenised: .* 'x y' the character ' ' stands 1,000"
    with pytest.raises(SystemExit, match=message):
        command(tmp_path / "texts", tmp_path / "mine", "--tokens", "gpt2")


def finished(out):
    """A run's folder as it is when training has ended, without the training."""
    out.mkdir(parents=True)
    tokenizer = BPETokenizer()
    tokenizer.train("a fox and a box and a fox", 260)
    cfg = {"vocab_size": 260, "context_length": 16, "emb_dim": 8, "n_heads": 2}
    cfg |= {"n_layers": 1, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
    save_gpt2_folder(GPTModel(cfg), out / "model")
    tokenizer.save(out / "model" / TOKENIZER)
    log = [
        {
            **{"event": "start", "step": 0, "parameters": 1, "device": "cpu"},
            **{"threads": 2, "precision": "fp32", "torch": "2"},
            "settings": {"prompts": ["A fox"]},
        },
        {"event": "train", "step": 10, "tokens": 320, "loss": 10.0},
        {
            **{"event": "eval", "step": 20, "tokens": 640, "loss": 7.5},
            **{"losses": {"texts": 7.5}, "sequences": None},
        },
        {"event": "end", "step": 20, "tokens": 640, "seconds": 45.0},
    ]
    lines = "".join(json.dumps(line) + "\n" for line in log)
    (out / "log.jsonl").write_text(lines, encoding="utf-8")
    return log


def test_a_report_is_about_the_reader_s_text(tmp_path):
    out = tmp_path / "run"
    finished(out)
    text = own.report(out, "my\ntales").read_text("utf-8")
    assert text.startswith("# A model of my tales\n")
    assert "| texts | 7.500 |" in text
    assert "mixture" not in text and "of no source" not in text
    assert "| training time | 45 seconds |" in text
    assert "260 tokens, its own" in text
    text = own.report(out, "tales", "base").read_text("utf-8")
    assert "260 tokens, the base's (`tokenizer.json`)" in text


def test_a_report_is_written_also_where_nothing_was_held_out(tmp_path):
    out = tmp_path / "run"
    log = finished(out)
    lines = "".join(json.dumps(x) + "\n" for x in log if x["event"] != "eval")
    (out / "log.jsonl").write_text(lines, encoding="utf-8")
    text = own.report(out, "tales").read_text("utf-8")
    assert "No text as long as a training sequence was held out, so no losses." in text
    assert (out / "losses.png").stat().st_size > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_names_that_are_no_utf8_do_not_spoil_a_report(tmp_path, monkeypatch, capsys):
    odd = os.fsdecode(b"M\xe4rchen")
    texts = tmp_path / odd / "texts"
    texts.mkdir(parents=True)
    (texts / os.fsdecode(b"\xfc.txt")).write_text(words(1, 21_000))
    monkeypatch.setattr(own, "measure", lambda settings: own.Pace(1, 1, 1, 1))

    def pretrain(settings):
        finished(tmp_path / "run")
        shutil.copytree(tmp_path / "run", settings.run_folder, dirs_exist_ok=True)
        return True

    monkeypatch.setattr(own, "pretrain", pretrain)
    with pytest.raises(SystemExit, match="a folder whose name is not UTF-8"):
        command(texts.parent, tmp_path / "mine" / odd)
    command(texts.parent, tmp_path / "mine")
    report = (tmp_path / "mine/report.md").read_text("utf-8")
    assert report.startswith("# A model of M\ufffdrchen\n")
    assert "read " in capsys.readouterr().out


def test_what_is_no_text_gets_a_clear_word(tales, tmp_path, monkeypatch):
    texts, out = tmp_path / "texts", tmp_path / "mine"
    with pytest.raises(SystemExit, match="there is no folder"):
        command(texts, out)
    texts.mkdir()
    with pytest.raises(SystemExit, match="holds no text; put files into it"):
        command(texts, out)
    (texts / "short.txt").write_text("A fox ran. " * 27, encoding="utf-8")
    with pytest.raises(SystemExit, match="holds 297 characters .* at least 20,000"):
        command(texts, out)
    (texts / "music.txt").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(SystemExit, match="music.txt cannot .* save it as UTF-8"):
        command(texts, out)
    (texts / "music.txt").write_bytes(b"\0\1\2 sound" * 5000)
    with pytest.raises(SystemExit, match="music.txt is no text but binary data"):
        command(texts, out)
    with (texts / "music.txt").open("wb") as file:
        file.truncate(2 * 10**9)  # takes no room on the disk
    with pytest.raises(SystemExit, match="2.0 GB of text, most of it music.txt"):
        command(texts, out)
    with pytest.raises(SystemExit, match="--minutes must be above 0, not -1"):
        command(tales, out, "--minutes", "-1")
    assert not out.exists() or not any(out.iterdir())
