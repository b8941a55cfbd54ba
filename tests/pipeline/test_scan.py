import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from shared import mounts
from shared.datasets.folder import read_labels
from shared.errors import Invalid, Rejected, Unavailable
from shared.imaging.answers import Inspected
from shared.imaging.reasons import Reason, empty, failed
from shared.imaging.sandbox import Sandbox
from shared.pipeline import scan, turns
from shared.process import until
from shared.store import operations
from shared.store.files import Seen
from shared.store.tables import Operation
from shared.types import Job
from tests.miniature import Platform, header


def rows(platform: Platform, statement: str) -> list[tuple[Any, ...]]:
    with platform.store.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


def turn(platform: Platform) -> bool:
    """One turn at a due scan, or one round of a watch."""
    rules = platform.rules
    return turns.advance_scan(platform.begin, platform.sandbox, rules, watch_rules=rules, every_s=0)


def test_a_folder_becomes_rows_and_rings_for_the_encoder(platform: Platform) -> None:
    for n in range(5):
        platform.put(f"{n}.dcm", header(n))
    progress = platform.scan()
    assert progress.counts == {"taken": 5, "unchanged": 0, "settling": 0}
    assert rows(platform, "SELECT count(*) FROM study") == [(2,)]
    assert Job.ENCODE in platform.queue.rung


def test_running_it_twice_changes_nothing(platform: Platform) -> None:
    for n in range(5):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    before = rows(platform, "SELECT id, status, revision, attempt FROM image ORDER BY id")
    assert platform.scan().counts["unchanged"] == 5
    assert rows(platform, "SELECT id, status, revision, attempt FROM image ORDER BY id") == before


def test_every_file_that_is_not_taken_in_has_a_row_with_its_reason(platform: Platform) -> None:
    platform.put("report.dcm", empty(Reason.NOT_AN_IMAGE))
    platform.put("notes.txt", failed(Reason.NOT_A_STUDY_OBJECT))
    platform.scan()
    assert rows(platform, "SELECT outcome, reason FROM file ORDER BY 1") == [
        ("empty", "not-an-image"),
        ("failed", "not-a-study-object"),
    ]


@pytest.mark.parametrize("passing", [Reason.UNREADABLE, Reason.SANDBOX])
def test_a_file_that_could_not_be_read_is_read_by_the_next_scan_and_by_a_watch_once_an_hour(
    platform: Platform, passing: Reason
) -> None:
    path = platform.put("a.dcm", failed(passing))
    platform.put("b.dcm", failed(Reason.MALFORMED))
    platform.scan()
    assert platform.scan(rest_s=3600).counts["unchanged"] == 2
    platform.sandbox.headers[os.fsencode(path)] = header(0)
    assert platform.scan(rest_s=3600).counts["unchanged"] == 2
    with platform.begin() as db:
        db.execute(sa.text("UPDATE file SET seen_at = seen_at - interval '61 minutes'"))
    assert platform.scan(rest_s=3600).counts == {"taken": 1, "unchanged": 1, "settling": 0}
    assert platform.scan().counts["unchanged"] == 2
    assert rows(platform, "SELECT count(*) FROM arrival") == [(3,)]


def test_a_file_that_stays_unreadable_is_one_line_of_the_journal_until_the_reason_is_another(
    platform: Platform,
) -> None:
    path = platform.put("a.dcm", failed(Reason.UNREADABLE))
    for _ in range(3):
        platform.scan()
    platform.sandbox.headers[os.fsencode(path)] = failed(Reason.SANDBOX)
    for _ in range(2):
        platform.scan()
    platform.sandbox.headers[os.fsencode(path)] = header(0)
    platform.scan()
    assert rows(platform, "SELECT outcome, reason FROM arrival ORDER BY id") == [
        ("failed", "unreadable-file"),
        ("failed", "sandbox-failure"),
        ("taken", None),
    ]


@pytest.mark.parametrize("set_back", [0, 1])
def test_a_scan_that_is_asked_for_does_not_wait_an_hour(platform: Platform, set_back: int) -> None:
    """Nor until a clock has caught up that was set back by so many years."""
    path = platform.put("a.dcm", failed(Reason.UNREADABLE))
    platform.scan()
    with platform.begin() as db:
        db.execute(sa.text("UPDATE file SET seen_at = seen_at + make_interval(years => :n)"), {"n": set_back})
    platform.sandbox.headers[os.fsencode(path)] = header(0)
    assert platform.scan().counts["taken"] == 1


def test_a_young_file_is_left_for_the_next_round(platform: Platform) -> None:
    path = platform.put("a.dcm", header(0))
    assert platform.scan(settle_s=60).counts["settling"] == 1
    old = path.stat().st_mtime - 120
    os.utime(path, (old, old))
    assert platform.scan(settle_s=60).counts["taken"] == 1


def test_links_and_pipes_are_met_with_a_reason_and_not_followed(platform: Platform, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.dcm").write_bytes(b"x")
    platform.put("a.dcm", header(0))
    (tmp_path / "archive" / "folder").symlink_to(outside)
    (tmp_path / "archive" / "file.dcm").symlink_to(outside / "secret.dcm")
    os.mkfifo(tmp_path / "archive" / "pipe")
    met = sorted(os.path.basename(s.path) for s in scan.walk(tmp_path / "archive"))
    assert met == [b"a.dcm", b"file.dcm", b"folder", b"pipe"]
    with Sandbox() as sandbox:
        found = sandbox.inspect_many([tmp_path / "archive" / os.fsdecode(name) for name in met[1:]])
    assert [f.reason for f in found if isinstance(f, Rejected)] == ["not-a-regular-file"] * 3


def test_a_file_that_is_listed_and_cannot_be_looked_at_has_its_row_too(platform: Platform, tmp_path: Path) -> None:
    """As in a folder that may be listed but not entered; here the path is too long for the system."""
    folder = tmp_path / "archive"
    while len(os.fsencode(folder)) < 3900:
        folder /= "f" * min(200, 3950 - len(os.fsencode(folder)))
    folder.mkdir(parents=True)
    place, name = os.open(folder, os.O_RDONLY), "a" * 200
    os.close(os.open(name, os.O_CREAT, dir_fd=place))
    os.close(place)
    strange = os.fsencode(folder / name)
    platform.sandbox.headers[strange] = failed(Reason.UNREADABLE)
    platform.scan()
    assert rows(platform, "SELECT path, outcome, reason FROM file") == [(strange, "failed", "unreadable-file")]
    assert platform.scan(rest_s=3600).counts["unchanged"] == 1, "a watch rests for it"


def test_file_names_may_be_any_bytes(platform: Platform, tmp_path: Path) -> None:
    platform.put("a.dcm", header(0))
    strange = os.fsencode(tmp_path / "archive") + b"/\xff\xfe.dcm"
    with open(strange, "wb") as out:
        out.write(b"x")
    platform.sandbox.headers[strange] = header(1)
    assert platform.scan().counts["taken"] == 2


def test_a_scan_stays_under_its_roots(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc")
    assert scan.within(tmp_path / "in", [tmp_path / "in"], any_root=False)
    for path in (tmp_path, tmp_path / "in" / ".." / "other", tmp_path / "in" / "link"):
        with pytest.raises(Invalid):
            scan.within(path, [tmp_path / "in"], any_root=False)


def test_a_stopped_scan_goes_on_where_it_was(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BATCH", 2)
    for n in range(6):
        platform.put(f"{n}.dcm", header(n))
    scan.scan(
        platform.begin,
        platform.sandbox,
        platform.folder / "archive",
        table=None,
        rules=platform.rules,
        operation_id=None,
        report=lambda _db, progress: progress.done < 4,
    )
    assert rows(platform, "SELECT count(*) FROM image") == [(4,)]
    assert platform.scan().counts == {"taken": 2, "unchanged": 4, "settling": 0}


def tree(root: Path) -> None:
    for name in ("b.dcm", "n/2.dcm", "n/10.dcm", "n/a/z.dcm", "n/a!/y.dcm", "m.dcm", "m/q.dcm", "z/closed/x.dcm"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "n" / "link").symlink_to(root / "m")


def test_a_walk_goes_on_behind_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path)
    opened: list[bytes] = []

    def scandir(path: bytes) -> Any:
        opened.append(path)
        if path.endswith(b"/closed"):
            raise PermissionError
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    whole = list(scan.walk(tmp_path))
    assert len(whole) == 9
    for n, seen in enumerate(whole):
        opened.clear()
        assert list(scan.walk(tmp_path, scan.place(seen))) == whole[n + 1 :], seen.path
        passed = {os.path.dirname(one.path) for one in whole[:n]} - {os.path.dirname(one.path) for one in whole[n:]}
        assert not {path for path in passed if not seen.path.startswith(path)} & set(opened), "what is done is not read"


def test_a_place_that_is_gone_is_no_hindrance(tmp_path: Path) -> None:
    tree(tmp_path)
    whole = list(scan.walk(tmp_path))
    (tmp_path / "n" / "10.dcm").unlink()
    place = os.fsencode(tmp_path / "n" / "10.dcm")
    (behind,) = [n for n, seen in enumerate(whole) if seen.path == place]
    assert [seen.path for seen in scan.walk(tmp_path, place)] == [seen.path for seen in whole[behind + 1 :]]


def test_a_folder_that_is_empty_where_a_scan_goes_on_may_be_a_share_that_is_away(tmp_path: Path) -> None:
    assert list(scan.walk(tmp_path)) == []
    with pytest.raises(Unavailable, match="its share may be unavailable"):
        list(scan.walk(tmp_path, os.fsencode(tmp_path / "a.dcm")))
    below = tmp_path / "archive"  # a folder of the mount at `tmp_path`
    with pytest.raises(Unavailable, match="its share may be unavailable"):
        scan.see(below, os.fsencode(below / "a.dcm"))
    with pytest.raises(Invalid):
        scan.see(below)


def test_a_scan_that_goes_on_looks_at_nothing_twice_and_counts_on(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "BATCH", 2)
    for n in range(6):
        platform.put(f"{n}.dcm", header(n))

    def part(progress: scan.Progress, stop: int) -> scan.Progress:
        return scan.scan(
            platform.begin,
            platform.sandbox,
            platform.folder / "archive",
            table=None,
            rules=platform.rules,
            operation_id=None,
            report=lambda _db, progress: progress.done < stop,
            progress=progress,
        )

    first = part(scan.Progress(), 4)
    assert (first.done, first.total) == (4, 6)
    kept = Operation(done=4, total=6, counts=dict(first.counts), cursor=first.stored_cursor)
    last = part(scan.Progress.of(kept), 7)
    assert (last.done, last.total, last.cursor) == (6, 6, b"")
    assert last.counts == {"taken": 6, "unchanged": 0, "settling": 0}


def test_a_table_may_know_an_image_by_its_uid_alone(platform: Platform, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("sop_instance_uid,birads\n1.2.3.2,4\n")
    for n in range(3):
        platform.put(f"{n}.dcm", header(n))
    assert platform.scan(read_labels(table)).counts["taken"] == 3
    assert rows(platform, "SELECT sop_uid, birads FROM image WHERE birads IS NOT NULL") == [("1.2.3.2", 4)]
    assert platform.scan(read_labels(table)).counts["unchanged"] == 3
    table.write_text("sop_instance_uid,birads\n1.2.3.2,5\n")
    platform.scan(read_labels(table))
    assert rows(platform, "SELECT sop_uid, birads FROM image WHERE birads IS NOT NULL") == [("1.2.3.2", 5)]


def test_a_table_may_label_whole_studies(platform: Platform, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("study;density\n1.2.4.1;C\n")
    for n in range(5):
        platform.put(f"{n}.dcm", header(n))
    platform.scan(read_labels(table))
    assert rows(platform, "SELECT density, count(*) FROM image GROUP BY 1 ORDER BY 1") == [("C", 4), (None, 1)]


def test_the_label_table_itself_is_no_study(platform: Platform) -> None:
    platform.put("a.dcm", header(0))
    table = platform.put("labels.csv", failed(Reason.NOT_A_STUDY_OBJECT))
    progress = platform.scan(skip=frozenset({os.fsencode(table)}))
    assert (progress.total, progress.counts["taken"], progress.counts["failed"]) == (1, 1, 0)


def test_a_folder_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        list(scan.walk(tmp_path / "nothing"))


def test_a_folder_that_cannot_even_be_looked_at_is_unavailable(tmp_path: Path) -> None:
    """As in a folder without permission or on an absent share; here the name is too long for the system."""
    with pytest.raises(Unavailable):
        scan.see(tmp_path / ("x" * 300))


def test_images_that_the_label_table_says_nothing_of_are_counted(platform: Platform, tmp_path: Path) -> None:
    for n in range(3):
        platform.put(f"{n}.dcm", header(n))
    platform.put("notes.txt", failed(Reason.NOT_A_STUDY_OBJECT))
    table = tmp_path / "labels.csv"
    table.write_text("file,birads\n0.dcm,4\n")
    assert platform.scan(read_labels(table)).counts["unlabelled"] == 2
    table.write_text("file,birads\n")
    assert platform.scan(read_labels(table)).counts["unlabelled"] == 1
    assert "unlabelled" not in platform.scan().counts


def test_a_row_of_the_label_table_is_not_taken_for_two_patients(platform: Platform, tmp_path: Path) -> None:
    """The row names a file that exists in two folders, so its patient is ambiguous."""
    for n, name in enumerate(("P1/L.dcm", "P2/L.dcm", "P3/L.dcm", "P1/R.dcm")):
        platform.put(name, header(n))
    table = tmp_path / "labels.csv"
    table.write_text("file,birads\nL.dcm,4\nP3/L.dcm,3\nR.dcm,2\n")
    counts = platform.scan(read_labels(table)).counts
    assert (counts["taken"], counts["unlabelled"], counts["namesakes"]) == (4, 2, 2)
    assert rows(platform, "SELECT sop_uid, birads FROM image ORDER BY 1") == [
        ("1.2.3.1", None),
        ("1.2.3.2", None),
        ("1.2.3.3", 3),
        ("1.2.3.4", 2),
    ]


def test_a_turn_gets_on_for_as_long_as_it_took_to_find_its_place(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a table, each turn first walks the whole folder; here a clock ticks once per file."""
    walked, see = 0, scan.see

    def ticking(path: Path, after: bytes = b"") -> Iterator[Seen]:
        nonlocal walked
        for seen in see(path, after):
            walked += 1
            yield seen

    monkeypatch.setattr(scan, "see", ticking)
    monkeypatch.setattr(scan, "BATCH", 2)
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: float(walked)))
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    for n in range(20):
        platform.put(f"{n:02}.dcm", header(n))
    table = tmp_path / "labels.csv"
    table.write_text("file,birads\n00.dcm,1\n")
    (tmp_path / "watched").mkdir()
    with platform.begin() as db:
        first = operations.create(db, "scan", {"path": str(platform.folder / "archive"), "labels": str(table)}).id
        operations.create(db, "scan", {"path": str(tmp_path / "watched"), "watch": True})  # always waits
    for _ in range(20):
        turn(platform)
    with platform.begin() as db:
        assert operations.get(db, first).registered_at is not None
    assert walked < 3 * 20


@pytest.mark.parametrize("text", [None, "file,birads\na.dcm,2\n"])
def test_a_scan_whose_folder_is_gone_when_it_goes_on_waits_for_it(
    platform: Platform, tmp_path: Path, text: str | None
) -> None:
    table = None
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
        table = read_labels(tmp_path / "labels.csv")
    passed = os.fsencode(platform.folder / "archive" / "a.dcm")
    with pytest.raises(Unavailable, match="share may be unavailable"):
        platform.scan(table, scan.Progress(total=3, done=1, cursor=passed))


@pytest.fixture
def dead(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A share that does not answer calls of these names on these paths: they wait for the writer of a pipe."""
    hangs: dict[str, bytes] = {}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(scan, "ANSWER_S", 0.3)

    def hanging(name: str, real: Any) -> Any:
        def call(path: Any, *args: Any, **named: Any) -> Any:
            if hangs.get(name) == os.fsencode(path):
                os.close(os.open(pipe, os.O_RDONLY))
            return real(path, *args, **named)

        return call

    for name in ("scandir", "lstat", "stat"):
        monkeypatch.setattr(os, name, hanging(name, getattr(os, name)))
    yield hangs
    hangs.clear()

    def back() -> bool:
        os.close(os.open(pipe, os.O_RDWR))
        return not mounts._stalled

    assert until(back, 10)


def test_a_folder_that_does_not_answer_holds_up_its_own_scan_alone(
    platform: Platform, tmp_path: Path, dead: dict[str, bytes]
) -> None:
    for n in range(3):
        platform.put(f"dead/{n}/a.dcm", header(n))
    platform.put("good/b.dcm", header(3))
    dead["scandir"] = os.fsencode(platform.folder / "archive" / "dead" / "1")
    with platform.begin() as db:
        names = ("archive/dead", "archive/good")
        first, second = (operations.create(db, "scan", {"path": str(platform.folder / name)}).id for name in names)
    while turn(platform):
        pass
    with platform.begin() as db:
        waits, done = operations.get(db, first), operations.get(db, second)
        assert done.registered_at is not None
        assert (waits.state, waits.losses, waits.lease_until) == ("running", 0, None)
        assert waits.error == "the folder's disk or network share does not answer"
    dead.clear()
    assert mounts._stalled
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))
    assert until(lambda: not mounts._stalled, 10)
    with platform.begin() as db:
        db.execute(sa.text("UPDATE operation SET not_before = NULL"))
    turn(platform)
    with platform.begin() as db:
        assert (operations.get(db, first).done, operations.get(db, first).error) == (3, None)


@pytest.mark.parametrize("first", ["read", "walk"])
def test_a_share_that_goes_away_during_a_scan_is_waited_for(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """An unmounted share leaves an empty folder: files that were listed cannot be read, or the walk finds no others."""
    monkeypatch.setattr(scan, "BATCH", 2)
    monkeypatch.setattr(scan, "LOOKS", 1)
    for n in range(6):
        platform.put(f"{n // 3}/{n}.dcm", header(n))
    mount, away = platform.folder / "archive", platform.folder / "away"
    read = platform.sandbox.inspect_many
    calls = []

    def inspect_many(paths: Sequence[Path]) -> list[Inspected | Rejected]:
        calls.append(paths)
        if len(calls) == 2:
            mount.rename(away)
            mount.mkdir()
        return [failed(Reason.UNREADABLE)] * len(paths) if len(calls) == 2 and first == "read" else read(paths)

    monkeypatch.setattr(platform.sandbox, "inspect_many", inspect_many)
    with platform.begin() as db:
        number = operations.create(db, "scan", {"path": str(mount)}).id
    turn(platform)
    with platform.begin() as db:
        waits = operations.get(db, number)
        assert (waits.state, waits.registered_at, waits.done) == ("running", None, 2 if first == "read" else 4)
        assert waits.error is not None
        assert "share may be unavailable" in waits.error
        waits.not_before = None
    mount.rmdir()
    away.rename(mount)
    turn(platform)
    with platform.begin() as db:
        assert (operations.get(db, number).done, operations.get(db, number).error) == (6, None)
    assert rows(platform, "SELECT outcome, count(*) FROM file GROUP BY 1") == [("taken", 6)]


def test_files_that_can_no_longer_be_looked_at_are_met_again(platform: Platform, dead: dict[str, bytes]) -> None:
    """A share may stop to answer between the reading of a file and the check that it was not changed meanwhile."""
    path = platform.put("a.dcm", failed(Reason.STALLED))
    dead["lstat"] = os.fsencode(path)
    for _ in range(2):
        with pytest.raises(Unavailable, match="does not answer"):
            platform.scan()
    assert rows(platform, "SELECT count(*) FROM file") == [(0,)]


def test_a_table_that_does_not_answer_holds_up_its_scan_and_no_worker(
    platform: Platform, tmp_path: Path, dead: dict[str, bytes]
) -> None:
    platform.put("a.dcm", header(0))
    table = tmp_path / "labels.csv"
    table.write_text("file,birads\na.dcm,1\n")
    dead["stat"] = os.fsencode(table)
    with platform.begin() as db:
        params = {"path": str(platform.folder / "archive"), "labels": str(table)}
        number = operations.create(db, "scan", params).id
    turn(platform)
    with platform.begin() as db:
        assert operations.get(db, number).error == "the folder's disk or network share does not answer"


def test_a_scan_whose_table_is_gone_when_it_goes_on_waits_for_it(platform: Platform) -> None:
    """A table often lies in its folder, on a share that may be away."""
    platform.put("a.dcm", header(0))
    table = platform.folder / "archive" / "labels.csv"
    with platform.begin() as db:
        params = {"path": str(platform.folder / "archive"), "labels": str(table)}
        begun, fresh = (operations.create(db, "scan", params) for _ in range(2))
        begun.cursor = {"path": os.fsencode(platform.folder / "archive" / "a.dcm").hex()}
    for _ in range(2):
        turn(platform)
    with platform.begin() as db:
        assert [operations.get(db, one.id).state for one in (begun, fresh)] == ["running", "failed"]
        assert "share may be unavailable" in str(operations.get(db, begun.id).error)
