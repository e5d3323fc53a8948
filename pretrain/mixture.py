"""The order in which a run reads its sources."""

import math

import numpy as np
import torch

from pretrain.prepare import TokenShards


class Mixture:
    """All training sequences in the order of the run, as a function of their number.

    An epoch has every window of a source as often as `repeats` says (0.5: a random
    half of them), shuffled together. The next epoch has another order.

    Args:
        sources: `TokenShards` by name.
        repeats: see `Settings`.
        seed: decides the order.

    Raises:
        ValueError: for repeats of an unknown source or below 0, or no window at all.
    """

    def __init__(
        self, sources: dict[str, TokenShards], repeats: dict[str, float], seed: int
    ):
        for name, times in repeats.items():
            if name not in sources:
                raise ValueError(
                    f"repeats names {name!r}, but the sources are "
                    f"{', '.join(sources)}; name those, or none (--repeats '{{}}')"
                )
            if times < 0:
                raise ValueError(f"repeats of {name} must be 0 or more, not {times}")
        self.sources, self.seed, self.epoch = list(sources.values()), seed, None
        self.counts = {
            name: round(repeats.get(name, 1.0) * len(shards))
            for name, shards in sources.items()
        }
        if len(self) == 0:
            raise ValueError(
                "the sources hold no full sequence; prepare more text, or train with "
                "a smaller model.context_length"
            )

    def __len__(self) -> int:
        """Sequences in an epoch."""
        return sum(self.counts.values())

    def _plan(self, epoch: int) -> np.ndarray:
        """The pairs (source, window) of an epoch in their order, (sequences, 2)."""
        rng = np.random.default_rng([self.seed, epoch])
        pairs = []
        for number, (shards, count) in enumerate(
            zip(self.sources, self.counts.values(), strict=True)
        ):
            times = math.ceil(count / len(shards)) if count else 0
            order = [rng.permutation(len(shards)) for _ in range(times)]
            windows = np.concatenate([*order, np.empty(0, np.int64)])[:count]
            pairs.append(np.stack([np.full(count, number), windows], axis=1))
        return rng.permutation(np.concatenate(pairs).astype(np.int32))

    def __getitem__(self, i: int) -> np.ndarray:
        """Sequence i of the run, (T + 1,)."""
        epoch, place = divmod(i, len(self))
        if epoch != self.epoch:
            self.epoch, self.plan = epoch, self._plan(epoch)
        source, window = self.plan[place]
        return self.sources[source][window]


def as_batch(
    sequences: list[np.ndarray], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, each (B, T), of sequences of T + 1 tokens."""
    ids = torch.from_numpy(np.stack(sequences))
    if device.type == "cuda":
        ids = ids.pin_memory().to(device, non_blocking=True)
    return ids[:, :-1], ids[:, 1:]
