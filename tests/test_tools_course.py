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
        new_code_cell("from shared.drawings import Drawing\nDrawing(9, 9, 'A panel.')"),
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
    assert b"data:image/svg+xml" in first and b"A panel." in first


# Each run adds a line to a file; what a cell shows depends on the number of lines.
COUNT = (
    "with open('count', 'a') as file: file.write('x')\nn = len(open('count').read())\n"
)
DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, n])\nplt.show()"


def texts(path):
    """What each code cell of a stored notebook shows."""
    cells = nbformat.read(path, as_version=4).cells[1:]
    return [
        "".join(
            o.get("text", "") + o.get("data", {}).get("image/png", "")
            for o in x.outputs
        )
        for x in cells
    ]


def test_a_picture_and_the_ignored_cell_it_shows_are_replaced_together(notebook):
    path = notebook(
        tagged(f"{COUNT}print('loss', n)", "nbval-ignore-output"), new_code_cell(DRAW)
    )
    course.run(path, write=True)
    first = texts(path)
    course.run(path, write=True)
    second = texts(path)
    assert (first[0], second[0]) == ("loss 1\n", "loss 2\n")
    assert first[1] != second[1]


def test_what_cannot_be_the_same_twice_stays_if_all_else_is_the_same(notebook):
    path = notebook(
        tagged(f"{COUNT}print('run', n)", "nbval-ignore-output"),
        new_code_cell("print(1 if n < 3 else 2)"),
        tagged("print('and', n)", "nbval-ignore-output"),
    )
    shown = []
    for _ in range(3):
        course.run(path, write=True)
        shown.append(texts(path))
    assert shown[0] == ["run 1\n", "1\n", "and 1\n"]
    assert shown[1] == shown[0]
    assert shown[2] == ["run 3\n", "2\n", "and 3\n"]


def change_code(stored):
    stored.cells[1].source += "\n"


def change_an_ignored_output(stored):
    stored.cells[1].outputs[0].text = "0.1\n"


def lose_the_id(stored):
    del stored.metadata["run_sha256"]


@pytest.mark.parametrize("change", [change_code, change_an_ignored_output, lose_the_id])
def test_what_is_no_longer_whole_is_replaced_whole(notebook, change):
    path = notebook(tagged(CLOCK, "nbval-ignore-output"), new_code_cell("1"))
    course.run(path, write=True)
    stored = nbformat.read(path, as_version=4)
    old = stored.cells[1].outputs[0].text
    change(stored)
    nbformat.write(stored, path)
    course.run(path, write=True)
    assert texts(path)[0] not in (old, "0.1\n")


def test_new_words_around_the_code_leave_the_outputs_as_they_are(notebook):
    path = notebook(tagged(CLOCK, "nbval-ignore-output"), new_code_cell("1"))
    course.run(path, write=True)
    stored, old = nbformat.read(path, as_version=4), texts(path)
    stored.cells[0].source = "# Another title"
    stored.metadata["language_info"] = {"name": "python", "version": "3.99"}
    nbformat.write(stored, path)
    course.run(path, write=True)
    assert texts(path) == old
    assert "3.99" not in path.read_text(encoding="utf-8")
    assert "Another title" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["text", "picture", "code", "order"])
def test_the_run_s_id_tells_if_anything_was_changed_alone(notebook, kind):
    path = notebook(new_code_cell("n = 2\nprint(n)"), new_code_cell(DRAW))
    course.run(path, write=True)
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata["run_sha256"] == course.run_id(stored)
    printed, drawn = stored.cells[1], stored.cells[2]
    if kind == "text":
        printed.outputs[0].text = "3\n"
    elif kind == "picture":
        drawn.outputs[0].data["image/png"] = "AAAA"
    elif kind == "code":
        drawn.source += "  # as before"
    else:
        stored.cells[1:] = [drawn, printed]
    assert stored.metadata["run_sha256"] != course.run_id(stored)


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
