"""Chapter 3: Attention.

You will build attention, the layer in which every token of a text gathers what it needs
from the tokens before it.

Exported from attention.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ch03_attention.guards import (
    check_at_least_one,
    check_dropout,
    check_head_settings,
    check_vectors,
    drop_stored_mask,
)
from ch03_attention.kv_cache import KVCache

__all__ = [
    "SelfAttention_v1",
    "SelfAttention_v2",
    "CausalAttention",
    "MultiHeadAttentionWrapper",
    "MultiHeadAttention",
    "attention_weights",
]


class SelfAttention_v1(nn.Module):
    """Equation 3.5 for one text, with matrices of its own: (T, d_in) -> (T, d_out)."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x):
        Q, K, V = x @ self.W_query, x @ self.W_key, x @ self.W_value  # (T, D) each
        weights = torch.softmax(Q @ K.T / K.shape[1] ** 0.5, dim=-1)  # (T, T)
        return weights @ V  # (T, D), eq. 3.5


class SelfAttention_v2(nn.Module):
    """The same with linear layers; `qkv_bias` adds a bias to queries, keys, values."""

    def __init__(self, d_in, d_out, qkv_bias=False):
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x):
        Q, K, V = self.W_query(x), self.W_key(x), self.W_value(x)  # (T, D) each
        weights = torch.softmax(Q @ K.T / K.shape[1] ** 0.5, dim=-1)  # (T, T)
        return weights @ V  # (T, D), eq. 3.5


class CausalAttention(SelfAttention_v2):
    """The same with mask and dropout, for a batch: (B, T, d_in) -> (B, T, d_out)."""

    def __init__(self, d_in, d_out, context_length, dropout, qkv_bias=False):
        super().__init__(d_in, d_out, qkv_bias)
        check_dropout(dropout)
        self.dropout = nn.Dropout(dropout)
        future = torch.ones(context_length, context_length, dtype=torch.bool).triu(1)
        self.register_buffer("mask", future)  # True where j > i

    def forward(self, x):
        check_vectors(x, self.W_query.in_features, len(self.mask))
        Q, K, V = self.W_query(x), self.W_key(x), self.W_value(x)  # (B, T, D) each
        scores = Q @ K.transpose(1, 2) / K.shape[2] ** 0.5  # (B, T, T)
        T = x.shape[1]
        scores = scores.masked_fill(self.mask[:T, :T], -torch.inf)  # eq. 3.7
        return self.dropout(torch.softmax(scores, dim=-1)) @ V  # (B, T, D)


class MultiHeadAttentionWrapper(nn.Module):
    """Causal layers, each d_out wide, in a row: (B, T, d_in) -> (B, T, H * d_out)."""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        check_at_least_one("num_heads", num_heads)
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, H * D)


class MultiHeadAttention(nn.Module):
    """Causal multi-head attention, fused: (B, T, d_in) -> (B, T, d_out)."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check_head_settings(d_out, num_heads, dropout)
        self.d_in, self.d_out, self.context_length = d_in, d_out, context_length
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj, self.dropout = nn.Linear(d_out, d_out), dropout
        self.register_load_state_dict_pre_hook(drop_stored_mask)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Cut rows (B, T, d_out) into heads (B, H, T, D): equation 3.8."""
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        check_vectors(x, self.d_in, self.context_length, cache)
        queries = self.split_heads(self.W_query(x))  # (B, H, T, D)
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))
        if cache is not None:
            keys, values = cache.append(keys, values)
        mask = None if cache is None else cache.mask(x.shape[1])
        causal = cache is None or cache.length == x.shape[1]  # x begins the text
        context = F.scaled_dot_product_attention(
            queries, keys, values, mask, self.training * self.dropout, is_causal=causal
        )  # (B, H, T, D)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (B, T, d_out)


@torch.no_grad()
def attention_weights(attention: MultiHeadAttention, x: torch.Tensor) -> torch.Tensor:
    """Weights (B, H, T, T) of a layer for its input (B, T, d_in), without dropout.

    Fused attention never stores them. Source: Vaswani et al. (2017), equation 1.
    """
    check_vectors(x, attention.d_in, attention.context_length)
    T = x.shape[1]
    queries = attention.split_heads(attention.W_query(x))  # (B, H, T, D)
    keys = attention.split_heads(attention.W_key(x))
    scores = queries @ keys.transpose(2, 3) / attention.head_dim**0.5  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
