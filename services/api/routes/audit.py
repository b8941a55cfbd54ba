"""The audit trail: who reviewed, erased, calibrated and published what, and when."""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.answers import AuditOut
from services.api.dependencies import CanAudit, Db
from services.api.paging import read_cursor, write_cursor
from services.api.schemas import AuditIn
from shared.store import reviews

router = APIRouter(tags=["audit"])


@router.get("/v1/audit")
def list_audit(db: Db, _: CanAudit, asked: Annotated[AuditIn, Query()]) -> AuditOut:
    """Audited actions, the latest first: which key did what to which image or generation, with its parameters."""
    rows = reviews.audited(db, read_cursor(asked.cursor), asked.limit + 1, asked.action)
    shown = rows[: asked.limit]
    return {
        "entries": [
            {
                "id": row.id,
                "at": row.at,
                "actor": row.actor,
                "key": row.key_id,
                "action": row.action,
                "item": None if row.image_id is None else f"image-{row.image_id}",
                "details": row.details,
            }
            for row in shown
        ],
        "next": write_cursor(shown[-1].id) if len(rows) > len(shown) else None,
    }
