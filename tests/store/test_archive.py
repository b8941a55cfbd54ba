"""Queries by searches and viewers read a handful of rows, however large the archive is."""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store import neighbours, qido
from shared.store.qido import Level, Matching
from tests.miniature import Platform

STUDIES = 20_000
FEW = 50

_STUDIES = """
    INSERT INTO study (uid, patient_key) SELECT '1.2.' || n, convert_to(CAST(n AS text), 'UTF8')
    FROM generate_series(1, :studies) AS n
"""
_IMAGES = """
    INSERT INTO image (sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, body_part, manufacturer,
        presentation_intent, rows, columns, frames, digest, path, status)
    SELECT '1.3.' || id, id, '1.4.' || id, '', '', 'MG', '', '', '', 9, 9, 1, 'x', 'x', 'encoded' FROM study
"""


@pytest.fixture
def archive(platform: Platform) -> Platform:
    """Studies of one image each."""
    with platform.begin() as db:
        db.execute(sa.text(_STUDIES), {"studies": STUDIES})
        db.execute(sa.text(_IMAGES))
    with platform.store.reading() as connection:
        connection.execute(sa.text("VACUUM ANALYZE study, image"))
    return platform


@pytest.mark.parametrize("sop", ["1.3.7", "9.9"], ids=["image known", "image unknown"])
@pytest.mark.parametrize("study", ["1.2.7", "9.8"], ids=["study known", "study unknown"])
def test_whose_an_uploaded_image_is_takes_two_look_ups(archive: Platform, sop: str, study: str) -> None:
    found = []

    def look(db: Session) -> None:
        found.append(neighbours.whose(db.connection(), sop, study))

    assert archive.rows_read(look) < FEW
    (own,) = found
    assert (own and own[1]) == (None if (sop, study) == ("9.9", "9.8") else b"7")
    assert (own and own[2] is not None) == (None if own is None else sop == "1.3.7")


@pytest.mark.parametrize("level", ["study", "series"])
def test_a_late_page_counts_only_what_it_shows(archive: Platform, level: Level) -> None:
    def page(offset: int) -> int:
        return archive.rows_read(lambda db: qido.find(db.connection(), level, Matching(), 10, offset))

    skipped = 5_000
    assert page(skipped) - page(0) < 3 * skipped  # one study row and one image row per skipped study


@pytest.mark.parametrize("level", ["study", "series", "instance"])
@pytest.mark.parametrize(
    "matching",
    [
        Matching(values={"SeriesInstanceUID": ["1.4.15000"]}),
        Matching(values={"Modality": ["XA"]}),
        Matching(modalities_in_study=["XA"]),
    ],
    ids=["series", "modality", "modality of the study"],
)
def test_what_is_rare_is_found_without_reading_the_rest(archive: Platform, level: Level, matching: Matching) -> None:
    with archive.begin() as db:
        db.execute(sa.text("UPDATE image SET modality = 'XA' WHERE id = 15000"))
    found = []

    def look(db: Session) -> None:
        found.extend(qido.find(db.connection(), level, matching, 10, 0))

    assert archive.rows_read(look) < FEW
    assert [row["StudyInstanceUID"] for row in found] == ["1.2.15000"]
