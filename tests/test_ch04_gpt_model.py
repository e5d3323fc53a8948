"""Chapter 4: the GPT model against transformers, its properties, and bad input."""

import copy
import math
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY, random_gpt
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ch04_gpt_model import guards, missing_parts, pictures
from shared.ch04 import (
    GELU,
    GPT2_CONFIGS,
    GPT_CONFIG_124M,
    FeedForward,
    GPTConfig,
    GPTModel,
    LayerNorm,
    TransformerBlock,
    check_config,
    generate_text_simple,
    init_like_gpt2,
    next_token_logits,
)
from tools.export import ROOT

VARIANTS = [
    {"qkv_bias": bias, "tie_weights": tied}
    for bias in (False, True)
    for tied in (False, True)
]


def make_model(seed=0, **changes):
    return random_gpt({**TINY, **changes}, seed)


def make_ids(*shape, vocab_size=TINY["vocab_size"], seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, shape, generator=generator)


def count(module):
    return sum(p.numel() for p in module.parameters())


def to_transformers(model):
    """The same model as transformers' GPT-2, which fuses and transposes matrices."""
    cfg = model.cfg
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg["vocab_size"],
            n_positions=cfg["context_length"],
            n_embd=cfg["emb_dim"],
            n_layer=cfg["n_layers"],
            n_head=cfg["n_heads"],
            tie_word_embeddings=cfg.get("tie_weights", False),
            attn_implementation="eager",
        )
    ).eval()
    pairs = {"transformer.wte.weight": model.tok_emb.weight}
    pairs["transformer.wpe.weight"] = model.pos_emb.weight
    for i, block in enumerate(model.trf_blocks):
        parts = (block.att.W_query, block.att.W_key, block.att.W_value)
        zeros = torch.zeros(cfg["emb_dim"])
        here = {
            "ln_1.weight": block.norm1.scale,
            "ln_1.bias": block.norm1.shift,
            "ln_2.weight": block.norm2.scale,
            "ln_2.bias": block.norm2.shift,
            "attn.c_attn.weight": torch.cat([part.weight for part in parts]).T,
            "attn.c_attn.bias": torch.cat(
                [zeros if part.bias is None else part.bias for part in parts]
            ),
            "attn.c_proj.weight": block.att.out_proj.weight.T,
            "attn.c_proj.bias": block.att.out_proj.bias,
            "mlp.c_fc.weight": block.ff.layers[0].weight.T,
            "mlp.c_fc.bias": block.ff.layers[0].bias,
            "mlp.c_proj.weight": block.ff.layers[2].weight.T,
            "mlp.c_proj.bias": block.ff.layers[2].bias,
        }
        pairs |= {f"transformer.h.{i}.{name}": value for name, value in here.items()}
    pairs["transformer.ln_f.weight"] = model.final_norm.scale
    pairs["transformer.ln_f.bias"] = model.final_norm.shift
    pairs["lm_head.weight"] = model.out_head.weight
    peer.load_state_dict({name: value.detach() for name, value in pairs.items()})
    return peer


# The parts


def test_layer_norm_is_torchs():
    ours, torchs = LayerNorm(24), nn.LayerNorm(24)
    for norm in (ours, torchs):
        torch.manual_seed(1)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    x = 7 + 3 * torch.randn(2, 5, 24)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)
    assert torch.equal(LayerNorm(24)(torch.full((1, 24), 3.0)), torch.zeros(1, 24))
    two = torch.tensor([[-1.0, 1.0]])  # divided by C, not by C - 1
    assert torch.allclose(LayerNorm(2)(two), two, atol=1e-4)


def test_gelu_is_the_tanh_form():
    z = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    assert torch.allclose(GELU()(z), z / 2 * (1 + torch.tanh(inner)), atol=1e-12)
    assert 1e-4 < (GELU()(z) - F.gelu(z)).abs().max() < 5e-4


def test_feed_forward_has_known_size_and_treats_each_token_alone():
    assert count(FeedForward(GPT_CONFIG_124M)) == 4_722_432
    ff, x = FeedForward(TINY), torch.randn(2, 5, 24)
    assert torch.allclose(ff(x)[:, 3], ff(x[:, 3]), atol=1e-6)


def test_block_is_its_equation():
    block, x = make_model().trf_blocks[0], torch.randn(2, 5, 24)
    h = x + block.att(block.norm1(x))
    assert torch.allclose(block(x), h + block.ff(block.norm2(h)), atol=1e-6)
    assert count(TransformerBlock(GPT_CONFIG_124M).att) == 2_360_064


# The whole model


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_are_those_of_transformers(variant):
    model, ids = make_model(**variant), make_ids(3, 16)
    with torch.no_grad():
        difference = (model(ids) - to_transformers(model)(ids).logits).abs().max()
    assert difference < 1e-4


def test_gradients_are_those_of_transformers():
    model, ids = make_model(), make_ids(2, 16)
    peer = to_transformers(model)
    F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    peer(ids, labels=ids).loss.backward()
    ours, theirs = model.trf_blocks[0], peer.transformer.h[0]
    for found, wanted in (
        (model.tok_emb.weight.grad, peer.transformer.wte.weight.grad),
        (ours.att.W_value.weight.grad.T, theirs.attn.c_attn.weight.grad[:, 48:]),
        (ours.ff.layers[0].weight.grad.T, theirs.mlp.c_fc.weight.grad),
        (ours.norm1.scale.grad, theirs.ln_1.weight.grad),
    ):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_change_moves_nothing_before_it():
    model, ids = make_model(), make_ids(1, 16)
    before = model(ids)
    for t in range(16):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 61
        after = model(changed)
        assert torch.allclose(after[:, :t], before[:, :t], atol=1e-5)
        moved = (after[0, t:] - before[0, t:]).abs().amax(dim=-1)
        assert (moved > 1e-3).all()  # and does move everything from there on


def test_texts_of_a_batch_do_not_mix():
    model, ids = make_model(), make_ids(5, 9)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(model(ids[order]), model(ids)[order], atol=1e-5)
    assert torch.allclose(model(ids[2:3])[0], model(ids)[2], atol=1e-5)


def test_features_and_any_head_make_the_logits_of_any_kind_of_ids():
    model, ids = make_model(), make_ids(2, 7)
    features = model.features(ids)
    assert features.shape == (2, 7, 24)
    assert torch.equal(model.out_head(features), model(ids))
    assert torch.equal(model(ids.int()), model(ids))
    model.out_head = nn.Linear(24, 2)
    assert torch.equal(model.features(ids), features)
    assert model(ids).shape == (2, 7, 2)


def test_dropout_acts_in_training_only():
    model, ids = make_model(drop_rate=0.0), make_ids(2, 7)
    assert torch.equal(model.train()(ids), model.eval()(ids))
    model = make_model(drop_rate=0.5)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    calls = []
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda part, i, out: calls.append(part.p))
    model(ids)
    assert calls == [0.5] * (1 + 2 * 3)  # the embeddings, and twice in each block


def test_learns_a_batch_by_heart():
    torch.manual_seed(0)
    model, ids = GPTModel(TINY), make_ids(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert loss < 0.5


def test_never_looks_at_the_ids_on_the_host():
    # On the meta device nothing has a value: whatever waits for one raises.
    with torch.device("meta"):
        model, ids = GPTModel(TINY).eval(), torch.zeros(2, 5, dtype=torch.long)
    assert model(ids).shape == (2, 5, 61)
    assert generate_text_simple(model, ids, 20, 16, use_cache=True).shape == (2, 25)


def test_compiles_to_one_graph():
    model, ids = make_model(), make_ids(2, 7)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(ids), model(ids), atol=1e-6)


# Parameters: names, numbers, initial values


def test_parameters_bear_the_books_names():
    names = {"tok_emb.weight", "pos_emb.weight", "out_head.weight"}
    names |= {"final_norm.scale", "final_norm.shift"}
    for i in range(TINY["n_layers"]):
        block = f"trf_blocks.{i}."
        for part in ("W_query", "W_key", "W_value"):
            names |= {f"{block}att.{part}.weight", f"{block}att.{part}.bias"}
        for part in ("att.out_proj", "ff.layers.0", "ff.layers.2"):
            names |= {f"{block}{part}.weight", f"{block}{part}.bias"}
        for part in ("norm1", "norm2"):
            names |= {f"{block}{part}.scale", f"{block}{part}.shift"}
    assert set(GPTModel({**TINY, "qkv_bias": True}).state_dict()) == names


def test_a_checkpoint_in_the_books_layout_loads():
    model, other, ids = make_model(0), make_model(1), make_ids(2, 16)
    stored = dict(model.state_dict())
    for i in range(TINY["n_layers"]):
        stored[f"trf_blocks.{i}.att.mask"] = torch.ones(16, 16).triu(1)
    assert not torch.allclose(other(ids), model(ids), atol=1e-2)
    other.load_state_dict(stored)
    assert torch.equal(other(ids), model(ids))
    with pytest.raises(RuntimeError, match="att.musk"):
        other.load_state_dict({**stored, "trf_blocks.0.att.musk": torch.ones(1)})


@pytest.mark.parametrize(
    "size, untied, published",
    [
        ("124M", 163_009_536, 124_439_808),
        ("355M", 406_212_608, 354_823_168),
        ("774M", 838_220_800, 774_030_080),
        ("1558M", 1_637_792_000, 1_557_611_200),
    ],
)
def test_parameter_counts(size, untied, published):
    book = {**GPT2_CONFIGS[size], "qkv_bias": False, "tie_weights": False}
    with torch.device("meta"):
        assert count(GPTModel(book)) == untied
        assert count(GPTModel(GPT2_CONFIGS[size])) == published
        tied = count(GPTModel({**book, "tie_weights": True}))
    assert tied == untied - book["vocab_size"] * book["emb_dim"]
    if size == "124M":
        assert tied == 124_412_160
        assert book == {**GPT_CONFIG_124M, "tie_weights": False}


def test_tied_weights_are_one_tensor_and_train_as_one():
    model, ids = make_model(tie_weights=True), make_ids(2, 7)
    assert model.out_head.weight is model.tok_emb.weight
    assert count(make_model()) - count(model) == 61 * 24
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(ids).square().sum().backward()
    optimizer.step()
    assert model.out_head.weight is model.tok_emb.weight
    assert GPTModel(TINY).out_head.weight is not GPTModel(TINY).tok_emb.weight


def test_initial_weights_are_gpt2s():
    torch.manual_seed(0)
    cfg = {**TINY, "vocab_size": 500, "emb_dim": 192, "n_layers": 8, "qkv_bias": True}
    model = GPTModel(cfg)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("scale") else 0.0)).all(), name
            continue
        writes = "out_proj" in name or "layers.2" in name
        std = 0.02 / 4 if writes else 0.02  # sqrt(2 * 8) = 4
        assert abs(parameter.std().item() / std - 1) < 0.05, name
        assert abs(parameter.mean().item()) < std / 10, name


def test_initial_loss_is_the_predicted_one():
    torch.manual_seed(0)
    model = GPTModel({**TINY, "vocab_size": 5000, "emb_dim": 384}).eval()
    ids = make_ids(16, 16, vocab_size=5000)
    targets = make_ids(16, 16, vocab_size=5000, seed=2)
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    assert abs(loss.item() - (math.log(5000) + 0.02**2 * 384 / 2)) < 0.1


def test_a_part_of_a_model_can_be_initialised_like_gpt2_too():
    model = make_model(tie_weights=True)
    model.tok_emb.weight = nn.Parameter(torch.ones(61, 24))
    init_like_gpt2(model)
    assert model.out_head.weight is model.tok_emb.weight
    assert 0.01 < model.tok_emb.weight.std() < 0.03


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_from_the_meta_device_gets_its_weights_from_init_weights(tied):
    with torch.device("meta"):
        model = GPTModel({**TINY, "tie_weights": tied})
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    model.init_weights()
    torch.manual_seed(3)
    other = GPTModel({**TINY, "tie_weights": tied})
    other_again = copy.deepcopy(other)
    torch.manual_seed(3)
    other_again.init_weights()
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    for ours, wanted in zip(model.parameters(), other_again.parameters(), strict=True):
        assert torch.equal(ours, wanted)


# The first numbers of some parameters with seed 123; processors differ in the last
# digits only. Later chapters print what follows from these.
FIRST_NUMBERS = {
    False: {
        "tok_emb.weight": [-0.008353, 0.010792],
        "trf_blocks.2.att.out_proj.weight": [-0.006102, 0.002520],
        "out_head.weight": [-0.007366, -0.008931],
    },
    True: {
        "tok_emb.weight": [0.003222, 0.009059],
        "trf_blocks.2.att.out_proj.weight": [0.010759, -0.002531],
    },
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_seed_always_gives_the_same_initial_weights(tied):
    torch.manual_seed(123)
    model = GPTModel({**TINY, "tie_weights": tied})
    for name, numbers in FIRST_NUMBERS[tied].items():
        found = model.get_parameter(name)[0, :2].tolist()
        assert found == pytest.approx(numbers, rel=1e-3), name


# The settings


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"n_head": 3}, KeyError, "'n_head' 'n_heads'"),
        ({"N_LAYERS": 3}, KeyError, "'N_LAYERS' 'n_layers'"),
        ({"tied_weights": True}, KeyError, "'tied_weights' 'tie_weights'"),
        ({"zzz": 1}, KeyError, "'zzz' vocab_size tie_weights"),
        ({"vocab_size": 0}, ValueError, "vocab_size more 0"),
        ({"n_layers": -2}, ValueError, "n_layers -2"),
        ({"context_length": 16.0}, TypeError, "context_length 16.0"),
        ({"emb_dim": "24"}, TypeError, "emb_dim '24'"),
        ({"n_heads": True}, TypeError, "n_heads True"),
        ({"n_heads": 5}, ValueError, "24 5 4 6"),
        ({"emb_dim": 768, "n_heads": 10}, ValueError, "768 10 8 12"),
        ({"emb_dim": 7, "n_heads": 9}, ValueError, "7 9 1"),
        ({"drop_rate": 1.0}, ValueError, "drop_rate [0, 1) 1.0"),
        ({"drop_rate": 10}, ValueError, "drop_rate 10"),
        ({"drop_rate": -0.1}, ValueError, "drop_rate -0.1"),
        ({"drop_rate": float("nan")}, ValueError, "drop_rate nan"),
        ({"drop_rate": "0.1"}, TypeError, "drop_rate '0.1'"),
        ({"drop_rate": False}, TypeError, "drop_rate False"),
        ({"qkv_bias": 1}, TypeError, "qkv_bias 1"),
        ({"tie_weights": None}, TypeError, "tie_weights None"),
        (["vocab_size"], TypeError, "dict vocab_size 61"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named_with_its_remedy(change, error, words):
    cfg = {**TINY, **change} if isinstance(change, dict) else [("vocab_size", 61)]
    with pytest.raises(error) as caught:
        GPTModel(cfg) if isinstance(change, dict) else check_config(cfg)
    message = caught.value.args[0]
    assert all(word in message for word in words.split()), message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("block_size", "context_length"),  # nanoGPT
        ("n_embd", "emb_dim"),
        ("n_head", "n_heads"),
        ("n_layer", "n_layers"),
        ("dropout", "drop_rate"),
        ("bias", "qkv_bias"),
        ("n_positions", "context_length"),  # GPT-2's config.json
        ("resid_pdrop", "drop_rate"),
        ("hidden_size", "emb_dim"),  # Llama's
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
        ("max_position_embeddings", "context_length"),
        ("tie_word_embeddings", "tie_weights"),
        ("Hidden_Size", "emb_dim"),
    ],
)
def test_the_key_of_another_program_is_translated(theirs, ours):
    with pytest.raises(KeyError, match=f"'{theirs}'; did you mean '{ours}'"):
        check_config({**TINY, theirs: 16})


def test_every_translation_is_one_of_our_keys():
    assert set(guards._OTHER_NAMES.values()) <= set(guards._CONFIG_KEYS)
    assert not set(guards._OTHER_NAMES) & set(guards._CONFIG_KEYS)


def test_numbers_of_numpy_will_do():
    sizes = {k: np.int64(v) for k, v in TINY.items() if type(v) is int}
    model = GPTModel({**TINY, **sizes, "drop_rate": np.float32(0.5)}).eval()
    assert model(torch.ones(1, 3, dtype=torch.long)).shape == (1, 3, TINY["vocab_size"])
    for wrong, kind in ((np.int64(0), ValueError), (np.float64(3), TypeError)):
        with pytest.raises(kind, match="n_layers"):
            check_config({**TINY, "n_layers": wrong})
    with pytest.raises(ValueError, match="drop_rate"):
        check_config({**TINY, "drop_rate": np.float32(1.5)})


@pytest.mark.parametrize("key", list(TINY))
def test_a_missing_setting_is_named(key):
    cfg = {k: v for k, v in TINY.items() if k != key}
    with pytest.raises(
        KeyError, match=f"'{key}' is missing; .* {GPT_CONFIG_124M[key]}"
    ):
        check_config(cfg)


def test_the_guard_knows_the_keys_that_a_config_has():
    assert set(guards._CONFIG_KEYS) == set(GPTConfig.__annotations__)
    assert set(guards._CONFIG_EXAMPLES) == GPTConfig.__required_keys__
    assert guards._CONFIG_EXAMPLES == GPT_CONFIG_124M


@given(C=st.integers(1, 200), H=st.integers(1, 200))
def test_settings_are_refused_exactly_if_the_heads_do_not_divide(C, H):
    cfg = {**TINY, "emb_dim": C, "n_heads": H}
    if C % H == 0:
        check_config(cfg)
    else:
        with pytest.raises(ValueError) as caught:
            check_config(cfg)
        proposed = str(caught.value).rpartition(" as ")[2].split(" or ")
        assert proposed and all(C % int(divisor) == 0 for divisor in proposed)


def test_the_model_keeps_its_own_copy_of_the_settings():
    cfg = dict(TINY)
    model = GPTModel(cfg)
    cfg["context_length"] = 99
    assert model.cfg["context_length"] == 16


# What goes in


LONG = {"dtype": torch.long}
WRONG_IDS = [
    (torch.tensor([[0, 61]]), IndexError, "61 vocab_size 0 60"),
    (torch.tensor([[3, -1]]), IndexError, "-1 vocab_size 61"),
    (torch.tensor([1, 2, 3]), ValueError, "(3,) unsqueeze(0)"),
    (torch.zeros(1, 2, 3, **LONG), ValueError, "(1, 2, 3)"),
    (torch.zeros(2, 0, **LONG), ValueError, "at least one token (2, 0)"),
    (torch.zeros(1, 17, **LONG), ValueError, "17 16 -16:"),
    (torch.zeros(1, 3), TypeError, "torch.float32 .long()"),
    (torch.zeros(1, 3, dtype=torch.bool), TypeError, "torch.bool"),
    ([[1, 2]], TypeError, "list"),
]


@pytest.mark.parametrize("ids, error, words", WRONG_IDS, ids=range(len(WRONG_IDS)))
def test_wrong_ids_are_refused(ids, error, words):
    model = make_model()
    for call in (model, model.features):
        with pytest.raises(error) as caught:
            call(ids)
        assert all(word in str(caught.value) for word in words.split())
        assert caught.value.__context__ is None  # no error of torch's own


def test_an_index_error_of_another_cause_is_passed_on():
    class Broken(nn.Embedding):
        def forward(self, ids):
            raise IndexError("something else")

    model = make_model()
    model.tok_emb = Broken(61, 24)
    with pytest.raises(IndexError, match="something else"):
        model(make_ids(1, 3))


def test_the_cache_counts_towards_the_context():
    model = make_model()
    cache = model.new_cache()
    model(make_ids(1, 10), cache)
    with pytest.raises(ValueError, match="17 tokens do not fit into context_length 16"):
        model(make_ids(1, 7), cache)
    assert cache[0].length == 10  # the refused call changed nothing


def test_a_cache_of_another_model_is_refused():
    cache = make_model(n_layers=2).new_cache()
    with pytest.raises(ValueError, match="2 layers and the model 3"):
        make_model()(make_ids(1, 3), cache)


def test_a_next_token_is_asked_for_ids_of_one_shape_too():
    model = make_model()
    for wrong, message in (
        (torch.tensor([1, 2]), r"\(B, T\), not \(2,\)"),
        (torch.zeros(1, 0, dtype=torch.long), "at least one token"),
        (torch.zeros(1, 2), "int64"),
    ):
        for cache in (None, model.new_cache()):
            with pytest.raises((TypeError, ValueError), match=message):
                next_token_logits(model, wrong, 16, cache)


@pytest.mark.parametrize("max_length", [0, -1, 17])
def test_new_cache_refuses_a_length_that_the_model_cannot_read(max_length):
    with pytest.raises(ValueError, match=f"context_length 16, not {max_length}"):
        make_model().new_cache(max_length)


# Generation


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_reading_in_pieces_with_a_cache_gives_the_same_logits(lengths, batch_size):
    while sum(lengths) > 16:
        lengths.pop()
    model, ids = make_model(), make_ids(batch_size, sum(lengths))
    cache = model.new_cache()
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in ids.split(lengths, dim=1)]
        assert torch.allclose(torch.cat(pieces, dim=1), model(ids), atol=1e-4)


@given(
    length=st.integers(1, 20),
    new=st.integers(0, 24),
    context_size=st.integers(1, 16),
    batch_size=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_cached_generation_is_uncached_generation(
    length, new, context_size, batch_size
):
    model, idx = make_model(), make_ids(batch_size, length)
    cached = generate_text_simple(model, idx, new, context_size, use_cache=True)
    wanted = idx
    with torch.no_grad():
        for _ in range(new):  # the naive way
            logits = model(wanted[:, -context_size:])[:, -1]
            wanted = torch.cat([wanted, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(cached, wanted)
    assert torch.equal(generate_text_simple(model, idx, new, context_size), wanted)


def test_generation_is_that_of_transformers():
    model, idx = make_model(), make_ids(2, 4)
    wanted = to_transformers(model).generate(
        idx,
        attention_mask=torch.ones_like(idx),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=-1,
    )
    assert torch.equal(generate_text_simple(model, idx, 12, 16, use_cache=True), wanted)


def test_logits_stay_exact_past_the_window():
    model, idx = make_model(), make_ids(2, 30)
    cache = model.new_cache(12)
    with torch.no_grad():
        for length in range(1, 31):
            found = next_token_logits(model, idx[:, :length], 12, cache)
            wanted = model(idx[:, :length][:, -12:])[:, -1]
            assert torch.allclose(found, wanted, atol=1e-4), length


def test_each_token_is_read_once_and_the_head_sees_one_vector():
    model, read, scored = make_model(), [], []
    model.tok_emb.register_forward_hook(lambda m, i, out: read.append(out.shape[1]))
    model.out_head.register_forward_hook(lambda m, i, out: scored.append(out.shape))
    generate_text_simple(model, make_ids(2, 5), 12, 16, use_cache=True)
    assert read == [5] + 11 * [1]  # up to and including a full window
    assert set(scored) == {(2, 61)}
    read.clear()
    generate_text_simple(model, make_ids(2, 5), 8, 16)
    assert read == list(range(5, 13))


def test_generation_needs_no_gradient_and_leaves_the_prompt_alone():
    model, idx = make_model(), make_ids(1, 3)
    before = idx.clone()
    recorded = []
    model.out_head.register_forward_hook(
        lambda part, i, out: recorded.append(out.requires_grad)
    )
    written = generate_text_simple(model, idx, 4, 16)
    assert torch.equal(idx, before) and torch.equal(written[:, :3], idx)
    assert recorded == [False] * 4


NO_IDS = {"idx": torch.zeros(1, 0, dtype=torch.long)}


@pytest.mark.parametrize(
    "change, error, words",
    [
        (NO_IDS, ValueError, "at least one"),
        ({**NO_IDS, "max_new_tokens": 0}, ValueError, "at least one"),
        ({"idx": torch.tensor([1, 2])}, ValueError, "(B, T) (2,)"),
        ({"idx": [[1, 2]]}, TypeError, "list"),
        ({"idx": torch.tensor([[61]])}, IndexError, "61"),
        ({"context_size": 17}, ValueError, "context_size 17 context_length 16"),
        ({"context_size": 0}, ValueError, "between 1 and 0"),
        ({"context_size": -3}, ValueError, "between 1 and -3"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens -1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("use_cache", [False, True])
def test_wrong_requests_to_generate_are_refused(change, error, words, use_cache):
    request = {"idx": make_ids(1, 3), "max_new_tokens": 2, "context_size": 16}
    with pytest.raises(error) as caught:
        generate_text_simple(make_model(), **{**request, **change}, use_cache=use_cache)
    assert all(word in str(caught.value) for word in words.split())


def test_a_cache_that_has_seen_the_text_is_refused():
    model, idx = make_model(), make_ids(1, 5)
    cache = model.new_cache()
    next_token_logits(model, idx, 16, cache)
    with pytest.raises(ValueError, match=r"seen 5 tokens .* no more than 5.*new_cache"):
        next_token_logits(model, idx, 16, cache)


# What stands beside the lesson


def test_a_small_model_lacks_what_it_should_lack():
    complete, ids = missing_parts.small_model(), torch.arange(64).view(2, 32)
    assert isinstance(complete, GPTModel) and complete(ids).shape == (2, 32, 256)
    bare = missing_parts.small_model(norms=False)
    assert not any(isinstance(part, LayerNorm) for part in bare.modules())
    for block in missing_parts.small_model(shortcuts=False).trf_blocks:
        x = torch.randn(2, 5, 64)
        wanted = block.ff(block.norm2(block.att(block.norm1(x))))
        assert torch.allclose(block(x), wanted, atol=1e-6)
    large = missing_parts.small_model(std=0.125)
    assert abs(large.tok_emb.weight.std() - 0.125) < 0.002
    same = missing_parts.small_model(std=0.125)
    assert torch.equal(large(ids), same(ids))


def test_brief_training_is_the_same_each_time_and_learns():
    story = missing_parts.story_bytes()
    losses = [
        missing_parts.train_briefly(missing_parts.small_model(), story, steps=12)
        for _ in range(2)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    assert losses[0][-1] < losses[0][0] - 1
    assert missing_parts.mean_of_last_ten(losses[0]) == sum(losses[0][2:]) / 10


def test_single_bytes_have_no_neighbours():
    model, lengths = missing_parts.small_model(), []
    model.tok_emb.register_forward_hook(lambda m, i, out: lengths.append(out.shape))
    missing_parts.train_briefly(model, missing_parts.story_bytes(), steps=1, length=1)
    assert lengths == [(256, 1, 64)]


@pytest.mark.parametrize(
    "name", ["whole_model", "generation_loop", "feed_forward", "block", "norm_axes"]
)
def test_a_drawing_can_be_drawn_and_says_what_it_shows(name):
    drawing = getattr(pictures, name)()
    assert len(drawing.alt.split()) > 10
    assert drawing.svg == getattr(pictures, name)().svg


def test_the_lens_shows_each_guess_where_it_was_read():
    guesses = [["a", " b"], ["\n", " d"], [" ", "f"]]
    ax = pictures.lens([" x", "y"], guesses, [[1.0, 0.2], [0.3, 0.4], [0.5, 0.6]])
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown[0, 0] == "a" and shown[1, 1] == "d" and shown[0, 1] == "\\n"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert [tick.get_text() for tick in ax.get_yticklabels()][:2] == [
        "start",
        "block 1",
    ]
    assert [text.get_color() for text in ax.texts][:2] == ["white", "black"]
    plt.close()


def test_every_exported_class_is_written_in_one_cell():
    cells = nbformat.read(ROOT / "ch04_gpt_model/gpt_model.ipynb", as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    written = re.findall(r"^(?:class|def) (\w+)", code, re.MULTILINE)
    parts = ["LayerNorm", "GELU", "FeedForward", "TransformerBlock", "GPTModel"]
    for name in [*parts, "next_token_logits", "generate_text_simple"]:
        assert written.count(name) == 1, name
    assert not re.search(r"^class (\w+)\(\1\)", code, re.MULTILINE)
