"""The file of tombstones outside the database."""

import resource
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.errors import Invalid
from shared.pipeline import erase, tombstone_file
from shared.pipeline.tombstone_file import TombstoneFile
from tests.miniature import SECRET, Platform


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(8)
    return platform


def kept(platform: Platform, path: Path) -> None:
    with platform.begin() as db:
        tombstone_file.write(db, path)


def replayed(platform: Platform, path: Path) -> int:
    with platform.begin() as db:
        return tombstone_file.replay(db, path, SECRET)


def test_what_was_erased_after_a_backup_is_erased_again_and_can_be_lifted(filled: Platform, tmp_path: Path) -> None:
    path = tmp_path / "tombstones"
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
        tombstone_file.write(db, path)
        db.rollback()  # resets the database, but not the file
    assert replayed(filled, path) == 4
    filled.project()
    assert filled.index(filled.published().collection).count() == 4
    assert replayed(filled, path) == 0
    with filled.begin() as db:
        assert erase.lift_study(db, SECRET, "1.2.4.1") == 5
    filled.scan()
    filled.encode()
    filled.project()
    assert filled.index(filled.published().collection).count() == 8


def test_a_file_without_lines_or_no_file_erases_nothing(filled: Platform, tmp_path: Path) -> None:
    kept(filled, tmp_path / "tombstones")
    assert (tmp_path / "tombstones").read_text() == ""
    assert replayed(filled, tmp_path / "tombstones") == 0
    assert replayed(filled, tmp_path / "nothing") == 0


@pytest.mark.parametrize("text", ["{", '{"digest": "zz", "kind": "image", "operation": "x"}', '{"kind": "image"}'])
def test_a_damaged_file_is_refused_and_nothing_is_erased(filled: Platform, tmp_path: Path, text: str) -> None:
    (tmp_path / "tombstones").write_text(text)
    with pytest.raises(Invalid):
        replayed(filled, tmp_path / "tombstones")


def test_the_keeper_writes_when_something_changed_and_only_then(filled: Platform, tmp_path: Path) -> None:
    path = tmp_path / "tombstones"
    keeper = TombstoneFile(path)

    def keep() -> bool:
        before = path.stat().st_ino if path.exists() else None
        with filled.begin() as db:
            keeper.update(db)
        return path.exists() and path.stat().st_ino != before

    assert not keep()
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
    assert keep()
    assert len(path.read_text().splitlines()) == 5
    assert path.stat().st_mode & 0o777 == 0o600
    assert not keep()
    filled.project()
    with filled.begin() as db:
        erase.lift_study(db, SECRET, "1.2.4.1")
        assert db.execute(sa.text("SELECT count(*) FROM tombstone")).scalar_one() == 0
    assert keep()
    assert path.read_text() == ""


def test_a_disk_that_does_not_take_the_file_keeps_the_one_before_and_nothing_else(
    filled: Platform, tmp_path: Path
) -> None:
    """The sweep tries again every two seconds."""
    path = tmp_path / "tombstones"
    kept(filled, path)
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            kept(filled, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir() if one.is_file()] == [("tombstones", "")]


def test_what_was_lifted_is_not_unknown(filled: Platform, tmp_path: Path) -> None:
    path = tmp_path / "tombstones"
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
    kept(filled, path)
    filled.project()
    with filled.begin() as db:
        erase.lift_study(db, SECRET, "1.2.4.1")
    with filled.begin() as db:
        TombstoneFile(path).update(db)  # a worker that was just started
    assert path.read_text() == ""
    assert not path.with_name("tombstones.before").exists()


@pytest.mark.parametrize("same", [False, True], ids=["of a worker that begins", "of a worker that went on"])
def test_a_keeper_on_an_older_database_keeps_what_only_the_file_knows(
    filled: Platform, tmp_path: Path, same: bool
) -> None:
    path = tmp_path / "tombstones"
    keepers = [TombstoneFile(path)] * 3 if same else [TombstoneFile(path) for _ in range(3)]
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
        keepers[0].update(db)
        db.rollback()  # the database is restored from before the erasure, then another study is erased
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.2")
    with filled.begin() as db:
        keepers[1].update(db)
        keepers[2].update(db)
    before = path.with_name("tombstones.before")
    assert (len(path.read_text().splitlines()), len(before.read_text().splitlines())) == (5, 5)
    assert before.stat().st_mode & 0o777 == 0o600
    assert replayed(filled, before) == 4
