"""The tables about the cost of training: what they predict is what is counted."""

import pytest
from models import TINY

from benchmarks import scaling

SIZES = {"tiny": {**scaling.SMALL, "emb_dim": 64, "n_heads": 1, "n_layers": 2}}


def test_predicted_bytes_of_a_token_are_those_counted():
    table = scaling.activations_table(SIZES)
    assert list(table["whole, predicted"]) == list(table["whole, counted"])


def test_sixteen_bytes_a_parameter():
    table = scaling.states_table(SIZES)
    assert table["per parameter"]["tiny"] == pytest.approx(16)


def test_predicted_operations_are_those_counted():
    ratio = float(scaling.flops_table(SIZES)["ratio"]["tiny"])
    assert ratio == pytest.approx(1, rel=0.01)


def test_processes_that_train_in_turn():
    step = {"cfg": {**TINY, "drop_rate": 0.0}, "batch": 2, "context": 8}
    plans = {"all": step, "part": {**step, "vocabulary": 16, "keep": False}}
    seconds = scaling.in_turn(plans, rounds=2)
    assert list(seconds.index) == ["all", "part"]
    assert (seconds > 0).all()
