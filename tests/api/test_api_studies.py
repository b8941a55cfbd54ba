"""Lists of studies, and the details of one."""

import pytest
import sqlalchemy as sa

from services.api.paging import read_cursor, write_cursor
from shared.errors import Invalid
from shared.store.keys import Scope
from tests.api.conftest import serving, variants
from tests.moves import by_hand


def listed(client, query=""):
    answer = client.get(f"/v1/studies?{query}")
    assert answer.status_code == 200, answer.text
    return [study["study_instance_uid"] for study in answer.json()["studies"]]


def test_studies_are_listed_the_latest_first(client, filled):
    answer = client.get("/v1/studies?limit=1").json()["studies"]
    assert answer[0] | {"taken_in_at": None} == {
        "study_instance_uid": "1.2.3.12",
        "study_date": "2024-01-13",
        "modalities": ["MG"],
        "images": 4,
        "statuses": {"encoded": 4},
        "searchable": 4,
        "taken_in_at": None,
    }
    assert listed(client) == [f"1.2.3.{n}" for n in range(12, 0, -1)]


def test_pages_of_studies_follow_one_another(client, filled):
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/v1/studies?limit=5{cursor and f'&cursor={cursor}'}").json()
        seen += [study["study_instance_uid"] for study in page["studies"]]
        cursor = page["next"]
        filled.take_in(40 + len(seen))  # newer than the first page, so not on later pages
    assert seen == [f"1.2.3.{n}" for n in range(12, 0, -1)]


@pytest.mark.parametrize("last", [8, 12, 123, 1234])
def test_a_cursor_has_one_spelling(last):
    assert read_cursor(write_cursor(last)) == last
    for other in variants(write_cursor(last)):
        try:
            read = read_cursor(other)
        except Invalid:
            continue
        assert write_cursor(read) == other


def test_studies_are_filtered(client, filled):
    filled.label("1.2.3.7", birads=4, density="C")
    filled.take_in(20, modality="CT")
    assert listed(client, "birads=4") == ["1.2.3.7"]
    assert listed(client, "birads=4&density=D") == []
    assert listed(client, "ModalitiesInStudy=CT,MR") == ["1.2.3.20"]
    assert listed(client, "StudyDate=-20240103") == ["1.2.3.2", "1.2.3.1"]
    assert listed(client, "StudyInstanceUID=1.2.3.4,1.2.3.5,9.9") == ["1.2.3.5", "1.2.3.4"]
    assert listed(client, "status=failed") == []
    assert len(listed(client, "status=encoded,failed")) == 13


def test_studies_are_filtered_by_tags_too(client, filled):
    filled.take_in(20, modality="CT")
    assert listed(client, "00080061=CT") == ["1.2.3.20"]
    assert listed(client, "00080020=-20240103") == ["1.2.3.2", "1.2.3.1"]
    assert listed(client, "0020000d=1.2.3.4&0020000d=1.2.3.5") == ["1.2.3.5", "1.2.3.4"]
    assert client.get("/v1/studies?00080061=CT&ModalitiesInStudy=MG").status_code == 400


def test_an_unknown_study_is_not_found(client):
    assert client.get("/v1/studies/1.2.3").status_code == 404


def test_a_study_tells_what_stands_of_each_image(client, filled):
    filled.label("1.2.3.1", birads=2, extra={"finding": "mass"})
    body = client.get("/v1/studies/1.2.3.1").json()
    (series,) = body["series"]
    assert (series["series_instance_uid"], series["modality"]) == ("1.2.3.1.9", "MG")
    image = next(i for i in series["images"] if i["sop_instance_uid"] == "1.2.3.1.0")
    assert (image["laterality"], image["view"], image["status"]) == ("L", "CC", "encoded")
    assert (image["searchable"], image["why_not"]) == (True, None)
    assert image["labels"] == {"birads": 2, "finding": "mass"}


def test_why_an_image_is_not_searchable_is_said(client, filled):
    changes = {
        0: "status = 'quarantined', gate = 'pixels', reason = 'blank'",
        1: "status = 'received'",
        2: "status = 'failed', reason = 'truncated-dataset'",
    }
    with filled.rt.transaction() as db:
        by_hand(db)
        for i, change in changes.items():
            db.execute(sa.text(f"UPDATE image SET {change} WHERE sop_uid = '1.2.3.1.{i}'"))
        db.execute(
            sa.text("DELETE FROM ledger WHERE image_id IN (SELECT id FROM image WHERE sop_uid LIKE '1.2.3.1.%')")
        )
    (series,) = client.get("/v1/studies/1.2.3.1").json()["series"]
    told = {image["sop_instance_uid"][-1]: image["why_not"] for image in series["images"]}
    assert told == {
        "0": "A gate stopped it; a person decides. All pixels have the same value.",
        "1": "It waits to be encoded.",
        "2": "It could not be encoded. The DICOM data set ends in the middle of an element.",
        "3": "The published model has not encoded it.",
    }


def test_an_image_that_is_encoded_anew_stays_searchable_meanwhile(client, filled):
    with filled.rt.transaction() as db:
        db.execute(sa.text("UPDATE image SET status = 'received' WHERE sop_uid = '1.2.3.1.0'"))
    (series,) = client.get("/v1/studies/1.2.3.1").json()["series"]
    assert all(image["searchable"] for image in series["images"])


def test_before_the_first_model_nothing_is_searchable(bare):
    bare.take_in(1)
    with serving(bare) as client:
        (series,) = client.get("/v1/studies/1.2.3.1", headers=bare.key(Scope.READ)).json()["series"]
        assert {image["why_not"] for image in series["images"]} == {"It waits to be encoded."}
        (study,) = client.get("/v1/studies", headers=bare.key(Scope.READ)).json()["studies"]
        assert (study["images"], study["searchable"]) == (4, 0)
