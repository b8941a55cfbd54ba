from dataclasses import replace
from datetime import date

from shared.datasets.folder import Row
from shared.imaging.answers import Inspected
from shared.pipeline import identity
from shared.types import Labels
from tests.miniature import SECRET, header


def test_a_table_names_study_and_patient_of_a_plain_image() -> None:
    what = Inspected(header=header(0), digest=b"d", kind="png")
    row = Row(study="case 7", patient="P7", laterality="R", view="MLO", study_date=date(2024, 5, 6), labels=Labels())
    found = identity.identify(what, row, SECRET)
    assert found.study_instance_uid.startswith("2.25.")
    assert (found.patient_id, found.laterality, found.view) == ("P7", "R", "MLO")


def test_a_table_adds_to_a_dicom_header_only_what_that_leaves_open() -> None:
    row = Row(study="case 7", patient="P7", laterality="R", view="MLO", study_date=date(2024, 5, 6), modality="US")
    what = Inspected(header=header(0), digest=b"d", kind="dicom")
    assert identity.identify(what, row, SECRET) == replace(what.header, study_date=row.study_date)
    bare = replace(what.header, laterality=None, view=None)
    said = replace(bare, laterality="R", view="MLO", study_date=row.study_date)
    assert identity.identify(replace(what, header=bare), row, SECRET) == said


def test_a_study_name_becomes_a_keyed_uid_and_a_uid_stays() -> None:
    assert identity.study_uid("1.2.840.1", SECRET) == "1.2.840.1"
    made = identity.study_uid("case 7", SECRET)
    assert made == identity.study_uid("case 7", SECRET) != identity.study_uid("case 7", b"other key")
    assert len(made) <= 64
    assert identity.study_uid("1.2.\u0663", SECRET).startswith("2.25.")  # a Unicode digit is not valid in a UID
