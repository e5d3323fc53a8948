"""What the layers of chapter 3 refuse, and what to do instead."""

import torch


def check_at_least_one(name: str, number: int) -> None:
    """Raise ValueError for a number below 1."""
    if number < 1:
        raise ValueError(f"{name} {number} is below 1; choose at least 1")


def check_dropout(dropout: float) -> None:
    """Raise ValueError unless dropout is a share that leaves something over."""
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout {dropout} is outside [0, 1); choose 0.0 to drop nothing, or a "
            "small share such as 0.1"
        )


def check_divisible(
    width: int, heads: int, width_name: str = "d_out", heads_name: str = "num_heads"
) -> None:
    """Raise ValueError, naming the nearest divisors, unless heads share out a width."""
    if width % heads != 0:
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - heads))[:2]
        raise ValueError(
            f"{width_name} {width} is not divisible by {heads_name} {heads}; choose a "
            f"divisor such as {' or '.join(map(str, sorted(nearest)))}"
        )


def check_head_settings(d_out: int, num_heads: int, dropout: float) -> None:
    """Raise ValueError unless d_out can be cut into heads and dropout is a share."""
    check_dropout(dropout)
    check_at_least_one("num_heads", num_heads)
    check_divisible(d_out, num_heads)


def check_vectors(x: torch.Tensor, d_in: int, context_length: int, cache=None) -> None:
    """Raise ValueError unless x is (B, T, d_in) and fits behind what a cache holds."""
    past = 0 if cache is None else cache.length
    if x.dim() != 3 or x.shape[2] != d_in:
        raise ValueError(
            f"input of shape {tuple(x.shape)} is not (batch, tokens, {d_in}); the last "
            f"size must be the layer's d_in, {d_in}"
        )
    if past + x.shape[1] > context_length:
        raise ValueError(
            f"{past + x.shape[1]} tokens do not fit into context_length "
            f"{context_length}; crop the text, or build the layer with a longer context"
        )


def check_new_keys(cache, keys: torch.Tensor) -> None:
    """Raise ValueError unless keys (B, H, T, D) can follow those in a `KVCache`."""
    B, H, T, D = keys.shape
    if cache.length + T > cache.max_length:
        raise ValueError(
            f"the cache holds {cache.max_length} tokens, not {cache.length + T}; make "
            "a larger one, or crop the text and start with an empty cache"
        )
    if cache.length > 0 and cache.keys.shape != (B, H, cache.max_length, D):
        begun = tuple(cache.keys[:, :, : cache.length].shape)
        raise ValueError(
            f"keys of shape {(B, H, T, D)} cannot follow cached keys of shape {begun}; "
            "use one cache for each layer and each batch of texts"
        )


def drop_stored_mask(layer, state_dict: dict, prefix: str, *others) -> None:
    """Leave aside the mask that the book's class stores and ours does not have.

    A hook, which PyTorch calls before a layer's parameters are loaded.
    """
    state_dict.pop(f"{prefix}mask", None)
