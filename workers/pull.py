import time
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from sqlalchemy.orm import Session

from shared.pipeline import pull
from shared.pipeline.dicomweb import Archive
from shared.pipeline.lease import turn
from shared.pipeline.pace import Hours
from shared.pipeline.pull import Plan, Progress, Pull, Stopped
from shared.store import operations
from shared.store.operations import Held
from shared.store.session import enqueue
from shared.types import Job
from workers.heartbeat import still_here
from workers.runtime import runtime
from workers.tasks import task

LEASE_S = 30.0
TURN_S = 60.0  #: a pull may take days, and scans wait in the same queue
AWAY_S = 30.0
LOOK_S = 600.0  #: outside its hours, so often is looked whether it was cancelled


@task(Job.PULL)
def pull_studies() -> None:
    """Carry on one due backfill for a while."""
    rt = runtime()
    with rt.transaction() as db:
        held = operations.claim(db, pull.KIND, LEASE_S)
        row = operations.get(db, held.id) if held else None
        progress = Progress.of(row.counts, row.total or 0) if row else Progress()
    if held is None:
        return
    with turn(rt.transaction, held, LEASE_S, AWAY_S):  # away: the other archive, the disk or an engine
        _turn(held, progress)
    rt.queue.ring(Job.PULL)


def _turn(held: Held, progress: Progress) -> None:
    rt = runtime()
    if closed_s := _closed_s(held.params):
        with rt.transaction() as db:
            operations.rest(db, held, min(closed_s, LOOK_S))
        return
    try:
        done = _pull(held, progress)
    except Stopped:
        with rt.transaction() as db:
            operations.end(db, held, "cancelled")
        return
    with rt.transaction() as db:
        _settle(db, held, progress, done=done)


def _closed_s(params: Mapping[str, Any]) -> float:
    hours = params.get("between")
    return Hours.read(hours).closed_s(datetime.now().astimezone()) if hours else 0.0


def _settle(db: Session, held: Held, progress: Progress, *, done: bool) -> None:
    """The next turn is due, or the images are all that is waited for."""
    if not done:
        operations.rest(db, held, 0)
        return
    counts = progress.to_json(scanned=True)
    operations.progress(db, held, done=progress.done, total=progress.done, counts=counts, lease_s=LEASE_S)
    enqueue(db, Job.PROJECT)  # it also ends operations that have nothing left to do


def _pull(held: Held, progress: Progress) -> bool:
    rt = runtime()
    params = held.params
    own: dict[str, str] = {n: params[n] for n in ("user", "password_file", "token_file") if n in params}
    access = rt.access(params["source"], own)
    first, last = (date.fromisoformat(params[name]) if name in params else None for name in ("first", "last"))
    until = time.monotonic() + TURN_S

    def report(db: Session, progress: Progress) -> bool:
        still_here()
        counts, done, total = progress.to_json(), progress.done, max(progress.total, progress.done)
        return operations.progress(db, held, done=done, total=total, counts=counts, lease_s=LEASE_S)

    with Archive(access) as archive:
        return Pull(
            begin=rt.transaction,
            inspector=rt.sandbox,
            blobs=rt.blobs,
            archive=archive,
            plan=Plan(query=params["query"], first=first, last=last, rate_per_s=params.get("rate")),
            progress=progress,
            origin=pull.origin_of(access.url, held.id),
            rules=rt.rules,
            report=report,
            over=lambda: time.monotonic() > until or _closed_s(params) > 0,
            alive=still_here,
            most=rt.sandbox.limits.file_bytes,
        ).run()
