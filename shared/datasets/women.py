"""The women of a sample archive, their exams and findings, generated from a seed.

A woman's data depend only on the seed and her index, so a larger archive contains the smaller one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from shared.datasets.lesions import Lesion
from shared.datasets.phantom import Breast

SIDES = ("R", "L")
DENSITIES = "ABCD"


@dataclass(frozen=True, slots=True)
class Finding:
    """A radiologist's finding in one breast."""

    lesion: str
    birads: int
    pathology: str
    size_mm: tuple[float, float] = (0.0, 0.0)
    coarse: bool = False


NOTHING = Finding("none", 1, "normal")
#: one block of a permuted sequence: every ten women have all ten findings
FINDINGS = (
    NOTHING,
    NOTHING,
    NOTHING,
    Finding("calcifications", 2, "benign", (12, 22), coarse=True),
    Finding("mass", 2, "benign", (10, 14)),
    Finding("mass", 3, "benign", (14, 24)),
    Finding("mass", 4, "malignant", (16, 26)),
    Finding("calcifications", 4, "benign", (10, 18)),
    Finding("calcifications", 5, "malignant", (16, 28)),
    Finding("spiculated", 5, "malignant", (14, 24)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """Four views on one day."""

    woman: int
    number: int  #: 0 is the newest
    day: date
    birth_year: int
    breasts: tuple[Breast, Breast]  #: right, left
    findings: tuple[Finding, Finding]


def exams(seed: int) -> Iterator[Exam]:
    """Yield the exams of infinitely many women; every third has an earlier exam, which follows her newest."""
    woman = 0
    while True:
        yield _exam(seed, woman, 0)
        if woman % 3 == 1:
            yield _exam(seed, woman, 1)
        woman += 1


def _exam(seed: int, woman: int, number: int) -> Exam:
    rng = np.random.default_rng([seed, woman])
    finding = FINDINGS[_permuted(seed, 100, woman, len(FINDINGS))]
    density = DENSITIES[_permuted(seed, 101, woman, len(DENSITIES))]
    side = SIDES[int(rng.integers(2))]
    depth, height = float(rng.uniform(0.46, 0.76)), float(rng.uniform(0.28, 0.42))
    place = (float(rng.uniform(0.35, 0.7)), float(rng.uniform(-0.25, 0.5)), float(rng.uniform(-0.2, 0.4)))
    size_mm = float(rng.uniform(*finding.size_mm))
    newest = date(2024, 1, 8) + timedelta(days=int(rng.integers(0, 500)))
    earlier = timedelta(days=int(rng.integers(360, 760)))
    birth_year = int(rng.integers(1945, 1980))
    if number:
        finding, size_mm = _before(finding, size_mm)
    lesion = None
    if finding.lesion != "none":
        lesion = Lesion(kind=finding.lesion, place=place, size_mm=size_mm, coarse=finding.coarse, seed=(seed, woman))
    breasts = [
        Breast(
            woman=(seed, woman),
            side=s,
            exam=number,
            density=density,
            depth=depth,
            height=height,
            lesion=lesion if s == side else None,
        )
        for s in SIDES
    ]
    return Exam(
        woman=woman,
        number=number,
        day=newest - number * earlier,
        birth_year=birth_year,
        breasts=(breasts[0], breasts[1]),
        findings=(finding if side == "R" else NOTHING, finding if side == "L" else NOTHING),
    )


def _before(finding: Finding, size_mm: float) -> tuple[Finding, float]:
    """Return finding and size a year or two earlier: a malignant finding was small or absent, others nearly equal."""
    if finding.pathology != "malignant":
        return finding, 0.95 * size_mm
    if finding.lesion == "spiculated":
        return NOTHING, 0.0
    return Finding(finding.lesion, 3, "benign", coarse=finding.coarse), 0.55 * size_mm


def _permuted(seed: int, purpose: int, woman: int, size: int) -> int:
    """Return the woman's number in a sequence in which every block of `size` contains each number once."""
    block, place = divmod(woman, size)
    return int(np.random.default_rng([seed, purpose, block]).permutation(size)[place])
