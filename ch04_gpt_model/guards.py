"""The checks of chapter 4: settings, token ids, and requests for text."""

import difflib
from collections.abc import Mapping
from numbers import Integral, Real
from typing import NotRequired, TypedDict

import torch

from ch03_attention.guards import check_divisible

__all__ = ["GPTConfig", "check_config", "check_prompt"]


class GPTConfig(TypedDict):
    """The settings of a `GPTModel`: those of `GPT_CONFIG_124M`, and one of ours."""

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: NotRequired[bool]  # output head = token embedding (default: False)


# The keys that every model needs, with the values of GPT-2's smallest size.
_CONFIG_EXAMPLES = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
_CONFIG_KEYS = list(GPTConfig.__annotations__)
# What other programs call the same: nanoGPT and GPT-2's config.json, then Llama's.
_OTHER_NAMES = {
    "block_size": "context_length",
    "n_ctx": "context_length",
    "n_positions": "context_length",
    "max_position_embeddings": "context_length",
    "max_seq_len": "context_length",
    "n_embd": "emb_dim",
    "d_model": "emb_dim",
    "hidden_size": "emb_dim",
    "n_head": "n_heads",
    "num_heads": "n_heads",
    "num_attention_heads": "n_heads",
    "n_layer": "n_layers",
    "num_layers": "n_layers",
    "num_hidden_layers": "n_layers",
    "n_vocab": "vocab_size",
    "dropout": "drop_rate",
    "embd_pdrop": "drop_rate",
    "resid_pdrop": "drop_rate",
    "bias": "qkv_bias",
    "tie_word_embeddings": "tie_weights",
}


def check_config(cfg: Mapping) -> None:
    """Raise an error that names the fault and its remedy if `cfg` is not a model's.

    KeyError for an unknown or a missing key; TypeError if `cfg` is no dictionary or a
    value has the wrong type; ValueError for a size below 1, a `drop_rate` outside
    [0, 1), or an `emb_dim` that `n_heads` does not divide.
    """
    if not isinstance(cfg, Mapping):
        like = f"a dict like {_CONFIG_EXAMPLES}"
        raise TypeError(f"cfg must be {like}, not {cfg!r}")
    _check_config_keys(cfg)
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
        # True counts as an integer in Python.
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], Integral):
            raise TypeError(f"{key} must be a whole number, not {cfg[key]!r}")
        if cfg[key] < 1:
            raise ValueError(f"{key} must be 1 or more, not {cfg[key]}")
    rate = cfg["drop_rate"]
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"drop_rate must be a number, not {rate!r}")
    if not 0 <= rate < 1:
        raise ValueError(f"drop_rate must lie in [0, 1), not {rate}; 0.1 drops a tenth")
    for key in ("qkv_bias", "tie_weights"):
        if not isinstance(cfg.get(key, False), bool):
            raise TypeError(f"{key} must be True or False, not {cfg[key]!r}")
    check_divisible(cfg["emb_dim"], cfg["n_heads"], "emb_dim", "n_heads")


def _check_config_keys(cfg: Mapping) -> None:
    """Raise KeyError for a key that is unknown (naming the nearest) or missing."""
    for key in cfg:
        if key not in _CONFIG_KEYS:
            name = str(key).lower()
            near = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else []
            near = near or difflib.get_close_matches(name, _CONFIG_KEYS, 1, cutoff=0.5)
            remedy = (
                f"did you mean {near[0]!r}?"
                if near
                else f"use {', '.join(_CONFIG_KEYS)}"
            )
            raise KeyError(f"unknown config key {key!r}; {remedy}")
    for key, example in _CONFIG_EXAMPLES.items():
        if key not in cfg:
            raise KeyError(f"config key {key!r} is missing; GPT-2 124M has {example}")


def check_ids(ids: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless `ids` are token ids (B, T), T at least 1."""
    if not isinstance(ids, torch.Tensor):
        kind = type(ids).__name__
        raise TypeError(f"a text must be a tensor of ids (B, T), not {kind}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"token ids must be int64, not {ids.dtype}; use .long()")
    if ids.dim() != 2:
        raise ValueError(
            f"token ids must have the shape (B, T), not {tuple(ids.shape)}; a single "
            "text needs .unsqueeze(0)"
        )
    if ids.shape[1] == 0:
        raise ValueError(
            f"a text needs at least one token, not {tuple(ids.shape)}; <|endoftext|> "
            "alone will do as a prompt"
        )


def check_input(model, ids: torch.Tensor, cache: list | None) -> None:
    """Raise an error unless the model can read `ids` after what is in the cache.

    TypeError or ValueError for ids of the wrong kind, shape or number; IndexError for
    an id that the model does not know.
    """
    check_ids(ids)
    if cache is not None and len(cache) != len(model.trf_blocks):
        raise ValueError(
            f"the cache has {len(cache)} layers and the model {len(model.trf_blocks)}; "
            "make one with model.new_cache()"
        )
    total = ids.shape[1] + (0 if cache is None else cache[0].length)
    longest = model.cfg["context_length"]
    if total > longest:
        raise ValueError(
            f"{total} tokens do not fit into context_length {longest}; crop the text "
            f"with ids[:, -{longest}:] and start with an empty cache"
        )
    check_known(ids, model.tok_emb.num_embeddings)


def check_known(ids: torch.Tensor, V: int) -> None:
    """Raise IndexError if an id is not one of the V that the model knows.

    Only ids in the CPU's memory are looked at. For those on a GPU, Python would have to
    wait at every call, and the GPU reports an unknown id by itself.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    lowest, highest = ids.aminmax()
    if lowest < 0 or highest >= V:
        first = ids[(ids < 0) | (ids >= V)][0].item()
        raise IndexError(
            f"token id {first} is out of range: vocab_size is {V}, so ids go from 0 to "
            f"{V - 1}; was the text encoded by another tokenizer?"
        )


def check_length(name: str, length: int | None, longest: int) -> int:
    """The length, or the longest for None.

    Raises ValueError unless it is at least 1 and fits into the context.
    """
    length = longest if length is None else length
    if not 1 <= length <= longest:
        raise ValueError(
            f"{name} must be between 1 and the model's context_length {longest}, not "
            f"{length}"
        )
    return length


def check_window(
    model, idx: torch.Tensor, context_size: int, cache: list | None
) -> None:
    """Raise TypeError or ValueError unless the model can score a next token."""
    check_ids(idx)
    check_length("context_size", context_size, model.cfg["context_length"])
    T = idx.shape[1]
    if cache is not None and T <= min(cache[0].length, context_size):
        raise ValueError(
            f"the cache has seen {cache[0].length} tokens and idx has no more than "
            f"{T}; a new text needs model.new_cache()"
        )


def check_prompt(
    model, idx: torch.Tensor, max_new_tokens: int, context_size: int
) -> None:
    """Raise TypeError or ValueError unless text can be generated as requested."""
    check_ids(idx)
    check_length("context_size", context_size, model.cfg["context_length"])
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}")
