"""A real receiver with a real database, started once per module, and real peers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom import config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association

from services.dicom import echo
from shared import process
from shared.process import until
from shared.store.session import Store
from tests import engines
from tests.moves import by_hand

UID = "1.2.826.0.1.3680043.10.2"
MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"
SECRET = "a test's own secret, 32 bytes long"
PATIENT = "WOMAN^OF^THE^TESTS"
HANGS_S = 120.0  #: who has not answered by then never will, however busy the machine

_config.LOG_HANDLER_LEVEL = "none"


def instance(n: int = 1, *, study: int = 1, value: int = 0, side: int = 8, **more: object) -> Dataset:
    """One small mammogram."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = MAMMOGRAM, f"{UID}.{study}.{n}"
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{UID}.{study}", f"{UID}.{study}.0"
    image.PatientName, image.PatientID, image.Modality = PATIENT, PATIENT, "MG"
    image.Rows = image.Columns = side
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 7, 0, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = bytes([value]) * side**2
    for keyword, other in more.items():
        setattr(image, keyword, other)
    return image


def written(image: Dataset, folder: Path, name: str = "") -> Path:
    """Write the image to a file with the preamble of an executable; return its path."""
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.preamble = b"MZ" + b"\x90" * 126
    path = folder / (name or f"{image.SOPInstanceUID}.dcm")
    image.save_as(path, enforce_file_format=True)
    return path


def peer_file(folder: Path, **titles: list[str]) -> Path:
    """Write peers.toml: addresses by AE title."""
    told = [f'[[peer]]\nae_title = "{title}"\naddresses = {addresses}\n' for title, addresses in titles.items()]
    path = folder / "peers.toml"
    path.write_text("\n".join(told))
    return path


@dataclass
class Running:
    """A running receiver with its database, folders and log."""

    folder: Path
    database_url: str
    settings: dict[str, str] = field(default_factory=dict)
    port: int = 0
    child: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def env(self) -> dict[str, str]:
        ours = {
            "SIMILIS_HOME": str(self.home),
            "SIMILIS_DATABASE__URL": self.database_url,
            "SIMILIS_PSEUDONYM_KEY": SECRET,
            "SIMILIS_LOG_LEVEL": "DEBUG",
            "SIMILIS_INTAKE__RESERVE_MB": "0",
            "SIMILIS_DICOM__PROCESSES": "1",
        }
        return {**os.environ, **ours, **self.settings}

    def start(self) -> "Running":
        self.home.mkdir(parents=True, exist_ok=True)
        sign = self.folder / "serves"
        sign.unlink(missing_ok=True)
        with socket.create_server(("127.0.0.1", self.port)) as listener, self.log.open("ab") as output:
            self.port = listener.getsockname()[1]
            os.set_inheritable(listener.fileno(), True)
            argv = [sys.executable, "-P", "-m", "services.dicom", "--listener", str(listener.fileno())]
            env = self.env | {"SIMILIS_DICOM__PORT": str(self.port)}
            self.child = process.spawn([*argv, "--sign", str(sign)], env=env, output=output, keep=[listener.fileno()])
        assert until(lambda: sign.exists() or self.ended, HANGS_S), self.said
        assert not self.ended, self.said
        return self

    @property
    def ended(self) -> bool:
        return self.child is None or process.has_ended(self.child)

    @property
    def log(self) -> Path:
        return self.folder / "dicom.log"

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> int:
        child, self.child = self.child, None
        return 0 if child is None else process.stop(child, (signal.SIGTERM, 20.0))

    def kill(self) -> None:
        """Kill the door and its receivers at once, as in a loss of power."""
        child, self.child = self.child, None
        assert child is not None
        process.kill_tree(child.pid)
        process.bury(child)

    def receivers(self) -> list[int]:
        assert self.child is not None
        return [int(pid) for pid in Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()]

    def echo(self, timeout_s: float = 10.0) -> bool:
        return echo.ask(socket.create_connection(("127.0.0.1", self.port), 5), "SIMILIS", timeout_s, "ANYBODY")

    def associated(self, calling: str = "SCANNER", called: str = "SIMILIS", context: str = MAMMOGRAM, **more: object):
        ae = AE(ae_title=calling)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = HANGS_S
        ae.add_requested_context(context, [ExplicitVRLittleEndian])
        association = ae.associate("127.0.0.1", self.port, ae_title=called, **more)
        if association.is_aborted and association.acceptor.primitive is None:
            # on a busy machine: pynetdicom reads no answer that came, with the end of the connection, before it looked
            association = ae.associate("127.0.0.1", self.port, ae_title=called, **more)
        return association

    def send(self, *images: Dataset, **more: object) -> list[int]:
        """Send the images; return the statuses of the responses."""
        with closing(self.associated(**more)) as association:
            assert association.is_established
            return [association.send_c_store(image).Status for image in images]

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        with self._database() as store, store.reading() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    def execute(self, statement: str) -> None:
        with self._database() as store, store.transaction() as db:
            by_hand(db)
            db.execute(sa.text(statement))

    @contextmanager
    def _database(self) -> Iterator[Store]:
        store = Store(self.database_url, pool_size=1)
        try:
            yield store
        finally:
            store.close()

    def blobs(self) -> list[Path]:
        return sorted(path for path in (self.home / "blobs").rglob("*") if path.is_file())

    def clear(self) -> None:
        """Remove all data; the processes go on."""
        self.execute("TRUNCATE arrival, file, image, study CASCADE")
        shutil.rmtree(self.home / "blobs", ignore_errors=True)


@contextmanager
def closing(association: Association) -> Iterator[Association]:
    """Release the association at the end, also after an error."""
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


@pytest.fixture(scope="session")
def session_database(postgres, migrated) -> Iterator[str]:
    """One database for all receivers of this session; each test begins with empty tables."""
    yield from engines._fresh(postgres, migrated)


@pytest.fixture(scope="module")
def long_running(tmp_path_factory, session_database) -> Iterator[Running]:
    """A receiver with default settings for a whole module."""
    made = Running(tmp_path_factory.mktemp("dicom"), session_database).start()
    yield made
    made.stop()


@pytest.fixture
def receiver(long_running: Running) -> Running:
    long_running.clear()
    return long_running


@pytest.fixture
def start(tmp_path, database_url) -> Iterator[object]:
    """A function that starts a receiver with given settings for this test."""
    made: list[Running] = []

    def begin(**settings: object) -> Running:
        names = {f"SIMILIS_{name.upper()}": str(value) for name, value in settings.items()}
        made.append(Running(tmp_path, database_url, names).start())
        return made[-1]

    yield begin
    for one in made:
        one.stop()


@pytest.fixture
def lenient(monkeypatch) -> None:
    """Let pydicom write invalid values."""
    monkeypatch.setattr(config.settings, "_reading_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "_writing_validation_mode", config.IGNORE)


@pytest.fixture
def injected(tmp_path, monkeypatch):
    """A function that adds Python code which each process of a receiver runs first, to inject faults."""

    def put(text: str) -> None:
        folder = tmp_path / "injected"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return put


def _is_dcmtk(program: str) -> bool:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return told.startswith("$dcmtk")


@pytest.fixture
def tool():
    """A function that returns the path of a DCMTK program, or skips the test visibly.

    In an activated environment pynetdicom's programs of the same names come first on the path.
    """

    def find(name: str) -> str:
        for folder in os.get_exec_path():
            found = shutil.which(name, path=folder)
            if found is not None and _is_dcmtk(found):
                return found
        pytest.skip(f"{name} of DCMTK is not installed")

    return find
