"""A model's page computes what Python computes: ids, logits, texts, draws; in V8.

The scripts are read from a page as a browser reads them, and run in an engine without
browser. tests/browser/pages.py opens pages in Chromium.
"""

import copy
import json
import random
import re

import pytest
import torch
from models import TINY, random_gpt
from py_mini_racer import MiniRacer

from shared.ch02 import BPETokenizer, get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import (
    generate,
    load_base,
    load_base_tokenizer,
    load_storyteller,
    next_token_probabilities,
)
from shared.ch07 import format_prompt
from shared.data import load_text
from shared.page import PARTS, PROMPTS, build_page, quantise_rows
from shared.page_parts.checks import check_model
from tools.page import character_classes

SHOWN = re.compile(r'<script type="[\w/]+" id="(\w+)">\n?(.*?)\n?</script>', re.DOTALL)
ODD = [
    *("", " ", "  two  spaces ", "\n\n\n", "\t\ttabs", "a" * 300, "=" * 257, "!?" * 40),
    *(
        "It's we'll I'd they've don't I'm we're 'S 'LL",
        "naïve café Ärger",
        "e\u0301 combining",
        "½ ² Ⅷ",
    ),
    *(
        "日本語のテキスト",
        "שלום",
        "👩‍👩‍👧 family 🇩🇪",
        "\u200b\ufeff zero",
        "\x00\x1f\x7f\x85",
    ),
    *("\u00a0nbsp\u3000wide", "<|endoftext|>", "x<|endoftext|>y", "\U0010ffff", "𝔘𝔫𝔦"),
    *("3.14159e-10 0x1F ١٢٣", "\u1c80\u1c89 \ua7cb", "\u2028\u2029", "don\u2019t"),
]


class Engine:
    """The scripts of a page in V8."""

    def __init__(self, page):
        self.parts = dict(SHOWN.findall(page))
        self.info = json.loads(self.parts["info"])
        self.v8 = MiniRacer()
        engine = self.parts["engine"]
        self.v8.eval(engine[: engine.index("// What runs beside the page")])
        self.v8.eval(f"const info = {self.parts['info']}; let bytes, rows;")
        self.v8.call(
            "(text => (bytes = base64_bytes(text)).length)", self.parts["weights"]
        )
        self.v8.eval(
            "const model = new GPTModel(info.cfg, info.layout, bytes);"
            "const tokenizer = new BPETokenizer(info.tokenizer);"
        )

    def call(self, function, *arguments):
        """The value of a JavaScript function, whatever it is made of."""
        text = f"((...a) => JSON.stringify(({function})(...a)))"
        return json.loads(self.v8.call(text, *arguments))

    def ids(self, text):
        return self.call("text => tokenizer.encode_ordinary(text)", text)

    def logits(self, ids):
        """All logits of a text: (T, V)."""
        read = "ids => { model.cut(0); rows = ids.map((id, i) => { model.read(id);"
        self.call(read + " return model.logits(i); }); return 1; }", ids)
        rows = [self.v8.eval(f"rows[{i}].buffer") for i in range(len(ids))]
        return torch.stack([torch.tensor(row.cast("f").tolist()) for row in rows])

    def greedy(self, ids, n):
        """The ids with n more, each the likeliest."""
        go_on = "(ids, n) => { model.cut(0); ids.forEach(id => model.read(id));"
        go_on += " while (n--) model.read(likeliest(model.logits(model.ids.length - 1)"
        return self.call(go_on + ", 1)[0]); return model.ids; }", ids, n)


def in_int8(model):
    """A copy of a model, with the numbers that its page has."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in check_model(model)[1].values():
            if parameter.dim() == 2:
                codes, scale = map(torch.tensor, quantise_rows(parameter))
                parameter.copy_(codes * scale[:, None])
    return model


def tiny(**changes):
    """A random GPT with the storyteller's tokens."""
    return random_gpt({**TINY, "vocab_size": 1000, "context_length": 64, **changes})


@pytest.fixture(scope="module")
def tokens():
    return load_storyteller()[1]


@pytest.fixture(scope="module", params=["storyteller", "base", "untied"])
def pair(request, tokens):
    """A model in int8, its tokenizer, and the engine of its page."""
    if request.param == "untied":  # with biases where the others have none
        model, tokenizer = tiny(qkv_bias=True, context_length=256), tokens
    elif request.param == "base":
        model, tokenizer = load_base(), load_base_tokenizer()
    else:
        model, tokenizer = load_storyteller()
    engine = Engine(build_page(model, tokenizer))
    yield in_int8(model), tokenizer, engine
    engine.v8.close()


def test_logits_are_those_of_torch_over_200_positions(pair):
    model, tokenizer, engine = pair
    ids = tokenizer.encode_ordinary(load_text("held-out"))[:200]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    found = engine.logits(ids)
    assert found.shape == expected.shape == (200, model.cfg["vocab_size"])
    assert (found - expected).abs().max() < 1e-3
    assert expected.abs().max() > 1  # so that there is something to compare


def test_the_likeliest_text_is_the_same(pair):
    model, tokenizer, engine = pair
    ids = tokenizer.encode_ordinary("Once upon a time there was a fox named Zoe")
    context = model.cfg["context_length"]
    expected = generate(model, torch.tensor([ids]), 60, context)[0].tolist()
    assert engine.greedy(ids, 60) == expected


def test_ids_are_the_same(pair):
    _, tokenizer, engine = pair
    for text in [load_text("held-out"), *ODD]:
        assert engine.ids(text) == tokenizer.encode_ordinary(text), text


def test_ids_are_those_of_gpt2_for_fuzzed_texts():
    gpt2 = get_tokenizer()
    model = GPTModel({**TINY, "vocab_size": 50257})
    engine, ours = Engine(build_page(model, gpt2)), BPETokenizer.from_gpt2()
    assert engine.info == Engine(build_page(model, ours)).info
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz      ''''\n\n.,!019ABC" * 3
    letters += "".join(ODD) + "".join(map(chr, range(0x20, 0x2FF, 5)))
    letters = letters.replace("<|endoftext|>", "")
    texts = [
        "".join(chance.choices(letters, k=chance.randrange(60))) for _ in range(400)
    ]
    texts += [
        "".join(chr(chance.randrange(0xD800)) for _ in range(30)) for _ in range(99)
    ]
    found = engine.call("texts => texts.map(x => tokenizer.encode_ordinary(x))", texts)
    assert found == [ours.encode_ordinary(text) for text in texts]
    # tiktoken's Unicode is another year's, so letters that are newer are left out
    plain = texts[:400]
    assert found[:400] == [gpt2.encode_ordinary(text) for text in plain]
    engine.v8.close()


@pytest.fixture(scope="module")
def engine(tokens):
    engine = Engine(build_page(tiny(), tokens))
    yield engine
    engine.v8.close()


def test_texts_come_back_from_their_ids(engine):
    for text in ODD:
        bytes_of = "text => Array.from(tokenizer.decode_bytes(tokenizer.encode_ordinary"
        assert engine.call(f"{bytes_of}(text)))", text) == list(text.encode())
    assert engine.call("x => utf8('a' + String.fromCharCode(0xd83d) + 'b')", 0) == list(
        "a\ufffdb".encode()
    )


def test_a_long_word_without_spaces_does_not_take_for_ever(engine):
    assert len(engine.ids("xyz" * 5000)) > 1000


@pytest.mark.parametrize("temperature", [0, 0.1, 0.7, 1, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 999, 1000])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.9, 1])
def test_tokens_are_drawn_from_chapter_5_s_distribution(
    engine, temperature, top_k, top_p
):
    logits = 3 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(2))
    expected = next_token_probabilities(logits, temperature, top_k, top_p)[0]
    settings = {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p or 0}
    pairs = engine.call(
        "(x, s) => next_token_probabilities(Float32Array.from(x), s)",
        logits[0].tolist(),
        settings,
    )
    found = torch.zeros(1000)
    for i, chance in pairs:
        found[i] = chance
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    # one token more or less may stand at the very border of top_p
    assert abs(len(pairs) - (expected > 0).sum()) <= 1


def test_equal_logits_are_cut_at_top_k(engine):
    draws = "x => next_token_probabilities(new Float32Array(9), x)"
    pairs = engine.call(draws, {"temperature": 1, "top_k": 4, "top_p": 0})
    assert [i for i, _ in pairs] == [0, 1, 2, 3]
    assert sum(chance for _, chance in pairs) == pytest.approx(1)


def test_random_numbers_are_even_and_depend_on_the_seed(engine):
    many = (
        "seed => { const r = random_numbers(seed), all = []; for (let i = 0; i < 4000;"
    )
    many += " i++) all.push(r()); return all; }"
    first, again, other = (engine.call(many, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) > 3990 and 0 <= min(first) and max(first) < 1
    assert sum(first) / 4000 == pytest.approx(0.5, abs=0.03)
    starts = [engine.call(many, seed)[0] for seed in range(40)]
    assert 0.3 < sum(starts) / 40 < 0.7 and len(set(starts)) == 40


def test_draws_follow_their_probabilities(engine):
    draws = (
        "seed => { const r = random_numbers(seed), n = [0, 0, 0]; for (let i = 0; i < "
    )
    draws += "6000; i++) n[draw([[0, 0.6], [1, 0.3], [2, 0.1]], r)]++; return n; }"
    assert engine.call(draws, 5) == pytest.approx([3600, 1800, 600], abs=150)


def test_prompts_are_those_of_chapter_7(engine):
    for style in PROMPTS:
        for text in ("", "A text."):
            entry = {"instruction": "Do it.", "input": text}
            prompt = engine.call(
                "(p, q, t) => format_prompt(p, q, t)", PROMPTS[style], "Do it.", text
            )
            assert prompt == format_prompt(entry, style)


def test_runs_of_words_join_to_the_text(engine):
    runs = "(text, most) => runs_of_words(text, most)"
    assert engine.call(runs, "Call now  to win!", 2) == ["Call now  ", "to win!"]
    assert engine.call(runs, " ", 5) == []
    for text in (" a b  c\n", "x" * 50, "one " * 200):
        found = engine.call(runs, text, 40)
        assert "".join(found) == text and len(found) <= 40


def test_log_odds(engine):
    x = torch.tensor([1.5, -2.0, 30.0]).double()
    p = x.softmax(0)
    for label in range(3):
        odds = engine.call("(x, i) => log_odds(x, i)", x.tolist(), label)
        rest = p.sum() - p[label] if label < 2 else p[:2].sum()
        assert odds == pytest.approx((p[label].log() - rest.log()).item(), rel=1e-5)


def test_int8_is_near_and_keeps_rows_of_zeros():
    matrix = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    matrix[2] = 0
    codes, scale = map(torch.tensor, quantise_rows(matrix))
    assert codes.dtype == torch.int8 and scale[2] == 0
    error = (codes * scale[:, None] - matrix).abs()
    assert (error <= scale[:, None] / 2 + 1e-7).all()


def test_the_letters_of_the_page_are_those_of_chapter_2b():
    assert (PARTS / "unicode.js").read_text(encoding="utf-8") == character_classes()


def test_the_forward_pass_has_chapter_4_s_names():
    script = (PARTS / "gpt.js").read_text(encoding="utf-8")
    for name, _ in tiny().named_modules():
        if name and "drop" not in name:
            for part in name.split("."):
                assert part.isdigit() or part in script, name
    assert len(script.splitlines()) < 300


def test_a_page_names_no_other_machine(tokens):
    page = build_page(tiny(), tokens)
    assert not re.search(r"https?://|//\w+\.\w+/|@import|src=|href=\"(?!data:)", page)
    assert "default-src 'none'" in page


def test_what_is_said_of_the_model_cannot_break_the_page(tokens):
    page = build_page(
        tiny(), tokens, "</title><script>alert(1)</script>", "{{info}} & <b>"
    )
    assert "alert(1)</script>" not in page and "{{info}} &amp; &lt;b&gt;" in page
    odd = copy.copy(tokens)
    odd.special_tokens = {"</script><!--": tokens.eot_token}
    assert page.count("</script") == build_page(tiny(), odd).count("</script")
