"""What the measures of a base say of models that know everything, or nothing."""

import json
import lzma
import math

import pytest
import torch

from pretrain import arms, base, measures
from pretrain.measures import (
    FIRST_TALE,
    held_out_texts,
    main,
    measure,
    nats_a_character,
)
from pretrain.prepare import (
    TOKENIZER,
    keep_tokenizer,
    open_tokenizer,
    prepare_source,
)
from pretrain.village import write_village
from shared.ch02 import END_OF_TEXT, BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import save_gpt2_folder
from shared.files import copy_file
from shared.ladder import KINDS, exam

V = 1500
CONFIG = {
    **{"context_length": 512, "emb_dim": 8, "n_heads": 2, "n_layers": 1},
    **{"drop_rate": 0.0, "qkv_bias": False, "tie_weights": True},
}


def prepare_here(paths, out, share, tokenizer, without=None):
    """What `prepare` does, without processes that take seconds to start."""
    keep_tokenizer(tokenizer, out)
    for path in paths:
        prepare_source(path, out, share, without=without)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Tales of the village, some held out, in V tokens learned from them."""
    folder = tmp_path_factory.mktemp("village")
    train, held_out = write_village(folder, 150)
    tokenizer = BPETokenizer()
    tokenizer.train(train.read_text("utf-8"), V, allowed_special={END_OF_TEXT})
    tokenizer.save(folder / TOKENIZER)
    for path, share in ((train, 0), (held_out, 1)):
        (folder / "shards").mkdir(exist_ok=True)
        prepare_here([path], folder / "shards", share, folder / TOKENIZER)
    return folder / "shards"


@pytest.fixture
def model():
    torch.manual_seed(1)
    return GPTModel({**CONFIG, "vocab_size": V}).eval()


@torch.no_grad()
def test_a_model_without_knowledge_needs_as_many_nats_as_its_tokens_have(shards, model):
    tokenizer = open_tokenizer(shards)
    for parameter in model.parameters():
        parameter.zero_()  # all tokens are equally likely
    text = "Once upon a time there was a fox. " * 100  # more than one context
    ids = len(tokenizer.encode_ordinary(text))
    pieces = math.ceil(ids / 512)
    expected = (ids - pieces) * math.log(V) / len(text)
    assert nats_a_character(model, tokenizer, [text]) == pytest.approx(expected, 1e-5)
    found = measure(model, tokenizer, {"here": [text]}, tales=2)
    assert found["nats a character"]["here"] == pytest.approx(expected, abs=5e-4)
    assert found["random tokens twice"] == {"first": 7.313, "second": 7.313}  # ln 1500
    assert found["village, new-names"].keys() == {"nats", *KINDS}


def test_held_out_texts_are_beginnings_of_documents_that_nobody_trains_on(shards):
    texts = held_out_texts(shards, open_tokenizer(shards))
    assert texts.keys() == {"held-out-village"}
    told = (shards.parent / "held-out-village.txt").read_text("utf-8")
    whole = told.split(f"\n{END_OF_TEXT}\n")
    for text in texts["held-out-village"]:
        assert any(x.startswith(text) for x in whole) and len(text) <= 800
    assert len(texts["held-out-village"]) == measures.TEXTS


def test_tales_fit_into_the_context():
    assert all(len(tale.text) <= 1600 for tale in exam(50, FIRST_TALE, part="train"))
    assert len(exam(50, FIRST_TALE, part="new-names")) == 50


def test_the_command_measures_each_model(shards, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measures, "TALES", 1)
    monkeypatch.setattr(measures, "TOLD", 2)
    save_gpt2_folder(model, tmp_path)
    copy_file(shards / TOKENIZER, tmp_path / TOKENIZER)
    main([str(tmp_path), "--shards", str(shards)])
    name, _, found = capsys.readouterr().out.partition(" ")
    assert name == str(tmp_path)
    assert json.loads(found)["tales without a contradiction"]["of"] == 2
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        main([str(tmp_path), "--shards", str(tmp_path / "nowhere")])


# The run and its arms


def test_the_settings_of_the_base_and_of_its_arms_fit_together(tmp_path):
    settings = base.settings_for(tmp_path, ["--seed", "5"])
    assert settings.shards == tmp_path / f"shards-{settings.model.vocab_size}"
    assert settings.run_folder == tmp_path / "run" and settings.seed == 5
    for arm in arms.ARMS:
        found = arms.settings_of(arm, 2, tmp_path / "shards", 50)
        assert found.max_steps == 50 and found.decay_steps == 20 and found.seed == 2
        assert found.shards == tmp_path / f"shards-{found.model.vocab_size}"


def test_one_command_makes_a_base_and_goes_on(tmp_path, monkeypatch, capsys):
    """Tiny texts, a tiny model: all that is written, and nothing of it twice."""
    corpus, stories = tmp_path / "corpus", tmp_path / "stories.txt"
    corpus.mkdir()
    repeats = base.settings_for(tmp_path, []).repeats
    own = ("village", "tasks", "stories-")
    for name in (name for name in repeats if not name.startswith(own)):
        with lzma.open(corpus / f"{name}.txt.xz", "wt") as file:
            file.write(f"A: This is {name}.\nB: I see.\n{END_OF_TEXT}\n" * 3)
    told = [f"Once there was a fox number {i} named Tom. It ran." for i in range(300)]
    stories.write_text("".join(f"{text}\n{END_OF_TEXT}\n" for text in told))
    here = {"TALES": 20, "TASKS": 50, "prepare": prepare_here}
    for name, value in here.items():
        monkeypatch.setattr(base, name, value)
    small = {
        **{"model.vocab_size": 300, "model.context_length": 64, "model.emb_dim": 8},
        **{"model.n_heads": 2, "model.n_layers": 1, "max_steps": 6},
        **{"warmup_steps": 1, "decay_steps": 2, "batch_size": 2, "repeats": "{}"},
        **{"micro_batch_size": 2, "prompts": "[]", "device": "cpu"},
    }
    others = [word for name, x in small.items() for word in (f"--{name}", str(x))]
    command = [str(stories), str(corpus), "--out", str(tmp_path / "out"), *others]
    base.main([*command, "--only-shards"])
    assert not (tmp_path / "out" / "run").exists()
    paths = sorted(tmp_path.glob("out/**/*.*"))
    times = [path.stat().st_mtime_ns for path in paths if path.name != TOKENIZER]
    base.main(command)
    assert (tmp_path / "out" / "run" / "model" / "model.safetensors").is_file()
    after = [path.stat().st_mtime_ns for path in paths if path.name != TOKENIZER]
    assert times == after
    base.main(command)  # nothing is left to do
    with pytest.raises(SystemExit, match="error: .*nothing.txt"):
        base.main([str(tmp_path / "nothing.txt"), *command[1:3], str(tmp_path / "new")])
