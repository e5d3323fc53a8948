"""Pretraining: what a run keeps on disk, and files that someone else has prepared."""

import json
import os
import pathlib
import pickle
import shutil

import pytest
import torch
from torch.distributed.checkpoint import metadata as records

from pretrain.checkpoints import Checkpoints, Log, PlainReader
from pretrain.hardware import Workers

ALONE = Workers(0, 1, torch.device("cpu"))
KIND = type(pathlib.Path())


def state(value=0.0):
    """What a run would save: tensors of several types, in nested dictionaries."""
    return {
        "model": {"weight": torch.full((3, 4), value)},
        "half": torch.ones(2).bfloat16(),
        "step": torch.tensor(round(value)),
    }


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 and 2, and the folder of the last."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, ALONE)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"seconds": 0.5})
    return checkpoints, checkpoints.complete()[-1]


def test_what_is_saved_comes_back(saved):
    checkpoints, folder = saved
    found = state()
    checkpoints.load(folder, found)
    assert torch.equal(found["model"]["weight"], torch.full((3, 4), 2.0))
    assert found["half"].dtype == torch.bfloat16 and found["step"] == 2
    assert checkpoints.facts(folder) == {"step": 2, "seconds": 0.5}


def test_only_the_last_are_kept_and_what_is_unfinished_goes(saved):
    checkpoints, folder = saved
    checkpoints.save(3, state(3), {})
    names = ["step-00000002", "step-00000003"]
    assert [path.name for path in checkpoints.complete()] == names
    (folder.parent / "step-00000004.partial").mkdir()
    Checkpoints(folder.parent, 2, ALONE)
    assert sorted(path.name for path in folder.parent.iterdir()) == names


# An index is a pickle, and a pickle is a program


class Call:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Change:
    """A pickle that sets attributes of what it names when it is loaded."""

    def __init__(self, target, attributes):
        self.target, self.attributes = target, attributes


class Writer(pickle._Pickler):
    """Writes a `Change` as the bare opcodes, which no honest object asks for."""

    def save(self, thing, *arguments, **others):
        if isinstance(thing, Change):
            super().save(thing.target)
            super().save((None, thing.attributes))
            self.write(pickle.BUILD)
        else:
            super().save(thing, *arguments, **others)


def put(folder, thing):
    """Make `thing` the index of a checkpoint."""
    with (folder / ".metadata").open("wb") as file:
        Writer(file, 4).dump(thing)


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, "touch {done}", "posix.system|nt.system"),
        (eval, "open({done!r}, 'w')", "builtins.eval"),
        (torch.load, "{done}", "torch.serialization.load"),
        (shutil.rmtree, "{done}", "shutil.rmtree"),
        (getattr, ("text", "upper"), "builtins.getattr"),
    ],
)
def test_an_index_that_would_call_a_function_is_refused(
    saved, tmp_path, function, arguments, name
):
    checkpoints, folder = saved
    done = str(tmp_path / "done")
    if isinstance(arguments, str):
        arguments = (arguments.format(done=done),)
    put(folder, Call(function, *arguments))
    with pytest.raises(ValueError, match=f"names ({name})"):
        checkpoints.load(folder, state())
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        (KIND, "exists", "replaced"),  # of every path in this process
        (records.Metadata, "__init__", "replaced"),
        (torch.serialization._get_layout, "__doc__", "replaced"),
        (records._MEM_FORMAT_ENCODING(0), "_value_", 7),
    ],
    ids=["path", "record", "function", "enum"],
)
def test_an_index_changes_nothing_that_it_has_not_made(saved, target, name, value):
    checkpoints, folder = saved
    before = getattr(target, name, None)
    put(folder, [Change(target, {name: value}), "the rest"])
    try:
        with pytest.raises(ValueError, match="is damaged or no .*it changes"):
            checkpoints.load(folder, state())
        assert getattr(target, name, None) is before
    finally:  # other tests need what a failure has changed
        if getattr(target, name, None) is not before:
            delattr(target, name) if target is KIND else setattr(target, name, before)


def test_a_class_in_the_place_of_a_record_is_not_changed_either(saved):
    checkpoints, folder = saved
    put(folder, records.Metadata({}, storage_meta=KIND))
    with pytest.raises(ValueError, match="is damaged or no .*it names .*Path"):
        checkpoints.load(folder, state())
    assert not hasattr(KIND, "load_id")


@pytest.mark.parametrize("thing", [{"no": "checkpoint"}, [], None, 7])
def test_an_index_of_something_else_is_damaged(saved, thing):
    checkpoints, folder = saved
    put(folder, thing)
    kind = type(thing).__name__
    with pytest.raises(ValueError, match=f"is damaged or no .*it holds a '{kind}'"):
        checkpoints.load(folder, state())


def test_an_index_cut_off_anywhere_is_a_value_error(saved):
    path = saved[1] / ".metadata"
    whole = path.read_bytes()
    assert PlainReader(path.parent).read_metadata().state_dict_metadata
    for cut in {*range(0, len(whole), 11), len(whole) - 1}:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            PlainReader(path.parent).read_metadata()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"seconds": 1}'])
def test_facts_without_a_step_are_damaged(saved, text):
    checkpoints, folder = saved
    (folder / "facts.json").write_text(text)
    with pytest.raises(ValueError, match="step-00000002 is damaged .*; delete it"):
        checkpoints.facts(folder)


# The log


def test_a_log_goes_on_where_the_checkpoint_is(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, 0, active=True)
    for step in (1, 2, 3):
        log.write("train", step, loss=step / 2)
    with path.open("a") as file:
        file.write('{"event": "train", "st')  # killed here
    Log(path, 2, active=False).write("train", 9)  # another process says nothing
    assert len(path.read_text().splitlines()) == 4
    Log(path, 3, active=True).write("resume", 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["event"], x["step"]) for x in lines] == [
        *(("train", 1), ("train", 2), ("train", 3), ("resume", 3))
    ]
    Log(path, 2, active=True).write("resume", 2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 2] and lines[1]["loss"] == 1.0
    Log(path, 0, active=True)
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
