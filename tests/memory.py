"""Folders in memory for engines that sync at every step: on a disk, their tests would mostly wait for it.

Kills of processes have the same effect as on a disk; a loss of power would lose the data, but no test simulates one.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path("/dev/shm")
ENOUGH = 6 << 30  #: bytes free beyond the tests' needs; with less, folders are on the disk


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not SHARED.is_dir() or shutil.disk_usage(SHARED).free < ENOUGH:
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(prefix="similis-tests-", dir=SHARED, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def quick_path(memory: Path) -> Iterator[Path]:
    """Replaces `tmp_path`."""
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def quick_folder(memory: Path) -> Iterator[Path]:
    """As `quick_path`, for a whole module."""
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
