"""WADO-RS: metadata without the patient, rendered pictures, and original files by scope."""

import io
import os
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image as Pillow

from services.api.dicomweb import INSTANCE
from services.api.errors import Gone
from services.api.limits import Slots
from services.api.routes import dicomweb_retrieve
from services.api.routes.dicomweb_retrieve import CHUNK, Original
from services.embedded.setup import prepare
from shared.imaging.reasons import Reason, failed
from shared.multipart import Begin, Data, Splitter, media_type
from shared.pipeline import arrive, encode, project
from shared.store.blobs import Blobs
from shared.store.keys import Scope
from tests.api.conftest import serving
from tests.dicomweb import RELATED, instance, related, sop_uid, study_uid

STUDY = f"/dicom-web/studies/{study_uid(1)}"
SERIES = f"{STUDY}/series/{study_uid(1)}.1"
FIRST = f"{SERIES}/instances/{sop_uid(1, 1)}"


@pytest.fixture(scope="module")
def sent():
    return [instance(1, n, side=96 if n == 2 else 64) for n in (1, 2)]


@pytest.fixture
def stored(roomy, sent):
    """A client of an archive with two stored images, encoded through the real decoder."""
    with serving(roomy) as client:
        client.headers.update(roomy.key())
        assert client.post("/dicom-web/studies", content=related(*sent), headers=RELATED).status_code == 200
        rt = roomy.rt
        encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
        project.drain(rt.transaction, rt.index, gather_s=0)
        yield client


def files_of(answer):
    kind, given = media_type(answer.headers["content-type"])
    assert (kind, given["type"]) == ("multipart/related", "application/dicom")
    splitter, found = Splitter(given["boundary"]), []
    for event in splitter.feed(answer.content):
        if isinstance(event, Begin):
            assert event.headers["content-type"] == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
            found.append(b"")
        elif isinstance(event, Data):
            found[-1] += event.chunk
    splitter.finish()
    return found


def test_metadata_tells_what_is_kept_and_names_no_patient(stored):
    answers = [stored.get(f"{at}/metadata") for at in (STUDY, SERIES, FIRST)]
    assert [len(answer.json()) for answer in answers] == [2, 2, 1]
    (one,) = answers[2].json()
    assert one["00080008"]["Value"] == ["ORIGINAL", "PRIMARY"]
    assert one["00280101"] == {"vr": "US", "Value": [12]}
    assert (one["00280010"]["Value"], one["00080070"]["Value"]) == ([64], ["ACME"])
    for answer in answers:
        assert answer.headers["content-type"] == "application/dicom+json"
        assert "SECRET" not in answer.text.upper()
        assert "1960" not in answer.text


def test_metadata_of_a_file_that_is_away_or_another_now_is_what_the_rows_hold(stored, roomy):
    paths = sorted(roomy.rt.blobs.root.rglob("*.dcm"))
    paths[0].unlink()
    paths[1].write_bytes(instance(2, 2))
    answer = stored.get(f"{STUDY}/metadata").json()
    assert len(answer) == 2
    assert all("00080008" not in one and one["00280010"]["Value"] for one in answer)


def test_files_come_back_as_they_were_sent(stored, sent):
    for at, some in ((STUDY, sent), (SERIES, sent), (FIRST, sent[:1])):
        assert sorted(files_of(stored.get(at))) == sorted(some)


def test_one_file_may_come_without_multipart_around_it(stored, sent):
    answer = stored.get(FIRST, headers={"Accept": "application/dicom"})
    assert (answer.headers["content-type"], answer.content) == ("application/dicom", sent[0])
    told = stored.app.openapi()["paths"][f"/dicom-web{INSTANCE}"]["get"]
    assert "application/dicom" in told["responses"]["200"]["content"]
    assert stored.get(STUDY, headers={"Accept": "application/dicom"}).status_code == 406


ACCEPTED = (
    ('multipart/related; type="application/dicom"', 200),
    ('multipart/related; type="application/dicom"; transfer-syntax=*', 200),
    ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1', 200),
    ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90', 406),
    ('multipart/related; type="application/octet-stream"', 406),
    ("image/png", 406),
    ("multipart/*", 200),
    ("multipart/related;q=0, */*", 406),
    ('multipart/related; type="application/octet-stream", */*', 200),
)


def test_a_file_is_handed_out_only_as_it_is(stored):
    answers = [(accepted, stored.get(FIRST, headers={"Accept": accepted}).status_code) for accepted, _ in ACCEPTED]
    assert answers == list(ACCEPTED)


def test_files_name_the_patient_and_need_a_scope_of_their_own(stored, roomy):
    stored.headers.update(roomy.key(*(scope for scope in Scope if scope is not Scope.RETRIEVE)))
    assert stored.get(FIRST).status_code == 403
    assert stored.get(f"{FIRST}/metadata").status_code == 200
    stored.headers.update(roomy.key(Scope.RETRIEVE))
    assert stored.get(FIRST).status_code == 200


def test_a_file_that_is_away_or_another_now_is_not_handed_out(stored, roomy):
    paths = sorted(roomy.rt.blobs.root.rglob("*.dcm"))
    paths[0].write_bytes(instance(2, 2))
    assert stored.get(STUDY).status_code == 409
    paths[0].unlink()
    assert stored.get(STUDY).status_code == 410


def test_a_file_on_a_share_that_does_not_answer_may_be_asked_for_later(stored, monkeypatch):
    def stalls(*_):
        raise failed(Reason.STALLED)

    monkeypatch.setattr(dicomweb_retrieve, "open_source", stalls)
    assert stored.get(STUDY).status_code == 503


@pytest.mark.parametrize("other", [b"of another patient" * CHUNK, b""])
def test_a_file_that_is_overwritten_while_it_is_handed_out_ends_there(tmp_path, other):
    path = tmp_path / "large.dcm"
    path.write_bytes(bytes(3 * CHUNK))
    os.utime(path, ns=(1, 1))
    chunks = Original(path, "1.2.840.10008.1.2.1", 3 * CHUNK, 1).chunks()
    assert next(chunks) == bytes(CHUNK)
    path.write_bytes(other)
    with pytest.raises(Gone):
        next(chunks)


def test_what_a_gate_has_stopped_is_for_reviewers_only(stored, roomy):
    with roomy.rt.transaction() as db:
        import sqlalchemy as sa

        db.execute(sa.text("UPDATE image SET status = 'quarantined' WHERE sop_uid = :uid"), {"uid": sop_uid(1, 1)})
    stored.headers.update(roomy.key(Scope.RETRIEVE, Scope.READ))
    assert stored.get(FIRST).status_code == 404
    assert stored.get(f"{FIRST}/rendered").status_code == 404
    assert len(files_of(stored.get(STUDY))) == 1
    stored.headers.update(roomy.key(Scope.RETRIEVE, Scope.READ, Scope.REVIEW))
    assert stored.get(FIRST).status_code == 200


READ_WHOLE = (STUDY, SERIES, FIRST, f"{STUDY}/metadata", f"{SERIES}/metadata", f"{FIRST}/metadata")


def test_one_key_has_only_some_of_the_places_where_files_are_read_so_that_others_find_one(stored, roomy):
    made = [stored.post("/v1/keys", json={"name": name, "scopes": ["read", "retrieve"]}).json() for name in "ab"]
    one, other = ({"Authorization": f"Bearer {key['secret']}"} for key in made)
    stored.app.state.reading = places = Slots(slots=12, waiting=0, each=6)
    with ExitStack() as busy:
        for _ in range(6):
            busy.enter_context(places.taken("reading files", made[0]["id"]))
        for address in READ_WHOLE:
            refused = stored.get(address, headers=one)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2"), address
            assert stored.get(address, headers=other).status_code == 200, address
        for _ in range(6):
            busy.enter_context(places.taken("reading files"))
        for address in READ_WHOLE:
            refused = stored.get(address, headers=other)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2"), address
    assert {stored.get(address, headers=one).status_code for address in READ_WHOLE} == {200}


LIKED = (
    ("*/*", "jpeg"),
    ("image/png", "png"),
    ("image/*", "jpeg"),
    ("image/png;q=.1,*/*", "jpeg"),
    # RFC 9110 section 12.5.1: the most specific range counts
    ("image/jpeg;q=0, image/*", "png"),
    ("image/jpeg;q=0, */*", "png"),
    ("image/jpeg;q=.1, image/*", "png"),
    ("image/*;q=0, image/jpeg;q=.1", "jpeg"),
)


@pytest.mark.parametrize("what", ["rendered", "thumbnail", "frames/1/rendered"])
def test_pictures_come_as_the_client_likes_them(stored, what):
    for accepted, kind in LIKED:
        answer = stored.get(f"{FIRST}/{what}", headers={"Accept": accepted})
        assert (answer.status_code, answer.headers["content-type"]) == (200, f"image/{kind}")
        picture = np.asarray(Pillow.open(io.BytesIO(answer.content)))
        assert picture.shape[0] >= 32
        assert picture.std() > 20  # waves, not a uniform grey


def test_after_the_store_has_moved_and_was_tidied_pictures_come_as_before(stored, roomy):
    """The home is moved; then `prepare` runs as at every start, and the sweep as from beat."""
    rt = roomy.rt
    before = stored.get(f"{FIRST}/rendered").content
    new = Blobs(rt.blobs.root.rename(rt.blobs.root.with_name("moved")))
    assert stored.get(f"{FIRST}/rendered").status_code == 410
    prepare(rt.settings.database.url.get_secret_value(), None, new)
    assert arrive.sweep(rt.transaction, rt.sandbox, new, rt.rules.secret, margin_s=-1) == 0
    assert stored.get(f"{FIRST}/rendered").content == before


def test_a_picture_fits_the_viewport(stored):
    answer = stored.get(f"{FIRST}/rendered?viewport=40,50&accept=image/png")
    assert Pillow.open(io.BytesIO(answer.content)).size == (40, 40)
    assert answer.headers["content-type"] == "image/png"


REFUSED = (
    (f"{FIRST}/frames/2/rendered", 404),
    (f"{FIRST}/frames/0/rendered", 400),
    (f"{FIRST}/rendered?viewport=0,5", 400),
    (f"{FIRST}/rendered?window=1,2,linear", 400),
    (f"{FIRST}/rendered?quality=101", 400),
    (f"{FIRST}/rendered?accept=image/gif", 406),
    (f"{FIRST}/rendered?accept=image/*;q=0,*/*", 406),
    (f"{STUDY}/series/1.2/instances/{sop_uid(1, 1)}/rendered", 404),
    (f"{STUDY}/series/1.2/instances/{sop_uid(1, 1)}/thumbnail", 404),
    (f"{STUDY}/series/1.2/instances/{sop_uid(1, 1)}", 404),
    (f"{STUDY}/series/1.2/metadata", 404),
    ("/dicom-web/studies/1.2", 404),
)


def test_what_is_not_there_or_cannot_be_done_is_told(stored):
    assert [(address, stored.get(address).status_code) for address, _ in REFUSED] == list(REFUSED)


def test_a_picture_that_was_scanned_is_no_file_to_hand_out(stored, roomy):
    uid = roomy.take_in(1)
    assert stored.get(f"/dicom-web/studies/{uid}").status_code == 406
