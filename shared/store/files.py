"""Files that scans have met: what is unchanged is skipped, and what was not taken in keeps its reason."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import PASSING


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A file as the folder shows it."""

    path: bytes
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of a file."""

    seen: Seen
    outcome: str
    digest: bytes | None = None
    image_id: int | None = None
    gate: str | None = None
    reason: str | None = None
    labels_digest: bytes | None = None


_KNOWN = sa.text(
    """
    SELECT path, size, mtime_ns, labels_digest FROM file
    WHERE path_digest = ANY(CAST(:digests AS bytea[]))
      AND NOT (outcome = 'failed' AND reason = ANY(CAST(:passing AS text[]))
               AND seen_at <= clock_timestamp() - make_interval(secs => :rest))
    """
)


def unchanged(db: Session, seen: Sequence[Seen], labels: Sequence[bytes | None], *, rest_s: float = 0.0) -> set[bytes]:
    """The paths whose size, time and labels are as they were when they were last looked at.

    Of those that could not be read then, and may be now, only the ones that were tried less than `rest_s` ago.
    """
    digests = [sha256(s.path).digest() for s in seen]
    rows = db.execute(_KNOWN, {"digests": digests, "passing": sorted(PASSING), "rest": rest_s})
    known = {row.path: (row.size, row.mtime_ns, row.labels_digest) for row in rows}
    return {s.path for s, label in zip(seen, labels, strict=True) if known.get(s.path) == (s.size, s.mtime_ns, label)}


def known(db: Session, paths: Sequence[bytes]) -> set[bytes]:
    """Those of the paths that a row names."""
    rows = db.execute(
        sa.text("SELECT path FROM file WHERE path_digest = ANY(CAST(:digests AS bytea[]))"),
        {"digests": [sha256(path).digest() for path in paths]},
    )
    return {bytes(row.path) for row in rows}


_LOOK_AGAIN = sa.text(
    "UPDATE file SET mtime_ns = -1 WHERE id IN (SELECT id FROM file "
    "WHERE image_id = ANY(CAST(:images AS bigint[])) ORDER BY path_digest FOR UPDATE)"
)


def look_again(db: Session, images: Sequence[int]) -> None:
    """The next scan reads every file of these images, as if it had changed."""
    if images:
        db.execute(_LOOK_AGAIN, {"images": list(images)})


def move(db: Session, old: bytes, new: bytes) -> None:
    """What stood below one folder stands below another."""
    for table in ("file", "image"):
        statement = (
            f"UPDATE {table} SET path = CAST(:new AS bytea) || substring(path FROM length(CAST(:old AS bytea)) + 1) "  # noqa: S608 - a constant
            "WHERE substring(path FOR length(CAST(:old AS bytea)) + 1) = CAST(:old AS bytea) || CAST(:slash AS bytea)"
        )
        db.execute(sa.text(statement), {"old": old, "new": new, "slash": b"/"})


_RECORD = sa.text(
    """
    INSERT INTO file (path, size, mtime_ns, digest, image_id, outcome, gate, reason, labels_digest, operation_id)
    SELECT u.*, CAST(:operation AS uuid)
    FROM unnest(CAST(:paths AS bytea[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]),
                CAST(:digests AS bytea[]), CAST(:images AS bigint[]), CAST(:outcomes AS text[]),
                CAST(:gates AS text[]), CAST(:reasons AS text[]), CAST(:labels AS bytea[])) AS u
    ON CONFLICT (path_digest) DO UPDATE SET
        size = excluded.size, mtime_ns = excluded.mtime_ns, digest = excluded.digest, image_id = excluded.image_id,
        outcome = excluded.outcome, gate = excluded.gate, reason = excluded.reason,
        labels_digest = excluded.labels_digest, operation_id = excluded.operation_id, seen_at = clock_timestamp()
    """
)


def record(db: Session, records: Sequence[Record], operation_id: uuid.UUID | None) -> None:
    """Each path has this one row."""
    ordered = sorted({r.seen.path: r for r in records}.values(), key=lambda r: sha256(r.seen.path).digest())
    if not ordered:
        return
    db.execute(
        _RECORD,
        {
            "operation": operation_id,
            "paths": [r.seen.path for r in ordered],
            "sizes": [r.seen.size for r in ordered],
            "mtimes": [r.seen.mtime_ns for r in ordered],
            "digests": [r.digest for r in ordered],
            "images": [r.image_id for r in ordered],
            "outcomes": [r.outcome for r in ordered],
            "gates": [r.gate for r in ordered],
            "reasons": [r.reason for r in ordered],
            "labels": [r.labels_digest for r in ordered],
        },
    )


def page(db: Session, operation_id: uuid.UUID, after: int, limit: int, only_problems: bool) -> Sequence[sa.Row]:  # type: ignore[type-arg]
    """Files of an operation by row id, with the fate of their image: (id, path, outcome, gate, reason)."""
    problems = (
        "AND (CASE WHEN f.outcome = 'taken' THEN i.status ELSE f.outcome END) IN "
        "('quarantined', 'failed', 'empty', 'kept')"
        if only_problems
        else ""
    )
    return db.execute(
        sa.text(
            "SELECT f.id, f.path, CASE WHEN f.outcome = 'taken' THEN i.status ELSE f.outcome END AS outcome, "  # noqa: S608 - the only inserted part is the constant above
            "CASE WHEN f.outcome = 'taken' THEN i.gate ELSE f.gate END AS gate, "
            "CASE WHEN f.outcome = 'taken' THEN i.reason ELSE f.reason END AS reason "
            "FROM file f LEFT JOIN image i ON i.id = f.image_id "
            f"WHERE f.operation_id = :operation AND f.id > :after {problems} ORDER BY f.id LIMIT :limit"
        ),
        {"operation": operation_id, "after": after, "limit": limit},
    ).all()
