"""What a GPT promises, each promise with the place in the course that explains it.

`tests/your_model/run_promises.py` checks them on your file. A check raises `Wrong` with
what it measured and, where the tests recognise your numbers, the mistake that gives
exactly these.
"""

import copy
import functools
import importlib.util
import json
import math
import re
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import reference
import torch
import torch.nn.functional as F

COURSE = Path(__file__).parents[2]
SETTINGS = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
CLOSE = 1e-4  # what two right models may differ by, in numbers of about 1
TEXTS = [
    *("", "a", "Hello, world!", " two  spaces ", "tab\tand\n\nlines \n", "don't, I'LL"),
    *(
        "12345 678",
        "    if x:\n        return x",
        "naïve café",
        "नमस्ते",
        "日本語",
        "🙂👍🏽",
    ),
]
STORY = """A kettle stood on the stove in the kitchen of the lighthouse. When the water
boiled, the kettle sang, and the keeper knew that the water boiled. One evening she
was on the stairs, and the wind was louder than the kettle. So the kettle sang as loudly
as it could, and she came down the stairs and said: "I hear the kettle singing!"
"""


class Wrong(Exception):
    """A promise is broken: what was measured, and the mistake that fits."""

    def __init__(self, measured: str, likely: str | None = None, raised: bool = False):
        self.measured, self.likely, self.raised = measured, likely, raised
        super().__init__(measured)


class Missing(Exception):
    """Your file has no such part, so its promises cannot be checked."""


@dataclass
class Promise:
    """A promise in a sentence, the place that explains it, and the usual mistake."""

    name: str
    says: str
    notebook: str
    about: str  # what the section's heading or text contains
    usual: str
    check: Callable[["Yours"], None]

    def where(self) -> str:
        """The section that explains it."""
        heading = section_about(self.notebook, self.about)
        return f"{heading}, in {self.notebook}" if heading else self.notebook

    def told(self, wrong: Wrong) -> str:
        """The message of a failure."""
        parts = {"promised": self.says, "measured": wrong.measured}
        if wrong.likely:
            parts["look here"] = f"Your numbers are exactly those of {wrong.likely}."
        elif not wrong.raised:
            parts["usually"] = self.usual
        parts["read"] = f"section {self.where()}"
        return "\n".join(
            textwrap.fill(f"{k:11}{v}", 79, subsequent_indent=" " * 11)
            for k, v in parts.items()
        )


@functools.cache
def section_about(notebook: str, about: str) -> str | None:
    """The heading of the first section with these words in it, headings first."""
    cells = json.loads((COURSE / notebook).read_text(encoding="utf-8"))["cells"]
    sections = [""]
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            first, *others = re.split(r"(?m)^(?=## )", text)
            sections[-1] += first
            sections += others
        else:
            sections[-1] += text
    headings = [s.partition("\n")[0] for s in sections]
    for place in (headings, sections):
        for heading, text in zip(headings, place, strict=True):
            if heading.startswith("## ") and re.search(about, text):
                return heading.removeprefix("## ")
    return None


class Yours:
    """Your file, called through the adapters; its errors become broken promises."""

    def __init__(self, mine, adapters):
        self.mine, self.adapters = mine, adapters
        self.cfg = SETTINGS | getattr(adapters, "SETTINGS", {})

    def __getattr__(self, name: str) -> Callable:
        call = getattr(self.adapters, name)

        def reach(*arguments):
            try:
                return call(self.mine, *arguments)
            except NotImplementedError as error:
                raise Missing(str(error) or f"`{name}` is left out") from error
            except AttributeError as error:
                if error.obj is not self.mine:
                    raise Wrong(self.raised(error, name), raised=True) from error
                file = Path(self.mine.__file__).name
                raise Missing(
                    f"{file} has no `{error.name}`; if yours has another name, write "
                    f"`{name}` in an adapters file (docs/your-model.md)"
                ) from error
            except Exception as error:
                raise Wrong(self.raised(error, name), raised=True) from error

        return reach

    def raised(self, error: Exception, name: str) -> str:
        """An error of your code, and the last line of yours that it went through."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [x for x in frames if x.filename == self.mine.__file__]
        line = f", in line {own[-1].lineno}: `{own[-1].line}`" if own else ""
        first = str(error).strip().splitlines()[:3]
        return f"`{name}` raised {type(error).__name__}: {' '.join(first)}{line}"

    def weights(self) -> dict[str, torch.Tensor]:
        """Random numbers for the whole model, by the course's names."""
        weights = reference.weights_of(self.cfg)
        if self.cfg.get("tie_weights"):
            weights["out_head.weight"] = weights["tok_emb.weight"]
        return weights

    def copied(self, make: str, weights: dict, *arguments) -> torch.nn.Module:
        """A module of yours with these weights, ready to be asked."""
        module = getattr(self, make)(*arguments)
        self.load_weights(module, weights)
        return module.eval()


PROMISES: dict[str, Promise] = {}


def promise(notebook: str, about: str, says: str, usual: str) -> Callable:
    """Make a promise of a check; its name is that of the function."""

    def keep(check: Callable[[Yours], None]) -> Callable[[Yours], None]:
        name = check.__name__
        PROMISES[name] = Promise(name, says, notebook, about, usual, check)
        return check

    return keep


def broken(name: str, yours: Yours) -> str | None:
    """What to tell about a broken promise, or None if it is kept.

    Raises:
        Missing: if your file lacks what the promise is about.
    """
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            PROMISES[name].check(yours)
    except Wrong as wrong:
        return PROMISES[name].told(wrong)
    return None


def ids_of(yours: Yours, B: int, T: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(yours.cfg["vocab_size"], (B, T), generator=generator)


def vectors(yours: Yours, B: int, T: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, T, yours.cfg["emb_dim"], generator=generator)


def need_shape(found: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(found, torch.Tensor):
        raise Wrong(f"{what} is a {type(found).__name__}, not a tensor")
    if tuple(found.shape) != shape:
        raise Wrong(f"{what} has the shape {tuple(found.shape)}, not {shape}")


def need_equal(found, right: Callable, mistakes: list[str], what: str) -> None:
    """Compare with the right numbers, and otherwise look for the mistake that fits.

    `right(mistake)` gives the numbers, with a mistake, or without for None.
    """
    wanted = right(None)
    need_shape(found, tuple(wanted.shape), what)
    if torch.allclose(found, wanted, atol=CLOSE, rtol=CLOSE):
        return
    likely = None
    for mistake in mistakes:
        options = {"atol": CLOSE, "rtol": CLOSE, "equal_nan": True}
        if torch.allclose(found, right(mistake), **options):
            likely = reference.MISTAKES[mistake]
            break
    raise Wrong(difference(found, wanted, what), likely)


def difference(found, wanted, what: str) -> str:
    if found.isnan().any():
        return f"{what} has {int(found.isnan().sum())} times nan, not a number"
    gap = (found - wanted).abs().max().item()
    return (
        f"with the same weights and the same input, {what} differs from the course's "
        f"by up to {gap:.2g}, where {CLOSE} is allowed"
    )


def need_causal(answer: Callable, x: torch.Tensor, change: Callable, what: str) -> None:
    """Change each token in turn, and see which rows of the output move."""
    before, T = answer(x), x.shape[1]
    for t in range(T):
        other = x.clone()
        other[:, t] = change(x[:, t])
        moved = (answer(other) - before).abs().amax(dim=(0, 2))  # (T,)
        if moved.isnan().any():
            raise Wrong(f"{what} is nan at position {int(moved.isnan().nonzero()[0])}")
        early = [i for i in range(t) if moved[i] > CLOSE]
        if early:
            raise Wrong(
                f"changing token {t} moved {what} at position {early[0]} by "
                f"{moved[early[0]]:.2g}. So position {early[0]} sees token {t}"
            )
        if moved[t] <= CLOSE:
            raise Wrong(f"changing token {t} did not move {what} at its own position")


LAYERS, MODEL = "ch03_attention/attention.ipynb", "ch04_gpt_model/gpt_model.ipynb"
TRAINING, KEEPING = (
    "ch05_pretraining/pretraining.ipynb",
    "ch05_pretraining/weights.ipynb",
)


@promise(
    MODEL,
    "(?i)same scale|LayerNorm",
    "The norm brings each token's vector to mean 0 and variance 1, then scales and "
    "shifts it, as the course's does.",
    "mean and variance over the wrong axis. They belong to one token, so `dim=-1`, "
    "with `keepdim=True` and `unbiased=False`.",
)
def norm(yours):
    C = yours.cfg["emb_dim"]
    weights = reference.part(yours.weights(), "final_norm")
    layer = yours.copied("make_norm", weights, C)
    # Of very different sizes, and one so small that epsilon shows.
    x = vectors(yours, 3, 5) * torch.tensor([3.0, 1.0, 0.3, 0.1, 0.003])[:, None] + 0.5
    with torch.no_grad():
        found = yours.run(layer, x)
        need_equal(
            found,
            lambda mistake: reference.norm(x, weights, mistake),
            list(reference.OF_NORMS),
            "the output of your norm",
        )


@promise(
    LAYERS,
    "(?i)many texts|class MultiHeadAttention",
    "Attention takes (B, T, C) and gives (B, T, C), for every T up to the context.",
    "a mask that is not cut to the length of the text: `mask[:T, :T]`.",
)
def attention_shape(yours):
    layer = yours.make_attention(yours.cfg).eval()
    for B, T in ((2, 7), (1, 1), (3, yours.cfg["context_length"])):
        x = vectors(yours, B, T)
        with torch.no_grad():
            y = yours.run(layer, x)
        need_shape(y, tuple(x.shape), f"the output of attention for {tuple(x.shape)}")


@promise(
    LAYERS,
    "(?i)the future|masked_fill",
    "In attention each token sees itself and what is before it, and nothing later.",
    "the mask. Scores of later tokens become -inf *before* the softmax, and the "
    "diagonal stays: `triu(diagonal=1)`.",
)
def attention_is_causal(yours):
    weights = reference.part(yours.weights(), "trf_blocks.0.att")
    layer = yours.copied("make_attention", weights, yours.cfg)
    x = vectors(yours, 2, 7)
    with torch.no_grad():
        need_causal(lambda x: yours.run(layer, x), x, lambda v: v + 1.0, "attention")


@promise(
    LAYERS,
    "(?i)all heads|one product|class MultiHeadAttention",
    "With the same weights, your attention gives the course's numbers.",
    "the scale (the root of a head's width), the softmax's axis, or how heads are cut "
    "and joined.",
)
def attention_equals_ours(yours):
    weights = reference.part(yours.weights(), "trf_blocks.0.att")
    layer = yours.copied("make_attention", weights, yours.cfg)
    x = vectors(yours, 2, 7)
    with torch.no_grad():
        need_equal(
            yours.run(layer, x),
            lambda m: reference.attention(x, weights, yours.cfg["n_heads"], m),
            list(reference.OF_ATTENTION),
            "the output of your attention",
        )


@promise(
    MODEL,
    "(?i)make a block|class TransformerBlock",
    "With the same weights, your block gives the course's numbers.",
    "the order. Norm, part, add: `x = x + att(norm1(x))`, then `x = x + ff(norm2(x))`.",
)
def block_equals_ours(yours):
    weights = reference.part(yours.weights(), "trf_blocks.0")
    layer = yours.copied("make_block", weights, yours.cfg)
    x = vectors(yours, 2, 7)
    parts = [*reference.OF_BLOCKS, *reference.OF_ATTENTION, *reference.OF_NORMS]
    with torch.no_grad():
        need_equal(
            yours.run(layer, x),
            lambda m: reference.block(x, weights, yours.cfg["n_heads"], m),
            parts,
            "the output of your block",
        )


@promise(
    MODEL,
    "(?i)whole model|class GPTModel",
    "The model takes ids (B, T) and gives logits (B, T, V), one row of scores at every "
    "position.",
    "returning only the last position's logits, which is enough to write but not to "
    "learn, or probabilities.",
)
def model_shape(yours):
    model = yours.make_model(yours.cfg).eval()
    for B, T in ((2, 7), (1, 1), (3, yours.cfg["context_length"])):
        with torch.no_grad():
            logits = yours.answer(model, ids_of(yours, B, T))
        shape = (B, T, yours.cfg["vocab_size"])
        need_shape(logits, shape, f"the answer to ids {(B, T)}")


@promise(
    MODEL,
    "(?i)how large|parameters",
    "The model has every parameter of GPT-2's network, and PyTorch knows all of them.",
    "blocks in a Python list, which PyTorch does not look into; use `nn.ModuleList` or "
    "`nn.Sequential`. Or a bias that the settings do not ask for.",
)
def parameters(yours):
    model = yours.make_model(yours.cfg)
    weights = yours.weights()
    tied = yours.cfg.get("tie_weights", False)
    wanted = sum(w.numel() for n, w in weights.items() if not (tied and "out_h" in n))
    found = sum(p.numel() for p in model.parameters())
    if found != wanted:
        raise Wrong(f"{found:,} parameters, where the settings give {wanted:,}")


@promise(
    LAYERS,
    "(?i)the future|masked_fill",
    "In the model no logits depend on a later token.",
    "a mask that fits one length only, a norm over the tokens' axis, or positions that "
    "depend on the text's length.",
)
def model_is_causal(yours):
    model = yours.copied("make_model", yours.weights(), yours.cfg)
    V = yours.cfg["vocab_size"]
    with torch.no_grad():
        need_causal(
            lambda ids: yours.answer(model, ids),
            ids_of(yours, 2, 7),
            lambda ids: (ids + 1) % V,
            "logits",
        )


@promise(
    LAYERS,
    "(?i)many texts",
    "The texts of a batch do not see each other.",
    "a softmax, a norm or a `view` that runs over the batch's axis.",
)
def texts_are_separate(yours):
    model = yours.copied("make_model", yours.weights(), yours.cfg)
    ids = ids_of(yours, 3, 7)
    with torch.no_grad():
        together = yours.answer(model, ids)
        alone = torch.cat([yours.answer(model, row[None]) for row in ids])
    need_shape(together, tuple(alone.shape), "the answer to three texts")
    gap = (together - alone).abs().max().item()
    if not gap <= CLOSE:
        raise Wrong(
            f"a text's logits differ by {gap:.2g} when other texts are beside it"
        )


@promise(
    MODEL,
    "(?i)whole model|class GPTModel",
    "With the same weights, your model gives the course's logits.",
    "positions that are not added, a missing last norm, or a part inside the block: "
    "look at the tests of the parts first.",
)
def model_equals_ours(yours):
    weights = yours.weights()
    model = yours.copied("make_model", weights, yours.cfg)
    ids = ids_of(yours, 2, 7)
    parts = [*reference.OF_MODELS, *reference.OF_BLOCKS]
    parts += [*reference.OF_ATTENTION, *reference.OF_NORMS]
    if yours.cfg.get("tie_weights"):
        parts.remove("head from the embedding")
    with torch.no_grad():
        need_equal(
            yours.answer(model, ids),
            lambda m: reference.model(ids, weights, yours.cfg, m),
            parts,
            "the answer of your model",
        )


@promise(
    MODEL,
    "(?i)which numbers does it start|ln V|initial",
    "An untrained model knows nothing, so its loss is near ln V: every token is about "
    "equally likely.",
    "an embedding with PyTorch's standard deviation of 1 that is also the output head, "
    "or no norm before the head. GPT-2 begins with 0.02.",
)
def first_loss(yours):
    wanted, found = math.log(yours.cfg["vocab_size"]), []
    for seed in range(3):
        torch.manual_seed(seed)
        model = yours.make_model(yours.cfg).eval()
        ids = ids_of(yours, 8, 17, seed)
        with torch.no_grad():
            logits = yours.answer(model, ids[:, :-1])
        found.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item())
    mean = sum(found) / len(found)
    if not abs(mean - wanted) < 0.3:
        raise Wrong(
            f"the untrained loss is {mean:.2f}, and ln {yours.cfg['vocab_size']} is "
            f"{wanted:.2f}. The model is sure of something before it has seen any text"
        )


@promise(
    LAYERS,
    "(?i)dropout",
    "Dropout works while the model trains, and is off after `eval()`.",
    "`F.dropout(x, p)` without `training=self.training`, or a dropout layer that is "
    "made and never called.",
)
def dropout(yours):
    model = yours.make_model({**yours.cfg, "drop_rate": 0.5}).eval()
    ids = ids_of(yours, 2, 7)
    with torch.no_grad():
        first, second = yours.answer(model, ids), yours.answer(model, ids)
        if not torch.allclose(first, second, atol=1e-6):
            raise Wrong("after `eval()`, two calls with the same ids give other logits")
        model.train()
        first, second = yours.answer(model, ids), yours.answer(model, ids)
        if torch.equal(first, second):
            raise Wrong("with a drop_rate of 0.5, two calls in training are the same")


def written(yours, write: Callable, length: int) -> None:
    model = yours.copied("make_model", yours.weights(), yours.cfg)
    ids, context, count = ids_of(yours, 2, length), yours.cfg["context_length"], 6
    wanted = ids
    with torch.no_grad():
        for _ in range(count):
            last = yours.answer(model, wanted[:, -context:])[:, -1]
            wanted = torch.cat([wanted, last.argmax(-1, keepdim=True)], dim=1)
        found = write(model, ids, count)
    need_shape(found, tuple(wanted.shape), f"what was written after {length} tokens")
    if not torch.equal(found[:, :length], ids):
        raise Wrong("the prompt is not at the beginning of what was written")
    if not torch.equal(found, wanted):
        n = int((found != wanted).any(dim=0).nonzero()[0]) - length + 1
        raise Wrong(
            f"new token {n} of {count} after a prompt of {length} is not the likeliest "
            f"one by the model's own logits (the context is {context})"
        )


@promise(
    MODEL,
    "(?i)how does a model write|generate_text_simple",
    "The model writes the token with the highest logit at the last position, and reads "
    "the last `context_length` tokens of a text that is longer.",
    "reading the first tokens of a long text, not the last (`ids[:, -context:]`), or "
    "logits of another position than the last.",
)
def writing(yours):
    for length in (3, yours.cfg["context_length"] - 2):
        written(yours, yours.write, length)


@promise(
    "appendix_f_speed/writing.ipynb",
    "(?i)cache",
    "With a cache of keys and values the model writes the same tokens as without.",
    "positions. A new token's position is the number of tokens in the cache, not 0; "
    "and the cache must begin empty for each text.",
)
def cached_writing(yours):
    for length in (3, yours.cfg["context_length"] - 7):
        written(yours, yours.write_cached, length)


@promise(
    "ch02_text_data/text_data.ipynb",
    "(?i)what should it answer|targets",
    "Targets are the inputs, one token further on, and no window leaves the text.",
    "targets that begin where the inputs begin; they begin one token later.",
)
def windows(yours):
    letters = yours.adapters.Letters()
    text, length = "abcdefghijklmnopqrstuvwxyz", 8
    ids = torch.tensor(letters.encode(text))
    pairs = yours.windows(text, letters, length, length)
    if len(pairs) != 3:
        raise Wrong(f"26 tokens give {len(pairs)} windows of 8 tokens, not 3")
    for n, (inputs, targets) in enumerate(pairs):
        start = n * length
        for name, found, at in (("inputs", inputs, 0), ("targets", targets, 1)):
            found = torch.as_tensor(found)
            wanted = ids[start + at : start + at + length]
            if found.tolist() != wanted.tolist():
                raise Wrong(
                    f"the {name} of window {n} are {found.tolist()}, not "
                    f"{wanted.tolist()}; the text is {ids.tolist()}"
                )


def cross_entropy(logits, targets, **options):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)


# The usual wrong losses, each as the words that tell of it.
WRONG_LOSSES = {
    "a loss that is not shifted: each token is asked for itself, which it has just "
    "read; ask for the next one": lambda logits, x, y: cross_entropy(logits, x),
    "a loss that is shifted the wrong way: each token is asked for the one before "
    "it": lambda logits, x, y: cross_entropy(logits[:, 1:], x[:, :-1]),
    "`cross_entropy` after a softmax; it takes logits and does the softmax "
    "itself": lambda logits, x, y: cross_entropy(logits.softmax(-1), y),
    "a sum over tokens; take the mean, or the loss grows with the "
    "batch": lambda logits, x, y: cross_entropy(logits, y, reduction="sum"),
    "the loss at the last position only; every position has a next token, and learns "
    "from it": lambda logits, x, y: cross_entropy(logits[:, -1:], y[:, -1:]),
    "a loss in bits; the course counts in nats, with the natural "
    "logarithm": lambda logits, x, y: cross_entropy(logits, y) / math.log(2),
}


@promise(
    TRAINING,
    "(?i)how wrong is a guess|cross.entropy",
    "The loss is the mean of -ln p of the next token, over all tokens of all texts.",
    "the shift. Row t of the logits is about token t + 1.",
)
def loss(yours):
    model = yours.copied("make_model", yours.weights(), yours.cfg)
    ids = ids_of(yours, 3, 8)
    found = yours.text_loss(model, ids)
    if not isinstance(found, torch.Tensor) or not found.requires_grad:
        raise Wrong(
            "the loss is no tensor with a gradient, so nothing can learn from it"
        )
    need_shape(found, (), "the loss")
    found = found.item()
    with torch.no_grad():
        logits = yours.answer(model, ids[:, :-1])
        texts = logits, ids[:, :-1], ids[:, 1:]
        wanted = cross_entropy(logits, ids[:, 1:]).item()
        wrong = {words: f(*texts).item() for words, f in WRONG_LOSSES.items()}
    if abs(found - wanted) > CLOSE:
        fits = [words for words, value in wrong.items() if abs(found - value) < CLOSE]
        likely = fits[0] if fits else None
        raise Wrong(f"the loss is {found:.4f}, not {wanted:.4f}", likely)


def stepped(yours, model, ids, kind: str | None, clear: bool, rate: float) -> list:
    """A copy's parameters after three steps by hand, with a wrong loss or the right."""
    loss_of = WRONG_LOSSES.get(kind, lambda logits, x, y: cross_entropy(logits, y))
    model = copy.deepcopy(model).train()
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(3):
        logits = yours.answer(model, ids[:, :-1])
        loss = loss_of(logits, ids[:, :-1], ids[:, 1:])
        new = torch.autograd.grad(loss, list(model.parameters()))
        old = [torch.zeros_like(g) for g in new] if clear else gradients
        gradients = [a + b for a, b in zip(old, new, strict=True)]
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p -= rate * gradient
    return [p.detach() for p in model.parameters()]


@promise(
    TRAINING,
    "(?i)one step of learning|zero_grad",
    "A training step moves the weights against the gradient of this batch's loss, and "
    "of no earlier one.",
    "gradients that are not cleared. `backward` adds to those that are there, so "
    "`optimizer.zero_grad()` comes before it.",
)
def training_steps(yours):
    torch.manual_seed(0)
    model, rate = yours.make_model(yours.cfg), 0.05
    ids = ids_of(yours, 2, 8)
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    yours.train(model, optimizer, ids, 3)
    found = [p.detach() for p in model.parameters()]

    def gap(right):
        return max(
            (a - b).abs().max().item() for a, b in zip(found, right, strict=True)
        )

    off = gap(stepped(yours, start, ids, None, True, rate))
    if off <= 1e-5:
        return
    told = f"three steps of SGD end up to {off:.2g} from where they should, in a weight"
    if gap([p.detach() for p in start.parameters()]) == 0:
        raise Wrong("three steps were made, and no weight has moved")
    if gap(stepped(yours, start, ids, None, False, rate)) <= 1e-5:
        raise Wrong(
            told,
            "gradients that are not cleared: `backward` adds to those of the step "
            "before, so `optimizer.zero_grad()` comes before it",
        )
    for kind in list(WRONG_LOSSES):
        if gap(stepped(yours, start, ids, kind, True, rate)) <= 1e-5:
            raise Wrong(told, kind)
    raise Wrong(told)


@promise(
    TRAINING,
    "(?i)by heart|one step of learning",
    "A model can learn one small batch by heart: within 100 steps its loss on the "
    "batch falls below 0.5.",
    "parameters that the optimizer does not know, a `detach` or `no_grad` on the way, "
    "or a loss that asks for something else.",
)
def learns_by_heart(yours):
    torch.manual_seed(0)
    model = yours.make_model(yours.cfg)
    ids = ids_of(yours, 3, 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    yours.train(model, optimizer, ids, 100)
    with torch.no_grad():
        logits = yours.answer(model.eval(), ids[:, :-1])
    found = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    if not found < 0.5:
        raise Wrong(
            f"after 100 steps of Adam on three short texts the loss is {found:.2f}; an "
            f"untrained model has {math.log(yours.cfg['vocab_size']):.2f}"
        )


@promise(
    KEEPING,
    "(?i)save a model|state_dict",
    "A saved model, loaded again, gives the same logits to the last bit.",
    "numbers that `state_dict` does not hold: a tensor that is neither a parameter nor "
    "a buffer, or blocks in a Python list. Or dropout that was left on.",
)
def save_and_load(yours):
    model = yours.copied("make_model", yours.weights(), yours.cfg)
    ids = ids_of(yours, 2, 7)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.safetensors"
        yours.save(model, path)
        torch.manual_seed(5)
        again = yours.load(yours.cfg, path).eval()
        first, second = yours.answer(model, ids), yours.answer(again, ids)
    if not torch.equal(first, second):
        gap = (first - second).abs().max().item()
        raise Wrong(f"the logits of the loaded model differ by up to {gap:.2g}")


def round_trips(yours, tokenizer) -> None:
    for text in TEXTS:
        back = yours.decode(tokenizer, yours.encode(tokenizer, text))
        if back != text:
            raise Wrong(f"{text!r} comes back as {back!r}")


@promise(
    "ch02_text_data/bpe.ipynb",
    "(?i)which pieces do we start|bytes",
    "A tokenizer gives every text back, letter by letter, whatever it was learned "
    "from.",
    "starting from letters; start from the 256 bytes, and there is no unknown one. Or "
    "spaces that `decode` puts between tokens.",
)
def tokenizer_round_trip(yours):
    round_trips(yours, yours.own_tokenizer(STORY, 280))


@promise(
    "ch02_text_data/bpe.ipynb",
    "(?i)glue together|merge",
    "A tokenizer that has read a text needs fewer tokens for it than it has bytes.",
    "merges that are learned and then not used by `encode`.",
)
def tokenizer_learns(yours):
    tokenizer = yours.own_tokenizer(STORY, 280)
    found, bytes_ = len(yours.encode(tokenizer, STORY)), len(STORY.encode())
    if not found < 0.6 * bytes_:
        raise Wrong(f"{bytes_} bytes became {found} tokens after 24 merges")


@promise(
    "ch02_text_data/bpe.ipynb",
    "(?i)GPT-2's tokenizer, whole|from_gpt2",
    "With GPT-2's merges, your tokenizer gives the ids of OpenAI's tiktoken.",
    "the pattern that cuts a text into words (spaces go with the word after them), or "
    "merges in the order of the text; the earliest learned comes first.",
)
def tokenizer_equals_tiktoken(yours):
    from shared.ch02 import get_tokenizer

    tokenizer, theirs = yours.gpt2_tokenizer(), get_tokenizer()
    for text in TEXTS:
        found, wanted = yours.encode(tokenizer, text), theirs.encode(text)
        if found != wanted:
            raise Wrong(f"{text!r} becomes {found}, and tiktoken gives {wanted}")
    round_trips(yours, tokenizer)


def module_from(path: Path, name: str):
    """Import a file by its path; what lies beside it can be imported by it."""
    path = Path(path).resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def adapters_from(path: Path | None = None):
    """The adapters of the course, with what a file of yours writes anew."""
    adapters = module_from(Path(__file__).with_name("adapters.py"), "_adapters")
    if path is not None:
        own = module_from(path, "_own_adapters")
        for name in [n for n in vars(own) if not n.startswith("_")]:
            setattr(adapters, name, getattr(own, name))
    return adapters
