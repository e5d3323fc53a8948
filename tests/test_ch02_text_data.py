"""Chapter 2: tokenizers, windows and loaders, against oracles and on fuzzed input."""

import ast
import hashlib
import inspect

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ch02_text_data import guards, pictures
from shared import data
from shared.ch02 import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    UNKNOWN,
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    build_vocabulary,
    create_dataloader_v1,
    get_tokenizer,
    load_gpt2_ranks,
    split_text,
)

# What tiktoken 0.14 expects of the two files that it would download.
TIKTOKEN_FILES = {
    "gpt2-bpe/encoder.json": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    "gpt2-bpe/vocab.bpe": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
}
any_text = st.text(st.characters(exclude_categories=["Cs"]))  # all but half surrogates
pieces_of_text = st.lists(
    st.sampled_from(["it", "well-known", "--", "-", "'", '"', ".", ",", " ", "\n", "_"])
).map("".join)


class CountingTokenizer:
    """Stands in for GPT-2's: a text of n characters has the ids 0 to n - 1."""

    def encode(self, text, allowed_special):
        assert allowed_special == {END_OF_TEXT}
        return list(range(len(text)))


def windows(n, max_length, stride):
    return GPTDatasetV1("x" * n, CountingTokenizer(), max_length, stride)


@pytest.fixture(scope="module")
def verdict():
    try:
        return data.load_text("the-verdict")
    except data.DataUnavailable as error:
        pytest.skip(f"the-verdict is optional: {str(error).splitlines()[0]}")


# What the chapter hands out


def test_star_gives_the_public_names_and_nothing_else():
    given = {}
    exec("from shared.ch02 import *", given)
    del given["__builtins__"]
    assert set(given) == {
        *("split_text", "build_vocabulary", "SimpleTokenizerV1", "SimpleTokenizerV2"),
        *("END_OF_TEXT", "END_OF_TEXT_ID", "UNKNOWN", "get_tokenizer"),
        *("GPTDatasetV1", "create_dataloader_v1"),
        *("BPETokenizerSimple", "BPETokenizer"),
    }


def test_guards_know_nothing_of_the_course():
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(guards))):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert imported == {"collections.abc", "pathlib", "re"}


# Words


def test_the_verdict_has_the_known_counts(verdict):
    tokens = split_text(verdict)
    assert len(verdict) == 20_479
    assert len(tokens) == 4_690
    assert len(build_vocabulary(tokens)) == 1_130
    assert len(build_vocabulary(tokens, [END_OF_TEXT, UNKNOWN])) == 1_132
    assert len(get_tokenizer().encode(verdict)) == 5_145


def test_the_books_sentence(verdict):
    tokenizer = SimpleTokenizerV1(build_vocabulary(split_text(verdict)))
    sentence = '"It\'s the last he painted, you know," '
    sentence += "Mrs. Gisburn said with pardonable pride."
    ids = [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108]
    ids += [754, 793, 7]
    assert tokenizer.encode(sentence) == ids
    assert tokenizer.decode(ids) == (
        '" It\' s the last he painted, you know," Mrs. Gisburn said with pardonable '
        "pride."
    )


@given(any_text | pieces_of_text)
def test_split_text_loses_nothing_but_white_space(text):
    tokens = split_text(text)
    assert "".join(tokens) == "".join(text.split())
    assert all(token and not any(c.isspace() for c in token) for token in tokens)


def test_split_text_cuts_at_marks_and_keeps_single_hyphens():
    line = 'Oh--"well-known," isn\'t it? (No: no; _no_!)'
    assert split_text(line) == (
        'Oh -- " well-known , " isn \' t it ? ( No : no ; _ no _ ! )'.split()
    )


def test_vocabulary_is_sorted_and_special_tokens_come_last():
    vocab = build_vocabulary(["b", "a", "b"], [END_OF_TEXT, UNKNOWN])
    assert vocab == {"a": 0, "b": 1, END_OF_TEXT: 2, UNKNOWN: 3}
    special = iter([END_OF_TEXT, UNKNOWN])
    assert build_vocabulary(["b", END_OF_TEXT, "a"], special) == vocab


@given(any_text | pieces_of_text)
@pytest.mark.parametrize("kind", [SimpleTokenizerV1, SimpleTokenizerV2])
def test_simple_tokenizers_round_trip_up_to_spaces(kind, text):
    tokens = split_text(text)
    tokenizer = kind(build_vocabulary(tokens, [END_OF_TEXT, UNKNOWN]))
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert split_text(decoded) == tokens
    assert tokenizer.encode(decoded) == ids
    assert "".join(decoded.split()) == "".join(text.split())


@given(any_text)
def test_version_2_writes_unknown_exactly_for_unknown_words(text):
    tokenizer = SimpleTokenizerV2(build_vocabulary(["a", "."], [END_OF_TEXT, UNKNOWN]))
    known = tokenizer.str_to_int
    expected = [known.get(token, known[UNKNOWN]) for token in split_text(text)]
    assert tokenizer.encode(text) == expected


def test_version_2_finds_the_end_of_text_between_words():
    tokenizer = SimpleTokenizerV2(
        build_vocabulary(["one", ".", "two"], [END_OF_TEXT, UNKNOWN])
    )
    ids = [tokenizer.str_to_int[t] for t in ("one", ".", END_OF_TEXT, "two")]
    assert tokenizer.encode(f"one.{END_OF_TEXT}two") == ids
    assert tokenizer.encode(f"one. {END_OF_TEXT} two") == ids
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@pytest.mark.parametrize("kind", [SimpleTokenizerV1, SimpleTokenizerV2])
def test_decode_takes_tensors_and_names_an_unknown_id(kind):
    tokenizer = kind({"a": 0, UNKNOWN: 1})
    assert tokenizer.decode(torch.tensor([0, 0])) == "a a"
    assert tokenizer.decode([]) == ""
    for unknown in (2, -1):
        with pytest.raises(KeyError, match=f"has the id {unknown}; .* 2 tokens"):
            tokenizer.decode([0, unknown])


def test_unknown_words_are_named_and_version_2_needs_a_token_for_them():
    with pytest.raises(KeyError, match="'snowmobile'.*SimpleTokenizerV2"):
        SimpleTokenizerV1({"a": 0}).encode("a snowmobile")
    with pytest.raises(ValueError, match=r"1 tokens lacks '<\|unk\|>'; make one"):
        SimpleTokenizerV2({"a": 0})


# Byte-pair encoding


def test_vocabulary_files_are_those_of_tiktoken():
    for name, (_, sha256) in TIKTOKEN_FILES.items():
        assert hashlib.sha256(data.get(name).read_bytes()).hexdigest() == sha256


@pytest.fixture
def published(tmp_path, monkeypatch):
    """tiktoken's own GPT-2 encoding, with its cache filled as a download would."""
    for name, (url, _) in TIKTOKEN_FILES.items():
        cached = tmp_path / hashlib.sha1(url.encode()).hexdigest()
        cached.write_bytes(data.get(name).read_bytes())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # Not tiktoken.get_encoding: it would answer from an earlier call's registry.
    from tiktoken_ext.openai_public import gpt2

    return tiktoken.Encoding(**gpt2())


def test_ranks_are_those_that_tiktoken_reads(published):
    assert load_gpt2_ranks() == published._mergeable_ranks


def test_encodes_like_tiktoken(published):
    ours = get_tokenizer()
    assert ours.n_vocab == published.n_vocab == 50_257
    assert ours.special_tokens_set == {END_OF_TEXT}
    assert ours.encode(END_OF_TEXT, allowed_special="all") == [END_OF_TEXT_ID]
    assert END_OF_TEXT_ID == published.eot_token == 50_256
    story = data.load_text("short-story")
    assert ours.encode(story) == published.encode(story)

    @given(any_text)
    @settings(max_examples=200)
    def on_fuzzed_text(text):
        assert ours.encode_ordinary(text) == published.encode_ordinary(text)

    on_fuzzed_text()


def test_tokenizer_is_made_once_and_writes_nowhere(tmp_path):
    """tiktoken's own reader would leave copies in a cache; ours must not."""
    assert get_tokenizer() is get_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "TMPDIR"):
            patch.setenv(name, str(tmp_path))
        get_tokenizer.__wrapped__()
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_are_opted_in():
    tokenizer = get_tokenizer()
    with pytest.raises(ValueError, match="disallowed special token"):
        tokenizer.encode(f"a{END_OF_TEXT}")
    assert 50_256 not in tokenizer.encode(f"a{END_OF_TEXT}", disallowed_special=())
    dataset = GPTDatasetV1(f"a{END_OF_TEXT}b", tokenizer, max_length=2, stride=1)
    assert dataset[0][0].tolist()[1] == 50_256


# Windows

sizes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 50))


@given(sizes)
def test_windows_are_those_of_a_loop(size):
    n, max_length, stride = size
    starts = range(0, n - max_length, stride)
    if not starts:
        with pytest.raises(ValueError, match=f"the text has {n} tokens"):
            windows(n, max_length, stride)
        return
    dataset = windows(n, max_length, stride)
    assert len(dataset) == len(starts) == (n - 1 - max_length) // stride + 1
    for start, (inputs, targets) in zip(starts, dataset, strict=True):
        assert inputs.tolist() == list(range(start, start + max_length))
        assert targets.tolist() == list(range(start + 1, start + max_length + 1))


def test_windows_share_one_list_of_ids():
    dataset = windows(n=1000, max_length=100, stride=1)
    storages = [t.untyped_storage() for t in (dataset.inputs, dataset.targets)]
    assert storages[0].data_ptr() == storages[1].data_ptr()
    assert storages[0].nbytes() == 1000 * 8
    assert dataset.inputs.dtype == torch.int64


def test_texts_without_a_window_say_what_would_do():
    for text in ("", "word"):
        n = len(get_tokenizer().encode(text))
        message = (
            f"has {n} tokens.*max_length 4 and its target need 5; use a longer text"
        )
        with pytest.raises(ValueError, match=message) as raised:
            create_dataloader_v1(text, max_length=4)
        assert "at most" not in str(raised.value)
    with pytest.raises(ValueError, match="has 8 tokens.* max_length at most 7"):
        windows(n=8, max_length=8, stride=1)
    assert len(windows(n=8, max_length=7, stride=1)) == 1
    with pytest.raises(IndexError):
        windows(n=8, max_length=7, stride=1)[1]


@pytest.mark.parametrize("name", ["max_length", "stride", "batch_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_must_be_positive(name, value):
    sizes = {"max_length": 2, "stride": 1, "batch_size": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} {value} is not positive"):
        create_dataloader_v1("one two three four", **sizes)


def test_dropping_everything_is_an_error():
    text = "a" + " a" * 8  # 9 tokens: 4 windows of 2 at stride 2
    sizes = {"max_length": 2, "stride": 2}
    with pytest.raises(ValueError, match="batch_size 5 .* data set of 4 windows"):
        create_dataloader_v1(text, batch_size=5, **sizes)
    assert len(create_dataloader_v1(text, batch_size=4, **sizes)) == 1
    loader = create_dataloader_v1(text, batch_size=5, drop_last=False, **sizes)
    assert [inputs.shape for inputs, _ in loader] == [(4, 2)]


# Loaders


def test_the_calls_of_the_books_readers():
    story = data.load_text("short-story")
    loaders = [
        create_dataloader_v1(story),
        create_dataloader_v1(story, 4, 256, 128, True, True, 0),
        create_dataloader_v1(
            story,
            **{"batch_size": 4, "max_length": 256, "stride": 128, "shuffle": True},
            **{"drop_last": True, "num_workers": 0},
        ),
    ]
    for loader in loaders:
        inputs, targets = next(iter(loader))
        assert inputs.shape == targets.shape == (4, 256) and len(loader) == 9


def batches(epochs=2, seed=1, **options):
    """All batches of some epochs over the story, inputs and targets side by side."""
    generator = torch.Generator().manual_seed(seed)
    loader = create_dataloader_v1(
        data.load_text("short-story"),
        **{"batch_size": 4, "max_length": 16, "stride": 8, **options},
        generator=generator,
    )
    return [torch.stack(batch) for _ in range(epochs) for batch in loader]


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_same_seed_same_order_whatever_else_draws():
    first = batches()
    torch.manual_seed(99)
    torch.rand(7)
    assert same(batches(), first)
    assert not same(batches(seed=2), first)


def test_each_epoch_has_its_own_order_of_the_same_windows():
    both = batches(batch_size=1)
    half = len(both) // 2
    assert not same(both[:half], both[half:])
    first, second = (
        sorted(b.flatten().tolist() for b in part)
        for part in (both[:half], both[half:])
    )
    assert first == second


def test_without_shuffling_batches_follow_the_text():
    found = batches(epochs=1, shuffle=False, stride=16, batch_size=1)
    assert all(torch.equal(b[0, :, 1:], b[1, :, :-1]) for b in found)
    ids = get_tokenizer().encode(data.load_text("short-story"))
    inputs = torch.cat([batch[0] for batch in found]).flatten()
    assert inputs.tolist() == ids[: 16 * len(found)]


def test_workers_are_as_many_as_wanted_and_change_nothing():
    assert same(batches(num_workers=2), batches(num_workers=0))
    loader = create_dataloader_v1("a " * 99, 2, 4, 4, num_workers=1)
    assert loader.num_workers == 1


def test_defaults_are_the_book_s():
    given = inspect.signature(create_dataloader_v1).parameters
    wanted = {"batch_size": 4, "max_length": 256, "stride": 128, "num_workers": 0}
    assert {name: given[name].default for name in wanted} == wanted


def test_last_batch():
    whole = batches(epochs=1, drop_last=False, batch_size=7)
    windows_in_all = sum(batch.shape[1] for batch in whole)
    assert windows_in_all % 7 != 0, "choose another batch_size for this test"
    assert len(batches(epochs=1, batch_size=7)) == len(whole) - 1


# Drawings


def steps_of(n_tokens=9):
    """All steps of the drawing that fills up, for a text of so many tokens."""
    ids = list(range(100, 100 + n_tokens))
    return {
        "characters": "a b c d",
        "tokens": [f" {chr(97 + i)}" for i in range(n_tokens)],
        "ids": ids,
        "inputs": torch.tensor([ids[0:4], ids[4:8]]),
        "targets": torch.tensor([ids[1:5], ids[5:9]]),
        "token vectors": torch.zeros(2, 4, 3),
        "position vectors": torch.zeros(4, 3),
        "x": torch.zeros(2, 4, 3),
    }


def test_the_drawing_fills_up_step_by_step():
    steps = steps_of()
    names = list(steps)
    for n in (1, 3, 5, 6, 8):
        drawing = pictures.journey({name: steps[name] for name in names[:n]})
        words = [text.words for text in drawing.texts]
        for name, _, where, *_ in pictures.STEPS:
            still = [other for other, _, there, *_ in pictures.STEPS if there == where]
            reached = all(name in names[:n] for name in still)
            assert (where not in words) == reached, (name, n)
        shapes = [str(tuple(steps[name].shape)) for name in names[3:n]]
        assert sorted(w for w in words if w.startswith("(")) == sorted(shapes)


def test_a_target_stands_below_the_input_that_it_answers():
    steps = steps_of()
    middles = {}  # of each id that is written: where, from top to bottom
    for text in sorted(pictures.journey(steps).texts, key=lambda text: text.box.y):
        middles.setdefault(text.words, []).append(round(text.box.top[0], 3))
    pairs = zip(steps["inputs"].flatten(), steps["targets"].flatten(), strict=True)
    for token_id, target in pairs:
        in_the_text, as_input, *_ = middles[str(token_id.item())]
        assert middles[str(target.item())][-1] == as_input == in_the_text


def test_more_tokens_than_there_is_room_for_are_left_out():
    words = [text.words for text in pictures.journey(steps_of(12)).texts]
    assert "·i" in words and "·j" not in words


@given(st.integers(6, 15), st.integers(1, 5), st.integers(1, 6))
def test_as_many_windows_are_drawn_as_there_are(n, max_length, stride):
    drawing = pictures.strides(n, max_length, [stride])
    N = len(windows(n, max_length, stride))
    assert f"stride {stride}: {N} windows" in [text.words for text in drawing.texts]
    cells = drawing.svg.count("<rect") - 1  # all but the background
    assert cells == N * (max_length + 1)


def test_a_lookup_is_drawn_with_its_rows():
    table = torch.tensor([[i + 0.1, i + 0.2] for i in range(4)])
    drawing = pictures.lookup(torch.eye(4)[[2, 0]], table)
    words = [text.words for text in drawing.texts]
    assert words.count("2.1") == words.count("0.2") == 2 and words.count("3.1") == 1
    assert "rows 2, 0 of W" in drawing.alt
    assert {"(T, V) = (2, 4)", "(V, C) = (4, 2)", "(T, C) = (2, 2)"} <= set(words)


def test_the_name_of_a_file_is_no_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my story").write_text("Once upon a time")
    for name in (
        "my story",
        "nowhere/corpus.txt",
        "Tales.MD",
        str(tmp_path / "a.json"),
    ):
        with pytest.raises(ValueError, match="is the name of a file.*read_text"):
            create_dataloader_v1(name, 1, 1, 1)
    with pytest.raises(TypeError, match="expected a text.*Path.*read_text"):
        create_dataloader_v1(tmp_path / "my story", 1, 1, 1)
    for text in (
        "I read corpus.txt\n",
        "Read corpus.txt",
        "a/b.",
        "y\0 story",
        "x" * 999,
    ):
        assert len(create_dataloader_v1(text, 1, 1, 1)) > 0
