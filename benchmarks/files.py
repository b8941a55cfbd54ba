"""Files to take in: as large as a real mammogram, or so small that only the overhead is left."""

import datetime as dt
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shared.datasets.archive import variants
from shared.datasets.mammogram import SCANNERS, Identity, dataset, save
from shared.datasets.phantom import render
from shared.datasets.women import exams

SIDE = 128
DAY = dt.date(2024, 5, 6)


def full(folder: Path, count: int, seed: int) -> list[Path]:
    """2294 x 1914, 12 bits in 16, Explicit VR Little Endian, 8.8 MB each."""
    return [folder / record.file for record in variants(folder, count, seed)]


def small(folder: Path, count: int, seed: int) -> list[Path]:
    """128 x 128 pixels of the same kind, 34 kB each; four to a study, one study to a patient."""
    templates = [render(breast, view, SIDE, SIDE) for breast in next(exams(seed)).breasts for view in ("CC", "MLO")]
    rng, paths = np.random.default_rng(seed), []
    for n in range(count):
        who = Identity(
            study_name=f"{seed}/tiny/{n // 4}",
            patient=f"SYN-{seed}-T{n // 4:06d}",
            side="RRLL"[n % 4],
            view=("CC", "MLO")[n % 2],
            day=DAY,
            birth_year=1960,
            number=n % 4 + 1,
        )
        moved = np.roll(templates[n % 4], int(rng.integers(0, SIDE)), 0)
        noisy = moved ^ rng.integers(0, 8, moved.shape, dtype=np.uint16)
        paths.append(folder / f"{n // 1000:03d}" / f"{n:06d}.dcm")
        save(dataset(noisy, who, SCANNERS[0]), paths[-1])
    return paths


@contextmanager
def gone_afterwards(folder: Path) -> Iterator[Path]:
    """Yield a folder that is deleted with its contents afterwards: thousands of full-size files fill a disk."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
