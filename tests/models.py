"""Models for the tests of several chapters."""

import torch
from torch import nn

from shared.ch04 import GPTModel


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
