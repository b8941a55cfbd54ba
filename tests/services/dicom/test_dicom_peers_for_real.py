"""Third-party senders: DCMTK's tools, and an Orthanc that forwards."""

import json
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import RLELossless

from shared import process
from shared.process import until
from tests.ports import free_port
from tests.services.dicom.conftest import PATIENT, instance, written

PAGE = Path(__file__).parents[3] / "docs" / "connect-a-pacs.md"
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, check=False)


def test_dcmtk_asks_for_an_echo(receiver, tool):
    done = run(tool("echoscu"), "-v", "-aec", "SIMILIS", "127.0.0.1", receiver.port)
    assert done.returncode == 0, done.stderr
    done = run(tool("echoscu"), "-v", "-aec", "ANOTHER", "127.0.0.1", receiver.port)
    assert done.returncode != 0
    assert "Called AE Title Not Recognized" in done.stderr + done.stdout


def test_storescu_sends_a_folder(receiver, tool, tmp_path):
    for n in range(1, 6):
        written(instance(n), tmp_path)
    done = run(tool("storescu"), "-v", "-aec", "SIMILIS", "+sd", "127.0.0.1", receiver.port, tmp_path)
    assert done.returncode == 0, done.stderr
    assert receiver.rows("SELECT count(*) FROM image") == [(5,)]


def test_dcmsend_sends_what_is_compressed_as_it_is(receiver, tool, tmp_path):
    image = written(instance(1, side=64), tmp_path, "plain.dcm")
    names = {"rle.dcm": ("dcmcrle", RLELossless), "lossless.dcm": ("dcmcjpeg", "1.2.840.10008.1.2.4.70")}
    for name, (compress, _) in names.items():
        assert run(tool(compress), "+ua", image, tmp_path / name).returncode == 0
    done = run(tool("dcmsend"), "-v", "-dn", "-aec", "SIMILIS", "+sd", "127.0.0.1", receiver.port, tmp_path)
    assert done.returncode == 0, done.stderr
    kept = {str(pydicom.dcmread(path).file_meta.TransferSyntaxUID) for path in receiver.blobs()}
    assert {str(syntax) for _, syntax in names.values()} <= kept


@pytest.mark.parametrize("name", ["storescu", "dcmsend"])
def test_the_documented_commands_send_what_comes_after_a_refused_file(receiver, tool, tmp_path, name):
    (folder := tmp_path / "folder").mkdir()
    for n in range(4):  # in turns, because the order in which a folder is listed is the file system's
        written(instance(n + 1), folder)
        written(instance(n + 5, SOPClassUID=REPORT, Modality="SR"), folder)
    written(instance(9, SOPClassUID=TOMOSYNTHESIS), folder)  # no class that storescu proposes by default
    asked = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"$ {name} ") and "folder" in line)
    _, _, *words = asked.partition("#")[0].split()
    here = {"10.1.2.20": "127.0.0.1", "11112": str(receiver.port), "folder": str(folder)}
    done = run(tool(name), *(here.get(word, word) for word in words))
    assert receiver.rows("SELECT count(*) FROM image") == [(5,)], done.stderr


def test_storescu_is_told_what_is_wrong(receiver, tool, tmp_path, lenient):
    path = written(instance(StudyInstanceUID=""), tmp_path)
    done = run(tool("storescu"), "-v", "-aec", "SIMILIS", "127.0.0.1", receiver.port, path)
    assert "CannotUnderstand" in done.stderr


class Orthanc:
    """An Orthanc with Similis among its modalities."""

    def __init__(self, folder, program, port, script):
        self.http = free_port()
        (folder / "forward.lua").write_text(script)
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomPort": free_port(),
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"similis": ["SIMILIS", "127.0.0.1", port]},
            "Plugins": [],
            "LuaScripts": [str(folder / "forward.lua")],
            "StableAge": 1,
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "orthanc.log").open("wb") as log:
            self.child = process.spawn([program, str(folder / "orthanc.json")], output=log)

    def ask(self, path, body=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    @property
    def is_up(self) -> bool:
        try:
            return bool(self.ask("/system"))
        except (urllib.error.URLError, ConnectionError):
            return False


@pytest.fixture
def script() -> str:
    """What Orthanc runs when something happens in it: nothing."""
    return ""


@pytest.fixture
def orthanc(receiver, tmp_path, script) -> Iterator[Orthanc]:
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    made = Orthanc(tmp_path, program, receiver.port, script)
    try:
        assert until(lambda: made.is_up, 30, 0.1)
        yield made
    finally:
        process.stop(made.child, (signal.SIGTERM, 10.0))


def test_orthanc_forwards_what_it_has_received(receiver, orthanc, tmp_path):
    assert orthanc.ask("/modalities/similis/echo", {}) == {}
    for n in range(1, 5):
        orthanc.ask("/instances", written(instance(n), tmp_path).read_bytes())
    (study,) = orthanc.ask("/studies")
    done = orthanc.ask("/modalities/similis/store", {"Resources": [study], "Synchronous": True})
    assert (done["InstancesCount"], done["FailedInstancesCount"]) == (4, 0)
    assert receiver.rows("SELECT count(*) FROM image WHERE status = 'received'") == [(4,)]
    assert receiver.rows("SELECT DISTINCT sender FROM arrival") == [("ORTHANC",)]
    assert PATIENT not in receiver.said


def give_a_study_with_reports(orthanc, folder):
    """Four images and four reports of one study, in turns."""
    for n in range(4):
        orthanc.ask("/instances", written(instance(n + 1), folder).read_bytes())
        report = instance(n + 5, SOPClassUID=REPORT, Modality="SR", SeriesInstanceUID="1.2.3")
        del report.PixelData
        orthanc.ask("/instances", written(report, folder).read_bytes())


def test_the_documented_command_of_orthanc_sends_the_images_of_a_study_with_reports(receiver, orthanc, tmp_path):
    give_a_study_with_reports(orthanc, tmp_path)
    (asked,) = [line for line in PAGE.read_text().splitlines() if "modalities/similis/store -d" in line]
    told = []
    for series in orthanc.ask("/series"):
        try:
            orthanc.ask("/modalities/similis/store", json.loads(asked.split("'")[1].replace("<series>", series)))
            told.append("sent")
        except urllib.error.HTTPError as error:
            told.append(error.code)
    assert sorted(told, key=str) == [500, "sent"]  # the failure is told
    assert receiver.rows("SELECT count(*) FROM image") == [(4,)]


@pytest.mark.parametrize("script", [PAGE.read_text().partition("```lua\n")[2].partition("```")[0]], ids=["page"])
def test_the_documented_script_forwards_each_series_of_orthanc(receiver, orthanc, tmp_path):
    give_a_study_with_reports(orthanc, tmp_path)
    assert until(lambda: receiver.rows("SELECT count(*) FROM image") == [(4,)], 30, 0.2)
