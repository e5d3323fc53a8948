"""Chapter 3: Attention.

You will build attention, the layer in which every token of a text gathers what it needs
from the tokens before it.

Exported from attention.ipynb and deeper.ipynb, which explain every line: change it
there, then run `python -m tools.export`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ch03_attention.guards import (
    check_at_least_one,
    check_dropout,
    check_head_settings,
    check_new_keys,
    check_vectors,
)

__all__ = [
    "SelfAttention_v1",
    "SelfAttention_v2",
    "CausalAttention",
    "MultiHeadAttentionWrapper",
    "MultiHeadAttention",
    "attention_weights",
    "KVCache",
]


class SelfAttention_v1(nn.Module):
    """Self-attention over one text, each formula written out: (T, d_in) -> (T, d_out).

    A first step. Source: Vaswani et al. (2017), section 3.2.1; Raschka (2024), 3.4.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = x @ self.W_query  # (T, D), eq. 3.4
        keys = x @ self.W_key
        values = x @ self.W_value
        scores = queries @ keys.T / keys.shape[-1] ** 0.5  # (T, T), eq. 3.5
        return torch.softmax(scores, dim=-1) @ values  # (T, D)


class SelfAttention_v2(nn.Module):
    """Self-attention over one text, with linear layers: (T, d_in) -> (T, d_out).

    The second step. `qkv_bias` adds a bias to queries, keys and values.
    Source: Raschka (2024), section 3.4.
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.W_query(x)  # (T, D), eq. 3.4
        keys = self.W_key(x)
        values = self.W_value(x)
        scores = queries @ keys.T / keys.shape[-1] ** 0.5  # (T, T), eq. 3.5
        return torch.softmax(scores, dim=-1) @ values  # (T, D)


class CausalAttention(nn.Module):
    """Self-attention in which no token sees a later one: (B, T, d_in) -> (B, T, d_out).

    The third step. `context_length` is the longest text that fits, `dropout` the share
    of the weights dropped in training. Source: Raschka (2024), section 3.5.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        future = torch.ones(context_length, context_length, dtype=torch.bool).triu(1)
        self.register_buffer("mask", future)  # True where j > i

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_vectors(x, self.W_query.in_features, len(self.mask))
        T = x.shape[1]
        queries = self.W_query(x)  # (B, T, D)
        keys = self.W_key(x)
        values = self.W_value(x)
        scores = queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5  # (B, T, T)
        scores = scores.masked_fill(self.mask[:T, :T], -torch.inf)  # eq. 3.7
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return weights @ values  # (B, T, D)


class MultiHeadAttentionWrapper(nn.Module):
    """Causal attention layers side by side: (B, T, d_in) -> (B, T, num_heads * d_out).

    The fourth step. `d_out` is the width of *one* head. Source: Raschka (2024), 3.6.
    """

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
        check_at_least_one("num_heads", num_heads)
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, H * D)


class MultiHeadAttention(nn.Module):
    """Causal multi-head attention, fused: (B, T, d_in) -> (B, T, d_out).

    A head is d_out / num_heads wide. Source: Vaswani et al. (2017), section 3.2.2.
    """

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
        self.d_in, self.d_out = d_in, d_out
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.context_length, self.dropout = context_length, dropout
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Cut rows (B, T, d_out) into heads (B, H, T, D): equation 3.8."""
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _load_from_state_dict(self, state_dict, prefix, *others) -> None:
        state_dict.pop(f"{prefix}mask", None)  # stored by the book's class, not needed
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: torch.Tensor, cache: "KVCache | None" = None) -> torch.Tensor:
        """Given a cache, x are the tokens that follow those in it, and join them."""
        past = 0 if cache is None else cache.length  # tokens read before
        check_vectors(x, self.d_in, self.context_length, past)
        queries = self.split_heads(self.W_query(x))  # (B, H, T, D)
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))
        mask = None
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, H, past + T, D)
            mask = cache.mask(x.shape[1])
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(
            queries, keys, values, mask, dropout, is_causal=past == 0
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


class KVCache:
    """Keys and values of the `length` tokens that one attention layer has already read.

    Room for `max_length` tokens is taken at the first `append`; meant for generation,
    under `torch.no_grad()`. Source: Pope et al. (2023).
    """

    def __init__(self, max_length: int) -> None:
        check_at_least_one("max_length", max_length)
        self.max_length = max_length
        self.length = 0
        self.keys: torch.Tensor | None = None  # (B, H, max_length, D)
        self.values: torch.Tensor | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens' (B, H, T, D); return views of all (B, H, length, D)."""
        check_new_keys(self, keys)
        B, H, T, D = keys.shape
        if self.length == 0:
            self.keys = keys.new_empty(B, H, self.max_length, D)
            self.values = values.new_empty(B, H, self.max_length, D)
        start, self.length = self.length, self.length + T
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def mask(self, T: int) -> torch.Tensor | None:
        """Which tokens each of the newest T may attend to: (T, length), True if it may.

        None if the fused function needs no mask: for one token, which may attend to
        all, and for a text that begins here, where `is_causal=True` says the same.
        """
        if T == 1 or T == self.length:
            return None
        allowed = torch.ones(T, self.length, dtype=torch.bool, device=self.keys.device)
        return allowed.tril(self.length - T)
