"""The quarantine: the items that were stopped, the decisions on them, and the audit of who did what.

An item is an image that a gate stopped (`image-17`), or a file that was stopped before it became an image (`file-4`).
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import Reason
from shared.store.images import check_move
from shared.store.tables import Audit, Review
from shared.types import Decision, Status


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the name and id of an API key."""

    name: str
    key_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Filters of the quarantine's list; None does not filter."""

    gate: str | None = None
    reason: str | None = None
    modality: str | None = None
    model_id: int | None = None  #: the model whose threshold stopped the image
    since: datetime | None = None


class Item(NamedTuple):
    """A stopped image or file; a file has only its UIDs of the fields that describe an image, if it could be read."""

    kind: str
    id: int
    gate: str | None
    reason: str | None
    since: datetime | None
    sop_uid: str | None
    study_uid: str | None
    modality: str | None
    score: float | None
    threshold: float | None
    distance: float | None
    distance_threshold: float | None
    model: str | None
    pictured: bool
    operation_id: uuid.UUID | None


_IMAGES = """
    SELECT 'image' AS kind, i.id, i.gate, i.reason, i.settled_at AS since, i.sop_uid, s.uid AS study_uid, i.modality,
           i.score, c.threshold, i.distance, CAST(c.distances ->> 'threshold' AS float8) AS distance_threshold,
           m.name AS model,
           EXISTS (SELECT 1 FROM thumbnail t WHERE t.image_id = i.id) AS pictured, i.operation_id
    FROM image i JOIN study s ON s.id = i.study_id
    LEFT JOIN calibration c ON c.id = i.calibration_id LEFT JOIN model m ON m.id = c.model_id
    WHERE i.status = 'quarantined'
"""
_WANTED = """
      AND (CAST(:gate AS text) IS NULL OR i.gate = :gate)
      AND (CAST(:reason AS text) IS NULL OR i.reason = :reason)
      AND (CAST(:modality AS text) IS NULL OR i.modality = :modality)
"""
_IMAGE_PAGE = sa.text(
    _IMAGES
    + _WANTED
    + "AND i.id < :before AND (CAST(:model AS bigint) IS NULL OR c.model_id = :model) "
    + "AND (CAST(:since AS timestamptz) IS NULL OR i.settled_at >= :since) ORDER BY i.id DESC LIMIT :limit"
)
_FILE_PAGE = sa.text(
    """
    SELECT 'file', i.id, i.gate, i.reason, i.seen_at, i.sop_uid, i.study_uid, NULL, CAST(NULL AS real),
           CAST(NULL AS float8), CAST(NULL AS real), CAST(NULL AS float8), NULL, false, i.operation_id
    FROM file i WHERE i.outcome = 'quarantined' AND i.id < :before
      AND (CAST(:gate AS text) IS NULL OR i.gate = :gate) AND (CAST(:reason AS text) IS NULL OR i.reason = :reason)
      AND (CAST(:since AS timestamptz) IS NULL OR i.seen_at >= :since)
    ORDER BY i.id DESC LIMIT :limit
    """
)


def page(db: Session | sa.Connection, wanted: Wanted, before: tuple[str, int], limit: int) -> list[Item]:
    """The next items after the key `before`: images, then files, each the latest first. Begin with ("image", 2**62)."""
    kind, number = before
    values = {
        "gate": wanted.gate,
        "reason": wanted.reason,
        "modality": wanted.modality,
        "model": wanted.model_id,
        "since": wanted.since,
    }
    found: list[Item] = []
    if kind == "image":
        found = [Item._make(row) for row in db.execute(_IMAGE_PAGE, values | {"before": number, "limit": limit})]
        number = 2**62
    if len(found) < limit and wanted.modality is None and wanted.model_id is None:  # a file has neither
        rows = db.execute(_FILE_PAGE, values | {"before": number, "limit": limit - len(found)})
        found += [Item._make(row) for row in rows]
    return found


class Stopped(NamedTuple):
    """A locked image, with the fields that a decision needs."""

    id: int
    status: str
    gate: str | None
    reason: str | None
    score: float | None
    threshold: float | None
    distance: float | None
    distance_threshold: float | None
    digest: bytes
    since: datetime | None


_LOCK = sa.text(
    "SELECT i.id, i.status, i.gate, i.reason, i.score, c.threshold, i.distance, "
    "CAST(c.distances ->> 'threshold' AS float8), i.digest, i.settled_at "
    "FROM image i LEFT JOIN calibration c ON c.id = i.calibration_id WHERE i.id = :id FOR UPDATE OF i"
)


def lock(db: Session, image_id: int) -> Stopped | None:
    """Lock the image and return its current state; None if there is no such image, or it was erased."""
    row = db.execute(_LOCK, {"id": image_id}).one_or_none()
    return None if row is None or row.status == Status.DELETED else Stopped._make(row)


def stands(db: Session, image_id: int) -> bool:
    """Whether the image exists and was not erased."""
    statement = sa.text("SELECT EXISTS (SELECT 1 FROM image WHERE id = :id AND status <> 'deleted')")
    return bool(db.execute(statement, {"id": image_id}).scalar_one())


def of(db: Session, image_id: int) -> Sequence[Review]:
    """The decisions on an image, also those on other bytes, the latest first."""
    return db.scalars(sa.select(Review).where(Review.image_id == image_id).order_by(Review.id.desc())).all()


def add(db: Session, stopped: Stopped, decision: Decision, actor: Actor, note: str) -> Review:
    """Record the decision."""
    review = Review(
        image_id=stopped.id,
        digest=stopped.digest,
        decision=decision.value,
        gate=stopped.gate or "",
        reason=stopped.reason or "",
        score=stopped.score,
        threshold=stopped.threshold,
        distance=stopped.distance,
        distance_threshold=stopped.distance_threshold,
        reviewer=actor.name,
        key_id=actor.key_id,
        note=note,
    )
    db.add(review)
    return review


def audit(db: Session, actor: Actor, action: str, details: Mapping[str, object], image_id: int | None = None) -> None:
    """Write an audit entry. Its details are words and numbers of ours, never what a user typed."""
    db.execute(
        sa.text(
            "INSERT INTO audit (actor, key_id, action, image_id, details) "
            "VALUES (:actor, :key, :action, :image, CAST(:details AS jsonb))"
        ),
        {
            "actor": actor.name,
            "key": actor.key_id,
            "action": action,
            "image": image_id,
            "details": json.dumps(dict(details)),
        },
    )


def audited(db: Session, before: int, limit: int, action: str | None = None) -> Sequence[Audit]:
    """The audit entries with ids below `before`, the latest first; of all actions, or of one."""
    wanted = sa.select(Audit).where(Audit.id < before)
    if action is not None:
        wanted = wanted.where(Audit.action == action)
    return db.scalars(wanted.order_by(Audit.id.desc()).limit(limit)).all()


_MOVE = sa.text(
    """
    UPDATE image SET status = u.status,
        settled_at = CASE WHEN u.status <> 'received' THEN clock_timestamp() END,
        gate = CASE WHEN u.status = 'rejected' THEN gate END, reason = CASE WHEN u.status = 'rejected' THEN reason END,
        failures = 0, not_before = NULL, lease_until = NULL, last_error = NULL
    FROM (SELECT CAST(:status AS text) AS status) AS u WHERE id = ANY(CAST(:ids AS bigint[]))
    """
)


def move(db: Session, images: Sequence[int], status: Status) -> None:
    """Set the status of stopped images that the caller has locked."""
    check_move(Status.QUARANTINED, status)
    db.execute(_MOVE, {"ids": list(images), "status": status.value})


_PENDING = sa.text(
    "SELECT i.id FROM image i WHERE i.status = 'quarantined'" + _WANTED + "AND i.reason IS DISTINCT FROM :rule "
    "ORDER BY i.id LIMIT :limit FOR UPDATE"
)
_HELD = sa.text("SELECT count(*) FROM image i WHERE i.status = 'quarantined'" + _WANTED + "AND i.reason = :rule")


def lock_pending(db: Session, wanted: Wanted, limit: int) -> list[int]:
    """Lock and return the ids of stopped images of this gate, reason and modality that no admission rule holds."""
    return list(db.execute(_PENDING, _narrowed(wanted) | {"limit": limit}).scalars())


def held(db: Session, wanted: Wanted) -> int:
    """How many images of this gate, reason and modality an admission rule holds."""
    return int(db.execute(_HELD, _narrowed(wanted)).scalar_one())


def _narrowed(wanted: Wanted) -> dict[str, object]:
    return {"gate": wanted.gate, "reason": wanted.reason, "modality": wanted.modality, "rule": Reason.SITE_RULE}
