"""The playground's page: six tabs around the course's own models.

Panel builds it. Its server is Bokeh's on Tornado, which listens on one address, refuses
every WebSocket whose `Origin` is not the page's own and every request to another host
name, and serves all scripts and styles from its own package. (Gradio weighs as much,
and sends statistics unless it is told not to. Voila is lighter, but its page takes
fonts and MathJax from elsewhere, every open page has a Python process of its own, and
Jupyter's check of the Host header is turned off.)
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache

import panel as pn
import torch
from panel.io.resources import LOCAL_DIST

from playground import compute, draw, keep
from playground.compute import Sampling
from shared.ch02 import BPETokenizer
from shared.ch05 import load_base, load_base_tokenizer
from shared.ch07 import format_prompt
from shared.ch08 import SmolLM2Tokenizer, chat, load_smollm2
from shared.data import FILES, load_text, local_copy, remedy

# The second line forbids the browser every request to another machine.
TEMPLATE = """
{% extends base %}
{% block inner_head %}
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'self' 'unsafe-inline'
 'unsafe-eval' data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'">
<meta name="referrer" content="no-referrer">
<style>
:root {
  color-scheme: light dark;
  --ink: #1a1a1a; --quiet: #5a5f66; --paper: #ffffff; --card: #f6f7f9;
  --line: #d5d9de; --rail: #e4e7eb; --accent: #0072b2; --on-accent: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #eceff2; --quiet: #a7afb8; --paper: #15181c; --card: #1e2227;
    --line: #3b424a; --rail: #313840; --accent: #56b4e9; --on-accent: #10141a;
  }
}
:root {
  --design-background-color: var(--paper);
  --design-background-text-color: var(--ink);
  --design-surface-color: var(--card);
  --design-surface-text-color: var(--ink);
  --design-primary-color: var(--accent);
  --design-primary-text-color: var(--on-accent);
  --panel-background-color: var(--paper);
  --panel-on-background-color: var(--ink);
  --panel-surface-color: var(--card);
  --panel-on-surface-color: var(--ink);
  --panel-primary-color: var(--accent);
  --panel-on-primary-color: var(--on-accent);
  --panel-border-color: var(--line);
}
body { background: var(--paper); color: var(--ink); margin: 0;
  font-family: Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 14px 16px 40px; }
h1 { font-size: 26px; margin: 6px 0 2px; }
main > p { margin: 0 0 14px; color: var(--quiet); }
</style>
{{ super() }}
{% endblock %}
{% block contents %}
<main>
<h1>Playground</h1>
<p>The course's own models, on this machine. What you type is kept nowhere.</p>
{{ embed(roots.tabs) }}
</main>
{% endblock %}
"""
CONTROLS = """
:host { color: var(--ink); font: 15px Helvetica, Arial, sans-serif; }
.bk-input { background-color: var(--paper) !important; color: var(--ink) !important;
  border: 1px solid var(--line) !important; border-radius: 6px; font: inherit; }
.bk-input::placeholder { color: var(--quiet); opacity: 1; }
select.bk-input { color-scheme: light dark; }
.bk-btn { border-radius: 6px; font: inherit; border: 1px solid var(--line);
  background: var(--card); color: var(--ink); padding: 6px 14px; }
.bk-btn-primary { background: var(--accent); color: var(--on-accent);
  border-color: var(--accent); }
.bk-btn:hover:not(:disabled) { filter: brightness(1.08); }
.bk-btn[disabled], .bk-btn[disabled]:hover { opacity: 0.45;
  background: var(--card) !important; color: var(--ink) !important; }
.noUi-target { background: var(--rail); border: none; box-shadow: none; }
.noUi-connect { background: var(--accent) !important; }
.noUi-handle { background: var(--accent); border-color: var(--paper);
  box-shadow: none; }
progress { width: 100%; height: 12px; appearance: none; border: none; }
progress, progress::-webkit-progress-bar { background: var(--rail) !important;
  border-radius: 6px; box-shadow: none !important; }
progress::-webkit-progress-value { background: var(--accent) !important;
  border-radius: 6px; }
progress::-moz-progress-bar { background: var(--accent) !important;
  border-radius: 6px; }
"""
TABS = """
:host { color: var(--ink); }
:host { grid-template-columns: minmax(0, 1fr) !important; }
.bk-header { border-bottom: 1px solid var(--line) !important; margin-bottom: 14px; }
.bk-header, .bk-headers-wrapper, .bk-headers { overflow: visible !important;
  flex-wrap: wrap; min-width: 0; max-width: 100%; }
.bk-tab { color: var(--quiet) !important; border: none !important; padding: 8px 12px;
  font: 15px Helvetica, Arial, sans-serif; background: none !important; }
.bk-tab.bk-active { color: var(--ink) !important; font-weight: 600;
  box-shadow: inset 0 -3px 0 var(--accent); }
.bk-tab:hover { color: var(--ink) !important; }
"""
BEGINNING = "Once upon a time, a fox named Otto had a red kite."
SENTENCE = "Mia lost her red ball. Tom found the red ball and gave it to"
MESSAGE = (
    "Congratulations! You have won a FREE ticket. Call 0800 123 456 now to claim it."
)
TEXT = (
    "Byte-pair encoding cuts text into tokens: common words whole, rare ones "
    "into pieces.\nNa\u00efve caf\u00e9s, 12345, \u4f60\u597d, \U0001f98a!"
)
MOST_NEW_TOKENS = 400
ANSWER_TOKENS = 200
CHAT_TOKENS = 256
PACES = {"as fast as it can": 0.0, "5 tokens a second": 0.2, "1 token a second": 1.0}

computing = asyncio.Lock()  # one computation at a time, whoever asks


async def compute_aside(function: Callable, *arguments):
    """Call a function in a thread, so that the page can answer meanwhile."""
    async with computing:
        return await asyncio.to_thread(function, *arguments)


async def each(steps: Iterator) -> AsyncIterator:
    """What an iterator gives, each step computed in a thread."""
    end = object()
    while (step := await compute_aside(next, steps, end)) is not end:
        yield step


@cache
def base() -> tuple:
    """The base model with its tokenizer."""
    return load_base(), load_base_tokenizer()


@cache
def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer, as chapter 2b builds it."""
    return BPETokenizer.from_gpt2()


@cache
def smollm2_is_here() -> bool:
    """Whether its weights are on this machine, whole."""
    return local_copy(FILES["smollm2"]) is not None


@cache
def smollm2() -> tuple:
    """SmolLM2 with its tokenizer; a few seconds, and about 600 MB of memory."""
    return load_smollm2()


def html(text: str = "", **options) -> pn.pane.HTML:
    """A pane for what `playground.draw` draws."""
    options = {"sizing_mode": "stretch_width", "margin": (4, 0), **options}
    return pn.pane.HTML(text, stylesheets=[draw.CSS], **options)


def said(text: str) -> pn.pane.HTML:
    """A line of explanation at the head of a tab."""
    return html(draw.note(text))


def text_area(name: str, value: str = "", rows: int = 4, **options):
    """A field for a text; one character more than is allowed can be typed."""
    return pn.widgets.TextAreaInput(
        name=name,
        value=value,
        rows=rows,
        max_length=compute.LONGEST_TEXT + 1,
        sizing_mode="stretch_width",
        stylesheets=[CONTROLS],
        margin=(4, 0),
        **options,
    )


def button(name: str, kind: str = "default") -> pn.widgets.Button:
    return pn.widgets.Button(
        name=name, button_type=kind, stylesheets=[CONTROLS], margin=(4, 8, 4, 0)
    )


def row(*parts) -> pn.Row:
    """Parts beside each other, or below each other where the page is narrow."""
    return pn.Row(*parts, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})


def columns(*parts) -> pn.Row:
    """Wide parts beside each other as long as each has 330 pixels."""
    for part in parts:
        part.styles = {"flex": "1 1 330px", "min-width": "0", "max-width": "100%"}
    return pn.Row(
        *parts,
        sizing_mode="stretch_width",
        styles={"flex-wrap": "wrap", "column-gap": "24px"},
    )


class Running:
    """What a tab is doing: nothing, or one thing, which its Stop button ends.

    Attributes:
        stop: the button.
        status: a pane for words about it, good or bad.
    """

    def __init__(self, *starters: pn.widgets.Button) -> None:
        self.stop, self.status = button("Stop"), html()
        self.stop.disabled = True
        self.busy = self.wanted = False  # not wanted any more: it ends soon
        self.starters = starters
        self.stop.on_click(self._end)
        pn.state.on_session_destroyed(self._end)  # a closed page needs no more

    def _end(self, _) -> None:
        self.wanted = False

    def starts(self, starter, work: Callable[[], Awaitable[None]]) -> Callable:
        """Let a button start some work, unless some is going on; returns what does."""

        async def begin(*_) -> None:
            if self.busy:
                return
            self._busy(True)
            self.status.object = ""
            try:
                await work()
            except (ValueError, OSError) as error:
                self.status.object = draw.error(str(error))
            except Exception:
                self.status.object = draw.error(
                    "This did not work, and it is the playground's fault. The window "
                    "where you started it says more."
                )
                raise
            finally:
                self._busy(False)

        starter.on_click(begin)
        return begin

    def _busy(self, busy: bool) -> None:
        self.busy = self.wanted = busy
        self.stop.disabled = not busy
        for starter in self.starters:
            starter.disabled = busy


class Trained:
    """A model that is trained at first use: its button, its progress, the model."""

    models: dict[str, torch.nn.Module] = {}  # of all pages
    training: set[str] = set()

    def __init__(self, recipe: keep.Recipe, minutes: str) -> None:
        self.recipe = recipe
        self.bar = pn.widgets.Progress(
            value=0,
            max=100,
            visible=False,
            sizing_mode="stretch_width",
            stylesheets=[CONTROLS],
            margin=(4, 0),
        )
        self.words = html(
            draw.note(
                f"At first use this model is trained, on this machine; that takes "
                f"{minutes} on two free cores. Then it is kept in "
                f"{recipe.path().parent}."
            ),
            visible=recipe.name not in self.models and not recipe.path().exists(),
        )

    async def get(self, running: Running) -> torch.nn.Module | None:
        """The model: from memory, from its file, or trained; None after Stop."""
        name = self.recipe.name
        if name not in self.models:
            if name in self.training:
                raise ValueError(
                    "The model is being trained already, in another window of the "
                    "playground. Wait until that has ended, please."
                )
            self.training.add(name)
            try:
                model = await compute_aside(self.recipe.kept)
                if model is None:
                    model = await self._train(running)
            finally:
                self.training.discard(name)
                self.bar.visible = False
            if model is None:
                return None
            self.models[name] = model
        self.words.visible = False
        return self.models[name]

    async def _train(self, running: Running) -> torch.nn.Module | None:
        self.words.object, self.words.visible = draw.note("Getting ready ..."), True
        training = await compute_aside(self.recipe.prepare)
        self.bar.param.update(value=0, max=training.steps, visible=True)
        step, begun = 0, time.monotonic()
        async for loss in each(training.losses):
            step += 1
            self.bar.value = step
            left = (time.monotonic() - begun) * (training.steps / step - 1)
            self.words.object = draw.note(
                f"Training: step {step} of {training.steps}, loss {loss:.2f}, "
                f"{draw.duration(left)} left"
            )
            if not running.wanted:
                self.words.object = draw.note(
                    "The training was stopped, and nothing of it is kept. Next time "
                    "it begins again."
                )
                return None
        try:
            await compute_aside(self.recipe.keep, training.model)
        except OSError as error:
            running.status.object = draw.error(
                f"The trained model works, but it could not be kept: {error}"
            )
        return training.model


# The tabs


class Sliders:
    """Temperature, top-k and top-p, and what they say."""

    def __init__(self, temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
        options = {
            "sizing_mode": "stretch_width",
            "stylesheets": [CONTROLS],
            "margin": (4, 10),
        }
        self.temperature = pn.widgets.FloatSlider(
            name="Temperature", start=0, end=2, step=0.1, value=temperature, **options
        )
        self.top_k = pn.widgets.IntSlider(
            name="Top-k (0: all)", start=0, end=50, value=top_k, **options
        )
        self.top_p = pn.widgets.FloatSlider(
            name="Top-p (1: all)", start=0.05, end=1, step=0.05, value=top_p, **options
        )
        self.all = (self.temperature, self.top_k, self.top_p)

    def write_to(self, sampling: Sampling) -> Sampling:
        sampling.temperature = self.temperature.value
        sampling.top_k = self.top_k.value or None
        sampling.top_p = None if self.top_p.value >= 1 else self.top_p.value
        return sampling


def storyteller() -> pn.Column:
    """The base model goes on from a beginning, token by token."""
    beginning = text_area("Beginning", BEGINNING, rows=3)
    tell, go_on = button("Tell", "primary"), button("Go on")
    one = button("One token")
    running, sliders = Running(tell, go_on, one), Sliders(0.8, 0, 0.95)
    pace = pn.widgets.Select(
        name="Pace",
        options=PACES,
        stylesheets=[CONTROLS],
        margin=(4, 10),
        sizing_mode="stretch_width",
    )
    page = html(draw.empty("The story will stand here."))
    chances = html(draw.next_token(None), margin=(4, 10))
    told: dict = {"typed": "", "given": "", "ids": [], "new": []}

    def begin() -> None:
        _, tokenizer = base()
        typed = compute.checked(beginning.value, "beginning")
        given = typed if typed.strip() else ""
        ids = tokenizer.encode_ordinary(given) or [tokenizer.eot_token]
        told.update(typed=typed, given=given, ids=ids, new=[])

    async def write(most: int) -> None:
        model, tokenizer = base()
        sampling = sliders.write_to(Sampling())
        if told["new"][-1:] == [tokenizer.eot_token]:
            running.status.object = draw.note("The text has ended. Tell another one.")
            return
        said_so = []
        if not told["given"]:
            said_so.append("Without a beginning, the model begins a text of its own.")
        context = model.cfg["context_length"]
        steps = compute.write(model, tokenizer, told["ids"] + told["new"], sampling)
        for count in range(most):
            step = await compute_aside(next, steps)
            told["new"].append(step.token.id)
            chances.object = draw.next_token(step)
            if step.token.id == tokenizer.eot_token:
                said_so.append("The model ended its text here.")
                page.object = draw.story(told["given"], words(told["new"][:-1]))
                break
            whole, before = words(told["new"]), words(told["new"][:-1])
            newest = whole[len(before) :] if whole.startswith(before) else ""
            page.object = draw.story(
                told["given"], whole[: len(whole) - len(newest)], newest
            )
            if not running.wanted:
                break
            sliders.write_to(sampling)
            if count + 1 < most:
                await asyncio.sleep(pace.value)
        if len(told["ids"]) + len(told["new"]) > context:
            said_so.append(
                f"The text is longer than the {context} tokens that the model can "
                "read, so it has forgotten the beginning."
            )
        running.status.object = draw.note(" ".join(said_so)) if said_so else ""

    def words(ids: list[int]) -> str:
        return base()[1].decode(ids)

    async def tell_anew() -> None:
        await compute_aside(begin)
        page.object = draw.story(told["given"], "")
        await write(MOST_NEW_TOKENS)

    async def tell_more(most: int = MOST_NEW_TOKENS) -> None:
        if not told["ids"] or beginning.value != told["typed"]:
            await compute_aside(begin)
        await write(most)

    running.starts(tell, tell_anew)
    running.starts(go_on, tell_more)
    running.starts(one, lambda: tell_more(1))
    return pn.Column(
        said(
            "The base model of chapter 5 goes on from your beginning. Sliders may be "
            "moved while it writes."
        ),
        beginning,
        columns(
            pn.Column(row(tell, go_on, one, running.stop), page, running.status),
            pn.Column(*sliders.all, pace, chances),
        ),
        sizing_mode="stretch_width",
    )


def tokens() -> pn.Column:
    """One text in the tokens of three tokenizers."""
    text = text_area("Text", TEXT, rows=4)
    source = text_area(
        "Learn from this text (empty: the short story of chapter 2)", rows=4
    )
    size = pn.widgets.IntSlider(
        name="Size of the learned vocabulary",
        start=256,
        end=compute.LARGEST_VOCABULARY,
        step=16,
        value=1_000,
        sizing_mode="stretch_width",
        stylesheets=[CONTROLS],
        margin=(4, 10),
    )
    cut, shown = button("Cut into tokens", "primary"), html()
    running = Running(cut)

    def cut_up(typed: str, learn_from: str, vocab_size: int) -> str:
        compute.required(typed, "text")
        compute.checked(learn_from, "text to learn from")
        learn_from = learn_from if learn_from.strip() else load_text("short-story")
        learned = compute.learn_tokenizer(learn_from, vocab_size)
        cutters = {
            f"GPT-2's, {gpt2_tokenizer().n_vocab:,} tokens": gpt2_tokenizer(),
            f"The base model's, {base()[1].n_vocab:,} tokens": base()[1],
            f"Learned here, {learned.n_vocab:,} tokens": learned,
        }
        parts = []
        for name, tokenizer in cutters.items():
            found = compute.read_tokens(typed, tokenizer)
            per_token = len(typed) / len(found)
            heading = (
                f"{name}: {len(found):,} of them here, {per_token:.1f} characters each"
            )
            parts.append(draw.tokens(found, heading))
        return "".join(parts) + draw.note(
            "Each colour is one token; point at it to see its id. A small dot is a "
            "space. Hexadecimal numbers are bytes that are only a part of a character."
        )

    async def show() -> None:
        shown.object = ""
        shown.object = await compute_aside(cut_up, text.value, source.value, size.value)

    running.starts(cut, show)
    return pn.Column(
        said(
            "The same text in the tokens of GPT-2, of the base model, and of a "
            "tokenizer that chapter 2b's code learns from a text of yours."
        ),
        columns(pn.Column(text, cut), pn.Column(source, size)),
        running.status,
        shown,
        sizing_mode="stretch_width",
    )


def attention() -> pn.Column:
    """What the heads of the base model look at, in a sentence."""
    model, _ = base()
    sentence = text_area("Sentence", SENTENCE, rows=2)
    look, above, below, heads = button("Look", "primary"), html(), html(), html()
    running = Running(look)
    options = {
        "sizing_mode": "stretch_width",
        "stylesheets": [CONTROLS],
        "margin": (4, 10),
    }
    n_layers, n_heads = model.cfg["n_layers"], model.cfg["n_heads"]
    block = pn.widgets.IntSlider(
        name="Block", start=1, end=max(2, n_layers), value=1, **options
    )
    head = pn.widgets.IntSlider(
        name="Head", start=1, end=max(2, n_heads), value=1, **options
    )
    place = pn.widgets.IntSlider(
        name="Token that looks back", start=1, end=2, value=1, disabled=True, **options
    )
    seen: dict = {}

    def redraw(*_) -> None:
        if "weights" not in seen:
            return
        found = seen["tokens"]
        t = min(place.value, len(found)) - 1
        chosen = min(block.value, n_layers) - 1, min(head.value, n_heads) - 1
        weights = seen["weights"][chosen]
        above.object = draw.looks(found, weights, t)
        below.object = draw.heat_map(found, weights, t)
        heads.object = draw.all_heads(seen["weights"], *chosen)

    async def show() -> None:
        above.object = below.object = heads.object = ""
        seen.pop("weights", None)
        model, tokenizer = base()
        typed = sentence.value
        found, weights = await compute_aside(
            compute.attention_of, typed, model, tokenizer
        )
        if not seen.get("chosen"):
            chosen = compute.sharpest_head(weights)
            block.value, head.value = (number + 1 for number in chosen)
        seen.update(tokens=found, weights=weights, chosen=True)
        place.param.update(end=max(2, len(found)), value=len(found), disabled=False)
        whole = len(tokenizer.encode_ordinary(typed))
        if whole > len(found):
            running.status.object = draw.note(
                f"The sentence has {whole:,} tokens; the picture shows the first "
                f"{len(found)}."
            )
        redraw()

    running.starts(look, show)
    for slider in (block, head, place):
        slider.param.watch(redraw, "value")
    return pn.Column(
        said(
            "Each head of each block gives every token before it a weight; the weights "
            "of a row add up to 100 %. The darker, the more."
        ),
        sentence,
        look,
        running.status,
        above,
        columns(pn.Column(block, head, place), pn.Column(heads)),
        below,
        sizing_mode="stretch_width",
    )


def spam_filter() -> pn.Column:
    """The classifier of chapter 6: its verdict, and what moved it."""
    message = text_area("Message", MESSAGE, rows=3)
    ask, shown = button("Judge", "primary"), html()
    running, trained = Running(ask), Trained(keep.SPAM_FILTER, "a minute or two")

    async def show() -> None:
        shown.object = ""
        typed = compute.required(message.value, "message")
        classifier = await trained.get(running)
        if classifier is None:
            return
        shown.object = draw.note("Reading ...")
        found = await compute_aside(compute.judge, typed, classifier, base()[1])
        shown.object = draw.verdict(found)
        if found.tokens > found.read:
            running.status.object = draw.note(
                f"The message has {found.tokens:,} tokens; the filter reads the first "
                f"{found.read}."
            )

    running.starts(ask, show)
    return pn.Column(
        said(
            "The base model, finetuned as in chapter 6 to tell spam from other texts."
        ),
        message,
        row(ask, running.stop),
        trained.words,
        trained.bar,
        running.status,
        shown,
        sizing_mode="stretch_width",
    )


def follower() -> pn.Column:
    """The model of chapter 7 does what it is asked."""
    order = text_area(
        "Instruction", "Write a story with the words kite, brave and climb.", rows=2
    )
    given = text_area("Input (may be empty)", rows=2)
    ask, page = (
        button("Ask", "primary"),
        html(draw.empty("The answer will stand here.")),
    )
    running, sliders = Running(ask), Sliders(0.6, 0, 0.9)
    trained = Trained(keep.FOLLOWER, "about four minutes")

    async def answer() -> None:
        compute.required(order.value, "instruction")
        compute.checked(given.value, "input")
        entry = {"instruction": order.value.strip(), "input": given.value.strip()}
        page.object = draw.empty("...")
        model = await trained.get(running)
        if model is None:
            return
        tokenizer = base()[1]
        prompt = tokenizer.encode_ordinary(
            format_prompt(entry, model.cfg["prompt_style"])
        )
        room = model.cfg["context_length"] - ANSWER_TOKENS
        if len(prompt) > room:
            raise ValueError(
                f"Instruction and input have {len(prompt):,} tokens together; the "
                f"model has room for {room} beside its answer. Shorten them, please."
            )
        sampling, new = sliders.write_to(Sampling()), []
        steps = compute.write(model, tokenizer, prompt, sampling)
        for _ in range(ANSWER_TOKENS):
            step = await compute_aside(next, steps)
            if step.token.id == tokenizer.eot_token or not running.wanted:
                break
            new.append(step.token.id)
            page.object = draw.story("", tokenizer.decode(new).lstrip())
            sliders.write_to(sampling)
        else:
            running.status.object = draw.note(
                f"The answer was cut after {ANSWER_TOKENS} tokens."
            )

    running.starts(ask, answer)
    return pn.Column(
        said("The base model, finetuned as in chapter 7 to do what it is asked."),
        columns(
            pn.Column(order, given, row(ask, running.stop)), pn.Column(*sliders.all)
        ),
        trained.words,
        trained.bar,
        page,
        running.status,
        sizing_mode="stretch_width",
    )


def smollm2_chat() -> pn.Column:
    """A conversation with the published model of chapter 8b."""
    if not smollm2_is_here():
        way = remedy(FILES["smollm2"])
        return pn.Column(
            html(
                draw.error(f"The weights of SmolLM2 are not here. To get them: {way}")
            ),
            sizing_mode="stretch_width",
        )
    shown = html(draw.conversation([]))
    line = pn.widgets.TextInput(
        name="You",
        max_length=compute.LONGEST_TEXT + 1,
        sizing_mode="stretch_width",
        stylesheets=[CONTROLS],
        margin=(4, 0),
    )
    send, new = button("Send", "primary"), button("New conversation")
    running, sliders = Running(send, new), Sliders(0.0)
    messages: list[dict[str, str]] = []

    async def answer() -> None:
        asked = {"role": "user", "content": compute.required(line.value, "message")}
        if smollm2.cache_info().currsize == 0:
            running.status.object = draw.note("Loading SmolLM2 ...")
        model, tokenizer = await compute_aside(smollm2)
        running.status.object = ""
        history = [*messages, asked]
        pieces = await compute_aside(start_chat, model, tokenizer, history)
        messages.append(asked)
        line.value = ""
        reply = {"role": "assistant", "content": ""}
        messages.append(reply)
        shown.object = draw.conversation([*messages[:-1], {**reply, "content": "..."}])
        async for piece in each(pieces):
            reply["content"] += piece
            shown.object = draw.conversation(messages)
            if not running.wanted:
                break
        if not reply["content"]:  # stopped, or nothing to say
            messages.pop()
            messages.pop()
            shown.object = draw.conversation(messages)

    def start_chat(model, tokenizer: SmolLM2Tokenizer, history: list) -> Iterator[str]:
        sampling = sliders.write_to(Sampling())
        try:
            return chat(
                model,
                tokenizer,
                history,
                CHAT_TOKENS,
                sampling.temperature,
                sampling.top_p,
            )
        except ValueError:
            raise ValueError(
                "The conversation and its answer do not fit into what SmolLM2 can "
                "read. Begin a new conversation, or send less, please."
            ) from None

    async def forget() -> None:
        messages.clear()
        shown.object = draw.conversation([])

    line.param.watch(running.starts(send, answer), "enter_pressed")
    running.starts(new, forget)
    return pn.Column(
        said(
            "SmolLM2-135M-Instruct by Hugging Face, read from its file by chapter 8b's "
            "code. It makes things up with great confidence."
        ),
        columns(
            pn.Column(shown, line, row(send, running.stop, new), running.status),
            pn.Column(sliders.temperature, sliders.top_p),
        ),
        sizing_mode="stretch_width",
    )


def page() -> pn.Template:
    """One page, with everything on it; each visit gets its own."""
    # without it, Panel has the browser ask its makers' server for style sheets
    pn.state.curdoc.template_variables["dist_url"] = LOCAL_DIST
    template = pn.Template(TEMPLATE)
    template.title = "Playground"
    tabs = pn.Tabs(
        ("Storyteller", storyteller()),
        ("Tokens", tokens()),
        ("Attention", attention()),
        ("Spam filter", spam_filter()),
        ("Instructions", follower()),
        ("SmolLM2", smollm2_chat()),
        stylesheets=[TABS],
        sizing_mode="stretch_width",
    )
    template.add_panel("tabs", tabs)
    return template
