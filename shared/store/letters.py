"""Dead letters: work of any kind that was given up, with the reason; each can be made due again.

image     the image could not be encoded
encoding  a model could not encode the image in catch-up
point     the index refused the point
file      the file could not be read, or is no study object
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store import catchup, files, images, ledger
from shared.store.tables import READ_AGAIN

Kind = Literal["image", "encoding", "point", "file"]

_LETTERS = f"""
    SELECT 'image' AS kind, 'image-' || i.id AS letter, coalesce(i.reason, i.last_error, '') AS reason,
           i.failures AS attempts, coalesce(i.settled_at, i.received_at) AS since, i.sop_uid, s.uid AS study_uid,
           i.operation_id
    FROM image i JOIN study s ON s.id = i.study_id WHERE i.status = 'failed'
    UNION ALL
    SELECT 'encoding', 'encoding-' || b.model_id || '-' || b.image_id, coalesce(b.reason, b.last_error, ''),
           b.failures, i.received_at, i.sop_uid, s.uid, NULL
    FROM catch_up b JOIN image i ON i.id = b.image_id JOIN study s ON s.id = i.study_id WHERE b.state = 'failed'
    UNION ALL
    SELECT 'point', 'point-' || l.generation_id || '-' || l.image_id || '-' || l.frame, coalesce(l.last_error, ''),
           l.attempt, l.queued_at, i.sop_uid, s.uid, NULL
    FROM ledger l JOIN image i ON i.id = l.image_id JOIN study s ON s.id = i.study_id WHERE l.state = 'failed'
    UNION ALL
    SELECT 'file', 'file-' || f.id, coalesce(f.reason, ''), 1, f.seen_at, NULL, NULL, f.operation_id
    FROM file f WHERE f.outcome = 'failed' AND f.mtime_ns <> {READ_AGAIN}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Filters of the list; None does not filter."""

    kind: Kind | None = None
    reason: str | None = None


_PAGE = sa.text(
    f"""
    SELECT * FROM ({_LETTERS}) AS letters
    WHERE (CAST(:kind AS text) IS NULL OR kind = :kind) AND (CAST(:reason AS text) IS NULL OR reason = :reason)
      AND (CAST(:since AS timestamptz) IS NULL OR (since, letter) < (:since, :letter))
    ORDER BY since DESC, letter DESC LIMIT :limit
    """
)


def page(db: Session, wanted: Wanted, after: tuple[datetime, str] | None, limit: int) -> Sequence[sa.Row[Any]]:
    """(kind, letter, reason, attempts, since, sop_uid, study_uid, operation_id), the latest first."""
    since, letter = after or (None, None)
    values = {"kind": wanted.kind, "reason": wanted.reason, "since": since, "letter": letter, "limit": limit}
    return db.execute(_PAGE, values).all()


def counts(connection: sa.Connection) -> list[tuple[str, str, int]]:
    """(kind, reason, how many)."""
    statement = f"SELECT kind, reason, count(*) FROM ({_LETTERS}) AS letters GROUP BY 1, 2 ORDER BY 1, 2"
    return [tuple(row) for row in connection.execute(sa.text(statement))]


#: the statement that makes letters of each kind due again; a letter's name is made of the ids of its row
_DUE: dict[str, str] = {
    "image": f"""
        UPDATE image SET {images.AGAIN}
        WHERE {images.FAILED.format("('image-' || id) = ANY(CAST(:letters AS text[]))")} RETURNING NULL::uuid
    """,
    "encoding": f"""
        UPDATE catch_up SET {catchup.AGAIN} WHERE (model_id, image_id) IN (
            SELECT model_id, image_id FROM catch_up
            WHERE state = 'failed' AND ('encoding-' || model_id || '-' || image_id) = ANY(CAST(:letters AS text[]))
            FOR UPDATE SKIP LOCKED  -- as `catchup.retry`: whoever has locked such a row makes it due or deletes it
        ) RETURNING NULL::uuid
    """,
    "point": f"""
        UPDATE ledger SET {ledger.AGAIN} WHERE state = 'failed'
          AND ('point-' || generation_id || '-' || image_id || '-' || frame) = ANY(CAST(:letters AS text[]))
        RETURNING NULL::uuid
    """,
    "file": f"""
        UPDATE file SET {files.AGAIN}
        WHERE outcome = 'failed' AND mtime_ns <> {READ_AGAIN} AND ('file-' || id) = ANY(CAST(:letters AS text[]))
        RETURNING {files.READER}
    """,
}


def due_again(db: Session, kind: Kind, letters: Sequence[str]) -> list[uuid.UUID | None]:
    """Make these letters due again; returns for each the operation that must scan its file again, or None.

    A sent file is read from the store and needs no scan.
    """
    return list(db.execute(sa.text(_DUE[kind]), {"letters": list(letters)}).scalars())
