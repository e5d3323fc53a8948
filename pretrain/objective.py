"""What pretraining makes small: the loss, over all tokens or a part of them."""

import torch
import torch.nn.functional as F
from torch import nn

from shared.ch04 import GPTModel
from shared.ch05 import calc_loss_batch

DRAWN = 1 / 16  # share of the rare tokens that take part in a loss by chance
GUIDE_WEIGHT = 0.1  # of the guide's loss, beside the model's


class PartOfVocabulary:
    """The commonest tokens, and a few of the others: enough of them for a loss.

    A softmax over all tokens costs more than the rest of a small model. Here the rare
    tokens take turns: one takes part when it comes next somewhere in the batch, or is
    drawn. That happens with some chance q, and then it counts 1 / q times, so that the
    sum over the vocabulary is right on average.

    Source: Jean et al. (2015), On Using Very Large Target Vocabulary, section 3.2;
    Bengio and Senecal (2008), section 3, for the correction.

    Args:
        counts: how often each token occurs in the training text, (V,).
        size: how many of the commonest always take part.
        batch_tokens: targets that each call will see.
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
        """The ids that take part, (N,), and each target's place among them."""
        chosen = torch.rand(len(self.log_q), device=targets.device) < DRAWN
        chosen[targets.flatten()] = True
        ids = torch.cat([self.common, (chosen & self.is_rare).nonzero().flatten()])
        place = torch.empty_like(self.log_q, dtype=torch.long)
        place[ids] = torch.arange(len(ids), device=ids.device)
        return ids, place[targets]


class Guide:
    """Shows three heads where to look: what copying needs, and chance finds late.

    One head learns to look at the token before. Then each token knows what it followed,
    and two other heads learn to look for a token that followed what stands here now:
    the one that comes next, if the text repeats itself. They also learn to say what
    they look at: what they add for a token, read by the output head, shall name it.

    Source: Deshpande and Narasimhan (2020), Guiding Attention for Self-Supervised
    Learning with Transformers; Olsson et al. (2022), In-context Learning and Induction
    Heads, for the two kinds of heads.

    Args:
        gpt: the model. The first kind is the first head of the second block, the others
            are the first heads of the two blocks above the middle.
    """

    def __init__(self, gpt: GPTModel):
        top = len(gpt.trf_blocks) - 1
        self.gpt, self.inputs = gpt, {}
        self.before = min(1, top)
        self.match = sorted({(top + 1) // 2, min((top + 1) // 2 + 1, top)})
        for i in {self.before, *self.match}:
            gpt.trf_blocks[i].register_forward_pre_hook(self._keep(i))

    def _keep(self, i: int):
        def keep(block, given):
            self.inputs[i] = given[0]

        return keep

    def log_attention(self, i: int) -> torch.Tensor:
        """Logarithm of what a block's first head gave to each token, (B, T, T)."""
        att, D = self.gpt.trf_blocks[i].att, self.gpt.trf_blocks[i].att.head_dim
        x = self.gpt.trf_blocks[i].norm1(self.inputs[i])
        queries, keys = (
            F.linear(
                x, layer.weight[:D], None if layer.bias is None else layer.bias[:D]
            )
            for layer in (att.W_query, att.W_key)
        )
        scores = queries @ keys.transpose(1, 2) / D**0.5
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).log_softmax(dim=-1)

    def added(self, i: int) -> torch.Tensor:
        """What a block's first head adds for a token that it looks at, (B, T, C)."""
        att, D = self.gpt.trf_blocks[i].att, self.gpt.trf_blocks[i].att.head_dim
        x = self.gpt.trf_blocks[i].norm1(self.inputs[i])
        bias = None if att.W_value.bias is None else att.W_value.bias[:D]
        values = F.linear(x, att.W_value.weight[:D], bias)
        return F.linear(values, att.out_proj.weight[:, :D])

    def loss(
        self, ids: torch.Tensor, rows: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """How little the heads do what they should, in the last forward pass.

        Args:
            ids: what the model read, (B, T).
            rows: rows of the output head, (N, C).
            places: which of them belongs to the *next* token, (B, T).
        """
        total = -self.log_attention(self.before).diagonal(-1, 1, 2).mean()
        followed = follows_the_same(ids)
        known = followed.any(dim=-1)
        for i in self.match:
            weights = self.log_attention(i)[known]
            found = weights.masked_fill(~followed[known], -torch.inf).logsumexp(dim=-1)
            total = total - found.sum() / known.sum().clamp(min=1)
            said = self.gpt.final_norm(self.added(i)[:, 1:][:, ::4]) @ rows.t()
            names = places[:, :-1][:, ::4]  # the next token of t is the token at t + 1
            total = total + F.cross_entropy(said.flatten(0, 1), names.flatten())
        self.inputs.clear()
        return total


def follows_the_same(ids: torch.Tensor) -> torch.Tensor:
    """Where each token's likes were followed: (B, T) -> (B, T, T).

    True at [t, k], k <= t, if token k - 1 is the same as token t.
    """
    B, T = ids.shape
    result = torch.zeros(B, T, T, dtype=torch.bool, device=ids.device)
    result[:, :, 1:] = ids[:, :, None] == ids[:, None, :-1]
    return result.tril()


class Objective(nn.Module):
    """A model with its loss: ids and the ids that follow them, (B, T), -> a scalar.

    DDP and FSDP act when a module is called, so what they wrap must give the loss.

    Args:
        gpt: the model.
        parts: for each stage the part of the vocabulary that its loss compares, None
            for all of it.
        guided: whether there will be guided steps.
    """

    def __init__(
        self,
        gpt: GPTModel,
        parts: list[PartOfVocabulary | None],
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
    ) -> torch.Tensor:
        part = None if stage is None else self.parts[stage]
        if part is None and not guided:
            return calc_loss_batch(inputs, targets, self.gpt, inputs.device)
        rows, places, correction = self.gpt.out_head.weight, targets, 0.0
        if part is not None:
            ids, places = part.choose(targets)
            rows, correction = rows[ids], part.log_q[ids]  # (N, C), (N,)
        logits = self.gpt.features(inputs) @ rows.t() - correction  # (B, T, N)
        loss = F.cross_entropy(logits.flatten(0, 1), places.flatten())
        if guided:
            loss = loss + GUIDE_WEIGHT * self.guide.loss(inputs, rows, places)
        return loss
