"""Safetensors files: read a tensor at a time, and checkpoints that notice damage."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ch05_pretraining.guards import check_record
from shared.files import replacing

__all__ = ["TensorFile", "pieces_of", "copy_tensor", "write_checkpoint"]
__all__ += ["read_checkpoint", "named_tensors", "pack_optimizer", "unpack_optimizer"]

ROWS = 2**22  # numbers in a piece: 16 MB of float32


class TensorFile(Mapping):
    """A safetensors file as a mapping from names to tensors, read one at a time.

    Attributes:
        metadata: the strings stored beside the tensors, by name.
        shapes: the shape of each tensor, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short, or no safetensors file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no file {self.path}{_hint(self.path)}")
        try:
            with safe_open(self.path, framework="pt") as file:
                self.metadata = file.metadata() or {}
                self.shapes = {
                    name: tuple(file.get_slice(name).get_shape())
                    for name in sorted(file.keys())
                }
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is no complete safetensors file ({error}): it was cut "
                "short or overwritten; delete it, and get or save it again"
            ) from None

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        with safe_open(self.path, framework="pt") as file:
            try:
                return file.get_tensor(name)
            except AttributeError:  # the file has it, and this PyTorch does not
                kind = file.get_slice(name).get_dtype()
                raise ValueError(
                    f"{self.path}: {name} is stored as {kind}, which PyTorch "
                    f"{torch.__version__} does not know; use a newer one"
                ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """Copies of the tensors whose names begin with this one and a point."""
        found = [key for key in self if key.startswith(f"{name}.")]
        return {key.removeprefix(f"{name}."): self[key].clone() for key in found}

    def pieces(
        self, name: str, numbers: int = ROWS
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some rows of a tensor after the other: where they belong, and their values.

        Args:
            name: the tensor, of one dimension at least.
            numbers: how many numbers a piece has at most, if a row has no more.
        """
        shape = self.shapes[name]
        n_rows = max(1, numbers // max(1, math.prod(shape[1:])))
        for start in range(0, shape[0], n_rows):
            rows = slice(start, start + n_rows)
            # opened anew: what was read stays in memory as long as the file is mapped
            with safe_open(self.path, framework="pt") as file:
                yield rows, file.get_slice(name)[rows]


def _hint(path: Path) -> str:
    """What may be meant by a file that is not there."""
    if path.is_dir():
        return "; for a folder use read_gpt2_folder"
    whole = "; load the model in transformers and save it whole: save_pretrained"
    if path.with_name(f"{path.name}.index.json").exists():
        return f", but parts of it{whole}(folder, max_shard_size='100GB')"
    if path.with_name("pytorch_model.bin").exists():
        return f", but a pickle, which may run code{whole}(folder)"
    return ""


def pieces_of(params: Mapping, name: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """A tensor as `TensorFile.pieces`; one that is in memory already is one piece."""
    if isinstance(params, TensorFile):
        yield from params.pieces(name)
    else:
        yield slice(None), torch.as_tensor(params[name])


def copy_tensor(
    params: Mapping, name: str, parts: Sequence[torch.Tensor], transposed: bool
) -> None:
    """Copy a tensor into one of the same shape, or into several that it is made of.

    It is copied a few rows at a time; `transposed` says that its rows are columns of
    the parts.
    """
    for rows, piece in pieces_of(params, name):
        place = (slice(None), rows) if transposed else rows
        piece = piece.T if transposed else piece
        for part, chunk in zip(parts, piece.chunk(len(parts)), strict=True):
            part[place].copy_(chunk)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers that make up a model; tied ones once."""
    stored = model.state_dict().keys()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in stored}


def _sha256(record: dict, tensors: Mapping[str, torch.Tensor]) -> str:
    """A fingerprint of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors; those that share memory with an earlier one as copies."""
    seen, apart = set(), {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def _plain_json(value: object, where: str = "") -> object:
    """A record as JSON gives it back: numbers of numpy and torch as Python's.

    Raises:
        TypeError: for what JSON cannot hold, or would change; it names the key.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(
                    f"{where or 'the record'} has the key {key!r}, which a file would "
                    f"turn into a text; use {str(key)!r}"
                )
        return {k: _plain_json(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; it "
        "takes numbers, texts, lists and dictionaries, and tensors by name in progress"
    )


def write_checkpoint(
    path: str | Path, record: dict, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write tensors, and a record that JSON can hold, into one file, whole or not.

    Raises:
        OSError: if the file cannot be written; an older one stays.
    """
    path = Path(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    tensors = _apart(tensors)
    record = _plain_json(record)
    record = {**record, "sha256": _sha256(record, tensors)}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"checkpoint": json.dumps(record)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None


def read_checkpoint(path: str | Path) -> tuple[dict, TensorFile]:
    """The record and the tensors of an intact checkpoint.

    Raises:
        FileNotFoundError, ValueError: as `TensorFile`; also if it is no checkpoint, or
            its contents are not those that were saved.
    """
    file = TensorFile(path)
    if "checkpoint" not in file.metadata:
        raise ValueError(
            f"{path} was not written by save_checkpoint; for a folder in GPT-2's "
            "format use read_gpt2_folder"
        )
    try:
        record = json.loads(file.metadata["checkpoint"])
    except (ValueError, RecursionError):
        record = None
    check_record(record, str(path))
    sha256 = record.pop("sha256", None)
    if _sha256(record, file) != sha256:
        raise ValueError(
            f"{path} is damaged: its contents no longer have the sha256 that they were "
            "saved with; use an older checkpoint"
        )
    return record, file


def _parameter_names(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> list[list[str]]:
    """The names of the parameters in each of the optimizer's groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    if any(parameter not in names for group in groups for parameter in group):
        raise ValueError(
            "the optimizer holds parameters that are not the model's; make it with "
            "model.parameters()"
        )
    return [[names[parameter] for parameter in group] for group in groups]


def pack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict, dict[str, torch.Tensor]]:
    """An optimizer's settings, and its tensors by the names of their parameters.

    Raises:
        ValueError, TypeError: if it is another model's, or keeps more than tensors.
    """
    kind, groups, tensors = type(optimizer).__name__, [], {}
    names = _parameter_names(optimizer, model)
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        groups.append({**group, "params": group_names})
        for parameter, name in zip(group["params"], group_names, strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor):
                    raise TypeError(f"{kind} keeps {key!r} as {value!r}, not a tensor")
                tensors[f"{name}:{key}"] = value
    return {"kind": kind, "groups": groups}, tensors


def unpack_optimizer(
    saved: dict | None,
    tensors: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    where: str,
) -> dict:
    """What `pack_optimizer` made, as `optimizer.load_state_dict` wants it.

    Raises:
        ValueError: if there is nothing, or it is of another kind of optimizer.
    """
    kind = type(optimizer).__name__
    if saved is None:
        raise ValueError(f"{where} holds a model only, no state of an optimizer")
    if saved["kind"] != kind:
        raise ValueError(
            f"{where} holds the state of {saved['kind']}, which {kind} cannot use"
        )
    names = _parameter_names(optimizer, model)
    if [group["params"] for group in saved["groups"]] != names:
        raise ValueError(
            f"{where}: the optimizer's parameters were in other groups, or in another "
            "order; make it as it was made when the run began"
        )
    number = {name: i for i, name in enumerate(name for g in names for name in g)}
    state = {}
    for entry, tensor in tensors.items():
        name, _, key = entry.rpartition(":")
        if name not in number:
            raise ValueError(f"{where} has a state of {name!r}, which the model lacks")
        state.setdefault(number[name], {})[key] = tensor
    groups = []
    for group, own in zip(saved["groups"], optimizer.param_groups, strict=True):
        # JSON has lists where Python had tuples
        settings = {k: tuple(v) if type(v) is list else v for k, v in group.items()}
        for key, value in own.items():  # such as a rate that is a tensor
            if isinstance(value, torch.Tensor) and key in settings:
                settings[key] = value.new_tensor(settings[key])
        params = [number[name] for name in group["params"]]
        groups.append({**own, **settings, "params": params})
    return {"state": state, "param_groups": groups}
