"""The course in a real JupyterLab, in a real browser: `make browser`.

pytest finds this file only when it is named: it takes minutes and needs a browser.
"""

import time

import nbformat
import pytest
from fixtures import *  # noqa: F403 (a second conftest.py would hide the first)
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from shared.drawings import Drawing
from tools.export import ROOT

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [
        *[ROOT / "README.md", ROOT / "data/README.md"],
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted(ROOT.glob("ch*_*/*.ipynb")),
        *sorted(ROOT.glob("appendix_*/*.ipynb")),
    ]
]
QUICK = [
    "appendix_a_pytorch/readiness.ipynb",
    "ch02_text_data/text_data.ipynb",
    "ch02_text_data/bpe.ipynb",
    "ch03_attention/attention.ipynb",
    "ch04_gpt_model/gpt_model.ipynb",
]


@pytest.mark.parametrize("path", PAGES)
def test_page_is_whole_and_runs_if_it_is_quick(visit, path):
    page = visit(path)
    faults = page.faults()
    if path in QUICK:
        faults += page.run_all()
        faults += page.faults(patience=10)
    assert not faults, "\n".join(faults)


def code(kind, **content):
    return new_code_cell("", outputs=[new_output(kind, **content)])


WIDGET = {
    "application/vnd.jupyter.widget-view+json": {"model_id": "0"},
    "text/plain": "VBox(children=(IntSlider(value=4),))",
}
# No one has trusted the notebook that this stands in: plain SVG would not be shown.
DRAWING = Drawing(50, 50, "A panel and nothing else.")._repr_mimebundle_()
# Every kind of fault that the test above should find, and words that tell of it.
CELLS = [
    (new_markdown_cell("# Some Title"), None),
    (new_markdown_cell("$x$ and `$y$` and \\$5, then\n\n$$\nz\n$$"), None),
    (new_markdown_cell("$\\nosuchcommand{x}$"), "maths: "),
    (new_markdown_cell("$x^1^2$"), "maths: "),
    (new_markdown_cell("$\\frac{1$"), "formulas"),
    (new_markdown_cell("$x$, which <code>$y$</code> hides"), "formulas"),
    (new_markdown_cell("```mermaid\nflowchart LR\n  a --> b\n```"), None),
    (new_markdown_cell("```mermaid\nflowchart LR\n  a --> --> b\n```"), "diagrams"),
    (new_markdown_cell("![nothing](missing.png)"), "is not there"),
    (new_markdown_cell("![far](http://example.invalid/picture.png)"), "is not there"),
    (new_markdown_cell("[a chapter](../ch03_attention/attention.ipynb)"), None),
    (new_markdown_cell("[no chapter](../ch03_attention/missing.ipynb)"), "not there"),
    (new_markdown_cell("[above](#Some-Title)"), None),
    (new_markdown_cell("[nowhere](#No-Title)"), "nowhere on the page"),
    (
        code("error", ename="ValueError", evalue="no", traceback=["ValueError: no"]),
        "ValueError",
    ),
    (code("stream", name="stderr", text="UserWarning: old"), "UserWarning"),
    (code("stream", name="stdout", text="all is well"), None),
    (code("display_data", data=DRAWING), None),
    (code("display_data", data={"image/png": "bm8gcGljdHVyZQ=="}), "pictures"),
    (code("display_data", data=WIDGET), "a widget that is not there"),
]
ELSEWHERE = [
    "request off this machine: http://example.invalid/picture.png",
    "console: Failed to load resource",
]


@pytest.fixture
def faulty(lab, visit):
    """Opens a notebook of given cells."""

    def open_it(cells):
        kernel = {"name": "python3", "display_name": "Python 3"}
        notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, lab.root / "ch02_text_data/faulty.ipynb")
        return visit("ch02_text_data/faulty.ipynb")

    return open_it


def misjudged(faults):
    """Cells of CELLS with other faults than they have, and ELSEWHERE's if not found."""
    found = []
    for i, (_, says) in enumerate(CELLS):
        of_cell = [fault for fault in faults if fault.startswith(f"cell {i}: ")]
        told = any(says in fault for fault in of_cell) if says else not of_cell
        found += [] if told else [(i, says, of_cell)]
    return found + [s for s in ELSEWHERE if not any(s in fault for fault in faults)]


def test_every_fault_is_found(faulty):
    page = faulty([cell for cell, _ in CELLS])
    end = time.monotonic() + 120  # formulas and diagrams take their time
    while (wrong := misjudged(page.faults(patience=1))) and time.monotonic() < end:
        pass
    assert not wrong


def test_cells_that_fail_or_never_run_are_found(faulty):
    # A failure drops the cells that wait for the kernel, so the third has to arrive
    # before the second fails.
    failing = "import time\ntime.sleep(3)\n1 / 0"
    page = faulty([new_code_cell(source) for source in ("1 + 1", failing, "2 + 2")])
    assert page.run_all() == ["code cell 3 shows '[ ]:'"]
    assert any("ZeroDivisionError" in fault for fault in page.faults(patience=1))
