"""Reads for people and viewers: studies, their images, and why an image cannot be found."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Filters of a list of studies; an empty one does not filter.

    Modality, density, BI-RADS and status must match one and the same image.
    """

    uids: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    density: tuple[str, ...] = ()
    birads: tuple[int, ...] = ()
    status: tuple[str, ...] = ()
    date_from: date | None = None
    date_to: date | None = None


_STUDIES = sa.text(
    """
    WITH page AS (
        SELECT s.id, s.uid, s.study_date, s.created_at FROM study s
        WHERE s.id < :before
          AND (cardinality(CAST(:uids AS text[])) = 0 OR s.uid = ANY(CAST(:uids AS text[])))
          AND (CAST(:date_from AS date) IS NULL OR s.study_date >= :date_from)
          AND (CAST(:date_to AS date) IS NULL OR s.study_date <= :date_to)
          AND EXISTS (
            SELECT 1 FROM image i WHERE i.study_id = s.id AND i.status <> 'deleted'
              AND (cardinality(CAST(:modality AS text[])) = 0 OR i.modality = ANY(CAST(:modality AS text[])))
              AND (cardinality(CAST(:density AS text[])) = 0 OR i.density = ANY(CAST(:density AS text[])))
              AND (cardinality(CAST(:birads AS int[])) = 0 OR i.birads = ANY(CAST(:birads AS int[])))
              AND (cardinality(CAST(:status AS text[])) = 0 OR i.status = ANY(CAST(:status AS text[]))))
        ORDER BY s.id DESC LIMIT :limit
    ), counted AS (
        SELECT study_id, sum(n) AS images, jsonb_object_agg(status, n) AS statuses
        FROM (SELECT i.study_id, i.status, count(*) AS n FROM image i
              WHERE i.study_id IN (SELECT id FROM page) AND i.status <> 'deleted' GROUP BY 1, 2) AS each
        GROUP BY 1
    )
    SELECT page.id, page.uid, page.study_date, page.created_at, counted.images, counted.statuses,
           ARRAY(SELECT DISTINCT i.modality FROM image i WHERE i.study_id = page.id AND i.status <> 'deleted'
                 ORDER BY 1) AS modalities,
           (SELECT count(DISTINCT i.id) FROM image i JOIN ledger l ON l.image_id = i.id
             WHERE i.study_id = page.id AND l.generation_id = (SELECT generation_id FROM live)
               AND l.applied_at IS NOT NULL AND l.op = 'upsert') AS searchable
    FROM page JOIN counted ON counted.study_id = page.id ORDER BY page.id DESC
    """
)


def studies(connection: sa.Connection, wanted: Wanted, before: int, limit: int) -> Sequence[sa.Row[Any]]:
    """A page of studies, the latest taken in first, with ids below `before`."""
    fields = {name: getattr(wanted, name) for name in wanted.__dataclass_fields__}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return connection.execute(_STUDIES, values | {"before": before, "limit": limit}).all()


_STUDY = sa.text("SELECT id, uid, study_date, created_at FROM study WHERE uid = :uid")
_IMAGES = sa.text(
    """
    SELECT i.id, i.sop_uid, i.series_uid, i.sop_class, i.transfer_syntax, i.modality, i.laterality, i.view,
           i.view_modifiers, i.body_part, i.rows, i.columns, i.frames, i.birads, i.density, i.pathology, i.labels,
           i.status, i.gate, i.reason, i.score, i.distance, i.calibration_id,
           EXISTS (SELECT 1 FROM thumbnail t WHERE t.image_id = i.id) AS pictured,
           (SELECT array_agg(DISTINCT l.state) FROM ledger l WHERE l.image_id = i.id AND l.op = 'upsert'
             AND l.generation_id = (SELECT generation_id FROM live)) AS index_states
    FROM image i WHERE i.study_id = :study AND i.status <> 'deleted'
    ORDER BY i.series_uid, i.view, i.laterality, i.sop_uid
    """
)


def study(connection: sa.Connection, uid: str) -> tuple[sa.Row[Any], Sequence[sa.Row[Any]]] | None:
    """A study and its images; None where there is none, or all of it was erased."""
    row = connection.execute(_STUDY, {"uid": uid}).one_or_none()
    images = [] if row is None else connection.execute(_IMAGES, {"study": row.id}).all()
    return None if row is None or not images else (row, images)


_PICTURE = sa.text(
    """
    SELECT i.status, i.reason, i.path, i.digest, i.rows, i.columns, i.frames, t.jpeg
    FROM image i LEFT JOIN thumbnail t ON t.image_id = i.id
    WHERE i.sop_uid = :uid AND i.status <> 'deleted'
    """
)


def picture(connection: sa.Connection, sop_uid: str) -> sa.Row[Any] | None:
    """An image's state, thumbnail and file; None where there is no such image, or it was erased."""
    return connection.execute(_PICTURE, {"uid": sop_uid}).one_or_none()


@dataclass(frozen=True, slots=True)
class Progress:
    """How many images of an operation there are, and how many of them are still in progress."""

    images: int
    undecided: int
    unindexed: int
    awaits_model: bool  #: no generation is open: undecided images wait for a model, not for their turn


_PROGRESS = sa.text(
    """
    SELECT asked.id, count(i.id) AS images, count(*) FILTER (WHERE i.status IN ('received', 'encoding')) AS undecided,
           count(*) FILTER (WHERE EXISTS (SELECT 1 FROM ledger l WHERE l.image_id = i.id AND l.state = 'pending'
             AND l.generation_id IN (SELECT generation_id FROM live))) AS unindexed,
           NOT EXISTS (SELECT 1 FROM generation WHERE state = 'open') AS awaits_model
    FROM unnest(CAST(:operations AS uuid[])) AS asked(id) LEFT JOIN LATERAL (
        SELECT image.id, image.status FROM image WHERE image.id IN (
            SELECT f.image_id FROM file f WHERE f.operation_id = asked.id AND f.outcome = 'taken')
    ) AS i ON true
    GROUP BY asked.id
    """
)


def progress(db: Any, operations: Sequence[uuid.UUID]) -> dict[uuid.UUID, Progress]:  # noqa: ANN401 - a session or a connection
    """The progress of each operation, over the images whose files it was the last to register.

    These are the files of `operations.outcomes`: one that a later scan finds changed counts for that scan from then on.
    """
    rows = db.execute(_PROGRESS, {"operations": list(operations)})
    return {row.id: Progress(row.images, row.undecided, row.unindexed, row.awaits_model) for row in rows}
