"""Three locks of the database, where rows cannot be locked because they do not stand yet. Held until the commit."""

from enum import IntEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

SPACE = 0x53494D  # "SIM": apart from whatever else locks in this database


class Lock(IntEnum):
    GENERATIONS = 1  #: shared by who writes or applies ledgers; alone for who opens, publishes or retires
    INTAKE = 2  #: shared by who registers files; alone for who erases
    CREATING = 3  #: shared by who makes a collection, until its row stands; alone for who looks for strays


def share(db: Session, lock: Lock) -> None:
    """Many hold it at once, while nobody holds it alone. To be taken before any row is locked."""
    db.execute(sa.text("SELECT pg_advisory_xact_lock_shared(:space, :lock)"), {"space": SPACE, "lock": lock.value})


def alone(db: Session, lock: Lock) -> None:
    """Whoever shared it has committed, and nobody shares it until we have."""
    db.execute(sa.text("SELECT pg_advisory_xact_lock(:space, :lock)"), {"space": SPACE, "lock": lock.value})
