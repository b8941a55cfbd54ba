from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.imaging.sandbox import Sandbox
from tests.miniature import Platform


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """A folder in memory: see `tests.memory`."""
    return quick_path


@pytest.fixture
def small(database_url: str, tmp_path: Path) -> Iterator[Platform]:
    """A platform with a model, real files and the real sandbox."""
    made = Platform(database_url, tmp_path)
    made.sandbox = Sandbox()  # type: ignore[assignment]
    made.add_model()
    yield made
    made.sandbox.close()  # type: ignore[attr-defined]
    made.close()
