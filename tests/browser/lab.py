"""A JupyterLab of its own for a test, and pages of it in a headless browser."""

import json
import math
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat

from tools.export import ROOT

LOOK = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "runs", "shards")
FENCE = re.compile(r"^(```+)(\w*)\n.*?^\1", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+).+?\1", re.DOTALL)
FORMULA = re.compile(r"(?<!\\)\$\$.+?\$\$|(?<!\\)\$[^$]+?(?<!\\)\$", re.DOTALL)


def find_chromium(own: str) -> str | None:
    """A Chromium or Chrome of this machine, or Playwright's `own` if it was fetched."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = filter(None, map(shutil.which, names))
    return next(found, own if Path(own).is_file() else None)


class Lab:
    """JupyterLab over a copy of the course, with no one's settings but its own.

    A copy, because JupyterLab saves what it has open; the settings put every cell on
    the page at once instead of the visible ones only.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "course"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*NOT_COPIED))
        settings = folder / "settings/@jupyterlab/notebook-extension"
        settings.mkdir(parents=True)
        (settings / "tracker.jupyterlab-settings").write_text(
            json.dumps({"windowingMode": "none"})
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.token = f"http://127.0.0.1:{port}", secrets.token_hex()
        places = {
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}"]
        options += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.root}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container
            options.append("--allow-root")
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                cwd=self.root,
                env={
                    **os.environ,
                    **{name: str(folder / place) for name, place in places.items()},
                    "JUPYTER_TOKEN": self.token,
                    "PYTHONPATH": str(self.root),  # the kernels import the copy
                    "OMP_NUM_THREADS": "1",
                },
                stdout=log,
                stderr=log,
            )

    def request(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def wait(self, seconds: float = 60) -> None:
        """Return as soon as the server answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.request("/api/status")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()}")

    def stop_kernels(self) -> None:
        for session in json.loads(self.request("/api/sessions")):
            self.request(f"/api/sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        self.process.terminate()  # takes its kernels along
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Visit:
    """One page of the course, open in a browser, and what was noticed about it."""

    def __init__(self, lab: Lab, page, path: str) -> None:
        self.page, self.expected = page, pieces(lab.root / path)
        self.noticed: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.noticed.append(f"script: {error}"))
        page.on("request", lambda request: self._see(request.url, lab.url))
        page.add_locator_handler(page.locator(".jp-Dialog"), self._answer)
        page.goto(f"{lab.url}/lab/tree/{path}?token={lab.token}&reset")
        page.wait_for_selector(
            ".jp-Notebook .jp-Cell, .jp-MarkdownViewer .jp-RenderedMarkdown"
        )

    def _hear(self, message) -> None:
        if message.type == "error":
            place = message.location.get("url", "").partition("?")[0]
            self.noticed.append(f"console: {message.text} {place}")

    def _see(self, url: str, own: str) -> None:
        here = (f"{own}/", own.replace("http", "ws", 1) + "/", "data:", "blob:")
        if not url.startswith(here):
            self.noticed.append(f"request off this machine: {url}")

    def _answer(self, dialog) -> None:
        """Note what a dialog asks that stands in the way, and accept it."""
        self.noticed.append(f"a dialog asks: {dialog.inner_text()}")
        dialog.locator(".jp-Dialog-button.jp-mod-accept").click()

    def faults(self, patience: float = 60) -> list[str]:
        """Everything wrong with the page, when it had `patience` seconds to appear."""
        end = time.monotonic() + patience
        while True:
            found = self.page.evaluate(LOOK, self.expected)
            if not found or time.monotonic() > end:
                return found + self.noticed
            time.sleep(0.5)

    def cell(self, i: int):
        """A cell of the notebook, counted from 0."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(i)

    def write(self, i: int, text: str) -> None:
        """Put a text in the place of what a cell holds."""
        self.cell(i).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(text)

    def run(self, i: int, seconds: float = 300) -> None:
        """Run one cell by its keys, and wait for its new number."""
        self.page.wait_for_selector("[data-status='idle']", state="attached")
        prompt = self.cell(i).locator(".jp-InputPrompt")
        before = shown = prompt.inner_text()
        pressed, end = -math.inf, time.monotonic() + seconds
        while shown == before or "*" in shown:
            if time.monotonic() > end:
                raise TimeoutError(f"cell {i} shows {shown!r} after {seconds} s")
            if shown == before and time.monotonic() > pressed + 10:  # or keys were lost
                self.cell(i).locator(".cm-content").click()
                self.page.keyboard.press("Control+Enter")
                pressed = time.monotonic()
            time.sleep(0.05)
            shown = prompt.inner_text()

    def outputs(self, i: int) -> list[list[str]]:
        """The kind and the text of each output of a cell; a widget is of no kind."""
        return self.cell(i).evaluate(
            """cell => [...cell.querySelectorAll(".jp-OutputArea-output")].map(
                output => [output.dataset.mimeType ?? "", output.innerText.trim()])"""
        )

    def run_all(self, seconds: float = 600) -> list[str]:
        """Run all cells from the menu, as a reader does; return those that did not."""
        self.page.wait_for_selector("[data-status='idle']", state="attached")
        for menu, item in (
            ("Edit", "Clear Outputs of All Cells"),  # and their numbers
            ("Run", "Run All Cells"),
        ):
            self.page.get_by_role("menuitem", name=menu, exact=True).click()
            self.page.get_by_role("menuitem", name=item, exact=True).click()
        prompts = self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
        end = time.monotonic() + seconds
        while True:
            time.sleep(0.5)
            numbers = [number.strip() for number in prompts.all_inner_texts()]
            running = numbers[0] == "[ ]:" or "[*]:" in numbers
            if not running or time.monotonic() > end:
                break
        wanted = [f"[{i}]:" for i, _ in enumerate(numbers, 1)]
        return [
            f"code cell {i} shows {number!r}"
            for i, (number, want) in enumerate(zip(numbers, wanted, strict=True), 1)
            if number != want
        ]


def pieces(path: Path) -> list[dict]:
    """Of each cell of a notebook, or of a Markdown file: what it should show."""
    if path.suffix == ".md":
        return [{"place": path.name, "pictures": 0} | markdown(path.read_text("utf-8"))]
    found = []
    for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
        shown = [each.get("data", {}) for each in cell.get("outputs", [])]
        drawings = sum("data:image/svg" in data.get("text/html", "") for data in shown)
        pictures = drawings + sum("image/png" in data for data in shown)
        text = cell.source if cell.cell_type == "markdown" else ""
        found.append({"place": f"cell {i}", "pictures": pictures} | markdown(text))
    return found


def markdown(text: str) -> dict[str, int]:
    """How many formulas and diagrams a text has."""
    diagrams = [match[2] for match in FENCE.finditer(text)].count("mermaid")
    prose = CODE.sub("", FENCE.sub("", text))
    return {"formulas": len(FORMULA.findall(prose)), "diagrams": diagrams}
