"""The web site as a reader's browser shows it: `make site`, then `make browser`.

pytest finds this file only when it is named: it takes minutes and needs a browser.
"""

import http.server
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from fixtures import browser  # noqa: F401 (used by name)
from lab import CODE, FENCE, FORMULA

from tools.export import ROOT

SITE = ROOT / "build/site"
PAGES = [
    path.relative_to(SITE).as_posix()
    for path in sorted(SITE.rglob("*.html"))
    if "_static" not in path.parts  # the theme's templates
]
CHAPTER = "ch03_attention/attention.html"
LOOK = """expected => {
    const faults = [];
    const all = what => [...document.querySelectorAll(what)];
    const shows = img => img.complete && img.naturalWidth > 0;
    for (const img of all("article img, article image")) {
        if (img.loading === "lazy") img.loading = "eager";
        if (!shows(img)) faults.push(`image ${img.src.slice(0, 80)} is not there`);
        if (!img.alt) faults.push(`no alt text: ${img.src.slice(0, 80)}`);
    }
    const formulas = all("article .math").length;
    const typeset = all("article .math mjx-container").length;
    if (formulas !== typeset) faults.push(`${typeset} of ${formulas} formulas`);
    for (const error of all("mjx-merror, [data-mjx-error], mjx-container [fill='red']"))
        faults.push(`maths: ${error.closest("mjx-container").textContent}`);
    const diagrams = all("pre.mermaid").length;
    const drawn = all("pre.mermaid svg[role^='flowchart'], pre.mermaid svg").length;
    if (diagrams !== drawn) faults.push(`${drawn} of ${diagrams} diagrams`);
    for (const error of all("pre.mermaid .error-text"))
        faults.push(`diagram: ${error.textContent}`);
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    if (wide > 0) faults.push(`${wide} pixels wider than the window`);
    return faults;
}"""

pytestmark = pytest.mark.skipif(not PAGES, reason="needs build/site: `make site`")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments, **others):
        super().__init__(*arguments, directory=str(SITE), **others)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def visit(browser, address):  # noqa: F811
    """Opens a page of the site, and returns it with a list of what went wrong."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    noticed = []

    def see(request):
        if not request.url.startswith((address, "data:", "blob:")):
            noticed.append(f"request off this machine: {request.url}")

    def hear(message):
        if message.type in ("error", "warning"):
            noticed.append(f"console: {message.text}")

    page.on("request", see)
    page.on("console", hear)
    page.on("pageerror", lambda error: noticed.append(f"script: {error}"))

    def open_it(path, mode="light", width=1400, base=address):
        page.set_viewport_size({"width": width, "height": 900})
        page.add_init_script(
            f"localStorage.setItem('mode', '{mode}');"
            f"localStorage.setItem('theme', '{mode}')"
        )
        page.goto(base + path)
        return page, noticed

    yield open_it
    page.close()


def faults(page, noticed, seconds=120):
    """What is wrong with a page when it had some seconds to appear."""
    for _ in range(seconds * 2):
        found = page.evaluate(LOOK)
        if not found:
            break
        page.wait_for_timeout(500)
    return found + noticed


@pytest.mark.parametrize("path", PAGES)
def test_page_is_whole_and_asks_no_other_machine(visit, path):
    found = faults(*visit(path))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", ["index.html", CHAPTER, "glossary.html"])
def test_dark_and_narrow(visit, path):
    page, noticed = visit(path, mode="dark", width=390)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not faults(page, noticed)


def test_a_chapter_says_how_to_run_it_where_one_lands(visit):
    page, _ = visit(CHAPTER)
    box = page.locator(".admonition.run-it")
    assert "make lab" in box.inner_text()
    assert box.bounding_box()["y"] < 900


def test_pages_have_as_many_formulas_and_diagrams_as_their_sources(visit):
    for path in ("docs/introduction", "docs/structure", "docs/scaling"):
        text = (ROOT / f"{path}.md").read_text(encoding="utf-8")
        page, _ = visit(f"{path}.html")
        names = [match[2] for match in FENCE.finditer(text)]
        formulas = FORMULA.findall(CODE.sub("", FENCE.sub("", text)))
        assert page.locator("pre.mermaid").count() == names.count("mermaid")
        assert page.locator("article .math").count() == len(formulas)


def test_previous_and_next_lead_through_the_course(visit):
    page, _ = visit("index.html")
    seen = []
    while page.locator("a.right-next").count():
        seen.append(page.evaluate("document.location.pathname"))
        page.locator("a.right-next").click()
        page.wait_for_load_state()
    assert len(seen) == len(set(seen)) > 60
    order = [unquote(urlsplit(path).path).lstrip("/") for path in seen]
    assert order.index("ch02_text_data/text_data.html") < order.index(CHAPTER)
    assert not any("solutions" in path for path in order)


def test_search_finds_a_class_and_its_chapter(visit):
    page, noticed = visit("search.html?q=MultiHeadAttention")
    page.wait_for_selector("#search-results li")
    addresses = page.locator("#search-results li a").evaluate_all(
        "links => links.map(link => link.href)"
    )
    assert any("api/shared.ch03" in address for address in addresses)
    assert any(CHAPTER in address for address in addresses)
    assert not noticed


def test_first_use_of_a_term_leads_to_the_glossary(visit):
    page, _ = visit(CHAPTER)
    link = page.locator("a.term-link").first
    assert link.get_attribute("title")
    link.click()
    page.wait_for_url("**/glossary.html#*")
    name = unquote(urlsplit(page.url).fragment)
    assert page.locator(f"[id='{name}']").count() == 1


def test_the_folder_can_be_read_without_a_server(visit):
    page, noticed = visit(CHAPTER, base=Path(SITE).as_uri() + "/")
    found = [fault for fault in faults(page, noticed) if "file://" not in fault]
    assert not found, "\n".join(found)
