"""Pretraining: the command, on one process and two, undisturbed and not.

A model of 7,872 parameters learns toy languages. Other processes come from a fork
server, which imports torch once for all of them.
"""

import errno
import functools
import json
import math
import multiprocessing
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain import hardware
from pretrain import run as command
from pretrain.checkpoints import Checkpoints
from pretrain.hardware import (
    Workers,
    choose_precision,
    flops_per_token,
    start_workers,
)
from pretrain.mixture import Mixture
from pretrain.prepare import TOKENIZER, keep_tokenizer, open_tokenizer, prepare_source
from pretrain.run import Pretraining, pretrain
from pretrain.settings import (
    FREE_SETTINGS,
    ModelSettings,
    Settings,
    Stage,
    check_settings,
    learning_rate,
    read_settings,
)
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.ch05 import load_weights_into_gpt, read_gpt2_folder
from tools.export import ROOT

T, V = 16, 64
ALONE = Workers(0, 1, torch.device("cpu"))
MUON = {"matrix_learning_rate": 0.02, "learning_rate": 0.005, "weight_decay": 0.3}
TWO_STAGES = {
    "stages": [Stage(12, T // 2, 4, 20), Stage(8, T, 2)],
    **{"guided_steps": 7, "average_half_life": 500.0, "mean_half_life": 400.0},
    **{"square_half_life": 9000.0, "decay_steps": 6},
}
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["pretrain.run", "pytest", "torch.utils.flop_counter", "tools.export"]
)


def walk(seed, length, step):
    """A toy language: each token is `step` above the one before; some are at random."""
    draw = np.random.default_rng(seed)
    ids = [0]
    for jump in draw.random(length - 1) < 0.05:
        ids.append(int(draw.integers(V)) if jump else (ids[-1] + step) % V)
    return ids


def write_source(folder, train, held_out):
    """What `prepare` would leave, of lists of token ids."""
    folder.mkdir(parents=True)
    index = {"vocab_size": V}
    for split, shards in (("train", train), ("held_out", held_out)):
        index[split] = []
        for number, ids in enumerate(shards):
            file = f"{split}-{number:05d}.bin"
            np.array(ids, "<u2").tofile(folder / file)
            index[split].append({"file": file, "tokens": len(ids)})
    (folder / "index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two sources of 87 and 31 windows, which hold out 13 and 6."""
    folder = tmp_path_factory.mktemp("shards")
    ids = walk(1, 1400, 1)
    write_source(folder / "one", [ids[:900], ids[900:]], [walk(2, 13 * T + 1, 1)])
    write_source(folder / "two", [walk(3, 500, 5)], [walk(4, 6 * T + 5, 5)])
    return folder


@pytest.fixture
def make_settings(shards, tmp_path):
    """A function that makes the settings of a small run; `run` names its folder."""

    def make(run="run", **changes):
        model = {
            **{"vocab_size": V, "context_length": T, "emb_dim": 16, "n_heads": 2},
            **{"n_layers": 2, **changes.pop("model", {})},
        }
        usual = {
            **{"max_steps": 20, "batch_size": 4, "warmup_steps": 5, "device": "cpu"},
            **{"precision": "fp32", "log_every": 1, "eval_every": 1000},
            **{"checkpoint_every": 1000},
        }
        changes = {"shards": shards, "run_folder": tmp_path / run, **usual, **changes}
        return Settings(**changes, model=ModelSettings(**model))

    return make


@pytest.fixture(autouse=True)
def no_measurements(monkeypatch):
    """Leave out what only costs time here, or would change the tests' own process."""
    monkeypatch.setattr(command, "matmul_flops", lambda *arguments: 1e9)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums in one order, and no threads that wait for each other."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def events(settings, kind):
    """The lines of the log of one kind."""
    lines = (settings.run_folder / "log.jsonl").read_text().splitlines()
    return [x for x in map(json.loads, lines) if x["event"] == kind]


def losses(settings):
    """The training loss of each step, none of which is missing or there twice."""
    lines = events(settings, "train")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def tensors(state, name=""):
    """The tensors in nested dictionaries, by name."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    return {
        path: tensor
        for key, value in state.items()
        for path, tensor in tensors(value, f"{name}/{key}").items()
    }


def open_run(settings):
    """The run as its last checkpoint left it."""
    run = Pretraining(settings, ALONE)
    run.resume(Checkpoints(settings.run_folder / "checkpoints", 2, ALONE))
    return run


def require_same_end(settings, other):
    """Assert that two runs have the same losses, and the same last bit of state."""
    assert losses(settings) == losses(other)
    ends = [open_run(x) for x in (settings, other)]
    assert ends[0].step == ends[1].step == settings.max_steps
    state, same = (tensors(run._state()) for run in ends)
    assert state.keys() == same.keys() and len(state) > 60
    assert all(torch.equal(state[name], same[name]) for name in state)
    model = "model/model.safetensors"
    assert (settings.run_folder / model).read_bytes() == (
        other.run_folder / model
    ).read_bytes()


def require_close(weights, others, tolerance):
    """Assert that two models are one, but for rounding.

    The biases of keys are left out: softmax ignores them, so their gradients are
    nothing but rounding errors, of which Adam makes steps of full length.
    """
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        if not name.endswith("W_key.bias"):
            assert torch.allclose(tensor, others[name], rtol=0, atol=tolerance), name


def saved_steps(settings):
    """The steps that have a checkpoint, and whatever else lies there."""
    names = [path.name for path in (settings.run_folder / "checkpoints").iterdir()]
    return [int(name.removeprefix("step-")) for name in sorted(names)]


# Other processes


def work(settings, place, output, harm):
    """What a process started by `start` does."""
    os.environ.update(place)
    sys.stdout = sys.stderr = open(output, "a", buffering=1)
    torch.set_num_threads(1)
    command.matmul_flops = lambda *arguments: 1e9
    if harm is not None:
        harm()
    pretrain(settings)


def start(settings, count=1, harm=None):
    """Run in `count` processes; returns how each ended, and what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings.run_folder.mkdir(exist_ok=True)
    output = settings.run_folder / "output"
    output.unlink(missing_ok=True)
    places = [
        {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        }
        for rank in range(count)
    ]
    processes = [
        FORK.Process(target=work, args=(settings, place, output, harm))
        for place in places
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, output.read_text()
    return [process.exitcode for process in processes], output.read_text()


def at_step(step, action, rank=0):
    """Let a process do something as it begins the step after `step`."""
    usual = Pretraining.train_step

    def train_step(run):
        if (run.step, run.workers.rank) == (step, rank):
            action()
        return usual(run)

    Pretraining.train_step = train_step


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def be_asked(number):
    os.kill(os.getpid(), number)


def killed_at(step):
    return functools.partial(at_step, step, be_killed)


def asked_at(step, number=signal.SIGTERM, rank=0):
    return functools.partial(
        at_step, step, functools.partial(be_asked, number), rank=rank
    )


def killed_in(owner, name, step):
    """Let the process be killed in a function that saves a checkpoint."""
    owner = pkgutil.resolve_name(owner)
    usual = getattr(owner, name)

    def function(*arguments, **others):
        if f"step-{step:08d}.partial" in str(
            getattr(arguments[0], "path", arguments[0])
        ):
            be_killed()
        return usual(*arguments, **others)

    setattr(owner, name, function)


# Settings


FILE = """
shards: data
run_folder: runs/a
max_steps: 50
warmup_steps: 5
repeats: {one: 2, two: 0.5}
model:
  emb_dim: 32
  n_layers: 3
"""


def test_settings_come_from_file_and_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text(FILE)
    settings = read_settings(
        [
            *("--config", str(tmp_path / "a.yaml"), "--max_steps", "60"),
            *("--model.n_layers", "4", "--micro_batch_size=1"),
        ]
    )
    assert settings.max_steps == 60 and settings.warmup_steps == 5
    assert settings.model == ModelSettings(emb_dim=32, n_layers=4)
    assert settings.repeats == {"one": 2, "two": 0.5}
    assert settings.micro_batch_size == 1 and settings.parallel == "ddp"
    assert str(settings.shards) == "data" and settings.learning_rate == 1e-3
    check_settings(settings, 2)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pretrain/configs").glob("*.yaml")), ids=str
)
def test_the_course_s_own_settings_fit(path):
    check_settings(read_settings(["--config", str(path)]), 1)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_base_was_trained_with_the_settings_that_stand_there(number):
    path = ROOT / f"pretrain/configs/base-{number}.yaml"
    settings = asdict(read_settings(["--config", str(path)]))
    log = (ROOT / f"data/base/log-{number}.jsonl").read_text(encoding="utf-8")
    kept = json.loads(log.splitlines()[0])["settings"]
    assert kept.keys() <= settings.keys()
    for name in kept.keys() - FREE_SETTINGS:
        assert settings[name] == kept[name], name


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--learning_speed 1", "learning_speed"),
        ("--model.layers 1", "model.layers"),
        ("--max_steps many", "max_steps"),
        ("--model.n_layers 1.5", "n_layers"),
        ("--precision fp8", "precision"),
        ("--repeats {one:often}", "repeats"),
        ("--config none.yaml", "none.yaml"),
        (FILE.replace("max_steps: 50", ""), "max_steps"),
        (FILE + "  n_head: 3\n", "n_head"),
    ],
)
def test_wrong_settings_are_named(tmp_path, capsys, arguments, name):
    file, more = (FILE, arguments.split()) if "--" in arguments else (arguments, [])
    (tmp_path / "a.yaml").write_text(file)
    with pytest.raises(SystemExit) as stop:
        read_settings(["--config", str(tmp_path / "a.yaml"), *more])
    assert stop.value.code == 2 and name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({name: 0}, f"{name} must be 1 or more, not 0")
            for name in (
                *("max_steps", "batch_size", "log_every", "eval_every"),
                *("eval_sequences", "checkpoint_every", "keep_checkpoints"),
            )
        ),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more, not -1"),
        ({"warmup_steps": 20}, "below max_steps 20, not 20"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, not nan"),
        ({"final_learning_rate": -1e-5}, "final_learning_rate must be 0 or more, not"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be above 0, not -1.0"),
        ({"batch_size": 3}, "3 cannot be shared by 2 processes in .* of any size"),
        ({"micro_batch_size": 3}, "4 cannot be shared by 2 .* micro-batches of 3"),
        ({"micro_batch_size": 4}, "4 cannot be shared by 2 .* micro-batches of 4"),
        ({"micro_batch_size": 0}, "4 cannot be shared by 2 .* micro-batches of 0"),
        ({"micro_batch_size": -1}, "4 cannot be shared by 2 .* micro-batches of -1"),
        ({"model": {"n_heads": 3}}, "emb_dim 16 is not divisible by n_heads 3"),
        ({"vocabulary": 0}, "vocabulary must be between 1 and the model's 64 .* not 0"),
        ({"vocabulary": 65}, "model's 64 tokens, not 65"),
        ({"stages": [Stage(9, T, 4), Stage(10, T, 4)]}, r"have 9 \+ 10 steps.* 20"),
        ({"stages": [Stage(20, T, 4), Stage(0, T, 4)]}, r"have 20 \+ 0 steps"),
        ({"stages": [Stage(20, T + 1, 4)]}, "between 1 and the model's 16, not 17"),
        ({"stages": [Stage(20, T, 3)]}, "batch_size 3 cannot be shared by 2"),
        ({"stages": [Stage(20, T, 0)]}, "batch_size 0 cannot be shared by 2"),
        ({"stages": [Stage(20, T, 4, 65)]}, "model's 64 tokens, not 65"),
        ({"mean_half_life": 0.0}, "mean_half_life must be above 0, not 0.0"),
        ({"square_half_life": -1.0}, "square_half_life must be above 0, not -1.0"),
        ({"average_half_life": -1.0}, "average_half_life must be above 0, not -1.0"),
        ({"asked_weight": 0.0}, "asked_weight must be above 0, not 0.0"),
        ({"decay_steps": 16}, "between 1 and the 20 - 5 steps .* not 16"),
        ({"decay_steps": 0}, "between 1 and the 20 - 5 steps .* not 0"),
        ({"guided_steps": 21}, "guided_steps must be at most max_steps 20, not 21"),
        ({"guided_steps": 1, "parallel": "fsdp"}, "guided_steps needs whole layers"),
        ({"matrix_learning_rate": 0.0}, "matrix_learning_rate must be above 0, not"),
        (
            {"matrix_learning_rate": 0.1, "parallel": "fsdp"},
            "matrix_learning_rate needs whole layers, but fsdp .* use ddp",
        ),
        ({"prompts": ["a", ""]}, "prompts must not be empty"),
    ],
)
def test_impossible_settings_are_refused(make_settings, changes, message):
    with pytest.raises(ValueError, match=message):
        check_settings(make_settings(**changes), 2)
    check_settings(make_settings(micro_batch_size=2, warmup_steps=19), 2)


def test_learning_rate_rises_in_a_line_and_falls_as_a_cosine(make_settings):
    settings = make_settings(
        max_steps=40, warmup_steps=8, learning_rate=0.8, final_learning_rate=0.1
    )
    rates = [learning_rate(settings, step) for step in range(40)]
    assert np.allclose(rates[:8], np.arange(1, 9) * 0.1)
    assert math.isclose(rates[39], 0.1)
    assert math.isclose(rates[23], 0.45)  # half-way from step 7 to step 39
    assert math.isclose(rates[15], 0.1 + 0.7 * (1 + math.sqrt(0.5)) / 2)
    assert all(a > b for a, b in zip(rates[7:], rates[8:], strict=False))
    settings = replace(settings, warmup_steps=0, final_learning_rate=0.0)
    assert 0.79 < learning_rate(settings, 0) < 0.8
    assert math.isclose(learning_rate(settings, 39), 0, abs_tol=1e-9)


def test_learning_rate_can_stay_and_fall_in_a_line(make_settings):
    settings = make_settings(
        **{"max_steps": 40, "warmup_steps": 8, "learning_rate": 0.8},
        **{"final_learning_rate": 0.1, "decay_steps": 10},
    )
    rates = [learning_rate(settings, step) for step in range(40)]
    assert np.allclose(rates[8:30], 0.8)
    assert np.allclose(rates[30:], 0.1 + 0.7 * np.arange(9, -1, -1) / 10)


def test_stages_share_out_the_steps_and_the_tokens(make_settings):
    settings = make_settings(stages=[Stage(3, 4, 8), Stage(17, T, 2)])
    first, second = settings.stages
    assert settings.stage(0) == (0, first, 0) and settings.stage(2) == (0, first, 2)
    assert settings.stage(3) == (1, second, 0) and settings.stage(19) == (1, second, 16)
    assert settings.stage(20) == (1, second, 17)
    tokens = [settings.tokens(step) for step in (0, 1, 3, 4, 20)]
    assert tokens == [0, 32, 96, 128, 96 + 17 * 32]


def test_half_lives_are_counted_in_tokens(make_settings):
    settings = make_settings(mean_half_life=300, square_half_life=6000)
    for tokens_per_step in (30, 100):
        betas = settings.betas(tokens_per_step)
        for beta, half_life in zip(betas, (300, 6000), strict=True):
            assert math.isclose(beta ** (half_life / tokens_per_step), 0.5)
    assert make_settings().betas(30) == (0.9, 0.95)
    for one in (settings, make_settings()):
        run = Pretraining(one, ALONE)
        run.train_step()
        for group in run.optimizer.param_groups:
            assert group["betas"] == one.betas(4 * T)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_flops_are_those_that_torch_counts(tie_weights):
    """With attention to the whole context, which is how both count it."""
    B, T, C = 1, 128, 64
    config = ModelSettings(100, T, C, 4, 3, tie_weights=tie_weights)
    gpt = GPTModel(asdict(config))
    ids = torch.randint(100, (B, T))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(gpt(ids).flatten(0, 1), ids.flatten()).backward()
    counted = counter.get_total_flops() / (B * T)
    assert math.isclose(flops_per_token(gpt), counted, rel_tol=0.03)
    attention = 12 * 3 * T * C  # is larger than the tolerance
    assert attention > 0.1 * counted


# The order of the data


def make_mixture(repeats, seed=7, a=10, b=6):
    sources = {
        name: [(name, i) for i in range(size)] for name, size in (("a", a), ("b", b))
    }
    return Mixture(sources, repeats, seed)


@pytest.mark.parametrize("times", [0, 0.5, 1, 2, 2.5])
def test_an_epoch_has_every_window_as_often_as_repeats_says(times):
    mixture = make_mixture({"a": times})
    assert len(mixture) == 10 * times + 6
    for epoch in range(3):
        start = epoch * len(mixture)
        seen = Counter(mixture[start + i] for i in range(len(mixture)))
        assert all(seen[("b", i)] == 1 for i in range(6))
        often = sorted(seen[("a", i)] for i in range(10))
        more = round(10 * (times % 1))
        assert often == [int(times)] * (10 - more) + [int(times) + 1] * more


def test_the_order_follows_from_seed_and_number_alone():
    mixture, numbers = make_mixture({"a": 0.5}), range(44)
    order = [mixture[i] for i in numbers]
    assert order == [make_mixture({"a": 0.5})[i] for i in numbers]
    assert order[::-1] == [mixture[i] for i in reversed(numbers)]
    other = make_mixture({"a": 0.5}, seed=8)
    assert order != [other[i] for i in numbers]
    epochs = [order[i : i + 11] for i in range(0, 44, 11)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    chosen = {frozenset(w for w in epoch if w[0] == "a") for epoch in epochs}
    assert len(chosen) > 1  # not the same half each time
    changes = sum(x[0] != y[0] for x, y in zip(order, order[1:], strict=False))
    assert changes > 10  # the sources are mixed
    first = [i for name, i in epochs[0] if name == "b"]
    assert sorted(first) == list(range(6)) != first


def test_mixtures_that_cannot_be_are_refused():
    for repeats, message in (
        ({"c": 1}, "repeats names 'c', but the sources are a, b"),
        ({"a": -1}, "repeats of a must be 0 or more, not -1"),
        ({"a": 0, "b": 0}, "no full sequence; prepare more text"),
    ):
        with pytest.raises(ValueError, match=message):
            make_mixture(repeats)
    with pytest.raises(ValueError, match="no full sequence"):
        make_mixture({"a": 3}, a=0, b=0)
    assert len(make_mixture({"a": 1.5}, a=0)) == 6


# Training


def test_it_learns_a_toy_language_and_writes_everything_down(make_settings, capsys):
    settings = make_settings(
        max_steps=300,
        **{"batch_size": 8, "learning_rate": 0.01, "final_learning_rate": 1e-4},
        **{"log_every": 10, "eval_every": 100, "eval_sequences": 3},
        repeats={"one": 0.5, "two": 3},
    )
    assert pretrain(settings)
    folder = settings.run_folder
    assert f"the model is in {folder / 'model'}" in capsys.readouterr().out
    lines = [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
    first, train = lines[0], events(settings, "train")
    assert first["event"] == "start" and first["parameters"] == 7_872
    assert first["settings"]["model"] == asdict(settings.model)
    assert first["settings"]["run_folder"] == str(folder)
    assert [line["step"] for line in train] == list(range(10, 301, 10))
    assert train[0]["loss"] > 0.9 * math.log(V) > 1.5 > train[-1]["loss"] > 0.2
    for line in train:
        assert line["tokens"] == line["step"] * 8 * T
        assert line["learning_rate"] == learning_rate(settings, line["step"] - 1)
        speed = line["tokens_per_second"] * first["flops_per_token"] / 1e9
        assert math.isclose(line["utilisation"], speed, rel_tol=0.01, abs_tol=1e-4)
    looks = events(settings, "eval")
    assert [(x["step"], x["sequences"]) for x in looks] == [
        *((100, 3), (200, 3), (300, None))
    ]
    for look in looks:
        one, two = look["losses"]["one"], look["losses"]["two"]
        mean = (44 * one + 93 * two) / 137  # by their windows in an epoch
        assert math.isclose(look["loss"], mean, abs_tol=2e-4)
    assert looks[-1]["loss"] < 1.5
    assert lines[-1]["event"] == "end" and lines[-1]["tokens"] == 300 * 8 * T
    assert lines[-1]["seconds"] > 0
    before = (folder / "log.jsonl").read_bytes()
    shutil.rmtree(folder / "model")
    assert pretrain(settings)  # given again, it only makes sure of the model
    assert (folder / "log.jsonl").read_bytes() == before
    assert (folder / "model" / "model.safetensors").is_file()


def test_the_steps_are_those_of_a_plain_loop(make_settings):
    settings = make_settings(
        max_steps=12,
        **{"learning_rate": 0.02, "final_learning_rate": 0.002, "max_grad_norm": 1.0},
        **{"weight_decay": 0.5, "beta1": 0.8, "beta2": 0.9},
    )
    pretrain(settings)

    torch.manual_seed(settings.seed)
    gpt = GPTModel(asdict(settings.model))
    plain = [p for p in gpt.parameters() if p.dim() < 2]
    matrices = [p for p in gpt.parameters() if p.dim() >= 2]
    optimizer = torch.optim.AdamW(matrices, betas=(0.8, 0.9), fused=True)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    optimizer.add_param_group({"params": plain, "weight_decay": 0.0})
    mixture, by_hand, norms = Pretraining(settings, ALONE).mixtures[0], [], []
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        ids = torch.tensor(np.stack([mixture[4 * step + i] for i in range(4)]))
        loss = F.cross_entropy(gpt(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(gpt.parameters(), 1.0).item())
        optimizer.step()
        by_hand.append(loss.item())
    assert min(norms) < 1 < max(norms)
    assert np.allclose(losses(settings), by_hand, atol=1e-5)
    noted = [line["gradient_norm"] for line in events(settings, "train")]
    assert np.allclose(noted, norms, atol=2e-4)
    require_close(open_run(settings).gpt.state_dict(), gpt.state_dict(), 1e-5)


def test_only_token_vectors_begin_larger(make_settings):
    usual, larger = (
        command.Pretraining(make_settings(f"x{times}", token_vectors=times), ALONE).gpt
        for times in (1.0, 4.0)
    )
    for (name, p), q in zip(usual.named_parameters(), larger.parameters(), strict=True):
        assert torch.equal(p * (4 if name == "tok_emb.weight" else 1), q)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_matrices_decay_but_biases_and_norms_do_not(make_settings, tie_weights):
    settings = make_settings(weight_decay=0.3, model={"tie_weights": tie_weights})
    run = Pretraining(settings, ALONE)
    decayed, others = run.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in run.gpt.named_parameters()}
    chosen = [
        [names.pop(id(p)) for p in group["params"]] for group in (decayed, others)
    ]
    assert not names
    assert all(name.endswith("weight") for name in chosen[0])
    assert all(name.endswith(("bias", "scale", "shift")) for name in chosen[1])


def test_micro_batches_add_up_to_the_batch(make_settings):
    whole, micro = make_settings("whole"), make_settings("micro", micro_batch_size=1)
    for settings in (whole, micro):
        pretrain(settings)
    assert np.allclose(losses(whole), losses(micro), rtol=0, atol=1e-5)
    shapes = [inputs.shape for inputs, _ in Pretraining(micro, ALONE).micro_batches()]
    assert shapes == [(1, T)] * 4


def test_dropout_differs_between_steps_and_not_between_runs(make_settings):
    settings = make_settings(learning_rate=1e-12, model={"drop_rate": 0.5}, seed=5)
    runs = [Pretraining(settings, ALONE) for _ in range(2)]
    batch = runs[0].micro_batches()
    found = []
    for run in runs:
        run.micro_batches = lambda: batch
        found.append([run.train_step()[0].item() for _ in range(3)])
        torch.manual_seed(0)  # what others draw does not matter
    assert found[0] == found[1] and len(set(found[0])) == 3


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch_size": 1}, {"batch_size": 5, "micro_batch_size": 5}]
)
def test_evaluation_is_the_mean_over_the_held_out_windows(make_settings, changes):
    settings = make_settings(model={"drop_rate": 0.5}, **changes)
    run = Pretraining(settings, ALONE)
    with torch.no_grad():
        for p in run.gpt.parameters():
            p += 0.1 * torch.randn_like(p)
    for sequences in (None, 7, 1):
        found = run.evaluate(sequences)
        assert list(found) == ["one", "two"]
        for name, count in (("one", 13), ("two", 6)):
            held_out = run.looks.held_out[0][name]
            assert len(held_out) == count
            ids = np.stack([held_out[i] for i in range(min(count, sequences or 99))])
            ids = torch.from_numpy(ids)
            with torch.no_grad():
                logits = run.gpt.eval()(ids[:, :-1])
            direct = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
            run.gpt.train()
            assert math.isclose(found[name], direct, rel_tol=1e-5)
    assert run.objective.training


def test_sources_without_held_out_text_are_left_out(make_settings, tmp_path, capfd):
    for name, held_out in (("one", []), ("two", [walk(2, 70, 5)])):
        write_source(tmp_path / "data" / name, [walk(1, 200, 1)], held_out)
    settings = make_settings(shards=tmp_path / "data", max_steps=6)
    pretrain(settings)
    (look,) = events(settings, "eval")
    assert list(look["losses"]) == ["two"] and look["loss"] == look["losses"]["two"]
    assert "--held-out" not in capfd.readouterr().err
    shutil.rmtree(tmp_path / "data" / "two")
    settings = make_settings("other", shards=tmp_path / "data", max_steps=6)
    pretrain(settings)
    assert events(settings, "eval") == []
    assert "a larger --held-out, say 0.1" in capfd.readouterr().err


def test_a_model_too_small_for_the_ids_is_refused(make_settings):
    with pytest.raises(ValueError, match="one has token ids up to 63, but .* is 63"):
        Pretraining(make_settings(model={"vocab_size": 63}), ALONE)


def test_a_damaged_shard_ends_the_run_with_its_name(make_settings, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "data")
    path = tmp_path / "data" / "two" / "train-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[T * 20] = 50_000
    ids.tofile(path)
    settings = make_settings(shards=tmp_path / "data", max_steps=30)  # one epoch
    with pytest.raises(ValueError, match="two.train-00000.bin: token 320 is 50000"):
        pretrain(settings)


# Two processes


def test_two_processes_train_as_one(make_settings):
    """The matrices of the blocks by Muon too, if each process has all of them."""
    for changes in ({"parallel": "ddp", **MUON}, {"parallel": "fsdp"}):
        name = changes["parallel"]
        one = make_settings(f"{name}-1", eval_every=7, eval_sequences=5, **changes)
        pretrain(one)
        logits, gpt = exported_logits(one)
        two = replace(
            one, run_folder=one.run_folder.with_name(f"{name}-2"), micro_batch_size=1
        )
        codes, output = start(two, 2)
        assert codes == [0, 0], output
        assert len(losses(one)) == 20
        assert np.allclose(losses(two), losses(one), rtol=0, atol=1e-4)
        looks = events(two, "eval")
        assert [x["step"] for x in looks] == [7, 14, 20]
        for look, same in zip(looks, events(one, "eval"), strict=True):
            assert look["losses"].keys() == same["losses"].keys()
            for source, loss in look["losses"].items():
                assert math.isclose(loss, same["losses"][source], abs_tol=1.1e-4)
        assert torch.allclose(exported_logits(two)[0], logits, atol=0.02)  # bfloat16
        assert events(two, "start")[0]["processes"] == 2
        require_close(open_run(two).gpt.state_dict(), gpt, 1e-4)  # opened by one


def exported_logits(settings):
    """What the exported model says, if that is the model of the last checkpoint."""
    config, params = read_gpt2_folder(settings.run_folder / "model")
    gpt = GPTModel(config)
    load_weights_into_gpt(gpt, params)
    assert gpt.out_head.weight is gpt.tok_emb.weight
    trained = open_run(settings).gpt
    state = {name: p.clone() for name, p in trained.state_dict().items()}
    with torch.no_grad():
        for p in trained.parameters():
            p.copy_(p.bfloat16())
        ids = torch.arange(2 * T).reshape(2, T)
        logits = gpt.eval()(ids)
        assert torch.allclose(logits, trained.eval()(ids), atol=1e-5)
    return logits, state


def test_a_run_may_move_to_more_or_fewer_processes(make_settings):
    places = [("ddp", 2), ("ddp", 1), ("fsdp", 2), ("fsdp", 1), ("ddp", 2)]
    alone = make_settings("alone")
    pretrain(alone)
    for number, (parallel, count) in enumerate(places, start=1):
        settings = make_settings("moving", parallel=parallel)
        harm = asked_at(4 * number - 1, rank=count - 1) if number < 5 else None
        codes, output = start(settings, count, harm)
        assert codes == [0] * count, output
        if number < 5:
            assert f"stopped after step {4 * number} of 20" in output
            assert saved_steps(settings)[-1] == 4 * number
    assert np.allclose(losses(alone), losses(settings), rtol=0, atol=1e-5)
    require_close(*(open_run(x).gpt.state_dict() for x in (alone, settings)), 1e-4)


SCRIPT = """
import os, pathlib, signal, sys
from pretrain import run as command

usual, mark = command.Pretraining.train_step, pathlib.Path(sys.argv[1])

def train_step(run):
    if (run.step, run.workers.rank) == (7, 1) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return usual(run)

command.Pretraining.train_step = train_step
command.matmul_flops = lambda *arguments: 1e9
command.main(sys.argv[2:])
"""


def test_torchrun_starts_again_when_a_process_dies(make_settings, tmp_path):
    alone = make_settings("alone", max_steps=12, checkpoint_every=5)
    pretrain(alone)
    settings = replace(alone, run_folder=tmp_path / "two")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--local-addr", "127.0.0.1"),  # this machine's name may not resolve
            *("--nproc-per-node", "2", "--max-restarts", "1"),
            *(str(tmp_path / "script.py"), str(tmp_path / "mark")),
            *("--config", write_config(settings)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mark").exists()
    (again,) = events(settings, "resume")
    assert again["step"] == 5 and again["processes"] == 2
    assert np.allclose(losses(alone), losses(settings), rtol=0, atol=1e-5)
    assert (settings.run_folder / "model" / "model.safetensors").is_file()


def write_config(settings):
    """A file of settings (JSON is YAML); returns its name."""
    path = settings.run_folder.with_suffix(".yaml")
    values = {k: v for k, v in asdict(settings).items() if v is not None}
    path.write_text(json.dumps(values, default=str))
    return str(path)


# Interruptions


def test_killed_anywhere_it_ends_as_if_undisturbed(make_writer):
    """In each stage and around their change, with all that a run has to remember."""
    calm = make_writer("calm", **TWO_STAGES, **MUON)
    pretrain(calm)
    assert [x["tokens"] for x in events(calm, "train")] == [
        32 * n for n in range(1, 21)
    ]
    settings = make_writer("killed", **TWO_STAGES, **MUON, checkpoint_every=3)
    for step in (2, 4, 11, 13, 17):
        codes, output = start(settings, harm=killed_at(step))
        assert codes == [-signal.SIGKILL], output
        assert losses(settings) == losses(calm)[:step], f"killed at {step}"
    pretrain(settings)
    require_same_end(settings, calm)
    assert [line["step"] for line in events(settings, "resume")] == [3, 9, 12, 15]
    written = [{x["step"]: x["texts"] for x in events(settings, "sample")}]
    written.append({x["step"]: x["texts"] for x in events(calm, "sample")})
    assert written[0] == written[1] and list(written[0]) == [0, 1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize(
    "moment",
    [
        ("torch.distributed.checkpoint:FileSystemWriter", "write_data"),  # at first
        ("torch.distributed.checkpoint:FileSystemWriter", "finish"),  # before its index
        ("os", "replace"),  # before the folder gets its name
    ],
    ids=["tensors", "index", "name"],
)
def test_killed_while_it_saves_it_goes_on_from_the_one_before(make_settings, moment):
    changes = {"max_steps": 12, "checkpoint_every": 4, "model": {"drop_rate": 0.1}}
    calm, settings = make_settings("calm", **changes), make_settings("run", **changes)
    pretrain(calm)
    harm = functools.partial(killed_in, *moment, 8)
    codes, output = start(settings, harm=harm)
    assert codes == [-signal.SIGKILL], output
    folder = settings.run_folder / "checkpoints"
    left = {path.name for path in folder.iterdir()}
    assert left == {"step-00000004", "step-00000008.partial"}
    (folder / "step-00000099.partial").mkdir()
    (folder / "step-00000099.partial" / ".metadata").write_bytes(b"garbage")
    pretrain(settings)
    assert events(settings, "resume")[0]["step"] == 4
    assert saved_steps(settings) == [8, 12]
    require_same_end(settings, calm)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_the_same_command_goes_on(
    make_settings, number, monkeypatch, capsys
):
    calm = make_settings("calm")
    pretrain(calm)
    settings = make_settings()
    handlers = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(Pretraining, "train_step", Pretraining.train_step)
    asked_at(6, number)()
    assert not pretrain(settings)
    said = capsys.readouterr().out
    assert "stopped after step 7 of 20; the same command goes on from there" in said
    assert handlers == [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
    assert not (settings.run_folder / "model").exists()
    assert [line["step"] for line in events(settings, "stop")] == [7]
    assert saved_steps(settings) == [7]
    before = open_run(settings).seconds
    assert pretrain(settings)
    require_same_end(settings, calm)
    assert events(settings, "end")[0]["seconds"] >= round(before, 1)
    assert open_run(settings).seconds > before > 0


def test_the_second_ctrl_c_does_not_wait(make_settings, monkeypatch):
    monkeypatch.setattr(Pretraining, "train_step", Pretraining.train_step)

    def press_twice():
        be_asked(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            be_asked(signal.SIGINT)
        raise KeyboardInterrupt

    at_step(3, press_twice)
    settings = make_settings()
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings)
    assert len(losses(settings)) == 3 and saved_steps(settings) == []


def test_the_command_stops_cleanly_and_explains_itself(make_settings):
    settings = make_settings(max_steps=10**6, log_every=5)
    config = write_config(settings)
    run = [sys.executable, "-m", "pretrain", "--config", config]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(run, cwd=ROOT, **pipes)
    log, deadline = settings.run_folder / "log.jsonl", time.monotonic() + 300
    while not (log.is_file() and '"train"' in log.read_text()):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate()
    assert running.returncode == 0, err
    assert "Warning" not in err and "step/s, loss " in err and "% of peak" in err
    (stop,) = events(settings, "stop")
    assert f"stopped after step {stop['step']} of 1000000; the same command" in out
    assert saved_steps(settings) == [stop["step"]]

    message = "error: .*seed was 123 and is 5.*or name a new folder with --run_folder$"
    with pytest.raises(SystemExit, match=message):
        command.main(["--config", config, "--seed", "5"])


# Going on with something else


def test_other_settings_are_named_with_both_values(make_settings):
    pretrain(make_settings(max_steps=6))
    for changes, message in (
        ({"max_steps": 7}, "max_steps was 6 and is 7"),
        ({"batch_size": 8}, "batch_size was 4 and is 8"),
        ({"seed": 5}, "seed was 123 and is 5"),
        ({"repeats": {"one": 2}}, "repeats was {} and is {'one': 2}"),
        ({"model": {"n_heads": 4}}, "model.n_heads was 2 and is 4"),
        ({"stages": [Stage(4, T, 4), Stage(2, T, 2)]}, "stages was .* and is"),
        ({"vocabulary": 9}, "vocabulary was None and is 9"),
        ({"guided_steps": 2}, "guided_steps was 0 and is 2"),
        ({"average_half_life": 9.0}, "average_half_life was None and is 9.0"),
        ({"matrix_learning_rate": 0.1}, "matrix_learning_rate was None and is 0.1"),
        (
            {"learning_rate": 0.1, "beta1": 0.8},
            "step-00000006 belongs to another run: "
            "learning_rate was 0.001 and is 0.1; beta1 was 0.9 and is 0.8. Go on",
        ),
    ):
        with pytest.raises(ValueError, match=message.replace("{}", r"\{\}")):
            pretrain(make_settings(**{"max_steps": 6, **changes}))


def test_the_end_may_move_until_the_rate_falls(make_settings):
    def plan(steps, long):
        stages = [Stage(long, T // 2, 4), Stage(steps - long, T, 2)]
        return {"max_steps": steps, "decay_steps": 5, "stages": stages}

    whole = make_settings("whole", **plan(20, 14))
    pretrain(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "train_step", Pretraining.train_step)
        asked_at(9)()
        pretrain(make_settings(**plan(40, 30)))
    for changes in (plan(13, 11), plan(20, 8), {**plan(20, 14), "warmup_steps": 4}):
        with pytest.raises(ValueError, match="step-00000010 belongs to another run"):
            pretrain(make_settings(**changes))
    moved = make_settings(**plan(20, 14))
    assert pretrain(moved) and losses(moved) == losses(whole)


def test_other_data_are_named(make_settings, shards, tmp_path):
    pretrain(make_settings(max_steps=6))
    shutil.copytree(shards, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "two")
    with pytest.raises(
        ValueError, match="data was .*'two': 500.* and is {'one': 1400}"
    ):
        pretrain(make_settings(max_steps=6, shards=tmp_path / "data"))


def test_where_and_how_fast_may_change(make_settings, shards, tmp_path, monkeypatch):
    calm = make_settings("calm")
    pretrain(calm)
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_step", Pretraining.train_step)
        asked_at(7)()
        pretrain(make_settings())
    shutil.copytree(shards, tmp_path / "data")
    changes = {
        **{"shards": tmp_path / "data", "run_folder": tmp_path / "moved"},
        **{"micro_batch_size": 2, "device": "auto", "precision": "fp32"},
        **{"parallel": "fsdp", "compile": False, "log_every": 1, "eval_every": 9},
        **{"eval_sequences": 2, "checkpoint_every": 3, "keep_checkpoints": 3},
        "prompts": [],
        "initial": calm.run_folder / "model",  # only ever used for the first step
    }
    assert changes.keys() == FREE_SETTINGS
    (tmp_path / "run").rename(tmp_path / "moved")
    if torch.cuda.is_available():
        changes["device"] = "cpu"
    settings = make_settings(**changes)
    assert pretrain(settings)
    assert saved_steps(settings) == [15, 18, 20]
    assert np.allclose(losses(calm), losses(settings), rtol=0, atol=1e-5)


# Checkpoints


def test_only_the_last_checkpoints_are_kept(make_settings):
    settings = make_settings(max_steps=11, checkpoint_every=2, keep_checkpoints=3)
    pretrain(settings)
    assert saved_steps(settings) == [8, 10, 11]
    noted = [line["step"] for line in events(settings, "checkpoint")]
    assert noted == [2, 4, 6, 8, 10, 11]


@pytest.fixture
def saved(make_settings):
    """A run that stopped after step 4 of 20, with a checkpoint of step 2 too."""
    settings = make_settings(checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "train_step", Pretraining.train_step)
        asked_at(3)()
        pretrain(settings)
    return settings, settings.run_folder / "checkpoints" / "step-00000004"


def test_a_damaged_checkpoint_is_named_and_can_be_deleted(saved, make_settings):
    settings, folder = saved
    files = sorted(path.name for path in folder.iterdir())
    assert files == [".metadata", "__0_0.distcp", "facts.json"]
    for name in files:
        whole = (folder / name).read_bytes()
        for damage in (whole[: len(whole) // 2], b"", None):
            (folder / name).unlink()
            if damage is not None:
                (folder / name).write_bytes(damage)
            with pytest.raises(ValueError, match="step-00000004.* is damaged.*delete"):
                pretrain(settings)
            (folder / name).write_bytes(whole)
    shutil.rmtree(folder)
    pretrain(settings)
    assert events(settings, "resume")[0]["step"] == 2
    calm = make_settings("calm")
    pretrain(calm)
    require_same_end(settings, calm)


# A full disk, a missing GPU, numbers that explode


def fail(*arguments, **others):
    raise OSError(errno.ENOSPC, "No space left on device")


def fail_for_facts(path, *arguments, usual=Path.write_text, **others):
    return (fail if path.name == "facts.json" else usual)(path, *arguments, **others)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (dcp.FileSystemWriter, "write_data", fail),
        (dcp.FileSystemWriter, "finish", fail),
        (Path, "write_text", fail_for_facts),
    ],
    ids=["tensors", "index", "facts"],
)
def test_a_write_that_fails_leaves_the_checkpoints_before_it(
    saved, monkeypatch, owner, name, broken
):
    settings, _ = saved
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        message = (
            r"the checkpoint of step 6 cannot be written \(.*No space left on device"
            r".*\); the last one is .*step-00000004. The disk has [\d,]+ MB left: make"
        )
        with pytest.raises(OSError, match=message):
            pretrain(settings)
    assert saved_steps(settings) == [2, 4]
    assert open_run(settings).step == 4


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to mount a small disk here ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, left):
    """Fill a disk up to so many bytes."""
    with (folder / "filler").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - left)))


@pytest.mark.parametrize(
    ("left", "every", "message"),
    [
        (
            60_000,
            4,
            "checkpoint of step 8 cannot be written .*space.*is .*step-00000004",
        ),
        (0, 30, "log.jsonl cannot be written .*No space left on device.*; make room"),
    ],
    ids=["checkpoint", "log"],
)
def test_a_full_disk(make_settings, small_disk, monkeypatch, left, every, message):
    changes = {"max_steps": 60, "checkpoint_every": every, "model": {"drop_rate": 0.1}}
    calm = make_settings("calm", **changes)
    pretrain(calm)
    settings = make_settings(**changes, run_folder=small_disk / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_step", Pretraining.train_step)
        at_step(every + 1, functools.partial(fill, small_disk, left))
        with pytest.raises(OSError, match=message):
            pretrain(settings)
    assert saved_steps(settings) == [every]
    (small_disk / "filler").unlink()
    pretrain(settings)
    require_same_end(settings, calm)


def test_a_gpu_that_is_not_there(make_settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = make_settings(device="cuda")
    message = "device cuda is asked for by process 0 .* sees 0 GPUs; use --device cpu"
    with pytest.raises(ValueError, match=message):
        pretrain(settings)
    with pytest.raises(SystemExit, match="error: device cuda is asked for"):
        command.main(["--config", write_config(settings)])
    with start_workers("auto") as workers:
        assert workers == ALONE
    assert not settings.run_folder.exists()


def saved_numbers_are_finite(settings):
    """Whether every number in every checkpoint is one."""
    folder = settings.run_folder / "checkpoints"
    for path in folder.iterdir():
        run = Pretraining(settings, ALONE)
        state = run._state()
        Checkpoints(folder, 9, ALONE).load(path, state)
        if not all(tensor.isfinite().all() for tensor in tensors(state).values()):
            return False
    return True


def test_a_run_that_diverges_says_so_and_saves_nothing_of_it(make_settings):
    settings = make_settings(
        **{"learning_rate": 1e30, "warmup_steps": 0, "log_every": 20},
        **{"checkpoint_every": 1, "keep_checkpoints": 9},
    )
    message = r"training has diverged by step \d+ .*set a learning_rate below 1e\+30"
    with pytest.raises(FloatingPointError, match=message):
        pretrain(settings)
    assert saved_numbers_are_finite(settings)
    with pytest.raises(SystemExit, match="error: training has diverged"):
        command.main(["--config", write_config(settings)])


def test_weights_ruined_behind_a_finite_loss_are_not_saved(make_settings):
    settings = make_settings(checkpoint_every=1, log_every=20, keep_checkpoints=9)
    run = Pretraining(settings, ALONE)
    run.gpt.final_norm.scale.register_hook(
        lambda gradient: gradient * math.inf if run.step == 3 else gradient
    )
    with pytest.raises(
        FloatingPointError, match="diverged by step 4 .*length is (inf|nan)"
    ):
        run.train()
    assert saved_steps(settings) == [1, 2, 3]
    assert saved_numbers_are_finite(settings)


# The machine


def test_precision_is_chosen_by_speed(monkeypatch):
    device = torch.device("cpu")
    for wanted in ("bf16", "fp32"):
        assert choose_precision(wanted, device) == wanted
    for speed, chosen in ((1.4, "fp32"), (1.6, "bf16")):
        speeds = {torch.bfloat16: speed, torch.float32: 1.0}
        monkeypatch.setattr(
            hardware, "matmul_flops", lambda device, dtype, _, s=speeds: s[dtype]
        )
        assert choose_precision("auto", device) == chosen


def test_bf16_trains_and_keeps_full_weights(make_settings):
    settings = make_settings(precision="bf16", max_steps=8)
    pretrain(settings)
    run = open_run(settings)
    assert all(p.dtype == torch.float32 for p in tensors(run._state()).values())
    exact = make_settings("exact", max_steps=8)
    pretrain(exact)
    assert losses(settings) != losses(exact)
    assert np.allclose(losses(settings), losses(exact), atol=0.02)
    assert events(settings, "start")[0]["precision"] == "bf16"


class Clock:
    """A clock that goes on by one second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


def test_speeds_are_products_over_seconds(monkeypatch):
    monkeypatch.setattr(hardware, "time", Clock())
    found = hardware.matmul_flops(torch.device("cpu"), torch.float32, 3)
    assert found == 4 * 2 * 1024**3  # four products, one second


def test_the_meter_stands_still_in_pauses(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(command, "time", clock)
    meter = command.Meter(10)
    clock.now += 5
    with meter.paused():
        clock.now += 100
    steps, seconds = meter.lap(14)
    assert steps == 4 and 6 <= seconds <= 8
    assert meter.lap(15) == (1, 1)


def test_killed_before_its_end_is_noted_it_notes_it_once(make_settings):
    settings = make_settings()
    pretrain(settings)
    path = settings.run_folder / "log.jsonl"
    whole = path.read_bytes()
    for lines in (whole.splitlines(keepends=True)[:-1], [whole]):
        path.write_bytes(b"".join(lines))
        assert pretrain(settings)
        assert path.read_bytes() == whole


# Stages, a part of the vocabulary, a guide, a mean of the weights


def test_the_model_ends_as_the_mean_of_its_weights(make_settings):
    settings = make_settings(average_half_life=1000.0)
    run = Pretraining(settings, ALONE)
    mean = {name: p.detach().clone() for name, p in run.gpt.named_parameters()}
    for step in range(1, 21):
        run.train_step()
        if step % command.AVERAGE_EVERY == 0:
            new = 1 - 0.5 ** (command.AVERAGE_EVERY * 4 * T / 1000)
            for name, p in run.gpt.named_parameters():
                mean[name] = (1 - new) * mean[name] + new * p.detach()
    last = {name: p.detach().clone() for name, p in run.gpt.named_parameters()}
    pretrain(settings)
    end = dict(open_run(settings).gpt.named_parameters())
    for name, tensor in end.items():
        assert torch.allclose(tensor, mean[name], atol=1e-6)
        assert not torch.equal(tensor, last[name]) or torch.equal(
            mean[name], last[name]
        )


def test_a_run_can_begin_with_the_end_of_another(make_settings):
    first = make_settings("first")
    pretrain(first)
    second = make_settings("second", initial=first.run_folder / "model", seed=9)
    begun = Pretraining(second, ALONE).gpt.state_dict()
    config, tensors_there = read_gpt2_folder(first.run_folder / "model")
    gpt = GPTModel(config)
    load_weights_into_gpt(gpt, tensors_there)
    assert all(torch.equal(begun[k], v) for k, v in gpt.state_dict().items())
    with pytest.raises(ValueError, match="n_layers is 2 there and 3 here"):
        Pretraining(replace(second, model=replace(second.model, n_layers=3)), ALONE)


def test_evaluations_say_how_well_the_model_copies(make_settings):
    settings = make_settings(eval_every=10)
    pretrain(settings)
    for line in events(settings, "eval"):
        assert len(line["repeat"]) == 2 and np.shape(line["induction"]) == (2, 2)


def test_two_processes_agree_on_a_part_of_the_vocabulary(make_settings):
    """Copied or shared out, the model is the same; and its copies bear a guide."""
    found = {}
    for parallel, guided in (("ddp", 0), ("fsdp", 0), ("ddp", 7)):
        changes = {**TWO_STAGES, "guided_steps": guided, "parallel": parallel}
        settings = make_settings(f"{parallel}{guided}", **changes)
        codes, output = start(settings, 2)
        assert codes == [0, 0], output
        found[parallel, guided] = losses(settings)
    assert np.allclose(found["ddp", 0], found["fsdp", 0], rtol=0, atol=1e-5)
    assert found["ddp", 7][0] > found["ddp", 0][0] + 0.1  # the guide's own loss


# Muon

needs_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on"
)


@needs_muon
def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(make_settings):
    settings = make_settings(**MUON, final_learning_rate=0.001, max_steps=10)
    run = Pretraining(settings, ALONE)
    run.optimizer.parts[1].dtype = torch.bfloat16  # as PyTorch's
    gpt = GPTModel(asdict(settings.model))
    gpt.load_state_dict(run.gpt.state_dict())
    inside = {id(p) for p in gpt.trf_blocks.parameters() if p.dim() == 2}
    matrices = [p for p in gpt.parameters() if id(p) in inside]
    assert len(matrices) == 2 * 6
    tables = [p for p in gpt.parameters() if id(p) not in inside and p.dim() == 2]
    vectors = [p for p in gpt.parameters() if p.dim() == 1]
    muon = torch.optim.Muon(matrices, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": tables, "weight_decay": 0.3}, {"params": vectors}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(10):
        rate = learning_rate(settings, step)
        ((inputs, targets),) = run.micro_batches()
        F.cross_entropy(gpt(inputs).flatten(0, 1), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        for optimizer, times in ((muon, 4), (adam, 1)):  # 0.02 is four times 0.005
            for group in optimizer.param_groups:
                group["lr"] = times * rate
            optimizer.step()
            optimizer.zero_grad()
        run.train_step()
    require_close(run.gpt.state_dict(), gpt.state_dict(), 1e-6)


# A tokenizer of one's own, and what the model writes

FOX = "the fox and the cat and the hat and the fox sat\n"


@pytest.fixture(scope="module")
def own_shards(tmp_path_factory):
    """A source with a tokenizer of 260 tokens."""
    folder = tmp_path_factory.mktemp("own")
    tokenizer = BPETokenizer()
    tokenizer.train(FOX, 260)
    tokenizer.save(folder / "t.json")
    (folder / "fox.txt").write_text(100 * FOX)
    keep_tokenizer(folder / "t.json", folder / "shards")
    prepare_source(folder / "fox.txt", folder / "shards", held_out=0.1)
    return folder / "shards"


@pytest.fixture
def make_writer(make_settings, own_shards):
    """A function that makes settings of a run with prompts."""

    def make(run="writer", **changes):
        model = {"vocab_size": 260, "drop_rate": 0.1}
        prompts = {"prompts": ["the fox", "and"]}
        return make_settings(
            run, **{**prompts, "shards": own_shards, **changes}, model=model
        )

    return make


def test_samples_are_in_the_log_at_powers_of_two_and_at_the_end(make_writer):
    settings = make_writer(learning_rate=0.01)
    pretrain(settings)
    samples = events(settings, "sample")
    assert [line["step"] for line in samples] == [0, 1, 2, 4, 8, 16, 20]
    for line in samples:
        assert line["tokens"] == line["step"] * 4 * T
        assert [text[:3] for text in line["texts"]] == ["the", "and"]
        assert all(len(text) > 20 for text in line["texts"])
    assert len({line["texts"][0] for line in samples}) > 4
    assert samples[-1]["texts"] == open_run(settings).looks.samples()
    settings = make_writer("eight", max_steps=8)
    pretrain(settings)
    assert [line["step"] for line in events(settings, "sample")] == [0, 1, 2, 4, 8]


def test_samples_change_nothing(make_writer):
    silent, settings = make_writer("silent", prompts=[]), make_writer()
    pretrain(silent)
    assert events(silent, "sample") == []
    pretrain(settings)
    require_same_end(settings, silent)


def test_a_sample_ends_with_its_text(make_writer):
    run = Pretraining(make_writer(), ALONE)
    end = open_tokenizer(run.settings.shards).eot_token
    with torch.no_grad():  # now it writes nothing but the end
        run.gpt.final_norm.shift.copy_(1e6 * run.gpt.tok_emb.weight[end])
    assert run.looks.samples() == ["the fox<|endoftext|>", "and<|endoftext|>"]
    assert run.objective.training


def test_prompts_must_fit_the_model(make_writer, own_shards):
    settings = make_writer()
    wide = replace(settings, model=replace(settings.model, vocab_size=300))
    with pytest.raises(ValueError, match="tokenizer.s 260 tokens, .*vocab_size is 300"):
        Pretraining(wide, ALONE)
    Pretraining(replace(wide, prompts=[]), ALONE)


def test_a_model_shared_out_writes_no_samples(make_writer):
    run, written = Pretraining(make_writer(), ALONE), []
    run.looks.whole = False  # as with FSDP

    class Log:
        def write(self, event, step, **values):
            written.append((event, values.keys()))

    run.looks.note(Log(), 0, end=True)
    assert written == [("eval", {"tokens", "sequences", "loss", "losses"})]


def test_the_model_s_folder_has_the_tokenizer_of_the_shards(
    make_settings, make_writer, own_shards
):
    settings = make_writer(max_steps=6)
    pretrain(settings)
    kept = settings.run_folder / "model" / TOKENIZER
    assert kept.read_bytes() == (own_shards / TOKENIZER).read_bytes()
    config, _ = read_gpt2_folder(settings.run_folder / "model")
    assert config["vocab_size"] == 260
    settings = make_settings("gpt2", max_steps=6)
    pretrain(settings)
    assert not (settings.run_folder / "model" / TOKENIZER).exists()


def test_sources_of_another_tokenizer_are_refused(make_writer, own_shards, tmp_path):
    shutil.copytree(own_shards, tmp_path / "data")
    path = tmp_path / "data/fox/index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "tokenizer": "gpt2"}))
    message = "source fox was made with another tokenizer .*; delete .*fox and prepare"
    with pytest.raises(ValueError, match=message):
        Pretraining(make_writer(shards=tmp_path / "data"), ALONE)
    path.write_text(json.dumps(index))
    Pretraining(make_writer(shards=tmp_path / "data"), ALONE)
    (tmp_path / "data" / TOKENIZER).unlink()
    with pytest.raises(ValueError, match=message):
        Pretraining(make_writer(shards=tmp_path / "data"), ALONE)


@pytest.mark.parametrize("harm", [{"settings": None}, {"settings": {}}, {"data": ...}])
def test_damaged_facts_are_named(make_settings, harm):
    settings = make_settings(max_steps=3, warmup_steps=1)
    pretrain(settings)
    (path,) = (settings.run_folder / "checkpoints").glob("step-*/facts.json")
    facts = {**json.loads(path.read_text()), **harm}
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not ...}))
    with pytest.raises(ValueError, match="facts.json is damaged"):
        pretrain(settings)
