"""The whole zoo, and seeded damage, through intake: the real sandbox, real rows, one outcome for each file."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shared.imaging.sandbox import Sandbox
from tests.damage import mutants
from tests.imaging.test_zoo import EXPECTED
from tests.miniature import Platform

Fate = tuple[str, str, str]  #: outcome, gate and reason
OTHER_BYTES: Fate = ("kept", "", "other-bytes")


@pytest.fixture
def real(platform: Platform) -> Iterator[Platform]:
    with Sandbox() as sandbox:
        platform.sandbox = sandbox  # type: ignore[assignment]
        platform.add_model()
        yield platform


def fates(platform: Platform) -> dict[str, Fate]:
    """The outcome of each file below the archive, or of its image if it was taken in."""
    with platform.store.reading() as connection:
        rows = connection.execute(
            sa.text(
                "SELECT f.path, CASE WHEN f.outcome = 'taken' THEN i.status ELSE f.outcome END, "
                "coalesce(CASE WHEN f.outcome = 'taken' THEN i.gate ELSE f.gate END, ''), "
                "coalesce(CASE WHEN f.outcome = 'taken' THEN i.reason ELSE f.reason END, '') "
                "FROM file f LEFT JOIN image i ON i.id = f.image_id"
            )
        ).all()
    return {name_of(platform, row[0]): (row[1], row[2], row[3]) for row in rows}


def name_of(platform: Platform, path: bytes) -> str:
    return Path(os.fsdecode(path)).relative_to(platform.folder / "archive").as_posix()


def take_in(platform: Platform, **rules: Any) -> None:
    """Scan, and encode until nothing is due."""
    platform.scan(**rules)
    while platform.encode():
        pass


def others_of_a_uid(platform: Platform, names: set[str]) -> list[set[str]]:
    """The named files in groups, each with at most one file per image."""
    with platform.store.reading() as connection:
        rows = connection.execute(sa.text("SELECT image_id, path FROM file ORDER BY path")).all()
    rounds: list[set[str]] = []
    met: Counter[int] = Counter()
    for image_id, path in rows:
        name = name_of(platform, path)
        if name in names:
            if met[image_id] == len(rounds):
                rounds.append(set())
            rounds[met[image_id]].add(name)
            met[image_id] += 1
    return rounds


def test_every_file_of_the_zoo_has_the_outcome_that_is_argued_for(real: Platform, data_dir: Path) -> None:
    archive, zoo = real.folder / "archive", data_dir / "dicom_zoo"
    archive.symlink_to(zoo)
    take_in(real)
    with EXPECTED.open(encoding="utf-8", newline="") as rows:
        expected = {row["file"]: (row["outcome"], row["gate"], row["reason"]) for row in csv.DictReader(rows)}
    found = fates(real)
    assert found.keys() - expected.keys() == {"manifest.csv", "SOURCE.md"}
    # the zoo holds 64 files that are another encoding or a damaged copy of an earlier one, under the same UID: a scan
    # keeps the first one it meets. Below, each of them takes the place of the first
    kept = {name for name, fate in found.items() if fate == OTHER_BYTES}
    assert len(kept) == 64
    assert {name: fate for name, fate in found.items() if expected.get(name, fate) != fate and name not in kept} == {}
    for number, names in enumerate(others_of_a_uid(real, kept)):
        archive.unlink()
        archive.symlink_to(real.folder / str(number))
        for name in names:
            (archive.readlink() / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(zoo / name, archive.readlink() / name)
        take_in(real, same_uid="always")
        found = fates(real)
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    assert real.sandbox.deaths == 0  # type: ignore[attr-defined]


def test_damaged_files_have_an_outcome_each_and_nothing_of_ours_dies(real: Platform) -> None:
    archive = real.folder / "archive"
    archive.mkdir()
    for n, (_, data) in enumerate(mutants(seed=3, count=200)):
        (archive / f"{n:03}.dcm").write_bytes(data)
    take_in(real)
    found = fates(real)
    assert len(found) == 200
    outcomes = Counter(outcome for outcome, _, _ in found.values())
    assert outcomes.keys() <= {"encoded", "quarantined", "failed", "empty", "kept", "same"}
    assert min(outcomes[one] for one in ("encoded", "quarantined", "failed", "kept")) > 0
