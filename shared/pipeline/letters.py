"""Retry dead letters: one, or all of a kind or a reason."""

import uuid
from collections import Counter
from collections.abc import Sequence

from sqlalchemy.orm import Session

from shared.errors import Invalid, NotFound
from shared.store import letters, operations, reviews
from shared.store.letters import Kind, Wanted
from shared.store.locks import Lock, share
from shared.store.reviews import Actor
from shared.store.session import enqueue
from shared.types import Job

MOST_AT_ONCE = 10_000

_RUNG: dict[Kind, Job] = {"image": Job.ENCODE, "encoding": Job.CATCH_UP, "point": Job.PROJECT, "file": Job.SCAN}


def retry(db: Session, letter: str, actor: Actor) -> None:
    """Make this dead letter due again. Raises: `NotFound` if it is no dead letter, or not any more."""
    share(db, Lock.GENERATIONS)  # a publish counts which points are due
    kind: Kind = letter.partition("-")[0]  # type: ignore[assignment]  # the route's pattern admits only kinds
    if not _due(db, kind, [letter]):
        raise NotFound("no such dead letter")
    reviews.audit(db, actor, "retry", {"letter": letter})


def retry_many(db: Session, wanted: Wanted, actor: Actor) -> Counter[str]:
    """Make all dead letters of a kind or reason due again, at most the latest 10,000; return how many of each kind.

    Raises: `Invalid` if neither is named.
    """
    if wanted.kind is None and wanted.reason is None:
        raise Invalid("name a kind or a reason to retry")
    share(db, Lock.GENERATIONS)
    found = letters.page(db, wanted, None, MOST_AT_ONCE)
    done: Counter[str] = Counter()
    for kind in _RUNG:
        if names := [row.letter for row in found if row.kind == kind]:
            done[kind] = _due(db, kind, names)
    reviews.audit(db, actor, "retry", {"kind": wanted.kind, "reason": wanted.reason, "letters": done.total()})
    return done


def _due(db: Session, kind: Kind, names: Sequence[str]) -> int:
    found = letters.due_again(db, kind, names)
    scan_again(db, found)
    enqueue(db, _RUNG[kind])
    return len(found)


def scan_again(db: Session, found: Sequence[uuid.UUID | None]) -> None:
    """Retry the ended scans that found files to be read again; cancelled ones are left alone.

    None stands for a file of the store of sent files. A file of a cancelled scan waits for another scan that finds it.
    """
    operations.retry_ended(db, {one for one in found if one is not None})
    if found:
        enqueue(db, Job.SCAN)
        enqueue(db, Job.PULL)
