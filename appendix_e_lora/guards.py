"""What appendix E refuses, and in which words; and how a base is recognised."""

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

__all__ = [
    "check_rank",
    "check_replaceable",
    "check_mergeable",
    "check_updates",
    "fingerprint",
]


def check_rank(
    rank: int, alpha: float, in_dim: int, out_dim: int, where: str = "the layer"
) -> None:
    """Refuse a rank or an alpha that the update of a layer cannot have."""
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of 1 or more, not {rank!r}")
    if rank > min(in_dim, out_dim):
        raise ValueError(
            f"rank {rank} is too large for {where}, which maps {in_dim} numbers to "
            f"{out_dim}: take at most {min(in_dim, out_dim)}"
        )
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a number above 0, not {alpha!r}")


def check_replaceable(
    model: nn.Module,
    updates: Iterable[nn.Module],
    layers: Mapping[str, nn.Linear],
    rank: int,
    alpha: float,
) -> None:
    """Refuse a model that has updates, has no layer for one, or one too thin for it."""
    if any(True for _ in updates):
        raise ValueError("the model has LoRA layers already; merge_lora removes them")
    if not layers:
        raise ValueError(
            f"the {type(model).__name__} holds no linear layer that is frozen and has "
            "a matrix of its own; call requires_grad_(False) on what should not learn"
        )
    for name, layer in layers.items():
        check_rank(rank, alpha, layer.in_features, layer.out_features, name)


def check_mergeable(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse a model without layers to merge."""
    if not layers:
        raise ValueError(f"the {type(model).__name__} holds no LinearWithLoRA to merge")


def check_updates(model: nn.Module, updates: list[nn.Module]) -> None:
    """Refuse a model without updates, or with a scaling that a file would not say."""
    if not updates:
        raise ValueError(f"the {type(model).__name__} has no LoRA layers")
    for layer in updates:
        if layer.scaling != layer.alpha / layer.rank:
            raise ValueError(
                f"a LoRALayer has the scaling {layer.scaling}, which would be lost; "
                f"set it back to alpha / rank = {layer.alpha / layer.rank}"
            )


def fingerprint(model: nn.Module, frozen: Mapping[str, torch.Tensor]) -> str:
    """Sixteen characters that depend on each frozen number, its name and the config."""
    config = {**getattr(model, "cfg", {}), "drop_rate": None}  # training's own affair
    digest = hashlib.sha256(repr(sorted(config.items())).encode())
    for name, values in frozen.items():
        values = values.detach().cpu().contiguous().view(-1)
        digest.update(name.encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
