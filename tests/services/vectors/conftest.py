from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """A folder in memory: see `tests.memory`."""
    return quick_path
