"""DICOMweb over a real socket with a common client library."""

import io
import tracemalloc

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session

from services.api.app import create
from shared.pipeline import encode, project
from tests.dicomweb import BOUNDARY, RELATED, instance, related, served, sop_uid, study_uid


@pytest.fixture
def web(roomy):
    """dicomweb-client connected to our server."""
    with served(create(roomy.rt)) as url:
        session = create_session()
        session.headers.update(roomy.key())
        yield DICOMwebClient(f"{url}/dicom-web", session=session)
        session.close()


def test_dicomweb_client_stores_queries_and_retrieves(web, roomy):
    sent = [pydicom.dcmread(io.BytesIO(instance(1, n))) for n in range(1, 5)]
    stored = web.store_instances(sent)
    assert len(stored.ReferencedSOPSequence) == 4
    assert "FailedSOPSequence" not in stored
    rt = roomy.rt
    encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
    project.drain(rt.transaction, rt.index, gather_s=0)

    (study,) = web.search_for_studies(search_filters={"StudyDate": "20240101-20241231"}, fields=["ModalitiesInStudy"])
    assert pydicom.Dataset.from_json(study).StudyInstanceUID == study_uid(1)
    assert web.search_for_studies(search_filters={"ModalitiesInStudy": "CT"}) == []
    (series,) = web.search_for_series(study_uid(1))
    series_uid = pydicom.Dataset.from_json(series).SeriesInstanceUID
    uids = [pydicom.Dataset.from_json(one).SOPInstanceUID for one in web.search_for_instances(study_uid(1))]
    assert uids == [sop_uid(1, n) for n in range(1, 5)]
    assert len(web.search_for_instances(limit=2, offset=3)) == 1

    metadata = web.retrieve_study_metadata(study_uid(1))
    assert [pydicom.Dataset.from_json(one).Rows for one in metadata] == [64] * 4
    (back,) = [one for one in web.retrieve_study(study_uid(1)) if one.SOPInstanceUID == sop_uid(1, 2)]
    assert back == sent[1]
    assert len(web.retrieve_series(study_uid(1), series_uid)) == 4
    assert web.retrieve_instance(study_uid(1), series_uid, sop_uid(1, 3)) == sent[2]
    rendered = web.retrieve_instance_rendered(
        study_uid(1), series_uid, sop_uid(1, 3), media_types=("image/png",), params={"viewport": "32,32"}
    )
    assert rendered.startswith(b"\x89PNG")
    frame = web.retrieve_instance_frames_rendered(study_uid(1), series_uid, sop_uid(1, 3), [1])
    assert frame.startswith(b"\xff\xd8")


def test_a_large_body_passes_in_little_memory(roomy):
    """A streamed request of eight files of 8 MB; only a few MB may be held at once."""
    file = instance(2, 1, side=2048)

    def body():
        for _ in range(8):
            yield f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            yield from (file[at : at + 65536] for at in range(0, len(file), 65536))
            yield b"\r\n"
        yield f"--{BOUNDARY}--\r\n".encode()

    with served(create(roomy.rt)) as url:
        headers = RELATED | roomy.key()
        httpx.post(f"{url}/dicom-web/studies", content=related(instance()), headers=headers)  # imports modules
        tracemalloc.start()
        try:
            answer = httpx.post(f"{url}/dicom-web/studies", content=body(), headers=headers, timeout=60)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (answer.status_code, len(answer.json()["00081199"]["Value"])) == (200, 8)
    assert peak < 16 * 2**20
