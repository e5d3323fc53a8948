"""The rules by which nbval compares: what must fail fails, what may differ passes."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook, new_output

import conftest

ROOT = Path(__file__).resolve().parent.parent


def stored(source, text, **kind):
    """A cell whose stored output is `text`, whatever running it prints."""
    outputs = [new_output("stream", text=text)]
    return new_code_cell(source, outputs=outputs, execution_count=1, **kind)


CASES = {
    "same": (stored("print('a 1 2.50')", "a 1 2.50\n"), "passed"),
    "last digit": (stored("print('loss 1.2345')", "loss 1.2346\n"), "passed"),
    "carried digit": (stored("print('1.0000e-05')", "9.9999e-06\n"), "passed"),
    "two units": (stored("print('loss 1.2345')", "loss 1.2347\n"), "failed"),
    "integer": (stored("print('tokens 7')", "tokens 8\n"), "failed"),
    "word": (stored("print('the cat')", "the dog\n"), "failed"),
    "shape": (stored("print((2, 3))", "(2, 4)\n"), "failed"),
    "fewer places": (stored("print('1.234')", "1.23\n"), "failed"),
    "missing line": (stored("print('a')", "a\nb\n"), "failed"),
    "version": (stored("print('v1.23.4')", "v1.24.4\n"), "failed"),
    "exponent": (stored("print('1.50e-05')", "1.51e-05\n"), "passed"),
    "other exponent": (stored("print('1.50e-05')", "1.50e-04\n"), "failed"),
    "stderr": (
        stored("import sys; print('x', file=sys.stderr); print(1)", "1\n"),
        "passed",
    ),
    "html": (
        new_code_cell(
            "from IPython.display import HTML, display\n"
            "display({'text/html': '<td>0.125</td>'}, raw=True)",
            outputs=[new_output("display_data", {"text/html": "<td>0.126</td>"})],
            execution_count=1,
        ),
        "passed",
    ),
    "ignored": (
        stored("print('new')", "old\n", metadata={"tags": ["nbval-ignore-output"]}),
        "passed",
    ),
    "unrun": (new_code_cell("1 + 1"), "failed"),
    "unrun and ignored": (
        new_code_cell("1 + 1", metadata={"tags": ["nbval-ignore-output"]}),
        "failed",
    ),
    "error": (stored("1 / 0", ""), "failed"),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Run one notebook that holds every case; what pytest prints."""
    folder = tmp_path_factory.mktemp("rules")
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    cells = [cell for cell, _ in CASES.values()]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / "n.ipynb")
    (folder / "ch09").mkdir()
    nbformat.write(new_notebook(cells=cells[-1:]), folder / "ch09/exercises.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-v", "--color=no"]
    command += ["-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert "exercises.ipynb" not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(printed):
    """The outcome of each case by name."""
    found = re.findall(r"Cell (\d+) (PASSED|FAILED)", printed)
    assert [int(number) for number, _ in found] == list(range(1, len(CASES) + 1))
    return {
        name: outcome.lower() for name, (_, outcome) in zip(CASES, found, strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_rule(outcomes, name):
    assert outcomes[name] == CASES[name][1]


def test_a_failure_says_which_side_is_stored_and_where_it_is_in_jupyterlab(printed):
    number = 1 + list(CASES).index("word")
    found = printed.split(f"\n[{number}]: ")[1].split("\n____")[0]
    assert "\n--- stored in the notebook\n+++ printed now\n" in found
    assert "\n-the dog\n+the cat\n" in found
    number = 1 + list(CASES).index("unrun")
    found = printed.split(f"\n[{number}]: ")[1].split("Input:")[0]
    assert "never run: run it in JupyterLab and save" in found
    assert found.strip().endswith("tools.course run --write n.ipynb")


def test_no_test_reaches_the_network():
    with pytest.raises(RuntimeError, match="tests use no network, so example.org is"):
        requests.get("https://example.org", timeout=9)


@pytest.mark.parametrize("worker", [True, False])
def test_of_two_processes_the_longest_files_come_first(worker):
    paths = [
        list(ROOT.glob(f if "/" in f else f"*/{f}")) for f in conftest.LONGEST_FIRST
    ]
    assert all(len(found) == 1 for found in paths)  # each is there, and only once
    longest = [path for found in paths for path in found]
    a, b = ROOT / "tests/test_a.py", ROOT / "appendix_d_training/deeper.ipynb"
    given = [a, b, *reversed(longest), a]
    items = [SimpleNamespace(path=path) for path in given]
    config = SimpleNamespace(**{"workerinput": {}} if worker else {})
    conftest.pytest_collection_modifyitems(config, items)
    ordered = [*longest, a, b, a]
    assert [item.path for item in items] == (ordered if worker else given)
