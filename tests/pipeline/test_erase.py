"""Erasure: effective in searches at once, proved for every index soon after, and refused when sent again."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound, Unavailable
from shared.index.base import Index
from shared.pipeline import batch, erase, lifecycle, project, reindex
from shared.pipeline.question import Request
from shared.pipeline.search import by_studies
from shared.store import generations, operations
from shared.types import OperationKind
from tests.miniature import SECRET, Platform, header
from tests.pipeline.test_reindex import Crash, CrashingAt

UID = "1.2.4.2"  # images 4 to 7; the same patient as study 1.2.4.1
WOMAN = "WOMAN-0"


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.add_model()
    platform.take_in(16)
    return platform


def query(platform: Platform, text: str) -> list[tuple[Any, ...]]:
    with platform.store.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.text(text))]


def erased(platform: Platform, uid: str = UID) -> UUID:
    with platform.begin() as db:
        return erase.erase_study(db, SECRET, uid).id


def state(platform: Platform, operation_id: UUID) -> operations.Operation:
    with platform.begin() as db:
        return operations.get(db, operation_id)


def settle(platform: Platform) -> None:
    with platform.begin() as db:
        db.execute(sa.text("UPDATE operation SET not_before = NULL, lease_until = NULL"))
    platform.project()


def found(platform: Platform, uid: str) -> list[str]:
    with platform.store.reading() as connection:
        ranking = by_studies(connection, platform.index, [uid], Request(k=10, exclude=frozenset({"self"})))[0]
    return sorted(one.study_uid for one in ranking.studies)


def test_from_the_commit_on_nobody_finds_it(filled: Platform) -> None:
    assert UID in found(filled, "1.2.4.3")
    erased(filled)
    assert filled.index("g1-m1").count() == 16  # the vectors still exist
    assert found(filled, "1.2.4.3") == ["1.2.4.1", "1.2.4.4"]
    with pytest.raises(NotFound):
        found(filled, UID)


def test_what_is_left_are_bare_rows_and_keyed_hashes(filled: Platform) -> None:
    erased(filled)
    for table in ("encoding", "thumbnail", "file"):
        assert query(filled, f"SELECT count(*) FROM {table} WHERE image_id IS NOT NULL") == [(12,)]
    dump = "\n".join(
        str(row)
        for table in ("image", "study", "file", "operation", "tombstone", "ledger")
        for row in query(filled, f"SELECT t.* FROM {table} t")
    )
    for name in (UID, "1.2.5.2", "'1.2.3.5'", "'1.2.3.8'", "0004.dcm", WOMAN):
        assert name not in dump
    assert "1.2.4.1" in dump  # proves that the dump shows what is stored
    assert query(filled, "SELECT kind, count(*) FROM tombstone GROUP BY 1 ORDER BY 1") == [("image", 4), ("study", 1)]


def test_a_pull_that_named_the_study_names_it_no_more_and_asks_for_no_other(filled: Platform) -> None:
    with filled.begin() as db:
        asked = {"source": "pacs", "query": {"StudyInstanceUID": f"1.2.4.1,{UID}", "ModalitiesInStudy": "MG"}}
        both = operations.create(db, OperationKind.PULL, asked)
        both.cursor = {"from": "", "to": "", "after": UID}
        one = operations.create(db, OperationKind.PULL, {"source": "pacs", "query": {"StudyInstanceUID": UID}})
    erased(filled)
    told = state(filled, both.id)
    assert told.params["query"] == {"StudyInstanceUID": "1.2.4.1,2.25.0", "ModalitiesInStudy": "MG"}
    assert told.cursor == {"from": "", "to": "", "after": ""}
    assert state(filled, one.id).params["query"] == {"StudyInstanceUID": "2.25.0"}  # an empty one matches all studies


def test_the_operation_ends_with_the_proof_that_no_index_holds_a_point(filled: Platform) -> None:
    building = filled.begin_generation()
    filled.reindex()
    filled.put("late.dcm", header(16))
    operation = erased(filled)
    assert state(filled, operation).state == "pending"
    settle(filled)
    ended = state(filled, operation)
    assert (ended.state, ended.done, ended.total) == ("succeeded", 8, 8)
    assert ended.counts == {"images": 4, "studies": 1, "points": 8, "generations": 2}
    for number in (1, building):
        assert filled.index(f"g{number}-m1").count() == 12


class Stubborn:
    """An index that acknowledges the first delete without effect."""

    deaf = True

    def __init__(self, inner: Index) -> None:
        self.inner, self.spec, self.get, self.write = inner, inner.spec, inner.get, inner.write

    def delete(self, ids: Sequence[UUID]) -> None:
        if not Stubborn.deaf:
            self.inner.delete(ids)
        Stubborn.deaf = False


def test_a_point_that_stands_all_the_same_is_deleted_again(filled: Platform) -> None:
    operation = erased(filled)
    Stubborn.deaf = True
    project.drain(filled.begin, lambda name: Stubborn(filled.index(name)), gather_s=0)  # type: ignore[arg-type,return-value]
    assert state(filled, operation).state == "running"
    assert filled.index("g1-m1").count() == 16
    settle(filled)
    settle(filled)
    assert state(filled, operation).state == "succeeded"
    assert filled.index("g1-m1").count() == 12


def test_an_engine_that_is_away_proves_nothing(filled: Platform) -> None:
    operation = erased(filled)
    filled.project()
    settle_before = state(filled, operation)
    assert settle_before.state == "succeeded"
    again = erased(filled, "1.2.4.3")

    def away(_: str) -> Index:
        raise Unavailable("the engine is away")

    with pytest.raises(Unavailable):
        project.drain(filled.begin, away, gather_s=0)
    with pytest.raises(Unavailable):
        _only_certify(filled, away)
    assert state(filled, again).state == "running"
    for _ in range(2):  # the points still exist, and are deleted again
        settle(filled)
    assert state(filled, again).state == "succeeded"


def test_an_erasure_is_proved_while_a_generation_that_never_held_it_does_not_answer(filled: Platform) -> None:
    operation = erased(filled)
    building = generations.collection_of(filled.begin_generation(), 1)
    reindex.advance(filled.begin, filled.index)

    with pytest.raises(Unavailable):
        project.drain(filled.begin, filled.all_but(building), gather_s=0)
    assert state(filled, operation).state == "succeeded"


def _only_certify(platform: Platform, open_index: Callable[[str], Index]) -> None:
    with platform.begin() as db:  # as if the deletes were applied and the rest between two steps were over
        db.execute(sa.text("UPDATE ledger SET state = 'applied' WHERE op = 'delete'"))
        db.execute(sa.text("UPDATE operation SET not_before = NULL"))
    erase.certify(platform.begin, open_index)


def test_a_retired_generation_that_is_not_purged_yet_counts_too(filled: Platform) -> None:
    other = filled.begin_generation()
    filled.reindex()
    with filled.begin() as db:
        lifecycle.retire(db, other)
    operation = erased(filled)
    settle(filled)
    assert state(filled, operation).state == "running"  # deleted there, but not yet proved
    settle(filled)
    assert state(filled, operation).state == "succeeded"
    assert filled.index(f"g{other}-m1").count() == 12


def test_an_erasure_that_was_given_up_goes_on_when_it_is_asked_for_again(filled: Platform) -> None:
    operation = erased(filled)
    for _ in range(operations.MOST_LOSSES):
        with filled.begin() as db:
            assert operations.claim(db, "erase", 0.0) is not None
    with filled.begin() as db:
        assert operations.exhaust(db) == [operation]
    settle(filled)
    assert state(filled, operation).state == "failed"
    assert erased(filled) == operation
    settle(filled)
    ended = state(filled, operation)
    assert (ended.state, ended.error, ended.counts["images"]) == ("succeeded", None, 4)


@pytest.mark.parametrize("after", [False, True])
def test_killed_between_any_two_steps_it_still_ends_with_the_proof(filled: Platform, *, after: bool) -> None:
    for number, step in ((1, 2), (2, 4), (3, 5)):  # killed while applying, claiming the proof, reporting it
        operation = erased(filled, f"1.2.4.{number}")
        with pytest.raises(Crash):
            project.drain(CrashingAt(filled, step, after=after), filled.index, gather_s=0)
        settle(filled)
        assert state(filled, operation).state == "succeeded", step
        assert filled.index("g1-m1").count() == 16 - 4 * number


def test_a_file_that_comes_again_is_refused_and_counted(filled: Platform) -> None:
    erased(filled)
    progress = filled.scan()
    assert +progress.counts == {"unchanged": 12, "kept": 4}
    assert query(filled, "SELECT reason, count(*) FROM file WHERE outcome = 'kept' GROUP BY 1") == [("erased", 4)]
    assert +filled.scan().counts == {"unchanged": 16}
    assert query(filled, "SELECT count(*) FROM image WHERE status <> 'deleted'") == [(12,)]


@pytest.mark.parametrize(
    "disguise",
    [
        {"study_instance_uid": "1.2.4.99", "patient_id": "SOMEBODY"},  # the same image under another study
        {"sop_instance_uid": "1.2.3.99"},  # another image of the study
    ],
)
def test_a_tombstone_holds_for_the_image_and_for_the_study(filled: Platform, disguise: dict[str, Any]) -> None:
    erased(filled)
    filled.put("again.dcm", header(4, **disguise), b"other bytes")
    assert filled.scan().counts["kept"] == 5


def test_a_patient_is_erased_with_all_studies_and_does_not_come_back(filled: Platform) -> None:
    operation = erased_woman(filled)
    assert found(filled, "1.2.4.3") == ["1.2.4.4"]
    settle(filled)
    assert state(filled, operation).counts["studies"] == 2
    filled.put("new.dcm", header(20, patient_id=WOMAN))
    assert filled.scan().counts["kept"] == 9
    with filled.begin() as db:
        assert erase.erase_patient(db, SECRET, "", WOMAN).id == operation  # the same operation
        with pytest.raises(Conflict, match="with its patient"):
            erase.lift_study(db, SECRET, UID)
        with pytest.raises(NotFound):
            erase.erase_patient(db, SECRET, "", "NOBODY")


def test_what_an_operator_lifts_may_come_again(filled: Platform) -> None:
    operation = erased(filled)
    assert erased(filled) == operation
    settle(filled)
    filled.scan()
    with filled.begin() as db:
        assert erase.lift_study(db, SECRET, UID) == 5
        with pytest.raises(NotFound):
            erase.lift_study(db, SECRET, UID)
    assert filled.scan().counts["taken"] == 4
    filled.encode()
    filled.project()
    assert UID in found(filled, "1.2.4.3")
    assert filled.index("g1-m1").count() == 16


def test_while_its_deletes_are_due_an_erasure_cannot_be_lifted(filled: Platform) -> None:
    """Otherwise the new row, of a lower revision, would replace a due delete, and the old vector would remain."""
    operation = erased(filled)
    with filled.begin() as db, pytest.raises(Conflict, match="is still running"):
        erase.lift_study(db, SECRET, UID)
    settle(filled)
    assert state(filled, operation).state == "succeeded"
    with filled.begin() as db:
        assert erase.lift_study(db, SECRET, UID) == 5
    filled.scan()
    filled.encode()
    filled.project()
    assert UID in found(filled, "1.2.4.3")


def test_an_image_that_is_being_encoded_is_erased_all_the_same(filled: Platform) -> None:
    filled.put("new.dcm", header(20))
    filled.scan()
    work = filled.intake.claim()
    result = batch.forward(batch.decode(filled.sandbox, work), filled.encoder)
    operation = erased(filled, "1.2.4.6")
    assert filled.intake.settle(work, result) == 0
    assert query(filled, "SELECT count(*) FROM encoding") == [(16,)]
    settle(filled)
    assert state(filled, operation).state == "succeeded"


def test_an_erasure_during_a_fill_waits_for_it_and_then_takes_its_rows(filled: Platform) -> None:
    number = filled.begin_generation()
    with filled.begin() as db:
        reindex.fill(db, generations.get(db, number), 50)
        erasing = threading.Thread(target=erased, args=(filled,))
        erasing.start()
        erasing.join(0.3)
        assert erasing.is_alive()
    erasing.join(10)
    settle(filled)
    assert filled.index(f"g{number}-m1").count() == 12
    assert query(filled, "SELECT state, count(*) FROM operation WHERE kind = 'erase' GROUP BY 1") == [("succeeded", 1)]


def test_no_new_study_slips_in_while_its_patient_is_erased(filled: Platform) -> None:
    """A scan that has checked for tombstones commits before the erasure looks for studies."""
    new = header(4, sop_instance_uid="1.2.3.77", study_instance_uid="1.2.4.77")
    filled.put("slip.dcm", new, b"another")
    registered, go = threading.Event(), threading.Event()

    @contextmanager
    def slowly() -> Iterator[Session]:
        with filled.store.transaction(filled.queue.ring) as db:
            yield db
            if db.scalar(sa.text("SELECT count(*) FROM image WHERE sop_uid = '1.2.3.77'")):
                registered.set()
                assert go.wait(10)

    filled.begin = slowly  # type: ignore[method-assign]
    scanning = threading.Thread(target=filled.scan)
    scanning.start()
    assert registered.wait(10)
    del filled.begin  # type: ignore[method-assign]
    erasing = threading.Thread(target=erased_woman, args=(filled,))
    erasing.start()
    erasing.join(0.3)
    assert erasing.is_alive()
    go.set()
    scanning.join(10)
    erasing.join(10)
    assert query(filled, "SELECT count(*) FROM image WHERE status = 'deleted'") == [(9,)]


def erased_woman(platform: Platform) -> UUID:
    with platform.begin() as db:
        return erase.erase_patient(db, SECRET, "", WOMAN).id


def test_after_a_restore_tombstones_are_replayed(filled: Platform) -> None:
    erased(filled)
    settle(filled)
    stones = query(filled, "SELECT digest, kind FROM tombstone")
    with filled.begin() as db:  # as after restoring an older backup; tombstones were kept elsewhere
        erase.lift_study(db, SECRET, UID)
    filled.scan()
    filled.encode()
    filled.project()
    with filled.begin() as db:
        operation = operations.create(db, "erase", {"of": "study"}).id
        erase.tombstones.add(db, dict(stones), operation)  # type: ignore[arg-type]
    with filled.begin() as db:
        assert erase.replay(db, SECRET) == 4
    assert UID not in found(filled, "1.2.4.3")
    with filled.begin() as db:
        assert erase.replay(db, SECRET) == 0


def test_a_tombstone_leads_nowhere_without_the_secret() -> None:
    assert erase.digest(SECRET, "study", UID) != erase.digest(SECRET[::-1], "study", UID)
    assert erase.digest(SECRET, "study", UID) != erase.digest(SECRET, "image", UID)
