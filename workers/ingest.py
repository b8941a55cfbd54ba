import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from shared.datasets import importers
from shared.datasets.folder import LabelTable, read_labels
from shared.datasets.record import categories, label_table
from shared.log import get
from shared.pipeline import arrive, encode, pull, scan
from shared.pipeline.lease import turn
from shared.pipeline.scan import Progress
from shared.store import files, operations
from shared.store.operations import Held
from shared.store.session import enqueue
from shared.types import Job
from workers.heartbeat import still_here
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)

SCAN_LEASE_S = 30.0
TURN_S = 60.0  #: a scan may take days: after so long whoever waits in the same queue gets a turn
AWAY_S = 10.0  #: until a scan looks again for what was away


@task(Job.ENCODE)
def encode_images() -> None:
    """Settle due images for a while; ring again if there may be more."""
    rt = runtime()
    if settled := encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort):
        log.info("images_settled", count=settled)
        rt.queue.ring(Job.ENCODE)


@task(Job.SCAN)
def scan_folders() -> None:
    """Carry on one due scan, then read sent files again where it is asked; a watch rests between its rounds."""
    rt = runtime()
    with rt.transaction() as db:
        held = operations.claim(db, "scan", SCAN_LEASE_S)
        row = operations.get(db, held.id) if held else None
        progress = Progress.of(row.counts, row.done, row.total) if row else Progress()
    if held is not None:
        watch = bool(held.params.get("watch"))
        with turn(rt.transaction, held, SCAN_LEASE_S, AWAY_S, lasting=watch):
            _scan(held, progress, watch=watch)
        rt.queue.ring(Job.SCAN)
    arrive.reread(rt.transaction, rt.sandbox, rt.rules, alive=still_here)


@dataclass(frozen=True, slots=True)
class Said:
    """What is known of a folder's images before they are looked at."""

    table: LabelTable | None = None
    skip: frozenset[bytes] = frozenset()  #: files that are no studies
    counts: Mapping[str, int] = field(default_factory=dict)  #: of a published set: what is odd about it, its labels


def said_of(params: Mapping[str, Any]) -> Said:
    """Raises: `Invalid` where table or data set cannot be read."""
    if dataset := params.get("dataset"):
        found = importers.read(dataset, Path(params["path"]))
        odd = {f"dataset:{kind}": count for kind, count in sorted(found.warnings.items())}
        labels = {f"label:{kind}": count for kind, count in sorted(categories(found.records).items())}
        return Said(label_table(found), frozenset(os.fsencode(path) for path in found.others), odd | labels)
    if table := params.get("labels"):
        return Said(read_labels(Path(table)), frozenset({os.fsencode(table)}))
    return Said()


def _scan(held: Held, progress: Progress, *, watch: bool) -> None:
    rt = runtime()
    said = said_of(held.params)
    stopped = False
    until = 0.0  # known at the first report: a turn that only finds its place again would never end

    def report(db: Session, progress: Progress) -> bool:
        nonlocal stopped, until
        still_here()
        stopped = not _tell(db, held, progress, **said.counts)
        until = until or time.monotonic() + TURN_S
        return not stopped and not (time.monotonic() >= until and _others_wait(db))

    scan.scan(
        rt.transaction,
        rt.sandbox,
        Path(held.params["path"]),
        table=said.table,
        rules=replace(rt.watch_rules if watch else rt.rules, skip=said.skip),
        operation_id=held.id,
        report=report,
        progress=progress,
        alive=still_here,
    )
    if not watch or stopped:  # a watch looks every few seconds
        state = "cancelled" if stopped else "resting" if progress.cursor else "scanned"
        log.info("scanned", operation_id=str(held.id), state=state, done=progress.done, total=progress.total)
    with rt.transaction() as db:
        if stopped:
            operations.end(db, held, "cancelled")
        elif progress.cursor:
            operations.rest(db, held, 0)  # it is due again, behind those who wait
        elif watch:
            _tell(db, held, progress, **said.counts)
            operations.rest(db, held, rt.settings.intake.watch_interval_s)
        else:
            _tell(db, held, progress, scanned=True, **said.counts)
            enqueue(db, Job.PROJECT)  # it also ends operations that have nothing left to do


def _tell(db: Session, held: Held, progress: Progress, **more: object) -> bool:
    """How far it is stands on its row; False: stop."""
    counts = progress.to_json(**more)
    return operations.progress(db, held, done=progress.done, total=progress.total, counts=counts, lease_s=SCAN_LEASE_S)


def _others_wait(db: Session) -> bool:
    """Another scan, a pull, or sent files that are to be read again."""
    return any(operations.due(db, kind) for kind in ("scan", pull.KIND)) or bool(files.again(db, 0, 1))
