from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Response

from services.api.answers import LOCATED, KeyMade, KeyOut, KeysOut
from services.api.dependencies import CanAdmin, Db
from services.api.schemas import Id, KeyIn
from shared.store import keys, reviews
from shared.store.tables import ApiKey

router = APIRouter(tags=["keys"])


@router.get("/v1/keys")
def list_keys(db: Db, _: CanAdmin) -> KeysOut:
    """All keys, without their secrets."""
    return {"keys": [_key(row) for row in keys.every(db)]}


@router.post("/v1/keys", status_code=201, responses={201: LOCATED})
def make_key(db: Db, bearer: CanAdmin, asked: KeyIn, response: Response) -> KeyMade:
    """A new key. Its secret is in this answer and nowhere else."""
    secret = keys.generate()
    ends = None if asked.days is None else datetime.now(UTC) + timedelta(days=asked.days)
    row: ApiKey = keys.ensure(db, secret, name=asked.name, scopes=asked.scopes, expires_at=ends)
    db.refresh(row)
    reviews.audit(db, bearer.actor, "key-create", {"key": row.id, "scopes": row.scopes})
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return {**_key(row), "secret": secret}


@router.get("/v1/keys/{key_id}")
def show_key(db: Db, _: CanAdmin, key_id: Id) -> KeyOut:
    """One key, without its secret."""
    return _key(keys.get(db, key_id))


@router.delete("/v1/keys/{key_id}", status_code=204)
def revoke_key(db: Db, bearer: CanAdmin, key_id: Id) -> Response:
    """Revoke the key; within a second each API process refuses it (`/metrics` if the database is there). Idempotent."""
    if keys.revoke(db, key_id):
        reviews.audit(db, bearer.actor, "key-revoke", {"key": key_id})
    return Response(status_code=204)


def _key(row: ApiKey) -> KeyOut:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "last_used_at": row.last_used_at,
        "revoked_at": row.revoked_at,
    }
