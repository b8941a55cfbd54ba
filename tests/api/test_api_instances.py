"""Thumbnails and rendered pictures."""

import hashlib
import io
import os
import shutil

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from services.api.routes.instances import _reaching
from shared.errors import Invalid
from shared.imaging.reasons import Reason, failed
from shared.imaging.sandbox import Sandbox
from shared.pipeline import scan
from shared.pipeline.identity import Found
from shared.store.files import Seen
from shared.store.keys import Scope
from tests.api.conftest import CANARY, serving


def opened(answer):
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def change(archive, words):
    with archive.rt.transaction() as db:
        db.execute(sa.text(f"UPDATE image SET {words}"))


@pytest.fixture
def real(archive, tmp_path):
    """A real file, registered in place; (UID, path)."""
    path = tmp_path / f"{CANARY}.dcm"
    shutil.copy(get_testdata_file("MR_small.dcm", download=False), path)
    return registered(archive, path).sop_instance_uid, path


def test_a_thumbnail_is_a_small_jpeg(client, archive):
    archive.take_in(1)
    answer = client.get("/v1/instances/1.2.3.1.0/thumbnail")
    picture = opened(answer)
    assert (picture.format, picture.mode) == ("JPEG", "L")
    assert answer.headers["cache-control"] == "no-store"


def test_a_thumbnail_that_the_client_has_is_not_sent_again(client, archive):
    archive.take_in(1)
    address = "/v1/instances/1.2.3.1.0/thumbnail"
    tag = client.get(address).headers["ETag"]
    again = client.get(address, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_quarantined_picture_is_shown_to_reviewers_only(archive):
    archive.take_in(1)
    change(archive, "status = 'quarantined', gate = 'metadata', reason = 'burned-in-annotation'")
    with serving(archive) as client:
        for address in ("/v1/instances/1.2.3.1.0/thumbnail", "/v1/instances/1.2.3.1.0/rendered"):
            hidden = client.get(address, headers=archive.key(Scope.READ))
            absent = client.get(address.replace("1.2.3.1.0", "9.9"), headers=archive.key(Scope.READ))
            assert (hidden.status_code, absent.status_code) == (404, 404)
            assert hidden.json() | {"trace_id": 0} == absent.json() | {"trace_id": 0}
        reviewer = archive.key(Scope.READ, Scope.REVIEW)
        assert client.get("/v1/instances/1.2.3.1.0/thumbnail", headers=reviewer).status_code == 200


def test_an_image_without_a_picture_says_why(client, archive, real):
    uid, _ = real
    refused = client.get(f"/v1/instances/{uid}/thumbnail")
    assert (refused.status_code, refused.json()["detail"]) == (409, "there is no picture of this image: it is received")


def test_an_original_is_rendered_in_its_own_proportions(client, archive, real):
    uid, path = real
    change(archive, "rows = 64, columns = 64")
    picture = opened(client.get(f"/v1/instances/{uid}/rendered"))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (64, 64))
    stored = dcmread(path).pixel_array.astype(float)
    assert np.corrcoef(stored.ravel(), np.asarray(picture, float).ravel())[0, 1] > 0.9
    assert opened(client.get(f"/v1/instances/{uid}/rendered?size=32")).size == (32, 32)


def registered(archive, path):
    """Register a file in place; return its header."""
    inspected = archive.rt.sandbox.inspect(path)
    seen = Seen(path=os.fsencode(path), size=path.stat().st_size, mtime_ns=1)
    with archive.rt.transaction() as db:
        scan.register(db, [Found(seen=seen, inspected=inspected)], archive.rt.rules, None)
    return inspected.header


def test_an_oblong_picture_keeps_its_proportions(client, archive, tmp_path):
    path = tmp_path / "wide.png"
    grey = np.tile(np.linspace(20, 250, 200, dtype=np.uint8), (100, 1))
    Image.fromarray(grey).save(path)
    uid = registered(archive, path).sop_instance_uid
    whole = opened(client.get(f"/v1/instances/{uid}/rendered"))
    assert whole.size == (200, 100)
    assert np.abs(np.asarray(whole, float) - grey).max() <= 2
    half = opened(client.get(f"/v1/instances/{uid}/rendered?size=100"))
    assert half.size == (100, 50)


def test_a_photograph_is_rendered_upright(client, archive, tmp_path):
    path, exif = tmp_path / "photograph.png", Image.Exif()
    exif[0x0112] = 6  # stored on its left side
    grey = np.tile(np.linspace(20, 250, 200, dtype=np.uint8), (100, 1))
    Image.fromarray(np.rot90(grey)).save(path, exif=exif)
    header = registered(archive, path)
    assert (header.rows, header.columns) == (100, 200)
    for sides in ("rows = 100, columns = 200", "rows = 200, columns = 100"):  # an earlier version took them as stored
        change(archive, sides)
        picture = opened(client.get(f"/v1/instances/{header.sop_instance_uid}/rendered"))
        assert picture.size == (200, 100)
        assert np.abs(np.asarray(picture, float) - grey).max() <= 2


def test_a_file_that_is_gone_is_gone_and_not_an_error_of_ours(client, archive, real):
    uid, path = real
    path.unlink()
    refused = client.get(f"/v1/instances/{uid}/rendered")
    assert (refused.status_code, refused.json()["code"]) == (410, "gone")
    assert CANARY not in refused.text


def test_a_file_that_has_other_bytes_by_now_is_never_shown(client, archive, real):
    uid, path = real
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), path)
    assert hashlib.sha256(path.read_bytes()).digest() != b""
    refused = client.get(f"/v1/instances/{uid}/rendered")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


class Overwritten(Sandbox):
    """Overwrites each file with another one right after it was read."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def _all(self, sources, recipe):
        yield from super()._all(sources, recipe)
        for path in sources:
            path.write_bytes(self.other)


@pytest.mark.parametrize("pixels", [slice(None), slice(-400)])  # of the other file: whole, or too short to decode
def test_a_file_that_is_overwritten_while_it_is_looked_at_is_never_shown(client, archive, real, monkeypatch, pixels):
    uid, _ = real
    with open(get_testdata_file("CT_small.dcm", download=False), "rb") as file:
        other = file.read()[pixels]
    with Overwritten(other) as sandbox:
        monkeypatch.setattr(archive.rt, "sandbox", sandbox)
        for _ in range(2):
            refused = client.get(f"/v1/instances/{uid}/rendered")
            assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


class Stalled(Sandbox):
    """Its files are on a share that does not answer."""

    def _all(self, sources, recipe):
        yield from (failed(Reason.STALLED) for _ in sources)


def test_a_file_on_a_share_that_does_not_answer_may_be_asked_for_later(client, archive, real, monkeypatch):
    uid, _ = real
    with Stalled() as sandbox:
        monkeypatch.setattr(archive.rt, "sandbox", sandbox)
        refused = client.get(f"/v1/instances/{uid}/rendered")
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")


def test_a_frame_that_is_not_there_is_refused(client, archive, real):
    uid, _ = real
    assert client.get(f"/v1/instances/{uid}/rendered?frame=2").status_code == 400
    assert client.get(f"/v1/instances/{uid}/rendered?frame=0").status_code == 400


def test_the_first_frame_of_a_long_cine_of_small_frames_is_reached(client, archive, tmp_path):
    path = tmp_path / "cine.dcm"
    dataset = dcmread(get_testdata_file("MR_small.dcm", download=False))
    dataset.NumberOfFrames, dataset.PixelData = 130, dataset.PixelData * 130
    dataset.save_as(path)
    inspected = archive.rt.sandbox.inspect(path)
    seen = Seen(path=os.fsencode(path), size=path.stat().st_size, mtime_ns=1)
    with archive.rt.transaction() as db:
        scan.register(db, [Found(seen=seen, inspected=inspected)], archive.rt.rules, None)
    address = f"/v1/instances/{inspected.header.sop_instance_uid}/rendered"
    assert opened(client.get(address)).size == (64, 64)


def test_a_frame_is_reached_with_as_few_others_as_can_be():
    assert _reaching(1, 1, 2048) == 1
    assert _reaching(6, 10, 512) == 1  # the middle frame
    assert _reaching(1, 10, 512) == 6
    with pytest.raises(Invalid, match="smaller"):
        _reaching(1, 100, 2048)
