"""The layout of matrices that benchmarks/model.py uses for generation on a CPU."""

import copy

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from models import TINY, random_gpt
from torch import nn

from benchmarks.model import optimize_layout_for_generation
from shared.ch04 import generate_text_simple

VARIANTS = [
    {"qkv_bias": bias, "tie_weights": tied}
    for bias in (False, True)
    for tied in (False, True)
]


def make_model(seed=0, **changes):
    return random_gpt({**TINY, **changes}, seed)


def make_ids(*shape):
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_layout_changes_strides_and_nothing_else(variant):
    model, ids = make_model(**variant), make_ids(2, 12)
    parameters = list(model.parameters())
    logits = model(ids)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    written = generate_text_simple(model, ids, 9, 16, use_cache=True)
    optimize_layout_for_generation(model)

    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 3 * 6 + 1
    assert all(layer.weight.stride()[0] == 1 for layer in linears)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert (model.out_head.weight is model.tok_emb.weight) == variant["tie_weights"]
    assert torch.allclose(model(ids), logits, atol=1e-5)
    assert torch.equal(generate_text_simple(model, ids, 9, 16, use_cache=True), written)
    for name, value in model.state_dict().items():
        assert value.is_contiguous() and torch.equal(value, values[name]), name


def test_layout_is_changed_once():
    model = make_model(tie_weights=True)
    optimize_layout_for_generation(model)
    places = [p.data_ptr() for p in model.parameters()]
    hooks = len(model._state_dict_hooks)
    optimize_layout_for_generation(model)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert len(model._state_dict_hooks) == hooks == 1


def test_a_model_by_columns_is_saved_and_loaded_with_safetensors(tmp_path):
    model, other, ids = make_model(0), make_model(1), make_ids(2, 12)
    logits = model(ids)
    optimize_layout_for_generation(model)
    optimize_layout_for_generation(other)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    other.load_state_dict(safetensors.torch.load_file(path))
    assert torch.allclose(other(ids), logits, atol=1e-5)
    assert other.out_head.weight.stride() == (1, 61)
    copied = copy.deepcopy(other)
    assert copied.out_head.weight.stride() == (1, 61)
    assert torch.allclose(copied(ids), logits, atol=1e-5)


def test_a_model_by_columns_trains_as_before():
    losses = []
    for by_columns in (False, True):
        model, ids = make_model(tie_weights=True).train(), make_ids(4, 16)
        if by_columns:
            optimize_layout_for_generation(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(5):
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - losses[1]) < 1e-3
