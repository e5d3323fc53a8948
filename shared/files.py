"""Writing files so that none is ever half there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; if all goes well, what was written replaces `path`.

    Makes the folder if there is none. A symbolic link stays, and what it points to is
    replaced. After an error, which names it, `path` is as it was.

    Raises:
        OSError: if `path` is a folder, a device or a pipe, which stays as it is.
    """
    path = Path(os.path.realpath(path))  # still a link if it leads to itself
    if path.is_symlink() or path.exists() and not path.is_file():
        raise OSError(
            f"{path} is no ordinary file but a folder, a device, a pipe or a link to "
            "itself, and replacing it would destroy it; name another path"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with open(draft, "r+b") as file:
            os.fsync(file.fileno())  # on the disk before it gets the name
        os.replace(draft, path)
    except Exception as error:  # safetensors, for one, does not say which file
        error.add_note(f"{path} was not written; what stood there before still does.")
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step, so that no reader ever sees half of it."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file to `path` in one step."""
    with replacing(path) as draft:
        shutil.copyfile(source, draft)
