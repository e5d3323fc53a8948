"""Small GPTs with a part missing, and a hundred steps of training to compare them."""

import torch
import torch.nn.functional as F
from torch import nn

from shared import data
from shared.ch04 import GPTConfig, GPTModel, TransformerBlock

SEED = 123

# Each byte of a text is a token, so there are 256 of them.
SMALL: GPTConfig = {
    "vocab_size": 256,
    "context_length": 32,
    "emb_dim": 64,
    "n_heads": 4,
    "n_layers": 4,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


def story_bytes(name: str = "short-story") -> torch.Tensor:
    """The bytes of a text of `shared.data`, as ids (N,)."""
    return torch.tensor(list(data.load_text(name).encode()))


class BlockWithoutShortcuts(TransformerBlock):
    """A block whose parts replace what comes in, and add nothing to it."""

    def forward(self, x, cache=None):
        return self.ff(self.norm2(self.att(self.norm1(x), cache)))


@torch.no_grad()
def small_model(
    norms: bool = True, shortcuts: bool = True, std: float = 0.02, seed: int = SEED
) -> GPTModel:
    """A `GPTModel` of the size `SMALL`, complete or not.

    GPT-2's initial matrices, with the standard deviation 0.02, are multiplied so that
    it becomes `std`.
    """
    torch.manual_seed(seed)
    model = GPTModel(SMALL)
    if not shortcuts:
        blocks = [BlockWithoutShortcuts(SMALL) for _ in model.trf_blocks]
        model.trf_blocks = nn.Sequential(*blocks)
        model.init_weights()
    if not norms:
        for block in model.trf_blocks:
            block.norm1 = block.norm2 = nn.Identity()
        model.final_norm = nn.Identity()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter *= std / 0.02
    return model


def train_briefly(
    model: GPTModel,
    story: torch.Tensor,
    lr: float = 1e-3,
    steps: int = 100,
    length: int = 32,
) -> list[float]:
    """Train on random pieces of a story, 256 bytes a step; return each step's loss.

    The pieces are always the same. With a `length` of 1 the model reads the same bytes
    one by one, so that none of them has a neighbour.
    """
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(story) - 32, (8, 1), generator=generator)
        windows = story[starts + torch.arange(33)]  # (8, 33)
        inputs = windows[:, :-1].reshape(-1, length)  # (256 / length, length)
        targets = windows[:, 1:].flatten()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mean_of_last_ten(losses: list[float]) -> float:
    """The mean of the last ten losses, which is less noisy than the last one."""
    return sum(losses[-10:]) / 10
