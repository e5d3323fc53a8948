"""What every stored notebook must be, beyond running: fresh, quiet and compared."""

import functools
import re

import pytest

from shared import data
from tools.course import is_one_run, name_of, stored_run
from tools.export import ROOT, chapter_notebooks, goes_deeper, main_notebook

NOTEBOOKS = chapter_notebooks()
IGNORING_TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception"}
MOST_IGNORED = 0.10  # of all code cells of the course
MOST_LINES = 40
# A cell may show a warning that it provoked, as it shows an error: "UserWarning: ...".
STRAY_WARNING = re.compile(r"^(?!UserWarning: ).*Warning", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES += [*sorted(ROOT.glob("site/*.md")), *sorted(ROOT.glob("data/**/README.md"))]
# What a text names, and where it stands: "sections 6.2 to 6.6", "equation 5.4".
NUMBER = r"[0-9A-Z][0-9a-z]*\.\d+"
KINDS = {
    "section": ("[Ss]ections?", rf"^## ({NUMBER}) "),
    "equation": (r"(?:eq\.|[Ee]quations?)", r"\\tag\{(.*?)\}"),
    "exercise": ("[Ee]xercises?", rf"^## Exercise ({NUMBER}): "),
}
OF_A_PAPER = re.compile(r"\b(?:19|20)\d\d\)?,? $")  # "Hu et al. (2021), section 4.1"
MACHINE_PATH = re.compile(r"/tmp/|/home/|/root/|/Users/|[A-Z]:\\|0x[0-9a-f]{8,}")


@functools.cache
def read(path):
    """The notebook as the course stores it, also if a reader has run and saved it."""
    return stored_run(path) or pytest.skip("only read, and no git knows what it was")


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def notebook(request):
    return request.param


def test_was_run_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_all_outputs_come_from_one_run(notebook):
    name = name_of(notebook)
    assert is_one_run(read(notebook)), (
        f"in {name} code or an output was changed alone. To store one whole run: "
        f".venv/bin/python -m tools.course run --write {name}. To drop the changes: "
        f"git checkout -- {name}"
    )


def test_stores_no_noise(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            shown = output.get("text", "") or str(
                {k: v for k, v in output.get("data", {}).items() if "image" not in k}
            )
            assert not MACHINE_PATH.search(shown), shown
            assert not STRAY_WARNING.search(shown), shown


def test_exceptions_to_comparison_are_tags_not_comments(notebook):
    for cell in code_cells(notebook):
        assert "NBVAL" not in cell.source


def test_cells_are_short_enough_to_read(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.source


def test_few_cells_escape_comparison():
    cells = [cell for path in NOTEBOOKS for cell in code_cells(path)]
    ignored = [c for c in cells if IGNORING_TAGS & set(c.metadata.get("tags", []))]
    assert len(ignored) < MOST_IGNORED * len(cells)


def test_every_chapter_reports_results():
    for path in NOTEBOOKS:
        tags = [
            tag for cell in code_cells(path) for tag in cell.metadata.get("tags", [])
        ]
        counts = {1} if path.name != "solutions.ipynb" else {0}
        if goes_deeper(path):
            counts = {0, 1}  # it may report something, and need not
        assert tags.count("results") in counts, path


def test_every_chapter_has_exercises():
    for folder in {path.parent for path in NOTEBOOKS}:
        assert (folder / "solutions.ipynb").is_file()
        assert (folder / "exercises.ipynb").is_file()


def test_exercises_give_no_answer_away():
    for path in NOTEBOOKS:
        if path.name == "solutions.ipynb":
            text = path.with_name("exercises.ipynb").read_text(encoding="utf-8")
            assert "BEGIN SOLUTION" not in text
            assert "BEGIN SOLUTION" in path.read_text(encoding="utf-8")


def test_short_story_is_about_as_long_as_the_course_says():
    assert 19_000 <= len(data.load_text("short-story")) <= 21_000


def texts(path):
    return "\n".join(x.source for x in read(path).cells if x.cell_type == "markdown")


def test_sections_are_numbered_without_a_gap(notebook):
    # "## 3.2 Title", or in a notebook that goes deeper also "## 2 Title"
    number = r"(?:\w+\.)?(\d+)" if goes_deeper(notebook) else r"\w+\.(\d+)"
    found = re.findall(rf"^## {number}\.? ", texts(notebook), re.MULTILINE)
    assert found == [str(n) for n in range(1, len(found) + 1)]


@functools.cache
def prose(path):
    """The text of a page, or of a notebook with the comments in its code."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    comments = [line for x in code_cells(path) for line in re.findall("# .*", x.source)]
    return "\n\n".join([texts(path), *comments])


def named(text, word, number=NUMBER):
    """The numbers after a word, each with its place: "sections 6.2 and 6.3", ..."""
    several = rf"{word}\s+({number}(?:(?:,|,? and|,? or| to)\s+{number})*)(?![\w.]*\w)"
    for found in re.finditer(several, text):
        if not OF_A_PAPER.search(text[: found.start()]):
            yield from ((x, found.end()) for x in re.findall(number, found[1]))


@functools.cache
def in_the_course(kind):
    """The numbers of all sections with a chapter's, all equations, or all exercises."""
    solutions = kind == "exercise"
    where = [x for x in NOTEBOOKS if (x.name == "solutions.ipynb") == solutions]
    return [x for path in where for x in re.findall(KINDS[kind][1], texts(path), re.M)]


def numbered_sections(path):
    """The sections of a deeper notebook, or a page, that have numbers of their own."""
    return set(re.findall(r"^## (\d+)\.? ", prose(path), re.MULTILINE))


def belongs_to(path, after):
    """Where "section 4", with this text after it, is: as a rule in the deeper notebook.

    Or in what it links to, or names: "[deeper, section 4](deeper.ipynb)".
    """
    link = re.match(r"[^\[\]]*\]\((\S+\.ipynb)\)", after)
    if link:
        return (path.parent / link[1]).resolve()
    name = re.match(r"\s+of\s+`(\S+\.ipynb)`", after)
    if name:
        all_of_it = [x for x in NOTEBOOKS if x.name == name[1]]
        return next((x for x in all_of_it if x.parent == path.parent), all_of_it[0])
    deeper = [x for x in NOTEBOOKS if goes_deeper(x) and main_notebook(x) == path]
    return deeper[0] if deeper else path


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_is_given_twice(kind):
    numbers = in_the_course(kind)
    assert numbers and len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_what_a_text_names_by_its_number_is_there(path):
    text = prose(path)
    for kind, (word, _) in KINDS.items():
        missing = {x for x, _ in named(text, word)} - set(in_the_course(kind))
        assert not missing, f"{kind} {', '.join(missing)} is nowhere in the course"
    for number, end in named(text, KINDS["section"][0], r"\d+"):
        where = belongs_to(path, text[end:])
        assert number in numbered_sections(where), f"{where.name}: no section {number}"


def test_each_equation_that_code_names_is_there(notebook):
    code = "\n".join(cell.source for cell in code_cells(notebook))
    equations = {x for x, _ in named(code, KINDS["equation"][0])}
    assert equations <= set(in_the_course("equation"))


def test_what_a_deeper_notebook_belongs_to_points_to_it():
    for path in filter(goes_deeper, NOTEBOOKS):
        assert f"]({path.name}" in texts(main_notebook(path)), path
