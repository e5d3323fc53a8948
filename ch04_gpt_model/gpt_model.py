"""Chapter 4: The GPT model.

Assemble a GPT from attention and four small parts, say on paper how large, how wrong
and how fast it will be, and let it write.

Exported from gpt_model.ipynb, which explains every line: change it there, then run
`python -m tools.export`.
"""

import difflib
import math
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import nn

from shared.ch03 import KVCache, MultiHeadAttention

__all__ = [
    "GPTConfig",
    "GPT_CONFIG_124M",
    "GPT2_CONFIGS",
    "check_config",
    "LayerNorm",
    "GELU",
    "FeedForward",
    "TransformerBlock",
    "GPTModel",
    "next_token_logits",
    "check_prompt",
    "generate_text_simple",
    "optimize_layout_for_generation",
]


class GPTConfig(TypedDict):
    """The settings of a `GPTModel`: the book's seven keys and an optional one of ours.

    Source: Build a Large Language Model (From Scratch), section 4.1.
    """

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


def _check_keys(cfg: Mapping) -> None:
    """Raise KeyError for a key that is unknown (naming the nearest) or missing."""
    known = GPTConfig.__annotations__
    for key in cfg:
        if key not in known:
            near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"
            raise KeyError(f"unknown config key {key!r}; {remedy}")
    for key in known:
        if key in GPTConfig.__required_keys__ and key not in cfg:
            example = GPT_CONFIG_124M[key]
            raise KeyError(f"config key {key!r} is missing; GPT-2 124M has {example}")


def check_config(cfg: GPTConfig) -> None:
    """Raise an error that names the fault and its remedy if `cfg` describes no model.

    Args:
        cfg: a dictionary with the keys of `GPTConfig`.

    Raises:
        KeyError: for an unknown or a missing key.
        TypeError: if `cfg` is no dictionary or a value has the wrong type.
        ValueError: for a size below 1, a `drop_rate` outside [0, 1), or an `emb_dim`
            that `n_heads` does not divide.
    """
    if not isinstance(cfg, Mapping):
        raise TypeError(f"cfg must be a dict such as GPT_CONFIG_124M, not {cfg!r}")
    _check_keys(cfg)
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int):
            raise TypeError(f"{key} must be a whole number, not {cfg[key]!r}")
        if cfg[key] < 1:
            raise ValueError(f"{key} must be 1 or more, not {cfg[key]}")
    rate = cfg["drop_rate"]
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"drop_rate must be a number, not {rate!r}")
    if not 0 <= rate < 1:
        raise ValueError(f"drop_rate must lie in [0, 1), not {rate}; 0.1 drops a tenth")
    for key in ("qkv_bias", "tie_weights"):
        if not isinstance(cfg.get(key, False), bool):
            raise TypeError(f"{key} must be True or False, not {cfg[key]!r}")
    C, H = cfg["emb_dim"], cfg["n_heads"]
    if C % H != 0:
        divisors = [d for d in range(1, C + 1) if C % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - H))[:2])
        raise ValueError(
            f"emb_dim {C} is not divisible by n_heads {H}; choose a divisor such as "
            + " or ".join(map(str, near))
        )


class LayerNorm(nn.Module):
    """Bring each vector to mean 0 and variance 1, then scale and shift each channel.

    (..., C) -> (..., C). The variance is the mean of the C squared deviations, not
    divided by C - 1.

    Args:
        emb_dim: C, the width of the vectors.

    Source: Ba, Kiros and Hinton (2016), Layer Normalization, equation 4; Build a Large
    Language Model (From Scratch), section 4.2.
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

    Any shape -> the same shape. At most 0.0005 away from the exact form.

    Source: Hendrycks and Gimpel (2016), Gaussian Error Linear Units, section 2; Build
    a Large Language Model (From Scratch), section 4.3.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Widen each token's vector to 4C, bend it, narrow it: (B, T, C) -> (B, T, C).

    Args:
        cfg: a `GPTConfig`, of which only `emb_dim` is used.

    Source: Vaswani et al. (2017), Attention Is All You Need, section 3.3; Build a
    Large Language Model (From Scratch), section 4.3.
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

    Args:
        cfg: a `GPTConfig`.

    Source: Radford et al. (2019), Language Models are Unsupervised Multitask Learners,
    section 2.3; Build a Large Language Model (From Scratch), section 4.5.
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

    A new model has GPT-2's random initialisation. Row t of the result scores the token
    after token t, and depends on tokens 0 to t only. The parameters bear the book's
    names, so checkpoints of its code load.

    Args:
        cfg: a `GPTConfig`; see `check_config` for what it raises.

    Source: Radford et al. (2019), Language Models are Unsupervised Multitask Learners,
    section 2.3; Build a Large Language Model (From Scratch), section 4.6.
    """

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(
            *[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = LayerNorm(cfg["emb_dim"])
        # a tied head gets its matrix in init_weights: until then it needs no memory
        device = "meta" if cfg.get("tie_weights", False) else None
        self.out_head = nn.Linear(
            cfg["emb_dim"], cfg["vocab_size"], bias=False, device=device
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Set all parameters as GPT-2 does at the start of training, in place.

        Matrices are normal with standard deviation 0.02, those that write into the
        residual stream 0.02 / sqrt(2 n_layers); biases are 0, norms the identity. Also
        what a model needs that was built on the meta device and got `to_empty`.

        Source: Radford et al. (2019), section 2.3.
        """
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
        """The vectors that the output head reads.

        Args:
            in_idx: ids of tokens, (B, T), int64 or int32.
            cache: from `new_cache`; then `in_idx` holds only the tokens that the cache
                has not seen, and their keys and values are added to it.

        Returns:
            (B, T, C), after the final norm.

        Raises:
            TypeError, ValueError: for ids of the wrong type or shape, no tokens, more
                than the context holds, or a cache of another model.
            IndexError: for an id outside the vocabulary (a GPU reports it itself).
        """
        past = self._check_input(in_idx, cache)
        positions = torch.arange(past, past + in_idx.shape[1], device=in_idx.device)
        try:
            x = self.tok_emb(in_idx)  # (B, T, C)
        except IndexError:
            self._refuse_unknown_ids(in_idx)
            raise
        x = self.drop_emb(x + self.pos_emb(positions))  # pos_emb(...): (T, C)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, None if cache is None else cache[i])
        return self.final_norm(x)

    def forward(
        self, in_idx: torch.Tensor, cache: list[KVCache] | None = None
    ) -> torch.Tensor:
        return self.out_head(self.features(in_idx, cache))  # (B, T, V)

    def _check_input(self, in_idx: torch.Tensor, cache: list[KVCache] | None) -> int:
        """How many tokens the cache holds; raise if `features` cannot read `in_idx`."""
        if not isinstance(in_idx, torch.Tensor):
            kind = type(in_idx).__name__
            raise TypeError(f"in_idx must be a tensor of token ids, not a {kind}")
        if in_idx.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"token ids must be int64, not {in_idx.dtype}; use .long()")
        if in_idx.dim() != 2:
            raise ValueError(
                f"in_idx must have the shape (B, T), not {tuple(in_idx.shape)}; "
                "a single text needs .unsqueeze(0)"
            )
        if in_idx.shape[1] == 0:
            raise ValueError("in_idx holds no tokens; a text needs at least one")
        if cache is not None and len(cache) != len(self.trf_blocks):
            raise ValueError(
                f"the cache has {len(cache)} layers and the model "
                f"{len(self.trf_blocks)}; make one with model.new_cache()"
            )
        past = 0 if cache is None else cache[0].length
        total, longest = past + in_idx.shape[1], self.cfg["context_length"]
        if total > longest:
            raise ValueError(
                f"{total} tokens do not fit into context_length {longest}; crop the "
                f"text with in_idx[:, -{longest}:] and start with an empty cache"
            )
        return past

    def _refuse_unknown_ids(self, in_idx: torch.Tensor) -> None:
        """Raise an IndexError that names the first id outside the vocabulary."""
        V = self.tok_emb.num_embeddings
        outside = in_idx[(in_idx < 0) | (in_idx >= V)]
        if len(outside) > 0:
            raise IndexError(
                f"token id {outside[0].item()} is out of range: vocab_size is {V}, so "
                f"ids go from 0 to {V - 1}; was the text encoded by another tokenizer?"
            ) from None

    def new_cache(self, max_length: int | None = None) -> list[KVCache]:
        """An empty cache for one batch of texts: a `KVCache` for each block.

        Args:
            max_length: for how many tokens; by default `context_length`, the most that
                the model can read.

        Raises:
            ValueError: if `max_length` is not between 1 and `context_length`.
        """
        longest = self.cfg["context_length"]
        max_length = longest if max_length is None else max_length
        if not 1 <= max_length <= longest:
            raise ValueError(
                f"max_length must be between 1 and context_length {longest}, not "
                f"{max_length}"
            )
        return [KVCache(max_length) for _ in self.trf_blocks]


def next_token_logits(
    model: GPTModel,
    idx: torch.Tensor,
    context_size: int,
    cache: list[KVCache] | None = None,
) -> torch.Tensor:
    """The scores of the token that follows a text: logits (B, V).

    With a cache, only the tokens that it has not seen are read. Once the text is longer
    than `context_size`, every token has a new position and all cached keys are out of
    date: then the whole window is read each time. The scores are always those that the
    model gives without a cache.

    Args:
        model: a `GPTModel`; call `model.eval()` first, or dropout disturbs the scores.
        idx: ids of all tokens so far, (B, T).
        context_size: at most so many of the last tokens are read.
        cache: from `model.new_cache(context_size)`, used for this text only.

    Raises:
        ValueError: for no tokens, a `context_size` that is not between 1 and the
            model's `context_length`, or a cache that has seen all of `idx` already.
    """
    T, longest = idx.shape[-1], model.cfg["context_length"]
    if not 1 <= context_size <= longest:
        raise ValueError(
            f"context_size must be between 1 and the model's context_length "
            f"{longest}, not {context_size}"
        )
    if cache is None or T > context_size:
        hidden = model.features(idx[..., -context_size:])
    elif 0 < T <= cache[0].length:
        raise ValueError(
            f"the cache has seen {cache[0].length} tokens and idx has no more than "
            f"{T}; a new text needs model.new_cache()"
        )
    else:
        hidden = model.features(idx[..., cache[0].length :], cache)
    return model.out_head(hidden[:, -1])  # the head reads one vector, not T


def check_prompt(idx: torch.Tensor, max_new_tokens: int) -> None:
    """Refuse what no text can be generated from, before any work is done.

    Args:
        idx: ids of the prompts, (B, T).
        max_new_tokens: how many tokens are wanted.

    Raises:
        TypeError: if `idx` is no tensor.
        ValueError: if it has another shape or no tokens, or the number is negative.
    """
    if not isinstance(idx, torch.Tensor):
        raise TypeError(f"idx must be a tensor of ids (B, T), not {type(idx).__name__}")
    if idx.dim() != 2 or idx.shape[1] == 0:
        raise ValueError(
            "idx must have the shape (B, T) with at least one token, not "
            f"{tuple(idx.shape)}; <|endoftext|> alone will do as a prompt"
        )
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be 0 or more, not {max_new_tokens}")


@torch.no_grad()
def generate_text_simple(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    use_cache: bool = False,
) -> torch.Tensor:
    """Continue texts with the token that the model scores highest, again and again.

    Args:
        model: a `GPTModel`; call `model.eval()` first, or dropout disturbs the scores.
        idx: ids of the prompts, (B, T), of one length and not empty.
        max_new_tokens: how many tokens to append to each.
        context_size: at most so many of the last tokens are read for the next one.
        use_cache: keep keys and values: the same ids, sooner, up to `context_size`.

    Returns:
        Prompts and continuations, (B, T + max_new_tokens).

    Raises:
        TypeError, ValueError: for an empty or misshapen prompt, or a wrong number.

    Source: Build a Large Language Model (From Scratch), section 4.7.
    """
    check_prompt(idx, max_new_tokens)
    cache = model.new_cache(context_size) if use_cache else None
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return idx


def _rows_again(module: nn.Module, state_dict: dict, prefix: str, metadata) -> None:
    """State-dict hook: lay out by rows what `optimize_layout_for_generation` turned."""
    for key, tensor in state_dict.items():
        if isinstance(tensor, torch.Tensor):
            state_dict[key] = tensor.contiguous()


@torch.no_grad()
def optimize_layout_for_generation(model: nn.Module) -> None:
    """Store the matrix of each `nn.Linear` column by column, in place.

    To multiply a matrix by a single vector, as generation with a cache does for each
    token, PyTorch's float32 routines for CPUs read a matrix faster in that order.
    Values, shapes and names stay as they are, tied weights stay tied, and logits agree
    up to rounding. `model.state_dict()` returns matrices by rows (copies, that is), so
    saving needs no care; loading keeps the new layout. A second call does nothing.

    Worth it for float32 on a CPU and one text at a time. It was not found to help in
    bfloat16, and a GPU does not need it.

    Args:
        model: a `GPTModel` or any module.
    """
    turned = False
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.t().is_contiguous():
            layer.weight.data = layer.weight.data.t().contiguous().t()
            turned = True
    if turned:
        model.register_state_dict_post_hook(_rows_again)
