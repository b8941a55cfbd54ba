"""Only the registered bytes are encoded, whatever happens to the folder meanwhile."""

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.imaging.reasons import Reason, failed
from shared.types import Header
from tests.miniature import Platform, header


def fate(platform: Platform, n: int = 0) -> tuple[str, str | None]:
    with platform.store.reading() as connection:
        statement = sa.text("SELECT status, coalesce(reason, last_error) FROM image WHERE sop_uid = :uid")
        status, reason = connection.execute(statement, {"uid": f"1.2.3.{n + 1}"}).one()
        return status, reason


def encodings(platform: Platform) -> int:
    with platform.store.reading() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM encoding")).scalar_one())


def gone(platform: Platform, path: Path) -> None:
    path.unlink()
    platform.sandbox.pixels[os.fsencode(path)] = failed(Reason.UNREADABLE)


def back(platform: Platform, name: str, what: Header, content: bytes) -> Path:
    path = platform.put(name, what, content)
    platform.sandbox.pixels.pop(os.fsencode(path), None)
    return path


def away_and_rested(platform: Platform) -> None:
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET not_before = NULL"))


def test_an_image_never_gets_the_vector_of_who_overwrote_its_file(platform: Platform) -> None:
    platform.add_model()
    platform.put("x.dcm", header(0), b"of the one")
    platform.scan()
    platform.put("x.dcm", header(8), b"of the other")
    platform.encode()
    assert fate(platform) == ("failed", "file-changed")
    assert encodings(platform) == 0
    platform.scan()
    platform.encode()
    assert fate(platform, 8) == ("encoded", None)
    assert fate(platform) == ("failed", "file-changed")


def test_another_picture_of_the_same_uid_is_no_picture_of_the_image(platform: Platform) -> None:
    platform.add_model()
    platform.put("x.dcm", header(0), b"first")
    platform.scan(same_uid="never")
    platform.put("x.dcm", header(0), b"second, and longer")
    platform.encode()
    assert fate(platform) == ("failed", "file-changed")
    platform.scan(same_uid="never")
    platform.encode()
    assert fate(platform) == ("failed", "file-changed")


def test_the_uid_is_asked_where_size_and_time_say_nothing(platform: Platform) -> None:
    platform.add_model()
    path = platform.put("x.dcm", header(0), b"of the one")
    found = path.stat()
    platform.scan()
    platform.put("x.dcm", header(8), b"of another")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    platform.encode()
    assert fate(platform) == ("failed", "file-changed")


def test_a_file_that_was_only_touched_is_asked_for_its_bytes_and_encoded(platform: Platform) -> None:
    platform.add_model()
    path = platform.put("x.dcm", header(0))
    platform.scan()
    os.utime(path, ns=(1, 1))
    platform.encode()
    assert fate(platform) == ("encoded", None)


def test_the_usual_case_costs_no_second_reading(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.add_model()
    platform.put("x.dcm", header(0))
    platform.scan()
    monkeypatch.setattr(platform.sandbox, "inspect_many", None)
    platform.encode()
    assert fate(platform) == ("encoded", None)


def test_a_model_that_comes_later_takes_no_other_bytes_either_and_gets_its_own_back(platform: Platform) -> None:
    platform.add_model()
    platform.put("x.dcm", header(0), b"of the one")
    platform.scan()
    platform.encode()
    platform.project()
    found = (platform.folder / "archive" / "x.dcm").stat()
    platform.put("x.dcm", header(8), b"of the other")
    platform.add_model("second", seed=7, dim=32)
    platform.begin_generation("second")
    platform.reindex()
    assert encodings(platform) == 1
    with platform.store.reading() as connection:
        assert connection.execute(sa.text("SELECT state, reason FROM catch_up")).one() == ("failed", "file-changed")
    path = platform.put("x.dcm", header(0), b"of the one")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # restored, as it was
    platform.scan()
    platform.reindex()
    assert encodings(platform) == 2


def test_an_image_comes_back_by_itself_with_its_bytes(platform: Platform) -> None:
    platform.add_model()
    path = platform.put("x.dcm", header(0), b"of the one")
    found = path.stat()
    platform.scan()
    platform.put("x.dcm", header(8), b"of the other")
    platform.encode()
    platform.put("x.dcm", header(0), b"of the one")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # restored: only the row can show the change
    platform.scan()
    platform.encode()
    assert fate(platform) == ("encoded", None)


def test_an_archive_that_moved_before_it_was_encoded_is_encoded_where_it_is_met(platform: Platform) -> None:
    platform.add_model()
    old = [platform.put(f"old/{n}.dcm", header(n), b"picture %d" % n) for n in range(3)]
    platform.put("old/notes.txt", failed(Reason.NOT_A_STUDY_OBJECT))
    platform.scan()
    for path in old:
        gone(platform, path)
    platform.encode()
    assert {fate(platform, n) for n in range(3)} == {("failed", "file-gone")}
    for n in range(3):
        platform.put(f"new/{n}.dcm", header(n), b"picture %d" % n)
        platform.put(f"new/copy {n}.dcm", header(n), b"picture %d" % n)
    assert platform.scan().counts == {"taken": 3, "same": 3, "unchanged": 1, "settling": 0}
    platform.encode()
    assert {fate(platform, n) for n in range(3)} == {("encoded", None)}


def test_a_picture_without_its_table_comes_back_too(platform: Platform) -> None:
    platform.add_model()
    path = platform.put("x.png", header(0), b"picture")
    platform.put("notes.txt", failed(Reason.NOT_A_STUDY_OBJECT))
    platform.sandbox.kinds[os.fsencode(path)] = "png"
    platform.scan()
    gone(platform, path)
    platform.encode()
    assert fate(platform) == ("failed", "file-gone")
    back(platform, "x.png", header(0), b"picture")
    platform.scan()
    platform.encode()
    assert fate(platform) == ("encoded", None)


def test_a_file_that_was_removed_among_others_is_gone_at_once(platform: Platform) -> None:
    platform.add_model()
    for n in range(2):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    gone(platform, platform.folder / "archive" / "0.dcm")
    platform.encode()
    assert fate(platform) == ("failed", "file-gone")
    assert fate(platform, 1) == ("encoded", None)


@pytest.mark.parametrize("folder_too", [False, True])
def test_an_empty_or_a_missing_folder_may_be_a_share_that_is_away(platform: Platform, folder_too: bool) -> None:
    platform.add_model()
    path = platform.put("share/x.dcm", header(0), b"picture")
    platform.scan()
    gone(platform, path)
    if folder_too:
        path.parent.rmdir()
    for _ in range(3):
        platform.encode()
        away_and_rested(platform)
    assert fate(platform) == ("received", "unreadable-file")
    back(platform, "share/x.dcm", header(0), b"picture")
    platform.encode()
    assert fate(platform) == ("encoded", None)


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_copy_that_is_gone_fails_no_image_whose_share_is_away(platform: Platform, overwritten: bool) -> None:
    """No scan notices that the copy is gone, as when a transfer has moved it on."""
    platform.add_model()
    path = platform.put("share/x.dcm", header(0), b"picture")
    copy = platform.put("coming/x.dcm", header(0), b"picture")
    platform.put("coming/y.dcm", header(1), b"other")
    platform.scan()
    gone(platform, copy)
    if overwritten:
        back(platform, "coming/x.dcm", header(2), b"of another")
    gone(platform, path)
    for _ in range(3):
        platform.encode()
        away_and_rested(platform)
    assert fate(platform) == ("received", "unreadable-file")
    back(platform, "share/x.dcm", header(0), b"picture")
    platform.encode()
    assert fate(platform) == ("encoded", None)


def test_an_image_fails_once_its_bytes_are_at_none_of_their_places(platform: Platform) -> None:
    platform.add_model()
    for name in ("a/x.dcm", "b/x.dcm", "c/x.dcm"):
        platform.put(name, header(0), b"picture")
        platform.put(f"{name[0]}/y.dcm", header(1), b"other")
    platform.scan()
    for name in "abc":
        gone(platform, platform.folder / "archive" / name / "x.dcm")
    for _ in "abc":
        platform.encode()
    assert fate(platform) == ("failed", "file-gone")


def renamed(platform: Platform, old: str, new: str, n: int) -> None:
    """A folder with image `n` is renamed, as a transfer does at its end."""
    path = platform.folder / "archive" / old / "x.dcm"
    gone(platform, path)
    path.parent.rmdir()
    platform.put(f"{new}/x.dcm", header(n), b"picture %d" % n)


@pytest.mark.parametrize("met_first", [False, True])
def test_an_image_whose_folder_was_renamed_is_encoded_where_a_scan_has_met_it(
    platform: Platform, met_first: bool
) -> None:
    platform.add_model()
    platform.put("coming/x.dcm", header(0), b"picture 0")
    platform.scan()
    renamed(platform, "coming", "done", 0)
    if not met_first:
        platform.encode()
        assert fate(platform) == ("received", "unreadable-file")
    platform.scan()
    for _ in range(3):
        away_and_rested(platform)
        platform.encode()
    assert fate(platform) == ("encoded", None)


def test_a_model_that_comes_later_encodes_an_image_whose_folder_was_renamed(platform: Platform) -> None:
    platform.add_model()
    platform.put("coming/x.dcm", header(0), b"picture 0")
    platform.scan()
    platform.encode()
    platform.project()
    renamed(platform, "coming", "done", 0)
    platform.scan()
    platform.add_model("second", seed=7, dim=32)
    platform.begin_generation("second")
    for _ in range(3):
        platform.reindex(rounds=2)
        with platform.begin() as db:
            db.execute(sa.text("UPDATE catch_up SET not_before = NULL"))
    assert encodings(platform) == 2
