import os
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session

from shared.datasets.folder import read_labels
from shared.errors import SimilisError, Unavailable
from shared.pipeline import encode, receive
from shared.pipeline.receive import Progress
from shared.store import operations
from shared.store.operations import Held
from shared.store.session import enqueue
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task

SCAN_LEASE_S = 30.0
MOST_ATTEMPTS = 50  #: of one scan; each begins where the last one ended, so many may be needed, but not endlessly many


@task(Job.ENCODE)
def encode_images() -> None:
    """Settle due images for a while; ring again if there may be more."""
    rt = runtime()
    settled = encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
    if settled:
        rt.queue.ring(Job.ENCODE)


@task(Job.SCAN)
def scan_folders() -> None:
    """Carry on one due scan; a watch rests between its rounds."""
    rt = runtime()
    with rt.transaction() as db:
        held = operations.claim(db, "scan", SCAN_LEASE_S)
    if held is None:
        return
    watch = bool(held.params.get("watch"))
    try:
        if held.attempt > MOST_ATTEMPTS and not watch:
            raise Unavailable("the scan has been interrupted too often")
        _scan(held, watch=watch)
    except SimilisError as error:
        with rt.transaction() as db:
            if watch:  # a share that is away comes back
                operations.rest(db, held, rt.settings.intake.watch_interval_s, str(error))
            else:
                operations.end(db, held, "failed", str(error))
    rt.queue.ring(Job.SCAN)


def _scan(held: Held, *, watch: bool) -> None:
    rt = runtime()
    labels = held.params.get("labels")
    stopped = False

    def report(db: Session, progress: Progress) -> bool:
        nonlocal stopped
        counts = progress.to_json()
        go_on = operations.progress(
            db, held, done=progress.done, total=progress.total, counts=counts, lease_s=SCAN_LEASE_S
        )
        stopped = not go_on
        return go_on

    rules = replace(rt.watch_rules if watch else rt.rules, skip=frozenset({os.fsencode(labels)} if labels else ()))
    progress = receive.scan(
        rt.transaction,
        rt.sandbox,
        Path(held.params["path"]),
        table=read_labels(Path(labels)) if labels else None,
        rules=rules,
        operation_id=held.id,
        report=report,
    )
    with rt.transaction() as db:
        if stopped:
            operations.end(db, held, "cancelled")
        elif watch:
            operations.rest(db, held, rt.settings.intake.watch_interval_s)
        else:
            counts = progress.to_json(scanned=True)
            operations.progress(db, held, done=progress.done, total=progress.total, counts=counts, lease_s=SCAN_LEASE_S)
            enqueue(db, Job.PROJECT)  # it also ends operations that have nothing left to do
