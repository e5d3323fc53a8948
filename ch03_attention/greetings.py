"""Section 3.14's sentences: two animals meet, and one greets the other. Who speaks?"""

import copy
import itertools

import torch
from torch import nn

SAID = 'One day, a fox named {} met a badger named {}. "Hello, {}," said'
NAMES = ["Zoe", "Ben", "Mia", "Max", "Lucy", "Tom"]


def greetings() -> list[tuple[str, str, str]]:
    """60 sentences, each with the name of who speaks and of who is greeted."""
    found = []
    for fox, badger in itertools.permutations(NAMES, 2):
        found.append((SAID.format(fox, badger, badger), fox, badger))
        found.append((SAID.format(fox, badger, fox), badger, fox))
    return found


def without(model: nn.Module, block: int, head: int) -> nn.Module:
    """A copy of a GPT in which one head writes zeros: it contributes nothing."""
    cut = copy.deepcopy(model)
    attention = cut.trf_blocks[block].att
    columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    with torch.no_grad():
        attention.out_proj.weight[:, columns] = 0
    return cut
