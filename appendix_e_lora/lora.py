"""Appendix E: LoRA.

You will finetune a pretrained GPT by training a few of every hundred numbers, keep what
it learned in a file of about a megabyte, and fold it back into the model.

Exported from lora.ipynb, which explains every line: change it there, then run `python
-m tools.export`.
"""

import torch
from torch import nn

from appendix_e_lora.guards import (
    check_mergeable,
    check_rank,
    check_replaceable,
    check_updates,
    fingerprint,
)

__all__ = [
    "LoRALayer",
    "LinearWithLoRA",
    "replace_linear_with_lora",
    "merge_lora",
    "learned_part",
]


class LoRALayer(nn.Module):
    """A low-rank update, alpha / rank * A B: x (..., in_dim) -> (..., out_dim).

    A starts at random and B at zero, so a new layer adds nothing.

    Source: Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models,
    section 4.1; Build a Large Language Model (From Scratch), appendix E.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        check_rank(rank, alpha, in_dim, out_dim)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        nn.init.uniform_(self.A, -(in_dim**-0.5), in_dim**-0.5)  # as nn.Linear does

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scaling * (x @ self.A)) @ self.B  # eq. E.1

    def delta(self) -> torch.Tensor:
        """The update for `nn.Linear`'s matrix, (out_dim, in_dim), float32 at least."""
        wide = torch.promote_types(self.A.dtype, torch.float32)
        return self.scaling * (self.A.to(wide) @ self.B.to(wide)).T


class LinearWithLoRA(nn.Module):
    """A linear layer, frozen from now on, and its low-rank update, side by side.

    x (..., in_features) -> (..., out_features). At first it gives what the layer gives.

    Source: as `LoRALayer`.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.lora = LoRALayer(self.in_features, self.out_features, rank, alpha)
        self.lora.to(linear.weight)  # dtype and device
        self.linear = linear.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.lora(x)  # eq. E.1


def _updates_in(model: nn.Module) -> list[LoRALayer]:
    return [module for module in model.modules() if isinstance(module, LoRALayer)]


def replace_linear_with_lora(model: nn.Module, rank: int, alpha: float) -> list[str]:
    """Give each frozen linear layer inside a model an update; return the layers' names.

    In place. Freeze first, make the optimizer afterwards. A layer that learns stays as
    it is, and so does one whose matrix has other users, such as a tied head.
    ValueError, with nothing changed, for a rank that is too large, LoRA layers that are
    already there, or no layer to replace.

    Source: Build a Large Language Model (From Scratch), appendix E.
    """
    users = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear  # subclasses are used in ways of their own
        and not layer.weight.requires_grad
        and users.count(id(layer.weight)) == 1
        and name  # the model itself, named "", cannot be replaced
    }
    check_replaceable(model, _updates_in(model), layers, rank, alpha)
    for name, layer in layers.items():
        model.set_submodule(name, LinearWithLoRA(layer, rank, alpha))
    return list(layers)


@torch.no_grad()
def merge_lora(model: nn.Module) -> list[str]:
    """Add each update to its matrix, and put plain, frozen layers back.

    In place; returns the layers' names. Afterwards the model has the base's names and
    shapes again. ValueError if there is nothing to merge.

    Source: Hu et al. (2021), section 4.1.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LinearWithLoRA) and name
    }
    check_mergeable(model, layers)
    for name, layer in layers.items():
        layer.linear.weight += layer.lora.delta()  # eq. E.3
        model.set_submodule(name, layer.linear)
    return list(layers)


def learned_part(model: nn.Module) -> nn.Module:
    """What has to be saved of a model with LoRA: A, B and what else learns.

    Returns a module that shares these parameters, for `save_checkpoint` and
    `load_checkpoint`. Its `cfg` has rank, alpha, and a fingerprint of the frozen
    weights. ValueError for a model without LoRA layers, or one with another scaling.
    """
    updates = _updates_in(model)
    check_updates(model, updates)
    ours = {id(p) for layer in updates for p in layer.parameters()}
    part, frozen = nn.Module(), {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or id(parameter) in ours:
            name = name.replace(".", "/")  # a parameter's name may have no dot
            part.register_parameter(name, parameter)
        else:
            frozen[name] = parameter
    kinds = sorted({f"rank {x.rank}, alpha {x.alpha:g}" for x in updates})
    part.cfg = {"lora": "; ".join(kinds), "base": fingerprint(model, frozen)}
    return part
