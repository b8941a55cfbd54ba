"""What every test may use: shared data if it is there, and nothing of the developer's own environment."""

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.engines"]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"

for name in [n for n in os.environ if n.startswith("SIMILIS_") and n != "SIMILIS_QDRANT__URL"]:
    del os.environ[name]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """`../shared/data`, or a visible skip."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here")
    return DATA
