"""What the playground computes, draws and keeps; the page itself needs a browser."""

import ast
import dataclasses
import re
import sys

import pytest
import torch
from models import TINY, random_gpt, same_weights

from playground import __main__ as command
from playground import compute, draw, keep
from playground.compute import Sampling, Token
from shared.ch02 import BPETokenizer
from shared.ch05 import generate, next_token_probabilities, save_checkpoint
from shared.ch06 import GPTClassifier, load_classifier, spam_probabilities
from tools.export import ROOT

TEXT = "The cat sat on the mat; the cat saw a hat.\n" * 5
ODD = [
    "a",
    " \n\t ",
    "\0\x07\u200f\u202e\ufeff",
    "nai\u0308ve \u4f60\u597d \U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "<|endoftext|><script>alert('\"&')</script>",
    "=" * 3000,
]


@pytest.fixture(scope="module")
def tokenizer():
    learned = BPETokenizer()
    learned.train(TEXT, 275)
    return learned


@pytest.fixture(scope="module")
def gpt(tokenizer):
    return random_gpt({**TINY, "vocab_size": tokenizer.n_vocab})


@pytest.fixture(scope="module")
def classifier(tokenizer):
    torch.manual_seed(1)
    body = random_gpt({**TINY, "vocab_size": tokenizer.n_vocab})
    return GPTClassifier(body, pad_token_id=tokenizer.eot_token).eval()


# What is typed


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("x" * (compute.LONGEST_TEXT + 1), "more than 20,000 characters"),
        ("ab\ud800", "Character 3 of the story is half of a surrogate pair"),
        ("", "story is empty"),
        (" \n", "story is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(typed, says):
    with pytest.raises(ValueError, match=says):
        compute.required(typed, "story")


@pytest.mark.parametrize("typed", ["x" * compute.LONGEST_TEXT, *ODD[:1], *ODD[2:5]])
def test_odd_text_that_can_be_read_is_taken_as_it_is(typed):
    assert compute.required(typed, "story") == typed


# Tokens


@pytest.mark.parametrize("text", ODD)
def test_tokens_together_are_the_text(tokenizer, text):
    found = compute.read_tokens(text, tokenizer)
    assert b"".join(token.data for token in found) == text.encode()
    assert [token.id for token in found] == tokenizer.encode_ordinary(text)


def test_a_part_of_a_character_has_no_text(tokenizer):
    assert Token(0, b"\xc3").text is None and Token(0, " é".encode()).text == " é"
    assert draw.label(Token(0, b"\xf0\x9f")) == "F0 9F"
    assert draw.label(Token(0, b" a\n\x07")) == "\u00b7a\u21b5\\x07"


def test_a_learned_tokenizer_is_chapter_2b_s():
    expected = BPETokenizer()
    expected.train(TEXT, 270, allowed_special=())
    found = compute.learn_tokenizer(TEXT, 270)
    assert found.merges == expected.merges and found.n_vocab == 270
    assert found.decode(found.encode_ordinary(TEXT)) == TEXT


def test_a_short_text_gives_a_smaller_vocabulary():
    assert compute.learn_tokenizer("abab", 2000).n_vocab == 258  # ab, abab
    assert compute.learn_tokenizer("a", 300).n_vocab == 256


@pytest.mark.parametrize("size", [255, 2001])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=f"{size:,} tokens cannot be learned"):
        compute.learn_tokenizer(TEXT, size)


# The next token


def first(n, steps):
    return [step for step, _ in zip(steps, range(n), strict=False)]


def test_writing_step_by_step_is_chapter_5_s_generate(gpt, tokenizer):
    ids = tokenizer.encode_ordinary("The cat")
    for n in (5, 25):  # the second goes on beyond the context
        steps = first(n, compute.write(gpt, tokenizer, ids, Sampling(temperature=0)))
        expected = generate(gpt, torch.tensor([ids]), n, TINY["context_length"])
        assert [step.token.id for step in steps] == expected[0, len(ids) :].tolist()


def test_the_same_seed_draws_the_same_text(gpt, tokenizer):
    ids, sampling = tokenizer.encode_ordinary("A hat"), Sampling(1.3, 40, 0.9)
    chance = torch.Generator().manual_seed(5)
    steps = first(10, compute.write(gpt, tokenizer, ids, sampling, chance))
    expected = generate(
        gpt,
        torch.tensor([ids]),
        10,
        TINY["context_length"],
        1.3,
        40,
        top_p=0.9,
        generator=torch.Generator().manual_seed(5),
    )
    assert [step.token.id for step in steps] == expected[0, len(ids) :].tolist()


def test_both_distributions_are_those_of_the_model(gpt, tokenizer):
    ids = tokenizer.encode_ordinary("the mat")
    (step,) = first(1, compute.write(gpt, tokenizer, ids, Sampling(0.7, 3, 0.95)))
    with torch.no_grad():
        logits = gpt(torch.tensor([ids]))[:, -1]
    drawn = next_token_probabilities(logits, 0.7, 3, 0.95)[0]
    for chance in step.likeliest:
        assert chance.model == pytest.approx(logits.softmax(-1)[0, chance.token.id])
        assert chance.drawn == pytest.approx(drawn[chance.token.id].item(), abs=1e-6)
    shown = [chance.model for chance in step.likeliest]
    assert shown == sorted(shown, reverse=True) and len(shown) == compute.SHOWN_TOKENS
    assert sum(chance.drawn > 0 for chance in step.likeliest) <= 3


def test_a_token_that_was_drawn_is_always_among_those_shown(gpt, tokenizer):
    steps = first(60, compute.write(gpt, tokenizer, [70], Sampling(2.0)))
    shown = [[chance.token for chance in step.likeliest] for step in steps]
    assert all(step.token in row for step, row in zip(steps, shown, strict=True))
    assert any(step.token == row[-1] for step, row in zip(steps, shown, strict=True))


def test_sampling_may_change_between_two_tokens(gpt, tokenizer):
    sampling = Sampling(2.0)
    steps = compute.write(gpt, tokenizer, [70], sampling)
    next(steps)
    sampling.temperature, sampling.top_k = 0, 10**6  # more than there are
    assert all(
        step.token == step.likeliest[0].token and step.likeliest[0].drawn == 1
        for step in first(5, steps)
    )


def test_writing_needs_a_token_to_go_on_from(gpt, tokenizer):
    with pytest.raises(ValueError, match="no token to go on from"):
        next(compute.write(gpt, tokenizer, [], Sampling()))


# Attention


def test_every_row_of_every_head_adds_up_to_one_and_sees_no_later_token(gpt, tokenizer):
    found, weights = compute.attention_of("the cat sat on", gpt, tokenizer)
    T = len(found)
    assert weights.shape == (TINY["n_layers"], TINY["n_heads"], T, T)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert weights.triu(1).abs().max() == 0


def test_a_long_sentence_is_looked_at_as_far_as_it_goes(gpt, tokenizer):
    found, weights = compute.attention_of("b" * 100, gpt, tokenizer)
    assert len(found) == TINY["context_length"] == weights.shape[-1]
    with pytest.raises(ValueError, match="sentence is empty"):
        compute.attention_of(" ", gpt, tokenizer)


def test_the_sharpest_head_looks_at_one_token_that_is_not_the_first():
    weights = torch.zeros(2, 3, 4, 4)
    weights[0, 1, -1, 0] = 1.0  # the first token does not count, nor do the last two
    weights[0, 2, -1, 3] = weights[0, 0, -1, 2] = 1.0
    weights[1, 2, -1, 1] = 0.4
    assert compute.sharpest_head(weights) == (1, 2)
    assert compute.sharpest_head(torch.ones(2, 2, 3, 3)) == (0, 0)


# The spam filter


@pytest.mark.parametrize("text", ["one", "  two words ", "a b  c\nd e f g h", *ODD[2:]])
@pytest.mark.parametrize("most", [1, 3, 60])
def test_runs_of_words_are_the_text_and_not_too_many(text, most):
    runs = compute.runs_of_words(text, most)
    assert "".join(runs) == text and len(runs) <= most
    assert all(run.strip() for run in runs)


def test_a_piece_brings_what_the_text_loses_without_it():
    def count(texts):
        return [float(text.count("x")) for text in texts]

    assert compute.leave_one_out(["ax", "b", "xx"], count) == (3.0, [1.0, 0.0, 2.0])


def test_the_verdict_is_chapter_6_s(classifier, tokenizer):
    message = "the cat sat on the hat"
    found = compute.judge(message, classifier, tokenizer)
    without = ["".join(found.pieces[:i] + found.pieces[i + 1 :]) for i in range(6)]
    texts = [message, *without]
    p = spam_probabilities(texts, classifier, tokenizer, "cpu", 16).double()
    assert found.probability == pytest.approx(p[0].item(), abs=1e-5)
    moved = p[0].logit() - p[1:].logit()
    assert found.moved == pytest.approx(moved.tolist(), abs=1e-3)
    assert found.read == found.tokens == len(tokenizer.encode_ordinary(message))


def test_of_a_long_message_it_says_how_much_was_read(classifier, tokenizer):
    found = compute.judge("zebra " * 200, classifier, tokenizer)
    assert found.read == TINY["context_length"] < found.tokens
    assert len(found.pieces) <= compute.MOST_LEFT_OUT
    assert found.moved[-1] == pytest.approx(0, abs=1e-6)  # it was never read


def test_one_word_can_be_left_out_too(classifier, tokenizer):
    assert len(compute.judge("cat", classifier, tokenizer).moved) == 1


# Drawings


def drawings(text, gpt, classifier, tokenizer):
    """Everything that is drawn of a text."""
    found = compute.read_tokens(text, tokenizer)[:6]
    weights = torch.full((2, 2, len(found), len(found)), 0.5).tril()
    (step,) = first(1, compute.write(gpt, tokenizer, [70], Sampling()))
    chance = dataclasses.replace(step.likeliest[0], token=Token(1, text.encode()))
    verdict = compute.Verdict(1.0, [text], [-0.3], 1, 1)
    return [
        draw.error(text),
        draw.note(text),
        draw.empty(text),
        draw.story(text, text, text),
        draw.tokens(found, text),
        draw.next_token(dataclasses.replace(step, likeliest=[chance])),
        draw.looks(found, weights[0, 0], len(found) - 1),
        draw.heat_map(found, weights[0, 0], 0),
        draw.verdict(verdict),
        draw.conversation([{"role": "user", "content": text}]),
    ]


@pytest.mark.parametrize("text", ODD[:5])
def test_nothing_that_is_typed_becomes_markup(gpt, classifier, tokenizer, text):
    plain = drawings("abc", gpt, classifier, tokenizer)
    for drawing in drawings(text, gpt, classifier, tokenizer):
        assert "<script" not in drawing and "\0" not in drawing.replace(text, "")
        tags = set(re.findall(r"<(\w+)", drawing))
        assert tags <= set(re.findall(r"<(\w+)", "".join(plain))) | {"wbr"}


def test_all_heads_are_drawn_and_one_is_marked():
    drawn = draw.all_heads(torch.rand(3, 2, 5, 5).tril(), 2, 1)
    assert drawn.count("<img") == 6 == drawn.count('alt="block')
    assert drawn.count('class="chosen"') == 1
    assert 'alt="block 3, head 2" title="block 3, head 2" class="chosen"' in drawn


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100 %"), (0.456, "46 %"), (0.0731, "7.3 %"), (0.0996, "10 %"), (0, "0 %")],
)
def test_percent(share, words):
    assert draw.percent(share) == words


# What is kept


@pytest.fixture
def recipe(monkeypatch, tmp_path, classifier):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    return keep.Recipe(
        name="tiny",
        made_of=lambda: {"base": 1},
        prepare=lambda: keep.Training(classifier, iter([0.5]), 1),
        load=load_classifier,
    )


def test_a_model_is_kept_in_the_course_s_cache(recipe, classifier, tmp_path):
    assert recipe.kept() is None
    recipe.keep(classifier)
    assert recipe.path().parent == tmp_path / "playground"
    assert same_weights(recipe.kept(), classifier)


def test_a_damaged_file_is_as_good_as_none(recipe, classifier):
    recipe.keep(classifier)
    whole = recipe.path().read_bytes()
    for damaged in (b"", whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        recipe.path().write_bytes(damaged)
        assert recipe.kept() is None


def test_what_it_is_made_of_decides_and_old_models_go(recipe, classifier):
    recipe.keep(classifier)
    other = dataclasses.replace(recipe, made_of=lambda: {"base": 2})
    assert other.kept() is None and recipe.kept() is not None
    other.keep(classifier)
    assert [*other.path().parent.iterdir()] == [other.path()]


def test_if_it_cannot_be_written_nothing_is_lost(recipe, classifier, monkeypatch):
    recipe.keep(classifier)
    other = dataclasses.replace(recipe, made_of=lambda: {"base": 2})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keep, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        other.keep(classifier)
    assert recipe.kept() is not None
    assert keep.save_checkpoint is not save_checkpoint


@pytest.mark.parametrize("recipe", [keep.SPAM_FILTER, keep.FOLLOWER])
def test_another_base_means_another_training(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    before = recipe.path()
    assert recipe.path() == before
    name = "base/model.safetensors"
    file = dataclasses.replace(keep.FILES[name], sha256="0" * 64)
    monkeypatch.setitem(keep.FILES, name, file)
    assert recipe.path() != before and recipe.path().parent == before.parent


def test_times_are_said_in_words():
    said = [draw.duration(seconds) for seconds in (0.4, 40, 61, 200)]
    assert said == ["0 seconds", "40 seconds", "about 1 minute", "about 3 minutes"]


# The command


def test_only_the_page_and_its_command_need_panel():
    users = []
    for path in sorted((ROOT / "playground").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [getattr(node, "module", None) or ""]
            names += [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.Import | ast.ImportFrom) and "panel" in names:
                users.append(path.name)
    assert sorted(set(users)) == ["__main__.py", "page.py"]


def test_without_panel_the_command_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "panel", None)
    with pytest.raises(SystemExit, match="`make play` installs it"):
        command.main([])


@pytest.mark.parametrize("port", ["0", "65536", "many"])
def test_a_port_that_is_none_is_refused(port, capsys):
    with pytest.raises(SystemExit):
        command.main(["--port", port])
    assert port in capsys.readouterr().err
