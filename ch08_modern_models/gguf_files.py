"""GGUF files: their settings, and their tensors as the bytes that are stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader

__all__ = ["StoredTensor", "read_gguf"]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is in a file: how it is stored, its shape, its bytes.

    `kind` is GGUF's name of the format, such as "F32" or "Q4_1"; `shape` has the rows
    first, as PyTorch does; `data` are bytes (n,), read when they are used.
    """

    kind: str
    shape: tuple[int, ...]
    data: torch.Tensor


def read_gguf(path: str | Path) -> tuple[dict, dict[str, StoredTensor]]:
    """What a GGUF file says of itself, by key, and its tensors, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file, not all of one, or has tensors of a kind that
            the package `gguf` does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.errstate(all="ignore"):  # a broken file has absurd lengths
            reader = GGUFReader(path, mode="c")  # read when used, and never written
            metadata = {name: f.contents() for name, f in reader.fields.items()}
            tensors = {tensor.name: _stored(tensor) for tensor in reader.tensors}
    except Exception as error:  # numpy's and Python's, of many kinds, each for a lack
        raise ValueError(
            f"{path} is no complete GGUF file ({type(error).__name__}: {error}): it "
            "was cut short or changed, or is newer than the package gguf; get it again"
        ) from None
    return metadata, tensors


def _stored(tensor) -> StoredTensor:
    """The package's tensor as ours; it names the widths first, GGUF's own order."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = torch.from_numpy(tensor.data.reshape(-1).view(np.uint8))
    if data.numel() != tensor.n_bytes:
        raise ValueError(f"{tensor.name} has {data.numel()} of {tensor.n_bytes} bytes")
    return StoredTensor(tensor.tensor_type.name, shape, data)
