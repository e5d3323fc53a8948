"""How pytest runs the course: tests without network, notebooks against their outputs.

nbval compares text exactly. But processors differ in the last digit of a sum, so here a
decimal may differ by one unit in its last printed place. Integers, words, shapes and
drawings (which are text inside) may not differ at all. Progress bars, warnings (stderr)
and figures are not compared. A cell that was never run fails. Code cells are counted
from 1, as JupyterLab does when it runs them all.
"""

import difflib
import os
import re
import socket

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

# Two threads that spin while they wait become many times slower beside a busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# nbval reads a cell's messages after the cell has ended, and of some thousand it loses
# the last. Progress bars send the most, so they report only every ten seconds.
os.environ.setdefault("TQDM_MININTERVAL", "10")

# Two processes share the files. Those that take twenty seconds or more come first, the
# longest at the head, so that both processes end at nearly the same time.
LONGEST_FIRST = [
    *("instructions.ipynb", "test_pretrain_run.py", "rewards.ipynb"),
    *("classification.ipynb", "pretraining.ipynb", "smollm2_deeper.ipynb"),
    *("test_bad_days.py", "lora.ipynb", "pretraining_deeper.ipynb", "smollm2.ipynb"),
    *("ch04_gpt_model/deeper.ipynb", "appendix_e_lora/deeper.ipynb"),
    *("training.ipynb", "modern_models.ipynb", "test_pretrain_tokenizer.py"),
    *("test_ch02_bpe.py", "test_exercises.py", "long_run_deeper.ipynb"),
    *("ch06_classification/deeper.ipynb", "ch07_instructions/deeper.ipynb"),
    *("speed.ipynb", "speed_deeper.ipynb", "gpt_model.ipynb"),
]

# The exercises have blank answers; the solutions, which they are made from, are run.
collect_ignore_glob = ["*/exercises.ipynb"]

DECIMAL = re.compile(r"(?<![\w.])-?\d+\.(\d{2,})(?:e([-+]?\d+))?(?![\w.]*\w)")
WIDGET = "application/vnd.jupyter.widget-view+json"


def place_in_order(item):
    """The place of a test's file in the list, or behind it."""
    path = item.path.as_posix()
    found = [n for n, end in enumerate(LONGEST_FIRST) if path.endswith(f"/{end}")]
    return found[0] if found else len(LONGEST_FIRST)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # one of pytest-xdist's processes
        items.sort(key=place_in_order)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Keep tests from other machines; if data is only there, a test is skipped."""
    usual = socket.getaddrinfo

    def look_up(host, *arguments, **others):
        if host not in (None, "", "localhost", "127.0.0.1", "::1"):
            raise RuntimeError(f"tests use no network, so {host} is not looked up")
        return usual(host, *arguments, **others)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        collector.__class__ = CourseNotebook


class CourseNotebook(IPyNbFile):
    """A notebook of nbval whose code cells are counted from 1."""

    def collect(self):
        for number, found in enumerate(super().collect(), start=1):
            cell = {"cell_num": number, "cell": found.cell, "options": found.options}
            yield CourseCell.from_parent(self, name=f"Cell {number}", **cell)


class CourseCell(IPyNbCell):
    """A cell of nbval that compares outputs by the course's rules."""

    def runtest(self):
        if self.cell.execution_count is None and not self.options["skip"]:
            name = os.path.relpath(self.path)
            self.raise_cell_error(
                "This cell was never run: run it in JupyterLab and save, or store a "
                f"whole run: .venv/bin/python -m tools.course run --write {name}"
            )
        super().runtest()

    def repr_failure(self, excinfo):
        """The cell by JupyterLab's number, and what to do if its output is right."""
        shown = super().repr_failure(excinfo)
        if isinstance(excinfo.value, NbCellError):
            shown = shown.replace(f"Cell {self.cell_num}:", f"[{self.cell_num}]:", 1)
        return shown

    def compare_outputs(self, test, ref, skip_compare=None):
        return super().compare_outputs(steady(test), steady(ref), skip_compare)

    def sanitize(self, s):
        s = super().sanitize(s)
        return TolerantText(s) if isinstance(s, str) else s

    def format_output_compare(self, key, left, right):
        """Show only the differences that matter, and which side is stored."""
        if not isinstance(left, str):
            super().format_output_compare(key, left, right)
            return
        right = align_decimals(right, left)
        lines = difflib.unified_diff(
            str(left).splitlines(),
            right.splitlines(),
            "stored in the notebook",
            "printed now",
            lineterm="",
        )
        shown = [line[:300] for line in lines]  # a drawing is one line of thousands
        self.comparison_traceback += [f"\nOutput {key!r} differs:\n", *shown]


class TolerantText(str):
    """Text that equals another if only the last digits of decimals differ."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return isinstance(other, str) and str.__eq__(align_decimals(self, other), other)

    def __ne__(self, other):
        return not self == other


def steady(outputs):
    """The outputs without progress bars and stderr, which differ in every run."""
    return [
        output
        for output in outputs
        if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
    ]


def align_decimals(text: str, reference: str) -> str:
    """`text`, with each decimal replaced by its partner if that is close enough.

    The partner of the n-th decimal of `text` is the n-th of `reference`. It is close
    enough if it has as many places and differs by at most one unit in the last.
    """
    partners = DECIMAL.finditer(reference)

    def replace(match):
        partner = next(partners, None)
        return partner[0] if partner and is_close(match, partner) else match[0]

    return str(DECIMAL.sub(replace, str(text)))


def is_close(left: re.Match, right: re.Match) -> bool:
    """Whether two decimals have as many places and are at most one unit apart."""
    if len(left[1]) != len(right[1]) or (left[2] is None) != (right[2] is None):
        return False
    exponent = max(int(left[2] or 0), int(right[2] or 0))
    unit = 10.0 ** (exponent - len(left[1]))
    return abs(float(left[0]) - float(right[0])) <= 1.001 * unit
