"""Chapter 5: checkpoints, GPT-2's format, and the course's own base model."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache, partialmethod
from pathlib import Path

import huggingface_hub
import models
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import by_columns, nudged_gpt, same_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from appendix_e_lora.lora import replace_linear_with_lora
from appendix_f_speed.writing import packed
from ch05_pretraining import gpt2_files, tensor_files, weights
from ch05_pretraining.copying import (
    attention_inputs,
    previous_token_scores,
    random_text_twice,
)
from shared import data
from shared.ch03 import attention_weights
from shared.ch04 import GPT2_CONFIGS, GPTModel
from shared.ch05 import (
    TensorFile,
    build_pretrained,
    calc_loss_batch,
    download_and_load_gpt2,
    load_base,
    load_base_tokenizer,
    load_checkpoint,
    load_weights_into_gpt,
    model_from_checkpoint,
    read_gpt2_folder,
    save_checkpoint,
    save_gpt2_folder,
    text_to_token_ids,
)
from shared.ch06 import GPTClassifier
from shared.ch08 import LlamaModel

V = models.TINY["vocab_size"]
TINY = {**models.TINY, "context_length": 12, "n_layers": 2, "drop_rate": 0.2}


def tiny_model(seed=1, **changes):
    """A model whose every number, biases and norms too, is random and not small."""
    return nudged_gpt({**TINY, **changes}, seed)


def one_step(model, optimizer, seed=5):
    """A step of training on random ids, dropout on."""
    ids = torch.randint(V, (2, 13), generator=torch.Generator().manual_seed(seed))
    model.train()
    optimizer.zero_grad()
    calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu").backward()
    optimizer.step()


def trained_run(path, optimizer=torch.optim.AdamW, **changes):
    """A model and its optimiser after three steps, saved."""
    torch.manual_seed(3)
    model = GPTModel({**TINY, **changes})
    adam = {"betas": (0.8, 0.9)} if optimizer is torch.optim.AdamW else {}
    optimizer = optimizer(model.parameters(), lr=0.01, **adam)
    for seed in range(3):
        one_step(model, optimizer, seed)
    progress = {"step": 3, "history": [[0, 1.5]], "dice": torch.get_rng_state()}
    save_checkpoint(path, model, optimizer, progress)
    return model, optimizer


# Checkpoints


@pytest.mark.parametrize(
    ("kind", "tied"), [(torch.optim.AdamW, True), (torch.optim.SGD, False)]
)
def test_resumed_run_equals_one_that_was_not_stopped(tmp_path, kind, tied):
    """Bit for bit, with dropout, in a model and an optimiser that were others."""
    path = tmp_path / "deep" / "er" / "run.safetensors"
    whole, optimizer = trained_run(path, kind, tie_weights=tied)
    assert list(path.parent.iterdir()) == [path]
    for seed in (3, 4):
        one_step(whole, optimizer, seed)
    model = tiny_model(9, tie_weights=tied)
    other = kind(model.parameters(), lr=1.0)
    one_step(model, other)
    progress = load_checkpoint(path, model, other)
    assert progress.keys() == {"step", "history", "dice"}
    assert (progress["step"], progress["history"]) == (3, [[0, 1.5]])
    torch.set_rng_state(progress["dice"])
    for seed in (3, 4):
        one_step(model, other, seed)
    assert same_weights(whole, model)
    assert (model.out_head.weight is model.tok_emb.weight) == tied


def test_checkpoint_works_for_models_without_config_and_with_buffers(tmp_path):
    path = tmp_path / "net.safetensors"
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net(torch.randn(8, 3))
    save_checkpoint(path, net)
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    load_checkpoint(path, other)
    assert same_weights(net, other)


@pytest.mark.parametrize(
    "change", [nn.Module.bfloat16, by_columns], ids=["bfloat16", "by columns"]
)
def test_checkpoint_of_other_numbers_or_another_layout(tmp_path, change):
    path = tmp_path / "model.safetensors"
    one, other = tiny_model(tie_weights=True), tiny_model(2, tie_weights=True)
    for model in (one, other):
        change(model)
    save_checkpoint(path, one)
    assert load_checkpoint(path, other) is None
    assert same_weights(one, other)


def test_nothing_of_the_file_can_be_executed_and_names_are_readable(tmp_path):
    path = tmp_path / "run.safetensors"
    trained_run(path)
    tensors = load_file(path)
    assert "model.trf_blocks.1.att.W_query.weight" in tensors
    assert "optimizer.trf_blocks.1.att.W_query.weight:exp_avg" in tensors
    assert {name.split(".")[0] for name in tensors} == {
        "model",
        "optimizer",
        "progress",
    }
    record = json.loads(TensorFile(path).metadata["checkpoint"])
    assert record["config"] == TINY
    assert record["progress"]["step"] == 3


def unchanged_after(action, message, model, optimizer=None):
    """Run `action`, which must fail with this message and change nothing."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = None if optimizer is None else str(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        action()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert optimizer is None or str(optimizer.state_dict()) == state


def test_damage_is_noticed_wherever_it_is(tmp_path):
    """Each of some bits flipped, and files that were cut short."""
    path = tmp_path / "run.safetensors"
    trained_run(path)
    contents, model = path.read_bytes(), tiny_model(2)
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(contents), (20,), generator=generator).tolist()
    shares = (0.0, 0.00001, 0.3, 0.9999)
    damaged = [
        (contents[: int(share * len(contents))], "cut short") for share in shares
    ]
    for place in [*places, 3, 20, len(contents) - 1]:
        changed = bytearray(contents)
        changed[place] ^= 1
        damaged.append((changed, ""))
    for changed, message in damaged:
        path.write_bytes(changed)
        message = f"run.safetensors.*{message}"
        unchanged_after(lambda: load_checkpoint(path, model), message, model)


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
        unchanged_after(lambda m=model: load_checkpoint(path, m), message, model)
    # Dropout has no weights: it matters for going on, not for using the model.
    load_checkpoint(path, tiny_model(2, drop_rate=0.0, tie_weights=False))
    model = tiny_model(2, drop_rate=0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    unchanged_after(
        lambda: load_checkpoint(path, model, optimizer),
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
        unchanged_after(lambda n=net: load_checkpoint(path, n), message, net)


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
            message,
            model,
            optimizer,
        )
    save_checkpoint(path, model)
    with pytest.raises(ValueError, match="holds a model only"):
        load_checkpoint(path, model, torch.optim.AdamW(parameters))
    with pytest.raises(ValueError, match="not the model's"):
        save_checkpoint(path, tiny_model(2), torch.optim.AdamW(parameters))


def test_optimizer_state_that_is_no_tensor_is_refused(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.LBFGS(model.parameters())
    ids = torch.randint(V, (1, 9))
    loss = calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu")
    loss.backward()
    optimizer.step(lambda: loss)
    with pytest.raises(TypeError, match="LBFGS keeps"):
        save_checkpoint(tmp_path / "x.safetensors", model, optimizer)
    assert not list(tmp_path.iterdir())


def test_a_model_whose_sizes_are_numpys_is_saved_as_any_other(tmp_path):
    sizes = {k: np.int64(v) for k, v in TINY.items() if type(v) is int}
    ours = tiny_model(**sizes, drop_rate=np.float32(0.25))
    save_gpt2_folder(ours, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert settings["n_embd"] == TINY["emb_dim"] and settings["attn_pdrop"] == 0.25
    save_checkpoint(tmp_path / "mine.safetensors", ours)
    assert same_weights(model_from_checkpoint(tmp_path / "mine.safetensors"), ours)


def test_failed_save_is_an_os_error_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tiny_model())
    contents = path.read_bytes()

    def write_half(tensors, filename, metadata):
        filename.write_bytes(contents[: len(contents) // 2])
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", write_half)
    with pytest.raises(OSError, match="model.safetensors could not be written"):
        save_checkpoint(path, tiny_model(2))
    assert path.read_bytes() == contents
    assert list(tmp_path.iterdir()) == [path]


# Files from strangers


def with_record(path, record, tensors):
    """A checkpoint with this header, and a sha256 that fits it."""
    if isinstance(record, dict) and "sha256" not in record:
        digest = tensor_files._sha256(record, tensors)
        record = {**record, "sha256": digest}
    save_file(tensors, path, {"checkpoint": json.dumps(record)})


RECORDS = st.recursive(
    st.sampled_from([None, True, 5, -1, "AdamW", "tok_emb.weight", 10**18]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["config", "optimizer", "progress", "kind", "groups", "params"]
                + ["sha256", "emb_dim", "n_layers"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(record=RECORDS)
@example(record={"config": None, "optimizer": {"kind": "AdamW", "groups": [None]}})
@example(record={"config": None, "optimizer": {"kind": "AdamW", "groups": [{}]}})
@example(record={"config": None, "optimizer": {"kind": 1, "groups": []}})
@example(record={"config": {"emb_dim": 24}})
def test_hostile_records_are_value_errors(tmp_path_factory, record):
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    model, optimizer, tensors = victim()
    with_record(path, record, tensors)
    for action in (
        lambda: load_checkpoint(path, model, optimizer),
        lambda: model_from_checkpoint(path),
    ):
        unchanged_after(action, "hostile", model, optimizer)


@cache
def victim():
    model = GPTModel({**TINY, "emb_dim": 3, "n_layers": 1})
    tensors = {f"model.{n}": t.detach() for n, t in model.named_parameters()}
    return model, torch.optim.AdamW(model.parameters()), tensors


def test_record_that_is_no_json_is_a_value_error(tmp_path):
    path = tmp_path / "hostile.safetensors"
    for text in ("", "{", "[" * 100_000):
        save_file({"model.x": torch.ones(1)}, path, {"checkpoint": text})
        with pytest.raises(ValueError, match="hostile.safetensors is damaged"):
            load_checkpoint(path, tiny_model())


def test_unknown_state_of_an_optimizer_is_a_value_error(tmp_path):
    path = tmp_path / "hostile.safetensors"
    model, optimizer = trained_run(path)
    file = TensorFile(path)
    record = json.loads(file.metadata["checkpoint"])
    del record["sha256"]
    tensors = {name: file[name].clone() for name in file}
    with_record(path, record, {**tensors, "optimizer.evil:step": torch.ones(1)})
    with pytest.raises(ValueError, match="state of 'evil', which the model lacks"):
        load_checkpoint(path, model, optimizer)


def test_model_comes_from_its_checkpoint_alone(tmp_path):
    path = tmp_path / "model.safetensors"
    model = tiny_model(tie_weights=True)
    save_checkpoint(path, model)
    found = model_from_checkpoint(path)
    assert same_weights(model, found) and not found.training
    assert found.out_head.weight is found.tok_emb.weight


HOSTILE_SETTINGS = [
    *({"n_layers": x} for x in (10**18, True, -1, "2", None)),
    *({"emb_dim": 10**15}, {"vocab_size": 10**9}, {"context_length": 10**9}),
    *({"n_heads": 10**12}, {"n_heads": 5}),
]


@pytest.mark.parametrize("change", HOSTILE_SETTINGS, ids=str)
def test_settings_are_believed_only_if_the_tensors_bear_them_out(tmp_path, change):
    """Before anything is built: a few bytes asked for gigabytes, and got them."""
    model = tiny_model(qkv_bias=True)
    model.cfg.update(change)
    checkpoint, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_checkpoint(checkpoint, model)
    start = time.process_time()
    with pytest.raises(ValueError, match="model.safetensors"):
        model_from_checkpoint(checkpoint)
    save_gpt2_folder(tiny_model(qkv_bias=True), tmp_path)
    theirs = {"n_layers": "n_layer", "emb_dim": "n_embd", "n_heads": "n_head"}
    theirs |= {"vocab_size": "vocab_size", "context_length": "n_positions"}
    published = json.loads(config.read_text())
    published |= {theirs[key]: value for key, value in change.items()}
    config.write_text(json.dumps(published))
    with pytest.raises(ValueError, match="config.json"):
        read_gpt2_folder(tmp_path)
    assert time.process_time() - start < 5


def test_wide_blocks_of_a_narrow_file_are_never_built(tmp_path):
    """The embeddings fit their settings, the blocks would be a hundred times larger."""
    wide = {"model.tok_emb.weight": (1, 4096), "model.pos_emb.weight": (1, 4096)}
    tensors = {name: torch.zeros(shape) for name, shape in wide.items()}
    tensors |= {f"model.x{i}": torch.zeros(1) for i in range(90)}
    config = {**TINY, "vocab_size": 1, "context_length": 1, "emb_dim": 4096}
    path = tmp_path / "wide.safetensors"
    with_record(path, {"config": {**config, "n_layers": 10, "n_heads": 1}}, tensors)
    start = time.process_time()
    with pytest.raises(ValueError, match="asks for n_layers 10 of emb_dim 4096"):
        model_from_checkpoint(path)
    assert time.process_time() - start < 5  # 2 thousand million numbers otherwise


@pytest.mark.parametrize(
    "change",
    [{"resid_pdrop": "x"}, {"resid_pdrop": 7}, {"tie_word_embeddings": "yes"}],
    ids=str,
)
def test_settings_of_a_wrong_type_are_value_errors(tmp_path, change):
    save_gpt2_folder(tiny_model(qkv_bias=True), tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ValueError, match="config.json: its settings build no model"):
        read_gpt2_folder(tmp_path)


def entry(**changes):
    """A header with a single tensor, something wrong with it."""
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    return json.dumps({"a": good}).encode()


@settings(deadline=None, derandomize=True)
@given(header=st.binary(max_size=40), length=st.none() | st.just(2**63))
@example(header=b"null", length=None)
@example(header=entry(dtype="F99"), length=None)
@example(header=entry(shape=[-1]), length=None)
@example(header=entry(shape=[2**62, 8]), length=None)
@example(header=entry(data_offsets=[0, 99999999]), length=None)
def test_hostile_indexes_of_tensors_are_value_errors(tmp_path_factory, header, length):
    path = tmp_path_factory.getbasetemp() / "hostile.safetensors"
    length = (len(header) if length is None else length).to_bytes(8, "little")
    path.write_bytes(length + header + bytes(4))
    with pytest.raises(ValueError, match="hostile.safetensors"):
        TensorFile(path)


def test_tensors_of_odd_types_are_refused_or_read(tmp_path):
    path = tmp_path / "odd.safetensors"
    for dtype, size in (("F8_E4M3", 1), ("U64", 8), ("C64", 8), ("F4", 1), ("BOOL", 1)):
        shape = 2 if dtype == "F4" else 1
        header = {"a": {"dtype": dtype, "shape": [shape], "data_offsets": [0, size]}}
        header["__metadata__"] = {"checkpoint": '{"config": null, "sha256": ""}'}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        with pytest.raises(ValueError, match="odd.safetensors"):
            load_checkpoint(path, tiny_model())


def test_empty_rows_without_end_cost_no_time(tmp_path):
    """Two heads of 10^12 empty rows were compared 4 million rows at a time."""
    save_gpt2_folder(tiny_model(qkv_bias=True, tie_weights=True), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    empty = torch.zeros(10**12, 0)
    tensors |= {"lm_head.weight": empty, "transformer.wte.weight": empty.clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    start = time.process_time()
    with pytest.raises(ValueError, match="asks for embeddings of shape"):
        read_gpt2_folder(tmp_path)
    model = tiny_model(qkv_bias=True, tie_weights=True)
    with pytest.raises(ValueError, match="wte.weight has the shape"):
        load_weights_into_gpt(model, tensors)
    assert time.process_time() - start < 2


def test_books_tensorflow_dictionaries_are_refused_with_the_way_out():
    params = {"blocks": [{"attn": {}}], "wpe": 0, "wte": 0, "g": 0, "b": 0}
    with pytest.raises(ValueError, match="download_and_load_gpt2.*of shared.ch05"):
        load_weights_into_gpt(tiny_model(qkv_bias=True), params)


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


@pytest.mark.parametrize(("tied", "qkv_bias"), [(True, True), (False, False)])
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


def test_the_deepest_layout_with_a_reduced_width(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = GPT2_CONFIGS["1558M"]
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
from shared.ch05 import build_pretrained, read_gpt2_folder

def memory(key):  # in bytes; VmRSS: now, VmHWM: the most so far
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(key)) * 1024

before = memory("VmRSS")
settings, params = read_gpt2_folder(sys.argv[1])
model = build_pretrained(settings, params)
peak = memory("VmHWM") - before
print(peak / sum(parameter.nbytes for parameter in model.parameters()))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)
def test_loading_peaks_at_little_more_than_the_model(tmp_path):
    """A model that is large beside what a Python process needs otherwise: 180 MB."""
    config = {**GPT2_CONFIGS["124M"], "emb_dim": 512, "n_heads": 8, "n_layers": 6}
    save_gpt2_folder(GPTModel(config), tmp_path)
    command = [sys.executable, "-c", LOAD_AND_MEASURE, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert 0.9 < float(done.stdout) <= 1.2, done.stdout + done.stderr


# The course's own base model


@pytest.fixture(scope="module")
def base():
    return load_base()


def test_base_is_float32_and_ready_for_use(base):
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
    assert not base.training
    assert base.cfg["vocab_size"] == load_base_tokenizer().n_vocab
    assert base.out_head.weight is base.tok_emb.weight
    assert data.FILES["base/model.safetensors"].size <= 45_000_000


def test_transformers_loads_the_base(base):
    from transformers import AutoModelForCausalLM

    folder = data.get("base/config.json").parent
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = text_to_token_ids(data.load_text("held-out")[:400], load_base_tokenizer())
    with torch.no_grad():
        ours, logits = base(prompt), theirs.eval()(prompt).logits
    assert (ours - logits).abs().max() < 1e-4


def test_base_guesses_far_better_than_evenly_on_text_of_another_kind(base):
    ids = text_to_token_ids(data.load_text("held-out"), load_base_tokenizer())
    windows = ids[0, : 8 * 129].view(8, 129)
    with torch.no_grad():
        loss = calc_loss_batch(windows[:, :-1], windows[:, 1:], base, "cpu")
    assert loss < math.log(base.cfg["vocab_size"] / 10)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_base_is_named_with_the_remedy(tmp_path, monkeypatch, name):
    shutil.copytree(data.REPOSITORY_DATA / "base", tmp_path / "base")
    monkeypatch.setattr(data, "REPOSITORY_DATA", tmp_path)
    load = load_base_tokenizer if name == "tokenizer.json" else load_base
    path = tmp_path / "base" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(data.DataUnavailable, match=f"git checkout -- data/base/{name}"):
        load()


def test_tokens_of_the_base_end_with_the_one_that_ends_a_text(base):
    tokenizer = load_base_tokenizer()
    text = "Once upon a time, a fox said: “Où est-il?”\n\nThe end.<|endoftext|>"
    ids = text_to_token_ids(text, tokenizer)
    assert ids[0, -1] == tokenizer.eot_token == base.cfg["vocab_size"] - 1
    assert tokenizer.decode(ids[0].tolist()) == text


def log_of_run(run):
    lines = data.get(f"base/log-{run}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("run", range(1, 9))
def test_log_of_the_base_is_of_this_model(base, run):
    """In the first four runs it had GPT-2's tokens, and so a larger table."""
    log = log_of_run(run)
    assert log[0]["event"] == "start" and log[-1]["event"] == "end"
    V = 50_257 if run < 5 else base.cfg["vocab_size"]
    wider = (V - base.cfg["vocab_size"]) * base.cfg["emb_dim"]
    parameters = sum(p.numel() for p in base.parameters()) + wider
    assert log[0]["parameters"] == parameters
    assert log[0]["settings"]["model"] == {**base.cfg, "vocab_size": V}
    train = [line for line in log if line["event"] == "train"]
    assert log[-1]["tokens"] == train[-1]["tokens"]
    steps = [line["step"] for line in train]
    assert steps == sorted(set(steps)) and steps[-1] == log[-1]["step"]


def test_the_last_log_shows_how_the_base_learned_to_write():
    log = log_of_run(8)
    samples = [line for line in log if line["event"] == "sample"]
    prompts = log[0]["settings"]["prompts"]
    steps = [sample["step"] for sample in samples]
    powers = [2**n for n in range(20) if 2**n <= log[-1]["step"]]
    assert [step for step in steps if step.bit_count() < 2] == [0, *powers]
    for sample in samples:
        pairs = zip(sample["texts"], prompts, strict=True)
        assert all(text.startswith(prompt) for text, prompt in pairs)
    assert len({sample["texts"][0] for sample in samples}) > len(samples) / 2


def test_previous_token_scores_are_those_of_a_loop():
    gpt, ids = tiny_model(drop_rate=0.0).eval(), random_text_twice(2, 6, V)
    scores, inputs = previous_token_scores(gpt, ids), attention_inputs(gpt, ids)
    weights = attention_weights(gpt.trf_blocks[1].att, inputs[1])  # (B, H, T, T)
    for head in range(3):
        seen = [weights[b, head, t, t - 1] for b in range(2) for t in range(1, 12)]
        assert torch.isclose(scores[1, head], sum(seen) / len(seen))
    assert scores.shape == (2, 3)


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
    monkeypatch.setattr(weights, "GPT2_CONFIGS", {"124M": small})
    save_gpt2_folder(tiny_model(qkv_bias=True, tie_weights=True), source)
    sha256 = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(gpt2_files.GPT2_SHA256, "openai-community/gpt2", sha256)
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


def test_fetched_weights_that_were_not_published_are_deleted(hub, tmp_path):
    file = hub.source / "model.safetensors"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))  # another number, no more
    with pytest.raises(
        data.DataUnavailable, match="not what was published: sha256 .* deleted"
    ):
        download_and_load_gpt2("124M", tmp_path)
    assert not (tmp_path / "124M" / "model.safetensors").exists()
    file.write_bytes(intact)
    download_and_load_gpt2("124M", tmp_path)


def test_published_checksums_are_of_known_repositories():
    known = set(weights.GPT2_REPOSITORIES.values())
    assert known - gpt2_files.GPT2_SHA256.keys() == {"openai-community/gpt2-large"}
    for repository, sha256 in gpt2_files.GPT2_SHA256.items():
        assert repository in known and re.fullmatch("[0-9a-f]{64}", sha256)


def test_repositories_are_those_of_the_four_sizes():
    assert weights.GPT2_REPOSITORIES.keys() == GPT2_CONFIGS.keys()


# Models that a file cannot hold


def with_lora():
    model = tiny_model().requires_grad_(False)
    replace_linear_with_lora(model, 2, 2)
    return model


def inside_of_a_classifier(**changes):
    return GPTClassifier(tiny_model(**changes), pad_token_id=0).gpt


def with_nan():
    model = tiny_model()
    model.trf_blocks[1].ff.layers[0].weight.data[3, 4] = math.nan
    return model


def with_a_head_of_its_own():
    model = tiny_model(tie_weights=True)
    model.out_head.weight = nn.Parameter(model.out_head.weight.detach().clone())
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (with_lora, "LinearWithLoRA.*merge_lora"),
        (
            lambda: packed(tiny_model(), 2),
            "PackedLinear: save the model that was packed",
        ),
        (lambda: GPTClassifier(tiny_model(), pad_token_id=0), "is a GPTClassifier"),
        (inside_of_a_classifier, "out_head has 2 rows and the vocabulary 61"),
        (lambda: inside_of_a_classifier(tie_weights=True), "inside of a classifier"),
        (with_nan, r"1 of the 2,304 numbers in trf_blocks.1.ff.layers.0.weight"),
        (with_a_head_of_its_own, "tie_weights"),
        (lambda: nn.Linear(2, 2), "not a Linear"),
    ],
)
def test_what_gpt2s_format_cannot_hold_is_refused_before_writing(
    make, message, tmp_path
):
    model = make()
    with pytest.raises((TypeError, ValueError), match=message):
        save_gpt2_folder(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_wrappers_are_taken_off(tmp_path):
    model = tiny_model()
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    save_gpt2_folder(wrapped, tmp_path)
    settings, file = read_gpt2_folder(tmp_path)
    assert torch.equal(file["transformer.wte.weight"], model.tok_emb.weight)
    path = tmp_path / "model.safetensors"
    optimizer = torch.optim.AdamW(wrapped.parameters())
    save_checkpoint(path, wrapped, optimizer, {"step": 3})
    assert same_weights(model_from_checkpoint(path), model)
    other = torch.compile(tiny_model(seed=2), backend="eager")
    settings = torch.optim.AdamW(other.parameters())
    assert load_checkpoint(path, other, settings) == {"step": 3}
    assert same_weights(other._orig_mod, model)


@pytest.mark.parametrize(
    "make, message",
    [
        (with_lora, "merge_lora"),
        (lambda: GPTClassifier(tiny_model(), pad_token_id=0), "load_classifier"),
        (lambda: instructed(tiny_model()), "load_instructed"),
        (lambda: LlamaModel({**LLAMA}), "build=LlamaModel"),
    ],
)
def test_a_checkpoint_of_another_kind_of_model_says_what_reads_it(
    make, message, tmp_path
):
    path = tmp_path / "file.safetensors"
    save_checkpoint(path, make())
    with pytest.raises(ValueError, match=f"holds no plain GPTModel.*{message}"):
        model_from_checkpoint(path)


LLAMA = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 2,
    "n_kv_heads": 1,
    "n_layers": 1,
    "hidden_dim": 32,
    "rope_base": 10_000.0,
    "norm_eps": 1e-5,
}


def instructed(model):
    model.cfg = {**model.cfg, "prompt_style": "chat"}
    return model


def test_progress_keeps_its_values_or_is_refused_by_name(tmp_path):
    model, path = tiny_model(), tmp_path / "file.safetensors"
    shared = torch.arange(4.0)
    progress = {
        "best": np.float32(0.5),
        "seen": np.int64(7),
        "rate": torch.tensor(0.25),
        "losses": [np.float64(1.5), (2, 3)],
        "one": shared,
        "other": shared,
        "end": shared[2:],
    }
    save_checkpoint(path, model, progress=progress)
    found = load_checkpoint(path, model)
    assert found["best"] == 0.5 and found["seen"] == 7 and found["rate"] == 0.25
    assert found["losses"] == [1.5, [2, 3]] and type(found["seen"]) is int
    assert torch.equal(found["one"], shared) and torch.equal(found["other"], shared)
    assert found["end"].tolist() == [2.0, 3.0]
    for wrong, message in (
        ({"scores": {1: 0.5}}, r"\['progress'\]\['scores'\] has the key 1"),
        ({"when": {"now": object()}}, r"\['now'\] is a object"),
        ({"rows": np.ones(3)}, r"\['rows'\] is a ndarray"),
    ):
        with pytest.raises(TypeError, match=message):
            save_checkpoint(path, model, progress=wrong)
    assert load_checkpoint(path, model)["seen"] == 7  # the older one is still there


def test_a_rate_that_is_a_tensor_stays_one(tmp_path):
    model, path = tiny_model(), tmp_path / "file.safetensors"
    rate = torch.tensor(0.125)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    save_checkpoint(path, model, optimizer)
    fresh = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5))
    load_checkpoint(path, model, fresh)
    assert torch.equal(fresh.param_groups[0]["lr"], rate)


def test_a_name_as_long_as_a_system_allows(tmp_path):
    path = tmp_path / ("n" * 243 + ".safetensors")
    save_checkpoint(path, tiny_model())
    assert model_from_checkpoint(path).cfg["emb_dim"] == 24


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin"])
def test_weights_in_parts_or_in_a_pickle_say_how_to_go_on(name, tmp_path):
    save_gpt2_folder(tiny_model(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="but .*save_pretrained"):
        read_gpt2_folder(tmp_path)


def test_the_same_function_by_another_name(tmp_path):
    save_gpt2_folder(tiny_model(), tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text().replace("gelu_new", "gelu_pytorch_tanh")
    path.write_text(text)
    assert read_gpt2_folder(tmp_path)[0]["emb_dim"] == 24
    path.write_text(text.replace("gelu_pytorch_tanh", "gelu"))
    with pytest.raises(ValueError, match="gelu"):
        read_gpt2_folder(tmp_path)
