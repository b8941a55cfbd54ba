"""The API on a real Postgres, with an in-memory index, the null encoder, and synthetic studies."""

import hashlib
import io
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from services.api.app import create
from shared.config import Api, Database, Intake, Settings
from shared.datasets.folder import Row
from shared.encoder import build, cards
from shared.errors import Rejected
from shared.imaging.answers import Inspected
from shared.imaging.recipe import Recipe
from shared.index.memory import MemoryStore
from shared.pipeline import encode, lifecycle, project, scan
from shared.pipeline.identity import Found
from shared.runtime import Runtime
from shared.store import generations, images, keys
from shared.store.files import Seen
from shared.store.keys import Scope
from shared.types import Decoded, Header, Labels, PixelStats

SIDE = 64
VIEWS = (("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO"))
CANARY = "CANARYxQZ7"


class TwinRuntime(Runtime):
    """The real runtime with an in-memory index."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.indexes = MemoryStore()  # type: ignore[misc]


@dataclass
class Archive:
    """Puts studies into the archive through the functions of the pipeline."""

    rt: TwinRuntime
    folder: Path
    files: list[Found] = field(default_factory=list)

    def take_in(self, study: int, *, patient: int | None = None, **more: object) -> str:
        """Register, encode and index one four-view study; return its UID."""
        uid = f"1.2.3.{study}"
        found = [self._file(uid, study, i, patient if patient is not None else study, **more) for i in range(4)]
        self.files += found
        with self.rt.transaction() as db:
            scan.register(db, found, self.rt.rules, None)
        self.encode()
        return uid

    def _file(self, uid: str, study: int, i: int, patient: int, **more: object) -> Found:
        path = self.folder / f"{CANARY}-{study}-{i}.dcm"
        laterality, view = VIEWS[i]
        fields = {
            "sop_instance_uid": f"{uid}.{i}", "study_instance_uid": uid, "series_instance_uid": f"{uid}.9",
            "modality": "MG", "laterality": laterality, "view": view, "study_date": date(2024, 1, 1 + study % 28),
            "rows": 100, "columns": 80, "patient_id": f"{CANARY}-{patient}", "issuer_of_patient_id": CANARY,
        } | more  # fmt: skip
        header = Header(**fields)  # type: ignore[arg-type]
        path.write_bytes(b"x")
        os.utime(path, ns=(1, 1))
        seen = Seen(path=str(path).encode(), size=1, mtime_ns=1)
        digest = hashlib.sha256(header.sop_instance_uid.encode()).digest()
        return Found(seen=seen, inspected=Inspected(header=header, digest=digest, kind="dicom"))

    def encode(self) -> None:
        """Encode and project everything that is due, in this thread."""
        rt = self.rt
        encode.drain(rt.transaction, Painter(), rt.encoder, rt.effort)
        project.drain(rt.transaction, rt.index, gather_s=0)

    def label(self, study_uid: str, **labels: object) -> None:
        """Apply these labels, as from a label table, to every image of a study."""
        row = Row(labels=Labels(**labels))  # type: ignore[arg-type]
        with self.rt.transaction() as db:
            files = [file for file in self.files if file.inspected.header.study_instance_uid == study_uid]  # type: ignore[union-attr]
            scan.register(db, [replace(file, row=row) for file in files], self.rt.rules, None)
        project.drain(self.rt.transaction, self.rt.index, gather_s=0)

    def key(self, *scopes: Scope, **more: object) -> dict[str, str]:
        """Headers with a new key of these scopes, or of all."""
        secret = keys.generate()
        with self.rt.transaction() as db:
            keys.ensure(db, secret, name="test", scopes=scopes or keys.ALL, **more)  # type: ignore[arg-type]
        return {"Authorization": f"Bearer {secret}"}


class Painter:
    """A decoder that derives each picture from the file's name; studies with close numbers look alike."""

    def decode_many(self, paths: object, recipe: Recipe) -> Iterator[Decoded | Rejected]:
        for path in paths:  # type: ignore[attr-defined]
            _, study, i = Path(path).stem.rsplit("-", 2)
            picture = painted(int(study), int(i), recipe)
            yield replace(picture, header=replace(picture.header, sop_instance_uid=f"1.2.3.{study}.{i}"))


def painted(study: int, i: int, recipe: Recipe) -> Decoded:
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j].astype(np.float32)
    frame = 0.5 + 0.4 * np.sin(6 * x * (1 + i) + study / 5) * np.cos(4 * y)
    header = Header(
        sop_instance_uid="1.2", study_instance_uid="1.2", series_instance_uid="1.2", modality="MG", rows=100, columns=80
    )
    return Decoded(
        header=header,
        frames=(1,),
        pixels=frame[None].astype(np.float32),
        thumbnail=(frame * 255).astype(np.uint8),
        stats=PixelStats(spread=0.5, distinct=500, content=0.9, noise=0.01),
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with two null encoders."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("null-a", 1), ("null-b", 2)):
        build.build(folder / name, name, "null", f"random:{seed}", Recipe(size=SIDE))
    return folder


@pytest.fixture
def settings(database_url: str, models: Path, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        models=models,
        pseudonym_key="k" * 40,
        database=Database(url=database_url, pool_size=4),
        intake=Intake(roots=(tmp_path,)),
        api=Api(rate_per_s=10_000, burst=10_000),
    )


@pytest.fixture
def bare(settings: Settings, tmp_path: Path) -> Iterator[Archive]:
    """An archive without a model."""
    rt = TwinRuntime(settings)
    yield Archive(rt, tmp_path)
    rt.close()


@pytest.fixture
def archive(bare: Archive) -> Archive:
    """An empty archive with a published model."""
    with bare.rt.transaction() as db:
        card = cards.read(bare.rt.folder("null-a"))
        lifecycle.add_model(db, bare.rt.indexes, "null-a", card)
    return bare


def serving(archive: Archive) -> TestClient:
    return TestClient(create(archive.rt), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(archive: Archive) -> Iterator[TestClient]:
    """A client with a key of all scopes."""
    with serving(archive) as client:
        client.headers.update(archive.key())
        yield client


@pytest.fixture
def roomy(archive: Archive) -> Archive:
    """The archive without a disk reserve, so that a full developer's disk does not matter."""
    intake = archive.rt.settings.intake.model_copy(update={"reserve_mb": 0})
    archive.rt.settings = archive.rt.settings.model_copy(update={"intake": intake})
    return archive


@pytest.fixture
def filled(archive: Archive) -> Archive:
    """Twelve studies; 1 and 2 are of one woman."""
    for study in range(1, 13):
        archive.take_in(study, patient=1 if study == 2 else study)
    return archive


def png() -> bytes:
    """An uploaded picture: a PNG file."""
    y, x = np.mgrid[0:96, 0:80]
    grey = (127 + 100 * np.sin(x / 9) * np.cos(y / 13)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG")
    return out.getvalue()


def variants(cursor: str) -> list[str]:
    """Variations of the cursor that a lenient base64 decoder accepts, and the cursor with stray characters."""
    letters = string.ascii_letters + string.digits + "-_"
    last = [cursor[:-1] + letter for letter in letters if letter != cursor[-1]]
    return [*last, *(cursor + stray for stray in ("A", "Q", "w", "_", "=", "==", "!", " ", "AA", "AAAA")), f"!{cursor}"]


Statuses = Callable[[], dict[str, int]]


@pytest.fixture
def statuses(archive: Archive) -> Statuses:
    def count() -> dict[str, int]:
        with archive.rt.transaction() as db:
            assert generations.published(db)
            return images.statuses(db)

    return count
