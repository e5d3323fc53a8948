"""Small ways to break the course that its other tests once let pass.

Each test fails for a change that is named in its docstring; `tools.mutants` makes such
changes, and docs/reliability.md tells which survive.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from models import TINY, Letters, nudged_gpt
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ch07_instructions.judging import parse_score
from ch07_instructions.scoring import (
    bootstrap_interval,
    classifier_answers,
    constant_answers,
    echo_answers,
    nearest_answers,
)
from conftest import TolerantText
from shared.ch02 import SimpleTokenizerV1
from shared.ch04 import TransformerBlock
from shared.ch05 import (
    build_pretrained,
    calc_loss_batch,
    next_token_probabilities,
    read_gpt2_folder,
    save_gpt2_folder,
    train_model_simple,
)
from shared.ch06 import (
    GPTClassifier,
    SpamDataset,
    classify_review,
    last_real_position,
    train_classifier_simple,
)
from shared.ch07 import custom_collate_fn


def modes_while_learning(model):
    """A list that gets the model's mode at each pass that will be learned from."""
    modes = []

    def note(module, inputs):
        if torch.is_grad_enabled():
            modes.append(module.training)

    model.register_forward_pre_hook(note)
    return modes


def test_training_switches_dropout_on_in_a_model_that_was_only_used_before():
    """Chapter 5's loop without `model.train()`."""
    model = nudged_gpt({**TINY, "drop_rate": 0.5}).eval()
    ids = torch.randint(61, (4, 8), generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(ids, ids), 2)
    modes, optimizer = modes_while_learning(model), torch.optim.SGD(model.parameters())
    train_model_simple(
        *(model, loader, loader, optimizer, "cpu", 2, 1, 1, "ab", Letters())
    )
    assert modes == [True] * 4 and model.training


def test_training_a_classifier_switches_dropout_on():
    """Chapter 6's loop without `model.train()`."""
    model = GPTClassifier(nudged_gpt({**TINY, "drop_rate": 0.5}), pad_token_id=0).eval()
    ids = torch.randint(1, 61, (4, 8), generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(ids, torch.tensor([0, 1, 0, 1])), 2)
    modes, optimizer = modes_while_learning(model), torch.optim.SGD(model.parameters())
    train_classifier_simple(model, loader, loader, optimizer, "cpu", 2, 1, 1)
    assert modes == [True] * 4 and model.training


def test_a_block_drops_attention_weights_too():
    """`drop_rate` given to a block's shortcuts, and not to its attention."""
    torch.manual_seed(1)
    block = TransformerBlock({**TINY, "drop_rate": 0.5})
    assert block.att.dropout == 0.5
    block.drop_shortcut = nn.Identity()
    x = torch.randn(1, 6, TINY["emb_dim"])
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


@pytest.mark.parametrize(
    "answers", [constant_answers, nearest_answers, classifier_answers, echo_answers]
)
def test_what_has_to_be_beaten_never_sees_the_reference_answers(answers):
    """The test part among the answers that a baseline chooses from."""
    train = [
        {"kind": "k", "instruction": f"Is the {n} warm?", "output": said}
        for n, said in zip("abcd", ("Yes.", "Yes.", "No.", "No."), strict=True)
    ]
    asked = [
        {**entry, "kind": kind, "instruction": f"Was {entry['instruction'][3:]}"}
        for entry in train
        for kind in ("k", "new")
    ]
    told = [{**entry, "output": "Yes, it is very warm."} for entry in asked]
    untold = [{**entry, "output": ""} for entry in asked]
    assert answers(train, told) == answers(train, untold)
    assert "Yes, it is very warm." not in answers(train, told)


def test_collate_puts_batches_where_it_is_told():
    """`custom_collate_fn` that ignores its `device`."""
    inputs, targets = custom_collate_fn([[1, 2, 3], [4]], device="meta")
    assert inputs.device.type == targets.device.type == "meta"


def test_no_blank_is_left_before_a_mark():
    """V1's `decode` without one of the marks, the apostrophe say."""
    marks = [",", ".", ":", ";", "?", "!", '"', "'", "(", ")"]
    tokenizer = SimpleTokenizerV1({m: i for i, m in enumerate([*marks, "it", "s"])})
    assert tokenizer.decode(tokenizer.encode("it's")) == "it' s"
    for mark in marks:
        assert tokenizer.decode(tokenizer.encode(f"it{mark}")) == f"it{mark}"


def test_a_padding_token_inside_a_text_is_not_its_end():
    """The number of real tokens, instead of the place of the last one."""
    ids = torch.tensor([[1, 0, 3, 0], [0, 0, 0, 4], [0, 2, 0, 0]])
    assert last_real_position(ids, 0).tolist() == [2, 3, 1]


@pytest.mark.parametrize("reply", ["Score: 8/10", "Rating: 4 out of 5", "score 7 / 10"])
def test_a_score_on_another_scale_is_none(reply):
    """A judge's "8/10", read as 8 of 100 where "score" stands before it."""
    assert parse_score(reply) is None


def test_an_interval_follows_from_its_seed_alone():
    """A bootstrap that draws from torch's global dice."""
    values = torch.rand(30, generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for dice in (1, 2):
        torch.manual_seed(dice)
        found.append(bootstrap_interval(values, repeats=50))
    assert found[0] == found[1]
    assert found[0] != bootstrap_interval(values, repeats=50, seed=1)


def test_a_tied_model_is_stored_in_bfloat16(tmp_path):
    """An export in half precision that stores a tied model as it is, or its head."""
    model = nudged_gpt({**TINY, "qkv_bias": True, "tie_weights": True}).eval()
    save_gpt2_folder(model, tmp_path, torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored
    found = build_pretrained(*read_gpt2_folder(tmp_path))
    assert found.out_head.weight is found.tok_emb.weight
    assert torch.equal(found.tok_emb.weight, model.tok_emb.weight.bfloat16().float())


def test_tokens_that_reach_top_p_exactly_are_enough():
    """`top_p` compared by > instead of >=: a token too many."""
    halves = torch.zeros(1, 2)  # two tokens of probability 1/2
    assert next_token_probabilities(halves, top_p=0.5).tolist() == [[1.0, 0.0]]
    quarters = torch.zeros(1, 4)
    found = next_token_probabilities(quarters, top_p=0.5)
    assert (found > 0).sum() == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("loss -0.1234", "loss 0.1234"),
        ("change -0.01", "change 0.01"),
        ("tokens 1000000", "tokens 1000001"),
        ("tokens 1,000", "tokens 1,001"),
        ("1.5 s", "1.6 s"),
        ("[7, 8]", "[7, 9]"),
    ],
)
def test_outputs_that_differ_in_a_sign_or_an_integer_differ(one, other):
    """A tolerance that is blind to a sign, or holds for integers."""
    assert TolerantText(one) != other and TolerantText(one) == one


def test_the_loss_of_a_batch_counts_what_is_not_masked():
    """A mean over all places, or a mask of another number."""
    model = nudged_gpt(TINY).eval()
    ids = torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(1))
    targets = ids.clone()
    targets[0, 3:] = -100
    kept = targets != -100
    expected = F.cross_entropy(model(ids)[kept], ids[kept])
    assert torch.allclose(calc_loss_batch(ids, targets, model, "cpu"), expected)


@pytest.mark.parametrize(
    ("function", "defaults"),
    [
        # None means the tokenizer's own token for the end of a text.
        (SpamDataset, {"max_length": None, "pad_token_id": None}),
        (classify_review, {"max_length": None, "pad_token_id": None}),
        (custom_collate_fn, {"pad_token_id": 50256, "ignore_index": -100}),
    ],
)
def test_defaults_are_the_book_s(function, defaults):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults
