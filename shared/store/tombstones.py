"""What was erased and must not come back, as keyed hashes, which identify nobody without the secret.

An erasure holds `Lock.INTAKE` exclusively, registering files shares it: no file is registered during an erasure.
"""

import hmac
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.store.tables import Tombstone

Kind = Literal["image", "study", "patient"]


def digest(secret: bytes, kind: Kind, name: str | bytes) -> bytes:
    """16 bytes that name an image or a study by its UID, or a patient by the keyed pseudonym.

    Source: RFC 2104, HMAC-SHA-256, truncated to 128 bits.
    """
    text = name.encode() if isinstance(name, str) else name
    return hmac.digest(secret, f"erased {kind} ".encode() + text, "sha256")[:16]


def add(db: Session, digests: Mapping[bytes, Kind], operation_id: uuid.UUID) -> None:
    """Add tombstones of this erasure; one that exists already stays with its earlier erasure."""
    if digests:
        db.execute(
            sa.text(
                "INSERT INTO tombstone (digest, kind, operation_id) SELECT u.digest, u.kind, CAST(:operation AS uuid) "
                "FROM unnest(CAST(:digests AS bytea[]), CAST(:kinds AS text[])) AS u(digest, kind) "
                "ON CONFLICT DO NOTHING"
            ),
            {"digests": list(digests), "kinds": list(digests.values()), "operation": operation_id},
        )


def present(db: Session, digests: Iterable[bytes]) -> set[bytes]:
    """Those of these digests that have a tombstone."""
    rows = db.execute(
        sa.text("SELECT digest FROM tombstone WHERE digest = ANY(CAST(:digests AS bytea[]))"),
        {"digests": list(digests)},
    )
    return set(rows.scalars())


def standing(db: Session) -> tuple[int, datetime | None]:
    """The number of tombstones, and when the last one was added: changes whenever the tombstones do."""
    count, last = db.execute(sa.select(sa.func.count(), sa.func.max(Tombstone.created_at))).one()
    return count, last


def every(db: Session) -> Sequence[Tombstone]:
    """All tombstones, ordered by digest."""
    return db.scalars(sa.select(Tombstone).order_by(Tombstone.digest)).all()


def find(db: Session, name: bytes) -> Tombstone | None:
    return db.get(Tombstone, name)


def lift(db: Session, operation_id: uuid.UUID) -> int:
    """Delete the tombstones of this erasure; returns how many there were."""
    rows = db.execute(
        sa.text("DELETE FROM tombstone WHERE operation_id = :operation RETURNING digest"), {"operation": operation_id}
    )
    return len(rows.all())
