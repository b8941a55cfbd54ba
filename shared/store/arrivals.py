"""The journal: which file came when, from whom, with what outcome. Rows are only added, and erased with their study."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.types import FileOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where files come from: a folder, a DICOM peer, an API key, another archive."""

    source: str  #: folder, dicom, stow or backfill; store: a file of our store whose origin is no longer known
    sender: str = ""  #: AE title, name of an API key, or host; never a path
    called: str = ""  #: the AE title that the sender called
    operation_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One file that arrived. A file that was erased or could not be read has no UIDs."""

    study_uid: str = ""
    sop_uid: str = ""
    outcome: FileOutcome
    reason: str | None = None
    rule: str = ""
    image_id: int | None = None


_ADD = sa.text(
    """
    INSERT INTO arrival (source, sender, called, operation_id, study_uid, sop_uid, outcome, reason, rule, image_id)
    SELECT :source, :sender, :called, CAST(:operation AS uuid), u.*
    FROM unnest(CAST(:studies AS text[]), CAST(:sops AS text[]), CAST(:outcomes AS text[]), CAST(:reasons AS text[]),
                CAST(:rules AS text[]), CAST(:images AS bigint[])) AS u
    """
)


def add(db: Session, arrivals: Sequence[Arrival], origin: Origin) -> None:
    """Write one journal line for each arrival."""
    if not arrivals:
        return
    db.execute(
        _ADD,
        {
            "source": origin.source,
            "sender": origin.sender,
            "called": origin.called,
            "operation": origin.operation_id,
            "studies": [a.study_uid for a in arrivals],
            "sops": [a.sop_uid for a in arrivals],
            "outcomes": [a.outcome for a in arrivals],
            "reasons": [a.reason for a in arrivals],
            "rules": [a.rule for a in arrivals],
            "images": [a.image_id for a in arrivals],
        },
    )


_CAME = sa.text(
    "SELECT source, sender, called, operation_id FROM arrival WHERE study_uid = :study AND sop_uid = :sop "
    "AND source <> 'folder' ORDER BY id DESC LIMIT 1"
)


def came(db: Session, study_uid: str, sop_uid: str) -> Origin:
    """The latest origin of an instance that was sent to us; the source `store` where the journal has none."""
    row = db.execute(_CAME, {"study": study_uid, "sop": sop_uid}).one_or_none()
    return Origin(source="store") if row is None else Origin(**row._mapping)  # noqa: SLF001 - public despite its name


_JOURNAL = sa.text(
    """
    WITH here AS (SELECT i.* FROM image i JOIN study s ON s.id = i.study_id WHERE s.uid = :uid
                  AND i.status <> 'deleted')
    SELECT * FROM (
        SELECT a.at, 'arrived' AS event, a.outcome, a.reason, a.sop_uid, a.source, a.sender, a.rule
        FROM arrival a WHERE a.study_uid = :uid
        UNION ALL
        SELECT settled_at, 'judged', status, reason, sop_uid, coalesce(gate, ''), '', '' FROM here
        WHERE settled_at IS NOT NULL
        UNION ALL
        SELECT r.created_at, 'reviewed', r.decision, r.reason, h.sop_uid, r.gate, r.reviewer, ''
        FROM review r JOIN here h ON h.id = r.image_id
        UNION ALL
        SELECT l.applied_at, 'indexed', l.state, l.last_error, h.sop_uid, 'generation ' || l.generation_id, '', ''
        FROM ledger l JOIN here h ON h.id = l.image_id WHERE l.applied_at IS NOT NULL AND l.op = 'upsert'
    ) AS journal ORDER BY at DESC, sop_uid LIMIT :limit
    """
)


def journal(connection: sa.Connection, study_uid: str, limit: int) -> Sequence[sa.Row[Any]]:
    """What happened to a study, the latest first: (at, event, outcome, reason, sop_uid, source, sender, rule)."""
    return connection.execute(_JOURNAL, {"uid": study_uid, "limit": limit}).all()
