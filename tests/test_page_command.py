"""The command that writes pages, of every model that the course can find."""

import json
import re
import shutil

import pytest
from models import TINY, random_gpt
from test_page import SHOWN

from shared.ch05 import load_storyteller, save_checkpoint, save_gpt2_folder
from shared.ch06 import GPTClassifier
from shared.data import get as data_path
from tools import page as tool


def tiny(**changes):
    return random_gpt({**TINY, "vocab_size": 1000, "context_length": 64, **changes})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def say(capsys, *arguments):
    tool.main([*map(str, arguments)])
    return capsys.readouterr().out


def refusal(*arguments):
    with pytest.raises(SystemExit) as error:
        tool.main([*map(str, arguments)])
    return str(error.value)


def info_of(path):
    page = path.read_text(encoding="utf-8")
    return page, json.loads(dict(SHOWN.findall(page))["info"])


def test_the_command_writes_the_storyteller(tmp_path, cache, capsys):
    out = tmp_path / "mein Ordner/für dich.html"
    said = say(capsys, "storyteller", "--out", out, "--title", "Zoë")
    assert re.search(r"für dich.html: \d\.\d MB", said)
    page, info = info_of(out)
    assert "<title>Zoë</title>" in page and info["kind"] == "tell"
    about = re.search('id="about">(.*?)</p>', page)[1]
    assert "CC0" in about and "MIT" not in about
    assert "already; add --overwrite" in refusal("storyteller", "--out", out)
    say(capsys, "storyteller", "--out", out, "--overwrite")


def test_the_base_has_its_licence(tmp_path, cache, capsys):
    say(capsys, "base", "--out", tmp_path / "base.html")
    assert "CC BY-SA 4.0" in (tmp_path / "base.html").read_text(encoding="utf-8")


def test_models_of_the_chapters_in_files(tmp_path, cache, capsys):
    tokenizer = load_storyteller()[1]
    asked = tiny()
    asked.cfg = {**asked.cfg, "prompt_style": "plain"}
    models = {
        "tell": tiny(),
        "ask": asked,
        "judge": GPTClassifier(tiny(), 2, tokenizer.eot_token),
    }
    for kind, model in models.items():
        save_checkpoint(tmp_path / f"{kind}.safetensors", model)
        out = tmp_path / f"{kind}.html"
        say(capsys, tmp_path / f"{kind}.safetensors", "--out", out)
        info = info_of(out)[1]
        assert info["kind"] == kind
        assert info["labels"] == (["ham", "spam"] if kind == "judge" else None)
    names = ["--labels", "not spam, spam", "--overwrite"]
    say(capsys, tmp_path / "judge.safetensors", "--out", out, *names)
    assert info_of(out)[1]["labels"] == ["not spam", "spam"]
    assert "CC BY-SA" not in info_of(out)[0]
    save_checkpoint(tmp_path / "big.safetensors", tiny(vocab_size=8192))
    say(capsys, tmp_path / "big.safetensors", "--out", tmp_path / "big.html")
    assert "base model of the course" in info_of(tmp_path / "big.html")[0]
    three = ["--labels", "a,b,c", "--overwrite"]
    said = refusal(tmp_path / "judge.safetensors", "--out", out, *three)
    assert "has 2 classes" in said


def test_folders_with_a_tokenizer_of_their_own(tmp_path, cache, capsys):
    folder = tmp_path / "runs/model"
    save_gpt2_folder(tiny(qkv_bias=True), folder)
    shutil.copy(data_path("storyteller/tokenizer.json"), folder)
    for place in (folder, folder.parent):  # the second is what pretrain.own writes
        out = tmp_path / f"{place.name}.html"
        say(capsys, place, "--out", out)
        assert info_of(out)[1]["cfg"]["emb_dim"] == 24


def test_what_the_command_refuses(tmp_path, cache):
    save_gpt2_folder(tiny(vocab_size=777, qkv_bias=True), tmp_path / "odd")
    out = tmp_path / "x.html"
    assert "neither base nor storyteller" in refusal("nothing", "--out", out)
    assert "name the file" in refusal("base")
    assert "777 tokens, and no tokenizer" in refusal(tmp_path / "odd", "--out", out)
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    assert "broken" in refusal(tmp_path / "broken.safetensors", "--out", out)
    assert "name it x.txt.html" in refusal("storyteller", "--out", tmp_path / "x.txt")
    assert not out.exists()


def test_all_writes_the_stored_models_and_those_in_the_cache(
    cache, capsys, monkeypatch
):
    opened = []
    monkeypatch.setattr(tool.webbrowser, "open", lambda url: not opened.append(url))
    save_checkpoint(cache / "tries/small.safetensors", tiny())
    (cache / "broken.safetensors").write_bytes(b"nonsense")
    monkeypatch.setattr(tool, "load_base", lambda: tiny(vocab_size=8192))
    tool.main(["all", "--open"])
    said = capsys.readouterr()
    assert "no page of" in said.err and "broken" in said.err
    names = {path.name for path in (cache / "pages").iterdir()}
    wanted = {
        "index.html",
        "base.html",
        "storyteller.html",
        "tries_small.html",
    }
    assert names == wanted
    index = (cache / "pages/index.html").read_text(encoding="utf-8")
    assert all(name in index for name in wanted - {"index.html"})
    assert opened == [(cache / "pages/index.html").resolve().as_uri()]
    assert "my_storyteller" not in index
    shutil.copytree(data_path("storyteller/config.json").parent, cache / "storyteller")
    tool.main(["all"])
    assert (cache / "pages/my_storyteller.html").exists()
