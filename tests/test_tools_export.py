"""The exporter: what it writes, what it refuses, how it notices stale files."""

import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import export

TITLE = "# Chapter 9: Testing\n\nYou will be able to test `anything`.\n\nMore text."


@pytest.fixture
def course(tmp_path):
    """A function that writes chapter 9's notebook from cell texts, and its folder."""

    def write(*cells, name="testing", title=TITLE):
        folder = tmp_path / "ch09_testing"
        folder.mkdir(exist_ok=True)
        notebook = new_notebook(
            cells=[new_markdown_cell(title), *map(new_code_cell, cells)]
        )
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
        nbformat.write(notebook, folder / f"{name}.ipynb")
        return tmp_path

    return write


def exported(root, name="testing"):
    assert export.main([], root) == 0
    return (root / f"ch09_testing/{name}.py").read_text(encoding="utf-8")


def refusal(root):
    with pytest.raises(export.ExportError) as caught:
        export.export_all(root)
    return str(caught.value)


def test_module_reads_as_if_written_by_hand(course):
    root = course(
        "#| export\nimport math\nfrom collections import deque",
        "#| export\nimport math\n# Why three: it is a crowd.\nLIMIT = 3",
        "print('not exported')",
        '#| export\ndef area(r):\n    """Area."""\n    return math.pi*r**2  # eq. 9.1',
        "#| export\ndef _hidden(): return deque()",
    )
    assert exported(root) == (
        '"""Chapter 9: Testing.\n\nYou will be able to test anything.\n\n'
        "Exported from testing.ipynb, which explains every line: change it there, then "
        'run\n`python -m tools.export`.\n"""\n\n'
        "import math\nfrom collections import deque\n\n"
        '__all__ = [\n    "LIMIT",\n    "area",\n]\n\n\n'
        "# Why three: it is a crowd.\nLIMIT = 3\n\n\n"
        'def area(r):\n    """Area."""\n    return math.pi * r**2  # eq. 9.1\n\n\n'
        "def _hidden():\n    return deque()\n"
    )


def test_class_grown_over_cells_becomes_one_class(course):
    root = course(
        '#| export\nclass Stack:\n    """A stack."""\n\n'
        "    def __init__(self):\n        self.items = []",
        "Stack().items",
        '#| export\nclass Stack(Stack):\n    def push(self, x):\n        """Push."""\n'
        "        self.items.append(x)  # on top",
    )
    text = exported(root)
    assert text.count("class Stack") == 1
    namespace = {}
    exec(text, namespace)
    stack = namespace["Stack"]()
    stack.push(1)
    assert stack.items == [1]
    assert namespace["Stack"].__mro__[1] is object


def test_a_later_part_of_a_class_may_write_a_method_again(course):
    root = course(
        '#| export\nclass Stack:\n    """A stack."""\n\n'
        "    def __init__(self):\n        self.items = [0]\n\n"
        '    @property\n    def top(self):\n        """On top."""\n'
        "        return None\n\n"
        '    def size(self):\n        """How many."""\n        return len(self.items)',
        "#| export\nclass Stack(Stack):\n    @property\n    def top(self):\n"
        '        """On top."""\n        return self.items[-1]',
    )
    text = exported(root)
    assert text.count("def top") == text.count("@property") == 1
    namespace = {}
    exec(text, namespace)
    assert namespace["Stack"]().top == 0 and namespace["Stack"]().size() == 1


def test_export_is_repeatable_and_check_is_clean(course, capsys):
    root = course("#| export\nLIMIT = 3")
    first = exported(root)
    assert exported(root) == first
    assert export.main(["--check"], root) == 0


def test_check_names_a_stale_file_and_writes_nothing(course, capsys):
    root = course("#| export\nLIMIT = 3")
    before = exported(root)
    course("#| export\nLIMIT = 4")
    capsys.readouterr()
    assert export.main(["--check"], root) == 1
    assert capsys.readouterr().out == "stale: ch09_testing/testing.py\n"
    assert (root / "ch09_testing/testing.py").read_text(encoding="utf-8") == before


def test_unused_import_stays_out_of_the_module(course):
    root = course("#| export\nimport os\nimport math\nTAU = 2 * math.pi")
    assert "import os" not in exported(root)


DOC = '    """Doc."""\n'


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["%matplotlib inline"], "magic '%matplotlib inline'"),
        (["!ls"], "magic '!ls'"),
        (["print(1)"], r"'print\(1\)' is neither an import nor a definition"),
        (["for i in range(3): pass"], "neither an import"),
        (["if True:\n    X = 1"], "neither an import"),
        (["model = 3"], "'model = 3' is neither"),
        (["def f(): pass"], "'f' has no docstring"),
        (["class C: pass"], "'C' has no docstring"),
        ([f"class C:\n{DOC}    def m(self): pass"], "C.m has no docstring"),
        (["X = 1", "X = 2"], "'X' is exported already by .*code cell 1"),
        ([f"class C(C):\n{DOC}"], "adds to a class that no earlier cell"),
        ([f"class C:\n{DOC}", f"class C(C):\n{DOC}"], "a part that adds to it"),
        (
            [
                f"class C:\n{DOC}    def m(self):\n    {DOC}",
                f"class C(C):\n    def m(self):\n    {DOC}        super().m()",
            ],
            "C.m calls the version that it replaces",
        ),
        (["def f(:"], "code cell 1: invalid syntax"),
        (["X = undefined_name"], "undefined_name"),
        (["from shared import data\nX = data"], "imports a whole module"),
        (["import shared.data\nX = shared.data"], "imports a whole module"),
        (["from shared.data import *"], "imports a whole module"),
        (["from ch03_attention import guards"], "imports a whole module"),
        (["import ch03_attention.guards"], "imports a whole module"),
        (["from ch03_attention.guards import *"], "imports a whole module"),
    ],
)
def test_refusals_name_notebook_cell_and_reason(course, cells, reason):
    message = refusal(course(*("#| export\n" + cell for cell in cells)))
    assert "ch09_testing/testing.ipynb" in message
    assert re.search(reason, message), message


def test_name_exported_by_two_notebooks_is_refused(course):
    course("#| export\nLIMIT = 3")
    root = course("#| export\nLIMIT = 4", name="other")
    assert "'LIMIT' is exported already by ch09_testing/testing.ipynb" in refusal(root)


GROWN = (
    '#| export\nimport math\nclass Stack:\n    """A stack."""\n\n'
    "    def __init__(self):\n        self.items = [math.pi]",
    '#| export\ndef first():\n    """First."""',
)
DEEPER = (
    "from ch09_testing.testing import Stack",
    "#| export\nimport os\nclass Stack(Stack):\n    def push(self, x):\n"
    '        """Push."""\n        self.items.append(x + os.sep)',
    '#| export\ndef last():\n    """Last."""\n    return Stack()',
)


@pytest.mark.parametrize("name", ["deeper", "testing_deeper"])
def test_a_deeper_notebook_adds_to_the_module_of_its_main_one(course, name):
    course(*GROWN)
    alone = exported(course(*GROWN))
    root = course(*DEEPER, name=name, title="# Deeper\n\nYou will see why.")
    text = exported(root)
    assert f"Exported from testing.ipynb and {name}.ipynb, which explain every" in text
    assert text.startswith('"""Chapter 9: Testing.\n\nYou will be able to test')
    assert "deeper" not in alone and "which explains every" in alone
    assert text.index("import math\nimport os") < text.index("class Stack")
    assert re.findall(r"^(?:class|def) (\w+)", text, re.M) == ["Stack", "first", "last"]
    assert '__all__ = [\n    "Stack",\n    "first",\n    "last",\n]' in text
    namespace = {}
    exec(text, namespace)
    stack = namespace["last"]()
    stack.push("a")
    assert len(stack.items) == 2
    assert not (root / f"ch09_testing/{name}.py").exists()
    assert export.main(["--check"], root) == 0


def test_a_deeper_notebook_that_exports_nothing_changes_nothing(course):
    alone = exported(course(*GROWN))
    root = course("print(1)", "#| export\nimport os", name="deeper", title="Free.")
    assert exported(root) == alone


def test_a_deeper_notebook_may_be_the_only_one_that_exports(course):
    course("print(1)")
    root = course("#| export\nLIMIT = 3", name="deeper", title="Free.")
    text = exported(root)
    assert "Exported from deeper.ipynb, which explains" in text
    assert text.startswith('"""Chapter 9: Testing.') and "LIMIT = 3" in text


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["import math\nLIMIT = 4"], "'LIMIT' is exported already by .*testing.ipynb"),
        (["class C(C):\n    X = 1"], r"class C\(C\) adds to a class that no earlier"),
        (["from ch09_testing.testing import LIMIT"], "imports from the same module"),
        (["from shared.ch09 import LIMIT"], "imports from the same module"),
    ],
)
def test_refusals_of_a_deeper_notebook_name_it(course, cells, reason):
    course("#| export\nLIMIT = 3")
    root = course(*("#| export\n" + cell for cell in cells), name="deeper")
    message = refusal(root)
    assert message.startswith("ch09_testing/deeper.ipynb, code cell 1: ")
    assert re.search(reason, message), message


def test_a_deeper_notebook_belongs_to_exactly_one(course):
    course("1", name="one")
    root = course("1", name="two_deeper")
    assert re.search("two_deeper.ipynb: there is no two.ipynb", refusal(root))
    course("1", name="two")
    course("1", name="solutions")
    course("1", name="exercises")
    root = course("1", name="deeper")
    message = refusal(root)
    assert "/deeper.ipynb: the folder has one.ipynb and two.ipynb, so" in message
    assert "solutions" not in message and "exercises" not in message
    for name in ("one", "two_deeper", "two"):
        (root / f"ch09_testing/{name}.ipynb").unlink()
    assert "the folder has no other notebook" in refusal(root)


def test_title_and_promise_are_required(course):
    assert "first cell" in refusal(course("#| export\nX = 1", title="Hello"))


def test_refusal_on_the_command_line_writes_nothing(course, capsys):
    root = course("#| export\nLIMIT = 3", "#| export\nprint(1)")
    assert export.main([], root) == 1
    assert "code cell 2" in capsys.readouterr().err
    assert list((root / "ch09_testing").glob("*.py")) == []


def test_exercises_are_solutions_without_answers_and_outputs(course):
    answer = (
        "def double(x):\n    ### BEGIN SOLUTION\n    y = 2 * x\n    return y\n"
        "    ### END SOLUTION\n\nA = 1\n### BEGIN SOLUTION\nB = 2\n### END SOLUTION"
    )
    root = course(answer, "checks.double(double)", name="solutions")
    path = root / "ch09_testing/solutions.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].execution_count = 1
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="2\n")]
    nbformat.write(notebook, path)
    assert export.main([], root) == 0
    made = nbformat.read(root / "ch09_testing/exercises.ipynb", as_version=4)
    assert made.cells[1].source == "def double(x):\n    ...\n\nA = 1\n..."
    assert made.cells[1].outputs == []
    assert made.cells[1].execution_count is None
    assert made.cells[2].source == "checks.double(double)"


DOUBLE = """def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION"""


def in_use(path, answered, run):
    """Answer the exercise in a notebook, or run it, and add what JupyterLab adds."""
    notebook = nbformat.read(path, as_version=4)
    if answered:
        notebook.cells[1].source = "def double(x):\n    return 2 * x"
    if run:
        notebook.cells[1].execution_count = 1
        notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="right\n")]
    notebook.cells.append(nbformat.v4.new_code_cell("print(double(3))"))
    notebook.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
    nbformat.write(notebook, path)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("answered, run", [(True, True), (True, False), (False, True)])
def test_a_reader_s_answers_are_never_overwritten(course, capsys, answered, run):
    root = course(DOUBLE, "checks.double(double)", name="solutions")
    solutions = root / "ch09_testing/solutions.ipynb"
    exercises = root / "ch09_testing/exercises.ipynb"
    assert export.main([], root) == 0
    kept = in_use(exercises, answered, run)
    assert export.main(["--check"], root) == 0 and export.main([], root) == 0
    assert exercises.read_text(encoding="utf-8") == kept

    text = solutions.read_text(encoding="utf-8")
    solutions.write_text(text.replace("checks.double(", "checks.twice("))
    capsys.readouterr()
    assert export.main(["--check"], root) == 1
    assert export.main([], root) == 0
    printed = "stale: ch09_testing/exercises.ipynb; it has answers, so move it away"
    assert capsys.readouterr().out.count(printed) == 2
    assert exercises.read_text(encoding="utf-8") == kept
    exercises.unlink()
    assert export.main([], root) == 0
    assert "checks.twice(" in exercises.read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["no ids", "BOM", "older", "no marks"])
def test_answers_are_kept_in_any_form_of_the_file(course, capsys, change):
    root = course(DOUBLE, name="solutions")
    exercises = root / "ch09_testing/exercises.ipynb"
    assert export.main([], root) == 0
    book = json.loads(exercises.read_text(encoding="utf-8"))
    for cell in book["cells"]:
        if change in ("no ids", "older"):
            del cell["id"]
        if cell["cell_type"] == "code":
            cell["source"] = "".join(cell["source"]).replace("...", "my answer()")
            if change == "no marks":
                cell["metadata"] = {}
    if change == "older":
        book["nbformat_minor"] = 2
    text = "\ufeff" * (change == "BOM") + json.dumps(book)
    exercises.write_text(text, encoding="utf-8")
    capsys.readouterr()
    export.main([], root)
    assert exercises.read_text(encoding="utf-8") == text
    printed = "has answers" if change == "no marks" else "up to date"
    assert printed in capsys.readouterr().out


def test_solutions_that_were_read_in_an_editor_give_the_same_exercises(course):
    root = course(DOUBLE, name="solutions")
    path = root / "ch09_testing/solutions.ipynb"
    book = nbformat.read(path, as_version=4)
    book.metadata["language_info"] = {"name": "python"}
    plain = export.exercises_from(book)
    book.metadata["language_info"] = {"name": "python", "version": "3.13.1"}
    book.metadata["widgets"] = {"state": {}}
    for cell in book.cells:
        cell.metadata["execution"] = {"iopub.status.idle": "2030-01-01T10:00:00Z"}
    assert export.exercises_from(book) == plain


def test_an_exercise_that_asks_something_else_is_written_anew(course, capsys):
    root = course(DOUBLE, name="solutions")
    solutions = root / "ch09_testing/solutions.ipynb"
    assert export.main([], root) == 0
    text = solutions.read_text(encoding="utf-8")
    solutions.write_text(text.replace("def double(", "def twice("))
    assert export.main(["--check"], root) == 1
    assert export.main([], root) == 0
    assert capsys.readouterr().out.endswith("wrote: ch09_testing/exercises.ipynb\n")


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text("old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_notebooks_come_in_the_order_of_reading(tmp_path):
    order = [
        *("ch02_text_data/text_data", "ch02_text_data/text_data_deeper"),
        *("ch02_text_data/bpe", "ch02_text_data/bpe_deeper", "ch02_text_data/cpu"),
        "ch02_text_data/solutions",
        *("ch03_attention/zoo", "ch03_attention/deeper", "ch03_attention/solutions"),
        *("ch05_pretraining/pretraining", "ch05_pretraining/weights"),
        *("ch05_pretraining/long_run", "ch05_pretraining/solutions"),
        *("ch10_last/last", "appendix_e_lora/lora"),
    ]
    for name in [*sorted(order), "ch05_pretraining/exercises"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.ipynb").touch()
    found = export.chapter_notebooks(tmp_path)
    assert found == [tmp_path / f"{name}.ipynb" for name in order]


def test_the_course_is_exported():
    assert export.main(["--check"]) == 0
