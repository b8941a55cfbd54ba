"""API keys: 32 random bytes, shown once, kept as SHA-256; compared by lookup of the digest."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.errors import Invalid, NotFound
from shared.store.reviews import Actor
from shared.store.tables import ApiKey

PREFIX = "sml_"


class Scope(StrEnum):
    SEARCH = "search"
    READ = "read"
    RETRIEVE = "retrieve"  # original files, which name the patient
    INGEST = "ingest"
    REVIEW = "quarantine:review"
    REINDEX = "reindex"
    ERASE = "erase"
    AUDIT = "audit:read"
    ADMIN = "admin"  # keys, models, and pulling from another archive


ALL = tuple(Scope)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who is calling."""

    id: int
    name: str
    prefix: str
    scopes: frozenset[str]

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.id)


def generate() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def ensure(
    db: Session, secret: str, *, name: str, scopes: Iterable[str] = ALL, expires_at: datetime | None = None
) -> ApiKey:
    """The key is known with these scopes; calling it again with the same secret changes nothing.

    Raises: `Invalid` for a secret that is too short to be random, or an unknown scope.
    """
    if len(secret) < 32:
        raise Invalid("an API key has at least 32 characters")
    unknown = set(scopes) - set(ALL)
    if unknown:
        raise Invalid(f"unknown scopes: {', '.join(sorted(unknown))}")
    digest = hashlib.sha256(secret.encode()).digest()
    row = db.scalar(sa.select(ApiKey).where(ApiKey.digest == digest))
    if row is None:
        row = ApiKey(
            name=name,
            prefix=secret[: len(PREFIX) + 4],
            digest=digest,
            scopes=[Scope(scope).value for scope in scopes],
            expires_at=expires_at,
        )
        db.add(row)
        db.flush()  # the caller shows its id
    return row


def identify(connection: sa.Connection, secret: str) -> Bearer | None:
    """Who holds this key now, or None for unknown, expired and revoked alike."""
    row = connection.execute(
        sa.text(
            "SELECT id, name, prefix, scopes FROM api_key WHERE digest = :digest AND revoked_at IS NULL "
            "AND (expires_at IS NULL OR expires_at > clock_timestamp())"
        ),
        {"digest": hashlib.sha256(secret.encode()).digest()},
    ).one_or_none()
    return None if row is None else Bearer(row.id, row.name, row.prefix, frozenset(row.scopes))


def touch(db: Session, key_id: int) -> None:
    db.execute(sa.update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=sa.func.clock_timestamp()))


def revoke(db: Session, key_id: int) -> bool:
    """Refuse the key from the commit on; return whether it was not revoked before.

    Raises: `NotFound`.
    """
    found = get(db, key_id, lock=True)
    if found.revoked_at is not None:
        return False
    found.revoked_at = sa.func.clock_timestamp()
    return True


def get(db: Session, key_id: int, *, lock: bool = False) -> ApiKey:
    """Raises: `NotFound`."""
    found = db.get(ApiKey, key_id, with_for_update=lock)
    if found is None:
        raise NotFound("no such key")
    return found


def every(db: Session) -> list[ApiKey]:
    return list(db.scalars(sa.select(ApiKey).order_by(ApiKey.id)))
