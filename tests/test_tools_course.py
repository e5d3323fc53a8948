"""Running notebooks from the command line: storing, repeating, failing, reporting."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import course

CLOCK = "import time\nprint(time.perf_counter())"


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook of code cells and returns its path."""

    def write(*cells):
        path = tmp_path / "n.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell("# T"), *cells]), path)
        return path

    return write


def tagged(source, tag):
    return new_code_cell(source, metadata={"tags": [tag]})


def test_storing_twice_changes_no_byte(notebook):
    path = notebook(
        new_code_cell("import sys\nprint(1)\nprint('noi' + 'se', file=sys.stderr)"),
        new_code_cell("from tqdm.auto import tqdm\nfor _ in tqdm(range(2)): pass"),
        new_code_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"),
        tagged(CLOCK, "nbval-ignore-output"),
        tagged("print('answer: 42')", "results"),
    )
    outcome = course.run(path, write=True)
    assert outcome.error is None
    assert outcome.results == ["answer: 42"]
    first = path.read_bytes()
    course.run(path, write=True)
    assert path.read_bytes() == first
    assert b"noise" not in first
    assert b"widget-view" not in first
    assert b"image/png" in first


def test_changed_code_replaces_ignored_outputs_too(notebook):
    path = notebook(tagged(CLOCK, "nbval-ignore-output"))
    course.run(path, write=True)
    stored = nbformat.read(path, as_version=4)
    old = stored.cells[1].outputs[0].text
    stored.cells[1].source += "\n"
    stored.cells.append(new_code_cell("1"))
    nbformat.write(stored, path)
    course.run(path, write=True)
    assert nbformat.read(path, as_version=4).cells[1].outputs[0].text != old


def test_failure_is_reported_and_stores_nothing(notebook, capsys):
    path = notebook(new_code_cell("print(1)"), new_code_cell("1 / 0"))
    before = path.read_bytes()
    assert course.main(["run", "--write", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: ZeroDivisionError: division by zero" in printed
    assert "1 / 0" in printed
    assert path.read_bytes() == before


def test_one_failure_does_not_stop_the_others(notebook, tmp_path, capsys):
    bad = notebook(new_code_cell("1 / 0"))
    bad = bad.rename(tmp_path / "bad.ipynb")
    good = notebook(tagged("print('answer: 42')", "results"))
    assert course.main(["run", str(bad), str(good)]) == 1
    assert "answer: 42" in capsys.readouterr().out


def test_several_run_at_once_each_in_a_kernel_of_its_own(notebook, tmp_path, capsys):
    """The first waits for a file that the second writes."""
    wait = (
        "import pathlib, time\n"
        "while not pathlib.Path('second').exists(): time.sleep(0.05)\n"
        "print('name: first')"
    )
    first = notebook(tagged(wait, "results")).rename(tmp_path / "first.ipynb")
    write = "import pathlib\npathlib.Path('second').touch()\nprint('name: second')"
    second = notebook(tagged(write, "results")).rename(tmp_path / "second.ipynb")
    assert course.main(["run", "--jobs", "2", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("name: first") < printed.index("name: second")


def test_no_jobs_are_refused(capsys):
    with pytest.raises(SystemExit):
        course.main(["run", "--jobs", "0"])
    assert "--jobs must be 1 or more, not 0" in capsys.readouterr().err


def test_a_notebook_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        course.main(["run", "ch03_attention/atention.ipynb"])
    assert re.search("no notebook .*atention.ipynb", capsys.readouterr().err)
