"""Write files so that no reader ever finds half of one."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; if all goes well, the new file replaces `path`.

    Makes the folder if there is none. A symbolic link stays, and the file that it
    points to is replaced. After an error `path` is as it was, and the error names it.

    Raises:
        OSError: if `path` is a folder, a device or a pipe; it stays as it is.
    """
    path = Path(os.path.realpath(path))  # still a link if it leads to itself
    if path.is_symlink() or path.exists() and not path.is_file():
        raise OSError(
            f"{path} is not an ordinary file but a folder, a device, a pipe or a link "
            "to itself, and replacing it would destroy it; name another path"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name may have 255 bytes, so the draft of a long one is cut
    draft = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")
    try:
        yield draft
        with open(draft, "r+b") as file:
            os.fsync(file.fileno())  # it is on the disk before it gets its name
        os.replace(draft, path)
    except Exception as error:  # some, such as safetensors', do not name the file
        error.add_note(f"{path} was not written; what was there before is still there.")
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that no reader ever sees half of it."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file to `path` in one step."""
    with replacing(path) as draft:
        shutil.copyfile(source, draft)


def extend_record(
    path: Path, facts: Mapping, seeds: Iterable[int], run: Callable[[int], Mapping]
) -> dict:
    """A record of runs, one for each seed; each new one is written when it is done.

    Runs of an earlier call are kept if their record was made of the same:
    `facts["made_of"]` says of what. `run(seed)` gives a run, with its "seed".
    """
    record = {**facts, "runs": []}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old.get("made_of") == record["made_of"]:
            record["runs"] = old["runs"]
    done = {kept["seed"] for kept in record["runs"]}
    for seed in seeds:
        if seed not in done:
            record["runs"].append(run(seed))
            write_atomically(path, json.dumps(record, indent=0) + "\n")
    return record
