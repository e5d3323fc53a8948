"""What a `GPTModel` is made of, for whatever has to hold one; knows classes by name."""

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["GPT_LAYERS", "check_finite", "foreign_layer"]

# Any other layer computes something that files and pages of a GPTModel cannot say.
GPT_LAYERS = frozenset(
    (
        "GPTModel TransformerBlock MultiHeadAttention FeedForward LayerNorm GELU "
        "Embedding Dropout Sequential Linear"
    ).split()
)


def foreign_layer(
    model: nn.Module, known: Iterable[str] = GPT_LAYERS
) -> tuple[str, str] | None:
    """The place and the class of the first layer that is not of a known class."""
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if kind not in known:
            return (f"its layer {name}" if name else "it"), kind
    return None


def check_finite(parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse weights that training has ruined.

    Raises:
        ValueError: if a number is nan or infinite; the message names its tensor.
    """
    for name, parameter in parameters:
        bad = (~torch.isfinite(parameter.detach())).sum().item()
        if bad:
            raise ValueError(
                f"{bad:,} of the {parameter.numel():,} numbers in {name} are nan or "
                "infinite; the training has gone wrong, so take an earlier checkpoint"
            )
