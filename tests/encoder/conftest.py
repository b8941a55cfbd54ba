"""Models built once per run, and real images."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.encoder.build import build
from shared.types import Pixels

Built = Callable[[str], Path]


@pytest.fixture(scope="session")
def built(common: Path) -> Built:
    """The folder of an untrained model of the architecture (seed 0); read only."""
    models = common / "models"
    models.mkdir(exist_ok=True)

    def folder(architecture: str) -> Path:
        path = models / architecture
        with (models / f"{architecture}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be building it
            if not path.exists():
                build(path, architecture, architecture, "random:0")
        return path

    return folder


@pytest.fixture(scope="session")
def radiology(data_dir: Path) -> Callable[[str, int], tuple[Pixels, NDArray[np.int64]]]:
    """Real images of six body parts with their classes: the first `n` of each class of a split, at 224 x 224."""
    archive = np.load(data_dir / "radiology_mednist" / "mednist_9k_64.npz")

    def some(split: str, n: int) -> tuple[Pixels, NDArray[np.int64]]:
        labels = archive[f"{split}_labels"].ravel().astype(np.int64)
        chosen = np.concatenate([np.flatnonzero(labels == c)[:n] for c in range(6)])
        small = archive[f"{split}_images"][chosen].astype(np.float32) / 255
        index = (np.arange(224) * 64) // 224
        return small[:, index][:, :, index], labels[chosen]

    return some


def precision_at_1(gallery: NDArray[np.float32], queries: NDArray[np.float32], of: NDArray, wanted: NDArray) -> float:
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (gallery, queries)]
    return float((of[(unit[1] @ unit[0].T).argmax(1)] == wanted).mean())


@pytest.fixture(scope="session")
def p_at_1() -> Callable[..., float]:
    return precision_at_1
