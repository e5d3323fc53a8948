"""What moves the weights: AdamW, alone or with Muon."""

import torch

from pretrain.settings import Settings, learning_rate
from shared.ch04 import GPTModel


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


def new_optimizer(gpt: GPTModel, settings: Settings) -> Optimizers:
    """AdamW that decays matrices, but neither biases nor norms.

    With `matrix_learning_rate`, Muon takes over the matrices of the blocks.

    Source: Jordan et al. (2024), Muon; Liu et al. (2025), Muon is Scalable for LLM
    Training, section 2.2, for the length of its steps.
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
    length = "match_rms_adamw"
    muon = torch.optim.Muon([group], matrix_rate, decay, adjust_lr_fn=length)
    return Optimizers(adam, muon)


def set_rates(optimizer: Optimizers, settings: Settings, step: int) -> None:
    """Give the optimizer the learning rate and the memory for a step."""
    _, stage, _ = settings.stage(step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step) * group.get("times", 1.0)
        if "betas" in group:
            group["betas"] = settings.betas(stage.tokens_per_step)
