"""Durable writes, and regular files."""

import os
import stat
from pathlib import Path

from shared.errors import Invalid


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that its content or its renames survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular(path: Path, what: str) -> Path:
    """Return the path if it is a regular file: opening a pipe waits for its writer, and a device may never end.

    Args:
        what: the name of the file in the error message, such as "the image file".

    Raises: `Invalid` if it is not a regular file; `OSError` if `stat` fails.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Invalid(f"{what} is not a regular file")
    return path
