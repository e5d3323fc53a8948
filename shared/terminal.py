"""Print beside a progress bar what any terminal can show."""

import sys

from tqdm.auto import tqdm

__all__ = ["say"]


def say(text: str) -> None:
    """Print a line as `print` does, leaving a progress bar alone.

    A terminal that does not know a letter, such as one of Windows' older encodings,
    shows a question mark instead: no training ends because of its samples.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, "replace").decode(encoding))
