"""The race: contestants train, and only their training counts."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import benchmarks
from benchmarks import race
from benchmarks.racers import LOOPS, OURS, Clock, Course, Finished
from pretrain.prepare import prepare
from shared import data
from shared.ch04 import GPTModel

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


class Channel:
    """A connection to oneself: what was sent is in `reports`."""

    def __init__(self):
        self.reports = []

    def send(self, report):
        self.reports.append(report)

    def recv(self):
        return "go"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    prepare([data.get("short-story")], folder, held_out=0.2, workers=1)
    cfg = {**race.CFG, **race.TINY}
    return Course(cfg, folder, "short-story", "fp32", turns=2, held_out=3)


@pytest.mark.parametrize("name", LOOPS)
def test_a_contestant_trains_and_reports_after_each_turn(name, course, monkeypatch):
    peer = name.split(",")[0]
    if peer in benchmarks.PEERS and not benchmarks.find_peer(peer):
        pytest.skip(f"{peer} is not installed")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")
    channel, plan = Channel(), replace(race.PLANS[name], steps=9, rate=3e-3)
    race.take_part(channel, course, plan)
    steps, seconds, losses = zip(*channel.reports, strict=True)
    assert steps == (5, 9) and 0 < seconds[0] < seconds[1]
    assert losses[1] < losses[0] < 11.5


def test_the_held_out_loss_is_cross_entropy_over_all_tokens(course):
    torch.manual_seed(0)
    model = GPTModel(course.cfg).train()
    windows = course.windows("held_out")
    ids = torch.stack([torch.from_numpy(windows[i]) for i in range(3)])
    with torch.no_grad():
        logits = model(ids[:, :-1])
    wanted = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert course.loss(model) == pytest.approx(wanted, abs=1e-5)
    assert model.training  # as it was


def test_the_clock_stands_still_while_the_model_is_looked_at(course, monkeypatch):
    def slow(self, model):
        start = time.process_time()
        while time.process_time() - start < 0.3:
            pass
        return 1.0

    monkeypatch.setattr(Course, "loss", slow)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, channel = torch.optim.SGD([weight], 0.1), Channel()
    clock = Clock(channel, course, steps=4)
    clock.start(None, optimizer)
    with pytest.raises(Finished):
        for _ in range(5):
            optimizer.step()
    assert [report[0] for report in channel.reports] == [2, 4]
    assert channel.reports[-1][1] < 0.3


def test_all_contestants_read_other_windows_with_another_seed(course):
    plan = replace(race.PLANS["ours"], steps=4)
    first, same, other = (
        next(iter(replace(course, seed=seed).batches(plan)))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_who_has_reached_the_target_stops(course, capsys):
    plans = {
        name: replace(race.PLANS[name], steps=4) for name in ("plain loop", "ours")
    }
    curves = race.run_in_turn(plans, course, target=100.0)
    assert {name: [look[0] for look in curve] for name, curve in curves.items()} == {
        **{"plain loop": [2], "ours": [2]}
    }
    assert "1 ours 2 " in capsys.readouterr().out


def test_parts_change_settings_that_ours_has():
    for changes, steps in race.PARTS.values():
        assert steps > 0
        for name, value in changes.items():
            assert OURS[name] != value


def test_seconds_to_a_loss():
    curve = [(1, 10.0, 6.0), (2, 20.0, 5.0), (3, 30.0, 4.0)]
    assert race.seconds_to(4.5, curve) == 25
    assert race.seconds_to(5.0, curve) == 20
    assert race.seconds_to(7.0, curve) == 10
    assert race.seconds_to(3.0, curve) is None


def test_quick_never_replaces_the_record(capsys):
    with pytest.raises(SystemExit):
        race.main(["stories.txt", "--quick"])
    assert "--quick needs --json PATH" in capsys.readouterr().err


def test_the_page_has_what_the_record_has():
    """A row of the page has the CPU seconds to the target, seed by seed."""
    record = json.loads(race.RECORD.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert f"CPU seconds to {record['target']} |" in page
    for part in record.keys() & {"race", "parts"}:
        seeds = [curves for key, curves in record[part].items() if "seed" in key]
        for name in seeds[0]:
            found = [race.seconds_to(record["target"], seed[name]) for seed in seeds]
            cells = " / ".join("never" if s is None else f"{s:.0f}" for s in found)
            assert f"| {name} | {cells} |" in page
