"""Models for the tests of several chapters."""

import torch
from torch import nn

from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.village import tales

# A GPT small enough to build a hundred times; a test changes what it is about.
TINY = {
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


class Letters:
    """A tokenizer whose ids a tiny model knows."""

    eot_token = 50256

    def encode(self, text, allowed_special=(), disallowed_special=()):
        return [ord(letter) % TINY["vocab_size"] for letter in text]

    encode_ordinary = encode

    def decode(self, ids):
        return "".join(chr(97 + int(i) % 26) for i in ids)


def random_gpt(config, seed=0):
    """A model all of whose parameters, biases and norms too, are random."""
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.2)
            if name.endswith("scale"):
                parameter += 1
    return model


def nudged_gpt(config, seed=1, by=0.3):
    """A model with GPT-2's initialisation, every number moved by some random amount."""
    torch.manual_seed(seed)
    model = GPTModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


def village_tokenizer(tales_read):
    """A tokenizer of 1,000 tokens, learned from the first tales of the village."""
    made = BPETokenizer()
    made.train([tale.text for tale in tales(tales_read)], 1000)
    return made


def same_weights(one, other):
    """Whether two models have the same numbers under the same names."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def by_columns(model):
    """Let the matrix of each linear layer lie in memory column after column."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
