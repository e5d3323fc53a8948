"""Mixed precision: where it is on, and that a training inside it is right."""

import pytest
import torch
from torch import nn

from shared.precision import has_fast_bfloat16, mixed_precision


@pytest.fixture(params=[True, False])
def fast(request, monkeypatch):
    """A processor that multiplies bfloat16 by itself, or one that does not."""
    flags = {"avx512_bf16": request.param}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    return request.param


def test_products_are_bfloat16_where_that_is_fast(fast):
    layer, x = nn.Linear(4, 4), torch.rand(2, 4)
    with mixed_precision():
        y = layer(x)
    assert has_fast_bfloat16() is fast
    assert y.dtype == (torch.bfloat16 if fast else torch.float32)
    assert layer.weight.dtype == torch.float32


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_fast_bfloat16("cpu")


def test_a_block_around_a_training_uses_the_weights_of_now(fast):
    layer, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    nn.init.constant_(layer.weight, 1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    seen = []
    with mixed_precision():
        for _ in range(3):
            y = layer(x)
            seen.append(y.item())
            optimizer.zero_grad()
            y.sum().backward()
            optimizer.step()
    assert seen == [1.0, 0.75, 0.5]
