"""What is written survives a power cut, and what is read has an end."""

import os
import stat
from pathlib import Path

from shared.errors import Invalid


def sync(path: Path) -> None:
    """What was written to the file, or renamed in the folder, stays so after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular(path: Path, what: str) -> Path:
    """The path, where a file stands: opening a pipe would wait for its writer, and a device need have no end.

    Args:
        what: a person's word for it, such as "the image file".

    Raises: `Invalid`; `OSError` where nothing can be found out about it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Invalid(f"{what} is no regular file")
    return path
