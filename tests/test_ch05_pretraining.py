"""Chapter 5: losses, training, sampling."""

import math
import signal
import threading

import models
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import nudged_gpt, same_weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ch05_pretraining.pretraining import evaluating
from shared.ch02 import get_tokenizer
from shared.ch04 import GPTModel, generate_text_simple
from shared.ch05 import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
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

V = models.TINY["vocab_size"]
TINY = {**models.TINY, "context_length": 12, "n_layers": 2, "drop_rate": 0.2}


@pytest.fixture(autouse=True, scope="module")
def ctrl_c_interrupts():
    """Processes started in the background ignore Ctrl-C; these tests need it."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


class LetterTokenizer:
    """One token for each of 61 characters: enough for samples of a tiny model."""

    def encode(self, text, allowed_special=()):
        return [ord(character) % V for character in text]

    def decode(self, ids):
        return "".join(chr(ord("A") + i % 26) for i in ids)


def tiny_model(seed=1, **changes):
    """A model whose every number, biases and norms too, is random and not small."""
    return nudged_gpt({**TINY, **changes}, seed)


def make_loader(n=7, batch_size=2, shuffle=True, drop_last=True, own_generator=True):
    ids = torch.randint(V, (n, 13), generator=torch.Generator().manual_seed(n))
    return DataLoader(
        TensorDataset(ids[:, :-1], ids[:, 1:]),
        batch_size,
        shuffle,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(5) if own_generator else None,
    )


def interrupt_at(model, number, action=None):
    """Do as if Ctrl-C came during the forward pass of that number in training."""
    passes = []

    def press(module, inputs):
        passes.append(module.training)
        if module.training and sum(passes) == number:
            signal.raise_signal(signal.SIGINT) if action is None else action()

    model.register_forward_pre_hook(press)


# Text, ids and splits


def test_text_to_ids_and_back():
    tokenizer = get_tokenizer()
    text = "The box weighed thirty-one pounds.\n\n“né” <|endoftext|> on"
    ids = text_to_token_ids(text, tokenizer)
    assert ids.shape[0] == 1 and ids.dtype == torch.int64 and 50256 in ids
    assert token_ids_to_text(ids, tokenizer) == text
    assert token_ids_to_text(ids[0], tokenizer) == text
    with pytest.raises(ValueError, match=r"\(2, 3\) are not one text"):
        token_ids_to_text(torch.ones(2, 3, dtype=torch.int64), tokenizer)


@settings(deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=60),
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda f: sum(f) <= 1),
)
def test_split_joins_to_the_text_again(text, fractions):
    parts = train_val_test_split(text, *fractions)
    assert "".join(parts) == text


def test_split_cuts_at_line_ends_near_the_fractions():
    text = "".join(f"line {i:03d}\n" for i in range(100))
    train, val, test = train_val_test_split(text, 0.8, 0.1)
    assert [len(part) // 9 for part in (train, val, test)] == [80, 10, 10]
    assert all(part.endswith("\n") for part in (train, val, test))
    assert train_val_test_split("x" * 10) == ("x" * 8, "x", "x")
    assert train_val_test_split(text, 1.0, 0.0) == (text, "", "")
    for fractions in ((0.9, 0.2), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="fraction"):
            train_val_test_split(text, *fractions)


# Losses


class Constant(nn.Module):
    """A model that returns the same logits whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, ids):
        return self.logits.expand(*ids.shape, -1)


def test_loss_equals_cross_entropy_by_hand():
    model = tiny_model().eval()
    inputs, targets = next(iter(make_loader()))
    logits = model(inputs)
    by_hand = 0.0
    for b in range(inputs.shape[0]):
        for t in range(inputs.shape[1]):
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            by_hand -= p[targets[b, t]].log().item() / targets.numel()
    loss = calc_loss_batch(inputs, targets, model, "cpu")
    assert math.isclose(loss.item(), by_hand, rel_tol=1e-5)
    oracle = F.cross_entropy(logits.transpose(1, 2), targets)
    assert torch.allclose(loss, oracle)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_even_guess_costs_ln_v():
    model = Constant(torch.zeros(50257))
    ids = torch.randint(50257, (2, 5))
    assert math.isclose(
        calc_loss_batch(ids, ids, model, "cpu").item(), math.log(50257), rel_tol=1e-6
    )


def test_loader_loss_is_the_mean_over_tokens_not_batches():
    loader = make_loader(3, shuffle=False, drop_last=False)  # batches of 2 and 1
    model = tiny_model()
    inputs, targets = loader.dataset.tensors
    with evaluating(model):
        oracle = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    assert math.isclose(calc_loss_loader(loader, model, "cpu"), oracle, rel_tol=1e-5)

    masked = targets.clone()
    masked[0, :9] = -100
    loader = DataLoader(TensorDataset(inputs, masked), 2)
    with evaluating(model):
        oracle = F.cross_entropy(model(inputs).flatten(0, 1), masked.flatten()).item()
    assert math.isclose(calc_loss_loader(loader, model, "cpu"), oracle, rel_tol=1e-5)


def test_num_batches_limits_what_is_read():
    loader = make_loader(shuffle=False)
    model = tiny_model()
    first = calc_loss_loader(loader, model, "cpu", 1)
    with evaluating(model):
        oracle = calc_loss_batch(*next(iter(loader)), model, "cpu").item()
    assert math.isclose(first, oracle, rel_tol=1e-6)
    everything = calc_loss_loader(loader, model, "cpu")
    assert calc_loss_loader(loader, model, "cpu", 100) == everything != first
    with pytest.raises(ValueError, match="num_batches must be 1 or more, not 0"):
        calc_loss_loader(loader, model, "cpu", 0)


@pytest.mark.parametrize("own_generator", [True, False])
def test_evaluation_leaves_no_trace(own_generator):
    loader = make_loader(own_generator=own_generator)
    dice = [torch.default_generator] + [loader.generator] * own_generator
    model = tiny_model().train()
    before = [generator.get_state() for generator in dice]
    first = evaluate_model(model, loader, make_loader(3), "cpu", None)
    after = [generator.get_state() for generator in dice]
    assert all(map(torch.equal, before, after))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert evaluate_model(model, loader, make_loader(3), "cpu", None) == first
    model.eval()
    evaluate_model(model, loader, make_loader(3), "cpu", 1)
    assert not model.training


def test_second_loader_has_the_same_data_in_order():
    def as_is(rows):
        return torch.stack([ids for ids, _ in rows]), len(rows)

    ids = torch.arange(28).view(7, 4)
    batches = DataLoader(TensorDataset(ids, ids), 2, shuffle=True, collate_fn=as_is)
    found = list(in_order(batches))
    assert torch.equal(torch.cat([rows for rows, _ in found]), ids)
    assert [count for _, count in found] == [2, 2, 2, 1]
    sampler = torch.utils.data.BatchSampler([6, 5, 4, 3, 2, 1, 0], 3, drop_last=True)
    batches = DataLoader(batches.dataset, batch_sampler=sampler, collate_fn=as_is)
    assert [count for _, count in in_order(batches)] == [3, 3, 1]
    assert in_order(found) is found  # a list has no dice


def test_books_keyword_names_are_accepted():
    model, loader = tiny_model(), make_loader(shuffle=False)
    losses = calc_loss_loader(
        data_loader=loader, model=model, device="cpu", num_batches=1
    )
    assert losses == calc_loss_loader(loader, model, "cpu", 1)
    ids = torch.tensor([[1, 2]])
    tokenizer = LetterTokenizer()
    assert token_ids_to_text(token_ids=ids, tokenizer=tokenizer) == "BC"


def test_seventh_argument_of_generate_is_the_books_eos_id():
    """`generate(model, idx, n, ctx, 1.4, 25, 50256)` of the book's readers."""
    model = tiny_model(vocab_size=8)
    prompts = torch.randint(1, 8, (4, 2))
    calls = [
        generate(model, prompts, 30, 12, 1.4, 5, 0, generator=dice)
        for dice in [torch.Generator().manual_seed(1)]
    ] + [
        generate(model, prompts, 30, 12, 1.4, 5, eos_id=0, generator=dice)
        for dice in [torch.Generator().manual_seed(1)]
    ]
    assert torch.equal(*calls)
    assert any(0 in row[2:] for row in calls[0].tolist())
    narrow = generate(model, prompts, 9, 12, 1.0, None, None, 1e-6)
    assert torch.equal(narrow, generate(model, prompts, 9, 12))  # the eighth: top_p


def test_evaluating_restores_the_mode_after_an_error():
    model = tiny_model().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


def test_loader_without_batches_is_named():
    empty = make_loader(1)
    model = tiny_model()
    with pytest.raises(ValueError, match="data_loader has no batches"):
        calc_loss_loader(empty, model, "cpu")
    with pytest.raises(ValueError, match="val_loader has no batches"):
        evaluate_model(model, make_loader(), empty, "cpu", 1)
    rest = torch.optim.SGD(model.parameters()), "cpu", 1, 1, 1, "a", LetterTokenizer()
    with pytest.raises(ValueError, match="train_loader has no batches"):
        train_model_simple(model, empty, make_loader(), *rest)
    with pytest.raises(ValueError, match="val_loader has no batches"):
        train_model_simple(model, make_loader(), empty, *rest)


# Training


def train_simply(model=None, num_epochs=2, eval_freq=2, **more):
    torch.manual_seed(3)
    model = model or GPTModel(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loaders = make_loader(), make_loader(3, shuffle=False, drop_last=False)
    more = {"eval_iter": None, "start_context": "ab", **more}
    curves = train_model_simple(
        model,
        *loaders,
        optimizer,
        "cpu",
        num_epochs,
        eval_freq,
        more.pop("eval_iter"),
        more.pop("start_context"),
        LetterTokenizer(),
        **more,
    )
    return model, curves


def test_training_learns_by_heart_and_reports(capsys):
    model, (train_losses, val_losses, tokens_seen) = train_simply(num_epochs=60)
    # 3 batches of 2 x 12 tokens per epoch; a look before each 2nd step and at the end.
    assert tokens_seen == [24 * step for step in range(0, 181, 2)]
    assert len(train_losses) == len(val_losses) == len(tokens_seen)
    assert train_losses[0] == pytest.approx(math.log(V), abs=0.2)
    assert train_losses[-1] < 0.5 < val_losses[-1]
    assert val_losses[-1] > min(val_losses) + 0.5
    assert model.training
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step") for line in lines) == 91
    assert sum(line.startswith("    KL") for line in lines) == 60


def test_training_is_plain_gradient_descent_on_the_loader():
    """Whatever is watched, the weights are those of four lines without any look."""
    model, _ = train_simply(eval_freq=1)
    rarely, _ = train_simply(eval_freq=100, eval_iter=1)
    assert same_weights(model, rarely)
    torch.manual_seed(3)
    plain = GPTModel(TINY).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    loader = make_loader()
    for _ in range(2):
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten()).backward()
            optimizer.step()
    assert same_weights(model, plain)


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    loader, orders = make_loader(own_generator=False), []
    model = GPTModel(TINY)
    model.register_forward_pre_hook(
        lambda module, inputs: orders.append(inputs[0]) if module.training else None
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rest = "cpu", 3, 9, 1, "ab", LetterTokenizer()
    train_model_simple(model, loader, make_loader(3), optimizer, *rest)
    epochs = [torch.cat(orders[i : i + 3]) for i in (0, 3, 6)]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


@pytest.mark.parametrize("eval_freq", [1, 4, 6, 7])
def test_looks_are_on_the_grid_and_at_the_end(eval_freq):
    _, (_, _, tokens_seen) = train_simply(eval_freq=eval_freq, eval_iter=1)
    steps = sorted({*range(0, 6, eval_freq), 6})
    assert tokens_seen == [24 * step for step in steps]


@pytest.mark.parametrize("name", ["num_epochs", "eval_freq"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, not 0"):
        train_simply(**{name: 0})


def test_sample_leaves_mode_and_randomness_alone(capsys):
    model = tiny_model().train()
    before = torch.get_rng_state()
    generate_and_print_sample(model, LetterTokenizer(), "cpu", "abc")
    generate_and_print_sample(model, LetterTokenizer(), "cpu", "abc")
    assert model.training and torch.equal(before, torch.get_rng_state())
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and len(first.strip()) == 53


def test_sample_is_one_line_with_single_spaces(capsys):
    class Blanks(LetterTokenizer):
        def decode(self, ids):
            return "The box\n\n \n weighed  thirty\n"

    generate_and_print_sample(tiny_model(), Blanks(), "cpu", "abc")
    assert capsys.readouterr().out == "    The box weighed thirty\n"


def test_ctrl_c_ends_training_with_what_there_is(capsys):
    model = GPTModel(TINY)
    interrupt_at(model, 4)
    model, (train_losses, val_losses, tokens_seen) = train_simply(model, eval_freq=1)
    assert tokens_seen == [0, 24, 48, 72] and len(train_losses) == len(val_losses) == 4
    assert "Interrupted after step 3 of 6" in capsys.readouterr().out
    assert model.training


def test_ctrl_c_before_anything_returns_nothing(capsys):
    model = GPTModel(TINY)
    model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    assert train_simply(model)[1] == ([], [], [])
    assert "Interrupted after step 0 of 6" in capsys.readouterr().out


def test_ctrl_c_during_a_look_tears_nothing(capsys):
    model, calls = GPTModel(TINY), []

    def press(module, inputs):
        calls.append(module.training)
        if calls.count(False) == 8:  # in the second look
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(press)
    model, (train_losses, val_losses, tokens_seen) = train_simply(model)
    assert tokens_seen == [0] and len(train_losses) == len(val_losses) == 1
    assert "Interrupted after step 2 of 6" in capsys.readouterr().out
    assert model.training


def test_ctrl_c_inside_the_optimizer_waits_for_the_whole_step(capsys):
    torch.manual_seed(3)
    model, finished = GPTModel(TINY), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    plain_step = optimizer.step

    def step():
        if len(finished) == 3:
            signal.raise_signal(signal.SIGINT)  # half of the weights would be new
        plain_step()
        finished.append(1)

    optimizer.step = step
    loaders = make_loader(), make_loader(3, shuffle=False)
    train_model_simple(
        model, *loaders, optimizer, "cpu", 2, 2, 1, "a", LetterTokenizer()
    )
    assert len(finished) == 4
    assert "Interrupted after step 4 of 6" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(train_simply(num_epochs=1)))
    thread.start()
    thread.join()
    assert found[0][1][2] == [0, 48, 72]


def test_plot_has_both_scales():
    import matplotlib.pyplot as plt

    ax = plot_losses([0, 1, 2], [0, 500, 1000], [10, 5, 1], [10, 6, 7])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["training", "validation"]
    above = next(other for other in ax.figure.axes if other is not ax)
    assert (ax.get_xlabel(), above.get_xlabel()) == ("epochs", "tokens seen")
    assert above.get_xlim()[1] / ax.get_xlim()[1] == pytest.approx(500)
    plt.close(ax.figure)


def test_longest_verbatim_run():
    assert longest_verbatim_run([9, 1, 2, 3, 8, 1, 2], [1, 2, 5, 1, 2, 3, 4]) == [
        1,
        2,
        3,
    ]
    assert longest_verbatim_run(torch.tensor([1, 2]), [3]) == []
    common = list(range(300)) * 3  # difflib's shortcut for frequent items must be off
    assert longest_verbatim_run(common, common) == common


# Sampling


LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0], [0.0, 0.0, 5.0, 0.0, -3.0]])


any_logits = st.lists(st.integers(-500, 500), min_size=2, max_size=20, unique=True).map(
    lambda numbers: torch.tensor([numbers]) / 16
)


def test_temperature_divides_logits():
    for temperature in (0.3, 1.0, 7.0):
        found = next_token_probabilities(LOGITS, temperature)
        assert torch.allclose(found, (LOGITS / temperature).softmax(-1))
    flat = next_token_probabilities(LOGITS, 1e9)
    assert torch.allclose(flat, torch.full_like(flat, 0.2))


@settings(deadline=None)
@given(logits=any_logits)
def test_temperature_near_zero_is_greedy(logits):
    greedy = F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    assert torch.equal(next_token_probabilities(logits, 0), greedy)
    assert torch.equal(next_token_probabilities(logits, 1e-40), greedy)
    assert torch.equal(next_token_probabilities(logits, 1.0, top_k=1), greedy)
    assert torch.equal(next_token_probabilities(logits, 2.0, top_p=1e-9), greedy)


def test_top_k_of_equal_logits_keeps_k():
    found = next_token_probabilities(torch.zeros(1, 6), top_k=2)
    assert (found > 0).sum() == 2 and found.sum() == 1
    assert next_token_probabilities(torch.zeros(1, 6), 0).max() == 1


@settings(deadline=None)
@given(
    logits=any_logits,
    temperature=st.floats(0.2, 5),
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
    if (cumulative - top_p).abs().min() > 1e-5:  # else rounding decides
        assert torch.allclose(found, scores.softmax(-1), atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(1), atol=1e-5)


def test_top_p_keeps_the_token_that_crosses_and_handles_rows_apart():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.05, 0.9]]).log()
    found = next_token_probabilities(logits, top_p=0.6)
    expected = torch.tensor([[0.625, 0.375, 0.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(found, expected)
    tail = torch.tensor([[0.0, -40.0, -50.0]])
    assert torch.equal(next_token_probabilities(tail, top_p=1.0), tail.softmax(-1))
    assert (next_token_probabilities(tail, top_p=1) > 0).all()


BAD_SETTINGS = [
    ({"temperature": -0.1}, "temperature must be 0 .* not -0.1"),
    ({"temperature": math.nan}, "temperature must be 0 .* not nan"),
    ({"temperature": math.inf}, "temperature must be 0 .* not inf"),
    ({"top_k": 0}, "top_k must be between 1 and the vocabulary's 61, not 0"),
    ({"top_k": -3}, "top_k must be between 1 and the vocabulary's 61, not -3"),
    ({"top_k": 62}, "top_k must be between 1 and the vocabulary's 61, not 62"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
    ({"top_p": 1.1}, "top_p must be above 0 and at most 1, not 1.1"),
    ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
]


@pytest.mark.parametrize(("setting", "message"), BAD_SETTINGS)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        next_token_probabilities(torch.zeros(1, V), **setting)
    for length in (0, 3):
        with pytest.raises(ValueError, match=message):
            generate(tiny_model(), torch.ones(1, 1).long(), length, 12, **setting)


@pytest.mark.parametrize(
    ("idx", "kind", "message"),
    [
        (torch.ones(1, 0).long(), ValueError, r"at least one token, not \(1, 0\)"),
        (torch.ones(3).long(), ValueError, r"shape \(B, T\).* not \(3,\)"),
        (torch.ones(1, 2, 3).long(), ValueError, r"not \(1, 2, 3\)"),
        ([[1, 2]], TypeError, "must be a tensor of ids .* not list"),
        (torch.ones(1, 2), TypeError, "int64"),
        (torch.tensor([[V]]), IndexError, "token id 61 is out of range"),
    ],
)
def test_bad_prompts_are_refused(idx, kind, message):
    with pytest.raises(kind, match=message):
        generate(tiny_model(), idx, 3, 12)


def test_bad_lengths_are_refused():
    idx = torch.ones(1, 2).long()
    with pytest.raises(ValueError, match="max_new_tokens must be 0 or more, not -1"):
        generate(tiny_model(), idx, -1, 12)
    for use_cache in (True, False):
        with pytest.raises(ValueError, match="13"):
            generate(tiny_model(), idx, 1, 13, use_cache=use_cache)
    assert torch.equal(generate(tiny_model(), idx, 0, 12), idx)


@pytest.mark.parametrize("context_size", [5, 12])
@pytest.mark.parametrize("setting", [{}, {"temperature": 1.0, "top_k": 9}])
def test_cache_changes_nothing_even_past_the_window(context_size, setting):
    model = tiny_model()
    prompts = torch.randint(V, (3, 4))
    found = [
        generate(
            model,
            prompts,
            30,
            context_size,
            **setting,
            generator=torch.Generator().manual_seed(0),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (3, 34) and torch.equal(found[0][:, :4], prompts)


def test_greedy_is_generate_text_simple_and_needs_no_chance():
    model = tiny_model().train()  # dropout must not matter
    prompts = torch.randint(V, (2, 3))
    before = torch.get_rng_state()
    found = generate(model, prompts, 20, 12)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert torch.equal(found, generate_text_simple(model.eval(), prompts, 20, 12))
    for setting in ({"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(found, generate(model, prompts, 20, 12, 1.0, **setting))


def test_draws_follow_the_distribution():
    model = tiny_model(emb_dim=6)
    prompt = torch.tensor([[5, 9]])
    with evaluating(model):
        expected = next_token_probabilities(model(prompt)[:, -1], 1.5, 12, 0.9)[0]
    generator = torch.Generator().manual_seed(2)
    many = prompt.expand(20_000, -1)
    drawn = generate(model, many, 1, 12, 1.5, 12, top_p=0.9, generator=generator)[:, -1]
    shares = torch.bincount(drawn, minlength=V) / 20_000
    assert torch.allclose(shares, expected, atol=0.02)
    assert (shares[expected == 0] == 0).all()


def test_each_text_of_a_batch_ends_by_itself():
    model = tiny_model(vocab_size=8)
    prompts = torch.randint(1, 8, (16, 2))
    chance = torch.Generator().manual_seed(1)
    free = generate(model, prompts, 40, 12, 3.0, generator=chance)
    chance = torch.Generator().manual_seed(1)
    ended = generate(model, prompts, 40, 12, 3.0, eos_id=0, generator=chance)
    lengths = []
    for row, free_row in zip(ended.tolist(), free.tolist(), strict=True):
        end = row.index(0, 2) if 0 in row[2:] else len(row)
        assert set(row[end:]) <= {0}
        assert row[:end] == free_row[:end]
        lengths.append(min(end + 1, len(row)))
    assert len(set(lengths)) > 3
    assert ended.shape[1] == max(lengths) < free.shape[1]


def test_batch_generation_is_each_text_alone():
    model = tiny_model()
    prompts = torch.randint(V, (4, 3))
    alone = [generate(model, row[None], 15, 12) for row in prompts]
    assert torch.equal(generate(model, prompts, 15, 12), torch.cat(alone))
