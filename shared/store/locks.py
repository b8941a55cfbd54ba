"""Three advisory locks, for what row locks cannot protect because the rows do not exist yet. Held until the commit."""

from enum import IntEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

SPACE = 0x53494D  # "SIM": keeps these locks apart from other advisory locks in the database


class Lock(IntEnum):
    GENERATIONS = 1  #: shared to write or apply ledgers; exclusive to change generations or thresholds
    INTAKE = 2  #: shared to register files; exclusive to erase
    CREATING = 3  #: shared to create a collection, until its row is written; exclusive to look for strays


def share(db: Session, lock: Lock) -> None:
    """Take the lock in shared mode. Call it before any row is locked."""
    db.execute(sa.text("SELECT pg_advisory_xact_lock_shared(:space, :lock)"), {"space": SPACE, "lock": lock.value})


def alone(db: Session, lock: Lock) -> None:
    """Take the lock exclusively: all that shared it have committed, and none shares it until the caller commits."""
    db.execute(sa.text("SELECT pg_advisory_xact_lock(:space, :lock)"), {"space": SPACE, "lock": lock.value})
