"""The tests for a reader's own model find what they should, and say it well."""

import re
import sys
import types

import pytest
import torch

from shared.ch04 import GPTModel
from tools import bundle
from tools.export import ROOT

FOLDER = ROOT / "tests/your_model"
sys.path.insert(0, str(FOLDER))
import promises  # noqa: E402
import reference  # noqa: E402

pytest_plugins = ["pytester"]
EXAMPLE = FOLDER / "example.py"

# A change of `example.py`, the promise that breaks, and what the message says.
BROKEN = {
    "the mask lets the next token through": (
        ("triu(diagonal=past + 1)", "triu(diagonal=past + 2)"),
        *("attention_is_causal", "position 0 sees token 1"),
    ),
    "... and attention is recognised": (
        ("triu(diagonal=past + 1)", "triu(diagonal=past + 2)"),
        *("attention_equals_ours", "a mask that begins one place too late"),
    ),
    "the mask hides the token itself": (
        ("triu(diagonal=past + 1)", "triu(diagonal=past)"),
        *("attention_equals_ours", "hides each token from itself"),
    ),
    "there is no mask": (
        ("scores = scores.masked_fill(hidden, -torch.inf)", "pass"),
        *("model_equals_ours", "attention without a mask"),
    ),
    "the mask comes after the softmax": (
        (
            "scores = scores.masked_fill(hidden, -torch.inf)\n"
            "        weights = self.dropout(scores.softmax(dim=-1))",
            "weights = scores.softmax(dim=-1).masked_fill(hidden, 0.0)",
        ),
        *("attention_equals_ours", "mask the scores, with -inf"),
    ),
    "scores are not scaled": (
        (" / math.sqrt(self.width)", ""),
        *("attention_equals_ours", "not divided by the square root"),
    ),
    "scores are scaled by the whole width": (
        ("math.sqrt(self.width)", "math.sqrt(C)"),
        *("model_equals_ours", "square root of the whole width"),
    ),
    "the softmax runs over queries": (
        ("scores.softmax(dim=-1)", "scores.softmax(dim=-2)"),
        *("attention_equals_ours", "a softmax over the queries' axis"),
    ),
    "heads are joined without a transpose": (
        ("(weights @ v).transpose(1, 2).reshape", "(weights @ v).reshape"),
        *("attention_equals_ours", "without swapping H and T back"),
    ),
    "heads are cut without a transpose": (
        (
            "x.view(*x.shape[:2], self.heads, self.width).transpose(1, 2)",
            "x.view(x.shape[0], self.heads, x.shape[1], self.width)",
        ),
        *("attention_equals_ours", "cut by `view"),
    ),
    "the norm runs over tokens": (
        (
            "mean = x.mean(dim=-1, keepdim=True)\n"
            "        variance = x.var(dim=-1, keepdim=True, unbiased=False)",
            "mean = x.mean(dim=1, keepdim=True)\n"
            "        variance = x.var(dim=1, keepdim=True, unbiased=False)",
        ),
        *("norm", "a norm over the tokens of a text"),
    ),
    "the norm's variance is that of a sample": (
        (", unbiased=False", ""),
        *("norm", "divided by C - 1"),
    ),
    "the norm comes after": (
        (
            "x = x + self.drop(self.att(self.norm1(x), cache))\n"
            "        x = x + self.drop(self.ff(self.norm2(x)))",
            "x = self.norm1(x + self.att(x, cache))\n"
            "        x = self.norm2(x + self.ff(x))",
        ),
        *("block_equals_ours", "a norm after each part"),
    ),
    "a shortcut is missing": (
        ("x = x + self.drop(self.ff(self.norm2(x)))", "x = self.ff(self.norm2(x))"),
        *("block_equals_ours", "a feed-forward network that replaces x"),
    ),
    "the nonlinearity is another": (
        ('nn.GELU(approximate="tanh")', "nn.ReLU()"),
        *("block_equals_ours", "ReLU in place of GELU"),
    ),
    "positions are missing": (
        ("self.tok_emb(ids) + self.pos_emb(positions)", "self.tok_emb(ids)"),
        *("model_equals_ours", "without the embeddings of positions"),
    ),
    "the last norm is missing": (
        ("self.out_head(self.final_norm(x))", "self.out_head(x)"),
        *("model_equals_ours", "without the norm before the output head"),
    ),
    "the model answers for the last position only": (
        ("return self.out_head(self.final_norm(x))", "return self.out_head(x[:, -1:])"),
        *("model_shape", "has the shape (2, 1, 61), not (2, 7, 61)"),
    ),
    "blocks stand in a list": (
        (
            "nn.ModuleList(\n            [TransformerBlock(cfg) for _ in "
            'range(cfg["n_layers"])]\n        )',
            '[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]',
        ),
        *("parameters", "which PyTorch does not look into"),
    ),
    "the head begins with large numbers": (
        ("std=0.02", "std=1.0"),
        *("first_loss", "sure of something before it has seen any text"),
    ),
    "dropout stays on": (
        ("self.dropout(scores.softmax(dim=-1))", "F.dropout(scores.softmax(dim=-1))"),
        *("dropout", "give other logits"),
    ),
    "a batch's texts see each other": (
        ("scores.softmax(dim=-1)", "scores.softmax(dim=0)"),
        *("texts_are_separate", "when other texts are beside it"),
    ),
    "it reads the beginning of a long text": (
        ("ids[:, -context:]", "ids[:, :context]"),
        *("writing", "is not the likeliest"),
    ),
    "the cache's tokens all stand at position 0": (
        ("past = caches[0][0].shape[2] if caches and caches[0] else 0", "past = 0"),
        *("cached_writing", "A new token's position is the number of tokens in"),
    ),
    "targets are the inputs": (
        ("ids[i + 1 : i + length + 1]", "ids[i : i + length]"),
        *("windows", "the targets of window 0 are"),
    ),
    "the loss is not shifted": (
        ("targets.to(device).flatten())", "inputs.to(device).flatten())"),
        *("loss", "each token is asked for itself"),
    ),
    "the loss gets probabilities": (
        ("logits.flatten(0, 1)", "logits.softmax(-1).flatten(0, 1)"),
        *("loss", "`cross_entropy` after a softmax"),
    ),
    "gradients are not cleared": (
        ("    optimizer.zero_grad()\n", ""),
        *("training_steps", "gradients that are not cleared"),
    ),
    "no step is made": (
        ("    optimizer.step()\n", ""),
        *("training_steps", "no weight has moved"),
    ),
    "the loaded numbers are left where they are": (
        ("    model.load_state_dict(load_file(path))\n", ""),
        *("save_and_load", "the logits of the loaded model differ"),
    ),
    "the tokenizer puts spaces between tokens": (
        ('b"".join', 'b" ".join'),
        *("tokenizer_round_trip", "comes back as"),
    ),
    "merges are not used": (
        ("for pair in self.merges", "for pair in []"),
        *("tokenizer_learns", "learned and then not used"),
    ),
}


def changed(old="", new=""):
    """`example.py` as a module, after a change of its text."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert not old or text.count(old) == 1, f"{text.count(old)} times: {old}"
    module = types.ModuleType("my_gpt")
    module.__file__ = "my_gpt.py"
    exec(
        compile(text.replace(old, new) if old else text, "my_gpt.py", "exec"),
        vars(module),
    )
    return module


def yours(module, adapters=None):
    return promises.Yours(module, adapters or promises.adapters_from())


def plain(message):
    """A message as one line."""
    return " ".join(message.split())


def test_the_example_keeps_every_promise_that_it_makes():
    missing = []
    for name in promises.PROMISES:
        try:
            assert promises.broken(name, yours(changed())) is None, name
        except promises.Missing:
            missing.append(name)
    assert missing == ["tokenizer_equals_tiktoken"]


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_found_by_the_right_test_with_the_right_words(case):
    change, promise, words = BROKEN[case]
    told = promises.broken(promise, yours(changed(*change)))
    assert told and words in plain(told), told


@pytest.mark.parametrize("name", promises.PROMISES)
def test_each_promise_is_broken_by_somebody(name):
    by = [case for case, (_, promise, _) in BROKEN.items() if promise == name]
    elsewhere = {
        "attention_shape": "test_an_error_of_the_reader_s_code_is_told_as_such",
        "model_is_causal": "test_a_model_that_looks_ahead_is_found_as_a_whole",
        "learns_by_heart": "test_a_model_that_cannot_learn_is_found",
        "tokenizer_equals_tiktoken": "test_a_tokenizer_with_other_ids_is_found",
    }
    assert by or elsewhere[name] in globals()


def test_an_error_of_the_reader_s_code_is_told_as_such():
    module = changed("(weights @ v).transpose(1, 2)", "(weights @ v[:, :1, :, :2])")
    told = plain(promises.broken("attention_shape", yours(module)))
    assert "`run` raised RuntimeError" in told and "in line" in told
    assert "usually" not in told


def test_a_model_that_looks_ahead_is_found_as_a_whole():
    module = changed("return self.layers(x)", "return self.layers(x.roll(-1, 1))")
    told = plain(promises.broken("model_is_causal", yours(module)))
    assert "moved logits at position" in told


def test_a_model_that_cannot_learn_is_found():
    module = changed(
        "return self.out_head(self.final_norm(x))",
        "return self.out_head(self.final_norm(x)) / 50",
    )
    told = plain(promises.broken("learns_by_heart", yours(module)))
    assert "after 100 steps of Adam" in told and "4.11" in told


class FakeTokenizer:
    """Gives GPT-2's ids if it is told to, and else one more."""

    def __init__(self, more=0):
        from shared.ch02 import get_tokenizer

        self.theirs, self.more = get_tokenizer(), more

    def encode(self, text):
        return [n + self.more for n in self.theirs.encode(text)]

    def decode(self, ids):
        return self.theirs.decode([n - self.more for n in ids])


def test_a_tokenizer_with_other_ids_is_found():
    for more, found in ((0, False), (1, True)):
        adapters = promises.adapters_from()
        adapters.gpt2_tokenizer = lambda mine, more=more: FakeTokenizer(more)
        told = promises.broken("tokenizer_equals_tiktoken", yours(changed(), adapters))
        assert bool(told) == found
    assert "tiktoken gives [64]" in plain(told)


def test_the_reference_is_the_course_s_own_model():
    cfg = promises.SETTINGS
    weights = reference.weights_of(cfg)
    model = GPTModel(cfg).eval()
    model.load_state_dict(weights)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    with torch.no_grad():
        assert torch.allclose(model(ids), reference.model(ids, weights, cfg), atol=1e-5)


@pytest.mark.parametrize("mistake", reference.MISTAKES)
def test_each_mistake_of_the_reference_shows_in_the_numbers(mistake):
    cfg, weights = promises.SETTINGS, reference.weights_of(promises.SETTINGS)
    ids = torch.randint(61, (2, 7), generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1)) * 0.003

    if mistake in reference.OF_NORMS:
        weights = reference.part(weights, "final_norm")
        right, wrong = (reference.norm(x, weights, m) for m in (None, mistake))
    else:
        right, wrong = (reference.model(ids, weights, cfg, m) for m in (None, mistake))
    assert not (right - wrong).abs().max() < 5 * promises.CLOSE


def test_a_reader_with_other_names_gives_them_in_one_file(tmp_path):
    text = EXAMPLE.read_text(encoding="utf-8")
    for old, new in {
        "trf_blocks": "blocks",
        r"\batt\b": "attn",
        "W_query": "q",
        r"\bGPTModel\b": "Storyteller",
    }.items():
        text = re.sub(old, new, text)
    (tmp_path / "other.py").write_text(text)
    (tmp_path / "mine.py").write_text(
        'NAMES = {"trf_blocks": "blocks", "att": "attn", "W_query": "q"}\n\n'
        "def make_model(mine, cfg):\n    return mine.Storyteller(cfg)\n"
    )
    mine = promises.module_from(tmp_path / "other.py", "_other")
    for path, kept in ((None, False), (tmp_path / "mine.py", True)):
        adapters = promises.adapters_from(path)
        if not kept:
            with pytest.raises(promises.Missing, match="no `GPTModel`.*`make_model`"):
                promises.broken("model_equals_ours", promises.Yours(mine, adapters))
        else:
            for name in (
                "attention_equals_ours",
                "block_equals_ours",
                "model_equals_ours",
            ):
                told = promises.broken(name, promises.Yours(mine, adapters))
                assert told is None, told


def test_queries_keys_and_values_may_be_made_by_one_layer():
    text = EXAMPLE.read_text(encoding="utf-8")
    for old, new in {
        "self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)": "self.c_attn = "
        "nn.Linear(d_in, 3 * d_out, bias=qkv_bias)",
        "        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)\n": "",
        "        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)\n": "",
        "(self.split(f(x)) for f in (self.W_query, self.W_key, self.W_value))": "map("
        "self.split, self.c_attn(x).split(C, dim=2))",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    module = types.ModuleType("my_gpt")
    exec(text, vars(module))
    adapters = promises.adapters_from()
    adapters.FUSED = "c_attn"
    for name in ("attention_equals_ours", "model_equals_ours", "parameters"):
        assert promises.broken(name, yours(module, adapters)) is None


def test_settings_can_be_others():
    adapters = promises.adapters_from()
    adapters.SETTINGS = {"qkv_bias": False, "tie_weights": True}
    mine = yours(types.SimpleNamespace(GPTModel=GPTModel), adapters)
    for name in ("parameters", "model_equals_ours", "first_loss"):
        assert promises.broken(name, mine) is None


@pytest.mark.parametrize("name", promises.PROMISES)
def test_each_promise_names_a_section_that_is_there(name):
    promise = promises.PROMISES[name]
    assert promises.section_about(promise.notebook, promise.about)


@pytest.fixture
def command(pytester, monkeypatch):
    """Run the tests of a file, without the plugins that only notebooks need."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(text, *arguments):
        (pytester.path / "gpt.py").write_text(text, encoding="utf-8")
        alone = ["-q", f"--confcutdir={FOLDER}", FOLDER, "--model", "gpt.py"]
        return pytester.runpytest_inprocess(*alone, *arguments)

    return run


def test_the_command_runs_on_the_course_s_own_bundle(command):
    done = command(bundle.bundle("ch04"))
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        [
            "not checked: loss: gpt.py has no `calc_loss_batch`*",
            "15 kept, 0 broken, 7 not checked",
        ]
    )


def test_the_command_tells_what_is_broken(command):
    text = EXAMPLE.read_text(encoding="utf-8").replace(
        "    optimizer.zero_grad()\n", ""
    )
    done = command(text, "-k", "training_steps")
    assert done.ret == 1
    done.stdout.fnmatch_lines(
        [
            "promised   A training step moves the weights against the gradient*",
            "look here  Your numbers are exactly those of gradients that are not*",
            "read       section 5*",
            "0 kept, 1 broken, 0 not checked",
        ]
    )


def test_the_page_about_it_counts_right():
    page = plain((ROOT / "docs/your-model.md").read_text(encoding="utf-8"))
    known = len(reference.MISTAKES) + len(promises.WRONG_LOSSES)
    assert f"They know {known} usual mistakes" in page
    assert len(BROKEN) > 30 and "more than thirty ways" in page
