"""Which rows a data loader gives, whatever draws their order."""

from collections.abc import Iterable, Sequence

from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

__all__ = ["has_own_order", "rows_of"]


def has_own_order(loader: Iterable) -> bool:
    """Whether batches come as they come: from a list, a stream, or batches laid out."""
    if not isinstance(loader, DataLoader) or isinstance(
        loader.dataset, IterableDataset
    ):
        return True
    batches = loader.batch_sampler  # None: each row of the data is a batch already
    return batches is not None and not hasattr(batches, "batch_size")


def rows_of(loader: DataLoader) -> Dataset:
    """The data that a loader gives in one pass, in the order of its data set.

    A batch sampler of one's own is taken to give all rows.

    Raises:
        TypeError: if a sampler gives other rows each time, or nobody can say which.
    """
    # torch's batch sampler draws from a sampler of its own
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    chosen = sampler.indices if isinstance(sampler, SubsetRandomSampler) else sampler
    if isinstance(chosen, Sequence):
        return Subset(loader.dataset, sorted(chosen))
    if isinstance(sampler, RandomSampler):
        whole = not sampler.replacement and sampler.num_samples == len(loader.dataset)
    else:
        whole = isinstance(sampler, SequentialSampler)
    if not whole:
        raise TypeError(
            f"a loader with a {type(sampler).__name__} may give other rows each time; "
            "measure on a loader of its own, over "
            "torch.utils.data.Subset(data, indices)"
        )
    return loader.dataset
