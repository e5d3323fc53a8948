"""Chapter 4: The GPT model.

You will build a whole GPT from attention and a few small parts, give it trained
numbers, and watch how it finds its next word.

Exported from gpt_model.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ch04_gpt_model.guards import (
    GPTConfig,
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
    "init_like_gpt2",
    "GPTModel",
    "GPT2_CONFIGS",
    "next_token_logits",
    "generate_text_simple",
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
        self.eps = 1e-5  # so that a vector of equal numbers is not divided by 0
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:  # eq. 4.1
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The smooth nonlinearity z * Phi(z), in the tanh form that GPT-2 was trained with.

    Source: Hendrycks and Gimpel (2016), Gaussian Error Linear Units, section 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")  # eq. 4.2, within 0.0005 of z * Phi(z)


class FeedForward(nn.Module):
    """Widen each token's vector to 4C, apply GELU, narrow it: (B, T, C) -> (B, T, C).

    Source: Vaswani et al. (2017), Attention Is All You Need, section 3.3.
    """

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        C = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(C, 4 * C), GELU(), nn.Linear(4 * C, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # eq. 4.3


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward network: each reads a norm, adds to the stream.

    (B, T, C) -> (B, T, C). Source: Radford et al. (2019), section 2.3.
    """

    def __init__(self, cfg: GPTConfig):
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

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache))  # eq. 4.4, left
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # eq. 4.4, right


def init_like_gpt2(model: nn.Module) -> None:
    """Tie the head if `model.cfg` says so, and draw all parameters, in place."""
    if model.cfg.get("tie_weights", False):
        model.out_head.weight = model.tok_emb.weight  # one matrix at both ends
    for name, parameter in model.named_parameters():
        writes = name.endswith(("att.out_proj.weight", "ff.layers.2.weight"))
        smaller = math.sqrt(2 * model.cfg["n_layers"]) if writes else 1  # 2n are added
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02 / smaller)
        else:  # scales, and shifts and biases
            nn.init.constant_(parameter, 1.0 if name.endswith("scale") else 0.0)


class GPTModel(nn.Module):
    """GPT-2 (Radford et al. 2019, section 2.3): ids (B, T) -> logits (B, T, V)."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        V, C, tied = cfg["vocab_size"], cfg["emb_dim"], cfg.get("tie_weights", False)
        self.tok_emb = nn.Embedding(V, C)
        self.pos_emb = nn.Embedding(cfg["context_length"], C)
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        blocks = [TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        self.trf_blocks = nn.Sequential(*blocks)
        self.final_norm = LayerNorm(C)
        # A tied head gets tok_emb's matrix, so none is made here: "meta" has no memory.
        self.out_head = nn.Linear(C, V, bias=False, device="meta" if tied else None)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all parameters as GPT-2 does, in place."""
        init_like_gpt2(self)

    def features(self, in_idx: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """The vectors (B, T, C) that the output head reads."""
        check_input(self, in_idx, cache)
        past = 0 if cache is None else cache[0].length
        positions = torch.arange(past, past + in_idx.shape[1], device=in_idx.device)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (B, T, C)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, None if cache is None else cache[i])
        return self.final_norm(x)

    def forward(self, in_idx: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        return self.out_head(self.features(in_idx, cache))  # (B, T, V)

    def new_cache(self, max_length: int | None = None) -> list[KVCache]:
        """An empty `KVCache` for each block; `max_length` defaults to the context."""
        room = check_length("max_length", max_length, self.cfg["context_length"])
        return [KVCache(room) for _ in self.trf_blocks]


_PUBLISHED = {**GPT_CONFIG_124M, "qkv_bias": True, "tie_weights": True}


GPT2_CONFIGS = {
    "124M": {**_PUBLISHED, "emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "355M": {**_PUBLISHED, "emb_dim": 1024, "n_heads": 16, "n_layers": 24},
    "774M": {**_PUBLISHED, "emb_dim": 1280, "n_heads": 20, "n_layers": 36},
    "1558M": {**_PUBLISHED, "emb_dim": 1600, "n_heads": 25, "n_layers": 48},
}


def next_token_logits(
    model: GPTModel, idx: Tensor, context_size: int, cache: list[KVCache] | None = None
) -> Tensor:
    """The logits of the token that follows each text: ids (B, T) -> (B, V).

    With a cache from `model.new_cache(context_size)` only those tokens are read that
    it has not seen. Once a text is longer, the cache is out of date, and not used.
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
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    use_cache: bool = False,
) -> Tensor:
    """Continue texts by the token with the highest logit: (B, T) -> (B, T + new).

    Call `model.eval()` first, or dropout disturbs the logits. A cache gives the same
    ids, sooner, up to `context_size`.
    Source: Build a Large Language Model (From Scratch), section 4.7.
    """
    check_prompt(model, idx, max_new_tokens, context_size)
    cache = model.new_cache(context_size) if use_cache else None
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
        next_id = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        idx = torch.cat([idx, next_id], dim=1)  # (B, T + 1)
    return idx
