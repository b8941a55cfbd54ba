"""STOW-RS: requests, the answer for each file, and what remains on the disk."""

import io
import logging
import sys

import pytest
import sqlalchemy as sa
from PIL import Image as Pillow

from shared.errors import Unavailable
from shared.log import configure
from shared.pipeline import encode, project, streamed
from shared.pipeline.admission import Action, Admission, Rule
from shared.store.blobs import Full
from tests.api.conftest import CANARY, serving
from tests.dicomweb import BOUNDARY, MAMMOGRAM, RELATED, instance, related, sop_uid, study_uid

REFERENCED, FAILED, OTHERS, REASON = "00081199", "00081198", "0008119A", "00081197"


@pytest.fixture
def archive(roomy):
    return roomy


def send(client, *files, study="", headers=RELATED, body=None):
    return client.post(f"/dicom-web/studies{study}", content=related(*files) if body is None else body, headers=headers)


def values(answer, sequence, tag):
    return [item[tag]["Value"][0] if tag in item else None for item in answer.json().get(sequence, {}).get("Value", [])]


def held(archive):
    with archive.rt.transaction() as db:
        return list(db.scalars(sa.text("SELECT sop_uid FROM image ORDER BY sop_uid")))


def blobs(archive):
    return sorted(path.name for path in archive.rt.blobs.root.rglob("*") if path.is_file())


def test_files_that_are_sent_are_stored_and_answered_for_one_by_one(client, archive):
    answer = send(client, instance(1, 1), instance(1, 2))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert values(answer, REFERENCED, "00081155") == [sop_uid(1, 1), sop_uid(1, 2)]
    assert values(answer, REFERENCED, "00081150") == [MAMMOGRAM] * 2
    url = f"http://127.0.0.1/dicom-web/studies/{study_uid(1)}"
    assert answer.json()["00081190"]["Value"] == [url]
    assert values(answer, REFERENCED, "00081190")[0] == f"{url}/series/{study_uid(1)}.1/instances/{sop_uid(1, 1)}"
    assert held(archive) == [sop_uid(1, 1), sop_uid(1, 2)]
    assert len(blobs(archive)) == 2
    with archive.rt.transaction() as db:
        assert set(db.execute(sa.text("SELECT source, sender, outcome FROM arrival"))) == {("stow", "test", "taken")}


def test_sending_twice_changes_nothing_and_succeeds(client, archive):
    assert [send(client, instance(1, 1)).status_code for _ in range(2)] == [200, 200]
    assert held(archive) == [sop_uid(1, 1)]
    assert len(blobs(archive)) == 1


def test_a_single_file_needs_no_multipart(client, archive):
    answer = send(client, headers={"Content-Type": "application/dicom"}, body=instance(1, 1))
    assert answer.status_code == 200
    assert held(archive) == [sop_uid(1, 1)]


def test_of_good_and_bad_files_the_good_ones_are_stored(client, archive):
    picture = io.BytesIO()
    Pillow.new("L", (64, 64)).save(picture, "PNG")
    answer = send(client, instance(1, 1), b"\0" * 128 + b"DICM garbage", picture.getvalue(), b"")
    assert answer.status_code == 202
    assert values(answer, REFERENCED, "00081155") == [sop_uid(1, 1)]
    assert values(answer, OTHERS, REASON) == [0xC000] * 3
    assert FAILED not in answer.json()
    assert held(archive) == [sop_uid(1, 1)]
    assert len(blobs(archive)) == 1  # nothing remains of the others


def test_files_of_another_study_than_the_address_names_fail(client, archive):
    answer = send(client, instance(1, 1), instance(2, 1), study=f"/{study_uid(2)}")
    assert answer.status_code == 202
    assert values(answer, FAILED, "00081155") == [sop_uid(1, 1)]
    assert values(answer, FAILED, REASON) == [0xA900]
    assert held(archive) == [sop_uid(2, 1)]
    answer = send(client, instance(1, 1), study="/1.2.3")
    assert (answer.status_code, values(answer, FAILED, REASON)) == (409, [0xA900])


@pytest.mark.parametrize(("then", "status", "reasons"), [("discard", 200, []), ("refuse", 409, [0x0124])])
def test_a_rule_of_the_site_decides_what_the_sender_hears(archive, then, status, reasons):
    archive.rt.admission = Admission((Rule("none of these", {"modality": ("MG",)}, Action(then)),))
    with serving(archive) as client:
        client.headers.update(archive.key())
        answer = send(client, instance(1, 1))
        assert (answer.status_code, values(answer, FAILED, REASON)) == (status, reasons)
    assert held(archive) == []
    assert blobs(archive) == []


def test_an_object_that_is_no_image_is_told_as_such(client, archive):
    answer = send(client, instance(1, 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"))
    assert (answer.status_code, values(answer, OTHERS, REASON)) == (409, [0x0122])
    assert held(archive) == []


def test_more_files_than_one_batch_are_all_answered_for(client, archive, monkeypatch):
    monkeypatch.setattr(streamed, "BATCH", 3)
    answer = send(client, *(instance(1, n) for n in range(1, 8)))
    assert len(values(answer, REFERENCED, "00081155")) == 7
    assert len(held(archive)) == 7


def test_a_file_over_the_limit_fails_alone_and_its_rest_is_not_kept(client, archive, monkeypatch):
    limits = archive.rt.sandbox.limits
    monkeypatch.setattr(archive.rt.sandbox, "limits", type(limits)(file_bytes=20_000))
    answer = send(client, instance(1, 1), instance(1, 2, side=128))
    assert answer.status_code == 202
    assert values(answer, REFERENCED, "00081155") == [sop_uid(1, 1)]
    assert values(answer, OTHERS, REASON) == [0xA700]


WRONG = (
    (RELATED, related(instance())[:-20], 400),
    (RELATED, related(), 400),
    (RELATED, b"no multipart at all", 400),
    ({"Content-Type": 'multipart/related; type="application/dicom"'}, related(instance()), 400),
    ({"Content-Type": "application/dicom"}, b"", 400),
    ({"Content-Type": "application/json"}, b"{}", 415),
    ({"Content-Type": f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'}, b"x", 415),
    (RELATED, related(instance(), kind="image/png"), 415),
    (RELATED | {"Content-Encoding": "gzip"}, b"x", 415),
    (RELATED | {"Accept": "application/dicom+xml"}, related(instance()), 406),
)


def test_a_request_that_is_wrong_as_a_whole_stores_nothing(client, archive):
    for headers, body, status in WRONG:
        answer = send(client, headers=headers, body=body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), headers
    assert held(archive) == []
    assert blobs(archive) == []


def test_a_body_over_the_limit_is_refused_whatever_its_header_says(archive):
    api = archive.rt.settings.api.model_copy(update={"max_store_mb": 1})
    archive.rt.settings = archive.rt.settings.model_copy(update={"api": api})
    with serving(archive) as client:
        client.headers.update(archive.key())
        large = related(instance(side=1024))
        assert send(client, body=large).status_code == 413
        assert send(client, body=(large[at : at + 65536] for at in range(0, len(large), 65536))).status_code == 413
    assert blobs(archive) == []


@pytest.mark.parametrize(("error", "status"), [(Full("no room"), 507), (Unavailable("away", 7), 503)])
def test_what_is_away_is_told_and_nothing_is_acknowledged(client, archive, monkeypatch, error, status):
    def fail(*_):
        raise error

    part = "part" if status == 507 else "place"
    monkeypatch.setattr(type(archive.rt.blobs), part, fail)
    answer = send(client, instance(1, 1))
    assert (answer.status_code, "retry-after" in answer.headers) == (status, True)
    described = client.app.openapi()["paths"]["/dicom-web/studies"]["post"]["responses"]["default"]
    assert str(status) in described["headers"]["Retry-After"]["description"]
    assert held(archive) == []


def test_only_so_many_store_at_once(client, archive):
    with client.app.state.storing.taken("storing"):
        client.app.state.storing._free._value = client.app.state.storing._places._value = 0
        answer = send(client, instance(1, 1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_what_was_stored_is_encoded_and_found(client, archive):
    assert send(client, instance(1, 1), instance(2, 1)).status_code == 200
    encode.drain(archive.rt.transaction, archive.rt.sandbox, archive.rt.encoder, archive.rt.effort)
    project.drain(archive.rt.transaction, archive.rt.index, gather_s=0)
    found = client.get(f"/v1/studies/{study_uid(1)}/similar").json()
    assert [study["study_instance_uid"] for study in found["studies"]] == [study_uid(2)]


@pytest.fixture
def logged(monkeypatch):
    """The log lines that a process would write."""
    stream, before = io.StringIO(), logging.getLogger().handlers[:]
    monkeypatch.setattr(sys, "stderr", stream)
    configure("test")
    yield stream
    logging.getLogger().handlers = before


def test_no_answer_and_no_log_line_names_the_patient(client, archive, logged):
    """Identifying attributes are in the requests and in the stored file, and must be nowhere else."""
    names = dict.fromkeys(("PatientName", "PatientID", "AccessionNumber", "StudyDescription", "OperatorsName"), CANARY)
    study = f"/dicom-web/studies/{study_uid(1)}"
    answers = [
        send(client, instance(1, 1, **names), instance(1, 2, **names)[:700]),
        client.get(f"/dicom-web/studies?PatientName={CANARY}"),
        client.get(f"/dicom-web/studies?AccessionNumber={CANARY}"),
        client.get(f"/dicom-web/studies?{CANARY}=1"),
        client.get("/dicom-web/instances?includefield=all"),
        client.get(f"/dicom-web/studies?includefield={CANARY}"),
        client.get(f"{study}/metadata"),
        client.get(f"{study}/{CANARY}"),
        client.get(study, headers={"Accept": CANARY}),
        client.get("/metrics"),
    ]
    assert {answer.status_code for answer in answers} == {200, 202, 400, 404, 406}
    for answer in answers:
        assert CANARY not in answer.text, answer.request.url
        assert CANARY not in str(answer.headers), answer.request.url
    assert logged.getvalue().count('"request"') == len(answers)
    assert CANARY not in logged.getvalue()
    assert study_uid(1) not in logged.getvalue()
    with archive.rt.transaction() as db:
        tables = list(db.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))
        rows = [str(db.execute(sa.text(f'SELECT * FROM "{table}"')).all()) for table in tables]
    assert study_uid(1) in "".join(rows)
    assert CANARY not in "".join(rows)
