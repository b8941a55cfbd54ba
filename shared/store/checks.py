"""Invariants of the rows, each with a query that finds violations and a function that repairs them.

Each query is one statement, so it sees one snapshot. It returns internal ids: no UID, no name, no path.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store import catchup, generations, ledger
from shared.store.images import AGAIN
from shared.store.session import enqueue
from shared.store.tables import INDEXABLE, READ_AGAIN, SCANNED, SENT
from shared.types import Job

#: A lease that expired longer ago than this was noticed by neither a worker nor the sweep.
SILENT_S = 60.0
#: Condition: a lease or a rest that ends later than Similis ever sets one: by a wrong clock, which was set back since.
AHEAD = "greatest(lease_until, not_before) > clock_timestamp() + interval '32 days'"
RESTS_AHEAD = "state = 'pending' AND not_before > clock_timestamp() + interval '32 days'"  # the same of the ledger
#: Condition: nobody holds the row, or nobody would claim it.
FREE_OR_AHEAD = f"(lease_until < clock_timestamp() OR {AHEAD})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One invariant: `find` selects the ids that violate it, `mend` repairs them or makes the repair due."""

    kind: str
    find: str
    mend: Callable[[Session, list[int]], None]

    def found(self, db: Session) -> list[int]:
        return list(db.execute(sa.text(self.find)).scalars())


def _run(statement: str, *jobs: Job) -> Callable[[Session, list[int]], None]:
    def mend(db: Session, ids: list[int]) -> None:
        db.execute(sa.text(statement), {"ids": ids})
        for job in jobs:
            enqueue(db, job)

    return mend


def encode_again(db: Session, images: Sequence[int]) -> None:
    """These encoded images are due again under a new revision, which supersedes what is stored of the previous one."""
    db.execute(
        sa.text(
            f"UPDATE image SET {AGAIN}, revision = revision + 1 "
            "WHERE id = ANY(CAST(:ids AS bigint[])) AND status = 'encoded'"
        ),
        {"ids": list(images)},
    )
    enqueue(db, Job.ENCODE)


def _post_again(db: Session, images: list[int]) -> None:
    for model in {one.model_id for one in generations.opened(db)}:
        ledger.post(db, model, ledger.stored(db, model, images))
    enqueue(db, Job.PROJECT)


def _withdraw(db: Session, images: list[int]) -> None:
    ledger.withdraw(db, images)
    enqueue(db, Job.PROJECT)


#: The checks whose ids are those of images.
IMAGES = (
    Check(
        kind="encoding-missing",
        find="""
        SELECT i.id FROM image i, live v JOIN generation g ON g.id = v.generation_id
        WHERE i.status = 'encoded' AND i.id <> ALL(g.accepted)
          AND NOT EXISTS (SELECT 1 FROM encoding e WHERE e.image_id = i.id AND e.model_id = g.model_id)
          AND NOT EXISTS (SELECT 1 FROM catch_up b WHERE b.image_id = i.id AND b.model_id = g.model_id)
        ORDER BY 1
        """,
        mend=encode_again,
    ),
    Check(  # the embedding has another length than the model's vectors
        kind="encoding-invalid",
        find="""
        SELECT DISTINCT e.image_id FROM encoding e JOIN model m ON m.id = e.model_id JOIN image i ON i.id = e.image_id
        WHERE i.status = 'encoded' AND octet_length(e.embedding) <> 2 * CAST(m.card ->> 'dim' AS int)
          AND m.id IN (SELECT model_id FROM generation WHERE state = 'open') ORDER BY 1
        """,
        mend=encode_again,
    ),
    Check(  # an encoding on which its model has to catch up is of earlier bytes
        kind="ledger-missing",
        find="""
        SELECT DISTINCT i.id FROM image i JOIN encoding e ON e.image_id = i.id
        JOIN generation g ON g.model_id = e.model_id AND g.state = 'open' AND g.filled_at IS NOT NULL
        WHERE i.status = 'encoded' AND NOT EXISTS (
            SELECT 1 FROM ledger l
            WHERE l.generation_id = g.id AND l.image_id = i.id AND l.frame = e.frame AND l.op = 'upsert')
          AND NOT EXISTS (SELECT 1 FROM catch_up b WHERE b.image_id = i.id AND b.model_id = g.model_id)
        ORDER BY 1
        """,
        mend=_post_again,
    ),
    Check(  # the row is of another revision than the image, and no catch-up row will correct it
        kind="ledger-stale",
        find="""
        SELECT DISTINCT i.id FROM ledger l JOIN image i ON i.id = l.image_id
        JOIN generation g ON g.id = l.generation_id AND g.state = 'open'
        WHERE i.status = 'encoded' AND l.op = 'upsert' AND l.revision <> i.revision
          AND NOT EXISTS (SELECT 1 FROM catch_up b WHERE b.image_id = i.id AND b.model_id = g.model_id)
        ORDER BY 1
        """,
        mend=_run(
            f"UPDATE ledger SET revision = i.revision, {ledger.AGAIN} "
            "FROM image i WHERE ledger.image_id = i.id AND i.id = ANY(CAST(:ids AS bigint[])) "
            "AND ledger.op = 'upsert' AND ledger.revision <> i.revision",
            Job.PROJECT,
        ),
    ),
    Check(
        kind="ledger-orphan",
        find=f"""
        SELECT DISTINCT l.image_id FROM ledger l LEFT JOIN image i ON i.id = l.image_id
        WHERE l.op = 'upsert' AND (i.id IS NULL OR NOT ({INDEXABLE})) ORDER BY 1
        """,
        mend=_withdraw,
    ),
    Check(
        kind="erased-remains",
        find="""
        SELECT i.id FROM image i WHERE i.status = 'deleted' AND (
            EXISTS (SELECT 1 FROM encoding e WHERE e.image_id = i.id)
            OR EXISTS (SELECT 1 FROM thumbnail t WHERE t.image_id = i.id)) ORDER BY 1
        """,
        mend=_run(
            "WITH pictures AS (DELETE FROM thumbnail WHERE image_id = ANY(CAST(:ids AS bigint[]))) "
            "DELETE FROM encoding WHERE image_id = ANY(CAST(:ids AS bigint[]))"
        ),
    ),
    Check(
        kind="lease-expired",
        find=f"""
        SELECT id FROM image WHERE status = 'encoding'
          AND (lease_until IS NULL OR lease_until < clock_timestamp() - interval '{SILENT_S:.0f} seconds')
        UNION SELECT id FROM image WHERE status IN ('received', 'encoding') AND {AHEAD}
        UNION SELECT image_id FROM catch_up WHERE state = 'due'
          AND (lease_until < clock_timestamp() - interval '{SILENT_S:.0f} seconds' OR {AHEAD})
        UNION SELECT image_id FROM ledger WHERE {RESTS_AHEAD} ORDER BY 1
        """,
        mend=_run(
            "WITH late AS (UPDATE catch_up SET failures = failures + CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END, "
            "lease_until = NULL, not_before = NULL "
            f"WHERE image_id = ANY(CAST(:ids AS bigint[])) AND {FREE_OR_AHEAD}), "
            "points AS (UPDATE ledger SET not_before = NULL "
            f"WHERE image_id = ANY(CAST(:ids AS bigint[])) AND {RESTS_AHEAD}) "
            "UPDATE image SET failures = failures + CASE WHEN status = 'encoding' THEN 1 ELSE 0 END, "
            "status = 'received', lease_until = NULL, not_before = NULL "
            "WHERE id = ANY(CAST(:ids AS bigint[])) AND ((status = 'encoding' AND lease_until IS NULL) "
            f"OR (status IN ('received', 'encoding') AND {FREE_OR_AHEAD}))",
            Job.ENCODE,
            Job.CATCH_UP,
            Job.PROJECT,
        ),
    ),
    Check(  # given up after errors of Similis; a verdict about the file leaves `last_error` empty
        kind="job-exhausted",
        find="""
        SELECT id FROM image WHERE status = 'failed' AND (reason = 'worker-died' OR last_error IS NOT NULL)
        UNION SELECT l.image_id FROM ledger l JOIN generation g ON g.id = l.generation_id
              WHERE l.state = 'failed' AND g.state = 'open' AND l.image_id <> ALL(g.accepted)
        UNION SELECT b.image_id FROM catch_up b JOIN generation g ON g.model_id = b.model_id AND g.state = 'open'
              WHERE b.state = 'failed' AND b.reason = 'worker-died' AND b.image_id <> ALL(g.accepted)
        ORDER BY 1
        """,
        mend=_run(
            f"WITH points AS (UPDATE ledger SET {ledger.AGAIN} "
            "WHERE state = 'failed' AND image_id = ANY(CAST(:ids AS bigint[]))), "
            f"fills AS (UPDATE catch_up SET {catchup.AGAIN} "
            "WHERE state = 'failed' AND image_id = ANY(CAST(:ids AS bigint[])) AND reason = 'worker-died') "
            f"UPDATE image SET {AGAIN} "
            "WHERE id = ANY(CAST(:ids AS bigint[])) AND status = 'failed' "
            "AND (reason = 'worker-died' OR last_error IS NOT NULL)",
            Job.ENCODE,
            Job.PROJECT,
            Job.CATCH_UP,
        ),
    ),
    Check(  # judged by a threshold of a model that has not encoded the image, or of another modality
        kind="calibration-foreign",
        find="""
        SELECT i.id FROM image i JOIN calibration c ON c.id = i.calibration_id
        WHERE (i.status = 'encoded' OR (i.status = 'quarantined' AND i.gate = 'features'))
          AND (c.modality <> i.modality
               OR NOT EXISTS (SELECT 1 FROM encoding e WHERE e.image_id = i.id AND e.model_id = c.model_id))
        ORDER BY 1
        """,
        mend=_run(  # the caller measures the image anew afterwards, where it can
            "UPDATE image SET score = NULL, distance = NULL, calibration_id = NULL "
            "WHERE id = ANY(CAST(:ids AS bigint[]))"
        ),
    ),
)


_STUCK = sa.text(
    "SELECT id FROM operation WHERE state = 'running' AND registered_at IS NULL "
    f"AND (lease_until < clock_timestamp() - make_interval(secs => :silent) OR {AHEAD}) "
    "ORDER BY created_at FOR UPDATE SKIP LOCKED"
)


def stuck(db: Session) -> list[uuid.UUID]:
    """Operations whose lease ended long ago, or that nobody would claim; locked."""
    return list(db.execute(_STUCK, {"silent": SILENT_S}).scalars())


def release_leases(db: Session, ids: Sequence[uuid.UUID]) -> None:
    """Release the leases of these operations, so that the next worker may claim them."""
    db.execute(
        sa.text("UPDATE operation SET lease_until = NULL, not_before = NULL WHERE id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": list(ids)},
    )


_RELEASE_ALL = (
    "UPDATE operation SET lease_until = NULL WHERE lease_until IS NOT NULL",
    "UPDATE catch_up SET lease_until = NULL WHERE lease_until IS NOT NULL",
    "UPDATE image SET status = 'received', lease_until = NULL WHERE status = 'encoding'",
)


def release_all_leases(db: Session) -> None:
    """Release every lease, in a restored database, whose workers belong to another home."""
    for statement in _RELEASE_ALL:
        db.execute(sa.text(statement))


class Registered(NamedTuple):
    """The row of a file that was taken in, and its image."""

    id: int
    path: bytes
    size: int
    mtime_ns: int
    image_id: int | None
    digest: bytes | None  #: the image's
    sent: bool  #: it is in a store: no scan reads it again


_FILES = sa.text(
    f"""
    SELECT f.id, f.path, f.size, f.mtime_ns, i.id, i.digest, f.sent
    FROM (SELECT *, coalesce({SENT}, false) AND NOT {SCANNED} AS sent FROM file) f
    LEFT JOIN image i ON i.id = f.image_id
    WHERE f.id > :after AND f.outcome IN ('taken', 'same') AND (f.mtime_ns <> {READ_AGAIN} OR f.sent)
      AND (i.id IS NULL OR (i.path = f.path AND i.status NOT IN ('received', 'encoding', 'deleted', 'rejected')))
    ORDER BY f.id LIMIT :limit
    """
)


def files(db: Session | sa.Connection, after: int, limit: int) -> list[Registered]:
    """The next files by id whose image is decided or missing, without those that the next scan reads again anyway.

    No scan reads a sent file: one that was marked to be read again is among them.
    """
    return [Registered._make(row) for row in db.execute(_FILES, {"after": after, "limit": limit})]


_COPIES = sa.text(
    "SELECT f.path FROM file f JOIN image i ON i.id = f.image_id WHERE i.id = :image "
    "AND f.outcome IN ('taken', 'same') AND f.digest = i.digest ORDER BY f.id"
)


def copies(db: Session, image_id: int) -> list[bytes]:
    """The paths of other files with the same bytes as the image."""
    return list(db.execute(_COPIES, {"image": image_id}).scalars())
