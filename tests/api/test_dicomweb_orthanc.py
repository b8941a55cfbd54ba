"""Orthanc and its DICOMweb plugin as the peer: it stores to Similis, and Similis pulls from it."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

import workers.pull
from services.api.app import create
from shared.config import DicomwebSource
from tests.api.conftest import serving
from tests.dicomweb import instance, served, sop_uid, study_uid
from tests.ports import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "similis", "a-word"

pytestmark = pytest.mark.skipif(
    shutil.which("Orthanc") is None or not PLUGIN.exists(), reason="Orthanc with its DICOMweb plugin is not here"
)


@dataclass
class Orthanc:
    http: httpx.Client
    url: str


@pytest.fixture
def peers() -> dict[str, object]:
    """DICOMweb servers configured in Orthanc."""
    return {}


@pytest.fixture
def orthanc(tmp_path: Path, peers: dict[str, object]) -> Iterator[Orthanc]:
    port = free_port()
    settings = {
        "StorageDirectory": str(tmp_path / "orthanc"), "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD}, "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": peers},
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, auth=(USER, PASSWORD), timeout=30, trust_env=False) as http:
            wait_for(http, process)
            yield Orthanc(http, f"{url}/dicom-web")
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for(http: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "Orthanc ended"
        try:
            if http.get("/system").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("Orthanc does not answer")


def held(archive) -> list[str]:
    with archive.rt.transaction() as db:
        return list(db.scalars(sa.text("SELECT sop_uid FROM image ORDER BY sop_uid")))


@pytest.fixture
def ours(roomy, peers):
    """Our server, configured in Orthanc as `similis`."""
    with served(create(roomy.rt)) as url:
        peers["similis"] = {"Url": f"{url}/dicom-web/", "HttpHeaders": roomy.key()}
        yield url


def fill(orthanc: Orthanc, *studies: int) -> list[str]:
    """Store three images of each study in Orthanc; return their Orthanc IDs."""
    made = [orthanc.http.post("/instances", content=instance(s, n)).json() for s in studies for n in (1, 2, 3)]
    return sorted({one["ParentStudy"] for one in made})


def test_orthanc_stores_to_us_and_finds_and_fetches_it_here(ours, orthanc, roomy):
    studies = fill(orthanc, 1, 2)
    job = orthanc.http.post("/dicom-web/servers/similis/stow", json={"Resources": studies, "Synchronous": True})
    assert job.status_code == 200, job.text
    assert held(roomy) == sorted(sop_uid(s, n) for s in (1, 2) for n in (1, 2, 3))

    asked = {"Uri": "/studies", "Arguments": {"StudyInstanceUID": study_uid(2)}}
    found = orthanc.http.post("/dicom-web/servers/similis/qido", json=asked).json()
    assert len(found) == 1
    assert f'"{study_uid(2)}"' in json.dumps(found)

    orthanc.http.delete(f"/studies/{studies[0]}")
    orthanc.http.delete(f"/studies/{studies[1]}")
    asked = {"Resources": [{"Study": study_uid(1)}], "Synchronous": True}
    fetched = orthanc.http.post("/dicom-web/servers/similis/retrieve", json=asked)
    assert fetched.status_code == 200, fetched.text
    assert len(orthanc.http.get("/instances").json()) == 3


def test_we_pull_from_orthanc(orthanc, roomy, tmp_path, monkeypatch):
    fill(orthanc, 1, 2, 3)
    secret = tmp_path / "word"
    secret.write_text(PASSWORD + "\n")
    source = DicomwebSource(name="orthanc", url=orthanc.url, user=USER, password_file=secret)
    intake = roomy.rt.settings.intake.model_copy(update={"dicomweb_sources": (source,)})
    roomy.rt.settings = roomy.rt.settings.model_copy(update={"intake": intake})
    monkeypatch.setattr(workers.pull, "runtime", lambda: roomy.rt)
    with serving(roomy) as client:
        client.headers.update(roomy.key())
        query = {"StudyDate": "20240101-20240330"}  # the third study is of April
        operation = client.post("/v1/ingest/backfills", json={"dicomweb": "orthanc", "query": query}).json()
        workers.pull.pull_studies()
        told = client.get(f"/v1/operations/{operation['id']}").json()
    assert told["counts"] == {"studies": 2, "pulled": 6, "held": 0, "turned_away": 0, "missing": 0, "unnamed": 0}, told
    assert held(roomy) == sorted(sop_uid(s, n) for s in (1, 2) for n in (1, 2, 3))
