"""Chapter 8: the modern model against transformers, its properties, and bad input."""

import contextlib
import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig as PeerConfig
from transformers import LlamaForCausalLM

from ch08_modern_models import compare
from shared.appendix_e import merge_lora, replace_linear_with_lora
from shared.ch02 import create_dataloader_v1, get_tokenizer
from shared.ch03 import KVCache
from shared.ch04 import generate_text_simple, next_token_logits
from shared.ch05 import generate, train_model_simple
from shared.ch08 import (
    SMOLLM2_135M,
    GroupedQueryAttention,
    LlamaConfig,
    LlamaModel,
    RMSNorm,
    SwiGLU,
    check_llama_config,
    half_split_rows,
    rotate,
    rotation_angles,
)
from shared.data import load_text

TINY: LlamaConfig = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 3,
    "hidden_dim": 40,
    "rope_base": 10_000.0,
    "norm_eps": 1e-5,
}
NAMES = {
    "att.W_query": "self_attn.q_proj",
    "att.W_key": "self_attn.k_proj",
    "att.W_value": "self_attn.v_proj",
    "att.out_proj": "self_attn.o_proj",
    "ff.gate": "mlp.gate_proj",
    "ff.up": "mlp.up_proj",
    "ff.down": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}


def make_model(seed=0, **changes):
    """A model all of whose numbers are random."""
    torch.manual_seed(seed)
    model = LlamaModel({**TINY, **changes}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.2)
            if name.endswith("scale"):
                parameter += 1
    return model


def make_ids(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY["vocab_size"], shape, generator=generator)


def to_transformers(model):
    """The same model as transformers' Llama."""
    cfg = model.cfg
    peer = LlamaForCausalLM(
        PeerConfig(
            vocab_size=cfg["vocab_size"],
            max_position_embeddings=cfg["context_length"],
            hidden_size=cfg["emb_dim"],
            intermediate_size=cfg["hidden_dim"],
            num_hidden_layers=cfg["n_layers"],
            num_attention_heads=cfg["n_heads"],
            num_key_value_heads=cfg["n_kv_heads"],
            head_dim=cfg["emb_dim"] // cfg["n_heads"],
            rms_norm_eps=cfg["norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_base"]},
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    ).eval()
    pairs = {
        "model.embed_tokens.weight": model.tok_emb.weight,
        "lm_head.weight": model.out_head.weight,
        "model.norm.weight": model.final_norm.scale,
    }
    for i, block in enumerate(model.trf_blocks):
        for ours, theirs in NAMES.items():
            (weight,) = block.get_submodule(ours).parameters()
            pairs[f"model.layers.{i}.{theirs}.weight"] = weight
    peer.load_state_dict({name: value.detach() for name, value in pairs.items()})
    return peer


# The parts


def test_rms_norm_is_its_formula():
    torch.manual_seed(0)
    norm, x = RMSNorm(24, eps=0.1), 5 + torch.randn(2, 3, 24)
    nn.init.normal_(norm.scale)
    wanted = norm.scale * x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert torch.allclose(norm(x), wanted, atol=1e-6)
    assert torch.equal(RMSNorm(4)(torch.zeros(4)), torch.zeros(4))


def test_rotation_keeps_half_precision():
    angles = rotation_angles(torch.arange(3), 8, 1e4)
    assert (
        rotate(torch.ones(3, 8, dtype=torch.bfloat16), angles).dtype == torch.bfloat16
    )


def test_angles_keep_far_positions_apart_under_any_default_dtype():
    positions = torch.arange(600)
    wanted, ids = rotation_angles(positions, 8, 1e4), torch.arange(15)[None]
    torch.set_default_dtype(torch.bfloat16)  # as one builds a large model
    try:
        assert torch.equal(rotation_angles(positions, 8, 1e4), wanted)
        model = LlamaModel(TINY)
        assert model.tok_emb.weight.dtype == torch.bfloat16
        angles = model.trf_blocks[0].att.angles(256, 258, ids.device)
        assert angles[0, 0] == 256 and angles[1, 0] == 257
        assert model(ids).isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_reordered_rows_turn_as_neighbours_did():
    torch.manual_seed(0)
    T, H, D = 6, 3, 8
    weight, x = torch.randn(H * D, 10), torch.randn(T, 10)
    angles = rotation_angles(torch.arange(T), D, 100.0)
    complex_pairs = torch.view_as_complex((x @ weight.T).view(T, H, D // 2, 2))
    turned = complex_pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    heads = (x @ half_split_rows(weight, H).T).view(T, H, D).transpose(0, 1)
    ours = rotate(heads, angles).transpose(0, 1)  # (T, H, D)
    assert torch.allclose(ours[..., : D // 2], turned.real, atol=1e-5)
    assert torch.allclose(ours[..., D // 2 :], turned.imag, atol=1e-5)


def test_swiglu_is_its_formula_and_as_large_as_gpts():
    ff, x = SwiGLU(SMOLLM2_135M), torch.randn(2, 3, 576)
    hidden = F.linear(x, ff.gate.weight)
    hidden = hidden * torch.sigmoid(hidden) * F.linear(x, ff.up.weight)
    assert torch.allclose(ff(x), F.linear(hidden, ff.down.weight), atol=1e-6)
    assert sum(p.numel() for p in ff.parameters()) == 8 * 576**2


# The whole model


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_logits_are_those_of_transformers(n_kv_heads):
    model, ids = make_model(n_kv_heads=n_kv_heads, rope_base=500.0), make_ids(3, 16)
    with torch.no_grad():
        difference = (model(ids) - to_transformers(model)(ids).logits).abs().max()
    assert difference < 1e-5
    with torch.no_grad():  # and the comparison would notice
        assert (make_model(n_kv_heads=n_kv_heads)(ids) - model(ids)).abs().max() > 1e-2


def test_smollm2_has_its_size_and_a_tied_head():
    with torch.device("meta"):
        model = LlamaModel(SMOLLM2_135M)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    model = LlamaModel(TINY)
    assert model.out_head.weight is model.tok_emb.weight
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_new_weights_are_gpt_2s():
    torch.manual_seed(0)
    model = LlamaModel({**TINY, "emb_dim": 96, "hidden_dim": 256})
    block = model.trf_blocks[1]
    for layer in (model.tok_emb, block.att.W_key, block.ff.gate, block.ff.up):
        assert abs(layer.weight.std().item() - 0.02) < 0.002
    for layer in (block.att.out_proj, block.ff.down):
        assert abs(layer.weight.std().item() - 0.02 / 6**0.5) < 0.001
    assert torch.equal(block.norm1.scale, torch.ones(96))


@pytest.mark.parametrize("pieces", [[1] * 16, [5, 1, 10], [16]])
def test_cached_logits_are_those_without(pieces):
    model, ids = make_model(), make_ids(2, 16)
    cache = model.new_cache()
    with torch.no_grad():
        cached = [model(piece, cache) for piece in ids.split(pieces, dim=1)]
        assert torch.allclose(torch.cat(cached, dim=1), model(ids), atol=1e-5)
    assert cache[0].keys.shape == (2, TINY["n_kv_heads"], 16, 6)  # groups only


@pytest.mark.parametrize("changed", [0, 7, 15])
def test_a_change_moves_nothing_before_it(changed):
    model, ids = make_model(), make_ids(2, 16)
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % TINY["vocab_size"]
    with torch.no_grad():
        moved = (model(other) - model(ids)).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.nonzero().min() == changed


def test_texts_of_a_batch_do_not_disturb_each_other():
    model, ids = make_model(), make_ids(3, 10)
    with torch.no_grad():
        assert torch.allclose(model(ids)[1:2], model(ids[1:2]), atol=1e-5)


def test_positions_matter_by_distance_alone():
    """One block's attention does not notice where a text begins."""
    att, x = GroupedQueryAttention(TINY), torch.randn(1, 5, 24)
    shifted = copy.deepcopy(att)
    shifted.angles = lambda first, end, device: att.angles(
        first + 400, end + 400, device
    )
    assert torch.allclose(shifted(x), att(x), atol=1e-4)
    assert not torch.allclose(compare_unrotated(att)(x), att(x), atol=1e-3)


def compare_unrotated(att):
    other = compare.Unrotated(TINY)
    other.load_state_dict(att.state_dict())
    return other


# What chapters 4, 5 and appendix E do with it


def test_it_writes_with_earlier_chapters_functions():
    model, prompt = make_model(), make_ids(2, 5)
    plain = generate_text_simple(model, prompt, 30, 16)  # past the window
    assert torch.equal(generate_text_simple(model, prompt, 30, 16, True), plain)
    assert torch.equal(generate(model, prompt, 30, 16), plain)
    logits = next_token_logits(model, prompt, 16)
    assert torch.allclose(logits, model(prompt)[:, -1], atol=1e-5)


def test_it_trains_with_chapter_5s_loop():
    tokenizer = get_tokenizer()
    loader = create_dataloader_v1(load_text("short-story")[:1500], 4, 16, 16)
    torch.manual_seed(0)
    model = LlamaModel({**TINY, "vocab_size": 50257, "context_length": 64})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with contextlib.redirect_stdout(io.StringIO()):
        losses, _, _ = train_model_simple(
            model, loader, loader, optimizer, "cpu", 3, 10, 1, "It", tokenizer
        )
    assert abs(losses[0] - 10.825) < 0.1 and losses[-1] < losses[0] - 1


def test_lora_learns_on_it_and_folds_back():
    model, ids = make_model(), make_ids(2, 8)
    before = model(ids)
    model.requires_grad_(False)
    names = replace_linear_with_lora(model, rank=2, alpha=4)
    assert len(names) == 7 * TINY["n_layers"] and "out_head" not in names
    assert torch.allclose(model(ids), before, atol=1e-6)
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(parameter, std=0.1)
    learned = model(ids)
    assert not torch.allclose(learned, before, atol=1e-3)
    merge_lora(model)
    assert torch.allclose(model(ids), learned, atol=1e-5)


def test_it_exists_in_half_precision_and_without_memory():
    model, ids = make_model(), make_ids(2, 8)
    rough = copy.deepcopy(model).bfloat16()(ids)
    assert rough.dtype == torch.bfloat16
    assert torch.allclose(rough.float(), model(ids), atol=0.3)
    with torch.device("meta"):
        empty = LlamaModel(TINY)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(ids), model(ids))


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n_heads": 5}, ValueError, "emb_dim 24 is not divisible by n_heads 5"),
        ({"n_kv_heads": 3}, ValueError, "n_heads 4 is not divisible by n_kv_heads 3"),
        ({"n_heads": 8}, ValueError, "3 numbers has no two halves"),
        ({"n_layers": 0}, ValueError, "n_layers must be 1 or more, not 0"),
        ({"hidden_dim": 2.5}, TypeError, "hidden_dim must be a whole number, not 2.5"),
        ({"vocab_size": True}, TypeError, "vocab_size must be a whole number"),
        ({"rope_base": "10000"}, TypeError, "rope_base must be a number"),
        ({"rope_base": 1}, ValueError, "rope_base must be above 1, not 1"),
        ({"rope_base": float("nan")}, ValueError, "rope_base must be above 1"),
        ({"norm_eps": 0.0}, ValueError, "norm_eps must be small, not 0.0"),
        ({"drop_rate": 0.1}, KeyError, "config key 'drop_rate' is unknown"),
    ],
)
def test_settings_that_describe_no_model_are_refused(change, error, words):
    with pytest.raises(error, match=words.replace(".", r"\.")):
        LlamaModel({**TINY, **change})


def test_missing_settings_are_refused():
    with pytest.raises(KeyError, match="config key 'rope_base' is missing"):
        check_llama_config({k: v for k, v in TINY.items() if k != "rope_base"})
    with pytest.raises(TypeError, match="must be a dict such as SMOLLM2_135M"):
        check_llama_config(None)


def test_texts_that_do_not_fit_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="17 tokens do not fit into context_length 16"):
        model(make_ids(1, 17))
    cache = model.new_cache()
    model.features(make_ids(1, 16), cache)
    with pytest.raises(ValueError, match="17 tokens do not fit"):
        model(make_ids(1, 1), cache)
    with pytest.raises(ValueError, match="max_length must be between 1 and"):
        model.new_cache(17)
    with pytest.raises(ValueError, match="the cache has 1 layers and the model 3"):
        model(make_ids(1, 2), [KVCache(4)])


@pytest.mark.parametrize("bad", [-1, 61])
def test_unknown_ids_are_named(bad):
    ids = make_ids(1, 4)
    ids[0, 2] = bad
    with pytest.raises(IndexError, match=rf"token id {bad} is out of range"):
        make_model()(ids)


def test_what_is_no_batch_of_ids_is_refused():
    with pytest.raises(TypeError, match="must be int64"):
        make_model()(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="shape"):
        make_model()(make_ids(3))


# The comparison


def test_all_changes_make_a_llama_of_a_gpt():
    swapped = compare.model_for(compare.CHANGES, 0, TINY)
    model = LlamaModel(TINY)
    model.load_state_dict(swapped.state_dict())
    ids = make_ids(2, 16)
    assert torch.allclose(swapped(ids), model(ids), atol=1e-6)


def test_the_control_is_gpt_2_without_its_position_vectors():
    own = dict(compare.model_for((), 0, TINY).named_parameters())
    control = dict(compare.model_for(("no positions",), 0, TINY).named_parameters())
    del own["pos_emb.weight"]
    assert own.keys() == control.keys()
    assert all(torch.equal(own[name], control[name]) for name in own)


@pytest.mark.parametrize("change", compare.CHANGES)
def test_each_change_changes_its_part_alone(change):
    def parts(changes):
        model = compare.model_for(changes, 0, TINY)
        att = model.trf_blocks[0].att
        linear = [m for m in model.trf_blocks.modules() if isinstance(m, nn.Linear)]
        return {
            "rotation": type(model.pos_emb).__name__,
            "RMSNorm": {type(model.final_norm), type(model.trf_blocks[0].norm2)},
            "SwiGLU": type(model.trf_blocks[0].ff),
            "grouped queries": att.W_key.out_features,
            "no biases": {layer.bias is None for layer in linear},
            "tied head": model.out_head.weight is model.tok_emb.weight,
        }

    before, after = parts(()), parts((change,))
    assert {name for name in before if before[name] != after[name]} == {change}


def test_arms_start_from_the_same_kind_of_weights():
    for changes in compare.ARMS.values():
        model = compare.model_for(changes, 0)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                small = name.endswith(
                    ("out_proj.weight", "layers.2.weight", "down.weight")
                )
                wanted = 0.02 / 8**0.5 if small else 0.02
                assert abs(parameter.std().item() / wanted - 1) < 0.1, name
            else:
                assert len(set(parameter.tolist())) == 1, name


def test_training_learns_and_repeats_itself():
    ids = torch.arange(4000) % 7
    fresh = [compare.model_for((), 0, {**TINY, "context_length": 64}) for _ in range(3)]
    one, again = (compare.train(m, ids, seed=0, steps=3) for m in fresh[:2])
    assert one == again and one[0] > 4
    model = fresh[2]
    assert compare.train(model, ids, seed=0, steps=30)[-1] < 2
    by_place = compare.loss_by_place(model, ids, 64)
    assert by_place.shape == (64,) and by_place.mean() < 2


def test_texts_for_training_are_not_held_out():
    train, val = compare.course_text()
    assert train.max() < compare.SMALL["vocab_size"]
    assert 8 < len(train) / len(val) < 10


def test_the_record_is_of_these_settings(tmp_path):
    runs = compare.read_record()
    assert set(runs["arm"]) == set(compare.ARMS)
    counts = runs.groupby("arm")["seed"].nunique()
    assert (counts == counts.iloc[0]).all() and counts.iloc[0] >= 3
    for arm, found in runs.groupby("arm")["parameters"]:
        model = compare.model_for(compare.ARMS[arm], 0)
        assert set(found) == {sum(p.numel() for p in model.parameters())}
    record = json.loads(compare.RECORD.read_text())
    record["training"]["rate"] = 1.0
    (tmp_path / "other.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="another training"):
        compare.read_record(tmp_path / "other.json")
