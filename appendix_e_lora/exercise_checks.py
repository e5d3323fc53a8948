"""Checks for the exercises of appendix E: each says what is wrong, and hints at why."""

from collections.abc import Callable
from numbers import Number

import torch
from torch import nn

from shared.appendix_e import LinearWithLoRA, LoRALayer, replace_linear_with_lora
from shared.ch04 import GPTConfig, GPTModel
from shared.exercises import require_answer

TINY = {
    "vocab_size": 50,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 4,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
}
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def _tiny_model(**changes: object) -> GPTModel:
    """A frozen model with weights large enough to see a change."""
    torch.manual_seed(4)
    model = GPTModel({**TINY, **changes}).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter *= 8
    return model


def _trained(model: nn.Module) -> nn.Module:
    """The model, with random numbers in each B."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.modules():
        if isinstance(layer, LoRALayer):
            values = torch.randn(layer.B.shape, generator=generator)
            layer.B.data = values / 4
    return model


def _learning(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _require_number(found: object, name: str) -> None:
    """Refuse what cannot be compared with a number."""
    require_answer(found, name)
    assert isinstance(found, Number) or (
        isinstance(found, torch.Tensor) and found.numel() == 1
    ), f"{name} should return one number, not a {type(found).__name__}: {found!r}"


def lora_parameters(count: Callable[[GPTConfig, int], int]) -> None:
    """Exercise 1: the numbers that learn, for tied and untied heads."""
    for tied in (True, False):
        model = _tiny_model(tie_weights=tied)
        replace_linear_with_lora(model, 5, 10)
        found, wanted = count({**TINY, "tie_weights": tied}, 5), _learning(model)
        _require_number(found, "lora_parameters")
        head = 5 * (24 + 50)
        kind = "tied" if tied else "untied"
        hint = "four matrices of a block go from C to C, one from C to 4C, one back"
        if found == wanted + head:
            hint = "a tied head gets no update"
        elif found == wanted - head:
            hint = "an untied head gets an update too, from C to V"
        elif found == 5 * wanted or 5 * found == wanted:
            hint = "the rank counts once for each layer"
        assert found == wanted, (
            f"a model with a {kind} head, width 24, 3 blocks and vocabulary 50 has "
            f"{wanted:,} numbers that learn at rank 5, not {found:,}; {hint}"
        )
    try:
        found = count({**TINY}, 5)
    except KeyError:
        found = "a KeyError"
    assert found == wanted, (
        "a config without tie_weights is that of an untied model, as with False, for "
        f"which the answer was {wanted:,}; without it, it is {found}; "
        'cfg.get("tie_weights", False) knows both'
    )
    print("Right: as many as PyTorch counts.")


def set_strength(change: Callable[[nn.Module, float], None]) -> None:
    """Exercise 2: s = 0 is the base, 1 the trained model, and one can come back."""
    model = _tiny_model()
    with torch.no_grad():
        base = model(IDS)
        replace_linear_with_lora(model, 4, 8)
        finetuned = _trained(model)(IDS)
        values = {name: p.clone() for name, p in model.named_parameters()}
        change(model, 0)
        assert not torch.equal(model(IDS), finetuned), (
            "after set_strength(model, 0) the model still gives the finetuned logits; "
            "replace the `...`, and visit the layers with model.modules()"
        )
        assert torch.allclose(model(IDS), base, atol=1e-5), (
            "with s = 0 every update should count nothing, as in the base model"
        )
        change(model, 1)
        assert torch.allclose(model(IDS), finetuned, atol=1e-4), (
            "after s = 0 and then s = 1 the model should be the finetuned one again; "
            "compute the scaling from alpha, rank and s, not from the last scaling"
        )
        change(model, 0.5)
        layer = model.trf_blocks[0].att.W_query.lora
        place = "trf_blocks.0.att.W_query.lora"
        wanted = 0.5 * 8 / 4 * (values[f"{place}.A"] @ values[f"{place}.B"]).T
        assert torch.allclose(layer.delta(), wanted, atol=1e-6), (
            "with s = 0.5, alpha 8 and rank 4 the product A B should count once"
        )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name]), (
            f"{name} was changed; A, B and W can stay as they are"
        )
    print("Right: from the base to the finetuned model, and back.")


def adapt_queries_and_values(
    adapt: Callable[[GPTModel, int, float], list[str]],
) -> None:
    """Exercise 3: updates on W_query and W_value, nothing else learns."""
    model = _tiny_model().requires_grad_(True)
    with torch.no_grad():
        before = model(IDS)
    names = adapt(model, 4, 8)
    require_answer(names, "adapt_queries_and_values")
    wanted = {f"trf_blocks.{i}.att.W_{x}" for i in range(3) for x in ("query", "value")}
    replaced = {
        name for name, m in model.named_modules() if isinstance(m, LinearWithLoRA)
    }
    assert replaced == wanted, (
        f"{len(replaced)} layers were replaced, such as {sorted(replaced)[:2]}; it "
        f"should be these {len(wanted)}: {sorted(wanted)}"
    )
    assert sorted(names) == sorted(wanted), "return the names of the replaced layers"
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    others = [name for name in learning if ".lora." not in name]
    assert not others, (
        f"{len(others)} parameters that are no part of an update still learn, such as "
        f"{others[0]}; freeze the model first"
    )
    assert len(learning) == 2 * len(wanted), (
        "A and B of the new layers should learn; freeze first, replace afterwards"
    )
    layer = model.trf_blocks[1].att.W_value.lora
    assert (layer.rank, layer.alpha) == (4, 8), (
        f"rank 4 and alpha 8 were asked for, not {layer.rank} and {layer.alpha}"
    )
    with torch.no_grad():
        assert torch.equal(model(IDS), before), (
            "before training the logits should be those of the base; did a layer lose "
            "its weights or its bias?"
        )
    print("Right: two layers per block, and the base's logits.")


def low_rank(
    factors: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Exercise 4: no matrix of that rank is closer."""
    generator = torch.Generator().manual_seed(3)
    change = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    kept = change.clone()
    S = torch.linalg.svdvals(change)
    for rank in (1, 3, 6):
        found = factors(change, rank)
        require_answer(found, "low_rank")
        assert len(found) == 2, (
            f"low_rank should return A and B, not {len(found)} items"
        )
        A, B = found
        assert A.shape == (8, rank) and B.shape == (rank, 6), (
            f"for rank {rank} and a change of 8 x 6, A should be (8, {rank}) and B "
            f"({rank}, 6), not {tuple(A.shape)} and {tuple(B.shape)}"
        )
        error = (change - A @ B).square().sum()
        least = S[rank:].square().sum()
        assert error < least + 1e-6, (
            f"at rank {rank} the squared differences sum to {error:.3f}, where "
            f"{least:.3f} is possible. Keep the first pieces, and count each singular "
            "value once"
        )
    assert torch.equal(change, kept), "the matrix that was passed in was changed"
    print("Right: no product of that rank comes closer.")


def gpt3_lora_parameters(count: Callable[[int], int]) -> None:
    """Exercise 5: the trainable parameters of table 4 in LoRA's paper."""
    found = count(1)
    _require_number(found, "gpt3_lora_parameters")
    hint = "each of the two matrices per block has an A and a B of r times 12,288"
    if found * 2 == 96 * 2 * 2 * 12_288:
        hint = "half of it: both A and B count, and both queries and values"
    elif found > 1e9:
        hint = "that is as many as in the matrices themselves"
    assert found == 4_718_592, f"at rank 1 it is 4,718,592, not {found:,}; {hint}"
    assert count(8) == 37_748_736, f"at rank 8 it is 37,748,736, not {count(8):,}"
    print("Right: 4.7 and 37.7 million, as table 4 says.")
