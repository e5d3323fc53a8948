"""Appendix E: LoRA.

Finetune a pretrained GPT by training one or two of every hundred numbers, fold what was
learned back into the model, and know what this saves and what it does not.

Exported from lora.ipynb, which explains every line: change it there, then run `python
-m tools.export`.
"""

import hashlib
import math

import torch
from torch import nn

__all__ = [
    "LoRALayer",
    "LinearWithLoRA",
    "replace_linear_with_lora",
    "merge_lora",
    "learned_part",
]


class LoRALayer(nn.Module):
    """The low-rank update of a linear layer: x (..., in_dim) -> (..., out_dim).

    A starts at random and B at zero, so a new layer adds nothing.

    Args:
        in_dim, out_dim: the widths of the layer that is updated.
        rank: the width between the two matrices.
        alpha: their product counts alpha / rank times.

    Attributes:
        A, B: the matrices, (in_dim, rank) and (rank, out_dim).
        rank, alpha: as given; `scaling` is alpha / rank.

    Raises:
        ValueError: unless 1 <= rank <= min(in_dim, out_dim), and alpha > 0.

    Source: Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models,
    section 4.1; Build a Large Language Model (From Scratch), appendix E.
    """

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        _check_lora(rank, alpha, in_dim, out_dim)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        nn.init.uniform_(self.A, -(in_dim**-0.5), in_dim**-0.5)  # as nn.Linear does

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scaling * (x @ self.A)) @ self.B  # eq. E.2

    def delta(self) -> torch.Tensor:
        """The update for `nn.Linear`'s matrix, (out_dim, in_dim), float32 at least."""
        wide = torch.promote_types(self.A.dtype, torch.float32)
        return self.scaling * (self.A.to(wide) @ self.B.to(wide)).T


def _check_lora(
    rank: int, alpha: float, in_dim: int, out_dim: int, where: str = "the layer"
) -> None:
    """Raise ValueError unless a layer can have an update of this rank and weight."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of 1 or more, not {rank!r}")
    if rank > min(in_dim, out_dim):
        raise ValueError(
            f"rank {rank} is too large for {where}, which maps {in_dim} numbers to "
            f"{out_dim}: take at most {min(in_dim, out_dim)}"
        )
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a number above 0, not {alpha!r}")


class LinearWithLoRA(nn.Module):
    """A frozen linear layer and its low-rank update, side by side.

    x (..., in_features) -> (..., out_features); at first as the layer alone.

    Args:
        linear: is taken over and frozen, its bias included; the update gets its dtype
            and its device.
        rank, alpha: as in `LoRALayer`.

    Attributes:
        linear, lora: the two parts.

    Raises:
        ValueError: as `LoRALayer`.

    Source: Hu et al. (2021), section 4.1; Build a Large Language Model (From Scratch),
    appendix E.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha)
        self.lora.to(linear.weight)  # dtype and device
        self.linear = linear.requires_grad_(False)

    @property
    def in_features(self) -> int:
        """The width of the input."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """The width of the output."""
        return self.linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.lora(x)  # eq. E.2


def _layers_to_replace(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside that are frozen and share their matrix with none."""
    users = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear  # subclasses are used in ways of their own
        and not layer.weight.requires_grad
        and users.count(id(layer.weight)) == 1
        and name  # the model itself has the name "", and nobody who holds it
    }


def replace_linear_with_lora(model: nn.Module, rank: int, alpha: float) -> list[str]:
    """Give each frozen linear layer inside a model a low-rank update, in place.

    It freezes nothing: do that first. A layer that learns stays as it is. So does one
    whose matrix has other users too, such as a tied output head. Make the optimiser
    afterwards, so that it knows A and B.

    Args:
        model: a `GPTModel`, or any module that calls its linear layers; one that reads
            their `weight` itself, as `nn.TransformerEncoderLayer` does, will fail.
        rank, alpha: as in `LoRALayer`, for all of them.

    Returns:
        The names of the layers that were replaced.

    Raises:
        ValueError: for a rank below 1 or too large for one of the layers, an alpha that
            is not above 0, a model that has LoRA layers already, or one without a layer
            to replace. Then nothing was changed.

    Source: Build a Large Language Model (From Scratch), appendix E.
    """
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise ValueError("the model has LoRA layers already; merge_lora removes them")
    layers = _layers_to_replace(model)
    if not layers:
        raise ValueError(
            f"the {type(model).__name__} holds no linear layer that is frozen and has "
            "a matrix of its own; call requires_grad_(False) on what shall not learn"
        )
    for name, layer in layers.items():
        _check_lora(rank, alpha, layer.in_features, layer.out_features, name)
    for name, layer in layers.items():
        model.set_submodule(name, LinearWithLoRA(layer, rank, alpha))
    return list(layers)


@torch.no_grad()
def merge_lora(model: nn.Module) -> list[str]:
    """Add each update to its matrix, and put the plain linear layers back, in place.

    The parameters have the names and shapes again that they had before
    `replace_linear_with_lora`. They are frozen.

    Args:
        model: a module that holds `LinearWithLoRA`.

    Returns:
        The names of the layers.

    Raises:
        ValueError: if it holds none.

    Source: Hu et al. (2021), section 4.1.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LinearWithLoRA) and name
    }
    if not layers:
        raise ValueError(f"the {type(model).__name__} holds no LinearWithLoRA to merge")
    for name, layer in layers.items():
        layer.linear.weight += layer.lora.delta()  # eq. E.4
        model.set_submodule(name, layer.linear)
    return list(layers)


def learned_part(model: nn.Module) -> nn.Module:
    """What a model with LoRA has beyond its base, as a module of its own, to be saved.

    It shares the parameters with the model: those of the updates, and all others that
    learn, such as a new head (no buffers). `save_checkpoint(path, learned_part(model))`
    writes a small file, and `load_checkpoint(path, learned_part(model))` reads it into
    a model that was prepared in the same way from the same base.

    Args:
        model: after `replace_linear_with_lora`. All its frozen weights are read.

    Returns:
        A module whose `cfg` names rank and alpha, and identifies the frozen weights.

    Raises:
        ValueError: if the model has no LoRA layers, or one with another scaling.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoRALayer)]
    if not layers:
        raise ValueError(f"the {type(model).__name__} has no LoRA layers")
    _require_alpha_over_rank(layers)
    updates = {id(p) for layer in layers for p in layer.parameters()}
    part, frozen = nn.Module(), {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or id(parameter) in updates:
            part.register_parameter(
                name.replace(".", "/"), parameter
            )  # may have no dot
        else:
            frozen[name] = parameter
    kinds = sorted({f"rank {x.rank}, alpha {x.alpha:g}" for x in layers})
    part.cfg = {"lora": "; ".join(kinds), "base": _fingerprint(model, frozen)}
    return part


def _require_alpha_over_rank(layers: list[LoRALayer]) -> None:
    """Raise ValueError if a layer's scaling is not what a file would say."""
    for layer in layers:
        if layer.scaling != layer.alpha / layer.rank:
            raise ValueError(
                f"a LoRALayer has the scaling {layer.scaling}, which would be lost; "
                f"set it back to alpha / rank = {layer.alpha / layer.rank}"
            )


def _fingerprint(model: nn.Module, frozen: dict[str, nn.Parameter]) -> str:
    """Sixteen characters that depend on each frozen number, its name and the config."""
    config = {**getattr(model, "cfg", {}), "drop_rate": None}  # training's own affair
    digest = hashlib.sha256(repr(sorted(config.items())).encode())
    for name, parameter in frozen.items():
        values = parameter.detach().cpu().contiguous().view(-1)
        digest.update(name.encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
