"""Appendix F: Training faster.

You will find out how fast your machine could train a GPT at best, what keeps it from
that, and how to get closer without changing a loss.

Exported from speed.ipynb, which explains every line: change it there, then run `python
-m tools.export`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from appendix_f_speed.guards import check_features, check_frozen
from shared.ch04 import TransformerBlock
from shared.ch06 import GPTClassifier, last_real_position

__all__ = [
    "chunked_cross_entropy",
    "read_last",
    "KeptBelow",
]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients (eq. F.3) of vectors (N, C), `chunk` of them at a time."""

    @staticmethod
    def forward(ctx, features, weight, targets, chunk):
        N, wide = len(targets), torch.promote_types(features.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=features.device)
        d_features, d_weight = torch.empty_like(features), torch.zeros_like(weight)
        parts = (features, targets, d_features)
        for x, y, d_x in zip(*(p.split(chunk) for p in parts), strict=True):
            errors = F.log_softmax(x @ weight.t(), -1, dtype=wide)  # (chunk, V)
            loss -= errors.gather(1, y[:, None]).sum() / N
            errors.exp_()  # p, in the same memory
            errors[torch.arange(len(y), device=y.device), y] -= 1  # p - e_y
            errors = errors.to(x.dtype)
            d_x.copy_(errors @ weight / N)
            d_weight.addmm_(errors.t(), x, alpha=1 / N)
        ctx.save_for_backward(d_features, d_weight)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        d_features, d_weight = ctx.saved_tensors
        return d_features.mul_(d_loss), d_weight.mul_(d_loss), None, None  # in place


def chunked_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk: int = 256,
) -> torch.Tensor:
    """Mean cross-entropy of a head (V, C) on vectors (..., C), without all the logits.

    Targets (...) of -100 do not count, as in `F.cross_entropy`. No more than `chunk`
    rows of logits exist at once. Under autocast the products have its precision.
    """
    check_features(features, weight, targets, chunk)
    counted, device = targets != -100, features.device.type
    dtype = features.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    vectors, weight = features[counted].to(dtype), weight.to(dtype)
    return _ChunkedCrossEntropy.apply(vectors, weight, targets[counted], chunk)


def read_last(
    block: TransformerBlock, x: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """What a block computes at one position of each text: (B, T, C), (B,) -> (B, C).

    The same as `block(x)[range(B), last]`, without dropout.
    """
    attention, rows = block.att, torch.arange(len(x), device=x.device)
    normed = block.norm1(x)  # (B, T, C)
    query = attention.split_heads(attention.W_query(normed[rows, last][:, None]))
    keys = attention.split_heads(attention.W_key(normed))  # (B, H, T, D)
    values = attention.split_heads(attention.W_value(normed))
    seen = torch.arange(x.shape[1], device=x.device) <= last[:, None]  # (B, T)
    context = F.scaled_dot_product_attention(query, keys, values, seen[:, None, None])
    y = x[rows, last] + attention.out_proj(context.flatten(1))  # (B, C)
    return y + block.ff(block.norm2(y))


class KeptBelow(nn.Module):
    """A classifier, after `set_trainable`, whose frozen blocks read each text once.

    It gives the same logits, (B, num_classes), and trains the same weights. It keeps
    the vectors as long as it lives: make a new one when frozen weights change.
    """

    def __init__(self, classifier: GPTClassifier):
        super().__init__()
        check_frozen(classifier)
        self.classifier, self.kept = classifier, {}
        blocks = classifier.gpt.trf_blocks
        learns = [any(p.requires_grad for p in b.parameters()) for b in blocks]
        self.first = [*learns, True].index(True)  # len(blocks): the head alone learns

    @torch.no_grad()
    def keep(self, ids: torch.Tensor, texts: list[tuple[int, ...]]) -> None:
        """Read texts, padded to (B, T), up to the first block that learns."""
        gpt = self.classifier.gpt
        x = gpt.tok_emb(ids) + gpt.pos_emb.weight[: ids.shape[1]]  # (B, T, C)
        x = gpt.trf_blocks[: self.first](x)
        for text, vectors in zip(texts, x, strict=True):
            self.kept[text] = vectors[: len(text)].clone()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        gpt, padding = self.classifier.gpt, self.classifier.pad_token_id
        last = last_real_position(ids, padding)  # (B,)
        ends = (last + 1).tolist()
        texts = [tuple(t[:n]) for t, n in zip(ids.tolist(), ends, strict=True)]
        new = [i for i, text in enumerate(texts) if text not in self.kept]
        if new:
            self.keep(ids[new], [texts[i] for i in new])
        x = nn.utils.rnn.pad_sequence([self.kept[t] for t in texts], True)  # (B, T, C)
        learning = gpt.trf_blocks[self.first :]
        x = learning[:-1](x)
        x = read_last(learning[-1], x, last) if learning else x[range(len(x)), last]
        return gpt.out_head(gpt.final_norm(x))
