"""A browser, a JupyterLab, and its pages: fixtures of both files of tests."""

import pytest
from lab import Lab, Visit, find_chromium


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: `make browser` installs it"
    )
    with playwright.sync_playwright() as driver:
        chromium = find_chromium(driver.chromium.executable_path)
        if chromium is None:
            pytest.skip("needs Chromium or Chrome")
        browser = driver.chromium.launch(executable_path=chromium)
        # One for all pages, so that JupyterLab's own code is fetched and compiled once.
        yield browser.new_context(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.wait()
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def visit(browser, lab):
    """Opens a page of the course; afterwards it is closed, and its kernel stopped."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    yield lambda path: Visit(lab, page, path)
    page.close()
    lab.stop_kernels()
