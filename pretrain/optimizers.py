"""What moves the weights: AdamW, alone or with Muon."""

import math

import torch

from ch05_pretraining.muon import orthogonal
from pretrain.settings import Settings, learning_rate
from shared.ch04 import GPTModel


class Muon(torch.optim.Optimizer):
    """Moves a matrix equally far in all directions, whatever the size of its gradient.

    `torch.optim.Muon` does the same, but always in bfloat16, and a processor without
    bfloat16 takes a hundred times as long for that. This one uses `dtype`.

    Args:
        groups: parameter groups of matrices.
        lr: learning rate; steps are as long as AdamW's at this rate.
        weight_decay: each step multiplies the weights by 1 - lr x weight_decay.
        dtype: of the products.

    Source: Jordan et al. (2024), Muon; Liu et al. (2025), Muon is Scalable for LLM
    Training, section 2.2, for the length of its steps.
    """

    def __init__(self, groups: list, lr: float, weight_decay: float, dtype=None):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.dtype, self.momentum = dtype or torch.float32, 0.95

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for p in group["params"]:
                kept = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - self.momentum)
                moved = p.grad.lerp(kept, self.momentum)
                moved = orthogonal(moved.to(self.dtype)).to(p.dtype)
                length = 0.2 * math.sqrt(max(p.shape))
                p.mul_(1 - rate * decay).add_(moved, alpha=-rate * length)


class Optimizers:
    """Several optimizers with different parameters, used like one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def new_optimizer(
    gpt: GPTModel, settings: Settings, dtype: torch.dtype = torch.float32
) -> Optimizers:
    """AdamW that decays matrices, but neither biases nor norms.

    With `matrix_learning_rate`, Muon takes over the matrices of the blocks, and
    multiplies them in `dtype`.
    """
    matrix_rate, decay = settings.matrix_learning_rate, settings.weight_decay
    inside = gpt.trf_blocks.parameters() if matrix_rate is not None else ()
    matrices = [p for p in inside if p.dim() == 2]
    others = [p for p in gpt.parameters() if all(p is not m for m in matrices)]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, settings.learning_rate, fused=True)
    if matrix_rate is None:
        return Optimizers(adam)
    group = {"params": matrices, "times": matrix_rate / settings.learning_rate}
    return Optimizers(adam, Muon([group], matrix_rate, decay, dtype))


def set_rates(optimizer: Optimizers, settings: Settings, step: int) -> None:
    """Give the optimizer the learning rate and the memory for a step."""
    _, stage, _ = settings.stage(step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step) * group.get("times", 1.0)
        if "betas" in group:
            group["betas"] = settings.betas(stage.tokens_per_step)
