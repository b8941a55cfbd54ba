"""Binds a database to the key of its pseudonyms. Under another key, no patient in it would be recognised.

Erased images would be taken in again, and a patient's new studies would not be linked to the earlier ones.
"""

import hmac

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import Conflict
from shared.imaging.pseudonym import KEY_BYTES
from shared.store.tables import PseudonymKey


def claim(db: Session, secret: bytes) -> None:
    """Bind the database to this key, unless it is bound already; a key shorter than `KEY_BYTES` is ignored.

    Raises: `Conflict` where the database is bound to another key.
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
            "the pseudonym key differs from the one this database was created with: restore that key from a backup"
        )


def _mark(secret: bytes) -> bytes:
    return hmac.digest(secret, b"the key of this database's pseudonyms", "sha256")[:16]
