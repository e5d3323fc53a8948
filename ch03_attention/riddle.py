"""Section 3.13's riddle: strings that repeat, and a model that goes on.

Chapter 5 explains the training loop.
"""

import torch
import torch.nn.functional as F
from torch import nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 24  # letters of a string
PERIODS = (6, 12)  # the shortest and the longest


def repeating_strings(
    n: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Strings (n, CONTEXT) of different letters that repeat, and their periods."""
    order = torch.rand(n, len(LETTERS), generator=generator).argsort(dim=1)
    period = torch.randint(PERIODS[0], PERIODS[1] + 1, (n, 1), generator=generator)
    return order.gather(1, torch.arange(CONTEXT) % period), period


def predictable(period: torch.Tensor) -> torch.Tensor:
    """Which letters after the first can be known: (n, CONTEXT - 1).

    The letter before must have occurred, so that one can read on from there.
    """
    return torch.arange(1, CONTEXT) > period


def test_strings(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """500 strings (n, CONTEXT) to test on, and their periods (n, 1)."""
    return repeating_strings(500, torch.Generator().manual_seed(seed))


def train(
    model: nn.Module, seed: int, steps: int = 200, batch_size: int = 32
) -> nn.Module:
    """Train a model to predict each letter that can be predicted."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids, period = repeating_strings(batch_size, generator)
        repeats = predictable(period)  # (B, T - 1)
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits[repeats], ids[:, 1:][repeats])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, ids: torch.Tensor, period: torch.Tensor) -> float:
    """The share of predictable letters that the model predicts."""
    right = model(ids[:, :-1]).argmax(-1) == ids[:, 1:]
    return right[predictable(period)].float().mean().item()


def by_chance(ids: torch.Tensor, period: torch.Tensor) -> float:
    """The share that is right if a letter of the string is picked at random."""
    shares = (1 / period).expand(-1, CONTEXT - 1)
    return shares[predictable(period)].mean().item()


def by_counting(ids: torch.Tensor, period: torch.Tensor) -> float:
    """The share that is right without comparing letters.

    Each position repeats the letter at some distance back: one distance for all
    strings, the one that is right most often.
    """
    right, repeats = 0, predictable(period)
    for t in range(1, CONTEXT):
        known = ids[repeats[:, t - 1]]
        hits = [(known[:, t] == known[:, t - d]).sum().item() for d in range(1, t + 1)]
        right += max(hits)
    return right / repeats.sum().item()


@torch.no_grad()
def continue_string(model: nn.Module, prompt: str, n_letters: int) -> str:
    """Let the model write: append its most likely letter, again and again."""
    for _ in range(n_letters):
        ids = torch.tensor([[LETTERS.index(letter) for letter in prompt]])
        prompt += LETTERS[model(ids)[0, -1].argmax().item()]
    return prompt
