"""Chapter 3: Attention.

You will build, test and take apart the layer by which every token of a text gathers
what it needs from the tokens before it.

Exported from attention.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "SelfAttention_v1",
    "SelfAttention_v2",
    "CausalAttention",
    "MultiHeadAttentionWrapper",
    "KVCache",
    "MultiHeadAttention",
    "attention_weights",
]


class SelfAttention_v1(nn.Module):
    """Self-attention over one text, each formula written out.

    Maps inputs (T, d_in) to context vectors (T, d_out).

    Args:
        d_in: width C of an input vector.
        d_out: width D of queries, keys, values and context vectors.

    Source: Vaswani et al. (2017), section 3.2.1; "Build a Large Language Model (From
    Scratch)", section 3.4.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = x @ self.W_query  # (T, D), eq. 3.6
        keys = x @ self.W_key
        values = x @ self.W_value
        scores = queries @ keys.T / keys.shape[-1] ** 0.5  # (T, T), eq. 3.7
        return torch.softmax(scores, dim=-1) @ values  # (T, D)


class SelfAttention_v2(nn.Module):
    """Self-attention over one text, with linear layers for the three roles.

    Maps inputs (T, d_in) to context vectors (T, d_out).

    Args:
        d_in: width C of an input vector.
        d_out: width D of queries, keys, values and context vectors.
        qkv_bias: whether queries, keys and values have a bias.

    Source: "Build a Large Language Model (From Scratch)", section 3.4.
    """

    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.W_query(x)  # (T, D), eq. 3.6
        keys = self.W_key(x)
        values = self.W_value(x)
        scores = queries @ keys.T / keys.shape[-1] ** 0.5  # (T, T), eq. 3.7
        return torch.softmax(scores, dim=-1) @ values  # (T, D)


def _check_dropout(dropout: float) -> None:
    """Raise ValueError unless dropout is a share that leaves something over."""
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout {dropout} is outside [0, 1); choose 0.0 to drop nothing, or a "
            "small share such as 0.1"
        )


def _check_input(
    x: torch.Tensor, d_in: int, context_length: int, past: int = 0
) -> None:
    """Raise ValueError unless x is (B, T, d_in) and fits behind `past` tokens."""
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


class CausalAttention(nn.Module):
    """Self-attention over a batch of texts in which no token sees a later one.

    Maps inputs (B, T, d_in) to context vectors (B, T, d_out).

    Args:
        d_in: width C of an input vector.
        d_out: width D of queries, keys, values and context vectors.
        context_length: the longest text that fits.
        dropout: share of the attention weights dropped in training.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: for dropout outside [0, 1) and, when called, for an input of another
            width or longer than context_length.

    Source: "Build a Large Language Model (From Scratch)", section 3.5.
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
        _check_dropout(dropout)
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        future = torch.ones(context_length, context_length, dtype=torch.bool).triu(1)
        self.register_buffer("mask", future)  # True where j > i

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _check_input(x, self.W_query.in_features, len(self.mask))
        T = x.shape[1]
        queries = self.W_query(x)  # (B, T, D)
        keys = self.W_key(x)
        values = self.W_value(x)
        scores = queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5  # (B, T, T)
        scores = scores.masked_fill(self.mask[:T, :T], -torch.inf)  # eq. 3.9
        weights = self.dropout(torch.softmax(scores, dim=-1))
        return weights @ values  # (B, T, D)


class MultiHeadAttentionWrapper(nn.Module):
    """Several causal attention layers side by side: multi-head attention by stacking.

    Maps inputs (B, T, d_in) to context vectors (B, T, num_heads * d_out).

    Args:
        d_in: width C of an input vector.
        d_out: width D of *one* head.
        context_length: the longest text that fits.
        dropout: share of the attention weights dropped in training.
        num_heads: number of heads H.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: for fewer than one head, and as `CausalAttention` does.

    Source: "Build a Large Language Model (From Scratch)", section 3.6.
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
        if num_heads < 1:
            raise ValueError(f"num_heads {num_heads} is below 1; choose at least 1")
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, H * D)


class KVCache:
    """Keys and values of the tokens that one attention layer has already read.

    Room for `max_length` tokens is taken at the first `append`. Later calls write into
    it and return views, so nothing is copied as the text grows. It is meant for
    generation, under `torch.no_grad()`.

    Args:
        max_length: the most tokens the cache can hold.

    Attributes:
        length: how many tokens it holds now.
        keys, values: tensors (B, H, max_length, D), of which the first `length` rows
            count; None until the first `append`.

    Source: Pope et al. (2023), "Efficiently Scaling Transformer Inference".
    """

    def __init__(self, max_length: int) -> None:
        if max_length < 1:
            raise ValueError(
                f"max_length {max_length} is below 1; a cache needs room for one token"
            )
        self.max_length = max_length
        self.length = 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values of the newest tokens; return those of all tokens so far.

        Args:
            keys, values: tensors (B, H, T, D) of the T newest tokens.

        Returns:
            Two views (B, H, length, D).

        Raises:
            ValueError: if the cache is full, or was begun with another B, H or D.
        """
        B, H, T, D = keys.shape
        start, end = self.length, self.length + T
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens, not {end}; make a larger "
                "one, or crop the text and start with an empty cache"
            )
        if start == 0:
            self.keys = keys.new_empty(B, H, self.max_length, D)
            self.values = values.new_empty(B, H, self.max_length, D)
        elif self.keys.shape != (B, H, self.max_length, D):
            begun = tuple(self.keys[:, :, :start].shape)
            raise ValueError(
                f"keys of shape {(B, H, T, D)} cannot follow cached keys of shape "
                f"{begun}; use one cache for each layer and each batch of texts"
            )
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def _ignore_stored_mask(module, state_dict, prefix, *_) -> None:
    """Remove the causal mask that other implementations keep in their checkpoints."""
    state_dict.pop(f"{prefix}mask", None)


def _check_settings(d_out: int, num_heads: int, dropout: float) -> None:
    """Raise ValueError unless d_out can be cut into heads and dropout is a share."""
    _check_dropout(dropout)
    if num_heads < 1:
        raise ValueError(f"num_heads {num_heads} is below 1; choose at least 1")
    if d_out % num_heads != 0:
        divisors = [n for n in range(1, d_out + 1) if d_out % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - num_heads))[:2]
        raise ValueError(
            f"d_out {d_out} is not divisible by num_heads {num_heads}; choose a "
            f"divisor such as {' or '.join(map(str, sorted(nearest)))}"
        )


class MultiHeadAttention(nn.Module):
    """Causal multi-head attention, fused, with an optional key/value cache.

    Maps inputs (B, T, d_in) to outputs (B, T, d_out). Given a `KVCache`, the inputs are
    the tokens that follow those in the cache, and are added to it.

    Args:
        d_in: width C of an input vector.
        d_out: width of the output; each head is d_out / num_heads wide.
        context_length: the longest text that fits, cached tokens included.
        dropout: share of the attention weights dropped in training.
        num_heads: number of heads H.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: for settings, an input or a cache that do not fit, with the remedy.

    Source: Vaswani et al. (2017), section 3.2.2.
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
        _check_settings(d_out, num_heads, dropout)
        self.d_in, self.d_out = d_in, d_out
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.context_length, self.dropout = context_length, dropout
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.register_load_state_dict_pre_hook(_ignore_stored_mask)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """Cut rows (B, T, d_out) into heads (B, H, T, D)."""
        B, T, _ = x.shape
        return x.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        past = 0 if cache is None else cache.length
        _check_input(x, self.d_in, self.context_length, past)
        B, T, _ = x.shape
        queries = self.split_heads(self.W_query(x))  # (B, H, T, D)
        keys = self.split_heads(self.W_key(x))
        values = self.split_heads(self.W_value(x))
        mask = None
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, H, past + T, D)
            if past > 0 and T > 1:  # a single new token may see everything
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device)
                mask = mask.tril(past)  # True where row t may look: columns to past + t
        context = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=past == 0,
        )  # (B, H, T, D)
        context = context.transpose(1, 2).reshape(B, T, self.d_out)
        return self.out_proj(context)


@torch.no_grad()
def attention_weights(attention: MultiHeadAttention, x: torch.Tensor) -> torch.Tensor:
    """Who listens to whom in a layer: the weights that fused attention never stores.

    Args:
        attention: a `MultiHeadAttention` layer.
        x: its input (B, T, d_in).

    Returns:
        Weights (B, H, T, T), without dropout; each row sums to 1.

    Raises:
        ValueError: for an input that the layer itself would refuse.

    Source: Vaswani et al. (2017), equation 1.
    """
    _check_input(x, attention.d_in, attention.context_length)
    T = x.shape[1]
    queries = attention.split_heads(attention.W_query(x))  # (B, H, T, D)
    keys = attention.split_heads(attention.W_key(x))
    scores = queries @ keys.transpose(2, 3) / attention.head_dim**0.5  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    return torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
