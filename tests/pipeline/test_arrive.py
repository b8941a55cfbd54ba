"""Sent files: an acknowledged file is durable and registered; a refused one leaves at most a line in the journal."""

import errno
import os
import resource
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from shared.errors import Unavailable
from shared.imaging.pseudonym import patient_key
from shared.imaging.sandbox import Sandbox
from shared.log import configure
from shared.pipeline import arrive, erase, quarantine, sweep
from shared.pipeline.admission import Action, Admission, Rule
from shared.pipeline.arrive import Arrived
from shared.store import arrivals, erasure, files, images, operations, reviews, tombstones
from shared.store.arrivals import Origin
from shared.store.blobs import Blobs, Full, follow, taking
from shared.store.files import Record, Seen
from shared.store.reviews import Wanted
from shared.store.tables import Image
from shared.types import Job
from tests.miniature import SECRET, Platform
from tests.strange import ANNA

SCANNER = Origin(source="dicom", sender="SCANNER", called="SIMILIS")
UID = "1.2.826.0.1.3680043.10.1"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def instance(
    n: int = 1, *, study: int = 1, patient: str = "WOMAN", value: int = 0, preamble: bytes = bytes(128)
) -> bytes:
    """One small mammogram as a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    meta.MediaStorageSOPInstanceUID = f"{UID}.{study}.{n}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{UID}.{study}", f"{UID}.{study}.0"
    image.PatientID, image.Modality = patient, "MG"
    image.Rows = image.Columns = 8
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 7, 0, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = bytes([value] * 64)
    image.preamble = preamble
    with pydicom.filebase.DicomBytesIO() as out:
        pydicom.dcmwrite(out, image, enforce_file_format=True)
        return bytes(out.getvalue())


class Door:
    """A platform with a store of sent files, to which a test sends bytes."""

    def __init__(self, platform: Platform, sandbox: Sandbox) -> None:
        self.platform, self.sandbox = platform, sandbox
        self.blobs = Blobs(platform.folder / "blobs", reserve_bytes=0)
        self.rules = platform.rules

    def send(self, *contents: bytes, origin: Origin = SCANNER, expects: tuple[str, str] = ("", "")) -> list[Arrived]:
        parts = [self.blobs.part() for _ in contents]
        try:
            for part, content in zip(parts, contents, strict=True):
                part.write(content)
                part.expects = expects
            return arrive.arrive(self.platform.begin, self.sandbox, self.blobs, parts, origin, self.rules)
        finally:
            for part in parts:
                part.__exit__(None, None, None)

    def files(self) -> list[Path]:
        return sorted(path for path in self.blobs.root.rglob("*") if path.is_file())

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        with self.platform.store.reading() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    def run(self, statement: str) -> None:
        with self.platform.begin() as db:
            db.execute(sa.text(statement))

    def retry(self, number: int | None = None) -> None:
        """Retry this stopped file, or all with a patient conflict, as the quarantine and a scan worker do."""
        self.platform.queue.rung.clear()
        with self.platform.begin() as db:
            if number is not None:
                quarantine.retry_file(db, number, ANNA)
            else:
                quarantine.retry_many(db, Wanted(reason="patient-conflict"), ANNA)
        assert Job.SCAN in self.platform.queue.rung
        self.platform.queue.rung.clear()
        with self.platform.begin() as db:  # also if that message was lost
            sweep.ring_for_due(db, self.platform.effort)
        assert Job.SCAN in self.platform.queue.rung
        assert arrive.reread(self.platform.begin, self.sandbox, self.rules) == 1

    def sweep(self, margin_s: float = -1) -> int:
        return arrive.sweep(self.platform.begin, self.sandbox, self.blobs, SECRET, margin_s=margin_s)

    def journal(self, study: int = 1) -> list[tuple[str, str, str | None, str]]:
        with self.platform.store.reading() as connection:
            rows = arrivals.journal(connection, f"{UID}.{study}", 100)
        return [(row.event, row.outcome, row.reason, row.sender) for row in rows]


@pytest.fixture
def door(platform: Platform, sandbox: Sandbox) -> Door:
    return Door(platform, sandbox)


def test_what_is_taken_stands_under_the_name_of_its_content(door: Door) -> None:
    (answer,) = door.send(instance())
    assert (answer.outcome, answer.kept, answer.sop_instance_uid) == ("taken", True, f"{UID}.1.1")
    (path,) = door.files()
    ((known, status),) = door.rows("SELECT path, status FROM image")
    assert (known, status) == (os.fsencode(path), "received")
    assert UID not in str(path)
    assert "WOMAN" not in str(path)
    assert path.read_bytes() == instance()
    assert door.journal() == [("arrived", "taken", None, "SCANNER")]


def test_the_same_again_is_one_file_and_two_lines(door: Door) -> None:
    answers = door.send(instance(), instance()) + door.send(instance())
    assert [answer.outcome for answer in answers] == ["taken"] * 3
    assert all(answer.kept for answer in answers)
    assert len(door.files()) == 1
    assert door.rows("SELECT count(*) FROM image") == [(1,)]
    assert len(door.journal()) == 3


def test_a_preamble_may_be_a_program_and_is_taken_out(door: Door) -> None:
    door.send(instance(preamble=b"MZ" + b"\x90" * 126))
    assert door.files()[0].read_bytes() == instance()


def test_new_bytes_from_the_same_sender_replace_and_from_another_are_kept_beside(door: Door) -> None:
    door.send(instance())
    (corrected,) = door.send(instance(value=7))
    assert (corrected.outcome, corrected.kept) == ("taken", True)
    (other,) = door.send(instance(value=9), origin=Origin(source="dicom", sender="OTHER"))
    assert (other.outcome, other.reason, other.kept) == ("kept", "other-bytes", True)
    ((path, revision),) = door.rows("SELECT path, revision FROM image")
    assert Path(os.fsdecode(path)).read_bytes() == instance(value=7)  # type: ignore[arg-type]
    assert revision == 2
    assert len(door.files()) == 3


@pytest.mark.parametrize(
    ("content", "expects", "reason"),
    [
        (b"no DICOM at all", ("", ""), "not-a-study-object"),
        (instance()[:400], ("", ""), "missing-uid"),
        (instance(), (f"{UID}.1.2", ""), "uids-differ"),
        (instance(), ("", f"{UID}.2"), "uids-differ"),
    ],
)
def test_what_cannot_be_understood_leaves_nothing(
    door: Door, content: bytes, expects: tuple[str, str], reason: str
) -> None:
    (answer,) = door.send(content, expects=expects)
    assert (answer.kept, answer.reason) == (False, reason)
    assert door.files() == []
    assert door.rows("SELECT count(*) FROM image") == [(0,)]
    assert door.rows("SELECT outcome, reason, sender FROM arrival") == [("failed", reason, "SCANNER")]


def test_a_bad_one_does_not_stop_the_others(door: Door) -> None:
    answers = door.send(instance(1), b"junk", instance(2))
    assert [answer.kept for answer in answers] == [True, False, True]
    assert answers[2].sop_instance_uid == f"{UID}.1.2"
    assert len(door.files()) == 2


def test_without_a_database_nothing_is_acknowledged_and_the_sweep_takes_what_is_left(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = door.platform.begin
    monkeypatch.setattr(door.platform, "begin", _breaks)
    with pytest.raises(Unavailable):
        door.send(instance())
    monkeypatch.setattr(door.platform, "begin", good)
    assert door.files() == []


def test_a_commit_that_fails_leaves_a_file_that_the_sweep_takes(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.platform.queue, "ring", lambda _: None)
    keep = Blobs.keep

    def then_break(self: Blobs, part: object, digest: bytes) -> None:
        keep(self, part, digest)  # type: ignore[arg-type]
        raise Unavailable("the connection to the database was lost before the commit")

    monkeypatch.setattr(Blobs, "keep", then_break)
    with pytest.raises(Unavailable):
        door.send(instance(2))
    monkeypatch.setattr(Blobs, "keep", keep)
    door.send(instance(1))
    with door.blobs.part() as coming:  # a file that is about to be sent
        assert len(door.files()) == 3
        os.utime(coming.path, (0, 0))  # a sender that takes long
        left = coming.path.with_name("left.part")  # left by a killed process
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
        assert door.sweep(margin_s=3600) == 1
        assert len(list(door.blobs.every())) == 2  # the second is so new that its row may still be committed
        assert door.sweep() == 1
        assert coming.path.exists()
    assert [path.read_bytes() for path in door.blobs.every()] == [instance(1)]
    (aside,) = door.blobs.lost()
    assert aside.read_bytes() == instance(2)
    door.sweep()
    assert aside.exists()
    os.utime(aside, (0, 0))
    door.sweep()
    assert not aside.exists()


def test_two_sweeps_at_once_are_not_in_each_others_way(door: Door) -> None:
    door.send(instance(1), instance(2))
    door.run("DELETE FROM file")
    door.run("DELETE FROM image")
    unknown, inspect = door.files(), door.sandbox.inspect_many

    class Slow:
        """A sandbox during whose call another sweep runs."""

        def inspect_many(self, paths: Sequence[Path]) -> Any:
            answers = inspect(paths)
            if paths:
                assert door.sweep() == 2
            return answers

    assert arrive.sweep(door.platform.begin, Slow(), door.blobs, SECRET, margin_s=-1) == 0
    assert [path.name for path in door.blobs.lost()] == [path.name for path in unknown]


def test_rules_of_the_site(door: Door) -> None:
    def rule(action: Action) -> Admission:
        return Admission((Rule("house", {"sender": ("SCAN*",), "modality": ("MG",)}, action),))

    for action, outcome, kept in ((Action.REFUSE, "refused", False), (Action.DISCARD, "discarded", False)):
        door.rules = replace(door.rules, admission=rule(action))
        (answer,) = door.send(instance())
        assert (answer.outcome, answer.kept, answer.reason) == (outcome, kept, "site-rule")
        assert door.files() == []
    door.rules = replace(door.rules, admission=rule(Action.QUARANTINE))
    (answer,) = door.send(instance())
    assert answer.kept
    assert door.rows("SELECT status, gate, reason FROM image") == [("quarantined", "metadata", "site-rule")]
    (elsewhere,) = door.send(instance(2), origin=Origin(source="stow", sender="viewer"))
    assert elsewhere.outcome == "taken"
    assert door.rows("SELECT status FROM image ORDER BY id") == [("quarantined",), ("received",)]
    assert door.rows("SELECT rule FROM arrival WHERE sender = 'SCANNER'") == [("house",)] * 3


def test_what_was_erased_does_not_come_back_and_leaves_no_name(door: Door) -> None:
    door.send(instance())
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.journal() == []
    (answer,) = door.send(instance())
    assert (answer.kept, answer.reason) == (False, "erased")
    assert door.rows("SELECT study_uid, sop_uid, reason FROM arrival") == [("", "", "erased")]
    assert door.sweep(margin_s=3600) == 1
    assert door.files() == []
    assert door.rows("SELECT count(*) FROM removal") == [(0,)]


def test_what_was_erased_goes_from_an_earlier_store_too(door: Door) -> None:
    door.send(instance())
    (earlier,) = door.files()
    door.blobs = Blobs(door.platform.folder / "a larger disk", reserve_bytes=0)
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 1
    assert not earlier.exists()


def test_what_was_erased_goes_from_every_store_that_it_came_to(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrive, "REMOVED", 1)  # more was erased than one step removes
    stores = [Blobs(door.platform.folder / name, reserve_bytes=0) for name in ("first", "second", "third")]
    for store in stores:
        door.blobs = store
        if store is not stores[-1]:
            door.send(instance())
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 2
    assert [list(store.every()) for store in stores] == [[], [], []]


@pytest.mark.parametrize("why", ["away", "refuses"])
def test_an_earlier_store_that_is_out_of_reach_is_tried_again_and_holds_up_no_other(
    door: Door, capfd: pytest.CaptureFixture[str], why: str
) -> None:
    configure("test")
    door.send(instance())
    (earlier,), store, aside = door.files(), door.blobs.root, door.platform.folder / "aside"
    door.blobs = Blobs(door.platform.folder / "a larger disk", reserve_bytes=0)
    door.send(instance(), instance(study=2))
    with door.platform.begin() as db:
        for study in (1, 2):
            erase.erase_study(db, SECRET, f"{UID}.{study}")
    moved = store if why == "away" else earlier
    moved.rename(aside)
    moved.mkdir()  # the disk is not mounted; or unlink fails
    assert door.sweep() == 2
    assert door.files() == []
    said = capfd.readouterr().err
    assert "erased_files_out_of_reach" in said
    assert str(door.platform.folder) not in said
    moved.rmdir()
    aside.rename(moved)
    assert door.sweep() == 1
    assert not earlier.exists()
    assert door.rows("SELECT count(*) FROM removal") == [(0,)]


def test_an_earlier_store_that_does_not_say_whether_it_is_there_is_tried_again(door: Door) -> None:
    """Its path is too long for stat, which stands for a folder without permission."""
    door.send(instance())
    elsewhere, own = b"/" + b"x" * 300, os.fsencode(door.blobs.root)
    with door.platform.begin() as db:
        files.move(db, own, elsewhere)
    door.send(instance())
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 1
    assert door.files() == []
    assert door.rows("SELECT root FROM removal") == [(elsewhere,)]


def test_intake_does_not_wait_for_the_disk_of_an_earlier_store(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.send(instance())
    earlier = door.blobs.root
    door.blobs = Blobs(door.platform.folder / "a larger disk", reserve_bytes=0)
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    remove, waited = Blobs.remove, []
    coming = threading.Thread(target=door.send, args=[instance(study=2)])

    def slowly(store: Blobs, digest: bytes) -> bool:
        if store.root == earlier:
            coming.start()
            coming.join(5)
            waited.append(coming.is_alive())
        return remove(store, digest)

    monkeypatch.setattr(Blobs, "remove", slowly)
    assert door.sweep() == 1
    coming.join()
    assert waited == [False]


def test_what_was_erased_goes_from_a_store_that_has_moved_since(door: Door) -> None:
    door.send(instance())
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    door.blobs = Blobs(door.blobs.root.rename(door.platform.folder / "moved"), reserve_bytes=0)
    assert door.sweep() == 1
    assert door.files() == []
    assert door.rows("SELECT count(*) FROM removal") == [(0,)]


def test_what_a_scan_has_met_in_the_store_of_another_home_is_not_touched(door: Door) -> None:
    door.send(instance())
    (theirs,), store = door.files(), os.fsencode(door.blobs.root)
    door.blobs = Blobs(door.platform.folder / "ours", reserve_bytes=0)
    with door.platform.begin() as db:
        assert files.sent_to(db) == [store]
        scan = operations.create(db, "scan", {})
        db.flush()
        for table in ("file", "image"):
            db.execute(sa.text(f"UPDATE {table} SET operation_id = :scan"), {"scan": scan.id})
        assert files.sent_to(db) == [], "no backup holds it"
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 0
    assert theirs.exists()
    assert door.rows("SELECT count(*) FROM removal") == [(0,)]


def test_the_copy_of_a_lost_file_in_the_store_of_another_home_is_not_touched(door: Door) -> None:
    """A scan had found the file there, and a repair named it instead of ours."""
    door.send(instance())
    (ours,), others = door.files(), Blobs(door.platform.folder / "theirs", reserve_bytes=0)
    theirs = others.root / ours.relative_to(door.blobs.root)
    theirs.parent.mkdir(parents=True)
    ours.rename(theirs)
    with door.platform.begin() as db:
        scan = operations.create(db, "scan", {})
        (known,) = db.scalars(sa.select(Image)).all()
        seen = Seen(path=os.fsencode(theirs), size=1, mtime_ns=1)
        same = Record(seen=seen, outcome="same", digest=known.digest, image_id=known.id)
        files.record(db, [same], scan.id)
        images.move(db, known.id, seen.path)
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 0
    assert theirs.exists()
    assert door.rows("SELECT count(*) FROM removal") == [(0,)]


def test_what_was_lifted_and_came_again_before_the_tidying_stays(door: Door) -> None:
    door.send(instance())
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    with door.platform.begin() as db:
        db.execute(sa.text("UPDATE operation SET state = 'succeeded'"))
        erase.lift_study(db, SECRET, f"{UID}.1")
    assert door.send(instance())[0].kept
    assert door.sweep() == 0
    assert [path.read_bytes() for path in door.blobs.every()] == [instance()]


def test_what_was_put_aside_or_lies_there_unknown_is_unlinked_where_it_was_erased(door: Door) -> None:
    door.send(instance(1), instance(2), instance(3))
    for n in (1, 2):  # as in an older database, which knows only the third
        for table in ("file", "image"):
            column = "id" if table == "image" else "image_id"
            door.run(f"DELETE FROM {table} WHERE {column} IN (SELECT id FROM image WHERE sop_uid = '{UID}.1.{n}')")
        if n == 1:
            assert door.sweep() == 1
    assert len(door.blobs.lost()) == 1
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 3
    assert door.files() == []


OTHER_WOMAN = ("", "ANOTHER")


def conflict(door: Door, n: int = 2) -> None:
    """A file of another patient in the first one's study: stopped, kept, and acknowledged."""
    door.send(instance())
    (answer,) = door.send(instance(n, patient="ANOTHER", value=5))
    assert (answer.outcome, answer.kept, answer.reason) == ("quarantined", True, "patient-conflict")


def test_the_queue_names_the_image_and_the_study_of_a_stopped_file(door: Door) -> None:
    conflict(door)
    with door.platform.begin() as db:
        (item,) = reviews.page(db, Wanted(), ("image", 2**62), 10)
    assert (item.kind, item.sop_uid, item.study_uid) == ("file", f"{UID}.1.2", f"{UID}.1")


@pytest.mark.parametrize("n", [2, 1])  # a new UID, and that of an image of the other patient
def test_a_stopped_file_is_erased_with_its_patient(door: Door, n: int) -> None:
    conflict(door, n)
    with door.platform.begin() as db:
        operation = erase.erase_patient(db, SECRET, *OTHER_WOMAN)
        assert operation.counts == {"images": 0, "studies": 0, "stopped": 1}
    erase.certify(door.platform.begin, door.platform.index)
    assert door.rows("SELECT state FROM operation") == [("succeeded",)]
    assert door.sweep() == 1
    assert [path.read_bytes() for path in door.files()] == [instance()]
    assert door.rows("SELECT outcome FROM file") == [("taken",)]
    (again,) = door.send(instance(n, patient="ANOTHER", value=5))
    assert (again.kept, again.reason) == (False, "erased")


def test_the_journal_forgets_a_stopped_file_with_its_patient(door: Door) -> None:
    conflict(door)
    with door.platform.begin() as db:
        erase.erase_patient(db, SECRET, *OTHER_WOMAN)
    assert door.rows("SELECT sop_uid FROM arrival") == [(f"{UID}.1.1",)]


def test_a_stopped_file_that_is_damaged_is_not_taken_for_another(door: Door) -> None:
    conflict(door)
    damaged = next(path for path in door.files() if path.read_bytes() != instance())
    damaged.write_bytes(instance(7, patient="ANOTHER", value=9))
    door.retry()
    (row,) = door.rows("SELECT outcome, reason, encode(digest, 'hex') FROM file WHERE outcome <> 'taken'")
    assert row == ("failed", "file-changed", damaged.name.removesuffix(".dcm"))
    assert door.sweep() == 0
    door.run("UPDATE file SET mtime_ns = -1 WHERE outcome = 'failed'")  # a dead letter is retried
    assert arrive.reread(door.platform.begin, door.sandbox, door.rules) == 1


def test_a_stopped_file_that_was_sent_is_read_again_when_it_is_retried(door: Door) -> None:
    conflict(door)
    ((number,),) = door.rows("SELECT id FROM file WHERE outcome = 'quarantined'")
    door.retry(int(str(number)))
    assert door.rows("SELECT outcome, reason FROM file ORDER BY id")[1] == ("quarantined", "patient-conflict")
    assert door.journal()[0] == ("arrived", "quarantined", "patient-conflict", "SCANNER")
    door.run("UPDATE study SET patient_key = (SELECT patient_key FROM file WHERE patient_key IS NOT NULL)")
    door.retry()  # retries the whole reason: the first file was the wrong one
    assert door.rows("SELECT outcome, reason, mtime_ns, patient_key FROM file ORDER BY id")[1] == (
        "taken",
        None,
        0,
        None,
    )
    assert door.rows("SELECT sop_uid, status FROM image ORDER BY id")[1] == (f"{UID}.1.2", "received")
    assert door.journal()[0] == ("arrived", "taken", None, "SCANNER")
    assert door.sweep() == 0


def test_a_retry_loses_no_byte_whatever_is_decided(door: Door) -> None:
    conflict(door)
    refuses = Admission((Rule("house", {"sender": ("SCAN*",)}, Action.REFUSE),))
    door.rules, rules = replace(door.rules, admission=refuses), door.rules
    door.retry()
    assert door.rows("SELECT outcome FROM file ORDER BY id") == [("taken",), ("refused",)]
    assert door.sweep() == 0
    door.rules = rules
    door.run("UPDATE file SET outcome = 'quarantined', reason = 'patient-conflict' WHERE outcome = 'refused'")
    kept, aside = door.blobs.root / "away", next(p for p in door.files() if p.read_bytes() != instance())
    aside.rename(kept)  # the disk is away
    door.retry()
    assert door.rows("SELECT outcome, reason, image_id FROM file ORDER BY id")[1] == ("failed", "unreadable-file", None)
    kept.rename(aside)
    door.run("UPDATE file SET mtime_ns = -1 WHERE outcome = 'failed'")
    arrive.reread(door.platform.begin, door.sandbox, door.rules)
    assert door.rows("SELECT outcome FROM file ORDER BY id") == [("taken",), ("quarantined",)]


def test_what_was_erased_meanwhile_is_unlinked_at_a_retry(door: Door) -> None:
    conflict(door)
    with door.platform.begin() as db:
        number = operations.create(db, "erase", {"of": "image"}).id
        tombstones.add(db, {tombstones.digest(SECRET, "image", f"{UID}.1.2"): "image"}, number)
    door.retry()
    assert door.rows("SELECT outcome FROM file") == [("taken",)]
    assert door.sweep() == 1
    assert [path.read_bytes() for path in door.files()] == [instance()]


def test_a_stopped_file_is_erased_with_the_study_that_it_names(door: Door) -> None:
    conflict(door)
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.sweep() == 2
    assert door.files() == []
    assert door.rows("SELECT count(*) FROM file") == [(0,)]


def test_a_stopped_file_that_a_restore_has_brought_back_is_erased_again(door: Door) -> None:
    conflict(door)
    with door.platform.begin() as db:
        number = operations.create(db, "erase", {"of": "patient"}).id
        key = patient_key(SECRET, *OTHER_WOMAN)
        tombstones.add(db, {tombstones.digest(SECRET, "patient", key): "patient"}, number)
    with door.platform.begin() as db:
        assert len(erase.risen(db, SECRET, erasure.stopped(db))) == 1
        assert erase.replay(db, SECRET) == 0
        assert erase.risen(db, SECRET, erasure.stopped(db)) == []
    assert door.sweep() == 1
    assert [path.read_bytes() for path in door.files()] == [instance()]


def test_a_store_that_has_moved_loses_nothing(door: Door) -> None:
    """A moved home, another setting or another mount: rows name files that are not there."""
    door.send(*(instance(n, value=n) for n in range(1, 13)))
    old, new = door.blobs.root, door.blobs.root.with_name("elsewhere")
    old.rename(new)
    door.blobs = Blobs(new, reserve_bytes=0)
    assert door.sweep() == 0  # before `follow` has updated the rows
    assert len(list(door.blobs.every())) == 12
    with door.platform.begin() as db:
        assert follow(db, door.blobs)
        assert not follow(db, door.blobs)
    assert door.sweep() == 0
    for path, digest in door.rows("SELECT path, digest FROM image UNION ALL SELECT path, digest FROM file"):
        assert Path(os.fsdecode(path)) == door.blobs.place(digest)  # type: ignore[arg-type]
        assert Path(os.fsdecode(path)).exists()  # type: ignore[arg-type]


def test_a_copy_in_a_folder_of_others_is_no_sent_file(door: Door) -> None:
    """Files named as in our store, flat or in folders of two digits: files beside them may not be moved."""
    door.send(instance())
    for place in ("/archive/", "/archive/00/11/"):
        door.run(
            "INSERT INTO file (path, size, mtime_ns, digest, outcome) SELECT convert_to("
            f"'{place}' || encode(digest, 'hex') || '.dcm', 'UTF8'), size, 1, digest, 'same' FROM file "
            "ORDER BY id LIMIT 1"
        )
    door.run("INSERT INTO file (path, size, mtime_ns, outcome) VALUES ('/archive/a.dcm', 1, 1, 'taken')")
    before = door.rows("SELECT path FROM file ORDER BY id")
    with door.platform.begin() as db:
        assert not follow(db, door.blobs)
        files.move(db, b"/archive", b"/elsewhere")
    assert door.rows("SELECT path FROM file ORDER BY id") == before


def test_rows_do_not_follow_to_where_the_files_are_not(door: Door) -> None:
    door.send(instance(1), instance(2))
    empty = Blobs(door.blobs.root.with_name("empty"), reserve_bytes=0)
    partly = Blobs(door.blobs.root.with_name("partly"), reserve_bytes=0)
    one = door.files()[0]
    copy = partly.root / one.relative_to(door.blobs.root)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(one.read_bytes())
    for blobs in (empty, partly):
        with door.platform.begin() as db:
            assert not follow(db, blobs)
    assert all(Path(os.fsdecode(path)).exists() for (path,) in door.rows("SELECT path FROM file"))  # type: ignore[arg-type]


def test_rows_do_not_follow_from_a_store_that_is_away_to_one_that_has_little_of_it(door: Door) -> None:
    door.send(*(instance(n, value=n) for n in range(3)))
    earlier, aside = door.blobs.root, door.platform.folder / "aside"
    earlier.rename(aside)
    door.blobs = Blobs(door.platform.folder / "a larger disk", reserve_bytes=0)
    door.send(instance(0, value=0))  # sent again, now to the new store
    with door.platform.begin() as db:
        assert not follow(db, door.blobs)
        assert files.roots(db) == sorted([os.fsencode(earlier), os.fsencode(door.blobs.root)])


def test_rows_do_not_follow_from_a_store_that_does_not_say_what_it_has(door: Door) -> None:
    door.send(*(instance(n, value=n) for n in range(3)))
    elsewhere = b"/" + b"x" * 300  # too long for the system
    with door.platform.begin() as db:
        files.move(db, os.fsencode(door.blobs.root), elsewhere)
        door.files()[0].unlink()
        assert not follow(db, door.blobs)
        assert files.roots(db) == [elsewhere]


def test_what_was_sent_again_to_the_new_place_is_one_file_after_the_move(door: Door) -> None:
    door.send(instance())
    door.blobs = Blobs(door.blobs.root.rename(door.blobs.root.with_name("elsewhere")), reserve_bytes=0)
    door.send(instance())
    with door.platform.begin() as db:
        assert follow(db, door.blobs)
    assert door.rows("SELECT path FROM file") == [(os.fsencode(door.files()[0]),)]


def test_where_many_are_unknown_the_rows_are_wrong_and_nothing_is_touched(
    door: Door, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a restore, the database is older than the store."""
    configure("test")
    door.send(*(instance(n, value=n) for n in range(1, 13)))
    door.run("DELETE FROM file")
    door.run("DELETE FROM image")
    assert door.sweep() == 0
    assert len(list(door.blobs.every())) == 12
    said = capfd.readouterr().err
    assert "unknown_files_kept" in said
    assert UID not in said


@pytest.mark.parametrize(("free", "fits"), [(3 * 2**30, True), (2**30, False)])
def test_a_disk_below_its_reserve_takes_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, *, free: int, fits: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free))  # type: ignore[attr-defined]
    blobs = Blobs(platform.folder / "blobs")
    if fits:
        with blobs.part() as part:
            part.write(b"x")
    else:
        with pytest.raises(Full):
            blobs.part()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the size of files: further bytes are refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [200, 20_000], ids=["refused at the end", "refused while it comes"])
def test_a_file_that_the_disk_refuses_may_be_sent_again_and_leaves_nothing(door: Door, size: int) -> None:
    with files_of_at_most(size // 2), pytest.raises(Unavailable, match="the file could not be stored"):
        door.send(b"x" * size)
    assert door.files() == []
    assert door.rows("SELECT count(*) FROM arrival") == [(0,)]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, Full), (errno.EDQUOT, Full), (errno.EIO, Unavailable)])
def test_what_a_disk_says_is_told_without_a_name(number: int, kind: type[Unavailable]) -> None:
    with pytest.raises(Unavailable) as told, taking():
        raise OSError(number, os.strerror(number), "/archive/SOMEBODY.dcm")
    assert type(told.value) is kind
    assert "SOMEBODY" not in str(told.value)


def _breaks() -> None:
    raise Unavailable("the database cannot be reached")


def test_files_that_moved_are_known_where_they_stand_now(door: Door) -> None:
    door.send(instance())
    with door.platform.begin() as db:
        files.move(db, os.fsencode(door.blobs.root), b"/elsewhere")
    name = door.files()[0].relative_to(door.blobs.root)
    assert door.rows("SELECT path FROM image UNION ALL SELECT path FROM file") == [(f"/elsewhere/{name}".encode(),)] * 2
    with door.platform.begin() as db:
        files.move(db, b"/else", b"/wrong")
    assert door.rows("SELECT count(*) FROM file WHERE path LIKE '/elsewhere/%'") == [(1,)]


def test_a_store_in_a_folder_of_another_store_does_not_move_with_it(door: Door) -> None:
    outer = door.blobs.root
    door.send(instance(1))
    door.blobs = Blobs(outer / "earlier", reserve_bytes=0)
    door.send(instance(2))
    (inner,) = door.files()
    with door.platform.begin() as db:
        files.move(db, os.fsencode(outer), b"/elsewhere")
    assert door.rows("SELECT path FROM file WHERE path NOT LIKE '/elsewhere/__/%'") == [(os.fsencode(inner),)]
    assert door.rows("SELECT count(*) FROM image WHERE path LIKE '/elsewhere/__/%'") == [(1,)]


def test_what_another_archive_did_not_give_us_is_erased_with_its_study(door: Door) -> None:
    door.send(instance())
    place = f"https://pacs/dicom-web/studies/{UID}.{{}}/series/1/instances/2"
    with door.platform.begin() as db:
        seen = [Seen(path=place.format(study).encode(), size=0, mtime_ns=0) for study in (1, 11)]
        seen.append(Seen(path=f"https://pacs/dicom-web/studies/{UID}.1".encode(), size=0, mtime_ns=0))
        files.record(db, [Record(seen=one, outcome="failed", reason="source-refused") for one in seen], None)
    with door.platform.begin() as db:
        erase.erase_study(db, SECRET, f"{UID}.1")
    assert door.rows("SELECT path FROM file") == [(place.format(11).encode(),)]
