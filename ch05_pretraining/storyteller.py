"""The reader's storyteller: where it is kept, and how later chapters find it."""

from pathlib import Path

import torch

from ch05_pretraining.tensor_files import read_checkpoint
from ch05_pretraining.weights import (
    build_pretrained,
    load_checkpoint,
    read_gpt2_folder,
    save_gpt2_folder,
)
from shared.ch02 import BPETokenizer
from shared.ch04 import GPTModel
from shared.data import cache_folder
from shared.data import get as data_path

__all__ = ["load_storyteller", "keep_storyteller", "storyteller_folder", "go_on"]

STORYTELLER_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def storyteller_folder() -> Path:
    """Where your own storyteller is kept: in your cache."""
    return cache_folder() / "storyteller"


def stored_storyteller() -> Path:
    """The folder of the course's copy, all of whose files are there and intact."""
    return [data_path(f"storyteller/{name}") for name in STORYTELLER_FILES][0].parent


def go_on(
    path: Path,
    model: GPTModel,
    optimizer: torch.optim.Optimizer,
    last: int,
    anew: bool = True,
) -> dict:
    """How far an earlier run to the same last step has come, put back; or a new one.

    If that run has ended, a new one begins, unless `anew` is false.

    Raises:
        ValueError: if the file is damaged, or of another model; the message names it.
    """
    fresh = {"step": 0, "last": last, "tokens": 0, "looks": []}
    if not path.exists():
        return fresh
    progress = read_checkpoint(path)[0]["progress"]
    if progress["last"] != last or anew and progress["step"] == last:
        return fresh
    return load_checkpoint(path, model, optimizer)


def keep_storyteller(
    model: GPTModel,
    tokenizer: BPETokenizer,
    folder: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Save a storyteller that has learned enough, so that later chapters find it.

    Its last file is written last; until then `load_storyteller` gives the course's.
    """
    folder = Path(folder or storyteller_folder())
    (folder / STORYTELLER_FILES[0]).unlink(missing_ok=True)
    tokenizer.save(folder / STORYTELLER_FILES[2])
    save_gpt2_folder(model, folder, dtype)


def load_storyteller(
    device: torch.device | str = "cpu",
) -> tuple[GPTModel, BPETokenizer]:
    """Your storyteller, if you have trained it to the end, or the course's copy.

    The model is in float32 and in evaluation mode; its tokenizer comes with it.

    Raises:
        ValueError: if a file of yours is damaged; the message names it.
    """
    folder = storyteller_folder()
    if not (folder / STORYTELLER_FILES[0]).exists():
        folder = stored_storyteller()
    tokenizer = BPETokenizer.load(folder / STORYTELLER_FILES[2])
    model = build_pretrained(*read_gpt2_folder(folder), device=device)
    if tokenizer.n_vocab != model.cfg["vocab_size"]:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.n_vocab} tokens and the model "
            f"{model.cfg['vocab_size']}; delete the folder, and train the model again"
        )
    return model, tokenizer
