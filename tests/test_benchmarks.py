"""The comparisons: contestants do the same work, and tables say what was measured."""

import json

import pandas as pd
import pytest
import torch
from models import TINY
from torch.utils.flop_counter import FlopCounterMode

import benchmarks
from benchmarks import __main__ as program
from benchmarks import finetuning, generation, limits, training
from shared.ch04 import GPTModel
from shared.ch06 import load_sms
from shared.ch07 import load_instructions

CPU = torch.device("cpu")
CFG = {**TINY, "emb_dim": 32, "n_heads": 4, "qkv_bias": True, "context_length": 32}


def installed(*names):
    return tuple(name for name in names if benchmarks.find_peer(name))


def test_contestants_take_turns_and_the_first_round_does_not_count():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = benchmarks.take_turns(contestants, 3, CPU)
    assert calls == ["a", "b"] * 4
    assert seconds.shape == (3, 2) and (seconds >= 0).all(axis=None)


def test_ratios_are_medians_of_pairs():
    """A disturbed round makes both of a pair slow, and changes no ratio."""
    seconds = pd.DataFrame({"ours": [1.0, 10.0, 2.0], "transformers": [2.0, 20.0, 4.0]})
    table = benchmarks.summary(seconds, 100, {"": 100.0, "transformers": 50.0})
    assert list(table["x transformers"]) == [2, 1]
    assert list(table["tokens/s"]) == [50, 25]
    assert list(table["from"]) == [10, 5] and list(table["to"]) == [100, 50]
    assert list(table["of limit"]) == [0.5, 0.5]


def test_limits_are_measured():
    found = limits.measure_limits(CPU, quick=True)
    assert {"float32", "bytes"} <= set(found) <= {"float32", "bfloat16", "bytes"}
    assert min(found.values()) > 0


def test_the_matrix_products_of_a_step_are_counted():
    cfg = {**CFG, "n_layers": 2, "vocab_size": 100}
    step = training.steps(cfg, 2, 16, CPU, torch.float32, ())["ours, chapter 5"]
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    products = torch.ops.aten.mm, torch.ops.aten.addmm
    counted = sum(counts.get(name, 0) for name in products)
    assert counted == 2 * 16 * training.token_operations(cfg)


def test_the_matrix_products_of_writing_are_counted():
    cfg, texts, new = {**CFG, "n_layers": 2, "vocab_size": 100}, 3, 5
    runs = generation.generation_runs(cfg, texts, new, CPU, torch.float32, ())
    with FlopCounterMode(display=False) as counter:
        runs["ours, chapter 5"]()
    counts = counter.get_flop_counts()["Global"]
    products = torch.ops.aten.mm, torch.ops.aten.addmm
    counted = sum(counts.get(name, 0) for name in products)
    work = generation.passes_work(cfg, texts, new, 4)
    assert counted == work["GFLOP/s"]
    assert work["GB/s"] == 4 * new * (12 * 2 * 32**2 + 100 * 32)


def test_shares_of_the_time_add_up():
    W = torch.randn(300, 300)
    table = benchmarks.where_time_goes(lambda: (W @ W).exp(), things=2e9)
    share = table["of the time"]
    assert abs(share.sum() - 1) < 0.02 and 0 < share["matrix products"] < 1
    assert share["attention"] == share["optimizer"] == 0
    assert table["things"].notna().sum() == 1
    assert table.loc["matrix products", "things"] > 2  # in less than a second


def test_generation_limit_is_the_lower_of_two():
    cfg, P = {**CFG, "emb_dim": 10, "n_layers": 1, "vocab_size": 100}, 2200
    most = {"float32": 2 * P * 50.0, "bytes": 4 * P * 10.0}
    assert generation.tokens_limit(cfg, 1, most, "float32", 4) == 10
    assert generation.tokens_limit(cfg, 2, most, "float32", 4) == 20
    assert generation.tokens_limit(cfg, 32, most, "float32", 4) == 50
    assert generation.tokens_limit(cfg, 1, most, "float32", 1) == 40


def test_contestants_train():
    peers = installed("transformers", "book")
    runs = training.steps(CFG, 2, 16, CPU, torch.float32, peers)
    assert list(runs)[:2] == ["ours", "ours, chapter 5"]
    assert {"transformers", "book, fast"} & set(runs) or not peers
    for name, step in runs.items():
        losses = [step() for _ in range(20)]
        assert losses[-1] < losses[0], name


@pytest.mark.parametrize("texts", [1, 3])
def test_contestants_write(texts):
    peers = installed("transformers", "book")
    runs = generation.generation_runs(CFG, texts, 5, CPU, torch.float32, peers)
    written = {name: run() for name, run in runs.items()}
    assert written["ours"] == written["ours, chapter 5"].tolist()
    for name, result in written.items():
        assert [len(text) for text in result] == [21] * texts, name


FINETUNED = {**CFG, "vocab_size": 50257, "context_length": 256}


def random_base():
    torch.manual_seed(0)
    return GPTModel({**FINETUNED, "tie_weights": True})


def mean_losses(runs, epochs=2):
    """The losses of each contestant, epoch by epoch."""
    return pd.DataFrame(
        {name: [run() for _ in range(epochs)] for name, run in runs.items()}
    )


@pytest.fixture(params=[True, False])
def with_and_without_book(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(finetuning, "find_peer", lambda name: False)


@pytest.mark.usefixtures("with_and_without_book")
def test_contestants_finetune_a_classifier(monkeypatch):
    """In one batch of all messages: then order does not matter, and losses agree."""
    monkeypatch.setattr(finetuning, "BATCH", 12)
    runs = finetuning.classification_runs(random_base(), load_sms()[:12])
    losses = mean_losses(runs)
    assert list(runs)[:3] == [
        *("ours, first epoch", "ours, later epochs", "ours, chapter 6")
    ]
    # the book reads the last place, padding and all: only one text is as long as that
    ours = losses.drop(columns=list(runs)[-1])
    assert (ours.max(axis=1) - ours.min(axis=1)).max() < 1e-4
    assert (losses.iloc[1] < losses.iloc[0]).all()


@pytest.mark.usefixtures("with_and_without_book")
def test_contestants_finetune_on_instructions(monkeypatch):
    monkeypatch.setattr(finetuning, "BATCH", 6)
    runs = finetuning.instruction_runs(random_base(), load_instructions()[:6])
    losses = mean_losses(runs)
    assert losses.iloc[:, 0].tolist() == pytest.approx(losses.iloc[:, 1], abs=1e-3)
    assert (losses.iloc[1] < losses.iloc[0]).all()


def test_epochs_are_compared_with_the_last_contestant():
    seconds = pd.DataFrame({"ours": [1.0, 10.0, 2.0], "book": [2.0, 20.0, 6.0]})
    table = finetuning.per_epoch(seconds)
    assert list(table["seconds"]) == [2, 6]
    assert table.loc["ours", ["x book", "least", "most"]].tolist() == [2, 2, 3]
    assert table.loc["book", ["x book", "least", "most"]].tolist() == [1, 1, 1]


def test_a_peer_that_is_missing_is_left_out_with_a_line(monkeypatch, capsys):
    monkeypatch.setitem(benchmarks.PEERS, "book", ("no_such_package", "pip install x"))
    assert not benchmarks.find_peer("book")
    assert capsys.readouterr().out.endswith("not installed: pip install x\n")


def test_tables_are_printed_and_written(tmp_path, monkeypatch, capsys):
    table = pd.DataFrame({"tokens/s": [2.5]}, index=["ours"])
    monkeypatch.setitem(program.SUBJECTS, "limits", lambda quick: {"A title": table})
    program.main(["limits", "--quick", "--json", str(tmp_path / "found.json")])
    assert "A title\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["limits"] == {"A title": [{"index": "ours", "tokens/s": 2.5}]}
    assert found["quick"] and found["machine"]["torch"] == torch.__version__


def test_a_subject_that_is_unknown(capsys):
    with pytest.raises(SystemExit):
        program.main(["speed"])
    assert "unknown subject 'speed'; use limits, training" in capsys.readouterr().err
