"""Chapter 5: losses, training, sampling."""

import io
import math
import signal
import sys
import threading
from collections import Counter

import models
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Letters, nudged_gpt, same_weights
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from shared.ch02 import get_tokenizer
from shared.ch04 import generate_text_simple
from shared.ch05 import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    evaluating,
    generate,
    generate_and_print_sample,
    in_order,
    longest_verbatim_run,
    next_token_probabilities,
    plot_losses,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
    train_val_test_split,
)
from shared.terminal import say

V = models.TINY["vocab_size"]
TINY = {**models.TINY, "context_length": 12, "n_layers": 2, "drop_rate": 0.2}
LETTERS = Letters()


@pytest.fixture(autouse=True, scope="module")
def ctrl_c_interrupts():
    """Processes started in the background ignore Ctrl-C; these tests need it."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def tiny_model(seed=1, **changes):
    """A model whose every number, biases and norms too, is random and not small."""
    return nudged_gpt({**TINY, **changes}, seed)


def make_loader(n=7, shuffle=True, drop_last=True, own_generator=True):
    """Batches of two windows; shuffled, there are three of them."""
    ids = torch.randint(V, (n, 13), generator=torch.Generator().manual_seed(n))
    return DataLoader(
        TensorDataset(ids[:, :-1], ids[:, 1:]),
        2,
        shuffle,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(5) if own_generator else None,
    )


VAL_LOADER = make_loader(3, shuffle=False, drop_last=False)  # batches of 2 and 1


# Text, ids and splits


def test_text_to_ids_and_back():
    tokenizer = get_tokenizer()
    text = "The box weighed thirty-one pounds.\n\n“né” <|endoftext|> on"
    ids = text_to_token_ids(text, tokenizer)
    assert ids.shape[0] == 1 and ids.dtype == torch.int64 and 50256 in ids
    assert token_ids_to_text(ids, tokenizer) == text
    assert token_ids_to_text(ids[0], tokenizer) == text


@settings(deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=60),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda f: sum(f) <= 1),
)
def test_split_cuts_after_the_last_line_that_ends_before_the_share(text, fractions):
    parts = train_val_test_split(text, *fractions)
    assert "".join(parts) == text
    cuts = len(parts[0]), len(parts[0]) + len(parts[1])
    for share, cut in zip((fractions[0], sum(fractions)), cuts, strict=True):
        end = round(share * len(text))
        if end < len(text) and "\n" in text[:end]:
            assert text[cut - 1] == "\n" and "\n" not in text[cut:end]
        else:
            assert cut == end


# Losses


def test_loss_is_the_mean_over_tokens_of_what_is_not_masked():
    model = tiny_model().eval()
    inputs, targets = next(iter(make_loader()))
    loss = calc_loss_batch(inputs, targets, model, "cpu")
    oracle = F.cross_entropy(model(inputs).transpose(1, 2), targets)
    assert torch.allclose(loss, oracle)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_loader_loss_is_the_mean_over_tokens_not_batches():
    model = tiny_model()
    inputs, targets = VAL_LOADER.dataset.tensors
    masked = targets.clone()
    masked[0, :9] = -100
    for wanted in (targets, masked):
        loader = DataLoader(TensorDataset(inputs, wanted), 2)
        with evaluating(model):
            logits = model(inputs).flatten(0, 1)
            first = calc_loss_batch(*next(iter(loader)), model, "cpu").item()
        oracle = F.cross_entropy(logits, wanted.flatten()).item()
        found = [calc_loss_loader(loader, model, "cpu", n) for n in (None, 100, 1)]
        assert found == pytest.approx([oracle, oracle, first], rel=1e-5)
        assert first != oracle


@pytest.mark.parametrize("own_generator", [True, False])
def test_evaluation_leaves_no_trace(own_generator):
    loader = make_loader(own_generator=own_generator)
    dice = [torch.default_generator] + [loader.generator] * own_generator
    model = tiny_model()
    before = [generator.get_state() for generator in dice]
    first = evaluate_model(model, loader, VAL_LOADER, "cpu", None)
    after = [generator.get_state() for generator in dice]
    assert all(map(torch.equal, before, after))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert evaluate_model(model, loader, VAL_LOADER, "cpu", None) == first
    evaluate_model(model.eval(), loader, VAL_LOADER, "cpu", 1)
    assert not model.training


def test_evaluating_restores_the_mode_after_an_error():
    model = tiny_model().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


def test_second_loader_has_the_same_data_in_order():
    def as_is(rows):
        return torch.stack([ids for ids, _ in rows]), len(rows)

    ids = torch.arange(28).view(7, 4)
    batches = DataLoader(TensorDataset(ids, ids), 2, shuffle=True, collate_fn=as_is)
    found = list(in_order(batches))
    assert torch.equal(torch.cat([rows for rows, _ in found]), ids)
    assert [count for _, count in found] == [2, 2, 2, 1]
    sampler = BatchSampler([6, 5, 4, 3, 2, 1, 0], 3, drop_last=True)
    batches = DataLoader(batches.dataset, batch_sampler=sampler, collate_fn=as_is)
    assert [count for _, count in in_order(batches)] == [3, 3, 1]
    assert in_order(found) is found  # a list has no dice


def test_only_the_rows_that_a_loader_gives_are_measured():
    data = make_loader(6).dataset
    parts = [
        DataLoader(data, 2, sampler=SubsetRandomSampler(rows))
        for rows in ([5, 0, 1], [2, 3, 4])
    ]
    model = tiny_model()
    found = evaluate_model(model, *parts, "cpu", None)
    rows = [[data[i] for i in (0, 1, 5)], [data[i] for i in (2, 3, 4)]]
    plain = [calc_loss_loader(DataLoader(part, 3), model, "cpu") for part in rows]
    assert found == pytest.approx(plain) and found[0] != found[1]
    by_number = DataLoader(data, sampler=[5, 0, 1])
    assert calc_loss_loader(by_number, model, "cpu") == pytest.approx(found[0])


def test_rows_that_nobody_can_tell_are_refused():
    data = make_loader(6).dataset
    loader = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 6, 6))
    with pytest.raises(TypeError, match="WeightedRandomSampler.*Subset"):
        calc_loss_loader(loader, tiny_model(), "cpu")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(make_loader(6).dataset)


def test_a_stream_and_batches_of_one_s_own_are_measured():
    model, data = tiny_model(), make_loader(6).dataset
    whole = calc_loss_loader(DataLoader(data, 2), model, "cpu")
    assert calc_loss_loader(DataLoader(Stream(), 2), model, "cpu", 9) == whole
    with pytest.raises(TypeError, match="data_loader is a stream.*num_batches"):
        calc_loss_loader(DataLoader(Stream(), 2), model, "cpu")
    with pytest.raises(TypeError, match="train_loader is a stream"):
        train_simply(model, train_loader=DataLoader(Stream(), 2))
    laid_out = DataLoader(data, batch_sampler=[[0, 1], [2, 3], [4, 5]])
    assert calc_loss_loader(laid_out, model, "cpu") == whole
    batches = TensorDataset(*(t.view(3, 2, 12) for t in data.tensors))
    ready = DataLoader(batches, batch_size=None, shuffle=True)
    assert calc_loss_loader(ready, model, "cpu") == whole


def test_a_loss_of_nothing_is_refused():
    inputs, targets = VAL_LOADER.dataset.tensors
    none = torch.full_like(targets, -100)
    with pytest.raises(ValueError, match="every one is -100"):
        calc_loss_loader([(inputs, none)], tiny_model(), "cpu")
    some = [(inputs, none), (inputs, targets)]
    loss = calc_loss_loader(some, tiny_model(), "cpu")
    assert loss == calc_loss_loader(some[1:], tiny_model(), "cpu")


# Training


def test_no_training_ends_because_of_a_letter(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    generate_and_print_sample(tiny_model(), Letters(), "cpu", "a")
    say("\u0394 gr\u00fcn")
    narrow.flush()
    assert narrow.buffer.getvalue().endswith(b"? gr\xfcn\n")


def test_what_could_learn_nothing_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="requires_grad_"):
        train_simply(tiny_model().requires_grad_(False), optimizer=object())
    with pytest.raises(ValueError, match="at least one token"):
        train_simply(tiny_model(), optimizer=object(), start_context="")


def train_simply(model, **more):
    """Two epochs of three steps each."""
    optimizer = more.pop("optimizer", None) or adamw(model)
    settings = {"num_epochs": 2, "eval_freq": 2, "eval_iter": 1, **more}
    settings = {"train_loader": make_loader(), "val_loader": VAL_LOADER, **settings}
    settings = {"start_context": "ab", **settings}
    return train_model_simple(
        model,
        optimizer=optimizer,
        device="cpu",
        tokenizer=LETTERS,
        **settings,
    )


def adamw(model):
    torch.manual_seed(3)  # of dropout
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def after_plain_steps(number):
    """A model after so many steps of a loop without any look."""
    plain, loader, done = tiny_model(), make_loader(), 0
    optimizer = adamw(plain)
    while done < number:
        for inputs, targets in loader:
            if done < number:
                optimizer.zero_grad()
                logits = plain(inputs).flatten(0, 1)
                F.cross_entropy(logits, targets.flatten()).backward()
                optimizer.step()
                done += 1
    return plain


@pytest.mark.parametrize("eval_freq", [1, 4, 6, 7])
def test_training_is_plain_gradient_descent_with_looks(eval_freq, capsys):
    """Whatever is watched, the weights are those of four lines without any look."""
    model = tiny_model()
    train_losses, val_losses, seen = train_simply(model, eval_freq=eval_freq)
    assert same_weights(model, after_plain_steps(6)) and model.training
    steps = sorted({*range(0, 6, eval_freq), 6})
    assert seen == [24 * step for step in steps]
    last = evaluate_model(model, make_loader(), VAL_LOADER, "cpu", 1)
    assert (train_losses[-1], val_losses[-1]) == last
    assert len(train_losses) == len(val_losses) == len(steps)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step") for line in lines) == len(steps)
    assert sum(line.startswith("    kl") for line in lines) == 2  # "ab" goes on
    numbers = f"{seen[-1]:9,} tokens: training loss {last[0]:6.3f}"
    assert numbers in lines[-1] and f"validation loss {last[1]:6.3f}" in lines[-1]


@pytest.mark.parametrize(
    ("when", "steps", "looks"),
    [("look 1", 0, 0), ("look 2", 2, 1), ("forward 4", 3, 2), ("optimizer 4", 4, 2)],
)
def test_ctrl_c_ends_training_between_two_steps(when, steps, looks, capsys):
    """Also in the middle of a step of the optimizer, which is made whole first."""
    model, passes = tiny_model(), Counter()
    optimizer = adamw(model)

    def press(module, inputs=()):
        passes["forward" if model.training else "look"] += 1
        if when == f"forward {passes['forward']}" and model.training:
            signal.raise_signal(signal.SIGINT)
        if when == f"look {(1 + passes['look']) // 2}" and not model.training:
            signal.raise_signal(signal.SIGINT)

    def step(*details):
        passes["optimizer"] += 1
        if when == f"optimizer {passes['optimizer']}":
            signal.raise_signal(signal.SIGINT)  # half of the weights would be new

    model.register_forward_pre_hook(press)
    optimizer.register_step_pre_hook(step)
    curves = train_simply(model, optimizer=optimizer)
    assert curves[2] == [48 * look for look in range(looks)]
    assert [len(curve) for curve in curves] == [looks] * 3
    assert f"Interrupted after step {steps} of 6" in capsys.readouterr().out
    assert same_weights(model, after_plain_steps(steps)) and model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(train_simply(tiny_model())))
    thread.start()
    thread.join()
    assert found[0][2] == [0, 48, 96, 144]


def test_sample_is_one_line_and_leaves_mode_and_randomness_alone(capsys):
    class Blanks(Letters):
        def decode(self, ids):
            return f"The box\n\n \n weighed  {len(ids)}\n"

    model = tiny_model().train()
    before = torch.get_rng_state()
    for tokenizer in (LETTERS, LETTERS, Blanks()):
        generate_and_print_sample(model, tokenizer, "cpu", "abc")
    assert model.training and torch.equal(before, torch.get_rng_state())
    first, second, blanks = capsys.readouterr().out.splitlines()
    assert first == second and len(first.strip()) == 53
    assert blanks == "    The box weighed 53"


def test_plot_has_both_scales():
    import matplotlib.pyplot as plt

    ax = plot_losses([0, 1, 2], [0, 500, 1000], [10, 5, 1], [10, 6, 7])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["training", "validation"] and ax.get_ylim()[0] == 0
    above = next(other for other in ax.figure.axes if other is not ax)
    assert (ax.get_xlabel(), above.get_xlabel()) == ("epochs", "tokens seen")
    assert above.get_xlim()[1] / ax.get_xlim()[1] == pytest.approx(500)
    plt.close(ax.figure)


def test_longest_verbatim_run():
    assert longest_verbatim_run([9, 1, 2, 3, 8], [1, 2, 5, 1, 2, 3, 4]) == [1, 2, 3]
    assert longest_verbatim_run(torch.tensor([1, 2]), [3]) == []
    common = list(range(300)) * 3  # difflib's shortcut for frequent items must be off
    assert longest_verbatim_run(common, common) == common


# Sampling


two_rows = st.integers(2, 20).flatmap(
    lambda n: st.lists(
        st.lists(st.integers(-500, 500), min_size=n, max_size=n, unique=True),
        min_size=2,
        max_size=2,
    ).map(lambda rows: torch.tensor(rows) / 16)
)


@settings(deadline=None)
@given(logits=two_rows)
def test_four_ways_to_be_greedy(logits):
    greedy = F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    assert torch.equal(next_token_probabilities(logits, 0), greedy)
    assert torch.equal(next_token_probabilities(logits, 1e-40), greedy)
    assert torch.equal(next_token_probabilities(logits, 1.0, top_k=1), greedy)
    assert torch.equal(next_token_probabilities(logits, 2.0, top_p=1e-9), greedy)


@settings(deadline=None)
@given(
    logits=two_rows,
    temperature=st.floats(0.2, 5) | st.just(1e9),
    k_share=st.floats(0, 1),
    top_p=st.floats(0.01, 1),
)
def test_filters_agree_with_transformers(logits, temperature, k_share, top_p):
    from transformers.generation import logits_process

    top_k = 1 + round(k_share * (logits.shape[-1] - 1))
    found = next_token_probabilities(logits, temperature, top_k, top_p)
    scores = logits_process.TemperatureLogitsWarper(temperature)(None, logits)
    scores = logits_process.TopKLogitsWarper(top_k)(None, scores)
    cumulative = scores.softmax(-1).sort(descending=True).values.cumsum(-1)
    scores = logits_process.TopPLogitsWarper(top_p)(None, scores)
    if (cumulative - top_p).abs().min() > 1e-5 and temperature < 1e9:  # else rounding
        assert torch.allclose(found, scores.softmax(-1), atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(2), atol=1e-5)


def test_ties_and_tails():
    """Of equal logits `top_k` keeps k; a `top_p` of 1 keeps even the unlikeliest."""
    equal = torch.zeros(1, 6)
    found = next_token_probabilities(equal, top_k=2)
    assert (found > 0).sum() == 2 and found.sum() == 1
    assert next_token_probabilities(equal, 0).max() == 1
    tail = torch.tensor([[0.0, -40.0, -50.0]])
    assert torch.equal(next_token_probabilities(tail, top_p=1), tail.softmax(-1))


@pytest.mark.parametrize("context_size", [5, 12])
@pytest.mark.parametrize("setting", [{}, {"temperature": 1.0, "top_k": 9}])
def test_cache_changes_nothing_even_past_the_window(context_size, setting):
    model = tiny_model()
    prompts = torch.randint(V, (3, 4))
    found = [
        generate(
            *(model, prompts, 30, context_size),
            **setting,
            generator=torch.Generator().manual_seed(0),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (3, 34) and torch.equal(found[0][:, :4], prompts)


def test_greedy_is_generate_text_simple_for_each_text_alone_and_needs_no_chance():
    model = tiny_model().train()  # dropout must not matter
    prompts = torch.randint(V, (4, 3))
    before = torch.get_rng_state()
    found = generate(model, prompts, 20, 12)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    alone = [generate_text_simple(model.eval(), row[None], 20, 12) for row in prompts]
    assert torch.equal(found, torch.cat(alone))
    assert torch.equal(generate(model, prompts, 0, 12), prompts)


def test_draws_follow_the_distribution():
    model = tiny_model(emb_dim=6)
    prompt = torch.tensor([[5, 9]])
    with evaluating(model):
        expected = next_token_probabilities(model(prompt)[:, -1], 1.5, 12, 0.9)[0]
    dice = torch.Generator().manual_seed(2)
    many = prompt.expand(20_000, -1)
    drawn = generate(model, many, 1, 12, 1.5, 12, None, 0.9, generator=dice)[:, -1]
    shares = torch.bincount(drawn, minlength=V) / 20_000
    assert torch.allclose(shares, expected, atol=0.02)
    assert (shares[expected == 0] == 0).all()


def test_each_text_of_a_batch_ends_by_itself():
    model = tiny_model(vocab_size=8)
    prompts = torch.randint(1, 8, (16, 2))
    free, ended = (
        generate(
            *(model, prompts, 40, 12, 3.0),
            eos_id=eos_id,
            generator=torch.Generator().manual_seed(1),
        )
        for eos_id in (None, 0)
    )
    lengths = []
    for row, free_row in zip(ended.tolist(), free.tolist(), strict=True):
        end = row.index(0, 2) if 0 in row[2:] else len(row)
        assert set(row[end:]) <= {0}
        assert row[:end] == free_row[:end]
        lengths.append(min(end + 1, len(row)))
    assert len(set(lengths)) > 3
    assert ended.shape[1] == max(lengths) < free.shape[1]


# What is refused; `tests/test_fuzz.py` tries many more values


EMPTY = make_loader(1)  # less than a batch
REFUSED = [
    ({"temperature": math.nan}, "temperature must be 0 .* not nan"),
    ({"temperature": math.inf}, "temperature must be 0 .* not inf"),
    ({"top_k": 0}, "top_k must be between 1 and the vocabulary's 61, not 0"),
    ({"top_k": 62}, "top_k must be between 1 and the vocabulary's 61, not 62"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
    ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
]


@pytest.mark.parametrize(("setting", "message"), REFUSED)
def test_impossible_distributions_are_refused_before_a_token_is_drawn(setting, message):
    with pytest.raises(ValueError, match=message):
        next_token_probabilities(torch.zeros(1, V), **setting)
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), torch.ones(1, 1).long(), 0, 12, **setting)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: token_ids_to_text(torch.ones(2, 3), LETTERS), r"\(2, 3\) are not"),
        (lambda net: train_val_test_split("a", 0.9, 0.2), "fraction 0.9 and .* 0.8"),
        (lambda net: train_val_test_split("a", -0.1, 0.5), "must not be negative"),
        (lambda net: calc_loss_loader(EMPTY, net, "cpu"), "data_loader has no batches"),
        (lambda net: calc_loss_loader(VAL_LOADER, net, "cpu", 0), "num_batches must"),
        (
            lambda net: evaluate_model(net, VAL_LOADER, EMPTY, "cpu", 1),
            "val_loader has no batches",
        ),
        (lambda net: train_simply(net, train_loader=EMPTY), "train_loader has no"),
        (lambda net: train_simply(net, val_loader=EMPTY), "val_loader has no batches"),
        (lambda net: train_simply(net, num_epochs=0), "num_epochs must be 1 or more"),
        (lambda net: train_simply(net, eval_freq=0), "eval_freq must be 1 or more"),
        (lambda net: generate(net, torch.ones(1, 0).long(), 3, 12), "at least one"),
        (lambda net: generate(net, torch.ones(1, 1).long(), 3, 13), "13"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(call, message, capsys):
    with pytest.raises(ValueError, match=message):
        call(tiny_model())
    assert capsys.readouterr().out == ""  # before any training
