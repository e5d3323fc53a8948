"""The checks of chapter 8: the settings of a modern model."""

from collections.abc import Mapping

from ch03_attention.guards import check_divisible
from ch04_gpt_model.guards import check_input

__all__ = ["check_llama_config", "check_input"]

_WHOLE_NUMBERS = (
    "vocab_size",
    "context_length",
    "emb_dim",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "hidden_dim",
)
_LLAMA_KEYS = (*_WHOLE_NUMBERS, "rope_base", "norm_eps")


def check_llama_config(cfg: Mapping) -> None:
    """Raise an error that names the fault and its remedy if `cfg` describes no model.

    KeyError for an unknown or a missing key; TypeError if `cfg` is no dictionary or a
    value has the wrong type; ValueError for a size below 1, for heads that do not
    divide what they share, or a head whose width has no two halves.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f"cfg must be a dict such as SMOLLM2_135M, not {cfg!r}")
    wrong = set(cfg) ^ set(_LLAMA_KEYS)
    if wrong:
        key = min(wrong, key=str)
        what = "unknown" if key in cfg else "missing"
        raise KeyError(f"config key {key!r} is {what}; use {', '.join(_LLAMA_KEYS)}")
    for key in _LLAMA_KEYS:
        kinds = int if key in _WHOLE_NUMBERS else (int, float)
        # True counts as an integer in Python.
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], kinds):
            whole = "whole " if kinds is int else ""
            raise TypeError(f"{key} must be a {whole}number, not {cfg[key]!r}")
    for key in _WHOLE_NUMBERS:
        if cfg[key] < 1:
            raise ValueError(f"{key} must be 1 or more, not {cfg[key]}")
    if not 1 < cfg["rope_base"] < float("inf"):
        raise ValueError(f"rope_base must be above 1, not {cfg['rope_base']}; try 1e4")
    if not 0 < cfg["norm_eps"] < 1:
        raise ValueError(f"norm_eps must be small, not {cfg['norm_eps']}; try 1e-5")
    check_divisible(cfg["emb_dim"], cfg["n_heads"], "emb_dim", "n_heads")
    check_divisible(cfg["n_heads"], cfg["n_kv_heads"], "n_heads", "n_kv_heads")
    head_dim = cfg["emb_dim"] // cfg["n_heads"]
    if head_dim % 2 != 0:
        raise ValueError(
            f"a head of emb_dim / n_heads = {head_dim} numbers has no two halves to "
            "rotate; choose n_heads so that the width is even"
        )
