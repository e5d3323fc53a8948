"""Models' pages in Chromium, opened from a folder, as somebody opens one who got it.

pytest finds this file only when it is named: `make browser`. What a page computes is
compared with Python in tests/test_page.py; this is about what one sees.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from fixtures import browser  # noqa: F401 (used by name)

from shared.ch05 import load_storyteller
from shared.ch06 import GPTClassifier
from shared.page import save_page
from tools import page as tool

sys.path.append(str(Path(__file__).parent.parent))
from models import TINY, random_gpt  # noqa: E402

DONE = re.compile(r"^(The end|Stopped|As many tokens|No room)")
# Of the texts that one sees, those whose contrast with what is behind them is too low.
FAINT = """() => {
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => numbers(color).slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if ((numbers(color)[3] ?? 1) === 1) return color;
        }
    };
    return [...document.querySelectorAll("body *")].filter(e =>
        e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 &&
            n.textContent.trim()) && !e.matches(":disabled, option, .hidden *")
    ).filter(e => {
        const [a, b] = [getComputedStyle(e).color, behind(e)].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    }).map(e => `${e.tagName} ${e.id} ${e.textContent.slice(0, 20)}`);
}"""


def tiny(**changes):
    return random_gpt({**TINY, "vocab_size": 1000, "context_length": 64, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The pages, in a folder whose name is not easy."""
    folder = tmp_path_factory.mktemp("pages") / "ein Päckchen für dich #1 50%"
    tokens = load_storyteller()[1]
    for name in ("storyteller", "base"):
        model, tokenizer, settings = tool.load(name)
        save_page(model, tokenizer, folder / f"{name}.html", **settings)
    save_page(tiny(), tokens, folder / "small.html")
    asked = tiny(context_length=200)
    save_page(asked, tokens, folder / "ask.html", style="plain")
    torch.manual_seed(1)
    classifier = GPTClassifier(tiny(), 2, tokens.eot_token)
    labels = ("not spam", "spam")
    save_page(classifier, tokens, folder / "judge.html", labels=labels)
    return folder


class Seen:
    """A page in a window, and what went wrong there."""

    def __init__(self, browser, path, width, scheme, scripts=True):  # noqa: F811
        self.context = browser.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            offline=True,
            java_script_enabled=scripts,
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.noticed, self.path = [], path
        self.page.on("request", self._see)
        self.page.on("console", lambda message: self.noticed.append(message.text))
        self.page.on("pageerror", lambda error: self.noticed.append(str(error)))
        self.page.goto(path.as_uri())

    def _see(self, request):
        own = (self.path.as_uri(), "blob:", "data:")
        if not request.url.startswith(own):
            self.noticed.append(f"request: {request.url}")

    def wait(self):
        self.page.locator("main").wait_for()
        return self

    def text(self, place):
        return self.page.locator(place).inner_text()

    def done(self):
        """Wait until it has told its story."""
        self.page.locator("#end").filter(has_text=DONE).wait_for()
        return self.text("#end")

    def tell(self, beginning, **settings):
        self.page.fill("#beginning", beginning)
        if settings:
            self.page.locator("details").evaluate("e => { e.open = true; }")
        for name, value in settings.items():
            self.page.fill(f"#{name}", str(value))
        self.page.click("#go")
        return self.done()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)


@pytest.fixture
def open_page(browser, files):  # noqa: F811
    seen = []

    def open_it(name, width=1280, scheme="light", **others):
        seen.append(Seen(browser, files / name, width, scheme, **others))
        return seen[-1]

    yield open_it
    for one in seen:
        one.context.close()
        assert not one.noticed, one.noticed


def test_it_tells_a_story_word_by_word(open_page):
    seen = open_page("storyteller.html").wait()
    seen.page.click("#go")
    seen.page.locator("#story span:nth-child(30)").wait_for()
    lengths = [seen.page.locator("#story span").count()]
    assert seen.button("Stop").is_enabled() or DONE.match(seen.text("#end"))
    assert re.match(r"The end \(\d+ tokens, \d+ a second\)", seen.done())
    lengths.append(seen.page.locator("#story span").count())
    story = seen.text("#story").strip()
    assert story.startswith("Once upon a time there was a fox named Zoe")
    assert lengths[0] <= lengths[1] > 60 and story[-1] in '.!?"'
    assert seen.page.locator("#bars li").count() == 8
    assert "CC0" in seen.text("#about") and "parameters" in seen.text("#facts")
    seen.page.wait_for_timeout(300)
    assert "The end" in seen.page.locator("#spoken").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["storyteller", "ask", "judge"])
def test_it_can_be_read_on_a_phone_and_a_desk(open_page, name, width, scheme):
    seen = open_page(f"{name}.html", width, scheme).wait()
    seen.page.fill("#beginning", "Zoe had a kite, and " + "x" * 90 + " too")
    seen.page.click("#go")
    if name == "judge":
        seen.page.locator("#most").filter(has_text="Moved").wait_for()
    else:
        seen.done()
        seen.page.locator("#story span").nth(4).click()
    for view in ("tokens", "attention") if name != "judge" else ():
        seen.page.get_by_role("radio", name=view).check()
        seen.page.wait_for_timeout(200)
        assert not seen.page.evaluate(FAINT)
    assert not seen.page.evaluate(FAINT)
    wide = "document.documentElement.scrollWidth - innerWidth"
    assert seen.page.evaluate(wide) <= 0


def test_another_word_can_be_chosen_and_the_story_goes_on_from_there(open_page):
    seen = open_page("storyteller.html").wait()
    seen.tell("Once upon a time there was a fox", temperature=0)
    before = seen.page.locator("#story span").all_inner_texts()
    seen.page.locator("#story span").nth(25).click()
    taken = seen.page.locator("#bars .taken")
    assert taken.locator(".word").inner_text().strip() == before[25].strip()
    other = seen.page.locator("#bars button:not(.taken)").first
    word = other.locator(".word").inner_text()
    other.click()
    seen.done()
    after = seen.page.locator("#story span").all_inner_texts()
    assert after[:25] == before[:25] and after[25].strip() == word.strip()
    assert after[25:] != before[25:]


def test_after_the_end_another_end_can_be_chosen(open_page):
    seen = open_page("storyteller.html").wait()
    assert seen.tell("Once upon a time there was a fox").startswith("The end")
    n = seen.page.locator("#story span").count()
    assert seen.text("#bars .taken .word").strip() == "(the end)"
    assert seen.button("Go on").is_disabled()
    seen.page.locator("#bars button:enabled").first.click()
    seen.done()
    assert seen.page.locator("#story span").count() > n


def test_heads_show_what_they_attend_to(open_page):
    seen = open_page("storyteller.html").wait()
    seen.tell("Once upon a time there was a fox", length=30)
    seen.page.locator("#story span").nth(20).click()
    seen.page.get_by_role("radio", name="attention").check()
    title = seen.page.locator("#seen_title")
    title.filter(has_text="Block 0, head 0").wait_for()
    shares = seen.page.locator("#weights_list .share").all_inner_texts()
    numbers = [float(share.split()[0]) for share in shares]
    assert len(shares) == 5 and numbers == sorted(numbers, reverse=True)
    seen.page.select_option("#block", "1")
    seen.page.select_option("#head", "3")
    title.filter(has_text="Block 1, head 3").wait_for()
    weight = "e => Number(getComputedStyle(e).getPropertyValue('--weight'))"
    spans = seen.page.locator("#story span")
    weights = [spans.nth(i).evaluate(weight) for i in range(30)]
    assert max(weights[:21]) == pytest.approx(0.9) and not any(weights[21:])


def test_keys_alone_reach_everything(open_page):
    seen = open_page("storyteller.html").wait()
    keys = seen.page.keyboard
    keys.press("Tab")
    assert seen.page.evaluate("document.activeElement.id") == "beginning"
    keys.press("Control+Enter")
    seen.done()
    for _ in range(20):
        keys.press("Tab")
        if seen.page.evaluate("document.activeElement.parentElement.id") == "story":
            break
    for key in ("End", "ArrowLeft", "ArrowUp", "Enter"):
        keys.press(key)
    place = "e => [...e.parentElement.children].indexOf(e)"
    n = seen.page.locator("#story span").count()
    assert seen.page.locator("#story .chosen").evaluate(place) == n - 12
    assert seen.page.locator("#story [aria-pressed=true]").count() == 1
    seen.page.locator("#bars button:enabled").first.wait_for()
    keys.press("Tab")
    assert seen.page.locator("#bars button:focus").count() == 1
    keys.press("Enter")
    seen.done()
    focus = seen.page.evaluate("document.activeElement.id")
    assert focus == "go"  # Stop, where it was, cannot be pressed any more


def test_every_control_has_a_name(open_page):
    for name in ("storyteller", "ask", "judge"):
        seen = open_page(f"{name}.html").wait()
        seen.page.locator("body").evaluate(
            "e => e.querySelectorAll('details').forEach(d => { d.open = true; })"
        )
        controls = seen.page.locator("main").locator("input, textarea, select, button")
        for control in controls.all():
            names = "e => (e.labels?.[0]?.textContent ?? e.textContent).trim()"
            assert control.evaluate(names), control
        assert seen.page.locator("h1").count() == 1


def test_stop_go_on_copy_and_reload(open_page):
    seen = open_page("base.html").wait()
    seen.page.check("#slowly")
    seen.page.click("#go")
    seen.page.locator("#story span:nth-child(12)").wait_for()
    seen.page.fill("#beginning", "typed while it tells")  # nothing freezes
    seen.page.click("#stop")
    assert seen.done().startswith("Stopped")
    n = seen.page.locator("#story span").count()
    seen.page.wait_for_timeout(1000)
    assert seen.page.locator("#story span").count() == n
    seen.page.uncheck("#slowly")
    seen.page.locator("details").evaluate("e => { e.open = true; }")
    seen.page.fill("#length", "10")
    seen.page.click("#more")
    seen.page.locator(f"#story span:nth-child({n + 10})").wait_for()
    seen.page.click("#copy")
    seen.button("Copied").wait_for()
    story = seen.page.locator("#story").text_content().strip()
    seen.page.fill("#beginning", "")
    seen.page.focus("#beginning")
    seen.page.keyboard.press("Control+v")
    assert seen.page.input_value("#beginning") == story
    seen.page.reload()
    seen.wait()
    assert "Once upon a time" in seen.page.input_value("#beginning")
    assert seen.tell("Once", length=5)


@pytest.mark.parametrize(
    "text",
    ["", "   ", "日本語 👩‍👩‍👧 <b>bold</b> \u202e", "word " * 4000, "x" * 20_000],
)
def test_odd_beginnings(open_page, text):
    seen = open_page("small.html").wait()
    seen.tell(text, length=5)
    shown = seen.page.locator("#story").text_content()
    assert shown.startswith(text[:20_000])
    assert seen.page.locator("#story b").count() == 0
    if len(text) > 10_000:
        assert "no longer reads the first" in seen.text("#end")


def test_settings_that_are_none_become_possible_ones(open_page):
    seen = open_page("small.html").wait()
    seen.tell("Zoe", temperature="", top_p="7", top_k="-3", seed="1.6", length="0")
    for name, value in {
        "temperature": "0.7",
        "top_p": "1",
        "top_k": "0",
        "seed": "2",
        "length": "1",
    }.items():
        assert seen.page.input_value(f"#{name}") == value


def test_it_answers(open_page):
    seen = open_page("ask.html").wait()
    assert seen.page.get_by_label("A text that it is about").count() == 1
    seen.page.click("#go")
    seen.page.locator("#status.error").wait_for()
    assert "Ask it something first" in seen.text("#status")
    seen.tell("Who has the kite?", matter="Zoe has it.", length=5)
    assert seen.text("#story").startswith("Who has the kite? Zoe has it.")
    assert seen.page.input_value("#temperature") == "0"
    seen.page.fill("#beginning", "why " * 500)
    seen.page.click("#go")
    seen.page.locator("#status.error").filter(has_text="Shorten it").wait_for()
    seen.tell("Why?", length=3)
    assert not seen.page.locator("#status").is_visible()


def test_it_judges(open_page):
    seen = open_page("judge.html").wait()
    assert seen.page.locator("#story").count() == 0
    seen.page.fill("#beginning", "You have WON a <i>kite</i>!")
    seen.button("Judge").click()
    seen.page.locator("#most").filter(has_text="Moved most by").wait_for()
    assert seen.text("#verdict") in ("spam", "not spam")
    assert seen.page.locator("#classes li").count() == 2
    assert seen.text("#moved") == "You have WON a <i>kite</i>!"
    assert seen.page.locator("#moved span[title]").count() == 5
    assert seen.text("#verdict") in seen.page.locator("#spoken").text_content()


@pytest.mark.parametrize("part", [0.3, 0.5, 0.97])
def test_a_page_that_was_cut_says_that_it_is_damaged(browser, files, tmp_path, part):  # noqa: F811
    whole = (files / "storyteller.html").read_bytes()
    path = tmp_path / "half.html"
    path.write_bytes(whole[: int(part * len(whole))])
    seen = Seen(browser, path, 1280, "light")
    status = seen.page.locator("#status").filter(has_text="damaged")
    status.wait_for()
    assert not seen.page.locator("main").is_visible()
    seen.context.close()


def test_without_scripts_it_says_what_to_do(open_page):
    seen = open_page("small.html", scripts=False)
    assert "runs no scripts" in seen.text("#status")


def test_the_base_tells_twenty_tokens_for_a_second_of_a_processor(open_page):
    seen = open_page("base.html").wait()
    devtools = seen.context.new_cdp_session(seen.page)
    devtools.send("Performance.enable")

    def seconds():
        metrics = devtools.send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "ProcessTime")

    seen.tell("Once upon a time there was a", length=20)
    begin = seconds()
    told = int(
        re.search(r"\((\d+)", seen.tell("Once there was a big dog", length=120))[1]
    )
    assert told > 30
    assert told / (seconds() - begin) > 20
