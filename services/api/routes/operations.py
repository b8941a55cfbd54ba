"""Operations (long work) as resources: scans are started here; all kinds are listed, watched, cancelled, retried."""

from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from services.api.answers import LOCATED, FilesOut, OperationDetail, OperationOut, OperationsOut
from services.api.dependencies import CanIngest, CanTakeIn, CanWatch, Db, IdempotencyKey, Rt, key_digest
from services.api.errors import explain
from services.api.paging import read_cursor, write_cursor
from services.api.schemas import ScanIn
from shared.errors import Conflict, Invalid
from shared.pipeline import scan
from shared.runtime import Runtime
from shared.store import catalog, files, images, operations
from shared.store.session import enqueue
from shared.store.tables import Operation
from shared.types import Job, OperationKind, OperationState

router = APIRouter(tags=["operations"])

TAKES_IN = (OperationKind.SCAN, OperationKind.PULL)
_BUSY = {OperationKind.REINDEX: "building", OperationKind.REPLAY: "replaying", OperationKind.ERASE: "erasing"}
ENDED = (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED)
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(max_length=200)]


@router.post("/v1/ingest/scans", status_code=202, responses={202: LOCATED})
def begin_scan(
    rt: Rt,
    db: Db,
    bearer: CanIngest,
    asked: ScanIn,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> OperationDetail:
    """Start taking in a folder of the server, in place. A repeated Idempotency-Key returns the same operation."""
    if asked.dataset is not None and (asked.labels is not None or asked.watch):
        raise Invalid("a published set has its own labels and does not change: leave out labels and watch")
    params: dict[str, Any] = {"path": _allowed(rt, asked.path), "watch": asked.watch}
    if asked.labels is not None:
        params["labels"] = _allowed(rt, asked.labels, "table of labels")
    if asked.dataset is not None:
        params["dataset"] = asked.dataset
    operation = operations.create(db, OperationKind.SCAN, params, key_digest(bearer, idempotency_key))
    enqueue(db, Job.SCAN)
    return begun(db, operation, response)


def _allowed(rt: Runtime, text: str, what: str = "file or folder") -> str:
    """The path if it may be scanned.

    Raises: `Invalid`, with one message for a missing and for a forbidden path; `Unavailable` if it does not answer.
    """
    intake, asked = rt.settings.intake, FilePath(text)
    try:
        path = scan.asked(asked, lambda: scan.within(asked, intake.roots, any_root=intake.any_root))
        there = scan.asked(asked, path.exists)
    except (OSError, RuntimeError):  # no permission, a name that is too long, a loop of links
        there = False
    if not there:
        raise Invalid(f"there is no such {what} on the server")
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):  # a byte as Python has it; JSON has none
        raise Invalid(f"the real name of this {what} is not valid UTF-8: name a folder above it")
    return str(path)


@router.get("/v1/operations")
def list_operations(db: Db, _: CanWatch, limit: Limit = 50, cursor: Cursor = None) -> OperationsOut:
    """Operations, the newest first."""
    rows = operations.page(db, limit + 1, _moment(cursor) if cursor else None)
    shown = rows[:limit]
    more = len(rows) > len(shown)
    standing = catalog.progress(db, [operation.id for operation in shown])
    return {
        "operations": [_summary(operation, standing[operation.id]) for operation in shown],
        "next": write_cursor(round(shown[-1].created_at.timestamp() * 1e6)) if more else None,
    }


def _moment(cursor: str) -> datetime:
    """The creation time in a cursor. Raises: `Invalid`."""
    try:
        return datetime.fromtimestamp(read_cursor(cursor) / 1e6, UTC)
    except (ValueError, OverflowError):  # a year outside `datetime`'s range
        raise Invalid("this is not a cursor") from None


@router.get("/v1/operations/{operation_id}")
def show_operation(db: Db, _: CanWatch, operation_id: UUID) -> OperationDetail:
    """One operation: its progress, and the outcomes of its files."""
    return detail(db, operations.get(db, operation_id))


@router.get("/v1/operations/{operation_id}/files")
def list_files(
    db: Db, _: CanTakeIn, operation_id: UUID, problems: bool = True, limit: Limit = 200, cursor: Cursor = None
) -> FilesOut:
    """The operation's files with outcome, gate and reason; by default only those that are not searchable."""
    operations.get(db, operation_id)
    after = read_cursor(cursor) if cursor else 0
    rows = files.page(db, operation_id, after, limit + 1, problems)
    shown = rows[:limit]
    return {
        "files": [
            {
                "path": row.path.decode("utf-8", "backslashreplace"),
                "outcome": row.outcome,
                "gate": row.gate,
                "reason": row.reason,
                "explanation": explain(row.reason),
            }
            for row in shown
        ],
        "next": write_cursor(shown[-1].id) if len(rows) > len(shown) else None,
    }


@router.post("/v1/operations/{operation_id}:cancel")
def cancel_operation(db: Db, _: CanTakeIn, operation_id: UUID) -> OperationDetail:
    """Stop the operation; files that are registered already stay."""
    _only_scans(db, operation_id)
    operation = operations.cancel(db, operation_id)
    db.flush()
    db.refresh(operation)
    return detail(db, operation)


@router.post("/v1/operations/{operation_id}:retry", status_code=202)
def retry_operation(db: Db, _: CanTakeIn, operation_id: UUID) -> OperationDetail:
    """Make the operation due again: completed work is skipped, failed work is tried once more."""
    _only_scans(db, operation_id)
    operation = operations.retry(db, operation_id)
    images.retry_failed(db, operation_id)
    files.reread_not_taken(db, operation_id)
    enqueue(db, Job.SCAN if operation.kind == OperationKind.SCAN else Job.PULL)
    enqueue(db, Job.ENCODE)
    db.flush()
    db.refresh(operation)
    return detail(db, operation)


def _only_scans(db: Session, operation_id: UUID) -> None:
    """Raises: `Conflict` for an operation that is neither a scan nor a pull."""
    kind = operations.get(db, operation_id).kind
    if kind == OperationKind.REINDEX:
        raise Conflict("cancel or resume a generation at /v1/generations")
    if kind == OperationKind.REPLAY:
        raise Conflict("a replay can be neither cancelled nor retried: replay another threshold to change its result")
    if kind not in TAKES_IN:
        raise Conflict("an erasure can be neither cancelled nor retried: it ends once no index holds what was erased")


def begun(db: Session, operation: Operation, response: Response) -> OperationDetail:
    """The answer to a request that began an operation: its present state, and where it is found."""
    response.headers["Location"] = f"/v1/operations/{operation.id}"
    db.refresh(operation)
    return detail(db, operation)


def detail(db: Session, operation: Operation) -> OperationDetail:
    outcomes = operations.outcomes(db, operation.id)
    standing = catalog.progress(db, [operation.id])[operation.id]
    return {
        **_summary(operation, standing),
        "outcomes": [
            {"outcome": outcome, "gate": gate, "reason": reason, "explanation": explain(reason), "count": count}
            for outcome, gate, reason, count in outcomes
        ],
    }


def _summary(operation: Operation, standing: catalog.Progress) -> OperationOut:
    undecided, unindexed = standing.undecided, standing.unindexed
    end = operation.finished_at or datetime.now(UTC)
    took_s = max((end - (operation.started_at or end)).total_seconds(), 0.0)
    decided = max(operation.done - undecided, 0)
    return {
        "id": operation.id,
        "kind": operation.kind,
        "state": operation.state,
        "phase": _phase(operation, standing),
        "progress": _progress(operation, undecided, unindexed),
        "path": operation.params.get("path"),
        "watch": bool(operation.params.get("watch")),
        "total": operation.total,
        "done": operation.done,
        "counts": operation.counts,
        "images": {
            "registered": standing.images,
            "decided": standing.images - undecided,
            "searchable_soon": unindexed,
        },
        "rate_per_s": round(decided / took_s, 2) if took_s > 0 and decided else None,
        "took_s": round(took_s, 3),
        "cancel_requested": operation.cancel,
        "error": operation.error,
        "created_at": operation.created_at,
        "registered_at": operation.registered_at,
        "finished_at": operation.finished_at,
    }


def _phase(operation: Operation, standing: catalog.Progress) -> str:
    if operation.state in ENDED:
        return "ended"
    if operation.state == OperationState.PAUSED:
        return "paused"
    if operation.state == OperationState.PENDING:
        return "waiting"
    if operation.kind not in TAKES_IN:
        return _BUSY[OperationKind(operation.kind)]
    if operation.registered_at is None:
        return "registering" if operation.kind == OperationKind.SCAN else "pulling"
    if not standing.undecided:
        return "indexing"
    return "waiting for a model" if standing.awaits_model else "encoding"


def _progress(operation: Operation, undecided: int, unindexed: int) -> int:
    """Percent done, weighted by cost: a tenth for registering, eight tenths for encoding, a tenth for the index."""
    if operation.state == OperationState.SUCCEEDED:
        return 100
    if not operation.total:
        return 0
    if operation.kind not in TAKES_IN:
        return min(99, 100 * operation.done // operation.total)
    registered = min(operation.done, operation.total)
    decided = max(registered - undecided, 0)
    share = 0.1 * registered + 0.8 * decided + 0.1 * max(decided - unindexed, 0)
    return min(99, int(100 * share / operation.total))
