"""Checks for the exercises of appendix E: each says what is wrong, and hints at why."""

from collections.abc import Callable

import torch
from torch import nn

from shared.appendix_e import LinearWithLoRA, LoRALayer, replace_linear_with_lora
from shared.ch04 import GPTConfig, GPTModel
from shared.exercises import checked, close, number

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


@checked("E.1", wants="one number")
def lora_parameters(count: Callable[[GPTConfig, int], int]) -> None:
    """The numbers that learn, for tied and untied heads."""
    for tied in (True, False):
        model = _tiny_model(tie_weights=tied)
        replace_linear_with_lora(model, 5, 10)
        found, wanted = (
            number(count({**TINY, "tie_weights": tied}, 5)),
            _learning(model),
        )
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
    count.hint = (
        "a config without tie_weights is that of an untied model; "
        'cfg.get("tie_weights", False) knows both'
    )
    found = number(count({**TINY}, 5))
    assert found == wanted, (
        "a config without tie_weights is that of an untied model, as with False, for "
        f"which the answer was {wanted:,}, not {found:,}"
    )
    print("Right: as many as PyTorch counts.")


@checked("E.2", wants=None)
def set_strength(change: Callable[[nn.Module, float], None]) -> None:
    """s = 0 is the base, 1 the trained model, and one can come back."""
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
        assert close(model(IDS), base), (
            "with s = 0 every update should count nothing, as in the base model"
        )
        change(model, 1)
        assert close(model(IDS), finetuned, atol=1e-4), (
            "after s = 0 and then s = 1 the model should be the finetuned one again; "
            "compute the scaling from alpha, rank and s, not from the last scaling"
        )
        change(model, 0.5)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, LoRALayer)}
        for name, layer in layers.items():
            wanted = 0.5 * 8 / 4 * (values[f"{name}.A"] @ values[f"{name}.B"]).T
            assert close(layer.delta(), wanted, atol=1e-6), (
                f"{name}: with s = 0.5, alpha 8 and rank 4 the product A B should "
                "count once; is every layer reached?"
            )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name]), (
            f"{name} was changed; A, B and W can stay as they are"
        )
    print("Right: from the base to the finetuned model, and back.")


@checked("E.3", wants="the names of the replaced layers in a list")
def adapt_queries_and_values(
    adapt: Callable[[GPTModel, int, float], list[str]],
) -> None:
    """Updates on W_query and W_value, nothing else learns."""
    model = _tiny_model().requires_grad_(True)
    with torch.no_grad():
        before = model(IDS)
    names = list(adapt(model, 4, 8))
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
        assert close(model(IDS), before), (
            "before training the logits should be those of the base; did a layer lose "
            "its weights or its bias?"
        )
    print("Right: two layers per block, and the base's logits.")


@checked("E.4", wants="two tensors, A and B", keeps=True)
def low_rank(
    factors: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """No matrix of that rank is closer."""
    generator = torch.Generator().manual_seed(3)
    change = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    S = torch.linalg.svdvals(change)
    for rank in (1, 3, 6):
        A, B = factors(change, rank)
        assert A.shape == (8, rank) and B.shape == (rank, 6), (
            f"for rank {rank} and a change of 8 x 6, A should be (8, {rank}) and B "
            f"({rank}, 6), not {tuple(A.shape)} and {tuple(B.shape)}"
        )
        error = (change - A.double() @ B.double()).square().sum()
        least = S[rank:].square().sum()
        assert error < least + 1e-5, (
            f"at rank {rank} the squared differences sum to {error:.3f}, where "
            f"{least:.3f} is possible; keep the first pieces, and count each singular "
            "value once"
        )
    print("Right: no product of that rank comes closer.")


@checked("E.5", wants="one number")
def gpt3_lora_parameters(count: Callable[[int], int]) -> None:
    """The trainable parameters of table 4 in LoRA's paper."""
    found = number(count(1))
    hint = "each of the two matrices per block has an A and a B of r times 12,288"
    if found * 2 == 96 * 2 * 2 * 12_288:
        hint = "half of it: both A and B count, and both queries and values"
    elif found > 1e9:
        hint = "that is as many as in the matrices themselves"
    assert found == 4_718_592, f"at rank 1 it is 4,718,592, not {found:,}; {hint}"
    found = number(count(8))
    assert found == 37_748_736, f"at rank 8 it is 37,748,736, not {found:,}"
    print("Right: 4.7 and 37.7 million, as table 4 says.")


def noisy_change() -> torch.Tensor:
    """A change (12, 8) that is made of three products of vectors, and of noise."""
    generator = torch.Generator().manual_seed(6)
    U, _ = torch.linalg.qr(torch.randn(12, 8, generator=generator))
    V, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    return U * torch.tensor([3.0, 2.5, 2.0, 0.2, 0.2, 0.2, 0.1, 0.1]) @ V.T


@checked("E.6", wants="one number")
def trained_error(train: Callable, predicted: Callable) -> None:
    """As near to the best product as training gets; any whole number may be guessed."""
    change = noisy_change()
    predicted.wants = "a whole number"
    guess = number(predicted())
    assert guess in range(1, 9), f"predict a rank from 1 to 8, not {guess}"
    S = torch.linalg.svdvals(change)
    lines = ["rank  trained  least possible"]
    for rank in (1, 2, 3, 4):
        found, least = number(train(change, rank)), S[rank:].square().sum().item()
        assert found > 0.99 * least, (
            f"at rank {rank} no product comes closer than {least:.3f}, but you find "
            f"{found:.3f}; has A too many columns, or is that no sum of squares?"
        )
        assert found < 1.05 * least + 0.05, (
            f"at rank {rank} {least:.3f} is possible, and your training ends at "
            f"{found:.3f}; are both A and B trained, in every step, and long enough?"
        )
        lines.append(f"{rank:4}  {found:7.1f}  {least:14.1f}")
    print(*lines, sep="\n")
    print(f"Right: above rank 3 there is only noise to learn; you predicted {guess}.")
