"""The web site without Sphinx: its pages, their order, hints, links."""

import ast
import base64
import re

import nbformat
import pytest

from tools import site
from tools.export import ROOT, chapter_notebooks, goes_deeper

ENTRIES = site.contents()
FILES = site.sources()


def targets(entries):
    return [entry.split("<")[-1].rstrip(">") for entry in entries]


def reached():
    """The pages of the table of contents, in the order in which one reads them."""
    found = ["index"]
    below = {site.docname(path): pages for path, pages in site.belongs_to().items()}
    for entry in [name for entries in ENTRIES.values() for name in targets(entries)]:
        found += [entry, *map(site.docname, below.get(entry, []))]
        if entry == "api/index":
            found += [f"api/{shared}" for shared in site.passed_on()]
    return found


def pages_of(kind):
    return [path for path in site.notebooks() if path.name == f"{kind}.ipynb"]


def test_every_page_is_in_the_table_of_contents_once():
    pages = [name for name in FILES if name.endswith((".md", ".ipynb"))]
    solutions = set(map(site.docname, pages_of("solutions")))
    names = {name.rsplit(".", 1)[0] for name in pages}
    assert len(reached()) == len(set(reached()))
    assert set(reached()) == names - solutions


def test_every_notebook_and_text_of_the_course_is_a_page():
    texts = [*ROOT.glob("docs/*.md"), *ROOT.glob("data/**/*.md")]
    for path in [*chapter_notebooks(), *pages_of("exercises"), *texts]:
        assert path.relative_to(ROOT).as_posix() in FILES


def test_chapters_come_in_order_with_what_goes_deeper_behind_them():
    order = reached()
    shown = ["docs/introduction", "ch02_text_data/text_data", "ch02_text_data/bpe"]
    shown += ["ch02_text_data/bpe_deeper", "ch02_text_data/exercises"]
    shown += ["ch03_attention/attention", "ch05_pretraining/long_run"]
    shown += ["appendix_a_pytorch/pytorch", "appendix_f_speed/writing", "glossary"]
    assert sorted(shown, key=order.index) == shown
    for path in filter(goes_deeper, site.notebooks()):
        main = site.main_notebook(path)
        assert order.index(site.docname(path)) == order.index(site.docname(main)) + 1


def test_entries_are_short():
    chapters = ENTRIES["Chapters"]
    assert chapters[0] == "2 Text data <ch02_text_data/text_data>"
    assert not any("Chapter" in entry for entry in chapters)


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".ipynb")])
def test_a_notebook_s_page_says_how_to_run_it_and_shows_what_is_stored(name):
    page = nbformat.reads(FILES[name], as_version=4)
    stored = nbformat.read(ROOT / name, as_version=4)
    first = page.cells[0].source
    assert first.startswith("# ") and "`make lab`" in first and f"`{name}`" in first
    if name.endswith("exercises.ipynb"):
        assert "[Solutions](solutions.ipynb)" in first
    code = [cell.source for cell in stored.cells if cell.cell_type == "code"]
    assert code == [cell.source for cell in page.cells if cell.cell_type == "code"]
    for cell in page.cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            assert "image/png" not in shown
            assert (
                "<img" not in shown.get("text/html", "")
                or 'alt="' in shown["text/html"]
            )


def test_a_figure_keeps_its_alt_text_and_its_bytes():
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\0\0\2" + b"\0\0\0\1"
    png = base64.b64encode(header).decode()
    output = nbformat.v4.new_output(
        "display_data",
        {"image/png": png, "text/plain": "<Figure>"},
        metadata={"image/png": {"alt": 'A "grey" line & a dot.'}},
    )
    cell, files = nbformat.v4.new_code_cell("", outputs=[output]), {}
    site.show_figures(nbformat.v4.new_notebook(cells=[cell]), files)
    (name, picture), shown = *files.items(), cell.outputs[0].data["text/html"]
    assert picture.startswith(b"\x89PNG") and name.startswith("beside/figures/")
    assert f'src="{name.replace("beside", "..")}"' in shown and 'width="2"' in shown
    assert 'alt="A &quot;grey&quot; line &amp; a dot."' in shown


def test_every_export_has_its_place_among_the_names_to_import():
    pages = "\n".join(text for name, text in FILES.items() if name.startswith("api/"))
    for path in chapter_notebooks():
        module = path.with_suffix(".py")
        if not module.is_file():
            continue
        for name in site.exported_names(module):
            place = f"{path.parent.name}.{module.stem}.{name}"
            assert f":: {place}\n" in pages, place


def test_constants_are_shown_as_the_module_writes_them():
    shown = "\n".join(
        line.strip()
        for line in site.in_source(
            ROOT / "ch04_gpt_model/gpt_model.py", "GPT_CONFIG_124M"
        )[2:]
    )
    assert ast.parse(shown).body[0].targets[0].id == "GPT_CONFIG_124M"


@pytest.mark.parametrize(
    ("first", "time"),
    [
        ("**Runs** in about 12 seconds on two CPU cores.", "about 12 seconds"),
        ("It runs in about a\nminute and a half on", "about a minute and a half"),
        ("It takes one to four minutes on", "one to four minutes"),
        ("It takes three to four minutes on two", "three to four minutes"),
        ("It takes about three minutes on two cores, most of", "about three minutes"),
        ("A second evening makes it fast.", None),
    ],
)
def test_run_times_come_from_the_notebooks(first, time):
    assert site.run_time(first) == time


@pytest.mark.parametrize("path", chapter_notebooks(), ids=site.docname)
def test_a_chapter_s_page_says_how_long_it_runs(path):
    if path.stem not in ("solutions", "readiness"):
        name = path.relative_to(ROOT).as_posix()
        box = nbformat.reads(FILES[name], as_version=4).cells[0].source.split(":::")[1]
        assert re.search(r"It runs for .*(second|minute)", box)


def test_names_lead_to_the_notebooks_that_explain_them():
    page = FILES["api/shared.ch03.md"]
    assert "(../ch03_attention/attention.ipynb) explains every line." in page
    plain = site.explained(ROOT / "ch06_classification/sms.py")
    assert plain.startswith("The messages of chapter 6")


def test_links_to_the_front_page_lead_to_the_site_s():
    assert "](../index.md)" in FILES["docs/install.md"]
    assert "README.md)" not in FILES["docs/install.md"]


def test_terms_of_the_glossary_are_sorted_and_explained_once():
    text = FILES["glossary.md"].split("```{glossary}\n")[1].split("\n```")[0]
    blocks = [block.split("\n") for block in text.split("\n\n")]
    terms = [line for block in blocks for line in block if not line.startswith(" ")]
    firsts = [block[0].lower() for block in blocks]
    assert firsts == sorted(firsts) and len(terms) == len(set(terms))
    for block in blocks:
        assert block[-1].startswith("  ") and block[-1].endswith(".")


def test_writing_again_touches_nothing_and_removes_what_is_gone(tmp_path):
    site.write({"a/b.md": "one", "c.png": b"two"}, tmp_path)
    before = (tmp_path / "a/b.md").stat().st_mtime_ns
    site.write({"a/b.md": "one"}, tmp_path)
    assert (tmp_path / "a/b.md").stat().st_mtime_ns == before
    assert not (tmp_path / "c.png").exists()


GOOD = (
    '<a href="b.html#here">b</a><img src="x.png" alt="x"><a href="https://a.b">far</a>'
)


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (GOOD, None),
        ('<a href="c.html">c</a>', "c.html is not there"),
        ('<a href="b.html#there">b</a>', "nowhere on its page"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn"),
        ('<img src="x.png">', "no alt text"),
        ('<img src="gone.png" alt="x">', "gone.png is not there"),
    ],
)
def test_faults_of_a_site_are_found(tmp_path, page, fault):
    (tmp_path / "x.png").touch()
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    (tmp_path / "a.html").write_text(page)
    found = site.faults(tmp_path)
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]
