"""Operations: long work that clients watch. The row is the job; a worker holds it by a lease."""

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import Conflict, NotFound
from shared.store.tables import FATE, FREE, RESTED, Operation
from shared.types import UNDER_WAY, OperationKind, OperationState


@dataclass(frozen=True, slots=True)
class Held:
    """An operation that this worker holds, with its fence."""

    id: uuid.UUID
    attempt: int
    params: dict[str, Any]
    lease_s: float  #: each progress and renewal extends the lease by this

    @property
    def lasting(self) -> bool:
        """Whether it goes on until it is cancelled, as a watch does."""
        return bool(self.params.get("watch"))


def create(db: Session, kind: OperationKind, params: dict[str, Any], key_digest: bytes | None = None) -> Operation:
    """Create a due operation. With the digest of an Idempotency-Key, a second call returns the first one's row.

    Raises: `Conflict` if that key was used for other parameters.
    """
    if key_digest is not None:
        found = db.scalar(sa.select(Operation).where(Operation.key_digest == key_digest))
        if found is not None:
            if (found.kind, found.params) != (kind, params):
                raise Conflict("this Idempotency-Key was used for another request")
            return found
    operation = Operation(kind=kind, params=params, key_digest=key_digest)
    db.add(operation)
    db.flush()  # assigns the id
    return operation


def get(db: Session, operation_id: uuid.UUID, *, lock: bool = False) -> Operation:
    """The operation; with `lock`, its current row, locked. Raises: `NotFound`."""
    found = db.get(Operation, operation_id, with_for_update=lock or None)
    if found is None:
        raise NotFound("no such operation")
    return found


def under_way(db: Session, kind: OperationKind) -> bool:
    """Whether an operation of this kind is pending or running."""
    statement = sa.select(Operation.id).where(Operation.kind == kind, Operation.state.in_(UNDER_WAY))
    return db.scalar(statement.limit(1)) is not None


def known(db: Session, ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Those of these operations that exist in this database."""
    return set(db.scalars(sa.select(Operation.id).where(Operation.id.in_(ids))))


def stand_for(db: Session, operation_id: uuid.UUID, kind: OperationKind, params: dict[str, Any]) -> None:
    """Insert a finished placeholder for an operation of another database; idempotent."""
    ended = {"state": OperationState.SUCCEEDED, "finished_at": sa.func.clock_timestamp()}
    row = insert(Operation).values(id=operation_id, kind=kind, params=params, **ended)
    db.execute(row.on_conflict_do_nothing())


def page(db: Session, limit: int, before: Any = None) -> Sequence[Operation]:  # noqa: ANN401 - a timestamp
    query = sa.select(Operation).order_by(Operation.created_at.desc()).limit(limit)
    if before is not None:
        query = query.where(Operation.created_at < before)
    return db.scalars(query).all()


#: Leases that expired since the last progress or the last turn that ended in order, including the present lease.
_LOSSES = "losses + (CASE WHEN lease_until IS NULL THEN 0 ELSE 1 END)"
MOST_LOSSES = 5
_DUE = f"""
    kind = :kind AND state IN ('pending', 'running') AND registered_at IS NULL AND {FREE} AND {RESTED}
    AND {_LOSSES} < {MOST_LOSSES}
"""

_CLAIM = sa.text(
    f"""
    UPDATE operation SET state = 'running', attempt = attempt + 1, losses = {_LOSSES},
                         started_at = coalesce(started_at, clock_timestamp()),
                         lease_until = clock_timestamp() + make_interval(secs => :lease)
    WHERE id = (
        SELECT id FROM operation WHERE {_DUE} ORDER BY coalesce(not_before, created_at), created_at LIMIT 1
        FOR UPDATE SKIP LOCKED
    )
    RETURNING id, attempt, params
    """
)

_EXHAUST = sa.text(
    f"""
    UPDATE operation SET state = CASE WHEN cancel THEN 'cancelled' ELSE 'failed' END, error = :error,
                         lease_until = NULL, cursor = NULL, finished_at = clock_timestamp()
    WHERE id IN (SELECT id FROM operation WHERE state = 'running' AND registered_at IS NULL AND {FREE}
                 AND {_LOSSES} >= {MOST_LOSSES} FOR UPDATE SKIP LOCKED)
    RETURNING id
    """
)
GIVEN_UP = (
    f"given up: {MOST_LOSSES} workers in a row were lost at the same step, by a crash, a lack of memory or a kill; "
    "retry it when the cause is gone"
)


def exhaust(db: Session) -> list[uuid.UUID]:
    """Operations that lost `MOST_LOSSES` workers in a row without progress have failed; returns their ids."""
    return list(db.execute(_EXHAUST, {"error": GIVEN_UP}).scalars())


def claim(db: Session, kind: OperationKind, lease_s: float) -> Held | None:
    """Claim the operation of this kind that has been due for longest, until the lease ends; None if none is due."""
    row = db.execute(_CLAIM, {"kind": kind, "lease": lease_s}).one_or_none()
    return None if row is None else Held(row.id, row.attempt, row.params, lease_s)


#: A changed cursor is progress; changed counts are not, because they may grow by the work of others.
_PROGRESS = sa.text(
    """
    UPDATE operation SET done = :done, total = :total, counts = CAST(:counts AS jsonb), cursor = told.cursor,
                         error = NULL,
                         losses = CASE WHEN operation.cursor IS DISTINCT FROM told.cursor THEN 0 ELSE losses END,
                         lease_until = clock_timestamp() + make_interval(secs => :lease)
    FROM (SELECT CAST(:cursor AS jsonb) AS cursor) AS told
    WHERE id = :id AND attempt = :attempt AND state = 'running' RETURNING cancel
    """
)


def progress(
    db: Session,
    held: Held,
    *,
    done: int,
    total: int,
    counts: Mapping[str, int],
    cursor: Mapping[str, Any] | None,
) -> bool:
    """Store the progress, forget what held it up and renew the lease.

    Returns False if the worker must stop: cancelled, paused or taken over.
    """
    told = {"done": done, "total": total, "counts": json.dumps(dict(counts)), "lease": held.lease_s}
    where = {"cursor": None if cursor is None else json.dumps(dict(cursor))}
    row = db.execute(_PROGRESS, {"id": held.id, "attempt": held.attempt} | told | where).one_or_none()
    return row is not None and not row.cancel


def all_registered(db: Session, held: Held) -> None:
    """Record that every file has a row: nobody claims the operation again; it ends when its images are searchable."""
    db.execute(
        sa.text(
            "UPDATE operation SET registered_at = clock_timestamp() "
            "WHERE id = :id AND attempt = :attempt AND state = 'running'"
        ),
        {"id": held.id, "attempt": held.attempt},
    )


def renew(db: Session, held: Held) -> None:
    db.execute(
        sa.text(
            "UPDATE operation SET lease_until = clock_timestamp() + make_interval(secs => :lease) "
            "WHERE id = :id AND attempt = :attempt AND state = 'running'"
        ),
        {"id": held.id, "attempt": held.attempt, "lease": held.lease_s},
    )


def mine(db: Session, held: Held) -> bool:
    """Whether the worker may go on: not paused, cancelled or taken over. The row stays locked until the commit."""
    found = db.execute(
        sa.text("SELECT cancel FROM operation WHERE id = :id AND attempt = :attempt AND state = 'running' FOR UPDATE"),
        {"id": held.id, "attempt": held.attempt},
    ).one_or_none()
    return found is not None and not found.cancel


#: A cancellation that came during the turn is carried out here, too: turns that end in errors may never check for it.
_REST = sa.text(
    """
    UPDATE operation SET lease_until = NULL, not_before = clock_timestamp() + make_interval(secs => :s), error = :error,
        losses = 0, state = CASE WHEN cancel AND state = 'running' THEN 'cancelled' ELSE state END,
        finished_at = CASE WHEN cancel AND state = 'running' THEN clock_timestamp() ELSE finished_at END,
        cursor = CASE WHEN cancel AND state = 'running' THEN NULL ELSE cursor END
    WHERE id = :id AND attempt = :attempt
    """
)


def rest(db: Session, held: Held, seconds: float, error: str | None = None) -> None:
    """The operation is due again in `seconds` (a watch between its rounds), or has ended if it was to be cancelled."""
    db.execute(_REST, {"id": held.id, "attempt": held.attempt, "s": seconds, "error": error})


def end(db: Session, held: Held, state: OperationState, error: str | None = None) -> None:
    db.execute(
        sa.text(
            "UPDATE operation SET state = :state, error = :error, lease_until = NULL, cursor = NULL, "
            "finished_at = clock_timestamp() WHERE id = :id AND attempt = :attempt AND state = 'running'"
        ),
        {"id": held.id, "attempt": held.attempt, "state": state, "error": error},
    )


def cancel(db: Session, operation_id: uuid.UUID) -> Operation:
    """Cancel the operation: no further step begins, registered files stay. Without a holder it ends at once.

    Raises: `NotFound`, `Conflict` when it has ended.
    """
    operation = get(db, operation_id, lock=True)
    if operation.state not in UNDER_WAY:
        raise Conflict(f"the operation has ended: {operation.state}")
    operation.cancel = True
    if operation.lease_until is None or operation.registered_at is not None:
        operation.state = OperationState.CANCELLED
        operation.cursor = None  # it may name a study that is erased later
        operation.finished_at = sa.func.clock_timestamp()
    return operation


def retry(db: Session, operation_id: uuid.UUID) -> Operation:
    """Make an ended or paused operation due again from the start: finished work is skipped, failed work tried again.

    `total` stays: a replay counts it once, when it is created. A paused one keeps `done` and `counts`, too: they hold
    until it counts again.

    Raises: `NotFound`, `Conflict` while it is pending or running.
    """
    operation = get(db, operation_id, lock=True)
    if operation.state in UNDER_WAY:
        raise Conflict("the operation has not ended")
    if operation.state != OperationState.PAUSED:
        operation.done, operation.counts, operation.started_at = 0, {}, None
    operation.state, operation.cancel, operation.losses = OperationState.PENDING, False, 0
    operation.error = operation.finished_at = None
    operation.cursor = operation.registered_at = None
    operation.lease_until = operation.not_before = None
    return operation


_ENDED = sa.text(
    "SELECT id FROM operation WHERE id = ANY(CAST(:ids AS uuid[])) AND state IN ('succeeded', 'failed') "
    "AND (CAST(:kind AS text) IS NULL OR kind = :kind) ORDER BY id FOR UPDATE"
)


def retry_ended(db: Session, ids: Collection[uuid.UUID], kind: OperationKind | None = None) -> None:
    """Retry those of these operations, of one kind or of any, that succeeded or failed.

    A cancelled one comes back only when a person retries the operation itself.
    """
    for number in db.execute(_ENDED, {"ids": list(ids), "kind": kind}).scalars().all():
        retry(db, number)


#: The first subquery is a single index look-up; as NOT EXISTS it would read the whole backlog.
_SETTLED = sa.text(
    """
    UPDATE operation o SET state = 'succeeded', finished_at = clock_timestamp()
    WHERE o.state = 'running' AND o.registered_at IS NOT NULL
      AND (SELECT i.id FROM image i WHERE i.operation_id = o.id AND i.status IN ('received', 'encoding')
           ORDER BY i.status LIMIT 1) IS NULL
      AND NOT EXISTS (SELECT 1 FROM image i JOIN ledger l ON l.image_id = i.id
                      WHERE i.operation_id = o.id AND l.state = 'pending'
                        AND l.generation_id IN (SELECT generation_id FROM live))
    """
)


def finish_settled(db: Session) -> None:
    """Operations whose files are all registered, decided and searchable have succeeded."""
    db.execute(_SETTLED)


def outcomes(db: Session, operation_id: uuid.UUID) -> list[tuple[str, str | None, str | None, int]]:
    """(outcome, gate, reason, how many) of the files that this operation registered, with their images' outcomes."""
    rows = db.execute(
        sa.text(
            f"SELECT {FATE}, count(*) "
            "FROM file f LEFT JOIN image i ON i.id = f.image_id WHERE f.operation_id = :id "
            "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ),
        {"id": operation_id},
    )
    return [tuple(row) for row in rows]


_WAITING = sa.text(
    f"""
    SELECT count(*),
        extract(epoch FROM clock_timestamp() - min(greatest(coalesce(not_before, created_at), lease_until)))
    FROM operation WHERE {_DUE}
    """
)


def waiting(db: Session | sa.Connection, kind: OperationKind) -> tuple[int, float]:
    """How many operations of this kind could be claimed now, and for how many seconds the first has waited for it."""
    count, oldest_s = db.execute(_WAITING, {"kind": kind}).one()
    return count, float(oldest_s or 0.0)


def due(db: Session | sa.Connection, kind: OperationKind) -> int:
    """How many operations of this kind could be claimed now."""
    return waiting(db, kind)[0]


def pause(db: Session, operation_id: uuid.UUID) -> None:
    """Pause the operation: its holder stops at the next step, and no worker claims it.

    Raises: `Conflict` when it has ended.
    """
    operation = get(db, operation_id, lock=True)
    if operation.state not in UNDER_WAY | {OperationState.PAUSED}:
        raise Conflict(f"the operation has ended: {operation.state}")
    operation.state = OperationState.PAUSED


def abandon(db: Session, operation_id: uuid.UUID) -> None:
    """Cancel the operation if it has not ended, because its purpose is gone; its holder stops."""
    operation = get(db, operation_id, lock=True)
    if operation.state in UNDER_WAY | {OperationState.PAUSED}:
        operation.state, operation.lease_until, operation.cursor = OperationState.CANCELLED, None, None
        operation.finished_at = sa.func.clock_timestamp()
