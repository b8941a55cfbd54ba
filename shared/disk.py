"""Durable writes, and what is at a path."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from shared.errors import Invalid


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that its content or its renames survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exists(path: Path) -> bool:
    """Return whether anything is at the path, behind links.

    `Path.exists` returns False from Python 3.14 on also for a folder that may not be read, or a share that is away.

    Raises: `OSError` if it cannot be told.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def regular(path: Path, what: str) -> Path:
    """Return the path if it is a regular file: opening a pipe waits for its writer, and a device may never end.

    Args:
        what: the name of the file in the error message, such as "the image file".

    Raises: `Invalid` if it is not a regular file; `OSError` if `stat` fails.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Invalid(f"{what} is not a regular file")
    return path


def toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file; `what` as in `regular`. Raises: `Invalid`."""
    try:
        return tomllib.loads(regular(path, what).read_text(encoding="utf-8-sig"))
    except OSError:
        raise Invalid(f"{what} cannot be read") from None
    except ValueError as error:
        raise Invalid(f"{what} is not valid TOML: {error}") from None
