"""The quarantine: what was stopped, what a person said of it, and who did what.

An item is an image that a gate stopped (`image-17`), or a file that was stopped before it became one (`file-4`).
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
    """Who acts: a key's name and number."""

    name: str
    key_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the queue is narrowed to; None does not narrow."""

    gate: str | None = None
    reason: str | None = None
    modality: str | None = None
    model_id: int | None = None  #: whose threshold stopped it
    since: datetime | None = None


class Item(NamedTuple):
    """One that was stopped; of a file, nothing is known of its image."""

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
    SELECT 'file', i.id, i.gate, i.reason, i.seen_at, NULL, NULL, NULL, CAST(NULL AS real), CAST(NULL AS float8),
           CAST(NULL AS real), CAST(NULL AS float8), NULL, false, i.operation_id
    FROM file i WHERE i.outcome = 'quarantined' AND i.id < :before
      AND (CAST(:gate AS text) IS NULL OR i.gate = :gate) AND (CAST(:reason AS text) IS NULL OR i.reason = :reason)
      AND (CAST(:since AS timestamptz) IS NULL OR i.seen_at >= :since)
    ORDER BY i.id DESC LIMIT :limit
    """
)


def page(db: Session | sa.Connection, wanted: Wanted, before: tuple[str, int], limit: int) -> list[Item]:
    """The next ones after the key `before`: first images, then files, the latest first. ("image", 2**62) begins."""
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
    if len(found) < limit and wanted.modality is None and wanted.model_id is None:  # of a file neither is known
        rows = db.execute(_FILE_PAGE, values | {"before": number, "limit": limit - len(found)})
        found += [Item._make(row) for row in rows]
    return found


class Stopped(NamedTuple):
    """A locked image, as far as a decision needs it."""

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
    """The image as it is once nobody else decides on it; None where there is none, or it was erased."""
    row = db.execute(_LOCK, {"id": image_id}).one_or_none()
    return None if row is None or row.status == Status.DELETED else Stopped._make(row)


def stands(db: Session, image_id: int) -> bool:
    """There is such an image, and it was not erased."""
    statement = sa.text("SELECT EXISTS (SELECT 1 FROM image WHERE id = :id AND status <> 'deleted')")
    return bool(db.execute(statement, {"id": image_id}).scalar_one())


def of(db: Session, image_id: int) -> Sequence[Review]:
    """What was said of an image, of other bytes too, the latest first."""
    return db.scalars(sa.select(Review).where(Review.image_id == image_id).order_by(Review.id.desc())).all()


def add(db: Session, stopped: Stopped, decision: Decision, actor: Actor, note: str) -> Review:
    """The decision stands."""
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
    """It is on record who did it. Details are words and numbers of ours, never what somebody typed."""
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
    """What was done before the entry of this number, the latest first; all actions, or one."""
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
    """Stopped images, locked by the caller, have this status."""
    check_move(Status.QUARANTINED, status)
    db.execute(_MOVE, {"ids": list(images), "status": status.value})


_PENDING = sa.text(
    "SELECT i.id FROM image i WHERE i.status = 'quarantined'" + _WANTED + "AND i.reason IS DISTINCT FROM :rule "
    "ORDER BY i.id LIMIT :limit FOR UPDATE"
)
_HELD = sa.text("SELECT count(*) FROM image i WHERE i.status = 'quarantined'" + _WANTED + "AND i.reason = :rule")


def lock_pending(db: Session, wanted: Wanted, limit: int) -> list[int]:
    """Images of a gate, a reason and a modality that a gate stopped, and no rule of the site."""
    return list(db.execute(_PENDING, _narrowed(wanted) | {"limit": limit}).scalars())


def held(db: Session, wanted: Wanted) -> int:
    """How many images of a gate, a reason and a modality a rule of the site holds."""
    return int(db.execute(_HELD, _narrowed(wanted)).scalar_one())


def _narrowed(wanted: Wanted) -> dict[str, object]:
    return {"gate": wanted.gate, "reason": wanted.reason, "modality": wanted.modality, "rule": Reason.SITE_RULE}
