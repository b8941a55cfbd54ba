import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from shared.datasets import importers
from shared.datasets.folder import LabelTable, read_labels
from shared.datasets.record import label_table
from shared.pipeline import arrive, encode, scan
from shared.pipeline.lease import turn
from shared.pipeline.scan import Progress
from shared.store import operations
from shared.store.operations import Held
from shared.store.session import enqueue
from shared.types import Job
from workers.heartbeat import still_here
from workers.runtime import runtime
from workers.tasks import task

SCAN_LEASE_S = 30.0
AWAY_S = 10.0  #: until a scan looks again for what was away


@task(Job.ENCODE)
def encode_images() -> None:
    """Settle due images for a while; ring again if there may be more."""
    rt = runtime()
    settled = encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort)
    if settled:
        rt.queue.ring(Job.ENCODE)


@task(Job.SCAN)
def scan_folders() -> None:
    """Carry on one due scan; a watch rests between its rounds. Without one, read sent files again where it is asked."""
    rt = runtime()
    with rt.transaction() as db:
        held = operations.claim(db, "scan", SCAN_LEASE_S)
    if held is None:
        arrive.reread(rt.transaction, rt.sandbox, rt.rules, alive=still_here)
        return
    watch = bool(held.params.get("watch"))
    with turn(rt.transaction, held, SCAN_LEASE_S, AWAY_S, lasting=watch):
        _scan(held, watch=watch)
    rt.queue.ring(Job.SCAN)


@dataclass(frozen=True, slots=True)
class Said:
    """What is known of a folder's images before they are looked at."""

    table: LabelTable | None = None
    skip: frozenset[bytes] = frozenset()  #: files that are no studies
    odd: Mapping[str, int] = field(default_factory=dict)  #: counts of what was odd about a published set


def said_of(params: Mapping[str, Any]) -> Said:
    """Raises: `Invalid` where table or data set cannot be read."""
    if dataset := params.get("dataset"):
        found = importers.read(dataset, Path(params["path"]))
        odd = {f"dataset:{kind}": count for kind, count in sorted(found.warnings.items())}
        return Said(label_table(found), frozenset(os.fsencode(path) for path in found.others), odd)
    if labels := params.get("labels"):
        return Said(read_labels(Path(labels)), frozenset({os.fsencode(labels)}))
    return Said()


def _scan(held: Held, *, watch: bool) -> None:
    rt = runtime()
    said = said_of(held.params)
    stopped = False

    def report(db: Session, progress: Progress) -> bool:
        nonlocal stopped
        still_here()
        counts = progress.to_json(**said.odd)
        go_on = operations.progress(
            db, held, done=progress.done, total=progress.total, counts=counts, lease_s=SCAN_LEASE_S
        )
        stopped = not go_on
        return go_on

    rules = replace(rt.watch_rules if watch else rt.rules, skip=said.skip)
    progress = scan.scan(
        rt.transaction,
        rt.sandbox,
        Path(held.params["path"]),
        table=said.table,
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
            counts = progress.to_json(scanned=True, **said.odd)
            operations.progress(db, held, done=progress.done, total=progress.total, counts=counts, lease_s=SCAN_LEASE_S)
            enqueue(db, Job.PROJECT)  # it also ends operations that have nothing left to do
