"""Chapter 8: Modern models.

You will turn GPT-2 into a model of today, one part at a time, and measure what each
change is worth.

Exported from modern_models.ipynb and modern_models_deeper.ipynb, which explain every
line: change it there, then run `python -m tools.export`.
"""

import math
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import nn

from ch08_modern_models.guards import check_input, check_llama_config
from shared.ch03 import KVCache
from shared.ch04 import GPTModel

__all__ = [
    "LlamaConfig",
    "SMOLLM2_135M",
    "RMSNorm",
    "rotation_angles",
    "rotate",
    "GroupedQueryAttention",
    "SwiGLU",
    "LlamaBlock",
    "LlamaModel",
    "half_split_rows",
]


class LlamaConfig(TypedDict):
    """The settings of a `LlamaModel`; none has a default."""

    vocab_size: int  # V: how many tokens the tokenizer knows
    context_length: int  # the longest text that the model can read at once
    emb_dim: int  # C: the width of a token's vector
    n_heads: int  # H: query heads in a block
    n_kv_heads: int  # G: heads of keys and values, shared (8.4)
    n_layers: int  # how many transformer blocks
    hidden_dim: int  # the width inside the feed-forward network (8.5)
    rope_base: float  # how slow the slowest rotation is (8.3)
    norm_eps: float  # keeps a norm from dividing by zero (8.2)


SMOLLM2_135M: LlamaConfig = {
    "vocab_size": 49152,
    "context_length": 8192,
    "emb_dim": 576,
    "n_heads": 9,
    "n_kv_heads": 3,
    "n_layers": 30,
    "hidden_dim": 1536,
    "rope_base": 100_000.0,
    "norm_eps": 1e-5,
}


class RMSNorm(nn.Module):
    """Bring each vector (..., C) to root mean square 1, then scale it.

    Source: Zhang and Sennrich (2019), Root Mean Square Layer Normalization, equation 4.
    """

    def __init__(self, emb_dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, self.eps)  # eq. 8.1


def rotation_angles(
    positions: torch.Tensor, head_dim: int, base: float
) -> torch.Tensor:
    """By how much each pair of a head is turned at each position: (T,) -> (T, D / 2).

    Source: Su et al. (2021), RoFormer, section 3.2.2.
    """
    pairs = torch.arange(head_dim // 2, device=positions.device).float()  # i
    return positions[:, None] * base ** (-2 * pairs / head_dim)  # eq. 8.3


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn numbers i and i + D / 2 of each vector by angle i: (..., T, D).

    Source: Su et al. (2021), RoFormer, equation 34, with the pairs of Llama's code.
    """
    left, right = x.chunk(2, dim=-1)  # (..., T, D / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


class GroupedQueryAttention(nn.Module):
    """Causal attention with rotation, in which query heads share keys and values.

    (B, T, C) -> (B, T, C). Given a `KVCache`, the inputs are the tokens that follow
    those in the cache, and are added to it.

    Source: Ainslie et al. (2023), GQA, section 2.2; for the rotation Su et al. (2021).
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        C, self.rope_base = cfg["emb_dim"], cfg["rope_base"]
        self.head_dim = C // cfg["n_heads"]
        kv_dim = cfg["n_kv_heads"] * self.head_dim
        self.W_query = nn.Linear(C, C, bias=False)
        self.W_key = nn.Linear(C, kv_dim, bias=False)
        self.W_value = nn.Linear(C, kv_dim, bias=False)
        self.out_proj = nn.Linear(C, C, bias=False)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Cut rows (B, T, n D) into n heads (B, n, T, D)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def angles(self, first: int, end: int, device: torch.device) -> torch.Tensor:
        """The angles of positions `first` to `end` - 1: (T, D / 2)."""
        positions = torch.arange(first, end, device=device)
        return rotation_angles(positions, self.head_dim, self.rope_base)

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        past, T = 0 if cache is None else cache.length, x.shape[1]
        angles = self.angles(past, past + T, x.device)
        queries = rotate(self.split_heads(self.W_query(x)), angles)  # (B, H, T, D)
        keys = rotate(self.split_heads(self.W_key(x)), angles)  # (B, G, T, D)
        values = self.split_heads(self.W_value(x))
        mask = None
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, G, past + T, D)
            mask = cache.mask(T)
        context = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=past == 0, enable_gqa=True
        )  # (B, H, T, D)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A feed-forward network with gates: (B, T, C) -> (B, T, C).

    Source: Shazeer (2020), GLU Variants Improve Transformer, equation 6.
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        C, hidden = cfg["emb_dim"], cfg["hidden_dim"]
        self.gate = nn.Linear(C, hidden, bias=False)
        self.up = nn.Linear(C, hidden, bias=False)
        self.down = nn.Linear(hidden, C, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # eq. 8.5


class LlamaBlock(nn.Module):
    """Attention, then a feed-forward network: each after a norm, inside a shortcut.

    (B, T, C) -> (B, T, C): chapter 4's `TransformerBlock` with today's parts.

    Source: Touvron et al. (2023), LLaMA, section 2.2.
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.att = GroupedQueryAttention(cfg)
        self.ff = SwiGLU(cfg)
        self.norm1 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])
        self.norm2 = RMSNorm(cfg["emb_dim"], cfg["norm_eps"])

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        x = x + self.att(self.norm1(x), cache)
        return x + self.ff(self.norm2(x))


class LlamaModel(nn.Module):
    """A model of today: ids of tokens (B, T) -> logits of the next tokens (B, T, V).

    It is called like chapter 4's `GPTModel`, so that what trains that one, or writes
    with it, takes this one too. The output head is the token embedding (tied).

    Source: Touvron et al. (2023), LLaMA, section 2.2.
    """

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        check_llama_config(cfg)
        self.cfg = dict(cfg)
        V, C = cfg["vocab_size"], cfg["emb_dim"]
        self.tok_emb = nn.Embedding(V, C)
        blocks = [LlamaBlock(cfg) for _ in range(cfg["n_layers"])]
        self.trf_blocks = nn.Sequential(*blocks)
        self.final_norm = RMSNorm(C, cfg["norm_eps"])
        # The head gets the embedding's matrix, so it is built without one.
        self.out_head = nn.Linear(C, V, bias=False, device="meta")
        self.init_weights()

    def init_weights(self) -> None:
        """Give every parameter the value that GPT-2 starts training with, in place."""
        self.out_head.weight = self.tok_emb.weight
        for name, parameter in self.named_parameters():
            if name.endswith("scale"):
                nn.init.ones_(parameter)
            else:
                writes = name.endswith(("att.out_proj.weight", "ff.down.weight"))
                smaller = math.sqrt(2 * self.cfg["n_layers"]) if writes else 1
                nn.init.normal_(parameter, std=0.02 / smaller)

    def features(
        self, in_idx: torch.Tensor, cache: list[KVCache] | None = None
    ) -> torch.Tensor:
        """The vectors (B, T, C) that the output head reads; cache as in `GPTModel`."""
        check_input(self, in_idx, cache)
        x = self.tok_emb(in_idx)  # (B, T, C)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, None if cache is None else cache[i])
        return self.final_norm(x)

    forward = GPTModel.forward  # the head reads the features
    new_cache = GPTModel.new_cache


def half_split_rows(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder the rows of a matrix made for rotation of neighbours (0, 1), (2, 3), ...

    `weight` (n_heads D, C) makes queries or keys. After it, `rotate`, whose pairs are
    (0, D / 2), (1, D / 2 + 1), ..., leads to the same scores.
    """
    pairs = weight.unflatten(0, (n_heads, -1, 2))  # (H, D / 2, 2, C)
    return pairs.transpose(1, 2).flatten(0, 2)  # (H D, C): first ones, then second ones
