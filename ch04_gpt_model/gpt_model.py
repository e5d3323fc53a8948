"""Chapter 4: The GPT model.

Assemble a GPT from attention and four small parts, say on paper how large, how wrong
and how fast it will be, and let it write.

Exported from gpt_model.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
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
    embed_known,
)
from shared.ch03 import KVCache, MultiHeadAttention

__all__ = [
    "GPTConfig",
    "GPT_CONFIG_124M",
    "GPT2_CONFIGS",
    "LayerNorm",
    "GELU",
    "FeedForward",
    "TransformerBlock",
    "GPTModel",
    "next_token_logits",
    "generate_text_simple",
]


class GPTConfig(TypedDict):
    """The settings of a `GPTModel`: the book's seven keys, and one of ours."""

    vocab_size: int  # V: how many tokens the tokenizer knows
    context_length: int  # the longest text that the model can read at once
    emb_dim: int  # C: width of a token's vector
    n_heads: int  # H: attention heads in a block
    n_layers: int  # how many transformer blocks
    drop_rate: float  # share of values that training drops
    qkv_bias: bool  # whether queries, keys and values have a bias
    tie_weights: NotRequired[bool]  # output head = token embedding (default: False)


GPT_CONFIG_124M: GPTConfig = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


_PUBLISHED: GPTConfig = {**GPT_CONFIG_124M, "qkv_bias": True, "tie_weights": True}


GPT2_CONFIGS: dict[str, GPTConfig] = {
    "124M": {**_PUBLISHED, "emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "355M": {**_PUBLISHED, "emb_dim": 1024, "n_heads": 16, "n_layers": 24},
    "774M": {**_PUBLISHED, "emb_dim": 1280, "n_heads": 20, "n_layers": 36},
    "1558M": {**_PUBLISHED, "emb_dim": 1600, "n_heads": 25, "n_layers": 48},
}


class LayerNorm(nn.Module):
    """Bring each vector (..., C) to mean 0 and variance 1, then scale and shift it.

    Source: Ba, Kiros and Hinton (2016), Layer Normalization, equation 4.
    """

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5  # keeps a constant vector from dividing by zero
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The smooth gate z * Phi(z), in the tanh form that GPT-2 was trained with.

    Source: Hendrycks and Gimpel (2016), Gaussian Error Linear Units, section 2.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")  # eq. 4.3


class FeedForward(nn.Module):
    """Widen each token's vector to 4C, bend it, narrow it: (B, T, C) -> (B, T, C).

    Source: Vaswani et al. (2017), Attention Is All You Need, section 3.3.
    """

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        C = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(C, 4 * C), GELU(), nn.Linear(4 * C, C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # eq. 4.4


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward network, each after a norm and in a shortcut.

    (B, T, C) -> (B, T, C). With a `KVCache`, the input is the T newest tokens only.

    Source: Radford et al. (2019), section 2.3.
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

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache))  # eq. 4.5, left
        return x + self.drop_shortcut(self.ff(self.norm2(x)))  # eq. 4.5, right


class GPTModel(nn.Module):
    """GPT-2: ids of tokens (B, T) -> scores of the tokens that may follow (B, T, V).

    Row t scores the token after token t, and depends on tokens 0 to t only. The
    parameters bear the book's names, so checkpoints of its code load.

    Source: Radford et al. (2019), section 2.3.
    """

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        V, C = cfg["vocab_size"], cfg["emb_dim"]
        self.tok_emb = nn.Embedding(V, C)
        self.pos_emb = nn.Embedding(cfg["context_length"], C)
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        blocks = [TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        self.trf_blocks = nn.Sequential(*blocks)
        self.final_norm = LayerNorm(C)
        # A tied head gets its matrix in init_weights; until then it needs no memory.
        device = "meta" if cfg.get("tie_weights", False) else None
        self.out_head = nn.Linear(C, V, bias=False, device=device)
        self.init_weights()

    def init_weights(self) -> None:
        """Set all parameters as GPT-2 does at the start of training, in place."""
        if self.cfg.get("tie_weights", False):
            self.out_head.weight = self.tok_emb.weight
        residual_std = 0.02 / math.sqrt(2 * self.cfg["n_layers"])
        for name, parameter in self.named_parameters():
            if name.endswith(("att.out_proj.weight", "ff.layers.2.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.constant_(parameter, 1.0 if name.endswith("scale") else 0.0)

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
        x = embed_known(self.tok_emb, in_idx) + self.pos_emb(positions)  # (B, T, C)
        x = self.drop_emb(x)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, None if cache is None else cache[i])
        return self.final_norm(x)

    def forward(
        self, in_idx: torch.Tensor, cache: list[KVCache] | None = None
    ) -> torch.Tensor:
        return self.out_head(self.features(in_idx, cache))  # (B, T, V)

    def new_cache(self, max_length: int | None = None) -> list[KVCache]:
        """An empty `KVCache` for each block, for one batch of texts.

        There is room for `max_length` tokens, by default for the whole context.
        """
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
    """The scores of the token that follows each text: ids (B, T) -> logits (B, V).

    At most the last `context_size` tokens are read; with a cache, made by
    `model.new_cache(context_size)`, only those that it has not seen. Once the text is
    longer, all cached keys are out of date, and the whole window is read each time:
    the scores are always those that the model gives without a cache.
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
    """Continue texts by the best-scored token: (B, T) -> (B, T + max_new_tokens).

    Call `model.eval()` first, or dropout disturbs the scores. A cache gives the same
    ids, sooner, up to `context_size`.

    Source: Build a Large Language Model (From Scratch), section 4.7.
    """
    check_prompt(model, idx, max_new_tokens, context_size)
    cache = model.new_cache(context_size) if use_cache else None
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return idx
