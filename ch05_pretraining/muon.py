"""AdamW, with Muon for the matrices of the blocks."""

import torch

from shared.precision import has_fast_bfloat16

__all__ = ["Muon"]


class Muon(torch.optim.AdamW):
    """AdamW for embeddings, norms and biases, and Muon for the matrices of the blocks.

    AdamW moves each number of a matrix by about the learning rate. Muon moves the whole
    matrix, by as much in the mean, and equally far in every direction that it has.

    Args:
        gpt: a model with `trf_blocks`.
        lr: learning rate of the matrices, about as long in steps as AdamW's.
        adam_lr: learning rate of everything else.

    Source: Jordan et al. (2024), Muon; the length of a step as in Liu et al. (2025),
    Muon is Scalable for LLM Training, section 2.2.
    """

    def __init__(
        self, gpt: torch.nn.Module, lr: float = 0.0006, adam_lr: float = 0.001
    ):
        matrices = [p for p in gpt.trf_blocks.parameters() if p.dim() == 2]
        others = [p for p in gpt.parameters() if all(p is not m for m in matrices)]
        groups = [{"params": matrices, "lr": lr}, {"params": others, "lr": adam_lr}]
        groups = [{**group, "full_rate": group["lr"]} for group in groups]
        super().__init__(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def slow_down(self, share: float) -> None:
        """From now on, use this share of the learning rates."""
        for group in self.param_groups:
            group["lr"] = share * group["full_rate"]

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:  # AdamW expects a count of steps in each state
                state.update(step=torch.tensor(0.0), mean=torch.zeros_like(p))
            state["mean"].lerp_(p.grad, 0.05)
            ahead = p.grad.lerp(state["mean"], 0.95)
            ahead = ahead.bfloat16() if has_fast_bfloat16(p.device) else ahead
            turned = orthogonal(ahead).to(p.dtype)
            p.sub_(group["lr"] * max(p.shape) ** 0.5 * turned)
            p.grad = None  # so AdamW leaves it alone
        super().step()


def orthogonal(G: torch.Tensor) -> torch.Tensor:
    """The matrix with all its singular values near 1, by five Newton-Schulz rounds."""
    X = G / G.norm().clamp(min=1e-7)
    X = X.T if G.shape[0] > G.shape[1] else X
    for _ in range(5):
        A = X @ X.T  # addmm rounds once where two steps would round twice
        A = torch.addmm(A, A, A, beta=-4.7750, alpha=2.0315)  # 2.03 A A - 4.78 A
        X = torch.addmm(X, A, X, beta=3.4445)  # 3.44 X + A X
    return X.T if G.shape[0] > G.shape[1] else X
