"""Chapter 4: The GPT model.

You will build a whole GPT from attention and a few small parts, let it write, and
predict its size and its first loss before you measure them.

Exported from gpt_model.ipynb and deeper.ipynb, which explain every line: change it
there, then run `python -m tools.export`.
"""

import math
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import nn

from ch04_gpt_model.guards import (
    check_config,
    check_input,
    check_length,
    check_prompt,
    check_window,
)
from shared.ch03 import KVCache, MultiHeadAttention

__all__ = [
    "GPT_CONFIG_124M",
    "LayerNorm",
    "GELU",
    "FeedForward",
    "TransformerBlock",
    "GPTConfig",
    "GPTModel",
    "next_token_logits",
    "generate_text_simple",
    "GPT2_CONFIGS",
]


GPT_CONFIG_124M = {
    "vocab_size": 50257,  # V: how many tokens the tokenizer knows
    "context_length": 1024,  # the longest text that the model can read
    "emb_dim": 768,  # C: the width of a token's vector
    "n_heads": 12,  # H: attention heads in a block
    "n_layers": 12,  # how many blocks
    "drop_rate": 0.1,  # the share of values that dropout removes in training
    "qkv_bias": False,  # whether queries, keys and values have a bias
}


class LayerNorm(nn.Module):
    """Bring each vector (..., C) to mean 0 and variance 1, then scale and shift it.

    Source: Ba, Kiros and Hinton (2016), Layer Normalization, equation 4.
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The smooth nonlinearity z * Phi(z), in the tanh form that GPT-2 was trained with.

    Source: Hendrycks and Gimpel (2016), Gaussian Error Linear Units, section 2.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")  # eq. 4.3, nearly


class FeedForward(nn.Module):
    """Widen each token's vector to 4C, apply GELU, narrow it: (B, T, C) -> (B, T, C).

    Source: Vaswani et al. (2017), Attention Is All You Need, section 3.3.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        C = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(C, 4 * C), GELU(), nn.Linear(4 * C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # eq. 4.4


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward network: each after a norm, inside a shortcut.

    (B, T, C) -> (B, T, C).

    Source: Radford et al. (2019), section 2.3.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """(B, T, C) -> (B, T, C); with a `KVCache`, x holds only the newest tokens."""
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache))  # eq. 4.5, left
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # eq. 4.5, right


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


class GPTModel(nn.Module):
    """GPT-2: ids of tokens (B, T) -> logits of the tokens that may follow (B, T, V).

    Row t scores the token after token t, and depends on tokens 0 to t only. The
    parameters have the book's names, so checkpoints of its code load.

    Source: Radford et al. (2019), section 2.3.
    """

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        V, C, tied = cfg["vocab_size"], cfg["emb_dim"], cfg.get("tie_weights", False)
        self.tok_emb = nn.Embedding(V, C)
        self.pos_emb = nn.Embedding(cfg["context_length"], C)
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(
            *[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = LayerNorm(C)
        # A tied head gets the embedding's matrix, so it is built without one.
        self.out_head = nn.Linear(C, V, bias=False, device="meta" if tied else None)
        self.init_weights()

    def init_weights(self) -> None:
        """Give every parameter an initial value like GPT-2's, in place."""
        if self.cfg.get("tie_weights", False):
            self.out_head.weight = self.tok_emb.weight
        for name, parameter in self.named_parameters():
            if name.endswith("scale"):
                nn.init.ones_(parameter)
            elif parameter.dim() == 1:  # shifts and biases
                nn.init.zeros_(parameter)
            else:
                writes = name.endswith(("att.out_proj.weight", "ff.layers.2.weight"))
                smaller = math.sqrt(2 * self.cfg["n_layers"]) if writes else 1
                nn.init.normal_(parameter, std=0.02 / smaller)

    def features(
        self, in_idx: torch.Tensor, cache: list[KVCache] | None = None
    ) -> torch.Tensor:
        """The vectors (B, T, C) that the output head reads.

        With a cache from `new_cache`, `in_idx` holds only the tokens that it has not
        seen, and their keys and values are added to it.
        """
        check_input(self, in_idx, cache)
        past = 0 if cache is None else cache[0].length
        positions = torch.arange(past, past + in_idx.shape[1], device=in_idx.device)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (B, T, C)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, None if cache is None else cache[i])
        return self.final_norm(x)

    def forward(
        self, in_idx: torch.Tensor, cache: list[KVCache] | None = None
    ) -> torch.Tensor:
        return self.out_head(self.features(in_idx, cache))  # (B, T, V)

    def new_cache(self, max_length: int | None = None) -> list[KVCache]:
        """An empty `KVCache` for each block; `max_length` defaults to the context."""
        longest = self.cfg["context_length"]
        max_length = longest if max_length is None else max_length
        check_length("max_length", max_length, longest)
        return [KVCache(max_length) for _ in self.trf_blocks]


def next_token_logits(
    model: GPTModel,
    idx: torch.Tensor,
    context_size: int,
    cache: list[KVCache] | None = None,
) -> torch.Tensor:
    """The logits of the token that follows each text: ids (B, T) -> (B, V).

    At most the last `context_size` tokens are read; with a cache, made by
    `model.new_cache(context_size)`, only those that it has not seen. Once the text is
    longer, the cache is out of date, and the whole window is read each time.
    """
    check_window(model, idx, context_size, cache)
    if cache is None or idx.shape[1] > context_size:
        hidden = model.features(idx[:, -context_size:])  # (B, T, C)
    else:
        hidden = model.features(idx[:, cache[0].length :], cache)
    return model.out_head(hidden[:, -1])  # the head reads one vector, not T


@torch.no_grad()
def generate_text_simple(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    use_cache: bool = False,
) -> torch.Tensor:
    """Continue texts by the token with the highest logit: (B, T) -> (B, T + new).

    Call `model.eval()` first, or dropout disturbs the logits. A cache gives the same
    ids, sooner, up to `context_size`.

    Source: Build a Large Language Model (From Scratch), section 4.7.
    """
    check_prompt(model, idx, max_new_tokens, context_size)
    cache = model.new_cache(context_size) if use_cache else None
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return idx


_PUBLISHED = {**GPT_CONFIG_124M, "qkv_bias": True, "tie_weights": True}


GPT2_CONFIGS = {
    "124M": {**_PUBLISHED, "emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "355M": {**_PUBLISHED, "emb_dim": 1024, "n_heads": 16, "n_layers": 24},
    "774M": {**_PUBLISHED, "emb_dim": 1280, "n_heads": 20, "n_layers": 36},
    "1558M": {**_PUBLISHED, "emb_dim": 1600, "n_heads": 25, "n_layers": 48},
}
