"""Running notebooks from the command line: storing, repeating, failing, reporting."""

import copy
import re
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import course

IGNORED = "nbval-ignore-output"


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook of code cells and returns its path."""

    def write(*cells, name="n"):
        path = tmp_path / f"{name}.ipynb"
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
        tagged("import time\nprint(time.perf_counter())", IGNORED),
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


# What a run has printed: a loss of a long training, its picture, and a count


def ran(loss=1, picture="AAAA", count=1):
    """A notebook after a run; its first cell may differ in every run."""
    book = new_notebook(
        cells=[
            new_markdown_cell("# T"),
            tagged("train()", IGNORED),
            new_code_cell("draw()"),
            new_code_cell("count()"),
        ],
        metadata={"language_info": {"name": "python", "version": "3.99"}},
    )
    shown = [
        new_output("stream", text=f"loss {loss}\n"),
        new_output("display_data", {"image/png": picture}),
        new_output("stream", text=f"{count}\n"),
    ]
    for cell, output in zip(book.cells[1:], shown, strict=True):
        cell.outputs = [output]
    return book


def stored(**shown):
    return course.tidy(ran(**shown), ran())


def loss_after(book, old):
    """Which loss is stored when `book` has been run, and `old` was stored before."""
    found = course.tidy(book, old)
    assert found.metadata.run_sha256 == course.run_id(found)
    assert "version" not in found.metadata.language_info
    return found.cells[1].outputs[0].text


def test_all_outputs_stay_or_all_are_replaced():
    assert loss_after(ran(loss=2), stored()) == "loss 1\n"  # nothing else differs
    assert loss_after(ran(loss=2, count=2), stored()) == "loss 2\n"
    assert loss_after(ran(loss=2, picture="BBBB"), stored()) == "loss 2\n"
    new = ran(loss=2)
    new.cells[0].source = "# Another title"
    found = course.tidy(new, stored())
    assert found.cells[0].source == "# Another title"
    assert found.cells[1].outputs[0].text == "loss 1\n"


def change_code(book):
    book.cells[1].source += "  # as before"


def change_text(book):
    book.cells[1].outputs[0].text = "loss 0\n"


def change_picture(book):
    book.cells[2].outputs[0].data["image/png"] = "CCCC"


def change_order(book):
    book.cells[1:] = book.cells[:0:-1]


def lose_the_id(book):
    del book.metadata["run_sha256"]


@pytest.mark.parametrize(
    "change", [change_code, change_text, change_picture, change_order, lose_the_id]
)
def test_what_was_changed_alone_is_noticed_and_replaced_whole(change):
    whole = stored()
    assert whole.metadata.run_sha256 == course.run_id(whole)
    book = copy.deepcopy(whole)
    change(book)
    assert book.metadata.get("run_sha256") != course.run_id(book)
    assert loss_after(ran(loss=2), book) == "loss 2\n"


# What JupyterLab writes when someone has read a notebook, run it and saved it


def read_in_jupyterlab(book, first=1):
    """A notebook as JupyterLab saves it: `first` is what its first cell was run as."""
    book = copy.deepcopy(book)
    for number, cell in enumerate(course.code_cells(book), start=first):
        cell.execution_count = number
        cell.metadata["execution"] = {"iopub.execute_input": "2030-01-01T10:00:00Z"}
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    noise = new_output("stream", name="stderr", text="UserWarning: a font is missing\n")
    view = {
        course.WIDGET: {"model_id": "ab12", "version_major": 2},
        "text/plain": "Box",
    }
    text = book.cells[1].outputs.pop(0).text
    book.cells[1].outputs[:0] = [
        new_output("display_data", view),
        new_output("stream", text=text[:3]),
        noise,
        new_output("stream", text=text[3:]),
    ]
    state = {"ab12": {"model_module": "@jupyter-widgets/controls", "state": {}}}
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    book.metadata["widgets"] = widgets
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "My Python"}
    book.metadata["language_info"] = {"name": "python", "version": "3.13.1"}
    return book


@pytest.fixture
def repository(tmp_path):
    """A notebook in a repository, as it was committed: its path."""
    path = tmp_path / "n.ipynb"
    book = stored()
    result = new_output("execute_result", {"text/plain": "7"}, execution_count=4)
    book.cells.append(new_code_cell("7", outputs=[result], execution_count=4))
    book.metadata["run_sha256"] = course.run_id(book)
    nbformat.write(book, path)
    own = ["-c", "user.name=A", "-c", "user.email=a@b", "-c", "core.autocrlf=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "n"]):
        subprocess.run(["git", *own, *arguments], cwd=tmp_path, check=True)
    return path


@pytest.mark.parametrize("first", [1, 9])
def test_a_run_that_shows_the_same_is_the_same_in_jupyterlab(repository, first):
    book = nbformat.read(repository, as_version=4)
    seen = read_in_jupyterlab(book, first)
    assert course.run_id(seen) == book.metadata.run_sha256
    seen.cells[1].outputs[-1].text += "x"
    assert course.run_id(seen) != book.metadata.run_sha256


def test_reading_a_notebook_changes_nothing_that_counts(repository):
    """Another machine prints another loss; what counts is the committed run."""
    book = nbformat.read(repository, as_version=4)
    seen = read_in_jupyterlab(book)
    seen.cells[1].outputs[-1].text = "s 1.5\n"
    assert not course.is_one_run(seen)
    nbformat.write(seen, repository)
    found = course.stored_run(repository)
    assert found == book and course.is_one_run(found)
    tidied = course.tidy(copy.deepcopy(book), seen)  # stored again: all is as it was
    assert tidied.cells[1].outputs == book.cells[1].outputs

    seen.cells[1].source += "  # and edited"
    nbformat.write(seen, repository)
    assert not course.is_one_run(course.stored_run(repository))


def test_an_output_that_was_edited_is_noticed_also_where_git_knows_better(repository):
    book = nbformat.read(repository, as_version=4)
    change_text(book)
    nbformat.write(book, repository)
    assert not course.is_one_run(course.stored_run(repository))


def test_what_jupyterlab_saved_and_someone_committed_counts(repository):
    book = read_in_jupyterlab(nbformat.read(repository, as_version=4))
    change_picture(book)
    nbformat.write(book, repository)
    own = ["git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qam", "m"]
    subprocess.run(own, cwd=repository.parent, check=True)
    assert not course.is_one_run(course.stored_run(repository))


def test_without_git_a_notebook_that_was_read_cannot_be_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    path = tmp_path / "n.ipynb"
    nbformat.write(stored(), path)
    assert course.is_one_run(course.stored_run(path))
    nbformat.write(read_in_jupyterlab(stored()), path)
    assert course.stored_run(path) is None


def test_a_failure_is_reported_stores_nothing_and_stops_no_other(notebook, capsys):
    bad = notebook(new_code_cell("print(1)"), new_code_cell("1 / 0"), name="bad")
    good = notebook(tagged("print('answer: 42')", "results"), name="good")
    before = bad.read_bytes()
    assert course.main(["run", "--write", str(bad), str(good)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: ZeroDivisionError: division by zero" in printed
    assert "1 / 0" in printed and "answer: 42" in printed
    assert bad.read_bytes() == before


def test_several_run_at_once_each_in_a_kernel_of_its_own(notebook, capsys):
    """The first waits for a file that the second writes."""
    wait = (
        "import pathlib, time\n"
        "while not pathlib.Path('second').exists(): time.sleep(0.05)\n"
        "print('name: first')"
    )
    first = notebook(tagged(wait, "results"), name="first")
    write = "import pathlib\npathlib.Path('second').touch()\nprint('name: second')"
    second = notebook(tagged(write, "results"), name="second")
    assert course.main(["run", "--jobs", "2", str(first), str(second)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("name: first") < printed.index("name: second")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "--jobs must be 1 or more, not 0"),
        (["ch03_attention/atention.ipynb"], "no notebook .*atention.ipynb"),
    ],
)
def test_what_cannot_be_run_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        course.main(["run", *arguments])
    assert re.search(message, capsys.readouterr().err)


def test_the_results_page_is_what_the_notebooks_store():
    """If not: `python -m tools.course results` writes it again."""
    assert course.RESULTS.read_text(encoding="utf-8") == course.results_page()
