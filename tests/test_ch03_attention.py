"""Chapter 3 against PyTorch's own attention, and against what it must never do."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from ch03_attention import attention, greetings, guards, riddle
from shared.ch03 import (
    CausalAttention,
    KVCache,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    SelfAttention_v1,
    SelfAttention_v2,
    attention_weights,
)

B, T, C, H = 3, 7, 12, 4
ROLES = ("W_query", "W_key", "W_value")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(kind: str, dropout: float = 0.0, context_length: int = T) -> nn.Module:
    """One causal layer of each kind, from width C to width C."""
    if kind == "single":
        return CausalAttention(C, C, context_length, dropout)
    if kind == "stacked":
        return MultiHeadAttentionWrapper(C, C // H, context_length, dropout, H)
    return MultiHeadAttention(C, C, context_length, dropout, H)


every_kind = pytest.mark.parametrize("kind", ["single", "stacked", "fused"])


# Against published numbers and PyTorch's own layers


def test_the_worked_example_of_the_book():
    inputs = torch.tensor(
        [
            [0.43, 0.15, 0.89],
            [0.55, 0.87, 0.66],
            [0.57, 0.85, 0.64],
            [0.22, 0.58, 0.33],
            [0.77, 0.25, 0.10],
            [0.05, 0.80, 0.55],
        ]
    )
    torch.manual_seed(123)
    second = SelfAttention_v1(3, 2)(inputs)[1]
    torch.testing.assert_close(
        second, torch.tensor([0.3061, 0.8210]), atol=5e-5, rtol=0
    )


def test_v1_is_scaled_dot_product_attention():
    layer, x = SelfAttention_v1(C, 5), torch.randn(T, C)
    expected = F.scaled_dot_product_attention(
        x @ layer.W_query, x @ layer.W_key, x @ layer.W_value
    )
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_v2_equals_v1_with_its_weights_transposed(bias):
    v1, v2 = SelfAttention_v1(C, 5), SelfAttention_v2(C, 5, qkv_bias=bias)
    for role in ROLES:
        linear = getattr(v2, role)
        linear.weight.data = getattr(v1, role).data.T
        assert (linear.bias is not None) == bias
        if bias:
            linear.bias.data.zero_()
    x = torch.randn(T, C)
    torch.testing.assert_close(v2(x), v1(x))


@pytest.mark.parametrize("bias", [False, True])
def test_causal_attention_is_scaled_dot_product_attention(bias):
    layer = CausalAttention(C, 5, context_length=10, dropout=0.0, qkv_bias=bias)
    x = torch.randn(B, T, C)
    expected = F.scaled_dot_product_attention(
        layer.W_query(x), layer.W_key(x), layer.W_value(x), is_causal=True
    )
    torch.testing.assert_close(layer(x), expected)


def test_splitting_equals_stacking():
    stacked, fused = make("stacked"), make("fused")
    for role in ROLES:
        rows = [getattr(head, role).weight.data for head in stacked.heads]
        getattr(fused, role).weight.data = torch.cat(rows)
    fused.out_proj.weight.data = torch.eye(C)
    fused.out_proj.bias.data.zero_()
    x = torch.randn(B, T, C)
    torch.testing.assert_close(fused(x), stacked(x))


@pytest.mark.parametrize("num_heads", [1, 3, 12])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_of_nn_multihead_attention(num_heads, bias):
    reference = nn.MultiheadAttention(C, num_heads, batch_first=True).double()
    nn.init.normal_(reference.in_proj_bias, std=float(bias))
    ours = MultiHeadAttention(C, C, T, 0.0, num_heads, qkv_bias=bias).double()
    weights = reference.in_proj_weight.data.chunk(3)
    biases = reference.in_proj_bias.data.chunk(3)
    for role, weight, its_bias in zip(ROLES, weights, biases, strict=True):
        getattr(ours, role).weight.data = weight.clone()
        if bias:
            getattr(ours, role).bias.data = its_bias.clone()
    ours.out_proj.load_state_dict(reference.out_proj.state_dict())

    x = torch.randn(B, T, C, dtype=torch.double, requires_grad=True)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected, _ = reference(x, x, x, attn_mask=future)
    result = ours(x)
    torch.testing.assert_close(result, expected)
    signal = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((result * signal).sum(), x),
        torch.autograd.grad((expected * signal).sum(), x),
    )


def test_widths_and_gpt2_smalls_number_of_parameters():
    x = torch.randn(B, T, C)
    assert MultiHeadAttention(C, 20, T, 0.0, num_heads=5)(x).shape == (B, T, 20)
    assert MultiHeadAttentionWrapper(C, 20, T, 0.0, 5)(x).shape == (B, T, 100)
    layer = MultiHeadAttention(768, 768, 1024, 0.1, num_heads=12)
    assert sum(p.numel() for p in layer.parameters()) == 2_360_064


# What attention must never do


@every_kind
@pytest.mark.parametrize("changed", range(1, T))
def test_a_change_never_moves_earlier_outputs(kind, changed):
    layer, x = make(kind), torch.randn(B, T, C)
    other = x.clone()
    other[:, changed] += 1
    before, after = layer(x), layer(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    moved = (before[:, changed:] != after[:, changed:]).any(dim=-1)
    assert moved.all(), "every later output depends on the token that was changed"
    torch.testing.assert_close(layer(x[:, :changed]), before[:, :changed])


@every_kind
def test_texts_of_a_batch_do_not_meet(kind):
    layer, x = make(kind), torch.randn(B, T, C)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(layer(x[order]), layer(x)[order])
    torch.testing.assert_close(layer(x[1:2]), layer(x)[1:2])


@every_kind
def test_every_parameter_learns(kind):
    layer = make(kind)
    layer(torch.randn(B, T, C)).pow(2).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@every_kind
def test_dropout_acts_in_training_only_and_keeps_the_mean(kind):
    layer, x = make(kind, dropout=0.5), torch.randn(1, T, C)
    plain = make(kind)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert not torch.equal(layer(x), layer(x))
        mean = layer(x.expand(20_000, T, C)).mean(dim=0, keepdim=True)
        torch.testing.assert_close(mean, plain(x), atol=0.03, rtol=0)
        torch.testing.assert_close(layer.eval()(x), plain(x))


# The key/value cache


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=8))
@example(pieces=[1] * 7)
def test_cached_equals_uncached_in_pieces_of_any_size(pieces):
    length = sum(pieces)
    layer = make("fused", context_length=length).double()
    x = torch.randn(2, length, C, dtype=torch.double)
    cache = KVCache(max_length=length)
    parts = [layer(piece, cache) for piece in x.split(pieces, dim=1)]
    assert cache.length == length
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x))


def test_a_cache_returns_views_of_all_it_was_given():
    cache, (keys, values) = KVCache(5), torch.randn(2, B, H, 5, 3)
    first_keys, first_values = cache.append(keys[:, :, :2], values[:, :, :2])
    all_keys, all_values = cache.append(keys[:, :, 2:], values[:, :, 2:])
    assert torch.equal(all_keys, keys) and torch.equal(all_values, values)
    assert all_keys.data_ptr() == first_keys.data_ptr(), "the keys were copied"
    assert all_values.data_ptr() == first_values.data_ptr(), "the values were copied"


def test_a_cache_says_what_new_tokens_may_attend_to():
    cache, rows = KVCache(7), torch.randn(1, H, 3, 4)
    cache.append(rows, rows)
    assert cache.mask(3) is None, "a text that begins needs no mask of its own"
    cache.append(rows[:, :, :2], rows[:, :, :2])
    assert cache.mask(2).tolist() == [[True] * 4 + [False], [True] * 5]
    cache.append(rows[:, :, :1], rows[:, :, :1])
    assert cache.mask(1) is None, "a single token attends to all"


def test_what_a_cache_refuses_and_that_it_stays_as_it_was():
    cache, (keys, values) = KVCache(2), torch.randn(2, B, H, 3, 4)
    cache.append(keys[:, :, :1], values[:, :, :1])
    with pytest.raises(
        ValueError, match=r"\(1, 4, 1, 4\) cannot follow .*\(3, 4, 1, 4\)"
    ):
        cache.append(keys[:1, :, :1], values[:1, :, :1])
    kept, _ = cache.append(keys[:, :, 1:2], values[:, :, 1:2])
    before = kept.clone()
    with pytest.raises(ValueError, match="holds 2 tokens, not 3; make a larger one"):
        cache.append(keys[:, :, 2:], values[:, :, 2:])
    assert cache.length == 2 and torch.equal(cache.keys, before)
    with pytest.raises(ValueError, match="holds 3 tokens, not 4"):
        make("fused")(torch.randn(B, 4, C), KVCache(3))
    with pytest.raises(ValueError, match="max_length 0 is below 1"):
        KVCache(0)


def test_a_layer_takes_any_cache_that_appends_and_masks():
    """Appendix F types a plain one, which joins old and new."""

    class Plain:
        length, keys, values = 0, None, None

        def append(self, keys, values):
            if self.length:
                keys = torch.cat([self.keys, keys], dim=2)
                values = torch.cat([self.values, values], dim=2)
            self.keys, self.values, self.length = keys, values, keys.shape[2]
            return keys, values

        def mask(self, T):
            allowed = torch.ones(T, self.length, dtype=torch.bool)
            return None if T == self.length else allowed.tril(self.length - T)

    layer, x = make("fused", context_length=9).double(), torch.randn(2, 9, C).double()
    cache, plain = KVCache(9), Plain()
    for piece in x.split([4, 1, 3, 1], dim=1):
        torch.testing.assert_close(layer(piece, cache), layer(piece, plain))


def test_a_second_text_in_one_piece_may_fill_its_cache():
    """A text of as many tokens as the cache holds is causal, however it was read."""
    layer, x = make("fused", context_length=6), torch.randn(1, 6, C)
    cache = KVCache(6)
    layer(x[:, :3], cache)
    torch.testing.assert_close(layer(x[:, 3:], cache), layer(x)[:, 3:])


def test_the_cache_is_found_where_the_layer_is():
    assert attention.KVCache is KVCache


# The weights, to look at


def test_attention_weights_are_those_the_layer_uses():
    layer, x = make("fused", dropout=0.5).eval(), torch.randn(B, T, C)
    weights = attention_weights(layer, x)
    assert weights.shape == (B, H, T, T) and not weights.requires_grad
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(B, H, T))
    context = weights @ layer.split_heads(layer.W_value(x))
    output = layer.out_proj(context.transpose(1, 2).reshape(B, T, C))
    torch.testing.assert_close(output, layer(x))
    with pytest.raises(ValueError, match="do not fit"):
        attention_weights(layer, torch.randn(B, T + 1, C))


# The riddle of section 3.13


def test_the_riddles_strings_repeat_and_the_rest_follows():
    ids, period = riddle.test_strings(seed=5)
    known = riddle.predictable(period)  # (n, T - 1)
    assert ids.shape == (500, riddle.CONTEXT) and known.shape == (500, 23)
    assert set(period.flatten().tolist()) == set(range(6, 13))
    for row, p, may in zip(ids.tolist(), period.flatten().tolist(), known, strict=True):
        assert len(set(row)) == len(set(row[:p])) == p
        assert row[p:] == row[:-p]
        first = may.nonzero().min().item() + 1
        assert row[first - 1] in row[: first - 1], "nowhere to read on from"
        assert row[first - 2] not in row[: first - 2]


def test_the_riddles_baselines():
    ids, period = riddle.test_strings(seed=5)
    assert 1 / 12 < riddle.by_chance(ids, period) < 1 / 6
    # Of 98 letters that can be known, 28 have the distance that is best for their
    # position: at 7 to 12 one of 1, 2, ..., 6 periods, at 13 to 23 two of seven.
    assert riddle.by_counting(ids, period) == pytest.approx(28 / 98, abs=0.03)

    class Knows(nn.Module):  # reads the letter one period back
        def forward(self, seen):
            places = torch.arange(1, riddle.CONTEXT) - period
            return F.one_hot(ids.gather(1, places.clamp(min=0)), 26).float()

    assert riddle.accuracy(Knows(), ids, period) == 1


# The sentences of section 3.14


def test_greetings_name_both_and_who_is_greeted_does_not_speak():
    found = greetings.greetings()
    assert len(found) == len({text for text, *_ in found}) == 60
    for text, speaker, greeted in found:
        assert text.endswith(f'"Hello, {greeted}," said')
        assert text.count(greeted) == 2 and text.count(speaker) == 1
        assert speaker in text.split(".")[0]


def test_without_silences_one_head_of_a_copy():
    block = nn.Module()
    block.att = make("fused")
    model = nn.Module()
    model.trf_blocks = nn.ModuleList([block])
    cut, x = greetings.without(model, 0, 2).trf_blocks[0].att, torch.randn(1, T, C)
    D = C // H
    with torch.no_grad():
        heads = attention_weights(block.att, x) @ block.att.split_heads(
            block.att.W_value(x)
        )
        heads[:, 2] = 0
        expected = block.att.out_proj(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(cut(x), expected)
    assert (block.att.out_proj.weight[:, 2 * D : 3 * D] != 0).any(), "not a copy"


# Checkpoints


def test_the_books_checkpoint_with_its_mask_loads():
    layer, block = make("fused"), nn.ModuleDict({"att": make("fused")})
    stored = {name: torch.randn_like(p) for name, p in layer.state_dict().items()}
    assert set(stored) == {
        *(f"{role}.weight" for role in ROLES),
        "out_proj.weight",
        "out_proj.bias",
    }
    stored["mask"] = torch.triu(torch.ones(1024, 1024), diagonal=1)
    layer.load_state_dict(stored)
    block.load_state_dict({f"att.{name}": value for name, value in stored.items()})
    assert "mask" in stored, "the caller's dictionary was changed"
    x = torch.randn(B, T, C)
    assert torch.equal(layer.W_key.weight, stored["W_key.weight"])
    assert torch.equal(layer(x), block["att"](x))


def test_an_unknown_entry_is_still_refused():
    layer = make("fused")
    with pytest.raises(RuntimeError, match="masks"):
        layer.load_state_dict({**layer.state_dict(), "masks": torch.ones(1)})


def test_single_heads_copies_and_pickles_load_the_mask_too():
    mask = {"mask": torch.triu(torch.ones(T, T), diagonal=1)}
    layer, other, x = make("single"), make("single"), torch.randn(B, T, C)
    other.load_state_dict({**layer.state_dict(), **mask})
    torch.testing.assert_close(other(x), layer(x))
    layer, buffer = make("fused"), io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        other.load_state_dict({**layer.state_dict(), **mask})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@every_kind
def test_other_number_formats(kind, dtype):
    layer, x = make(kind).to(dtype), torch.randn(B, T, C, dtype=dtype)
    assert layer(x).dtype == dtype
    assert torch.isfinite(layer(x)).all()


# Bad input


def test_width_not_divisible_by_heads():
    message = "d_out 768 is not divisible by num_heads 10; choose .* such as 8 or 12"
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(768, 768, 1024, 0.1, num_heads=10)
    with pytest.raises(ValueError, match="d_out 4 .* num_heads 8; .* such as 2 or 4"):
        MultiHeadAttention(4, 4, 8, 0.0, num_heads=8)
    message = "emb_dim 10 is not divisible by n_heads 4; choose .* such as 2 or 5"
    with pytest.raises(ValueError, match=message):  # another chapter's names
        guards.check_divisible(10, 4, "emb_dim", "n_heads")


@pytest.mark.parametrize("layer", [MultiHeadAttention, MultiHeadAttentionWrapper])
@pytest.mark.parametrize("num_heads", [0, -2])
def test_too_few_heads(layer, num_heads):
    with pytest.raises(ValueError, match=f"num_heads {num_heads} is below 1"):
        layer(8, 8, 4, 0.0, num_heads=num_heads)


@every_kind
@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, math.nan])
def test_dropout_that_is_no_share(kind, dropout):
    with pytest.raises(ValueError, match=rf"dropout {dropout} is outside \[0, 1\)"):
        make(kind, dropout=dropout)


@every_kind
@pytest.mark.parametrize("shape", [(B, T, C + 1), (T, C), (1, B, T, C)])
def test_input_of_a_wrong_shape(kind, shape):
    with pytest.raises(ValueError, match=rf"not \(batch, tokens, {C}\).*d_in, {C}"):
        make(kind)(torch.randn(shape))


@every_kind
def test_text_longer_than_the_context(kind):
    message = f"{T + 1} tokens do not fit into context_length {T}; crop the text"
    with pytest.raises(ValueError, match=message):
        make(kind)(torch.randn(B, T + 1, C))


def test_cached_tokens_count_towards_the_context():
    layer, x, cache = make("fused"), torch.randn(B, T, C), KVCache(2 * T)
    layer(x[:, :5], cache)
    with pytest.raises(
        ValueError, match=f"8 tokens do not fit into context_length {T}"
    ):
        layer(x[:, :3], cache)
    assert cache.length == 5
