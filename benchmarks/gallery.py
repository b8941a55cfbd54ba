"""A synthetic archive: encodings written to Postgres in bulk, without images, for the real projector to index."""

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
import sqlalchemy as sa
from numpy.typing import NDArray

from shared.store import encodings
from shared.store.generations import Published
from shared.store.session import Store
from shared.types import point_id

IMAGES = 4  #: per study
STUDIES = 2  #: per patient
VIEWS = (("R", "CC"), ("R", "MLO"), ("L", "CC"), ("L", "MLO"))
RARE = "D"  #: the density that one patient in a hundred has
NAMES = uuid.UUID("0a0c6f57-8d2b-5f8e-9d6e-2a6a3c1f7b10")

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Studies of four images; labels and dates are drawn by `seed`, the rare density by patient."""

    vectors: Vectors
    seed: int
    first: int = 0  #: number of the first study, so that several galleries do not overlap

    def __len__(self) -> int:
        return len(self.vectors) // IMAGES

    def uid(self, study: int) -> str:
        return _uid(f"study/{self.first + study}")

    def uids(self) -> list[str]:
        return [self.uid(study) for study in range(len(self))]


def write(store: Store, live: Published, gallery: Gallery, *, due: bool = True) -> None:
    """Write studies, images and encodings to Postgres, and, if `due`, ledger rows for the projector."""
    with store.engine.begin() as connection:
        first_study, first_image = (
            connection.execute(sa.text(f"SELECT coalesce(max(id), 0) + 1 FROM {table}")).scalar_one()  # noqa: S608
            for table in ("study", "image")
        )
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)  # noqa: S101 - the URL names the psycopg driver
        _copy(raw, "study (id, uid, patient_key, study_date)", _studies(gallery, first_study))
        _copy(
            raw,
            "image (id, sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, laterality, view, "
            "body_part, manufacturer, presentation_intent, rows, columns, frames, digest, path, birads, density, "
            "status, settled_at)",
            _images(gallery, first_study, first_image),
        )
        _copy(
            raw,
            "encoding (image_id, frame, model_id, runtime, embedding)",
            (
                (first_image + n, 1, live.model_id, "benchmark", encodings.pack(vector))
                for n, vector in enumerate(gallery.vectors[: len(gallery) * IMAGES])
            ),
        )
        _copy(
            raw,
            "ledger (generation_id, point_id, image_id, frame, op, revision)",
            (
                (live.generation_id, point_id(_sop(gallery, n), 1), first_image + n, 1, "upsert", 1)
                for n in range(len(gallery) * IMAGES if due else 0)
            ),
        )
        for table in ("study", "image"):
            connection.execute(
                sa.text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))")  # noqa: S608
            )
    with store.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text("ANALYZE study, image, encoding, ledger"))


def _copy(connection: psycopg.Connection, table: str, rows: Iterator[Sequence[object]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _studies(gallery: Gallery, first_id: int) -> Iterator[Sequence[object]]:
    rng = np.random.default_rng([gallery.seed, 1])
    days = rng.integers(0, 2500, len(gallery))
    for n in range(len(gallery)):
        patient = (gallery.first + n) // STUDIES
        key = uuid.uuid5(NAMES, f"patient/{patient}").bytes
        yield first_id + n, gallery.uid(n), key, dt.date(2018, 1, 1) + dt.timedelta(days=int(days[n]))


def _images(gallery: Gallery, first_study: int, first_id: int) -> Iterator[Sequence[object]]:
    rng = np.random.default_rng([gallery.seed, 2])
    birads = rng.choice(7, len(gallery), p=[0.05, 0.35, 0.4, 0.1, 0.06, 0.03, 0.01])
    patients = len(gallery) // STUDIES + 1
    density = np.where(rng.random(patients) < 0.01, RARE, rng.choice(list("ABC"), patients))
    now = dt.datetime.now(dt.UTC)
    for n in range(len(gallery) * IMAGES):
        study, (side, view) = n // IMAGES, VIEWS[n % IMAGES]
        yield (
            first_id + n,
            _sop(gallery, n),
            first_study + study,
            _uid(f"series/{gallery.first + study}"),
            "1.2.840.10008.5.1.4.1.1.1.2",
            "1.2.840.10008.1.2.1",
            "MG",
            side,
            view,
            "BREAST",
            "benchmark",
            "FOR PRESENTATION",
            2294,
            1914,
            1,
            b"",
            b"",
            int(birads[study]),
            str(density[study // STUDIES]),
            "encoded",
            now,
        )


def _sop(gallery: Gallery, image: int) -> str:
    return _uid(f"image/{gallery.first * IMAGES + image}")


def _uid(name: str) -> str:
    return f"2.25.{uuid.uuid5(NAMES, name).int}"
