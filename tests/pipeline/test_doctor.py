"""The doctor: each kind of damage is found, named and repaired, and a second look finds nothing."""

import os
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from shared.encoder.build import build
from shared.errors import Rejected
from shared.imaging.reasons import Reason, hostile
from shared.index.base import Damaged, Index, Point, Spec
from shared.index.memory import MemoryIndex, MemoryStore
from shared.pipeline import arrive, encode, erase, lifecycle, points, reconcile, reindex
from shared.pipeline.reconcile import Finding, Site, examine
from shared.store import checks, generations, images, operations
from shared.store.blobs import Blobs
from shared.store.ledger import Pending
from shared.types import Header, point_id
from tests.miniature import SECRET, Platform, header
from tests.moves import by_hand
from tests.pipeline.test_catchup import without_second

POINT = point_id("1.2.3.1", 1)  # of image 1


def site(platform: Platform) -> Site:
    return Site(
        begin=platform.begin,
        indexes=platform.indexes,
        models=platform.folder / "models",
        blobs=store(platform),
        inspector=platform.sandbox,
        rules=platform.rules,
        digest=lambda path: sha256(path.read_bytes()).digest(),
    )


def store(platform: Platform) -> Blobs:
    return Blobs(platform.folder / "blobs")


def look(platform: Platform, *, repair: bool = False) -> list[Finding]:
    return examine(site(platform), repair=repair, deep=True)


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.add_model()
    for n in range(8):
        platform.put(f"{n:04}.dcm", header(n), f"bytes of {n}".encode())
    work(platform)
    return platform


def work(platform: Platform) -> None:
    """Do all work that is due, as the workers would."""
    platform.scan()
    platform.encode()
    platform.project()
    platform.reindex()


def run(platform: Platform, statement: str, **values: object) -> None:
    with platform.begin() as db:
        by_hand(db)
        db.execute(sa.text(statement), values)


def index(platform: Platform):  # the in-memory twin, whose internals a test may damage
    return platform.indexes.open(platform.published().collection)


def path(platform: Platform, n: int) -> Path:
    return platform.folder / "archive" / f"{n:04}.dcm"


# --- the damage; each returns the id that the finding must name ---


def missing_file(p: Platform) -> object:
    path(p, 0).unlink()
    return 1


def changed_file(p: Platform) -> object:
    """Other bytes with the same size and time."""
    before = path(p, 0).stat()
    path(p, 0).write_bytes(b"bytes of 9")
    p.sandbox.content[os.fsencode(path(p, 0))] = b"bytes of 9"
    os.utime(path(p, 0), ns=(before.st_atime_ns, before.st_mtime_ns))
    return 1


def file_without_image(p: Platform) -> object:
    with p.begin() as db:
        statement = "UPDATE file SET image_id = NULL WHERE image_id = 1 RETURNING id"
        number: int = db.execute(sa.text(statement)).scalar_one()
    run(p, "DELETE FROM image WHERE id = 1")
    run(p, "DELETE FROM ledger WHERE image_id = 1")
    index(p).delete([POINT])
    return number


def blob(p: Platform, what: Header | Rejected, content: bytes = b"sent to us") -> Path:
    """Write a file to the store that no row knows, as after a crash or with an older database."""
    digest = sha256(content).digest()
    for path in (store(p).place(digest), store(p).root / "lost" / f"{digest.hex()}.dcm"):
        p.sandbox.headers[os.fsencode(path)], p.sandbox.content[os.fsencode(path)] = what, content
    path = store(p).place(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    return path


def blob_without_row(p: Platform) -> object:
    return blob(p, header(16)).stem[:16]


def blob_put_aside(p: Platform) -> object:
    path = blob(p, header(16))
    store(p).lose(path)
    return path.stem[:16]


def unreadable_blob(p: Platform) -> object:
    return blob(p, hostile(Reason.DEPTH)).stem[:16]


def missing_encoding(p: Platform) -> object:
    run(p, "DELETE FROM encoding WHERE image_id = 1")
    return 1


def missing_ledger_row(p: Platform) -> object:
    run(p, "DELETE FROM ledger WHERE image_id = 1")
    return 1


def phantom(p: Platform) -> object:
    stranger = uuid.UUID(int=7)
    index(p).write([Point(id=stranger, vector=np.ones(64, np.float32), payload={"revision": 1})])
    return str(stranger)


def deleted_point_that_stands(p: Platform) -> object:
    kept = index(p).get([POINT])
    run(p, "UPDATE ledger SET op = 'delete', state = 'pending' WHERE image_id = 1")
    p.project()
    index(p).write(kept)
    run(p, "DELETE FROM encoding WHERE image_id = 1")
    run(p, "UPDATE image SET status = 'empty' WHERE id = 1")
    return str(POINT)


def older_revision(p: Platform) -> object:
    run(p, "UPDATE image SET revision = 4 WHERE id = 1")
    run(p, "UPDATE ledger SET revision = 4 WHERE image_id = 1")
    return str(POINT)


def newer_revision(p: Platform) -> object:
    (point,) = index(p).get([POINT])
    index(p).write([Point(id=POINT, vector=point.vector, payload={**point.payload, "revision": 9})])
    return str(POINT)


def stale_ledger(p: Platform) -> object:
    run(p, "UPDATE image SET revision = 4 WHERE id = 1")
    return 1


def vector_of_another_model(p: Platform) -> object:
    """The collection holds the vector that another model of the archive made of the image."""
    p.begin_generation(p.add_model("other", seed=5).name)
    p.reindex()
    mine = index(p)
    (point,), (strange,) = mine.get([POINT]), p.index("g2-m2").get([POINT])
    mine.write([Point(id=POINT, vector=strange.vector, payload=point.payload)])
    return str(POINT)


def card_of_another_model(p: Platform) -> object:
    models = p.folder / "models"
    (models / "null").rename(models / "elsewhere")
    build(models / "null", "null", "null", "random:9", dim=64)
    return 1


def vector_of_nothing(p: Platform) -> object:
    (point,) = index(p).get([POINT])
    index(p).write([Point(id=POINT, vector=np.roll(point.vector, 1), payload=point.payload)])
    return str(POINT)


def _overwrite(p: Platform, value: float) -> object:
    rows = index(p)._rows  # an engine would refuse such a vector
    rows._vectors[rows._at[POINT]] = value
    return str(POINT)


def zero_vector(p: Platform) -> object:
    return _overwrite(p, 0.0)


def nan_vector(p: Platform) -> object:
    return _overwrite(p, np.nan)


def nan_encoding(p: Platform) -> object:
    run(p, "UPDATE encoding SET embedding = :e WHERE image_id = 1", e=np.full(64, np.nan, "<f2").tobytes())
    return 1


def short_encoding(p: Platform) -> object:
    run(p, "UPDATE encoding SET embedding = substring(embedding FROM 1 FOR 40) WHERE image_id = 1")
    return 1


def drift(p: Platform) -> object:
    (point,) = index(p).get([POINT])
    index(p).write([Point(id=POINT, vector=point.vector, payload={**point.payload, "view": "ML"})])
    return str(POINT)


def expired_lease(p: Platform) -> object:
    late = "clock_timestamp() - interval '2 minutes'"
    run(p, f"UPDATE image SET status = 'encoding', attempt = attempt + 1, lease_until = {late} WHERE id = 1")
    return 1


def lease_without_end(p: Platform) -> object:
    run(p, "UPDATE image SET status = 'encoding', lease_until = NULL WHERE id = 1")
    return 1


NEXT_YEAR = "clock_timestamp() + interval '1 year'"


def lease_until_next_year(p: Platform) -> object:
    """The clock was wrong when a worker took the image and died."""
    run(p, f"UPDATE image SET status = 'encoding', attempt = attempt + 1, lease_until = {NEXT_YEAR} WHERE id = 1")
    return 1


def rest_until_next_year(p: Platform) -> object:
    run(p, f"UPDATE image SET status = 'received', not_before = {NEXT_YEAR} WHERE id = 1")
    return 1


def point_that_rests_until_next_year(p: Platform) -> object:
    run(p, f"UPDATE ledger SET state = 'pending', attempt = 1, not_before = {NEXT_YEAR} WHERE image_id = 1")
    return 1


def exhausted_image(p: Platform) -> object:
    run(p, "UPDATE image SET status = 'failed', failures = 5, reason = 'worker-died' WHERE id = 1")
    return 1


def exhausted_point(p: Platform) -> object:
    index(p).delete([POINT])
    run(p, "UPDATE ledger SET state = 'failed', attempt = 3, last_error = 'refused' WHERE image_id = 1")
    return 1


def applied_but_absent(p: Platform) -> object:
    index(p).delete([POINT])
    return str(POINT)


def lost_collection(p: Platform) -> object:
    p.indexes.drop(p.published().collection)
    return 1


def damaged_collection(p: Platform) -> object:
    """The engine lists the collection but cannot open it."""
    p.indexes = Damaging(p.indexes)
    return 1


class Damaging(MemoryStore):
    def __init__(self, held: MemoryStore) -> None:
        super().__init__()
        self._collections = held._collections
        self._lost = set(held.names())

    def open(self, name: str) -> Index:
        if name in self._lost:
            raise Damaged("cannot be opened")
        return super().open(name)

    def drop(self, name: str) -> None:
        self._lost.discard(name)
        super().drop(name)


def stray_collection(p: Platform) -> object:
    p.indexes.create("g77-m1", index(p).spec)
    return "g77-m1"


def pointer_to_a_retired_one(p: Platform) -> object:
    run(p, "UPDATE generation SET state = 'retired', retired_at = clock_timestamp()")
    p.put("late.dcm", header(8), b"bytes of late")
    return 1


def no_pointer(p: Platform) -> object:
    run(p, "DELETE FROM live")
    return 1


def tombstoned_image(p: Platform) -> object:
    """As after a restore from a backup that is older than the erasure."""
    with p.begin() as db:
        operation = erase.erase_study(db, SECRET, "1.2.4.1").id
        db.flush()
        stones = db.execute(sa.text("SELECT digest, kind FROM tombstone")).all()
        db.rollback()
    with p.begin() as db:
        db.execute(sa.text("INSERT INTO operation (id, kind) VALUES (:id, 'erase')"), {"id": operation})
        for digest, kind in stones:
            db.execute(
                sa.text("INSERT INTO tombstone (digest, kind, operation_id) VALUES (:d, :k, :o)"),
                {"d": digest, "k": kind, "o": operation},
            )
        db.execute(sa.text("UPDATE operation SET state = 'succeeded' WHERE kind = 'erase'"))
    return 1


def what_an_erasure_left(p: Platform) -> object:
    with p.begin() as db:
        kept = db.execute(sa.text("SELECT jpeg FROM thumbnail WHERE image_id = 1")).scalar_one()
        erase.erase_study(db, SECRET, "1.2.4.1")
    p.project()
    run(p, "INSERT INTO thumbnail (image_id, jpeg) VALUES (1, :jpeg)", jpeg=kept)
    return 1


def orphan_in_a_ledger(p: Platform) -> object:
    run(p, "UPDATE image SET status = 'quarantined', gate = 'features' WHERE id = 1")
    return 1


def foreign_calibration(p: Platform) -> object:
    p.add_model("other", seed=5)
    run(
        p,
        "INSERT INTO calibration (model_id, modality, source, rule, threshold, n, data_sha256) "
        "VALUES (2, 'MG', 'given', 'given', 0.5, 30, '')",
    )
    run(p, "UPDATE image SET calibration_id = 1, score = 0.4 WHERE id = 1")
    return 1


DAMAGE: list[tuple[str, Callable[[Platform], object]]] = [
    ("file-missing", missing_file),
    ("file-changed", changed_file),
    ("file-without-image", file_without_image),
    ("blob-without-row", blob_without_row),
    ("blob-without-row", blob_put_aside),
    ("blob-without-row", unreadable_blob),
    ("encoding-missing", missing_encoding),
    ("ledger-missing", missing_ledger_row),
    ("point-phantom", phantom),
    ("point-phantom", deleted_point_that_stands),
    ("point-stale", older_revision),
    ("point-stale", newer_revision),
    ("ledger-stale", stale_ledger),
    ("wrong-fingerprint", vector_of_another_model),
    ("model-changed", card_of_another_model),
    ("vector-differs", vector_of_nothing),
    ("point-zero", zero_vector),
    ("point-zero", nan_vector),
    ("encoding-invalid", nan_encoding),
    ("encoding-invalid", short_encoding),
    ("payload-drift", drift),
    ("lease-expired", expired_lease),
    ("lease-expired", lease_without_end),
    ("lease-expired", lease_until_next_year),
    ("lease-expired", rest_until_next_year),
    ("lease-expired", point_that_rests_until_next_year),
    ("job-exhausted", exhausted_image),
    ("job-exhausted", exhausted_point),
    ("point-missing", applied_but_absent),
    ("collection-missing", lost_collection),
    ("collection-damaged", damaged_collection),
    ("collection-stray", stray_collection),
    ("pointer-retired", pointer_to_a_retired_one),
    ("pointer-missing", no_pointer),
    ("tombstoned", tombstoned_image),
    ("erased-remains", what_an_erasure_left),
    ("ledger-orphan", orphan_in_a_ledger),
    ("calibration-foreign", foreign_calibration),
]


@pytest.mark.parametrize(("kind", "damage"), DAMAGE, ids=[damage.__name__ for _, damage in DAMAGE])
def test_damage_is_found_named_and_repaired(filled: Platform, kind: str, damage: Callable[[Platform], object]) -> None:
    assert look(filled) == []
    named = damage(filled)
    found = look(filled)
    assert [named in one.ids and one.count == len(one.ids) for one in found if one.kind == kind] == [True]
    again = look(filled)
    assert again == found, "looking changes nothing"
    assert all(one.repaired for one in look(filled, repair=True))
    work(filled)
    assert look(filled) == []
    assert look(filled, repair=True) == []
    expected = {point_id(f"1.2.3.{n + 1}", 1) for n in range(8)}
    held = {id_ for batch in index(filled).scan() for id_, _ in batch}
    if kind in ("tombstoned", "erased-remains"):
        assert len(held) == 4
    elif damage in (orphan_in_a_ledger, deleted_point_that_stands):
        assert held == expected - {POINT}
    else:
        assert held >= expected


def test_every_kind_that_the_text_names_is_among_them() -> None:
    assert len({kind for kind, _ in DAMAGE}) >= 15


def test_a_changed_file_is_encoded_anew_and_a_lost_one_stays_searchable(filled: Platform) -> None:
    before = index(filled).get([POINT])[0].vector
    changed_file(filled)
    path(filled, 1).unlink()
    look(filled, repair=True)
    work(filled)
    assert not np.allclose(index(filled).get([POINT])[0].vector, before)
    assert index(filled).get([point_id("1.2.3.2", 1)])
    with filled.store.reading() as connection:
        outcome = connection.execute(sa.text("SELECT outcome, reason FROM file WHERE image_id = 2")).one()
    assert tuple(outcome) == ("failed", "unreadable-file")


def test_a_file_that_is_dated_before_1970_is_compared_too(filled: Platform) -> None:
    os.utime(path(filled, 0), ns=(0, -(10**18)))
    work(filled)
    assert look(filled) == []
    path(filled, 0).unlink()
    assert [(one.kind, one.ids) for one in look(filled)] == [("file-missing", [1])]


def test_a_changed_file_brings_back_the_scan_that_met_it_but_none_that_was_cancelled(filled: Platform) -> None:
    with filled.begin() as db:
        for n in (1, 2):
            operation = operations.create(db, "scan", {"path": "x", "watch": True})
            run(filled, "UPDATE file SET operation_id = :id WHERE image_id = :n", id=operation.id, n=n)
            operation.state, operation.counts = ("succeeded", "cancelled")[n - 1], {"taken": 1}
            operation.cursor, operation.losses = {"path": "2f"}, 3
    for n in (0, 1):
        path(filled, n).write_bytes(b"of another length")
    look(filled, repair=True)
    with filled.store.reading() as connection:
        told = connection.execute(
            sa.text("SELECT state, counts, cursor, losses FROM operation WHERE kind = 'scan' ORDER BY created_at")
        ).all()
    assert [tuple(row) for row in told] == [
        ("pending", {}, None, 0),
        ("cancelled", {"taken": 1}, {"path": "2f"}, 3),
    ]


def test_a_repair_that_is_cut_short_has_mended_what_it_had_looked_at(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair also releases the rows of a share that is away before it has checked all files."""
    monkeypatch.setattr(reconcile, "FILES", 2)
    with filled.store.reading() as connection:
        first, *_, last = connection.execute(sa.text("SELECT path FROM file ORDER BY id")).scalars().all()
    os.unlink(first)

    def cut(file: Path) -> bytes:
        if os.fsencode(file) == last:
            raise KeyboardInterrupt
        return sha256(file.read_bytes()).digest()

    with pytest.raises(KeyboardInterrupt):
        examine(replace(site(filled), digest=cut), repair=True, deep=True)
    with filled.store.reading() as connection:
        outcome = connection.execute(sa.text("SELECT outcome, reason FROM file ORDER BY id LIMIT 1")).one()
    assert tuple(outcome) == ("failed", "unreadable-file")


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_a_copy_takes_the_place_of_a_lost_file(filled: Platform, kind: str) -> None:
    """As after an archive has moved: its pictures are known by their content, wherever they are met."""
    old = filled.put(f"x.{kind}", header(8), b"picture")
    filled.sandbox.kinds[os.fsencode(old)] = kind
    work(filled)
    copy = filled.put(f"moved/x.{kind}", header(8), b"picture")
    filled.sandbox.kinds[os.fsencode(copy)] = kind
    filled.scan()
    old.unlink()
    look(filled, repair=True)
    assert look(filled) == []
    with filled.store.reading() as connection:
        assert connection.execute(sa.text("SELECT path FROM image WHERE id = 9")).scalar_one() == os.fsencode(copy)
    copy.unlink()
    assert [(one.kind, one.ids) for one in look(filled)] == [("file-missing", [9])]


def test_an_image_whose_file_was_missed_is_where_a_scan_finds_its_bytes(filled: Platform) -> None:
    path(filled, 0).unlink()
    look(filled, repair=True)
    moved = filled.put("moved/0000.dcm", header(0), b"bytes of 0")
    work(filled)
    with filled.store.reading() as connection:
        stands = connection.execute(sa.text("SELECT path FROM image WHERE id = 1")).scalar_one()
    assert bytes(stands) == os.fsencode(moved)
    moved.unlink()
    assert [(one.kind, one.ids) for one in look(filled)] == [("file-missing", [1])]


def test_a_sent_file_that_was_damaged_is_a_finding_until_its_bytes_are_back(filled: Platform) -> None:
    """No scan reads it again: a repair can only mark it, so that no model encodes it."""
    sent = blob(filled, header(8))
    look(filled, repair=True)
    work(filled)
    for repair in (False, True, False, True):
        sent.write_bytes(b"sent to uz")
        os.utime(sent, ns=(0, 0))
        (found,) = look(filled, repair=repair)
        assert (found.kind, found.ids, found.repaired) == ("file-changed", [9], False)
    assert [one.kind for one in examine(site(filled))] == ["file-changed"], "once it is known, also without `deep`"
    sent.write_bytes(b"sent to us")
    assert look(filled) == []


def test_a_file_without_a_row_is_taken_in_again_unless_it_was_erased_or_cannot_be_read(filled: Platform) -> None:
    blob(filled, header(16))
    blob(filled, hostile(Reason.DEPTH), b"no header")
    blob(filled, header(0, study_instance_uid="1.2.4.77"), b"erased")
    with filled.begin() as db:
        number = operations.create(db, "erase", {"of": "study"}).id
        db.execute(sa.text("UPDATE operation SET state = 'succeeded' WHERE id = :id"), {"id": number})
        erase.tombstones.add(db, {erase.digest(SECRET, "study", "1.2.4.77"): "study"}, number)
    (found,) = look(filled, repair=True)
    assert (found.kind, found.count) == ("blob-without-row", 3)
    work(filled)
    assert point_id("1.2.3.17", 1) in {id_ for batch in index(filled).scan() for id_, _ in batch}
    arrive.sweep(filled.begin, filled.sandbox, store(filled), SECRET)
    assert [path.read_bytes() for path in store(filled).every()] == [b"sent to us"]
    assert [path.read_bytes() for path in store(filled).lost()] == [b"no header"]
    assert look(filled) == []


def test_many_findings_are_counted_and_twenty_named(filled: Platform) -> None:
    for n in range(30):
        index(filled).write([Point(id=uuid.UUID(int=n + 1), vector=np.ones(64, np.float32), payload={"revision": 1})])
    (found,) = look(filled)
    assert (found.kind, found.count, len(found.ids)) == ("point-phantom", 30, 20)


def test_without_deep_files_are_not_read(filled: Platform) -> None:
    changed_file(filled)
    assert examine(site(filled)) == []
    assert [one.kind for one in look(filled)] == ["file-changed"]


def test_nothing_is_found_while_images_come_in(platform: Platform) -> None:
    """Scans, encoding, projection and erasure run at the same time."""
    platform.add_model()
    stop, faults = threading.Event(), []

    def take_in() -> None:
        try:
            for n in range(0, 120, 8):
                for k in range(n, n + 8):
                    platform.put(f"{k:04}.dcm", header(k), f"bytes of {k}".encode())
                platform.scan()
                platform.encode()
                platform.project()
                if n % 40 == 32:
                    with platform.begin() as db:
                        erase.erase_study(db, SECRET, f"1.2.4.{n // 4 + 1}")
        except Exception as error:
            faults.append(error)
        finally:
            stop.set()

    busy = threading.Thread(target=take_in)
    busy.start()
    looks = 0
    while not stop.is_set():
        assert look(platform) == []
        looks += 1
    busy.join()
    assert faults == []
    assert looks >= 3
    assert look(platform) == []


def test_what_is_under_way_is_seen_from_afar_and_is_no_finding(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the second look under the lock, a point being applied would be reported missing."""
    late: list[Pending] = []
    held = points.ledger.held

    def behind(db, generation_id, after, limit):
        """A row is applied between the scan of the index and the reading of the ledger."""
        if not late:
            late.append(True)  # type: ignore[arg-type]
            filled.put("late.dcm", header(8), b"bytes of late")
            filled.scan()
            filled.encode()
            filled.project()
        return held(db, generation_id, after, limit)

    monkeypatch.setattr(points.ledger, "held", behind)
    suspects = list(points._suspects(filled.begin, index(filled), filled.published(), deep=False))
    assert point_id("1.2.3.9", 1) in suspects
    late.clear()
    assert look(filled) == []


def test_what_was_erased_lifted_and_taken_in_again_is_held_again(filled: Platform) -> None:
    """The earlier row of the image had another number and a higher revision."""
    filled.put("0000.dcm", header(0), b"other bytes of 0")
    os.utime(path(filled, 0), ns=(1, 1))
    work(filled)
    with filled.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
    work(filled)
    assert index(filled).get([POINT]) == []
    with filled.begin() as db:
        erase.lift_study(db, SECRET, "1.2.4.1")
    work(filled)
    assert len(index(filled).get([POINT])) == 1
    assert look(filled) == []


def test_a_generation_whose_making_was_killed_leaves_a_collection_that_repair_drops(filled: Platform) -> None:
    with pytest.raises(KeyboardInterrupt), filled.begin() as db:
        lifecycle.begin_generation(db, filled.indexes, generations.model(db, "null"), scale="exact")
        raise KeyboardInterrupt
    (stray,) = set(filled.indexes.names()) - {filled.published().collection}
    (found,) = look(filled, repair=True)
    assert (found.kind, found.ids, found.repaired) == ("collection-stray", [stray], True)
    assert filled.indexes.names() == [filled.published().collection]
    assert look(filled) == []


def test_a_collection_whose_generation_is_being_made_is_no_stray(filled: Platform) -> None:
    """Beginning the generation takes long here, because it waits for a writer of ledgers."""
    made, found = threading.Event(), []

    def make() -> None:
        with filled.begin() as db:
            lifecycle.begin_generation(db, filled.indexes, generations.model(db, "null"), scale="exact")

    def repair() -> None:
        made.wait(5)
        found.extend(look(filled, repair=True))

    create = filled.indexes.create

    def announced(name: str, spec: Spec) -> Index:
        index = create(name, spec)
        made.set()
        time.sleep(0.5)
        return index

    filled.indexes.create = announced  # type: ignore[method-assign]
    both = [threading.Thread(target=make), threading.Thread(target=repair)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert found == []
    assert len(filled.indexes.names()) == 2


def test_comparing_a_large_index_takes_the_memory_of_two_pages(filled: Platform) -> None:
    """All 40,000 points at once would take some 12 MB."""
    many = 40_000
    run(
        filled,
        "INSERT INTO ledger (generation_id, point_id, image_id, frame, op, revision, state, applied_at) "
        "SELECT 1, CAST(lpad(to_hex(n), 32, '0') AS uuid), 1, 1, 'upsert', 1, 'applied', clock_timestamp() "
        "FROM generate_series(1, :many) AS n",
        many=many,
    )
    run(filled, "DELETE FROM ledger WHERE point_id > '00000000-0000-0000-0000-0000ffffffff'")

    class Long(MemoryIndex):
        def scan(self, batch: int = 1000) -> Iterator[list[tuple[uuid.UUID, int]]]:
            for start in range(1, many + 1, batch):
                yield [(uuid.UUID(int=n), 2 if n == 777 else 1) for n in range(start, min(start + batch, many + 1))]

    def compare() -> list[uuid.UUID]:
        return list(points._suspects(filled.begin, Long(index(filled).spec), filled.published(), False))

    assert compare()[0] == uuid.UUID(int=777)
    tracemalloc.start()
    try:
        suspects = compare()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(suspects)) == 1 + points.SAMPLE
    assert peak < 4e6


def test_what_was_under_way_when_a_backup_was_taken_goes_on_and_is_no_finding(filled: Platform) -> None:
    late = "clock_timestamp() - interval '1 hour'"
    run(
        filled,
        f"INSERT INTO operation (kind, state, params, lease_until) VALUES ('scan', 'running', '{{}}', {late})",
    )
    run(filled, f"UPDATE image SET status = 'encoding', attempt = attempt + 1, lease_until = {late} WHERE id = 1")
    assert {one.kind for one in look(filled)} == {"operation-stuck", "lease-expired"}
    with filled.begin() as db:
        checks.release_all_leases(db)
    assert look(filled) == []
    with filled.begin() as db:
        assert operations.claim(db, "scan", 5) is not None
    assert filled.encode() == 1


def test_an_operation_that_rests_until_next_year_goes_on_after_a_repair(filled: Platform) -> None:
    run(
        filled,
        f"INSERT INTO operation (kind, state, params, not_before) VALUES ('erase', 'running', '{{}}', {NEXT_YEAR})",
    )
    assert [one.kind for one in look(filled)] == ["operation-stuck"]
    look(filled, repair=True)
    assert look(filled) == []
    with filled.begin() as db:
        assert operations.claim(db, "erase", 5) is not None


def test_a_watch_once_a_week_is_no_finding(filled: Platform) -> None:
    run(
        filled,
        "INSERT INTO operation (kind, state, params, not_before) VALUES "
        "('scan', 'running', '{\"path\": \"x\", \"watch\": true}', clock_timestamp() + interval '7 days')",
    )
    assert look(filled) == []


def test_a_rest_of_a_wrong_clock_is_no_failure_of_the_image(filled: Platform) -> None:
    run(
        filled,
        "UPDATE image SET status = 'received', failures = 4, last_error = 'encoder-error', "
        f"not_before = {NEXT_YEAR} WHERE id = 1",
    )
    look(filled, repair=True)
    with filled.begin() as db:
        assert images.exhaust(db, 5) == []


def test_a_scanned_file_that_is_named_as_in_a_store_is_read_again_by_its_scan(filled: Platform) -> None:
    digest = sha256(b"old").hexdigest()
    path = filled.put(f"blobs/{digest[:2]}/{digest[2:4]}/{digest}.dcm", header(8), b"old")
    work(filled)
    with filled.begin() as db:
        scan = operations.create(db, "scan", {"path": "x"})
        scan.state = "succeeded"
        db.flush()
        db.execute(sa.text("UPDATE file SET operation_id = :scan"), {"scan": scan.id})
    path.write_bytes(b"new bytes")
    assert [(one.kind, one.repaired) for one in look(filled, repair=True)] == [("file-changed", True)]


def test_an_image_on_which_a_model_catches_up_is_not_missing_from_its_generation(filled: Platform) -> None:
    filled.add_model("second", seed=3, dim=32)
    number = filled.begin_generation("second")
    work(filled)
    filled.put("0001.dcm", header(1), b"other bytes")
    filled.scan()
    encode.drain(filled.begin, filled.sandbox, without_second(filled), filled.effort)
    with filled.begin() as db:
        lifecycle.retire(db, number)
    number = filled.begin_generation("second")
    with filled.begin() as db:
        reindex.fill(db, generations.get(db, number))
    filled.project()
    assert look(filled) == []
