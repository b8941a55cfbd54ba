from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.miniature import Platform


@pytest.fixture
def platform(database_url: str, tmp_path: Path) -> Iterator[Platform]:
    made = Platform(database_url, tmp_path)
    yield made
    made.close()
