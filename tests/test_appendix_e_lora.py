"""Appendix E: LoRA against the same arithmetic by hand, its rules, and bad input."""

import copy
import math

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import by_columns, random_gpt
from safetensors import safe_open
from torch import nn

from shared.appendix_e import (
    LinearWithLoRA,
    LoRALayer,
    learned_part,
    merge_lora,
    replace_linear_with_lora,
)
from shared.ch04 import generate_text_simple
from shared.ch05 import load_checkpoint, save_checkpoint, train_model_simple
from shared.ch06 import GPTClassifier, set_trainable

TINY = {**models.TINY, "n_layers": 2, "qkv_bias": True}


def make_model(seed=0, **changes):
    return random_gpt({**TINY, **changes}, seed).requires_grad_(False)


def make_classifier(seed=0, **changes):
    """A classifier of which the head learns, with updates in all blocks."""
    net = GPTClassifier(make_model(seed, **changes), num_classes=2, pad_token_id=60)
    set_trainable(net, "head")
    replace_linear_with_lora(net.gpt, 4, 8)
    return net.eval()


def trained(model, seed=1):
    """The same model, with random numbers in every A and B, as if it had learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoRALayer):
                for matrix in (layer.A, layer.B):
                    values = torch.randn(matrix.shape, generator=generator) / 4
                    matrix.copy_(values)
    return model


def make_ids(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY["vocab_size"], shape, generator=generator)


def learning(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


IDS = make_ids(2, 9)


# The layer


@settings(max_examples=60, deadline=None)
@given(
    in_dim=st.integers(1, 12),
    out_dim=st.integers(1, 12),
    part=st.floats(0, 1),
    alpha=st.floats(0.01, 100),
    shape=st.lists(st.integers(1, 3), max_size=3),
    bias=st.booleans(),
)
def test_layer_is_its_equation(in_dim, out_dim, part, alpha, shape, bias):
    rank = max(1, round(part * min(in_dim, out_dim)))
    torch.manual_seed(0)
    linear = nn.Linear(in_dim, out_dim, bias=bias, dtype=torch.float64)
    both = LinearWithLoRA(linear, rank, alpha)
    assert torch.equal(
        both(torch.ones(in_dim).double()), linear(torch.ones(in_dim).double())
    )
    nn.init.normal_(both.lora.B)
    x = torch.randn(*shape, in_dim, dtype=torch.float64)
    W = linear.weight.T + alpha / rank * both.lora.A @ both.lora.B  # (in, out)
    wanted = x @ W + (linear.bias if bias else 0)
    assert both(x).shape == (*shape, out_dim)
    assert torch.allclose(both(x), wanted, atol=1e-9)
    assert torch.allclose(linear.weight + both.lora.delta(), W.T, atol=1e-12)
    merged = nn.Sequential(both)
    merge_lora(merged)
    assert torch.allclose(merged(x), wanted, atol=1e-9)


@pytest.mark.parametrize(("in_dim", "rank"), [(64, 1), (64, 32), (400, 4)])
def test_a_starts_like_a_linear_layer_of_its_width(in_dim, rank):
    torch.manual_seed(0)
    layer = LoRALayer(in_dim, 64, rank, 1)
    bound = 1 / math.sqrt(in_dim)
    assert 0.9 * bound < layer.A.abs().max() <= bound
    assert layer.A.mean().abs() < bound / 3
    assert not layer.B.any()
    assert layer.scaling == 1 / rank
    torch.manual_seed(0)
    assert torch.equal(LoRALayer(in_dim, 64, rank, 9).A, layer.A)


def test_first_gradient_moves_b_only_and_the_second_both():
    torch.manual_seed(0)
    both = LinearWithLoRA(nn.Linear(6, 5), 2, 4)
    x = torch.randn(7, 6)
    both(x).square().sum().backward()
    assert not both.lora.A.grad.any()
    assert both.lora.B.grad.any()
    torch.optim.SGD(both.parameters(), lr=0.1).step()
    both.zero_grad()
    both(x).square().sum().backward()
    assert both.lora.A.grad.any() and both.lora.B.grad.any()
    assert both.linear.weight.grad is None and both.linear.bias.grad is None


def test_wrapping_freezes_keeps_the_bias_and_says_the_widths():
    linear = nn.Linear(6, 5)
    both = LinearWithLoRA(linear, 2, 4)
    assert both.linear is linear and linear.bias.shape == (5,)
    assert learning(both) == ["lora.A", "lora.B"]
    assert (both.in_features, both.out_features) == (6, 5)
    assert LinearWithLoRA(nn.Linear(6, 5, bias=False), 2, 4).linear.bias is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_update_has_the_dtype_of_its_layer(dtype):
    both = LinearWithLoRA(nn.Linear(6, 5, dtype=dtype), 2, 4)
    assert both.lora.A.dtype == both.lora.B.dtype == dtype
    assert both(torch.ones(3, 6, dtype=dtype)).dtype == dtype


def test_update_goes_where_its_layer_is():
    both = LinearWithLoRA(nn.Linear(6, 5, device="meta"), 2, 4)
    assert both.lora.A.device == both.lora.B.device == torch.device("meta")


@pytest.mark.parametrize(
    ("sizes", "rank", "alpha", "message"),
    [((6, 5), rank, 1, f"whole number of 1 or more, not {rank!r}") for rank in (0, 2.0)]
    + [(sizes, 6, 1, "6 is too large .* at most 5") for sizes in ((6, 5), (5, 6))]
    + [
        ((6, 5), 5, alpha, f"above 0, not {alpha!r}")
        for alpha in (0, math.nan, math.inf)
    ],
)
def test_layer_refuses_a_rank_or_an_alpha_that_is_none(sizes, rank, alpha, message):
    LoRALayer(*sizes, 5, 1)
    with pytest.raises(ValueError, match=message):
        LinearWithLoRA(nn.Linear(*sizes), rank, alpha)


# In a model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_replaced_model_begins_as_the_base(tied, bias):
    model = make_model(tie_weights=tied, qkv_bias=bias)
    before = model(IDS)
    names = replace_linear_with_lora(model, 4, 8)
    assert torch.equal(model(IDS), before)
    assert ("out_head" in names) == (not tied)
    assert len(names) == 2 * 6 + (not tied)
    for name in names:
        assert isinstance(model.get_submodule(name), LinearWithLoRA)
    wanted = {f"{name}.lora.{matrix}" for name in names for matrix in "AB"}
    assert set(learning(model)) == wanted


@pytest.mark.parametrize("tied", [True, False])
def test_learning_numbers_are_as_predicted(tied):
    model, C, V = make_model(tie_weights=tied), TINY["emb_dim"], TINY["vocab_size"]
    replace_linear_with_lora(model, 3, 8)
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == 2 * 18 * 3 * C + (0 if tied else 3 * (C + V))


def test_tied_head_stays_tied_through_training_and_merging():
    model = make_model(tie_weights=True)
    reference = copy.deepcopy(model)
    replace_linear_with_lora(model, 4, 8)
    assert model.out_head.weight is model.tok_emb.weight
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    for _ in range(2):
        model(IDS).square().mean().backward()
        optimizer.step()
    assert torch.equal(model.tok_emb.weight, reference.tok_emb.weight)
    assert not torch.allclose(model(IDS), reference(IDS), atol=1e-3)
    wanted = model(IDS)
    merge_lora(model)
    assert model.out_head.weight is model.tok_emb.weight
    reference.load_state_dict(model.state_dict())
    assert torch.allclose(reference(IDS), wanted, atol=1e-4)


def test_layer_that_learns_is_left():
    model = make_model()
    model.trf_blocks[1].requires_grad_(True)
    names = replace_linear_with_lora(model, 4, 8)
    assert not any(name.startswith("trf_blocks.1") for name in names)
    assert "trf_blocks.1.att.W_query.weight" in learning(model)
    assert len(names) == 7


def test_classifier_trains_head_and_updates():
    net = make_classifier()
    assert {n for n in learning(net) if "lora" not in n} == {
        "gpt.out_head.weight",
        "gpt.out_head.bias",
    }
    assert type(net.gpt.out_head) is nn.Linear
    assert sum(isinstance(m, LinearWithLoRA) for m in net.modules()) == 12
    net(IDS).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (name in learning(net)), name


def test_module_used_twice_is_left():
    shared = nn.Linear(6, 6)
    model = nn.ModuleList([shared, shared, nn.Linear(6, 6)]).requires_grad_(False)
    assert replace_linear_with_lora(model, 2, 4) == ["2"]
    assert model[0] is model[1] is shared


def test_subclass_of_linear_is_left():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    assert replace_linear_with_lora(model, 2, 4) == ["1"]


def test_nested_and_direct_layers_are_found():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Sequential(nn.Linear(4, 3))})
    assert replace_linear_with_lora(model.requires_grad_(False), 2, 4) == ["a", "b.0"]


def test_only_updates_change_in_training():
    net = make_classifier()
    before = {name: p.clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        net.train()(IDS).square().sum().backward()
        optimizer.step()
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(learning(net))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Embedding(5, 4), "the Embedding holds no linear layer that is frozen"),
        (nn.Linear(5, 4), "the Linear holds no linear layer"),
        (nn.Sequential(nn.ReLU()), "the Sequential holds no linear layer"),
    ],
)
def test_model_without_linear_layer_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        replace_linear_with_lora(model.requires_grad_(False), 2, 4)


def test_model_that_was_not_frozen_is_refused():
    model = make_model().requires_grad_(True)
    with pytest.raises(ValueError, match="requires_grad_"):
        replace_linear_with_lora(model, 2, 4)
    assert not any(isinstance(m, LinearWithLoRA) for m in model.modules())


def test_model_with_updates_is_refused():
    model = make_model()
    replace_linear_with_lora(model, 2, 4)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match="already; merge_lora"):
        replace_linear_with_lora(model, 2, 4)
    assert [name for name, _ in model.named_modules()] == before
    merge_lora(model)
    assert len(replace_linear_with_lora(model, 2, 4)) == 13


@pytest.mark.parametrize(
    ("rank", "alpha", "message"),
    [
        (0, 4, "rank must be"),
        (25, 4, "rank 25 is too large for trf_blocks.0.att.W_query.*at most 24"),
        (2, 0, "alpha must be"),
    ],
)
def test_refusal_changes_nothing(rank, alpha, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        replace_linear_with_lora(model, rank, alpha)
    assert not any(isinstance(m, LoRALayer) for m in model.modules())


def test_frozen_head_with_two_classes_is_named():
    net = GPTClassifier(make_model(), pad_token_id=60).requires_grad_(False)
    with pytest.raises(ValueError, match="gpt.out_head, which maps 24 .* to 2"):
        replace_linear_with_lora(net, 8, 16)
    assert not any(isinstance(m, LoRALayer) for m in net.modules())


def test_deepcopy_is_independent():
    model = make_model(tie_weights=True)
    replace_linear_with_lora(model, 4, 8)
    twin = trained(copy.deepcopy(model))
    assert twin.out_head.weight is twin.tok_emb.weight
    assert not any(m.B.any() for m in model.modules() if isinstance(m, LoRALayer))
    assert not torch.allclose(twin(IDS), model(IDS), atol=1e-3)


def test_bfloat16_model_trains_and_merges():
    model = make_model(tie_weights=True).bfloat16()
    before = model(IDS)
    replace_linear_with_lora(model, 4, 8)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model(IDS), before)
    model(IDS).float().square().mean().backward()
    trained(model)
    wanted = model(IDS).float()
    merge_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model(IDS).float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_merging_in_bfloat16_rounds_once():
    both = LinearWithLoRA(nn.Linear(64, 64, dtype=torch.bfloat16), 8, 16)
    trained(both)
    lora, W = both.lora, both.linear.weight.double()
    exact = W + 2 * (lora.A.double() @ lora.B.double()).T
    model = nn.Sequential(both)
    merge_lora(model)
    assert torch.equal(model[0].weight, exact.float().bfloat16())


def test_generation_with_cache_is_unchanged_by_merging():
    model = make_model()
    replace_linear_with_lora(model, 4, 8)
    trained(model)
    plain = generate_text_simple(model, IDS, 6, 16)
    assert torch.equal(generate_text_simple(model, IDS, 6, 16, use_cache=True), plain)
    merge_lora(model)
    assert torch.equal(generate_text_simple(model, IDS, 6, 16, use_cache=True), plain)


# Merging


@pytest.mark.parametrize("tied", [True, False])
def test_merged_is_unmerged_and_has_the_bases_names(tied):
    base = make_model(tie_weights=tied)
    model = copy.deepcopy(base)
    names = replace_linear_with_lora(model, 4, 8)
    wanted = trained(model)(IDS)
    assert merge_lora(model) == names
    assert torch.allclose(model(IDS), wanted, atol=1e-4)
    assert not torch.allclose(model(IDS), base(IDS), atol=1e-2)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in base.named_parameters()
    }
    assert all(type(model.get_submodule(name)) is nn.Linear for name in names)
    assert learning(model) == []
    base.load_state_dict(model.state_dict())
    assert torch.equal(base(IDS), model(IDS))


def test_nothing_to_merge_is_an_error():
    """A layer alone is none: what holds it would have to be changed."""
    for model in (
        nn.Sequential(nn.Linear(3, 3)),
        LinearWithLoRA(nn.Linear(3, 3), 2, 4),
    ):
        with pytest.raises(ValueError, match="holds no LinearWithLoRA to merge"):
            merge_lora(model)


# Saving


def test_learned_part_is_all_that_is_needed(tmp_path):
    net, other = trained(make_classifier()), make_classifier()
    nn.init.normal_(net.gpt.out_head.weight)
    save_checkpoint(tmp_path / "part", learned_part(net))
    load_checkpoint(tmp_path / "part", learned_part(other))
    assert torch.equal(other(IDS), net(IDS))
    with safe_open(tmp_path / "part", "pt") as file:
        sizes = [file.get_tensor(name).numel() for name in file.keys()]  # noqa: SIM118
    assert sum(sizes) == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_updates_are_saved_even_when_frozen():
    net = make_classifier()
    wanted = {
        name for name, _ in learned_part(net).named_parameters() if "lora" in name
    }
    net.requires_grad_(False)
    assert {name for name, _ in learned_part(net).named_parameters()} == wanted


@pytest.mark.parametrize(
    ("rank", "alpha", "message"),
    [
        (2, 8, "rank 4, alpha 8 there and rank 2, alpha 8 here"),
        (4, 16, "rank 4, alpha 8 there and rank 4, alpha 16 here"),
    ],
)
def test_other_rank_or_alpha_is_refused(tmp_path, rank, alpha, message):
    model, other = make_model(), make_model()
    replace_linear_with_lora(model, 4, 8)
    replace_linear_with_lora(other, rank, alpha)
    save_checkpoint(tmp_path / "part", learned_part(trained(model)))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "part", learned_part(other))
    assert not any(m.B.any() for m in other.modules() if isinstance(m, LoRALayer))


def test_alpha_may_be_written_as_an_int_or_a_float():
    model, other = make_model(), make_model()
    replace_linear_with_lora(model, 4, 8)
    replace_linear_with_lora(other, 4, 8.0)
    assert learned_part(model).cfg == learned_part(other).cfg


def test_other_base_is_refused(tmp_path):
    model, other = make_model(seed=0), make_model(seed=1)
    for each in (model, other):
        replace_linear_with_lora(each, 4, 8)
    save_checkpoint(tmp_path / "part", learned_part(trained(model)))
    with pytest.raises(ValueError, match="base is .* there and .* here"):
        load_checkpoint(tmp_path / "part", learned_part(other))


def test_fingerprint_is_of_the_frozen_weights_only():
    net = make_classifier()
    before = learned_part(net).cfg
    assert learned_part(trained(net)).cfg == before
    nn.init.normal_(net.gpt.out_head.weight)
    assert learned_part(net).cfg == before
    with torch.no_grad():
        net.gpt.trf_blocks[1].norm2.shift[3] += 0.5
    assert learned_part(net).cfg != before


def test_update_for_another_head_is_refused(tmp_path):
    net = make_classifier()
    save_checkpoint(tmp_path / "part", learned_part(net))
    net.gpt.out_head.requires_grad_(False)
    with pytest.raises(ValueError):
        load_checkpoint(tmp_path / "part", learned_part(net))


def test_fingerprint_is_of_the_config_too_but_not_of_dropout():
    first, other, dropping = make_model(), make_model(), make_model()
    other.cfg["n_heads"], dropping.cfg["drop_rate"] = 4, 0.1
    for model in (first, other, dropping):
        replace_linear_with_lora(model, 4, 8)
    assert learned_part(first).cfg != learned_part(other).cfg
    assert learned_part(first).cfg == learned_part(dropping).cfg


def test_other_scaling_is_not_saved():
    model = make_model()
    replace_linear_with_lora(model, 4, 8)
    model.trf_blocks[1].att.W_key.lora.scaling = 1.0
    with pytest.raises(ValueError, match="scaling 1.0, which .* rank = 2.0"):
        learned_part(model)


def test_model_without_updates_has_no_learned_part():
    with pytest.raises(ValueError, match="the GPTModel has no LoRA layers"):
        learned_part(make_model())


def test_learned_part_of_bfloat16_and_of_columns(tmp_path):
    model = make_model(tie_weights=True)
    by_columns(model)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        replace_linear_with_lora(each.bfloat16(), 4, 8)
    save_checkpoint(tmp_path / "part", learned_part(trained(model)))
    load_checkpoint(tmp_path / "part", learned_part(twin))
    assert torch.equal(twin(IDS), model(IDS))


def test_fingerprint_does_not_depend_on_the_layout():
    model = make_model()
    replace_linear_with_lora(model, 4, 8)
    before = learned_part(model).cfg
    by_columns(model)
    assert learned_part(model).cfg == before


def test_fingerprint_is_of_the_names_too():
    found = []
    for name in "ab":
        model = nn.ModuleDict({name: nn.Linear(3, 3)}).requires_grad_(False)
        nn.init.ones_(model[name].weight)
        nn.init.ones_(model[name].bias)
        replace_linear_with_lora(model, 2, 4)
        found.append(learned_part(model).cfg["base"])
    assert found[0] != found[1]


def test_training_after_the_updates_were_merged_says_that_all_is_frozen():
    model = make_model()
    replace_linear_with_lora(model, 4, 8)
    merge_lora(trained(model))
    assert learning(model) == []
    optimizer = torch.optim.AdamW(model.parameters())  # takes frozen weights, too
    loader = [(IDS, IDS)]
    settings = {"num_epochs": 1, "eval_freq": 1, "eval_iter": 1, "device": "cpu"}
    with pytest.raises(
        ValueError, match=r"all weights .* frozen.*requires_grad_\(True"
    ):
        train_model_simple(
            model,
            loader,
            loader,
            optimizer,
            start_context="a",
            tokenizer=None,
            **settings,
        )
