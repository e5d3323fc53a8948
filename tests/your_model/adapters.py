"""How the tests reach your code: one small function for each thing that they need.

`mine` is your file, imported. The functions fit the names of the course and of the
book. Where your file has no such name, the tests that need it are skipped, and say so.
If your names differ, leave this file as it is. Write one of your own, with only what
differs, and name it with `--adapters`:

    NAMES = {"trf_blocks": "blocks", "att": "attn", "ff.layers.0": "mlp.up"}

    def make_model(mine, cfg):
        return mine.GPT(mine.Settings(width=cfg["emb_dim"], ...))
"""

import inspect
import re

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

# The course's names of parameters, or parts of them between dots, and yours.
NAMES: dict[str, str] = {}

# If one layer makes queries, keys and values, its name, such as "c_attn": its rows are
# those of queries, then those of keys, then those of values.
FUSED: str | None = None

# Settings of the tiny models that the tests build, where the usual ones do not fit:
# {"qkv_bias": False} if you have no such bias, {"tie_weights": True} if your output
# head is always the token embedding.
SETTINGS: dict = {}


def make_norm(mine, width):
    """A norm over vectors of this width, (..., C) -> (..., C)."""
    return mine.LayerNorm(width)


def make_attention(mine, cfg):
    """A layer of causal attention, (B, T, C) -> (B, T, C).

    `cfg` has the course's keys: vocab_size, context_length, emb_dim, n_heads, n_layers,
    drop_rate, qkv_bias.
    """
    width, context = cfg["emb_dim"], cfg["context_length"]
    dropout, heads, bias = cfg["drop_rate"], cfg["n_heads"], cfg["qkv_bias"]
    return mine.MultiHeadAttention(width, width, context, dropout, heads, bias)


def make_block(mine, cfg):
    """A transformer block, (B, T, C) -> (B, T, C)."""
    return mine.TransformerBlock(cfg)


def make_model(mine, cfg):
    """The whole model, with its first random numbers."""
    return mine.GPTModel(cfg)


def load_weights(mine, module, weights):
    """Copy numbers into a norm, an attention layer, a block or a model of yours.

    `weights` has the course's names, such as `att.W_query.weight` in a block.
    """
    yours = {}
    for name, w in weights.items():
        if FUSED and "W_query" in name:
            three = [
                weights[name.replace("query", x)] for x in ("query", "key", "value")
            ]
            yours[rename(name.replace("W_query", FUSED))] = torch.cat(three)
        elif not (FUSED and ("W_key" in name or "W_value" in name)):
            yours[rename(name)] = w
    module.load_state_dict(yours)


def rename(name):
    """A parameter's name after the replacements of `NAMES`."""
    for old, new in NAMES.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name


def run(mine, layer, x):
    """What a norm, an attention layer or a block makes of x (B, T, C)."""
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


def answer(mine, model, ids):
    """The logits (B, T, V) for ids (B, T), at every position."""
    y = model(ids)
    return y[0] if isinstance(y, tuple) else y


def write(mine, model, ids, count):
    """Continue ids (B, T) by the likeliest token, `count` times: (B, T + count)."""
    return mine.generate_text_simple(model, ids, count, context_of(model))


def write_cached(mine, model, ids, count):
    """The same, with a cache of keys and values."""
    if "use_cache" not in inspect.signature(mine.generate_text_simple).parameters:
        raise NotImplementedError("`generate_text_simple` has no `use_cache`")
    context = context_of(model)
    return mine.generate_text_simple(model, ids, count, context, use_cache=True)


def context_of(model):
    """The longest text that a model reads: as many tokens as it has positions."""
    return model.pos_emb.weight.shape[0]


def text_loss(mine, model, ids):
    """Your mean loss over the next tokens of texts (B, T + 1), with its gradient."""
    return mine.calc_loss_batch(ids[:, :-1], ids[:, 1:], model, "cpu")


def train(mine, model, optimizer, ids, steps):
    """Your training loop: this many steps, each on all these texts (B, T + 1)."""
    if hasattr(mine, "train_step"):
        for _ in range(steps):
            mine.train_step(model, optimizer, ids[:, :-1], ids[:, 1:])
        return
    texts = TensorDataset(ids[:, :-1].repeat(steps, 1), ids[:, 1:].repeat(steps, 1))
    loader = DataLoader(texts, batch_size=len(ids))
    looks = {"eval_freq": 10**9, "eval_iter": 1}
    sample = {"start_context": "a", "tokenizer": Letters()}
    everything = {"device": "cpu", "num_epochs": 1, **looks, **sample}
    mine.train_model_simple(model, loader, loader, optimizer, **everything)


class Letters:
    """A tokenizer for the samples that a training loop may print."""

    eot_token = 0

    def encode(self, text, **options):
        return [ord(letter) % 50 for letter in text]

    def decode(self, ids):
        return " ".join(str(int(i)) for i in ids)


def save(mine, model, path):
    """Write a model to a file. Without a function of yours: what `state_dict` names."""
    if hasattr(mine, "save_model"):
        return mine.save_model(model, path)
    save_file({name: w.clone() for name, w in model.state_dict().items()}, path)


def load(mine, cfg, path):
    """A model with the numbers of that file."""
    if hasattr(mine, "load_model"):
        return mine.load_model(cfg, path)
    torch.manual_seed(1)
    model = make_model(mine, cfg)
    model.load_state_dict(load_file(path))
    return model


def windows(mine, text, tokenizer, length, stride):
    """A text cut up for training: pairs of inputs and targets, each (length,)."""
    return list(mine.GPTDatasetV1(text, tokenizer, length, stride))


def own_tokenizer(mine, text, vocab_size):
    """A tokenizer that your code learns from a text."""
    tokenizer = mine.BPETokenizer()
    tokenizer.train(text, vocab_size)
    return tokenizer


def gpt2_tokenizer(mine):
    """GPT-2's tokenizer in your code, if you have one."""
    if not hasattr(mine.BPETokenizer, "from_gpt2"):
        raise NotImplementedError("`BPETokenizer` has no `from_gpt2`")
    return mine.BPETokenizer.from_gpt2()


def encode(mine, tokenizer, text):
    """A text as a list of ids."""
    return list(tokenizer.encode(text))


def decode(mine, tokenizer, ids):
    """Ids as a text."""
    return tokenizer.decode(ids)
