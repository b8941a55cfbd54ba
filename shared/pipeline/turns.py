"""A worker's turn at a scan or a pull: either may take days, and they share a queue."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from shared import heartbeat
from shared.datasets import importers
from shared.datasets.folder import LabelTable, read_labels
from shared.datasets.record import categories, label_table
from shared.errors import Unavailable
from shared.log import get
from shared.pipeline import pull, scan
from shared.pipeline.dicomweb import Access, Archive
from shared.pipeline.lease import turn
from shared.pipeline.pace import closed_s
from shared.pipeline.pull import Pull
from shared.pipeline.receive import Inspector, Rules
from shared.store import files, operations
from shared.store.blobs import Blobs
from shared.store.operations import Held
from shared.store.session import Begin, enqueue
from shared.types import Job, OperationKind, OperationState

log = get(__name__)

TURN_S = 60.0  #: length of a turn, after which waiting operations get theirs
FOLDER_AWAY_S = 10.0  #: until a scan goes on after something was unavailable
ARCHIVE_AWAY_S = 30.0  #: until a pull goes on after something was unavailable: the other archive, the disk or a service
LOOK_S = 600.0  #: outside its hours, a pull checks this often whether it was cancelled


def advance_scan(begin: Begin, inspector: Inspector, rules: Rules, *, watch_rules: Rules, every_s: float) -> bool:
    """Give one due scan a turn, or a watch one round; return True if there may be more to do.

    Args:
        watch_rules: the rules for a watch.
        every_s: the rest between two rounds of a watch.
    """
    began = time.monotonic()
    with turn(begin, OperationKind.SCAN, FOLDER_AWAY_S) as held:
        if held is None:
            return False
        with begin() as db:
            progress = scan.Progress.of(operations.get(db, held.id))
        for place in (held.params[name] for name in ("path", "labels") if name in held.params):
            # asked, because tables are read without a limit
            if not scan.asked(Path(place), partial(os.path.exists, place)) and progress.cursor:
                raise Unavailable("the folder or its table was there when the scan began: its share may be unavailable")
        labels = read_folder_labels(held.params)
        one = _Scan(held, labels, began)
        scan.scan(
            begin,
            inspector,
            Path(held.params["path"]),
            table=labels.table,
            rules=replace(watch_rules if held.lasting else rules, skip=labels.skip),
            operation_id=held.id,
            report=one.report,
            progress=progress,
        )
        with begin() as db:
            one.leave(db, progress, every_s if held.lasting else None)
    return True


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """What tables say about a folder's images before these are read."""

    table: LabelTable | None = None
    skip: frozenset[bytes] = frozenset()  #: files that are no studies
    counts: Mapping[str, int] = field(default_factory=dict)  #: of a published set: warnings and labels, by kind


def read_folder_labels(params: Mapping[str, Any]) -> FolderLabels:
    """Read the tables that the operation names. Raises: `Invalid` if the table or the data set cannot be read."""
    if dataset := params.get("dataset"):
        found = importers.read(dataset, Path(params["path"]))
        odd = {f"dataset:{kind}": count for kind, count in sorted(found.warnings.items())}
        labels = {f"label:{kind}": count for kind, count in sorted(categories(found.records).items())}
        return FolderLabels(label_table(found), frozenset(os.fsencode(path) for path in found.others), odd | labels)
    if table := params.get("labels"):
        return FolderLabels(read_labels(Path(table)), frozenset({os.fsencode(table)}))
    return FolderLabels()


@dataclass(slots=True)
class _Scan:
    """One turn at a scan."""

    held: Held
    labels: FolderLabels
    began: float  #: by `time.monotonic`
    stopped: bool = False  #: cancelled, or taken over
    #: End of the turn, set at the first report: finding the place again may take longer than `TURN_S` (with a table,
    #: the whole folder is walked), and at least half of each turn must make progress.
    until: float = 0.0

    def report(self, db: Session, progress: scan.Progress) -> bool:
        """Write the progress to the operation's row; return False if the scan was stopped or its turn is over."""
        heartbeat.beat()
        self.stopped = not self._tell(db, progress)
        now = time.monotonic()
        self.until = self.until or now + max(TURN_S, now - self.began)
        return not self.stopped and not (now >= self.until and _others_wait(db))

    def leave(self, db: Session, progress: scan.Progress, rest_s: float | None) -> None:
        """Write to the row what comes next; after a round of a watch, a rest of `rest_s` seconds."""
        state = "cancelled" if self.stopped else "resting" if progress.cursor else "scanned"
        if rest_s is None or self.stopped:  # a watch would log every few seconds
            log.info("scanned", operation_id=str(self.held.id), state=state, done=progress.done, total=progress.total)
        if self.stopped:
            operations.end(db, self.held, OperationState.CANCELLED)
        elif progress.cursor:
            operations.rest(db, self.held, 0)  # due again, behind those that wait
        elif rest_s is not None:
            self._tell(db, progress)
            operations.rest(db, self.held, rest_s)
        else:
            self._tell(db, progress)
            operations.all_registered(db, self.held)
            enqueue(db, Job.PROJECT)  # it also ends operations that have nothing left to do

    def _tell(self, db: Session, progress: scan.Progress) -> bool:
        return operations.progress(
            db,
            self.held,
            done=progress.done,
            total=progress.total,
            counts={**progress.counts, **self.labels.counts},
            cursor=progress.stored_cursor,
        )


def _others_wait(db: Session) -> bool:
    """Whether another scan, a pull, or sent files that are to be read again are due."""
    kinds = (OperationKind.SCAN, OperationKind.PULL)
    return any(operations.due(db, kind) for kind in kinds) or bool(files.again(db, 0, 1))


def advance_pull(
    begin: Begin,
    inspector: Inspector,
    blobs: Blobs,
    access_of: Callable[[str, Mapping[str, str]], Access],
    rules: Rules,
    *,
    most: int,
) -> bool:
    """Give one due pull a turn; return True if there may be more to do.

    Args:
        access_of: returns the access to an archive, by its name or address and the operation's user and secret files.
        most: maximum bytes of one file.
    """
    until = time.monotonic() + TURN_S
    with turn(begin, OperationKind.PULL, ARCHIVE_AWAY_S) as held:
        if held is None:
            return False
        params = held.params
        if wait_s := closed_s(params.get("between")):
            with begin() as db:
                operations.rest(db, held, min(wait_s, LOOK_S))
            return True
        with begin() as db:
            progress = pull.Progress.of(operations.get(db, held.id))

        def report(db: Session, progress: pull.Progress) -> bool:
            heartbeat.beat()
            return _tell_pull(db, held, progress, max(progress.total, progress.done))

        own: dict[str, str] = {name: params[name] for name in ("user", "password_file", "token_file") if name in params}
        access = access_of(params["source"], own)
        with Archive(access) as archive:
            one = Pull(
                begin=begin,
                inspector=inspector,
                blobs=blobs,
                archive=archive,
                plan=_plan(params),
                progress=progress,
                origin=pull.origin_of(access.url, held.id),
                rules=rules,
                report=report,
                over=lambda: time.monotonic() > until or closed_s(params.get("between")) > 0,
                most=most,
            )
            _carry_on(held, one)
    return True


def _tell_pull(db: Session, held: Held, progress: pull.Progress, total: int) -> bool:
    counts, cursor = progress.counts, progress.cursor or None
    return operations.progress(db, held, done=progress.done, total=total, counts=counts, cursor=cursor)


def _plan(params: Mapping[str, Any]) -> pull.Plan:
    first, last = (date.fromisoformat(params[name]) if name in params else None for name in ("first", "last"))
    return pull.Plan(query=params["query"], first=first, last=last, rate_per_s=params.get("rate"))


def _carry_on(held: Held, one: Pull) -> None:
    """Run the turn; then the next one is due, the pull was cancelled, or only its images are still waited for."""
    try:
        done = one.run()
    except pull.Stopped:
        with one.begin() as db:
            operations.end(db, held, OperationState.CANCELLED)
        return
    with one.begin() as db:
        if not done:
            operations.rest(db, held, 0)
            return
        _tell_pull(db, held, one.progress, one.progress.done)
        operations.all_registered(db, held)
        enqueue(db, Job.PROJECT)  # it also ends operations that have nothing left to do
