"""A layer's cache of keys and values; appendix F's writing.ipynb explains it."""

import torch

from ch03_attention.guards import check_at_least_one, check_new_keys

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of the `length` tokens that one attention layer has already read.

    Room for `max_length` tokens is taken at the first `append`; meant for generation,
    under `torch.no_grad()`. Source: Pope et al. (2023).
    """

    def __init__(self, max_length: int) -> None:
        check_at_least_one("max_length", max_length)
        self.max_length = max_length
        self.length = 0
        self.keys: torch.Tensor | None = None  # (B, H, max_length, D)
        self.values: torch.Tensor | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens' (B, H, T, D); return views of all (B, H, length, D)."""
        check_new_keys(self, keys)
        B, H, T, D = keys.shape
        if self.length == 0:
            self.keys = keys.new_empty(B, H, self.max_length, D)
            self.values = values.new_empty(B, H, self.max_length, D)
        start, self.length = self.length, self.length + T
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def mask(self, T: int) -> torch.Tensor | None:
        """Which tokens each of the newest T may attend to: (T, length), True if it may.

        None if the fused function needs no mask: for one token, which may attend to
        all, and for a text that begins here, where `is_causal=True` says the same.
        """
        if T == 1 or T == self.length:
            return None
        allowed = torch.ones(T, self.length, dtype=torch.bool, device=self.keys.device)
        return allowed.tril(self.length - T)
