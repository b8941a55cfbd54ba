"""Which key this database's pseudonyms were made with. Under another one, nobody in it would be known again.

What was erased would be taken in again, and a patient who returns would be a stranger to their own earlier studies.
"""

import hmac

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import Conflict
from shared.imaging.pseudonym import KEY_BYTES
from shared.store.tables import PseudonymKey


def claim(db: Session, secret: bytes) -> None:
    """Bind the database to this key, unless it is bound already; a key that is too short is none yet.

    Raises: `Conflict` where it is bound to another one.
    """
    if len(secret) < KEY_BYTES:
        return
    db.execute(insert(PseudonymKey).values(mark=_mark(secret)).on_conflict_do_nothing())
    check(db.connection(), secret)


def check(connection: sa.Connection, secret: bytes) -> None:
    """Raises: `Conflict` where the database is bound to another key."""
    mark = connection.execute(sa.select(PseudonymKey.mark)).scalar()
    if mark is not None and not hmac.compare_digest(mark, _mark(secret)):
        raise Conflict(
            "the pseudonym key is not the one that this database was made with: put that one back, from a backup"
        )


def _mark(secret: bytes) -> bytes:
    return hmac.digest(secret, b"the key of this database's pseudonyms", "sha256")[:16]
