"""A folder of texts becomes a model, a report, and clear words if it cannot."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from pretrain import own
from pretrain.prepare import TOKENIZER
from pretrain.run import Pretraining
from pretrain.settings import Settings
from shared.ch02 import BPETokenizer
from shared.ch05 import build_pretrained, generate, read_gpt2_folder
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
