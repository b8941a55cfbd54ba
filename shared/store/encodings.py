"""Embeddings, codes and scores of frames: float16, one narrow row each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from shared.types import Embeddings


@dataclass(frozen=True, slots=True)
class Row:
    image_id: int
    frame: int
    model_id: int
    embedding: NDArray[np.float32]
    code: bytes | None
    ood: float | None
    runtime: str


def pack(vector: NDArray[np.float32]) -> bytes:
    return vector.astype("<f2").tobytes()


def unpack(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f2").astype(np.float32)


def stack(rows: Sequence[bytes]) -> Embeddings:
    """(n, dim) from packed rows of one dimension; (0, 0) from none."""
    return np.frombuffer(b"".join(rows), "<f2").reshape(len(rows), -1 if rows else 0).astype(np.float32)


def sample(db: Session, model_id: int, most: int) -> Embeddings:
    """(n, dim): up to `most` embeddings of searchable images, the same ones while nothing changes."""
    rows = db.execute(
        sa.text(
            "SELECT e.embedding FROM encoding e JOIN image i ON i.id = e.image_id AND i.status = 'encoded' "
            "WHERE e.model_id = :model ORDER BY sha256(CAST(e.image_id AS text)::bytea), e.frame LIMIT :most"
        ),
        {"model": model_id, "most": most},
    )
    return stack(rows.scalars().all())


_SAVE = sa.text(
    """
    INSERT INTO encoding (image_id, frame, model_id, embedding, code, ood, runtime)
    SELECT * FROM unnest(CAST(:images AS bigint[]), CAST(:frames AS int[]), CAST(:models AS bigint[]),
                         CAST(:embeddings AS bytea[]), CAST(:codes AS bytea[]), CAST(:oods AS real[]),
                         CAST(:runtimes AS text[]))
    ON CONFLICT (image_id, frame, model_id) DO UPDATE SET
        embedding = excluded.embedding, code = excluded.code, ood = excluded.ood, runtime = excluded.runtime
    """
)

_DROP_OTHER_FRAMES = sa.text(
    """
    DELETE FROM encoding USING unnest(CAST(:images AS bigint[])) AS u(image_id)
    WHERE encoding.image_id = u.image_id AND encoding.model_id = :model AND NOT EXISTS (
        SELECT 1 FROM unnest(CAST(:kept_images AS bigint[]), CAST(:kept_frames AS int[])) AS k(image_id, frame)
        WHERE k.image_id = encoding.image_id AND k.frame = encoding.frame)
    RETURNING encoding.image_id, encoding.frame
    """
)


def save(db: Session, rows: Sequence[Row]) -> None:
    """Insert or replace the encodings of these frames."""
    if not rows:
        return
    db.execute(
        _SAVE,
        {
            "images": [r.image_id for r in rows],
            "frames": [r.frame for r in rows],
            "models": [r.model_id for r in rows],
            "embeddings": [pack(r.embedding) for r in rows],
            "codes": [r.code for r in rows],
            "oods": [r.ood for r in rows],
            "runtimes": [r.runtime for r in rows],
        },
    )


def drop_other_frames(
    db: Session, model_id: int, images: Sequence[int], kept: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Delete the encodings of these images' frames that are not in `kept`; returns (image, frame) of each."""
    rows = db.execute(
        _DROP_OTHER_FRAMES,
        {
            "images": list(images),
            "model": model_id,
            "kept_images": [image for image, _ in kept],
            "kept_frames": [frame for _, frame in kept],
        },
    )
    return [tuple(row) for row in rows]


def stand(db: Session, model_id: int, image_id: int) -> bool:
    """Whether this model has encoded this image."""
    statement = sa.text("SELECT EXISTS (SELECT 1 FROM encoding WHERE image_id = :image AND model_id = :model)")
    return bool(db.execute(statement, {"image": image_id, "model": model_id}).scalar_one())


def forget(db: Session, images: Sequence[int]) -> None:
    """Delete all encodings and thumbnails of these images."""
    if images:
        for table in ("encoding", "thumbnail"):
            statement = f"DELETE FROM {table} WHERE image_id = ANY(CAST(:images AS bigint[]))"
            db.execute(sa.text(statement), {"images": list(images)})


_FORGET_CLOSED = sa.text(
    "DELETE FROM encoding WHERE image_id = ANY(CAST(:images AS bigint[])) "
    "AND model_id NOT IN (SELECT model_id FROM generation WHERE state = 'open')"
)


def forget_closed(db: Session, images: Sequence[int]) -> None:
    """Delete the encodings of these images by models without an open generation."""
    db.execute(_FORGET_CLOSED, {"images": list(images)})


_THUMBNAILS = sa.text(
    """
    INSERT INTO thumbnail (image_id, jpeg)
    SELECT * FROM unnest(CAST(:images AS bigint[]), CAST(:jpegs AS bytea[]))
    ON CONFLICT (image_id) DO UPDATE SET jpeg = excluded.jpeg
    """
)


def save_thumbnails(db: Session, thumbnails: Sequence[tuple[int, bytes]]) -> None:
    if thumbnails:
        db.execute(_THUMBNAILS, {"images": [i for i, _ in thumbnails], "jpegs": [j for _, j in thumbnails]})
