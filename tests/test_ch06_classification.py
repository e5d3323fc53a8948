"""Chapter 6: reading messages, batches without padding's influence, and finetuning."""

import copy
import json
import math
import warnings
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import same_weights
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ch06_classification import compare, sms
from ch06_classification.compare import accuracy_interval
from ch06_classification.word_order import make_twins, split_twins
from shared import data
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel
from shared.ch05 import load_base_tokenizer, load_checkpoint, save_checkpoint
from shared.ch06 import (
    LABELS,
    GPTClassifier,
    LengthGroupedSampler,
    SpamDataset,
    Verdict,
    calc_accuracy_loader,
    calc_classification_loss,
    class_logits,
    classify_review,
    create_balanced_dataset,
    create_loaders,
    create_spam_loader,
    create_spam_loaders,
    encode_message,
    evaluate_classifier,
    frozen_features,
    last_real_position,
    let_rate_fall,
    load_classifier,
    load_sms,
    message_key,
    random_split,
    remove_duplicates,
    set_trainable,
    spam_probabilities,
    train_classifier_simple,
)

PAD = 60
TINY = {
    "vocab_size": 61,
    "context_length": 40,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
    "tie_weights": True,
}


class LetterTokenizer:
    """One token for each of sixty characters; the padding id 60 is never among them."""

    eot_token = PAD

    def encode(self, text):
        return [ord(character) % 60 for character in text]


LETTERS = LetterTokenizer()


def tiny_classifier(seed=1, **changes):
    """A classifier whose every number is random and not small."""
    torch.manual_seed(seed)
    net = GPTClassifier(GPTModel({**TINY, **changes}), pad_token_id=PAD)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return net.eval()


def table(n_ham=30, n_spam=10):
    """Messages of which spam is in capitals and long, so that it can be learned."""
    ham = [f"see you {'at home ' * (i % 3)}{i}" for i in range(n_ham)]
    spam = [f"WIN A PRIZE {'CALL NOW ' * (i % 2)}{i}" for i in range(n_spam)]
    return pd.DataFrame(
        {"Label": ["ham"] * n_ham + ["spam"] * n_spam, "Text": ham + spam}
    )


@pytest.fixture
def csv_file(tmp_path):
    """A function that writes a table to a file, and returns its path."""

    def write(df, name="messages.csv"):
        path = tmp_path / name
        df.to_csv(path, index=False)
        return path

    return write


# The data


def test_default_messages_are_those_of_the_collection():
    df = load_sms()
    assert list(df.columns) == ["Label", "Text"]
    assert df["Label"].value_counts().to_dict() == {"ham": 4220, "spam": 642}
    assert df["Text"].nunique() == 4534
    assert df["Text"].map(type).eq(str).all()
    assert not df["Text"].str.contains("\n").any()  # no message has swallowed another


def test_messages_are_read_as_text(tmp_path, monkeypatch):
    texts = ["NA", "null", "0123", "£ 你好", '"Keep smiling', "1e5", '"Ok"']
    path = tmp_path / "file"
    path.write_text("".join(f"ham\t{text}\n" for text in texts), encoding="utf-8")
    monkeypatch.setattr(sms, "data_path", lambda name: path)
    assert load_sms("sms-spam-uci")["Text"].tolist() == texts
    path.write_text('spam\t"two\nlines"\nham\tNA\n', encoding="utf-8")
    assert load_sms()["Text"].tolist() == ["two\nlines", "NA"]


def mirror_has(name):
    try:
        data.get(name)
    except data.DataUnavailable:
        return False
    return True


@pytest.mark.skipif(
    not mirror_has("sms-spam-uci"), reason="neither mirror nor network has the file"
)
def test_full_collection_has_5574_messages_and_pandas_defaults_lose_two():
    df = load_sms("sms-spam-uci")
    assert df["Label"].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    careless = pd.read_csv(data.get("sms-spam-uci"), sep="\t", header=None)
    assert len(df) == 5574 and len(careless) == 5572
    assert careless[1].str.contains("\nham\t").sum() == 1
    # the numbers of the book
    balanced = create_balanced_dataset(df)
    assert balanced["Label"].value_counts().to_dict() == {"ham": 747, "spam": 747}
    assert [len(p) for p in random_split(balanced, 0.7, 0.1)] == [1045, 149, 300]


def test_what_read_csv_would_change_stays_text(csv_file):
    texts = ["NA", "null", "", "0123", "nan", 'a "b", c', "two\nlines", "£ é 你好"]
    df = pd.DataFrame({"Label": ["ham", "spam"] * 4, "Text": texts})
    dataset = SpamDataset(csv_file(df), LETTERS, pad_token_id=PAD)
    assert dataset.data["Text"].tolist() == texts
    assert [dataset[i][1].item() for i in range(8)] == [0, 1] * 4
    numbers = pd.DataFrame({"Label": [0, 1], "Text": ["0123", "7e5"]})
    dataset = SpamDataset(csv_file(numbers), LETTERS, pad_token_id=PAD)
    assert dataset.data["Text"].tolist() == ["0123", "7e5"]


def test_message_key_sees_words_only():
    assert message_key("Call 0906 NOW!") == message_key("call 0871... now")
    assert message_key("Call me") != message_key("Callme")
    assert message_key("İstanbul Привет 1") == message_key("İstanbul Привет 2")
    assert message_key(":)") == ":)" != message_key(":(")


def test_message_key_keeps_accents_and_vowel_signs():
    hindi = ["\u0915\u0940", "\u0915\u093e", "\u0915\u093f"]  # ki, ka, and ki, short
    assert len({message_key(word) for word in hindi}) == 3
    df = pd.DataFrame({"Label": ["ham", "spam", "ham"], "Text": hindi})
    assert remove_duplicates(df).equals(df)
    cafe = "caf\u00e9", "CAFE\u0301"  # one letter, or e and its accent
    assert message_key(cafe[0]) == message_key(cafe[1]) != message_key("cafe")
    heart = "\u2764"  # as a picture it has a mark, which is no word
    assert message_key(f"ok {heart}\ufe0f") == "ok" != message_key(f"{heart}\ufe0f")


def test_duplicates_go_and_the_first_stays():
    df = pd.DataFrame(
        {
            "Label": ["spam", "ham", "spam", "ham", "ham"],
            "Text": ["WIN 100!", "ok", "win 200", ":)", "Ok."],
        }
    )
    assert remove_duplicates(df).index.tolist() == [0, 1, 3]
    clean = remove_duplicates(load_sms())
    assert len(clean) == 4471 and not clean["Text"].map(message_key).duplicated().any()
    df["Label"] = ["spam", "ham", "ham", "ham", "ham"]
    with pytest.raises(ValueError, match="'WIN 100!' has both labels"):
        remove_duplicates(df)


@pytest.mark.parametrize(("n_ham", "n_spam"), [(30, 10), (10, 30), (5, 5)])
def test_balanced_has_as_many_of_each(n_ham, n_spam):
    df = table(n_ham, n_spam)
    balanced = create_balanced_dataset(df)
    n = min(n_ham, n_spam)
    assert balanced["Label"].tolist() == ["ham"] * n + ["spam"] * n
    assert balanced.index.is_unique and df.loc[balanced.index].equals(balanced)
    assert balanced.equals(create_balanced_dataset(df))
    if n_ham != n_spam:
        assert not balanced.equals(create_balanced_dataset(df, seed=1))


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (
            pd.DataFrame({"v1": ["ham"], "v2": ["ok"]}),
            "no column Label and no column Text, only v1, v2; name them",
        ),
        (pd.DataFrame({"Label": ["ham"]}), "no column Text, only Label"),
        (
            pd.DataFrame({"Label": ["ham", "junk"], "Text": ["a", "b"]}),
            "row 1 .*'junk'",
        ),
        (pd.DataFrame({"Label": ["ham", ""], "Text": ["a", "b"]}), "row 1 .*''"),
        (pd.DataFrame({"Label": ["ham"] * 3, "Text": ["a"] * 3}), "all 3 .* are ham"),
        (pd.DataFrame({"Label": [1, 1], "Text": ["a", "b"]}), "all 2 .* are spam"),
        (pd.DataFrame({"Label": [], "Text": []}), "holds no messages"),
    ],
)
def test_tables_that_cannot_be_used_say_why(df, message, csv_file):
    with pytest.raises(ValueError, match=message):
        create_balanced_dataset(df)
    with pytest.raises(ValueError, match=message) as caught:
        SpamDataset(csv_file(df), LETTERS, pad_token_id=PAD)
    assert "messages.csv" in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        SpamDataset(tmp_path / "nowhere.csv", LETTERS)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="empty.csv is no CSV table"):
        SpamDataset(tmp_path / "empty.csv", LETTERS)
    (tmp_path / "ragged.csv").write_text("Label,Text\nham,a\nspam,b,c,d\n")
    with pytest.raises(ValueError, match="ragged.csv is no CSV table.*line 3"):
        SpamDataset(tmp_path / "ragged.csv", LETTERS)


KEPT = r"dtype=str, keep_default_na=False\)"


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("Label,Text\nham,\u00a35\nspam,b\n", "latin-1", r"'latin-1', " + KEPT),
        ("Label,Text\nham,a\nspam,b\n", "utf-16", r"encoding='utf-16', " + KEPT),
        ("Label;Text\nham;a, b\nspam;b\n", "utf-8", r"by ';': .*sep=';', " + KEPT),
        ("Label\tText\nham\ta\nspam\tb\n", "utf-8", r"by '\\t': .*sep='\\t', " + KEPT),
    ],
)
def test_a_file_in_another_form_is_told_how_to_read(tmp_path, text, encoding, message):
    """And read so, it is a table."""
    path = tmp_path / "messages.csv"
    path.write_text(text, encoding=encoding)
    with pytest.raises(ValueError, match=message) as caught:
        SpamDataset(path, LETTERS)
    told = str(caught.value)
    table = eval(told[told.index("pd.read_csv") :], {"pd": pd, "path": path})
    assert SpamDataset(table, LETTERS).labels.tolist() == [0, 1]


def test_a_message_with_both_labels_is_named_also_if_an_index_repeats():
    df = pd.DataFrame({"Label": ["ham", "ham"], "Text": ["ok", "see you"]})
    more = pd.DataFrame({"Label": ["ham", "spam"], "Text": ["hello", "See you!"]})
    with pytest.raises(ValueError, match="^the message 'see you' has both labels"):
        remove_duplicates(pd.concat([df, more]))
    again = pd.concat([df, df, more[:1]])
    assert remove_duplicates(again)["Text"].tolist() == ["ok", "see you", "hello"]


def test_a_part_of_torchs_random_split_is_refused():
    parts = torch.utils.data.random_split(SpamDataset(table(), LETTERS), [30, 10])
    for shuffle in (False, True):
        with pytest.raises(TypeError, match="a Subset .*this chapter's random_split"):
            create_spam_loader(parts[0], 4, shuffle)
    with pytest.raises(TypeError, match="a Subset does not know"):
        frozen_features(tiny_classifier(), DataLoader(parts[0], 4), "cpu")


@settings(deadline=None)
@given(
    n=st.integers(10, 200),
    shares=st.tuples(st.floats(0.15, 0.7), st.floats(0.15, 0.25)),
    seed=st.integers(0, 9),
)
def test_split_deals_every_row_once(n, shares, seed):
    df = pd.DataFrame({"row": range(n)})
    parts = random_split(df, *shares, seed)
    assert sorted(pd.concat(parts)["row"]) == list(range(n))
    assert [len(p) for p in parts[:2]] == [int(n * share) for share in shares]
    for part in parts:
        assert part.index.tolist() == list(range(len(part)))
    again = random_split(df, *shares, seed)
    assert all(one.equals(other) for one, other in zip(parts, again, strict=True))


def test_split_is_at_random():
    df = pd.DataFrame({"row": range(100)})
    orders = [random_split(df, 0.7, 0.1, seed)[0]["row"].tolist() for seed in (1, 2)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


# Ids and batches


def test_messages_are_ordinary_text():
    tokenizer = get_tokenizer()
    assert encode_message("Hi", tokenizer) == tokenizer.encode("Hi")
    ids = encode_message("<|endoftext|>free", tokenizer)
    assert 50256 not in ids and tokenizer.decode(ids) == "<|endoftext|>free"
    assert encode_message("", tokenizer) == [50256]
    assert encode_message("one two three", tokenizer, max_length=2) == tokenizer.encode(
        "one two"
    )


def test_padding_is_by_default_the_tokenizers():
    base = load_base_tokenizer()
    assert base.eot_token != 50256
    assert encode_message("", base) == [base.eot_token]
    assert encode_message("", base, pad_token_id=3) == [3]
    ids = encode_message("<|endoftext|>free", base)
    assert base.eot_token not in ids and base.decode(ids) == "<|endoftext|>free"
    df = pd.DataFrame({"Label": ["ham", "spam"], "Text": ["see you", "call now, win"]})
    for tokenizer, pad in ((base, base.eot_token), (get_tokenizer(), 50256)):
        dataset = SpamDataset(df, tokenizer)
        assert dataset.pad_token_id == pad and dataset[0][0][-1] == pad
    assert SpamDataset(df, base, pad_token_id=5)[0][0][-1] == 5

    class NoEnd:  # without an eot_token: the book's default, GPT-2's
        encode = LETTERS.encode

    assert SpamDataset(df, NoEnd()).pad_token_id == 50256


def test_probabilities_pad_as_the_model_does():
    net = tiny_classifier()
    net.pad_token_id = 7  # not the tokenizer's
    texts = ["a longer message", "abc"]
    wanted = []
    for text in texts:
        with torch.no_grad():
            wanted.append(net(torch.tensor([LETTERS.encode(text)])).softmax(-1)[0, 1])
    found = spam_probabilities(texts, net, LETTERS, "cpu")
    assert found.tolist() == pytest.approx([x.item() for x in wanted], abs=1e-5)


def test_a_padding_id_that_the_model_has_no_vector_for_is_refused():
    message = "50256 is none of the model's 61 tokens; .*tokenizer.eot_token"
    with pytest.raises(ValueError, match=message):
        GPTClassifier(GPTModel(TINY))
    with pytest.raises(ValueError, match="-1 is none of"):
        GPTClassifier(GPTModel(TINY), pad_token_id=-1)
    net, ids = book_classifier(), torch.tensor([[5, 6, PAD]])
    with torch.no_grad():
        assert torch.equal(class_logits(net, ids, "cpu"), net(ids)[:, 1])
        del net.pad_token_id
        with pytest.raises(ValueError, match=message):
            class_logits(net, ids, "cpu")


def test_dataset_pads_on_the_right_and_cuts(csv_file):
    path = csv_file(
        pd.DataFrame({"Label": ["ham", "spam", 1], "Text": ["abc", "", "abcde"]})
    )
    dataset = SpamDataset(path, LETTERS, pad_token_id=PAD)
    a, b, c, d, e = LETTERS.encode("abcde")
    rows = [[a, b, c, PAD, PAD], [PAD] * 5, [a, b, c, d, e]]
    assert [dataset[i][0].tolist() for i in range(3)] == rows
    assert dataset.lengths == [3, 1, 5] and dataset.max_length == 5
    assert [dataset[i][1].item() for i in range(len(dataset))] == [0, 1, 1]
    assert dataset[0][0].dtype == dataset[0][1].dtype == torch.int64

    dataset = SpamDataset(path, LETTERS, max_length=2, pad_token_id=PAD)
    assert dataset[2][0].tolist() == [a, b] and dataset.lengths == [2, 1, 2]
    dataset = SpamDataset(path, LETTERS, max_length=7, pad_token_id=PAD)
    assert dataset[0][0].tolist() == [a, b, c] + [PAD] * 4


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=80),
    batch_size=st.integers(1, 9),
    pool=st.integers(1, 5),
)
def test_sampler_gives_every_message_once(lengths, batch_size, pool):
    generator = torch.Generator().manual_seed(1)
    sampler = LengthGroupedSampler(lengths, batch_size, generator, pool)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_sampler_groups_by_length_and_draws_anew():
    lengths = torch.randint(1, 60, (400,), generator=torch.Generator().manual_seed(2))
    lengths = lengths.tolist()
    generator = torch.Generator().manual_seed(3)
    sampler = LengthGroupedSampler(lengths, 8, generator)
    first, second = list(sampler), list(sampler)
    read = sum(max(lengths[i] for i in batch) * len(batch) for batch in first)
    assert sum(lengths) < read < 1.3 * sum(lengths)
    assert first != second
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}
    generator.manual_seed(3)
    assert list(sampler) == first
    # the first few batches are a fair sample of short and long ones
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in first]
    assert means != sorted(means) and abs(sum(means[:10]) / 10 - 30) < 12


def test_loader_holds_every_message_with_its_class(csv_file):
    dataset = SpamDataset(csv_file(table()), LETTERS, pad_token_id=PAD)
    generator = torch.Generator().manual_seed(1)
    for shuffle in (True, False):
        loader = create_spam_loader(dataset, 7, shuffle, generator)
        found = [
            (row[row != PAD].tolist(), label.item())
            for ids, labels in loader
            for row, label in zip(ids, labels, strict=True)
        ]
        wanted = [
            (LETTERS.encode(text), LABELS.index(label))
            for label, text in zip(
                dataset.data["Label"], dataset.data["Text"], strict=True
            )
        ]
        assert sorted(found) == sorted(wanted)
        assert shuffle != (found == wanted)  # else in the order of the table
        for ids, _ in loader:
            assert (ids[:, -1] != PAD).any()  # cut to the longest of the batch


def test_a_batch_of_empty_messages_keeps_one_column(csv_file):
    empty = pd.DataFrame({"Label": ["ham", "spam", "ham"], "Text": ["", "", "abcde"]})
    loader = create_spam_loader(SpamDataset(csv_file(empty), LETTERS, None, PAD), 2)
    shapes = {tuple(ids.shape) for ids, _ in loader}
    assert shapes == {(2, 1), (1, 5)}


def test_a_table_is_as_good_as_its_file(csv_file):
    df = table().sample(frac=1, random_state=1)
    one = SpamDataset(csv_file(df), LETTERS, pad_token_id=PAD)
    other = SpamDataset(df, LETTERS, pad_token_id=PAD)
    assert other.data.equals(one.data) and other.lengths == one.lengths
    for (ids, label), (same_ids, same_label) in zip(one, other, strict=True):
        assert torch.equal(ids, same_ids) and torch.equal(label, same_label)
    with pytest.raises(ValueError, match="all 2 messages of the table are ham"):
        SpamDataset(pd.DataFrame({"Label": [0, 0], "Text": ["a", "b"]}), LETTERS)


def test_spam_loaders_are_the_steps_in_one_call():
    loaders = create_spam_loaders(batch_size=8, seed=5)
    clean = remove_duplicates(load_sms())
    parts = random_split(create_balanced_dataset(clean, 5), 0.7, 0.1, 5)
    for loader, part in zip(loaders, parts, strict=True):
        assert loader.dataset.data.equals(part)
    assert len(set().union(*(set(p["Text"]) for p in parts))) == sum(map(len, parts))
    again = create_loaders(parts, 8, 5)
    for loader, other in zip(loaders, again, strict=True):
        for (ids, labels), (same, same_labels) in zip(loader, other, strict=True):
            assert torch.equal(ids, same) and torch.equal(labels, same_labels)
    first, second = (list(loaders[0])[0][0] for _ in range(2))
    assert not torch.equal(first, second)  # only training is shuffled
    assert torch.equal(next(iter(loaders[1]))[0], next(iter(loaders[1]))[0])


# The classifier


def test_last_real_position():
    ids = torch.tensor([[1, 2, 3], [1, 2, PAD], [1, PAD, PAD], [PAD] * 3])
    assert last_real_position(ids, PAD).tolist() == [2, 1, 0, 0]


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    n_padding=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_any_amount_of_padding_gives_the_same_logits(lengths, n_padding, seed):
    net = tiny_classifier()
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(60, (n,), generator=generator) for n in lengths]
    batch = torch.full((len(rows), max(lengths) + n_padding), PAD)
    for line, row in zip(batch, rows, strict=True):
        line[: len(row)] = row
    with torch.no_grad():
        alone = torch.cat([net(row[None]) for row in rows])
        assert torch.allclose(net(batch), alone, atol=1e-5)


def test_logits_depend_on_every_real_token_and_on_no_gradient_of_padding():
    net = tiny_classifier()
    ids = torch.tensor([[5, 6, 7, PAD, PAD]])
    vectors = []

    def keep(module, inputs, output):
        if output.requires_grad:
            output.retain_grad()
        vectors.append(output)

    net.gpt.drop_emb.register_forward_hook(keep)
    net.gpt.drop_emb.p = 0.5  # in eval mode: the identity, but a new tensor
    with torch.no_grad():
        changed = [net(ids.index_fill(1, torch.tensor([t]), 9)) for t in range(3)]
        assert all(not torch.allclose(x, net(ids), atol=1e-4) for x in changed)
    vectors.clear()
    net(ids).sum().backward()
    gradient = vectors[0].grad[0].abs().sum(dim=-1)
    assert (gradient[:3] > 0).all() and (gradient[3:] == 0).all()


def test_head_is_new_small_and_the_rest_untouched():
    torch.manual_seed(1)
    gpt = GPTModel(TINY)
    before = copy.deepcopy(gpt.state_dict())
    net = GPTClassifier(gpt, num_classes=3, pad_token_id=PAD).eval()
    after = net.gpt.state_dict()
    assert after["out_head.weight"].shape == (3, 24)
    assert after["out_head.weight"].abs().max() < 0.1
    for name in before:
        if not name.startswith("out_head"):
            assert torch.equal(before[name], after[name])
    assert net(torch.tensor([[1, 2]])).shape == (1, 3)


def book_classifier(seed=1):
    """The book's idiom: the GPT itself, with a head of two outputs at every token."""
    net = tiny_classifier(seed).gpt
    net.out_head = nn.Linear(TINY["emb_dim"], 2)
    net.pad_token_id = PAD  # else it would be GPT-2's
    return net.eval()


def test_the_books_idiom_is_read_at_the_last_real_token():
    net = book_classifier()
    ids = torch.tensor([[5, 6, 7, PAD, PAD], [8, PAD, PAD, PAD, PAD]])
    with torch.no_grad():
        wanted = torch.stack([net(ids)[0, 2], net(ids)[1, 0]])
        assert torch.equal(class_logits(net, ids, "cpu", PAD), wanted)
        short = class_logits(net, ids[:, :3], "cpu", PAD)
    assert torch.allclose(short, wanted, atol=1e-5)
    assert set_trainable(net, "head") == 2 * TINY["emb_dim"] + 2
    p_spam = wanted[0].softmax(-1)[1].item()
    text = "".join(map(chr, (65, 66, 67)))  # the ids 5, 6 and 7
    for max_length in (None, 30):
        verdict = classify_review(text, net, LETTERS, "cpu", max_length, PAD)
        assert verdict.probability == pytest.approx(p_spam, abs=1e-5)


@pytest.mark.parametrize(
    ("part", "learns"),
    [
        ("head", ["gpt.out_head"]),
        ("last block", ["gpt.trf_blocks.2", "gpt.final_norm", "gpt.out_head"]),
        ("all", ["gpt"]),
    ],
)
def test_only_the_part_named_learns(part, learns, csv_file):
    net = tiny_classifier().train()
    for other in ("all", "head", part):  # whatever was trainable before
        count = set_trainable(net, other)
    before = copy.deepcopy(net.state_dict())
    names = [name for name, _ in net.named_parameters()]
    inside = [name for name in names if name.startswith(tuple(learns))]
    assert count == sum(before[name].numel() for name in inside)
    dataset = SpamDataset(csv_file(table(12, 12)), LETTERS, 30, PAD)
    loader = create_spam_loader(dataset, 24)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    train_classifier_simple(net, loader, loader, optimizer, "cpu", 1, 1, 1)
    after = net.state_dict()
    for name in names:
        if not name.endswith("W_key.bias"):  # changes nothing, so has no gradient
            assert torch.equal(before[name], after[name]) == (name not in inside)


# Loss, accuracy, training


class Fixed(nn.Module):
    """A model that says the numbers it is given."""

    def forward(self, x):
        return x


def fixed_loader(batch_size=4, n=10):
    logits = torch.randn(n, 2, generator=torch.Generator().manual_seed(4))
    labels = torch.randint(2, (n,), generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(logits, labels), batch_size), logits, labels


def learn(num_epochs=1, eval_freq=1):
    """Chapter 6's loop over a linear layer."""
    net, loader = nn.Linear(2, 2), fixed_loader()[0]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    settings = {"num_epochs": num_epochs, "eval_freq": eval_freq, "eval_iter": 1}
    train_classifier_simple(net, loader, loader, optimizer, "cpu", **settings)


def test_loss_and_accuracy_are_means_over_messages_not_batches():
    loader, logits, labels = fixed_loader()  # batches of 4, 4 and 2
    loss, accuracy = evaluate_classifier(loader, Fixed(), "cpu")
    by_hand = [-z.softmax(-1)[y].log().item() for z, y in zip(logits, labels)]  # noqa: B905
    assert loss == pytest.approx(sum(by_hand) / 10)
    assert accuracy == (logits.argmax(-1) == labels).double().mean().item()
    assert calc_accuracy_loader(loader, Fixed(), "cpu") == accuracy
    first, _ = evaluate_classifier(loader, Fixed(), "cpu", num_batches=1)
    assert first == pytest.approx(sum(by_hand[:4]) / 4)
    assert calc_classification_loss(
        logits, labels, Fixed(), "cpu"
    ).item() == pytest.approx(loss)


def random_states(loader):
    """Where chance stands, torch's and the loader's own."""
    return torch.get_rng_state(), loader.generator.get_state()


def spam_run(csv_file):
    """A new classifier, a shuffling loader with three batches, and one that is not."""
    torch.manual_seed(3)
    net = GPTClassifier(GPTModel(TINY), pad_token_id=PAD)
    dataset = SpamDataset(csv_file(table(12, 12)), LETTERS, 40, PAD)
    chance = torch.Generator().manual_seed(3)
    loaders = create_spam_loader(dataset, 8, True, chance), create_spam_loader(dataset)
    return net, *loaders, torch.optim.AdamW(net.parameters(), 3e-3)


@pytest.mark.parametrize("eval_freq", [1, 4, 100])
def test_training_is_plain_gradient_descent_with_looks(csv_file, capsys, eval_freq):
    """Whatever is watched, the weights are those of four lines without any look."""
    net, *loaders, optimizer = spam_run(csv_file)
    found = train_classifier_simple(net, *loaders, optimizer, "cpu", 4, eval_freq, None)
    plain, loader, val_loader, optimizer = spam_run(csv_file)
    for _ in range(4):
        for inputs, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs), labels).backward()
            optimizer.step()
    assert same_weights(net, plain) and net.training
    assert all(map(torch.equal, random_states(loader), random_states(loaders[0])))
    *losses, train_accuracies, val_accuracies, seen = found
    looks = len(range(0, 12, eval_freq))
    assert [len(curve) for curve in losses] == [looks, looks] and seen == 4 * 24
    assert len(train_accuracies) == len(val_accuracies) == 4
    assert losses[0][0] == pytest.approx(math.log(2), abs=0.1)
    assert val_accuracies[-1] == calc_accuracy_loader(val_loader, plain, "cpu")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step") for line in lines) == looks
    assert f"training {train_accuracies[-1]:.3f}" in lines[-1]


def test_ctrl_c_keeps_what_there_is(csv_file, capsys):
    net, loader, _, optimizer = spam_run(csv_file)
    passes = []

    def press(module, inputs):
        passes.append(module.training)
        if sum(passes) == 5:
            raise KeyboardInterrupt

    net.register_forward_pre_hook(press)
    found = train_classifier_simple(net, loader, loader, optimizer, "cpu", 9, 1, 1)
    assert found[4] == 4 * 8 and len(found[0]) == 5 and len(found[2]) == 1
    assert "Interrupted after step 4." in capsys.readouterr().out


def test_head_reads_the_same_from_frozen_features(csv_file):
    net = tiny_classifier().train()
    dataset = SpamDataset(csv_file(table(12, 12)), LETTERS, 30, PAD)
    generator = torch.Generator().manual_seed(6)
    loader = create_spam_loader(dataset, 5, True, generator)
    before = random_states(loader)
    found = frozen_features(net, loader, "cpu")
    assert all(map(torch.equal, before, random_states(loader)))
    assert net.training and len(found) == 24
    features, labels = found.tensors
    assert not features.requires_grad
    assert labels.tolist() == [label.item() for _, label in dataset]
    with torch.no_grad():
        logits = torch.cat([net(ids[None]) for ids, _ in dataset])
    assert torch.allclose(net.gpt.out_head(features), logits, atol=1e-5)


def test_rate_falls_in_a_straight_line():
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    let_rate_fall(optimizer, 4)
    rates = []
    for _ in range(6):
        before = parameter.item()
        parameter.grad = torch.ones(())
        optimizer.step()
        rates.append(before - parameter.item())
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0], abs=1e-6)


def test_rate_goes_on_falling_where_it_was_saved(tmp_path):
    """On the very line of a run that was not interrupted, also with several groups."""

    def falling(num_steps=10):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        groups = [
            {"params": net[0].parameters()},
            {"params": net[1].parameters(), "lr": 0.003},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        let_rate_fall(optimizer, num_steps)
        return net, optimizer

    def rates(net, optimizer, steps):
        for _ in range(steps):
            yield [group["lr"] for group in optimizer.param_groups]
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()

    whole = list(rates(*falling(), 12))
    assert whole == [
        [r * max(0.0, 1 - i / 10) for r in (0.01, 0.003)] for i in range(12)
    ]
    net, optimizer = falling()
    first = list(rates(net, optimizer, 5))
    save_checkpoint(tmp_path / "half.safetensors", net, optimizer)
    net, optimizer = falling()
    load_checkpoint(tmp_path / "half.safetensors", net, optimizer)
    assert first + list(rates(net, optimizer, 7)) == whole


# Measuring


def test_interval_is_wilsons():
    # Newcombe (1998), Two-Sided Confidence Intervals for the Single Proportion, table I
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = accuracy_interval(right, count)
        assert found == pytest.approx((low, high), abs=6e-5)
        mirrored = accuracy_interval(count - right, count)
        assert mirrored == pytest.approx((1 - found[1], 1 - found[0]))
    for right, count in ((0, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="make no accuracy"):
            accuracy_interval(right, count)


# Using it


def test_probabilities_come_in_the_order_of_the_texts():
    net = tiny_classifier()
    texts = ["another of the long ones", "abc", "b", "", "a longer message", "abc"]
    found = spam_probabilities(texts, net, LETTERS, "cpu", None, PAD, batch_size=2)
    alone = []
    for text in texts:
        ids = torch.tensor([encode_message(text, LETTERS, pad_token_id=PAD)])
        with torch.no_grad():
            alone.append(net(ids).softmax(-1)[0, 1].item())
    assert found.tolist() == pytest.approx(alone, abs=1e-5)
    assert found[1] == pytest.approx(found[5].item(), abs=1e-6)
    assert spam_probabilities([], net, LETTERS, "cpu").shape == (0,)


def test_long_texts_are_cut_and_a_warning_says_so():
    net = tiny_classifier()
    long, cut = "abcdefghij" * 9, "abcdefghij" * 4
    with pytest.warns(UserWarning, match="1 of 2 messages .* 40 tokens .up to 90."):
        found = spam_probabilities([long, "b"], net, LETTERS, "cpu", None, PAD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = spam_probabilities([cut, "b"], net, LETTERS, "cpu", None, PAD)
        assert torch.equal(found, wanted)
    with pytest.warns(UserWarning, match="the first 40 was not read"):
        limited = spam_probabilities([long], net, LETTERS, "cpu", 1000, PAD)
    assert limited.item() == pytest.approx(wanted[0].item(), abs=1e-5)
    with pytest.warns(UserWarning, match="the first 3 was not read"):
        three = classify_review("abcdef", net, LETTERS, "cpu", 3, PAD)
    assert three.probability == pytest.approx(
        classify_review("abc", net, LETTERS, "cpu", None, PAD).probability
    )


def test_verdict_is_the_books_string_with_a_probability():
    net = tiny_classifier()
    for text in ("abc", "", "😀", "你好", "x" * 40):
        verdict = classify_review(text, net, LETTERS, "cpu", None, PAD)
        assert isinstance(verdict, Verdict) and verdict in ("spam", "not spam")
        assert (verdict == "spam") == (verdict.probability > 0.5)
        for limit in (0.0, verdict.probability, 1.0):  # spam is only above it
            found = classify_review(
                text, net, LETTERS, "cpu", None, PAD, threshold=limit
            )
            assert (found == "spam") == (limit == 0.0)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_classifier_is_built_again_from_its_file(tmp_path, tied):
    net = tiny_classifier(tie_weights=tied)
    save_checkpoint(tmp_path / "spam.safetensors", net)
    again = load_classifier(tmp_path / "spam.safetensors")
    assert again.cfg == net.cfg and not again.training
    ids = torch.tensor([[1, 2, 3, PAD], [4, PAD, PAD, PAD]])
    with torch.no_grad():
        assert torch.equal(again(ids), net(ids))
    assert again.pad_token_id == PAD


def test_files_that_hold_no_classifier_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_classifier(tmp_path / "nowhere.safetensors")
    save_checkpoint(tmp_path / "gpt.safetensors", GPTModel(TINY))
    with pytest.raises(ValueError, match="gpt.safetensors holds no classifier"):
        load_classifier(tmp_path / "gpt.safetensors")
    save_checkpoint(tmp_path / "spam.safetensors", tiny_classifier())
    tensors = load_file(tmp_path / "spam.safetensors")
    good = {**TINY, "num_classes": 2, "pad_token_id": PAD}
    for number, record in enumerate(
        [
            *({}, [], None, 7, {"config": None}, {"config": []}),
            {"config": {**good, "emb_dim": 10**6}},
            {"config": {**good, "n_layers": 10**6}},
            {"config": {**good, "num_classes": 10**9}},
        ]
    ):
        path = tmp_path / f"hostile{number}.safetensors"
        save_file(tensors, path, {"checkpoint": json.dumps(record)})
        with pytest.raises(ValueError, match=path.name):
            load_classifier(path)


# What is refused; `tests/test_fuzz.py` tries many more values


EMPTY = DataLoader(TensorDataset(torch.zeros(0, 2), torch.zeros(0).long()), 4)
IDS = torch.ones(2, 3, dtype=torch.long)
TOKENS = "scores the 61 tokens of its vocabulary.*GPTClassifier.*out_head ="


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_sms("spam"), "sms-spam or sms-spam-uci, not 'spam'"),
        (lambda: random_split(table(), 0.7, 0.3), "sum below 1.*try 0.7 and 0.1"),
        (lambda: random_split(table(), 0, 0.5), "must be above 0"),
        (
            lambda: random_split(pd.DataFrame({"row": range(3)}), 0.7, 0.1),
            "leave a part empty: 2 to train on, 0",
        ),
        (lambda: encode_message(None, LETTERS), "a message must be a string, not None"),
        (lambda: encode_message("Hi", LETTERS, 0), "max_length must be 1 or more"),
        (lambda: LengthGroupedSampler([], 8), "texts must be 1 or more, not 0"),
        (lambda: LengthGroupedSampler([1], 0), "batch_size must be 1 or more, not 0"),
        (lambda: LengthGroupedSampler([1], 1, pool=0), "pool must be 1 or more, not 0"),
        (lambda: GPTClassifier(GPTModel(TINY), 1), "num_classes must be 2 or more"),
        (lambda: class_logits(GPTModel(TINY), IDS, "cpu"), TOKENS),
        (lambda: classify_review("Hi", GPTModel(TINY), LETTERS, "cpu"), TOKENS),
        (
            lambda: set_trainable(tiny_classifier(), "first block"),
            "head, last block, all, not 'first block'",
        ),
        (lambda: calc_accuracy_loader(EMPTY, Fixed(), "cpu"), "no batches"),
        (
            lambda: calc_accuracy_loader(fixed_loader()[0], Fixed(), "cpu", 0),
            "num_batches must be 1 or more, not 0",
        ),
        (lambda: learn(num_epochs=0), "num_epochs must be 1 or more, not 0"),
        (lambda: learn(eval_freq=0), "eval_freq must be 1 or more, not 0"),
        (lambda: let_rate_fall(None, 0), "num_steps must be 1 or more, not 0"),
        (
            lambda: spam_probabilities("abc", tiny_classifier(), LETTERS, "cpu"),
            "must be a list of strings",
        ),
        (
            lambda: spam_probabilities(
                ["a"], tiny_classifier(), LETTERS, "cpu", batch_size=0
            ),
            "batch_size must be 1 or more, not 0",
        ),
        (
            lambda: classify_review(
                "Hi", tiny_classifier(), LETTERS, "cpu", threshold=50
            ),
            r"threshold must lie in \[0, 1\], not 50",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# The comparison


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    """A function that runs `compare` for a tiny base and returns the record."""

    def tiny_base(device="cpu"):
        torch.manual_seed(0)
        small = {**TINY, "vocab_size": 8192, "emb_dim": 12, "context_length": 300}
        return GPTModel(small)

    monkeypatch.setattr(compare, "load_base", tiny_base)
    monkeypatch.setattr(sms, "load_sms", lambda name: load_sms(name)[:400])
    few = make_twins(30)
    monkeypatch.setattr(compare, "make_twins", lambda seed: few)
    for method, (part, _, rate) in compare.METHODS.items():
        monkeypatch.setitem(compare.METHODS, method, (part, 1, rate))
    out = tmp_path / "record.json"

    def run(n_seeds, *methods, task="spam"):
        command = ["compare", "--out", str(out), "--seeds", str(n_seeds)]
        command += ["--tasks", task, "--methods", *methods]
        monkeypatch.setattr("sys.argv", command)
        compare.main()
        return json.loads(out.read_text())

    return run


def test_comparison_is_written_and_goes_on(comparison):
    first = comparison(1, "head")
    assert [run["seed"] for run in first["runs"]] == [0]
    assert 0 <= first["runs"][0]["test"] <= 1
    second = comparison(2, "head")
    assert second["runs"][0] == first["runs"][0]  # not run again
    assert [run["seed"] for run in second["runs"]] == [0, 1]


def test_comparison_goes_on_with_other_threads_but_not_on_another_device(
    comparison, tmp_path
):
    record = tmp_path / "record.json"
    first = comparison(1, "TF-IDF, words")
    marked = [{**run, "test": 2.0} for run in first["runs"]]  # no run finds that
    for device, goes_on in (("cpu, 16 or 32 threads", True), ("tpu, 1 threads", False)):
        record.write_text(json.dumps({**first, "device": device, "runs": marked}))
        again = comparison(2, "TF-IDF, words")
        assert (again["runs"][0]["test"] == 2.0) == goes_on
        assert ("16 or 32" in again["device"]) == goes_on
    both = compare.with_threads_of("cpu, 2 threads", "cpu, 1 or 2 threads")
    assert both == "cpu, 1 or 2 threads"


def test_comparison_has_every_method(comparison):
    runs = {
        run["method"]: run for run in comparison(1, *compare.all_settings())["runs"]
    }
    assert list(runs) == list(compare.all_settings())
    n_head, n_all = runs["head"]["numbers"], runs["all"]["numbers"]
    assert n_head == 2 * 12 + 2 < runs["last block"]["numbers"] < n_all
    assert n_head < runs["LoRA"]["numbers"] < n_all
    assert runs["all, not pretrained"]["numbers"] == n_all
    assert all(0 <= run["test"] <= 1 for run in runs.values())


def test_comparison_keeps_the_tasks_apart(comparison):
    comparison(1, "TF-IDF, words", task="spam")
    found = comparison(1, "TF-IDF, words", "head", task="word order")["runs"]
    assert [(run["task"], run["method"]) for run in found] == [
        ("spam", "TF-IDF, words"),
        ("word order", "TF-IDF, words"),
        ("word order", "head"),
    ]
    assert found[1]["test"] == 0.5  # no counting of words can tell twins apart


def test_a_record_of_another_base_is_noticed(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = compare.read_record()
    record["base"] = compare.FILES["base/model.safetensors"].sha256
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compare.read_record(path) == record
    path.write_text(json.dumps({**record, "base": "0" * 64}))
    with pytest.warns(UserWarning, match="record.json was made with another base"):
        compare.read_record(path)


def test_the_record_is_of_the_base_and_has_every_method():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # another base is a warning
        record = compare.read_record()
    runs = pd.DataFrame(record["runs"])
    for task in compare.TASKS:
        seeds = runs[runs["task"] == task].groupby("method")["seed"].apply(sorted)
        assert all(found == list(range(len(found))) for found in seeds)
        compared = {"all", "all, not pretrained", *compare.BASELINES}
        needed = set(compare.all_settings()) if task == "spam" else compared
        assert needed <= set(seeds.index) <= set(compare.all_settings())
        assert len(seeds["all"]) >= 2
    counted = runs.query("task == 'word order' and method == 'TF-IDF, words'")
    assert counted["test"].eq(0.5).all()


# Word order


def test_twins_have_the_same_tokens_and_opposite_labels():
    twins = make_twins(200, seed=3)
    assert len(twins) == 400 and twins["Text"].is_unique
    assert twins["Label"].tolist()[::2] == [
        1 - x for x in twins["Label"].tolist()[1::2]
    ]
    for tokenizer in (get_tokenizer(), load_base_tokenizer()):
        tokens = [Counter(encode_message(text, tokenizer)) for text in twins["Text"]]
        assert tokens[::2] == tokens[1::2]
    assert make_twins(200, seed=3).equals(twins)
    assert not make_twins(200, seed=4).equals(twins)
    assert 0.4 < twins["Label"][::2].mean() < 0.6  # the first named has it, or not
    assert not twins["Text"].str.contains(r"  |[{}]|,,").any()


def test_who_has_it_follows_from_the_sentence():
    """By another route: the verb or preposition, and which name stands first."""
    taking = " took | bought | borrowed | got | received | came from "
    for text, label, _ in make_twins(300).itertuples(index=False):
        first = min(("Anna", "Ben"), key=text.index)
        giver_first = not any(verb in text for verb in taking.split("|"))
        # as in "it was to Ben that Anna gave it", "it came from Ben to Anna"
        turned = any(x in text for x in ("it was to ", "it was from ", "went to "))
        turned = turned or " came from " in text
        has_it_first = not giver_first if not turned else giver_first
        assert (first == ("Anna", "Ben")[label]) == has_it_first, text


def test_twins_stay_together():
    twins = make_twins(50)
    parts = split_twins(twins)
    assert [len(part) for part in parts] == [70, 10, 20]
    pairs = [set(part["pair"]) for part in parts]
    assert sum(map(len, pairs)) == len(set().union(*pairs)) == 50
    assert all((part["pair"].value_counts() == 2).all() for part in parts)


def test_comparison_starts_anew_with_other_settings_or_another_base(
    comparison, monkeypatch, tmp_path
):
    scratch = "all, not pretrained"
    comparison(1, "head", "last block", scratch)
    record = tmp_path / "record.json"

    def mark():
        """Change what the runs found, to see which of them are made again."""
        old = json.loads(record.read_text())
        old["runs"] = [{**run, "test": 2.0} for run in old["runs"]]
        record.write_text(json.dumps(old))

    def kept(found):
        return [run["method"] for run in found["runs"] if run["test"] == 2.0]

    mark()
    monkeypatch.setitem(compare.METHODS, "last block", ("last block", 1, 1e-4))
    assert kept(comparison(1, "head", "last block")) == ["head", scratch]
    mark()
    other = replace(compare.FILES["base/model.safetensors"], sha256="0" * 64)
    monkeypatch.setitem(compare.FILES, "base/model.safetensors", other)
    # what begins with random weights does not depend on the base's, only on its tokens
    assert kept(comparison(1, "head", "last block")) == [scratch]
    now = json.loads(record.read_text())
    assert compare.earlier_runs(record, now) == now["runs"]
    assert compare.earlier_runs(record, {**now, "tokenizer": "another"}) == []
