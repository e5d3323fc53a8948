"""The doctor: each fault gives its line, what mends it, and exit status 1."""

import ast
import builtins
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from shared import data
from tools import doctor


@pytest.fixture
def examine(monkeypatch, capsys):
    """A function that runs one check as the command does: its status, and its lines."""

    def run(name):
        monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name]})
        status = doctor.main([])
        return status, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder in place of the checkout."""
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    return tmp_path


def test_whatever_is_missing_all_else_is_looked_at(tmp_path):
    """A Python without site packages, as someone has who begins with the doctor."""
    command = [sys.executable, "-S", "-m", "tools.doctor"]
    done = subprocess.run(command, cwd=doctor.ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line[:5].strip()][:-1]
    kinds = {line[7:20].strip(): line[:5].strip() for line in lines}
    assert (done.returncode, done.stderr) == (1, "")
    assert list(kinds) == list(doctor.CHECKS)
    absent = "packages", "data packages", "processor", "memory", "data", "kernel"
    assert all(kinds[name] == "fault" for name in absent)
    assert kinds["disk"] == kinds["temporary"] == "ok"
    assert "missing: torch, regex" in done.stdout


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 15, 0)])
def test_python_too_old_or_too_new(examine, monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    status, lines = examine("Python")
    assert status == 1 and lines[0].startswith("fault  Python         3.1")
    assert "the course needs 3.11 to 3.14" in lines[0]
    assert "make PYTHON=python3.14 course" in lines[1]


def test_an_old_python_can_read_the_program():
    source = Path(doctor.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    settings = tomllib.loads((doctor.ROOT / "pyproject.toml").read_text("utf-8"))
    oldest = ">=" + ".".join(map(str, doctor.OLDEST))
    assert settings["project"]["requires-python"] == oldest


def test_another_python_than_the_course_s_own(examine, checkout):
    (checkout / ".venv").mkdir()
    status, lines = examine("Python")
    assert status == 0 and lines[0].startswith("note ")
    assert str(checkout / ".venv") in lines[1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("no-such-package-here>=2.7,<2.14  # why", "missing: no-such-package-here"),
        ("pip==0.0.1", ", not ==0.0.1"),
        ("pip[extra]>=1,<2  # why", ", not >=1,<2"),
    ],
)
def test_a_package_is_missing_or_another(examine, checkout, line, says):
    (checkout / "requirements.txt").write_text(f"# all\n\n{line}\npytest>=1\n-e .\n")
    status, lines = examine("packages")
    assert status == 1
    assert lines[0].startswith("fault") and lines[0].endswith(says)
    assert lines[1].endswith(f"-r {doctor.quoted(checkout / 'requirements.txt')}")


def test_versions_are_compared_as_numbers():
    for version in ("2.13.0+cpu", "2.7.0"):
        assert doctor.fits(version, ">=2.7,<2.14")
    for version in ("2.14.0", "2.6.1"):
        assert not doctor.fits(version, ">=2.7,<2.14")
    assert doctor.fits("2.4.6", "==2.4.6") and not doctor.fits("2.4.60", "==2.4.6")


def test_torch_is_there_but_broken(examine, monkeypatch):
    usual = builtins.__import__

    def broken(name, *others):
        if name == "torch":
            raise OSError("libgomp.so.1: cannot open shared object file")
        return usual(name, *others)

    monkeypatch.setattr(builtins, "__import__", broken)
    status, lines = examine("processor")
    assert status == 1
    assert "torch cannot be imported: libgomp.so.1" in lines[0]


@pytest.mark.parametrize(("machine", "kind"), [("AMD64", "note"), ("arm64", "ok")])
def test_a_processor_without_avx2(examine, monkeypatch, machine, kind):
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    status, lines = examine("processor")
    assert status == 0
    assert lines[0].startswith(kind)
    assert ("without AVX2" in lines[0]) == (kind == "note")


def test_a_course_installed_from_elsewhere(examine, checkout):
    status, lines = examine("course")
    assert status == 1
    assert lines[0].endswith(f"it should be {checkout}")
    assert lines[1].endswith(f"-m pip install -e {doctor.quoted(checkout)}")


@pytest.mark.parametrize("name", ["shared/__init__.py", "shared.py"])
@pytest.mark.parametrize("others", [[], ["elsewhere"]])
def test_another_package_of_this_name_on_pythonpath(
    examine, tmp_path, monkeypatch, others, name
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*others, str(tmp_path)]))
    status, lines = examine("course")
    assert status == 1
    assert f"{tmp_path} has a `shared` of its own and is in PYTHONPATH" in lines[0]
    assert "pip" not in lines[1]
    if os.name != "nt":
        wanted = "export PYTHONPATH=elsewhere" if others else "unset PYTHONPATH"
        assert lines[1].endswith(wanted)


@pytest.mark.parametrize(
    ("free", "kind", "says"),
    [(2e9, "fault", "close"), (4e9, "note", "--jobs 1"), (13e9, "ok", "faults: 0")],
)
def test_memory(examine, monkeypatch, free, kind, says):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    memory = SimpleNamespace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    status, lines = examine("memory")
    assert status == (kind == "fault")
    assert lines[0].startswith(kind)
    assert says in "".join(lines[1:])


@pytest.mark.parametrize(("free", "status"), [(3.9e9, 1), (4.1e9, 0)])
def test_disk(examine, checkout, monkeypatch, free, status):
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert examine("disk")[0] == status


def test_data_that_was_changed(examine, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "REPOSITORY_DATA", tmp_path)
    monkeypatch.setattr(data, "FILES", {"story": data.FILES["short-story"]})
    (tmp_path / "short-story.txt").write_text("Once upon a time")
    status, lines = examine("data")
    assert status == 1
    assert lines[0].endswith("missing or changed: short-story")
    assert "git checkout -- data/short-story.txt" in lines[1]


def test_data_that_is_only_online_is_no_fault(examine, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    monkeypatch.delenv("LLM_COURSE_MIRROR", raising=False)
    files = {name: data.FILES[name] for name in ("short-story", "the-verdict")}
    monkeypatch.setattr(data, "FILES", files)
    status, lines = examine("data")
    assert status == 0
    assert lines[0].endswith(
        "1 files, all that the course needs; only online: the-verdict"
    )


def refuse(*_, dir):
    raise PermissionError(13, "Permission denied", str(dir))


def test_a_checkout_that_cannot_be_written(examine, checkout, monkeypatch):
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    status, lines = examine("checkout")
    assert status == 0
    assert lines[0].startswith("note   checkout") and "Permission denied" in lines[0]
    assert lines[1].endswith(f"chmod u+w {doctor.quoted(checkout)}")


def test_a_cache_that_cannot_be_made_is_no_fault_and_looking_makes_none(
    examine, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "a/b"))
    status, lines = examine("cache")
    assert (status, lines[0][:5], list(tmp_path.iterdir())) == (0, "ok   ", [])
    (tmp_path / "a").touch()
    status, lines = examine("cache")
    assert status == 0 and lines[0].startswith("note   cache")
    assert "LLM_COURSE_DATA" in lines[1]


@pytest.mark.parametrize(
    ("program", "status"), [("/other/python", 1), ("python3", 0), (sys.executable, 0)]
)
def test_the_kernel_runs_this_python(examine, monkeypatch, program, status):
    from jupyter_client.kernelspec import KernelSpecManager

    spec = SimpleNamespace(argv=[program, "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    found, lines = examine("kernel")
    assert found == status
    if status:
        assert "another Python, /other/python" in lines[0]
        assert lines[1].endswith("-m ipykernel install --sys-prefix")


def test_a_path_with_a_blank_is_quoted():
    assert doctor.quoted("/my course/x") == '"/my course/x"'
    assert doctor.quoted("/course/x") == "/course/x"
