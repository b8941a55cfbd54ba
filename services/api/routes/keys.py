from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from services.api.answers import KeyMade, KeyOut, KeysOut
from services.api.dependencies import CanAdmin, Db
from services.api.schemas import MOST_ID, KeyIn
from shared.store import keys, reviews
from shared.store.tables import ApiKey

router = APIRouter(tags=["keys"])


@router.get("/v1/keys", response_model=KeysOut)
def list_keys(db: Db, _: CanAdmin) -> dict[str, Any]:
    """All keys, without their secrets."""
    return {"keys": [KeyOut.model_validate(row) for row in keys.every(db)]}


@router.post("/v1/keys", status_code=201, response_model=KeyMade)
def make_key(db: Db, bearer: CanAdmin, asked: KeyIn, response: Response) -> dict[str, Any]:
    """A new key. Its secret is in this answer and nowhere else."""
    secret = keys.generate()
    ends = None if asked.days is None else datetime.now(UTC) + timedelta(days=asked.days)
    row: ApiKey = keys.ensure(db, secret, name=asked.name, scopes=asked.scopes, expires_at=ends)
    db.refresh(row)
    reviews.audit(db, bearer.actor, "key-create", {"key": row.id, "scopes": row.scopes})
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return KeyOut.model_validate(row).model_dump() | {"secret": secret}


@router.delete("/v1/keys/{key_id}", status_code=204)
def revoke_key(db: Db, bearer: CanAdmin, key_id: Annotated[int, Path(ge=1, le=MOST_ID)]) -> Response:
    """Revoke the key; within a second every API process refuses it."""
    keys.revoke(db, key_id)
    reviews.audit(db, bearer.actor, "key-revoke", {"key": key_id})
    return Response(status_code=204)
