"""Chapter 5: losses, training, sampling, checkpoints and GPT-2's weights."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partialmethod
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ch05_pretraining import exercise_checks as checks
from ch05_pretraining import pretraining
from shared import data
from shared.ch02 import get_tokenizer
from shared.ch04 import (
    GPT2_CONFIGS,
    GPTModel,
    generate_text_simple,
    optimize_layout_for_generation,
)
from shared.ch05 import (
    Progress,
    TensorFile,
    TrainingRun,
    build_pretrained,
    calc_loss_batch,
    calc_loss_loader,
    download_and_load_gpt2,
    evaluate_model,
    evaluating,
    generate,
    generate_and_print_sample,
    load_base,
    load_checkpoint,
    load_weights_into_gpt,
    longest_verbatim_run,
    next_token_probabilities,
    plot_losses,
    random_state,
    read_gpt2_folder,
    save_checkpoint,
    save_gpt2_folder,
    set_random_state,
    text_to_token_ids,
    token_ids_to_text,
    train_model_simple,
    train_val_test_split,
)

V = 61
TINY = {
    "vocab_size": V,
    "context_length": 12,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.2,
    "qkv_bias": False,
}


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
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def make_loader(n=7, batch_size=2, shuffle=True, drop_last=True, own_generator=True):
    ids = torch.randint(V, (n, 13), generator=torch.Generator().manual_seed(n))
    return DataLoader(
        TensorDataset(ids[:, :-1], ids[:, 1:]),
        batch_size,
        shuffle,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(5) if own_generator else None,
    )


def make_run(checkpoint_path=None, optimizer=torch.optim.AdamW, **loader_changes):
    torch.manual_seed(3)
    model = GPTModel(TINY)
    return TrainingRun(
        model,
        make_loader(**loader_changes),
        make_loader(3, shuffle=False, drop_last=False),
        optimizer(model.parameters(), lr=0.01),
        "cpu",
        checkpoint_path,
    )


def interrupt_at(model, number, action=None):
    """Do as if Ctrl-C came during the forward pass of that number in training."""
    passes = []

    def press(module, inputs):
        passes.append(module.training)
        if module.training and sum(passes) == number:
            signal.raise_signal(signal.SIGINT) if action is None else action()

    model.register_forward_pre_hook(press)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


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
    model = tiny_model().train()
    before = random_state(loader)
    first = evaluate_model(model, loader, make_loader(3), "cpu", None)
    after = random_state(loader)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert evaluate_model(model, loader, make_loader(3), "cpu", None) == first
    model.eval()
    evaluate_model(model, loader, make_loader(3), "cpu", 1)
    assert not model.training


def test_evaluating_restores_the_mode_after_an_error():
    model = tiny_model().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


def test_loader_without_batches_is_named():
    empty = make_loader(1)
    model = tiny_model()
    with pytest.raises(ValueError, match="the loader has no batches"):
        calc_loss_loader(empty, model, "cpu")
    with pytest.raises(ValueError, match="val_loader has no batches"):
        evaluate_model(model, make_loader(), empty, "cpu", 1)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match="train_loader has no batches"):
        TrainingRun(model, empty, make_loader(), optimizer, "cpu")
    with pytest.raises(ValueError, match="val_loader has no batches"):
        TrainingRun(model, make_loader(), empty, optimizer, "cpu")


def test_random_state_of_another_kind_of_loader_is_refused():
    with_one, without = make_loader(), make_loader(own_generator=False)
    with pytest.raises(ValueError, match="had one generator .* now has none"):
        set_random_state(random_state(with_one), without)
    with pytest.raises(ValueError, match="had no generator .* now has one"):
        set_random_state(random_state(without), with_one)


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


def test_every_epoch_without_dropout_has_an_order_of_its_own():
    run = make_run(own_generator=False)
    orders = []
    for _ in range(3):
        batches = []
        for inputs, _ in run.unused_batches():
            batches.append(inputs)
            run.progress.step += 1
        orders.append(torch.cat(batches))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


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


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("pass_number", range(1, 8))
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path, own_generator, optimizer, pass_number
):
    """Stopped during any step, at the start of an epoch or inside it, dropout on."""
    path = tmp_path / "run.safetensors"
    kind = {"own_generator": own_generator, "optimizer": optimizer}
    whole = make_run(**kind)
    whole.train(3, 2, None)

    first = make_run(path, **kind)
    interrupt_at(first.model, pass_number)
    first.train(3, 2, None)
    assert first.progress.step == pass_number - 1
    assert first.progress.history == whole.progress.history[: (pass_number + 1) // 2]

    torch.manual_seed(99)
    second = make_run(**kind)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.zero_()
    second.resume(path)
    second.train(3, 2, None)
    assert same_weights(whole.model, second.model)
    assert whole.curves() == second.curves()
    assert whole.progress.tokens_seen == second.progress.tokens_seen
    assert torch.equal(whole.progress.now["torch"], second.progress.now["torch"])


def test_finished_run_goes_on_as_if_it_had_been_longer(tmp_path):
    path = tmp_path / "run.safetensors"
    longer, curves = train_simply(num_epochs=3, eval_freq=2)
    train_simply(num_epochs=1, eval_freq=2, checkpoint_path=path)
    resumed, resumed_curves = train_simply(num_epochs=3, eval_freq=2, resume_from=path)
    assert same_weights(longer, resumed)
    assert curves == resumed_curves


def test_interruption_during_a_look_loses_nothing(tmp_path, capsys):
    whole = make_run()
    whole.train(2, 2, None)
    path = tmp_path / "run.safetensors"
    first = make_run(path)
    calls = []

    def press(module, inputs):
        calls.append(module.training)
        if calls.count(False) == 8:  # in the second look
            raise KeyboardInterrupt

    first.model.register_forward_pre_hook(press)
    first.train(2, 2, None)
    assert "Interrupted after step 2 of 6" in capsys.readouterr().out
    assert first.model.training
    second = make_run()
    second.resume(path)
    second.train(2, 2, None)
    assert same_weights(whole.model, second.model)
    assert whole.curves() == second.curves()


def test_ctrl_c_inside_the_optimizer_waits_for_the_whole_step():
    run, steps = make_run(), []
    plain_step = run.optimizer.step

    def step():
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)  # half of the weights would be new
        plain_step()
        steps.append(1)

    run.optimizer.step = step
    run.train(2, 2, None)
    assert len(steps) == run.progress.step == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_works_outside_the_main_thread():
    run = make_run()
    thread = threading.Thread(target=run.train, args=(1, 2, 1))
    thread.start()
    thread.join()
    assert run.progress.step == 3


def test_train_model_simple_returns_what_it_has_when_interrupted(tmp_path, capsys):
    path = tmp_path / "new folder" / "run.safetensors"
    model = GPTModel(TINY)
    interrupt_at(model, 4)
    _, (train_losses, val_losses, tokens_seen) = train_simply(
        model, eval_freq=1, checkpoint_path=path
    )
    assert tokens_seen == [0, 24, 48, 72] and len(train_losses) == len(val_losses) == 4
    assert "Interrupted after step 3 of 6" in capsys.readouterr().out
    assert load_checkpoint(path, GPTModel(TINY)).step == 3


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

# No two alike: which of two equal logits counts as the higher one is left open.
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
        (torch.ones(3).long(), ValueError, r"shape \(B, T\) .* not \(3,\)"),
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
    drawn = generate(model, many, 1, 12, 1.5, 12, 0.9, generator=generator)[:, -1]
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


# Checkpoints


def trained_run(path=None, **changes):
    run = make_run(path, **changes)
    run.train(1, 2, 1)
    return run


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_holds_model_and_optimizer(tmp_path, tied):
    path = tmp_path / "deep" / "er" / "model.safetensors"
    model = tiny_model(tie_weights=tied)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.9))
    calc_loss_batch(*next(iter(make_loader())), model, "cpu").backward()
    optimizer.step()
    save_checkpoint(path, model, optimizer)

    other = tiny_model(2, tie_weights=tied)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=1.0)
    assert load_checkpoint(path, other, other_optimizer) is None
    assert same_weights(model, other)
    assert (other.out_head.weight is other.tok_emb.weight) == tied
    saved, loaded = optimizer.state_dict(), other_optimizer.state_dict()
    assert saved["param_groups"] == loaded["param_groups"]
    for number, state in saved["state"].items():
        for key, value in state.items():
            assert torch.equal(value, loaded["state"][number][key])
    assert list(path.parent.iterdir()) == [path]


def test_checkpoint_works_for_models_without_config_and_with_buffers(tmp_path):
    path = tmp_path / "net.safetensors"
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net(torch.randn(8, 3))
    save_checkpoint(path, net)
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    load_checkpoint(path, other)
    assert same_weights(net, other)


def test_checkpoint_after_layout_optimization(tmp_path):
    path = tmp_path / "model.safetensors"
    model = tiny_model(tie_weights=True)
    plain = tiny_model(tie_weights=True)
    optimize_layout_for_generation(model)
    save_checkpoint(path, model)
    other = tiny_model(2, tie_weights=True)
    optimize_layout_for_generation(other)
    load_checkpoint(path, other)
    assert same_weights(plain, other)
    ids = torch.randint(V, (1, 5))
    assert torch.allclose(plain.eval()(ids), other.eval()(ids), atol=1e-5)


def test_bfloat16_and_scalars_survive(tmp_path):
    path = tmp_path / "half.safetensors"
    model = tiny_model().bfloat16()
    save_checkpoint(path, model)
    other = tiny_model(2).bfloat16()
    load_checkpoint(path, other)
    assert same_weights(model, other)


def test_nothing_of_the_file_can_be_executed_and_names_are_readable(tmp_path):
    path = tmp_path / "run.safetensors"
    trained_run(path)
    tensors = load_file(path)
    assert "model.trf_blocks.1.att.W_query.weight" in tensors
    assert "optimizer.trf_blocks.1.att.W_query.weight:exp_avg" in tensors
    assert {name.split(".")[0] for name in tensors} == {"model", "optimizer", "random"}
    record = json.loads(TensorFile(path).metadata["checkpoint"])
    assert record["config"] == TINY
    assert record["progress"]["step"] == 3


def test_progress_survives(tmp_path):
    path = tmp_path / "run.safetensors"
    run = trained_run(path)
    found = load_checkpoint(path, GPTModel(TINY))
    assert isinstance(found, Progress)
    assert (found.step, found.tokens_seen, found.steps_per_epoch) == (3, 72, 3)
    # The last look came after saving, since it is not on the grid of looks.
    assert found.history == run.progress.history[:-1]
    for when in ("epoch_start", "now"):
        saved, loaded = getattr(run.progress, when), getattr(found, when)
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def unchanged_after(action, error, message, model, optimizer=None):
    """Run `action`, which must fail with this message and change nothing."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = None if optimizer is None else str(optimizer.state_dict())
    with pytest.raises(error, match=message):
        action()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert optimizer is None or str(optimizer.state_dict()) == state


def test_missing_checkpoint_is_named(tmp_path):
    model = tiny_model()
    path = tmp_path / "none.safetensors"
    unchanged_after(
        lambda: load_checkpoint(path, model),
        FileNotFoundError,
        "no file .*none.safetensors",
        model,
    )
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        train_simply(resume_from=path)


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.3, 0.9, 0.9999])
def test_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model())
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    model = tiny_model(2)
    unchanged_after(
        lambda: load_checkpoint(path, model),
        ValueError,
        "model.safetensors is no complete safetensors file .* cut short",
        model,
    )


def test_a_single_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "run.safetensors"
    trained_run(path)
    contents = path.read_bytes()
    model = tiny_model(2)
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(contents), (40,), generator=generator).tolist()
    for place in [*places, 3, 20, len(contents) - 1]:
        changed = bytearray(contents)
        changed[place] ^= 1
        path.write_bytes(changed)
        unchanged_after(
            lambda: load_checkpoint(path, model), ValueError, "run.safetensors", model
        )


def test_flipped_bit_names_the_sha256(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model())
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="is damaged: .* sha256"):
        load_checkpoint(path, tiny_model())


def test_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not written by save_checkpoint"):
        load_checkpoint(path, tiny_model())
    path.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_checkpoint(path, tiny_model())


def test_other_config_is_named_with_both_values(tmp_path):
    path = tmp_path / "run.safetensors"
    trained_run(path)
    for changes, message in (
        ({"emb_dim": 48, "n_layers": 3}, "emb_dim is 24 there and 48 here; n_layers"),
        ({"tie_weights": True}, "tie_weights is False there and True here"),
        ({"n_heads": 4}, "n_heads is 3 there and 4 here"),  # shapes would fit
    ):
        model = tiny_model(2, **changes)
        unchanged_after(
            lambda m=model: load_checkpoint(path, m), ValueError, message, model
        )
    # Dropout has no weights: it matters for going on, not for using the model.
    load_checkpoint(path, tiny_model(2, drop_rate=0.0, tie_weights=False))
    model = tiny_model(2, drop_rate=0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    unchanged_after(
        lambda: load_checkpoint(path, model, optimizer),
        ValueError,
        "drop_rate is 0.2 there and 0.5 here",
        model,
        optimizer,
    )


def test_tensors_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    for net, message in (
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)),
            r"model.1.weight has the shape \(2, 4\) instead of \(5, 4\)",
        ),
        (nn.Sequential(nn.Linear(3, 4)), "model.1.bias is unknown"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)),
            "model.2.weight is missing",
        ),
    ):
        unchanged_after(
            lambda n=net: load_checkpoint(path, n), ValueError, message, net
        )


def test_wrong_optimizer_is_named(tmp_path):
    path = tmp_path / "run.safetensors"
    trained_run(path)
    model = GPTModel(TINY)
    parameters = list(model.parameters())
    for optimizer, message in (
        (torch.optim.SGD(parameters), "the state of AdamW, which SGD cannot use"),
        (
            torch.optim.AdamW([{"params": parameters[:3]}, {"params": parameters[3:]}]),
            "in other groups",
        ),
        (torch.optim.AdamW(tiny_model(2).parameters()), "not the model's"),
    ):
        unchanged_after(
            lambda o=optimizer: load_checkpoint(path, model, o),
            ValueError,
            message,
            model,
            optimizer,
        )
    save_checkpoint(path, model)
    with pytest.raises(ValueError, match="holds a model only"):
        load_checkpoint(path, model, torch.optim.AdamW(parameters))
    with pytest.raises(ValueError, match="holds no run to resume"):
        make_run().resume(path)
    with pytest.raises(ValueError, match="not the model's"):
        save_checkpoint(path, tiny_model(2), torch.optim.AdamW(parameters))


def test_optimizer_state_that_is_no_tensor_is_refused(tmp_path):
    run = make_run(optimizer=torch.optim.LBFGS)
    loss = calc_loss_batch(*next(iter(run.train_loader)), run.model, "cpu")
    loss.backward()
    run.optimizer.step(lambda: loss)
    with pytest.raises(TypeError, match="LBFGS keeps"):
        save_checkpoint(tmp_path / "x.safetensors", run.model, run.optimizer)
    assert not list(tmp_path.iterdir())


def test_resuming_with_another_loader_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    trained_run(path)
    other = make_run(n=9)
    unchanged_after(
        lambda: other.resume(path),
        ValueError,
        "3 batches per epoch, but train_loader has 4",
        other.model,
        other.optimizer,
    )


@pytest.mark.parametrize("fault", ["error", "interrupt", "fsync"])
def test_failed_save_loses_nothing(tmp_path, monkeypatch, fault):
    path = tmp_path / "model.safetensors"
    model = tiny_model()
    save_checkpoint(path, model)
    contents = path.read_bytes()

    def write_half(tensors, filename, metadata):
        filename.write_bytes(contents[: len(contents) // 2])
        if fault == "interrupt":
            raise KeyboardInterrupt
        raise pretraining.SafetensorError("No space left on device")

    def fail(number):
        raise OSError("Input/output error")

    if fault == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(pretraining, "save_file", write_half)
    with pytest.raises(KeyboardInterrupt if fault == "interrupt" else OSError):
        save_checkpoint(path, tiny_model(2))
    assert path.read_bytes() == contents
    assert list(tmp_path.iterdir()) == [path]
    other = tiny_model(2)
    load_checkpoint(path, other)
    assert same_weights(model, other)


def test_kill_during_a_save_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model())
    contents = path.read_bytes()
    script = (
        "import os, signal, sys\n"
        "from ch05_pretraining import pretraining\n"
        "from shared.ch04 import GPTModel\n"
        "def fsync(number): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = fsync\n"
        f"pretraining.save_checkpoint({str(path)!r}, GPTModel({TINY!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == contents
    load_checkpoint(path, GPTModel(TINY))


# GPT-2's format


def hugging_face_model(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=V,
        n_positions=12,
        n_embd=24,
        n_head=3,
        n_layer=2,
        bos_token_id=V - 1,
        eos_token_id=V - 1,
        **changes,
    )
    torch.manual_seed(7)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


IDS = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(0))


def logits_of(model):
    with torch.no_grad():
        out = model.eval()(IDS)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_transformers_loads_what_we_write(tmp_path, tied, qkv_bias):
    from transformers import AutoModelForCausalLM

    model = tiny_model(tie_weights=tied, qkv_bias=qkv_bias)
    save_gpt2_folder(model, tmp_path / "out")
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
    assert torch.allclose(logits_of(theirs), logits_of(model), atol=1e-4)

    settings, params = read_gpt2_folder(tmp_path / "out")
    again = build_pretrained(settings, params)
    assert torch.allclose(logits_of(again), logits_of(model), atol=1e-6)
    assert {**settings, "qkv_bias": qkv_bias} == {**model.cfg, "tie_weights": tied}


@pytest.mark.parametrize("tied", [True, False])
def test_we_load_what_transformers_writes(tmp_path, tied):
    theirs = hugging_face_model(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    settings, params = read_gpt2_folder(tmp_path)
    assert any(name.startswith("transformer.") for name in params)
    assert settings["tie_weights"] == tied
    model = GPTModel(settings)
    load_weights_into_gpt(model, params)
    assert (logits_of(model) - logits_of(theirs)).abs().max() < 1e-4


@pytest.mark.parametrize("size", GPT2_CONFIGS)
def test_all_four_layouts_with_reduced_widths(tmp_path, size):
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = GPT2_CONFIGS[size]
    heads = cfg["n_heads"]
    config = GPT2Config(
        vocab_size=V,
        n_positions=12,
        n_embd=2 * heads,
        n_head=heads,
        n_layer=cfg["n_layers"],
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    settings, params = read_gpt2_folder(tmp_path)
    assert settings["n_layers"] == cfg["n_layers"]
    model = GPTModel(settings)
    load_weights_into_gpt(model, params)
    assert (logits_of(model) - logits_of(theirs)).abs().max() < 1e-4


def test_openais_names_without_prefix_and_with_masks(tmp_path):
    theirs = hugging_face_model()
    params = {
        name.removeprefix("transformer."): tensor
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    for i in range(2):
        params[f"h.{i}.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
        params[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    cfg = {**TINY, "qkv_bias": True, "drop_rate": 0.0}
    for changes in ({"tie_weights": True}, {"tie_weights": False}):
        model = GPTModel({**cfg, **changes})
        load_weights_into_gpt(model, params)
        assert (logits_of(model) - logits_of(theirs)).abs().max() < 1e-4
    arrays = {name: tensor.numpy() for name, tensor in params.items()}
    load_weights_into_gpt(model := GPTModel(cfg), arrays)
    assert (logits_of(model) - logits_of(theirs)).abs().max() < 1e-4


@pytest.mark.parametrize("way", ["model", "argument"])
def test_half_precision_is_read_as_float32(tmp_path, way):
    from transformers import AutoModelForCausalLM

    model = tiny_model(qkv_bias=True)
    expected = tiny_model(qkv_bias=True).bfloat16().float()
    if way == "model":
        save_gpt2_folder(model.bfloat16(), tmp_path)
    else:
        save_gpt2_folder(model, tmp_path, torch.bfloat16)
        assert model.tok_emb.weight.dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = build_pretrained(*read_gpt2_folder(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(logits_of(model), logits_of(expected))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.allclose(logits_of(theirs), logits_of(model), atol=1e-4)


def test_weights_are_not_stored_as_integers(tmp_path):
    with pytest.raises(ValueError, match="torch.int8; try torch.bfloat16"):
        save_gpt2_folder(tiny_model(), tmp_path / "out", torch.int8)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path):
    theirs = hugging_face_model(tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path)
    settings, params = read_gpt2_folder(tmp_path)
    params = dict(params)
    tied = GPTModel({**settings, "tie_weights": True})
    untied = GPTModel(settings)
    name = "transformer.h.1.mlp.c_fc.weight"
    for model, change, message in (
        (untied, {name: None}, "h.1.mlp.c_fc.weight is missing"),
        (
            untied,
            {name: torch.ones(24, 95)},
            r"h.1.mlp.c_fc.weight has the shape \(24, 95\) instead of \(24, 96\)",
        ),
        (untied, {"h.7.ln_1.bias": torch.ones(24)}, "h.7.ln_1.bias is unknown"),
        (tied, {}, "output head of their own"),
        (tied, {"transformer.wte.weight": None}, "wte.weight is missing"),
        (
            tied,
            {"lm_head.weight": None, "transformer.wte.weight": torch.ones(V + 1, 24)},
            r"wte.weight has the shape \(62, 24\) instead of \(61, 24\)",
        ),
        (GPTModel({**settings, "n_layers": 1}), {}, "h.1.attn.c_attn.bias is unknown"),
        (GPTModel({**settings, "qkv_bias": False}), {}, "set qkv_bias to True"),
    ):
        changed = {k: v for k, v in {**params, **change}.items() if v is not None}
        unchanged_after(
            lambda m=model, c=changed: load_weights_into_gpt(m, c),
            ValueError,
            message,
            model,
        )


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        read_gpt2_folder(tmp_path)
    save_gpt2_folder(tiny_model(), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good = json.loads(config.read_text())
    for change, message in (
        ({"model_type": "llama"}, "model_type is 'llama', but GPTModel .* 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 50}, "n_inner is 50"),
        ({"n_embd": None}, "has no 'n_embd'"),
    ):
        changed = {k: v for k, v in {**good, **change}.items() if k != "n_inner" or v}
        if change.get("n_embd", 1) is None:
            del changed["n_embd"]
        config.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read_gpt2_folder(tmp_path)
    config.write_text(json.dumps({**good, "n_inner": 96}))
    read_gpt2_folder(tmp_path)
    for text in ("{", "[1]", "5"):
        config.write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged"):
            read_gpt2_folder(tmp_path)
    config.write_text(json.dumps(good))
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model.safetensors is no complete"):
        read_gpt2_folder(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        read_gpt2_folder(tmp_path)


def test_loading_does_not_hold_all_tensors_at_once(tmp_path):
    save_gpt2_folder(tiny_model(), tmp_path)
    params = read_gpt2_folder(tmp_path)[1]
    name = "transformer.wte.weight"
    assert params[name] is not params[name]  # nothing is kept
    assert name in params and "other" not in params
    assert len(params) == len(list(params)) == 2 * 12 + 5
    with pytest.raises(KeyError):
        params["other"]


def test_pieces_are_the_tensor(tmp_path):
    save_gpt2_folder(tiny_model(), tmp_path)
    params = read_gpt2_folder(tmp_path)[1]
    for name, size in (
        ("transformer.wte.weight", (V, 24)),
        ("transformer.ln_f.bias", (24,)),
        ("transformer.h.0.attn.c_attn.weight", (24, 72)),
    ):
        for numbers in (1, 50, 24 * V - 1, 24 * V, 10**6):
            found = torch.full(size, torch.nan)
            for rows, piece in params.pieces(name, numbers):
                assert piece.numel() <= max(numbers, math.prod(size[1:]))
                found[rows] = piece
            assert torch.equal(found, params[name])


@pytest.mark.parametrize("tied", [True, False])
def test_loading_in_small_pieces_changes_nothing(tmp_path, tied, monkeypatch):
    save_gpt2_folder(tiny_model(tie_weights=tied, qkv_bias=True), tmp_path)
    settings, params = read_gpt2_folder(tmp_path)
    small = partialmethod(TensorFile.pieces, numbers=72)  # biases have so many
    monkeypatch.setattr(TensorFile, "pieces", small)
    loaded = logits_of(build_pretrained(settings, params))
    assert torch.equal(loaded, logits_of(tiny_model(tie_weights=tied, qkv_bias=True)))


def test_stored_head_of_a_tied_model_is_compared_to_its_last_piece(
    tmp_path, monkeypatch
):
    save_gpt2_folder(tiny_model(tie_weights=True, qkv_bias=True), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, path)
    small = partialmethod(TensorFile.pieces, numbers=72)
    monkeypatch.setattr(TensorFile, "pieces", small)
    build_pretrained(*read_gpt2_folder(tmp_path))
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, path)
    with pytest.raises(ValueError, match="output head of their own"):
        build_pretrained(*read_gpt2_folder(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_build_pretrained_gives_a_whole_model(tmp_path, tied):
    save_gpt2_folder(tiny_model(tie_weights=tied, qkv_bias=True), tmp_path)
    model = build_pretrained(*read_gpt2_folder(tmp_path))
    assert not model.training
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    model(IDS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="h.1.* is unknown"):
        settings, params = read_gpt2_folder(tmp_path)
        build_pretrained({**settings, "n_layers": 1}, params)


LOAD_AND_MEASURE = """
import sys
from pathlib import Path
from shared.ch04 import GPTModel
from shared.ch05 import build_pretrained, load_weights_into_gpt, read_gpt2_folder

def memory(key):  # in bytes; VmRSS: now, VmHWM: the most so far
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(key)) * 1024

before = memory("VmRSS")
settings, params = read_gpt2_folder(sys.argv[1])
if sys.argv[2] == "in one step":
    model = build_pretrained(settings, params)
else:
    model = GPTModel(settings)
    load_weights_into_gpt(model, params)
peak = memory("VmHWM") - before
print(peak / sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.fixture(scope="module")
def folder_of_45_million(tmp_path_factory):
    """A model that is large beside what a Python process needs otherwise: 180 MB."""
    folder = tmp_path_factory.mktemp("45M")
    config = {**GPT2_CONFIGS["124M"], "emb_dim": 512, "n_heads": 8, "n_layers": 6}
    save_gpt2_folder(GPTModel(config), folder)
    return folder


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize("way", ["in one step", "in two steps"])
def test_loading_peaks_at_little_more_than_the_model(folder_of_45_million, way):
    command = [sys.executable, "-c", LOAD_AND_MEASURE, folder_of_45_million, way]
    done = subprocess.run(command, capture_output=True, text=True)
    assert 0.9 < float(done.stdout) <= 1.2, done.stdout + done.stderr


# The course's own base model


@pytest.fixture(scope="module")
def base():
    return load_base()


def test_base_is_float32_and_ready_for_use(base):
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    assert not base.training
    assert base.cfg["vocab_size"] == get_tokenizer().n_vocab
    assert base.out_head.weight is base.tok_emb.weight
    assert data.FILES["base/model.safetensors"].size <= 45_000_000


def test_transformers_loads_the_base(base):
    from transformers import AutoModelForCausalLM

    folder = data.get("base/config.json").parent
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = text_to_token_ids(data.load_text("held-out")[:400], get_tokenizer())
    with torch.no_grad():
        ours, logits = base(prompt), theirs.eval()(prompt).logits
    assert (ours - logits).abs().max() < 1e-4


def test_base_guesses_far_better_than_evenly_on_text_of_another_kind(base):
    ids = text_to_token_ids(data.load_text("held-out"), get_tokenizer())
    windows = ids[0, : 8 * 129].view(8, 129)
    with torch.no_grad():
        loss = calc_loss_batch(windows[:, :-1], windows[:, 1:], base, "cpu")
    assert loss < math.log(base.cfg["vocab_size"] / 10)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_base_is_named_with_the_remedy(tmp_path, monkeypatch, name):
    shutil.copytree(data.REPOSITORY_DATA / "base", tmp_path / "base")
    monkeypatch.setattr(data, "REPOSITORY_DATA", tmp_path)
    load_base()
    path = tmp_path / "base" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(data.DataUnavailable, match=f"git checkout -- data/base/{name}"):
        load_base()


def test_log_of_the_base_is_of_this_model(base):
    lines = data.get("base/log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    assert log[0]["event"] == "start" and log[-1]["event"] == "end"
    assert log[0]["parameters"] == sum(p.numel() for p in base.parameters())
    assert log[0]["settings"]["model"] == base.cfg
    assert log[-1]["tokens"] == log[-1]["step"] * log[0]["tokens_per_step"]
    steps = [line["step"] for line in log if line["event"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] == log[-1]["step"]


def test_held_out_text_is_twelve_paragraphs_of_similar_length():
    paragraphs = data.load_text("held-out").split("\n\n")
    assert len(paragraphs) == 12
    assert all(60 <= len(paragraph.split()) <= 110 for paragraph in paragraphs)


# A hub that is a folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands in for Hugging Face: holds a reduced GPT-2 124M; counts downloads."""
    source = tmp_path / "hub"
    small = {**GPT2_CONFIGS["124M"], "vocab_size": V, "context_length": 12}
    small.update(emb_dim=24, n_heads=3, n_layers=2)
    monkeypatch.setattr(pretraining, "GPT2_CONFIGS", {"124M": small})
    save_gpt2_folder(tiny_model(qkv_bias=True, tie_weights=True), source)
    downloads = []

    def download(repository, name, *, local_dir):
        downloads.append((repository, name))
        local_dir.mkdir(parents=True, exist_ok=True)
        return shutil.copy(source / name, local_dir / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: None)
    hub.source, hub.downloads = source, downloads
    return hub


def test_gpt2_by_name_is_fetched_once(hub, tmp_path, monkeypatch):
    settings, params = download_and_load_gpt2("124M", tmp_path / "models")
    repository = "openai-community/gpt2"
    assert hub.downloads == [
        (repository, "config.json"),
        (repository, "model.safetensors"),
    ]
    model = GPTModel(settings)
    load_weights_into_gpt(model, params)
    expected = tiny_model(qkv_bias=True, tie_weights=True)
    assert torch.equal(logits_of(model), logits_of(expected))
    download_and_load_gpt2("124M", tmp_path / "models")
    assert len(hub.downloads) == 2


def test_gpt2_is_taken_from_hugging_faces_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: str(hub.source / name),
    )
    params = download_and_load_gpt2("124M", tmp_path / "models")[1]
    assert params.path.parent == hub.source and not hub.downloads


def test_gpt2_offline_says_what_was_tried_and_what_to_do(hub, tmp_path, monkeypatch):
    def no_network(*arguments, **more):
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    with pytest.raises(data.DataUnavailable) as caught:
        download_and_load_gpt2("124M", tmp_path / "models")
    message = str(caught.value)
    for part in (
        "openai-community/gpt2 could not be fetched",
        str(tmp_path / "models" / "124M"),
        "https://huggingface.co/openai-community/gpt2",
        "ConnectionError: name resolution failed",
        "copy config.json and model.safetensors",
    ):
        assert part in message


def test_gpt2_honours_offline_mode(tmp_path):
    """With the real library, in a process of its own: no attempt to connect."""
    script = (
        "from shared.ch05 import download_and_load_gpt2\n"
        f"download_and_load_gpt2('355M', {str(tmp_path)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert "DataUnavailable: openai-community/gpt2-medium" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr


def test_gpt2_of_the_wrong_size_or_damaged_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match="one of 124M, 355M, 774M, 1558M, not '125M'"):
        download_and_load_gpt2("125M", tmp_path)
    download_and_load_gpt2("124M", tmp_path)
    weights = tmp_path / "124M" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="delete it"):
        download_and_load_gpt2("124M", tmp_path)
    save_gpt2_folder(tiny_model(n_layers=1, qkv_bias=True), tmp_path / "124M")
    with pytest.raises(ValueError, match="n_layers is 1 there and 2 here"):
        download_and_load_gpt2("124M", tmp_path)


def test_repositories_are_those_of_the_four_sizes():
    assert pretraining.GPT2_REPOSITORIES.keys() == GPT2_CONFIGS.keys()


# The exercises' checks say what is wrong


def summed_means(model, pieces):
    for inputs, targets in pieces:
        calc_loss_batch(inputs, targets, model, "cpu").backward()


def mean_of_means(model, pieces):
    model.zero_grad()
    for inputs, targets in pieces:
        (calc_loss_batch(inputs, targets, model, "cpu") / len(pieces)).backward()


def never_forgets(model, pieces):
    total = sum(targets.numel() for _, targets in pieces)
    for inputs, targets in pieces:
        loss = calc_loss_batch(inputs, targets, model, "cpu")
        (loss * targets.numel() / total).backward()


@torch.no_grad()
def adam(parameters, state, n, lr, betas, eps, weight_decay):
    """Adam with the decay in the gradient, which is not AdamW."""
    for i, p in enumerate(parameters):
        m, v = state.setdefault(i, (torch.zeros_like(p), torch.zeros_like(p)))
        grad = p.grad + weight_decay * p
        m.mul_(betas[0]).add_((1 - betas[0]) * grad)
        v.mul_(betas[1]).add_((1 - betas[1]) * grad**2)
        m_hat, v_hat = m / (1 - betas[0] ** n), v / (1 - betas[1] ** n)
        p.sub_(lr * m_hat / (v_hat.sqrt() + eps))


def stop_on_equal(losses, patience):
    best = 0
    for look, loss in enumerate(losses):
        if loss <= losses[best]:
            best = look
        if look - best >= patience:
            return best, look
    return best, len(losses) - 1


def sliding(ids, model, stride, side_by_side=False, twice=False, tail=True):
    """The right answer to exercise 5.6, or with a fault."""
    T, n = model.cfg["context_length"], len(ids)
    total, count, begin, end = 0.0, 0, 0, 1
    while end < n and (tail or begin + T < n):
        done, end = (begin + 1 if twice else end), min(begin + T + 1, n)
        targets = ids[begin + 1 : end].clone()
        targets[: done - begin - 1] = -100
        pair = ids[None, begin : end - 1], targets[None]
        total += calc_loss_batch(*pair, model, "cpu").item() * (end - done)
        count += end - done
        begin += T if side_by_side else stride
    return total / max(count, 1)


def test_sliding_loss_is_accepted(capsys):
    checks.sliding_loss(sliding)
    assert "Right" in capsys.readouterr().out


WRONG_ANSWERS = [
    (
        checks.sliding_loss,
        lambda ids, model, stride: sliding(ids, model, stride) * (len(ids) - 1),
        "that is the sum",
    ),
    (
        checks.sliding_loss,
        lambda ids, model, stride: sliding(ids, model, stride, side_by_side=True),
        "windows side by side",
    ),
    (
        checks.sliding_loss,
        lambda ids, model, stride: sliding(ids, model, stride, twice=True),
        "in the first of them only",
    ),
    (
        checks.sliding_loss,
        lambda ids, model, stride: sliding(ids, model, stride, tail=False),
        "the last may be short",
    ),
    (checks.bits_per_byte, lambda loss, n, b: loss * n / b, "divide by ln 2"),
    (checks.bits_per_byte, lambda loss, n, b: loss * b / n / math.log(2), "multiply"),
    (checks.unigram_loss, lambda train, val, v: math.inf, "add 1"),
    (checks.unigram_loss, lambda train, val, v: -math.log(0.4 * 0.3 * 0.1), "the mean"),
    (checks.keep_min_p, lambda p, s: p.masked_fill(p < s, 0.0), "0.2"),
    (
        checks.keep_min_p,
        lambda p, s: p.masked_fill(p < s * p.max(), 0.0),
        "a largest probability of its own",
    ),
    (
        checks.keep_min_p,
        lambda p, s: p.masked_fill(p < s * p.amax(-1, keepdim=True), 0.0),
        "divide by the sum",
    ),
    (checks.accumulate_gradients, summed_means, "a sum of means"),
    (checks.accumulate_gradients, mean_of_means, "must weigh three times"),
    (checks.accumulate_gradients, never_forgets, "the old gradients must go first"),
    (checks.early_stopping, stop_on_equal, "an equal loss is no improvement"),
    (
        checks.early_stopping,
        lambda losses, patience: (losses.index(min(losses)), len(losses) - 1),
        "it never gets to see the 3.0",
    ),
    (checks.adamw_step, adam, "after step 1 .* the decay"),
]


@pytest.mark.parametrize(("check", "answer", "message"), WRONG_ANSWERS)
def test_checks_explain_wrong_answers(check, answer, message):
    with pytest.raises(AssertionError, match=message):
        check(answer)


@pytest.mark.parametrize("blank", [None, ...])
@pytest.mark.parametrize(
    "name",
    [
        "bits_per_byte",
        "unigram_loss",
        "keep_min_p",
        "accumulate_gradients",
        "early_stopping",
        "sliding_loss",
        "adamw_step",
    ],
)
def test_checks_recognise_an_unanswered_exercise(name, blank):
    with pytest.raises(AssertionError, match="still unanswered"):
        getattr(checks, name)(lambda *arguments, **settings: blank)
