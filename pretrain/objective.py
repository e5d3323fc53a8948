"""The loss that pretraining makes small, over all tokens or over a part of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ch05_pretraining.copying import GUIDE_WEIGHT, Guide
from shared.ch04 import GPTModel
from shared.ch05 import calc_loss_batch

DRAWN = 1 / 16  # share of the rare tokens that take part in a loss by chance


class PartOfVocabulary:
    """The commonest tokens and a few of the others, which are enough for a loss.

    In a small model the softmax over all tokens costs more than all the rest. Here a
    rare token is in a loss only if it comes next somewhere in the batch, or if it is
    drawn. If the probability of that is q, it counts 1 / q times, so that the sum over
    the vocabulary is right on average.

    Source: Jean et al. (2015), On Using Very Large Target Vocabulary, section 3.2;
    Bengio and Senecal (2008), section 3, for the correction.

    Args:
        counts: how often each token occurs in the training text, (V,).
        size: how many of the commonest are in every loss.
        batch_tokens: targets in each call.
    """

    def __init__(self, counts: torch.Tensor, size: int, batch_tokens: int):
        self.common = counts.argsort(descending=True, stable=True)[:size]
        share = (counts + 1) / (counts + 1).sum()
        left_out = (1 - share) ** batch_tokens * (1 - DRAWN)
        self.log_q = torch.log1p(-left_out).float()
        self.log_q[self.common] = 0.0
        self.is_rare = torch.ones(len(counts), dtype=torch.bool)
        self.is_rare[self.common] = False

    def to(self, device: torch.device) -> "PartOfVocabulary":
        """The same, on a device."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.to(device))
        return self

    def choose(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids in this loss, (N,), and each target's position among them, (B, T)."""
        chosen = torch.rand(len(self.log_q), device=targets.device) < DRAWN
        chosen[targets.flatten()] = True
        ids = torch.cat([self.common, (chosen & self.is_rare).nonzero().flatten()])
        position = torch.empty_like(self.log_q, dtype=torch.long)
        position[ids] = torch.arange(len(ids), device=ids.device)
        return ids, position[targets]


class Objective(nn.Module):
    """A model with its loss: ids and the ids that follow them, (B, T), -> a scalar.

    DDP and FSDP do their work when a module is called, so the module that they wrap
    must return the loss.

    Args:
        gpt: the model.
        parts: for each stage the part of the vocabulary that its loss compares, None
            for all of it.
        guided: whether there will be guided steps.
    """

    def __init__(
        self,
        gpt: GPTModel,
        parts: Sequence[PartOfVocabulary | None] = (None,),
        guided: bool = False,
    ):
        super().__init__()
        self.gpt, self.parts = gpt, parts
        self.guide = Guide(gpt) if guided else None

    def forward(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        stage: int | None = None,
        guided: bool = False,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean loss; with `weights` (B, T) each token counts so often."""
        part = None if stage is None else self.parts[stage]
        if part is None and not guided and weights is None:
            return calc_loss_batch(inputs, targets, self.gpt, inputs.device)
        rows, positions, correction = self.gpt.out_head.weight, targets, 0.0
        if part is not None:
            ids, positions = part.choose(targets)
            rows, correction = rows[ids], part.log_q[ids]  # (N, C), (N,)
        logits = self.gpt.features(inputs) @ rows.t() - correction  # (B, T, N)
        loss = F.cross_entropy(
            *(logits.flatten(0, 1), positions.flatten()),
            reduction="mean" if weights is None else "none",
        )
        if weights is not None:
            loss = (loss * weights.flatten()).mean()
        if guided:
            loss = loss + GUIDE_WEIGHT * self.guide.loss(inputs, rows, positions)
        return loss
