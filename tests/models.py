"""Models for the tests of several chapters."""

import torch
from torch import nn

from shared.ch04 import GPTModel

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
