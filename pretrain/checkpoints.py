"""What a pretraining run keeps on disk: its checkpoints and its log."""

import contextlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pretrain.hardware import Workers
from shared.files import write_atomically


class PlainReader(dcp.FileSystemReader):
    """Reads a checkpoint without running what its index says.

    The index is a pickle: a small program that can call any function by its name. So
    this reader refuses every name that a checkpoint of tensors does not need, and
    every change of an object that the pickle has not made itself.
    """

    def read_metadata(self, *args, **kwargs):
        """The index of the checkpoint.

        Raises:
            ValueError: if it names anything else, or is damaged.
        """
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _PlainUnpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__!r}")
            if not isinstance(metadata.storage_meta, StorageMeta | None):
                raise pickle.UnpicklingError(f"it names {metadata.storage_meta}")
        except Exception as error:  # bytes gone wrong can raise anything
            raise ValueError(
                f"{path} is damaged or no checkpoint's ({error}); delete {path.parent} "
                "to go on from the checkpoint before it"
            ) from None
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


# What an index is made of. Filling such an object changes no other one.
RECORDS = (
    *(ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta),
    *(TensorProperties, TensorStorageMetadata, _StorageInfo),
)
PLAIN_NAMES = {
    *((record.__module__, record.__name__) for record in RECORDS),
    *(("torch", name) for name in ("Size", "device")),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}


class _PlainUnpickler(pickle._Unpickler):  # that in C cannot be told about BUILD
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str):
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in PLAIN_NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)

    def load_build(self) -> None:
        """Fill a record. Filling a class, say, would change every instance of it."""
        if type(self.stack[-2]) not in RECORDS:
            raise pickle.UnpicklingError(f"it changes {self.stack[-2]!r}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def saved_states(folder: Path) -> list[Path]:
    """The folders of the states that are there whole, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


class Checkpoints:
    """The saved states of a run, each a folder that is there whole or not at all.

    Args:
        folder: gets a folder `step-00001000` for each.
        keep: how many of them stay.
        workers: the processes that save and load together.
    """

    def __init__(self, folder: Path, keep: int, workers: Workers):
        self.folder, self.keep, self.workers = folder, keep, workers
        if workers.first:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob("*.partial"):
                shutil.rmtree(unfinished)
        workers.wait()

    def complete(self) -> list[Path]:
        """The folders of the saved states, the oldest first."""
        return saved_states(self.folder)

    def save(self, step: int, state: dict, facts: dict) -> None:
        """Write the state after a step, then delete the oldest ones.

        Args:
            state: tensors, in nested dictionaries.
            facts: what JSON can hold.

        Raises:
            OSError: if the state cannot be written; the ones before it stay.
        """
        final = self.folder / f"step-{step:08d}"
        partial = final.with_suffix(".partial")
        try:
            with self._dcp_options() as options:
                writer = dcp.FileSystemWriter(partial)
                dcp.save(state, storage_writer=writer, **options)
            if self.workers.first:
                text = json.dumps({"step": step, **facts}, indent=2)
                (partial / "facts.json").write_text(text + "\n", encoding="utf-8")
        except (OSError, RuntimeError, CheckpointException) as error:
            if self.workers.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(self._complaint(step, error)) from error
        if self.workers.first:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in self.complete()[: -self.keep]:
                doomed = old.with_suffix(".partial")
                os.replace(old, doomed)
                shutil.rmtree(doomed)
        self.workers.wait()

    @contextlib.contextmanager
    def _dcp_options(self) -> Iterator[dict]:
        """What DCP must be told; with one process, its warning is dropped."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield {"no_dist": True} if self.workers.count == 1 else {}

    def _complaint(self, step: int, error: BaseException) -> str:
        """What to say when a state cannot be written."""
        reason = _last_line(error)
        free = shutil.disk_usage(self.folder).free / 1e6
        saved = self.complete()
        last = f"the last one is {saved[-1]}" if saved else "there is none before it"
        return (
            f"the checkpoint of step {step} cannot be written ({reason}); {last}. The "
            f"disk has {free:,.0f} MB left: make room, then give the command again"
        )

    def facts(self, path: Path) -> dict:
        """The facts that were saved with a state.

        Raises:
            ValueError: if they are damaged.
        """
        try:
            facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
            if not isinstance(facts, dict) or "step" not in facts:
                raise ValueError("it names no step")
        except (OSError, ValueError) as error:
            raise ValueError(self._damage(path, error)) from None
        return facts

    def load(self, path: Path, state: dict) -> None:
        """Read a saved state into the tensors of `state`.

        Raises:
            ValueError: if it is damaged.
        """
        reader = PlainReader(path)
        reader.read_metadata()  # a damaged index is better reported by us than by DCP
        try:
            with self._dcp_options() as options:
                dcp.load(state, storage_reader=reader, **options)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise ValueError(self._damage(path, error)) from error

    def _damage(self, path: Path, error: BaseException) -> str:
        """What to say when a state cannot be read."""
        return (
            f"{path} is damaged ({_last_line(error)}); delete it to go on from the "
            "checkpoint before it"
        )


def _last_line(error: BaseException) -> str:
    """The end of an error's text, which in DCP's is a whole traceback."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


class Log:
    """What happened, one JSON object a line; only the first process writes.

    Args:
        path: the file. Its lines after `step` are dropped, and so is its end, because
            all that will happen again.
        step: where the run begins or goes on.
        active: whether this process writes.
    """

    def __init__(self, path: Path, step: int, active: bool):
        self.path, self.active = path, active
        if not active:
            return
        kept = []
        if step > 0 and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # cut off by a kill
                    entry = json.loads(line)
                    if entry["step"] <= step and entry["event"] != "end":
                        kept.append(line + "\n")
        write_atomically(path, "".join(kept))

    def write(self, event: str, step: int, **values) -> None:
        """Add a line.

        Raises:
            OSError: if it cannot be written.
        """
        if not self.active:
            return
        line = json.dumps({"event": event, "step": step, **values})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be written ({error}); make room on the disk, then "
                "give the command again"
            ) from error
