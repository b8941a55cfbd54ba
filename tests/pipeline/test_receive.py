import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.datasets.folder import Row, read_labels
from shared.errors import Unavailable
from shared.imaging.pseudonym import patient_key, patient_number
from shared.pipeline import scan, search
from shared.pipeline.question import Request
from shared.store import studies
from shared.store.studies import Incoming
from shared.types import Labels
from tests.miniature import SECRET, Platform, header


def rows(platform: Platform, statement: str) -> list[tuple[Any, ...]]:
    with platform.store.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


class Table:
    """A label table with one row for every file."""

    instances: ClassVar[dict[str, Row]] = {}
    studies: ClassVar[dict[str, Row]] = {}

    def __init__(self, row: Row) -> None:
        self.row = row

    def find(self, root: Path, path: Path, *, sop_instance_uid: str = "", study_uid: str = "") -> Row | None:
        return self.row

    def told_apart(self, root: Path, paths: Iterable[Path]) -> Self:
        deque(paths, maxlen=0)
        return self

    def shares(self, root: Path, path: Path) -> bool:
        return False


class Pictures(Table):
    """A label table with one row for all pictures, or other rows by name; it has none for DICOM files."""

    def __init__(self, row: Row, **others: Row) -> None:
        super().__init__(row)
        self.others = others

    def find(self, root: Path, path: Path, *, sop_instance_uid: str = "", study_uid: str = "") -> Row | None:
        return self.others.get(path.name, self.row) if path.suffix == ".png" else None


def dates(platform: Platform) -> tuple[set[Any], set[Any]]:
    """The dates of the studies, and those in the index."""
    platform.encode()
    platform.project()
    (collection,) = rows(platform, "SELECT collection FROM generation")[0]
    points = platform.index(collection).get([point for (point,) in rows(platform, "SELECT point_id FROM ledger")])
    known = {found for (found,) in rows(platform, "SELECT study_date FROM study")}
    return known, {point.payload.get("study_date") for point in points}


def test_a_study_has_the_date_of_its_first_file_that_says_one(platform: Platform) -> None:
    platform.add_model()
    platform.put("0.dcm", header(0))
    platform.scan()
    assert dates(platform) == ({None}, {None})
    platform.put("1.dcm", header(1, study_date=date(2024, 2, 17), patient_id="SOMEBODY-ELSE"))
    platform.scan()
    assert dates(platform) == ({None}, {None})
    platform.put("2.dcm", header(2, study_date=date(2024, 2, 18)))
    platform.put("3.dcm", header(3, study_date=date(2024, 2, 19)))
    platform.scan()
    assert dates(platform) == ({date(2024, 2, 18)}, {20240218})


def test_a_date_that_was_corrected_reaches_every_image_of_the_study(platform: Platform) -> None:
    platform.add_model()
    for n in range(4):
        platform.put(f"{n}.dcm", header(n, study_date=date(2024, 2, 17)))
    platform.scan()
    assert dates(platform) == ({date(2024, 2, 17)}, {20240217})
    platform.put("2.dcm", header(2, study_date=date(2023, 2, 17)), b"sent again")
    platform.scan()
    with platform.begin() as db:  # before the new bytes are encoded
        assert set(db.execute(sa.text("SELECT state FROM ledger")).scalars()) == {"pending"}
    assert dates(platform) == ({date(2023, 2, 17)}, {20230217})
    platform.put("3.dcm", header(3), b"sent again, without a date")
    platform.scan()
    assert dates(platform) == ({date(2023, 2, 17)}, {20230217})


def test_a_second_copy_of_an_image_is_the_same_image(platform: Platform) -> None:
    platform.put("a.dcm", header(0), b"the bytes")
    platform.put("b.dcm", header(0), b"the bytes")
    assert platform.scan().counts["same"] == 1
    assert rows(platform, "SELECT count(*) FROM image") == [(1,)]


@pytest.mark.parametrize(
    ("policy", "same_path", "revision"),
    [
        ("never", True, 1),
        ("never", False, 1),
        ("same_source", True, 2),
        ("same_source", False, 1),
        ("always", True, 2),
        ("always", False, 2),
    ],
)
def test_other_bytes_under_a_known_uid_follow_the_policy(
    platform: Platform, policy: str, same_path: bool, revision: int
) -> None:
    platform.put("a.dcm", header(0), b"first")
    platform.scan(same_uid=policy)
    platform.put("a.dcm" if same_path else "b.dcm", header(0), b"second, and longer")
    platform.scan(same_uid=policy)
    assert rows(platform, "SELECT revision FROM image") == [(revision,)]
    if revision == 1:
        assert ("kept", "other-bytes") in rows(platform, "SELECT outcome, reason FROM file")


def test_two_patients_under_one_study_are_never_merged(platform: Platform) -> None:
    platform.put("a.dcm", header(0))
    platform.put("b.dcm", header(1, patient_id="SOMEBODY-ELSE"))
    platform.scan()
    assert rows(platform, "SELECT count(*) FROM image") == [(1,)]
    assert rows(platform, "SELECT outcome, gate, reason FROM file WHERE outcome <> 'taken'") == [
        ("quarantined", "metadata", "patient-conflict")
    ]


def test_a_stopped_file_gives_no_study_to_its_patient(platform: Platform) -> None:
    platform.put("a.dcm", header(0))
    platform.scan()
    platform.put("b.dcm", header(0, study_instance_uid="1.2.4.99", patient_id="SOMEBODY-ELSE"))
    platform.scan()
    assert rows(platform, "SELECT uid FROM study") == [("1.2.4.1",)]
    platform.put("c.dcm", header(1, study_instance_uid="1.2.4.99"))
    platform.scan()
    assert stopped(platform) == [("patient-conflict",)]
    assert rows(platform, "SELECT uid FROM study ORDER BY 1") == [("1.2.4.1",), ("1.2.4.99",)]


def test_the_patient_is_a_pseudonym_and_nothing_else(platform: Platform) -> None:
    platform.put("a.dcm", header(0))
    platform.scan()
    assert rows(platform, "SELECT length(patient_key) FROM study") == [(16,)]
    with platform.store.reading() as connection:
        for table in ("study", "image", "file"):
            dump = connection.execute(sa.text(f"SELECT CAST(t AS text) FROM {table} t")).scalars().all()
            assert "WOMAN" not in "".join(dump)
            assert b"WOMAN".hex() not in "".join(dump)


def test_new_labels_reach_the_index_without_a_pixel(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(4)
    row = Row(labels=Labels(birads=5, density="C"))
    platform.scan(Table(row))
    assert platform.encode() == 0
    assert platform.project() == 4
    with platform.begin() as db:
        collection = db.execute(sa.text("SELECT collection FROM generation")).scalar_one()
    ids = [point for batch in platform.index(collection).scan() for point, _ in batch]
    assert {point.payload["birads"] for point in platform.index(collection).get(ids)} == {5}


def test_an_image_never_changes_its_study(platform: Platform) -> None:
    platform.put("a.dcm", header(0))
    platform.scan()
    platform.put("b.dcm", header(0, study_instance_uid="1.2.4.99"))
    platform.scan()
    assert ("quarantined", "study-conflict") in rows(platform, "SELECT outcome, reason FROM file")


def test_replaced_bytes_bring_their_labels_and_header(platform: Platform) -> None:
    row = Row(labels=Labels(birads=2))
    platform.put("a.dcm", header(0), b"first")
    platform.scan(Table(row))
    platform.put("a.dcm", header(0, view="ML", modality="CR"), b"second")
    platform.scan(Table(Row(labels=Labels(birads=5))))
    assert rows(platform, "SELECT birads, view, modality, revision FROM image") == [(5, "ML", "CR", 2)]


def tabled(platform: Platform, text: str) -> None:
    """Scan with a label table of this text."""
    table = platform.folder / "labels.csv"
    table.write_text(text)
    platform.scan(read_labels(table))


def test_a_label_that_a_table_takes_back_is_gone(platform: Platform) -> None:
    platform.put("a.dcm", header(0))
    tabled(platform, "file,birads\na.dcm,5\n")
    tabled(platform, "file,birads\na.dcm,\n")
    assert rows(platform, "SELECT birads, labels FROM image") == [(None, {})]


def test_an_image_that_a_table_does_not_name_keeps_its_labels_also_with_other_bytes(platform: Platform) -> None:
    platform.put("a.dcm", header(0), b"first")
    tabled(platform, "file,birads,ward\na.dcm,5,west\n")
    tabled(platform, "file,birads\nb.dcm,1\n")
    told = "SELECT birads, labels, revision FROM image"
    assert rows(platform, told) == [(5, {"ward": "west"}, 1)]
    platform.put("a.dcm", header(0), b"second")
    platform.scan()  # without a table, as a watch does
    assert rows(platform, told) == [(5, {"ward": "west"}, 2)]


def test_a_table_without_labels_corrects_side_and_view_of_a_picture_and_leaves_its_labels(platform: Platform) -> None:
    path = os.fsencode(platform.put("a.png", header(0, view=None, laterality=None, patient_id="", modality="OT")))
    platform.sandbox.kinds[path] = "png"
    tabled(platform, "file,patient,study,side,view,birads\na.png,W1,S1,L,CC,5\n")
    tabled(platform, "file,patient,study,side,view\na.png,W1,S1,R,MLO\n")
    assert rows(platform, "SELECT laterality, view, birads FROM image") == [("R", "MLO", 5)]


def test_a_later_table_tells_side_view_and_date_of_a_dicom_file_without_them(platform: Platform) -> None:
    platform.put("a.dcm", header(0, view=None, laterality=None))
    platform.put("b.dcm", header(1))
    platform.scan()
    tabled(platform, "file,side,view,date\na.dcm,R,MLO,2024-05-06\nb.dcm,L,CC,2024-05-06\n")
    told = "SELECT laterality, view, study_date FROM image JOIN study ON study.id = study_id ORDER BY sop_uid"
    assert rows(platform, told) == [("R", "MLO", date(2024, 5, 6)), ("R", "CC", date(2024, 5, 6))]
    platform.scan()
    assert rows(platform, told)[0] == ("R", "MLO", date(2024, 5, 6))


def test_a_table_that_corrects_the_date_of_a_picture_corrects_that_of_its_study(platform: Platform) -> None:
    put_picture(platform, 0)
    platform.add_model()
    for day in ("2024-05-06", "2023-05-06"):
        tabled(platform, f"file,patient,study,date\n0.png,W1,S1,{day}\n")
        platform.encode()
        platform.project()
        assert rows(platform, "SELECT CAST(study_date AS text) FROM study") == [(day,)]
    with platform.begin() as db:
        collection = db.execute(sa.text("SELECT collection FROM generation")).scalar_one()
    ((point,),) = ([point for point, _ in batch] for batch in platform.index(collection).scan())
    assert platform.index(collection).get([point])[0].payload["study_date"] == 20230506


def test_a_table_of_pictures_does_not_date_a_dicom_study(platform: Platform) -> None:
    platform.put("a.dcm", header(0, patient_id="P1", study_instance_uid="1.2.7", study_date=date(2020, 1, 1)))
    platform.scan()
    put_picture(platform, 1)
    row = Row(study="1.2.7", study_date=date(2024, 5, 6), labels=Labels(birads=1))
    for birads in (1, 2):
        platform.scan(Pictures(replace(row, labels=Labels(birads=birads))))
        assert rows(platform, "SELECT birads FROM image ORDER BY sop_uid") == [(None,), (birads,)]
        assert rows(platform, "SELECT study_date FROM study") == [(date(2020, 1, 1),)]


def test_a_picture_scanned_again_without_its_table_stays_as_it_was(platform: Platform) -> None:
    picture = header(0, patient_id="", study_instance_uid="2.25.1", view=None, laterality=None, modality="OT")
    path = os.fsencode(platform.put("a.png", picture))
    platform.sandbox.kinds[path] = "png"
    platform.scan(Table(Row(study="case 1", patient="P1", view="MLO", labels=Labels(birads=3))))
    before = rows(platform, "SELECT view, birads, revision FROM image")
    assert platform.scan().counts["taken"] == 1
    assert rows(platform, "SELECT view, birads, revision FROM image") == before == [("MLO", 3, 1)]
    assert rows(platform, "SELECT count(*) FROM study") == [(1,)]


def put_picture(platform: Platform, n: int) -> None:
    said = header(n, patient_id="", study_instance_uid=f"2.25.{n + 1}", sop_class_uid="", transfer_syntax_uid="")
    picture = replace(said, view=None, laterality=None, modality="OT")
    platform.sandbox.kinds[os.fsencode(platform.put(f"{n}.png", picture))] = "png"


def unnamed(platform: Platform, n: int = 0) -> None:
    """Ingest a picture without a table; it is searchable and has no patient."""
    put_picture(platform, n)
    platform.scan()
    platform.encode()
    platform.project()


@pytest.mark.parametrize(
    ("row", "patient"),
    [
        (Row(study="1.2.7", patient="P1", study_date=date(2024, 5, 6), labels=Labels()), ("", "P1", "1.2.7")),
        (Row(study=None, patient="P1", study_date=date(2024, 5, 6), labels=Labels()), ("", "P1", "2.25.1")),
        (Row(study="1.2.7", patient=None, study_date=date(2024, 5, 6), labels=Labels()), ("", "", "1.2.7")),
    ],
)
def test_a_picture_that_was_nobodys_is_whose_the_first_table_says(
    platform: Platform, row: Row, patient: tuple[str, str, str]
) -> None:
    platform.add_model()
    unnamed(platform)
    assert platform.scan(Table(row)).counts["taken"] == 1
    key = patient_key(SECRET, *patient[:2], study_instance_uid=patient[2])
    assert rows(platform, "SELECT uid, patient_key, study_date FROM study") == [(patient[2], key, date(2024, 5, 6))]
    assert platform.encode() == 0
    assert platform.project() == 1
    (collection,) = rows(platform, "SELECT collection FROM generation")[0]
    points = platform.index(collection).get([point for (point,) in rows(platform, "SELECT point_id FROM ledger")])
    assert [point.payload["patient"] for point in points] == [patient_number(key)]
    assert [(point.payload["study"],) for point in points] == rows(platform, "SELECT id FROM study")


def owners(platform: Platform) -> set[tuple[str, bytes]]:
    """Study and patient of every image."""
    return set(rows(platform, "SELECT s.uid, s.patient_key FROM image i JOIN study s ON s.id = i.study_id"))


def stopped(platform: Platform) -> list[tuple[Any, ...]]:
    return rows(platform, "SELECT reason FROM file WHERE outcome = 'quarantined'")


P1, P2 = (patient_key(SECRET, "", name) for name in ("P1", "P2"))


def tell(platform: Platform, n: int, row: Row, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Scan one picture with this row of a table; `meanwhile` runs before the commit."""
    path = platform.folder / "archive" / f"{n}.png"

    def report(_db: Session, _progress: Any) -> bool:
        meanwhile()
        return True

    scan.scan(
        platform.begin, platform.sandbox, path, table=Table(row), rules=platform.rules, operation_id=None, report=report
    )


@pytest.mark.parametrize("study", ["1.2.7", None])
def test_of_two_tables_that_tell_a_pictures_patient_at_once_the_second_is_a_conflict(
    platform: Platform, study: str | None
) -> None:
    unnamed(platform)
    second = Row(study="1.2.8", patient="P2", labels=Labels())
    with ThreadPoolExecutor(1) as beside:
        told: list[Future[None]] = []

        def meanwhile() -> None:
            told.append(beside.submit(tell, platform, 0, second))
            platform.wait_until_blocked(1)

        tell(platform, 0, replace(second, study=study, patient="P1"), meanwhile)
        told[0].result(20)
    assert (stopped(platform), owners(platform)) == ([("patient-conflict",)], {(study or "2.25.1", P1)})


@pytest.mark.parametrize("after", ["INSERT INTO study", "INSERT INTO image"])
def test_a_study_that_one_picture_leaves_while_another_comes_stays(platform: Platform, after: str) -> None:
    unnamed(platform)
    put_picture(platform, 1)
    with ThreadPoolExecutor(1) as beside:
        told: list[Future[None]] = []

        def leave(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if not told and statement.strip().startswith(after):
                told.append(beside.submit(tell, platform, 0, Row(study="1.2.7", patient="P1", labels=Labels())))
                wait(told, 1.0)  # until it waits for the study

        sa.event.listen(platform.store.engine, "after_cursor_execute", leave)
        tell(platform, 1, Row(study="2.25.1", patient=None, labels=Labels()))
        told[0].result(20)
    assert stopped(platform) == []
    assert sorted(uid for uid, _ in owners(platform)) == ["1.2.7", "2.25.1"]


@pytest.mark.parametrize("study", ["1.2.7", None])
def test_a_picture_whose_patient_is_known_is_not_given_to_another(platform: Platform, study: str | None) -> None:
    unnamed(platform)
    row = Row(study=study, patient="P1", labels=Labels())
    platform.scan(Table(row))
    assert platform.scan(Table(replace(row, patient="P2"))).counts["quarantined"] == 1
    assert owners(platform) == {(study or "2.25.1", P1)}


def test_a_study_whose_patient_no_table_told_is_the_one_that_a_later_table_tells(platform: Platform) -> None:
    platform.add_model()
    platform.put("a.dcm", header(8, patient_id="P1"))
    for n in (0, 1):
        unnamed(platform, n)
    row = Row(study="1.2.7", patient=None, labels=Labels())
    platform.scan(Pictures(row))
    platform.project()

    def found(**request: Any) -> list[str]:
        with platform.store.reading() as connection:
            (answer,) = search.by_studies(connection, platform.index, ["1.2.4.3"], Request(**request))
        return [study.study_uid for study in answer.studies]

    assert found() == ["1.2.7"]
    named = replace(row, patient="P1", study_date=date(2024, 5, 6))
    platform.scan(Pictures(named))
    assert (stopped(platform), owners(platform)) == ([], {("1.2.7", P1), ("1.2.4.3", P1)})
    assert found() == []  # their points do not have the new patient yet
    assert platform.project() == 2
    (collection,) = rows(platform, "SELECT collection FROM generation")[0]
    points = platform.index(collection).get([point for (point,) in rows(platform, "SELECT point_id FROM ledger")])
    assert {point.payload["patient"] for point in points} == {patient_number(P1)}
    assert (found(), found(exclude=frozenset())) == ([], ["1.2.4.3", "1.2.7"])
    assert rows(platform, "SELECT study_date FROM study WHERE uid = '1.2.7'") == [(date(2024, 5, 6),)]
    platform.scan(Pictures(named))
    assert platform.project() == 0
    platform.scan(Pictures(replace(named, patient="P2")))
    assert (stopped(platform), owners(platform)) == (
        [("patient-conflict",), ("patient-conflict",)],
        {("1.2.7", P1), ("1.2.4.3", P1)},
    )


def test_a_new_picture_may_tell_whose_its_study_is(platform: Platform) -> None:
    platform.add_model()
    unnamed(platform, 7)
    platform.scan(Pictures(Row(study="1.2.7", patient=None, labels=Labels())))
    platform.project()
    row = Row(study="1.2.7", patient="P1", labels=Labels())
    put_picture(platform, 3)  # it precedes the other one in the scan
    platform.scan(Pictures(row))
    assert (stopped(platform), owners(platform)) == ([], {("1.2.7", P1)})


def test_a_table_of_pictures_does_not_tell_whose_a_dicom_study_is(platform: Platform) -> None:
    platform.put("a.dcm", header(0, patient_id="", study_instance_uid="1.2.7"))
    platform.scan()
    before = owners(platform)
    put_picture(platform, 3)
    platform.scan(Pictures(Row(study="1.2.7", patient="P1", labels=Labels())))
    assert (stopped(platform), owners(platform)) == ([("patient-conflict",)], before)


def test_a_study_gets_no_patient_while_an_image_comes_into_it(platform: Platform) -> None:
    """Otherwise an image whose patient was checked before would get the patient of the table."""
    unnamed(platform)
    platform.scan(Pictures(Row(study="1.2.7", patient=None, labels=Labels())))
    ((uid, nobody),) = owners(platform)
    one = Incoming(header=header(0, study_instance_uid=uid), patient_key=nobody, digest=b"", path=b"", labels=Labels())
    with platform.begin() as coming:
        assert studies.ensure(coming, [one])[0][uid][1] == nobody
        with pytest.raises(Unavailable, match="locked by another session"), platform.begin() as naming:
            naming.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            studies.ensure(naming, [replace(one, patient_key=P1, placeholder_patient_keys=(nobody,))])


def test_of_two_patients_that_a_table_tells_for_one_study_the_second_is_a_conflict(platform: Platform) -> None:
    for n in (0, 1):
        unnamed(platform, n)
    row = Row(study="1.2.7", patient=None, labels=Labels())
    platform.scan(Pictures(row))
    platform.scan(Pictures(replace(row, patient="P1"), **{"1.png": replace(row, patient="P2")}))
    assert (stopped(platform), owners(platform)) == ([("patient-conflict",)], {("1.2.7", P1)})


def test_a_picture_does_not_leave_the_study_that_a_table_told(platform: Platform) -> None:
    unnamed(platform)
    platform.scan(Table(Row(study="1.2.7", patient=None, labels=Labels())))
    platform.scan(Table(Row(study="1.2.8", patient="P1", labels=Labels())))
    assert stopped(platform) == [("patient-conflict",)]
    assert [uid for uid, _ in owners(platform)] == ["1.2.7"]


def test_a_picture_that_was_nobodys_does_not_join_the_study_of_another_patient(platform: Platform) -> None:
    platform.put("a.dcm", header(4))
    unnamed(platform)
    platform.scan(Table(Row(study="1.2.4.2", patient="P1", labels=Labels())))
    assert ("quarantined", "patient-conflict") in rows(platform, "SELECT outcome, reason FROM file")
    assert rows(platform, "SELECT s.uid FROM image i JOIN study s ON s.id = i.study_id ORDER BY s.uid") == [
        ("1.2.4.2",),
        ("2.25.1",),
    ]


NAMELESS = Row(study="1.2.7", patient=None, labels=Labels(birads=4))


def named_study(platform: Platform, kind: str) -> None:
    """Take in study 1.2.7 of patient P1: a DICOM image, or a picture that a table names."""
    platform.add_model()
    if kind == "dicom":
        platform.put("a.dcm", header(0, patient_id="P1", study_instance_uid="1.2.7"))
        platform.scan()
    else:
        put_picture(platform, 0)
        platform.scan(Pictures(replace(NAMELESS, patient="P1")))


@pytest.mark.parametrize("kind", ["dicom", "picture"])
@pytest.mark.parametrize("known", [False, True])
def test_a_picture_whose_table_tells_its_study_only_is_of_the_patient_whom_the_study_has(
    platform: Platform, kind: str, *, known: bool
) -> None:
    named_study(platform, kind)
    if known:
        unnamed(platform, 1)
    else:
        put_picture(platform, 1)
    platform.scan(Pictures(NAMELESS))
    assert (stopped(platform), owners(platform)) == ([], {("1.2.7", P1)})
    platform.encode()
    platform.project()
    (collection,) = rows(platform, "SELECT collection FROM generation")[0]
    points = platform.index(collection).get([point for (point,) in rows(platform, "SELECT point_id FROM ledger")])
    assert [point.payload["patient"] for point in points] == [patient_number(P1)] * 2


@pytest.mark.parametrize("study", ["1.2.7", None])
def test_a_later_table_without_patients_changes_no_patient(platform: Platform, study: str | None) -> None:
    named_study(platform, "picture")
    platform.scan(Pictures(replace(NAMELESS, study=study, labels=Labels(birads=5))))
    assert (stopped(platform), owners(platform)) == ([], {("1.2.7", P1)})
    assert rows(platform, "SELECT birads FROM image") == [(5,)]
    assert rows(platform, "SELECT uid FROM study") == [("1.2.7",)]


@pytest.mark.parametrize("first", ["0.png", "1.png"])
def test_one_row_may_tell_the_patient_of_a_study_for_all(platform: Platform, first: str) -> None:
    for n in (0, 1):
        put_picture(platform, n)
    platform.scan(Pictures(NAMELESS, **{first: replace(NAMELESS, patient="P1")}))
    assert (stopped(platform), owners(platform)) == ([], {("1.2.7", P1)})
    assert rows(platform, "SELECT count(*) FROM image") == [(2,)]


def test_a_picture_of_one_patient_does_not_join_anothers_study_by_a_table_without_patients(platform: Platform) -> None:
    named_study(platform, "dicom")
    put_picture(platform, 1)
    platform.scan(Pictures(replace(NAMELESS, study="1.2.8", patient="P2")))
    before = owners(platform)
    platform.scan(Pictures(NAMELESS))
    assert (stopped(platform), owners(platform)) == ([("patient-conflict",)], before)


def test_a_picture_that_was_named_is_not_shown_until_the_index_knows_whose_it_is(platform: Platform) -> None:
    platform.add_model()
    platform.put("a.dcm", header(8, patient_id="P1"))
    unnamed(platform)

    def found(**request: Any) -> list[str]:
        with platform.store.reading() as connection:
            (answer,) = search.by_studies(connection, platform.index, ["1.2.4.3"], Request(**request))
        return [study.study_uid for study in answer.studies]

    assert found() == ["2.25.1"]
    platform.scan(Table(Row(study="1.2.4.3", patient="P1", labels=Labels())))
    assert found() == []
    assert found(exclude=frozenset()) == ["1.2.4.3"]
    platform.project()
    assert found() == []
    assert found(exclude=frozenset()) == ["1.2.4.3"]


def test_relabelled_while_waiting_for_new_bytes_the_old_picture_stays_searchable(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(1)
    platform.put("0000.dcm", header(0), b"other bytes")
    platform.scan()
    platform.scan(Table(Row(labels=Labels(birads=4))))
    platform.project()
    with platform.begin() as db:
        collection = db.execute(sa.text("SELECT collection FROM generation")).scalar_one()
    assert platform.index(collection).count() == 1
