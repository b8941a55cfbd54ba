"""What is written survives a power cut."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """What was written to the file, or renamed in the folder, stays so after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
