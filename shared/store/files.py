"""Files that scans met or that were sent: unchanged ones are skipped, those not taken in keep their reason."""

import os
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import PASSING
from shared.store.tables import FATE, READ_AGAIN, ROOT, SCANNED, SENT
from shared.types import FileOutcome

FARTHEST_NS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A file as the folder shows it."""

    path: bytes
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: bytes, facts: os.stat_result) -> Self:
        """From `stat`, with the mtime limited to the column's range: a file system may report 1601, or beyond 2262."""
        return cls(path=path, size=facts.st_size, mtime_ns=max(-FARTHEST_NS, min(facts.st_mtime_ns, FARTHEST_NS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The outcome of a file."""

    seen: Seen
    outcome: FileOutcome
    digest: bytes | None = None
    image_id: int | None = None
    gate: str | None = None
    reason: str | None = None
    labels_digest: bytes | None = None
    patient_key: bytes | None = None  #: of a stopped file, as are the two UIDs
    study_uid: str | None = None
    sop_uid: str | None = None


_KNOWN = sa.text(
    """
    SELECT path, size, mtime_ns, labels_digest FROM file
    WHERE path_digest = ANY(CAST(:digests AS bytea[]))
      AND NOT (outcome = 'failed' AND reason = ANY(CAST(:passing AS text[]))
               AND seen_at NOT BETWEEN clock_timestamp() - make_interval(secs => :rest) AND clock_timestamp())
    """
)


def unchanged(db: Session, seen: Sequence[Seen], labels: Sequence[bytes | None], *, rest_s: float = 0.0) -> set[bytes]:
    """The paths whose size, mtime and labels are the same as when they were last looked at.

    A file that failed for a transient reason counts as unchanged only until `rest_s` after that attempt, and not if the
    attempt lies in the future, as the clock was set back.
    """
    digests = [sha256(s.path).digest() for s in seen]
    rows = db.execute(_KNOWN, {"digests": digests, "passing": sorted(PASSING), "rest": rest_s})
    known = {row.path: (row.size, row.mtime_ns, row.labels_digest) for row in rows}
    return {s.path for s, label in zip(seen, labels, strict=True) if known.get(s.path) == (s.size, s.mtime_ns, label)}


_REASONS = sa.text("SELECT path, reason FROM file WHERE path_digest = ANY(CAST(:digests AS bytea[]))")


def reasons(db: Session, paths: Sequence[bytes]) -> dict[bytes, str | None]:
    """Why each of these was not taken in, as its row has it."""
    rows = db.execute(_REASONS, {"digests": [sha256(path).digest() for path in paths]})
    return {bytes(row.path): row.reason for row in rows}


_HELD = sa.text(
    "SELECT u.digest FROM unnest(CAST(:digests AS bytea[])) AS u(digest) "
    "WHERE EXISTS (SELECT 1 FROM file f WHERE f.digest = u.digest) "
    "OR EXISTS (SELECT 1 FROM image i WHERE i.digest = u.digest)"
)


def held(db: Session, digests: Collection[bytes]) -> set[bytes]:
    """Those of these digests that the row of a file or an image has, whatever its path."""
    return {bytes(digest) for digest in db.execute(_HELD, {"digests": list(digests)}).scalars()}


def numbers(db: Session, paths: Sequence[bytes]) -> list[int]:
    """The ids of the rows of these paths."""
    statement = sa.text("SELECT id FROM file WHERE path_digest = ANY(CAST(:digests AS bytea[]))")
    return list(db.execute(statement, {"digests": [sha256(path).digest() for path in paths]}).scalars())


class Left(NamedTuple):
    """A sent file that was erased and is still to be unlinked."""

    digest: bytes
    root: bytes  #: of the store that received it; empty: only the present store


_REMOVALS = sa.text(
    "SELECT digest, root FROM removal WHERE (digest, root) > (:digest, :root) ORDER BY digest, root LIMIT :limit"
)


def removals(db: Session, after: Left, limit: int) -> list[Left]:
    """The next files that are to be unlinked."""
    rows = db.execute(_REMOVALS, {"digest": after.digest, "root": after.root, "limit": limit})
    return [Left(bytes(row.digest), bytes(row.root)) for row in rows]


def leaving(db: Session, digests: Sequence[bytes]) -> set[bytes]:
    """Those of these digests whose files are to be unlinked."""
    statement = sa.text("SELECT digest FROM removal WHERE digest = ANY(CAST(:digests AS bytea[]))")
    return {bytes(digest) for digest in db.execute(statement, {"digests": list(digests)}).scalars()}


_REMOVED = sa.text(
    "DELETE FROM removal r USING unnest(CAST(:digests AS bytea[]), CAST(:roots AS bytea[])) AS u(digest, root) "
    "WHERE r.digest = u.digest AND r.root = u.root"
)


def removed(db: Session, done: Collection[Left]) -> None:
    """Delete the rows of these removals, which are done."""
    db.execute(_REMOVED, {"digests": [one.digest for one in done], "roots": [one.root for one in done]})


_ROOT = sa.text(f"SELECT {ROOT} FROM file WHERE {SENT} AND {ROOT} > :after ORDER BY {ROOT} LIMIT 1")
_SOME = sa.text(f"SELECT digest FROM file WHERE {SENT} AND {ROOT} = :root LIMIT :limit")


def roots(db: Session) -> list[bytes]:
    """The store folders that rows of sent files name, by one index look-up for each instead of reading the rows."""
    found: list[bytes] = []
    while (root := db.execute(_ROOT, {"after": found[-1] if found else b""}).scalar()) is not None:
        found.append(bytes(root))
    return found


_SENT_TO = sa.text(f"SELECT EXISTS (SELECT 1 FROM file WHERE {SENT} AND {ROOT} = :root AND NOT {SCANNED})")


def sent_to(db: Session) -> list[bytes]:
    """Those of the `roots` into which a file was sent, without the store of another home that a scan has met."""
    return [root for root in roots(db) if db.execute(_SENT_TO, {"root": root}).scalar_one()]


def some(db: Session, root: bytes, limit: int) -> list[bytes]:
    """Up to `limit` digests of sent files whose rows name this store folder."""
    return list(db.execute(_SOME, {"root": root, "limit": limit}).scalars())


#: SET clause, and condition: the file is to be read again, as if it had changed.
AGAIN = f"mtime_ns = {READ_AGAIN}"
#: The operation that reads such a file again; NULL for a sent file, which is read from the store.
READER = f"CASE WHEN {SENT} THEN NULL ELSE operation_id END"


def reread_images(db: Session, images: Sequence[int]) -> None:
    """Every file of these images is to be read again."""
    if images:
        ordered = "SELECT id FROM file WHERE image_id = ANY(CAST(:images AS bigint[])) ORDER BY path_digest FOR UPDATE"
        db.execute(sa.text(f"UPDATE file SET {AGAIN} WHERE id IN ({ordered})"), {"images": list(images)})


def reread_not_taken(db: Session, operation_id: uuid.UUID) -> None:
    """Files of this operation that failed or were stopped, and belong to no image, are to be read again."""
    where = "operation_id = :operation AND outcome IN ('failed', 'quarantined') AND image_id IS NULL"
    db.execute(sa.text(f"UPDATE file SET {AGAIN} WHERE {where}"), {"operation": operation_id})


def reread_erased(db: Session) -> None:
    """Files that were refused because they had been erased are to be read again."""
    db.execute(sa.text(f"UPDATE file SET {AGAIN} WHERE reason = 'erased'"))


_REREAD_STOPPED = sa.text(
    f"""
    UPDATE file SET {AGAIN} WHERE outcome = 'quarantined' AND (CAST(:id AS bigint) IS NULL OR id = :id)
      AND (CAST(:gate AS text) IS NULL OR gate = :gate) AND (CAST(:reason AS text) IS NULL OR reason = :reason)
    RETURNING {READER}
    """
)


def reread_stopped(
    db: Session, *, gate: str | None = None, reason: str | None = None, file_id: int | None = None
) -> list[uuid.UUID | None]:
    """Stopped files of this gate and reason, or with this id, are to be read again; returns the `READER` of each."""
    return list(db.execute(_REREAD_STOPPED, {"gate": gate, "reason": reason, "id": file_id}).scalars())


def reread(db: Session, ids: Sequence[int]) -> set[uuid.UUID]:
    """These files are to be read again; returns the operations that met them."""
    statement = f"UPDATE file SET {AGAIN} WHERE id = ANY(CAST(:ids AS bigint[])) RETURNING operation_id"
    return set(db.execute(sa.text(statement), {"ids": list(ids)}).scalars()) - {None}


def mark_missing(db: Session, ids: Sequence[int]) -> None:
    """Mark these files as unreadable; a file that comes back is read again."""
    failed = "outcome = 'failed', reason = 'unreadable-file'"
    statement = f"UPDATE file SET {AGAIN}, {failed} WHERE id = ANY(CAST(:ids AS bigint[]))"
    db.execute(sa.text(statement), {"ids": list(ids)})


def move(db: Session, old: bytes, new: bytes) -> None:
    """Change the paths of sent files from the store `old` to `new`; where both have a row, that of `new` stays."""
    there = f"{SENT} AND {ROOT} = CAST(:old AS bytea)"
    place = "CAST(:new AS bytea) || substring({0}path FROM length(CAST(:old AS bytea)) + 1)"
    double = (
        f"DELETE FROM file WHERE {there} AND EXISTS (SELECT 1 FROM file AS other "
        f"WHERE other.path_digest = sha256({place.format('file.')}))"
    )
    db.execute(sa.text(double), {"old": old, "new": new})
    for table in ("file", "image"):
        statement = f"UPDATE {table} SET path = {place.format('')} WHERE {there}"
        db.execute(sa.text(statement), {"old": old, "new": new})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A sent file as its row has it."""

    path: bytes
    size: int
    digest: bytes
    id: int = 0
    image_id: int | None = None
    patient_key: bytes | None = None
    study_uid: str | None = None
    sop_uid: str | None = None


_TO_READ = sa.text(
    f"SELECT id, path, size, digest, image_id, patient_key, study_uid, sop_uid FROM file WHERE {AGAIN} "
    "AND (outcome = 'quarantined' OR (outcome = 'failed' AND (image_id IS NULL OR patient_key IS NOT NULL))) "
    f"AND {SENT} AND id > :after ORDER BY id LIMIT :limit"
)


def again(db: Session, after: int, limit: int) -> list[Sent]:
    """The next sent files, by id, that were stopped or failed and are to be read again."""
    rows = db.execute(_TO_READ, {"after": after, "limit": limit})
    return [Sent(**row._mapping) for row in rows]  # noqa: SLF001 - public despite its name


#: Arrays, and not a row of parameters for each file: for 10,000 files 0.3 s instead of 2.0 s.
_RECORD = sa.text(
    """
    INSERT INTO file (path, size, mtime_ns, digest, image_id, outcome, gate, reason, labels_digest, patient_key,
                      study_uid, sop_uid, operation_id)
    SELECT u.*, CAST(:operation AS uuid)
    FROM unnest(CAST(:paths AS bytea[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]),
                CAST(:digests AS bytea[]), CAST(:images AS bigint[]), CAST(:outcomes AS text[]),
                CAST(:gates AS text[]), CAST(:reasons AS text[]), CAST(:labels AS bytea[]),
                CAST(:patients AS bytea[]), CAST(:studies AS text[]),
                CAST(:sops AS text[])) AS u
    ON CONFLICT (path_digest) DO UPDATE SET
        size = excluded.size, mtime_ns = excluded.mtime_ns, digest = excluded.digest, image_id = excluded.image_id,
        outcome = excluded.outcome, gate = excluded.gate, reason = excluded.reason,
        labels_digest = excluded.labels_digest, patient_key = excluded.patient_key, study_uid = excluded.study_uid,
        sop_uid = excluded.sop_uid,
        operation_id = excluded.operation_id, seen_at = clock_timestamp()
    """
)


def record(db: Session, records: Sequence[Record], operation_id: uuid.UUID | None) -> None:
    """Insert or replace the row of each path."""
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
            "patients": [r.patient_key for r in ordered],
            "studies": [r.study_uid for r in ordered],
            "sops": [r.sop_uid for r in ordered],
        },
    )


def page(db: Session, operation_id: uuid.UUID, after: int, limit: int, only_problems: bool) -> Sequence[sa.Row]:  # type: ignore[type-arg]
    """Files of an operation by row id, with the outcome of their image: (id, path, outcome, gate, reason)."""
    problems = "WHERE outcome IN ('quarantined', 'failed', 'empty', 'kept')" if only_problems else ""
    return db.execute(
        sa.text(
            f"SELECT * FROM (SELECT f.id, f.path, {FATE} FROM file f LEFT JOIN image i ON i.id = f.image_id "
            f"WHERE f.operation_id = :operation AND f.id > :after) AS met {problems} ORDER BY id LIMIT :limit"
        ),
        {"operation": operation_id, "after": after, "limit": limit},
    ).all()
