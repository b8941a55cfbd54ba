from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import Row

from services.api.answers import ImageOut, JournalOut, StudiesOut, StudyDetail, StudyOut
from services.api.auth import HELD_BACK, may_see
from services.api.dependencies import CanRead, Rt
from services.api.errors import explain
from services.api.paging import read_cursor, write_cursor
from services.api.schemas import StudiesIn, Uid
from shared.errors import NotFound
from shared.store import arrivals, catalog, generations
from shared.store.keys import Bearer
from shared.types import Status

router = APIRouter(tags=["studies"])

JUDGED = frozenset({Status.ENCODED, Status.QUARANTINED, Status.REJECTED})

_WAITING: Mapping[str, str] = {
    Status.RECEIVED: "It waits to be encoded.",
    Status.ENCODING: "It is being encoded.",
    Status.QUARANTINED: "A gate stopped it; a person decides.",
    Status.REJECTED: "A person rejected it.",
    Status.EMPTY: "It holds no image to compare.",
    Status.FAILED: "It could not be encoded.",
}


@router.get("/v1/studies")
def list_studies(rt: Rt, _: CanRead, asked: Annotated[StudiesIn, Query()]) -> StudiesOut:
    """Studies, the latest taken in first."""
    before = read_cursor(asked.cursor)
    with rt.store.reading() as connection:
        rows = catalog.studies(connection, asked.wanted(), before, asked.limit + 1)
    shown = rows[: asked.limit]
    return {
        "studies": [_study(row) for row in shown],
        "next": write_cursor(shown[-1].id) if len(rows) > len(shown) else None,
    }


def _study(row: Row[Any]) -> StudyOut:
    return {
        "study_instance_uid": row.uid,
        "study_date": row.study_date,
        "modalities": [m for m in row.modalities if m],
        "images": int(row.images),
        "statuses": row.statuses,
        "searchable": row.searchable,
        "taken_in_at": row.created_at,
    }


@router.get("/v1/studies/{study_instance_uid}")
def show_study(rt: Rt, bearer: CanRead, study_instance_uid: Uid) -> StudyDetail:
    """One study with its images: their state, and why an image is not searchable."""
    with rt.store.reading() as connection:
        found = catalog.study(connection, study_instance_uid)
        published = generations.published(connection) is not None
    if found is None:
        raise NotFound("no such study")
    study, images = found
    return {
        "study_instance_uid": study.uid,
        "study_date": study.study_date,
        "taken_in_at": study.created_at,
        "series": [
            {
                "series_instance_uid": uid,
                "modality": rows[0].modality,
                "images": [_image(row, bearer, published=published) for row in rows],
            }
            for uid, rows in ((uid, list(rows)) for uid, rows in groupby(images, key=lambda row: row.series_uid))
        ],
    }


@router.get("/v1/studies/{study_instance_uid}/journal")
def study_journal(
    rt: Rt, _: CanRead, study_instance_uid: Uid, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> JournalOut:
    """The study's journal, the latest first: what arrived from whom, and its outcome, including refused files."""
    with rt.store.reading() as connection:
        rows = arrivals.journal(connection, study_instance_uid, limit)
    if not rows:
        raise NotFound("no such study")
    return {
        "study_instance_uid": study_instance_uid,
        "journal": [
            {
                "at": row.at,
                "event": row.event,
                "outcome": row.outcome,
                "reason": row.reason,
                "explanation": explain(row.reason),
                "sop_instance_uid": row.sop_uid,
                "source": row.source,
                "sender": row.sender,
                "rule": row.rule,
            }
            for row in rows
        ],
    }


def _image(row: Row[Any], bearer: Bearer, *, published: bool) -> ImageOut:
    why_not = _why_not(row, published=published)
    shown = row.pictured and may_see(row.status, bearer)
    return {
        "sop_instance_uid": row.sop_uid,
        "sop_class_uid": row.sop_class,
        "transfer_syntax_uid": row.transfer_syntax,
        "modality": row.modality,
        "laterality": row.laterality,
        "view": row.view,
        "view_modifiers": row.view_modifiers,
        "body_part": row.body_part,
        "rows": row.rows,
        "columns": row.columns,
        "frames": row.frames,
        "labels": {
            **row.labels,
            **{n: getattr(row, n) for n in ("birads", "density", "pathology") if getattr(row, n) is not None},
        },
        "status": row.status,
        "gate": row.gate,
        "reason": row.reason,
        "score": row.score,
        "distance": row.distance,
        "calibrated": row.calibration_id is not None if row.status in JUDGED else None,
        "searchable": why_not is None,
        "why_not": why_not,
        "thumbnail": f"/v1/instances/{row.sop_uid}/thumbnail" if shown else None,
        "rendered": f"/v1/instances/{row.sop_uid}/rendered",
    }


def _why_not(row: Row[Any], *, published: bool) -> str | None:
    """Why the image is not searchable; None where it is. An image stays searchable while it is encoded again."""
    states = set(row.index_states or ())
    if states == {"applied"} and row.status not in HELD_BACK:
        return None
    if row.status in _WAITING:
        return " ".join(filter(None, (_WAITING[row.status], explain(row.reason))))
    if not published:
        return "No model is published yet."
    if "failed" in states:
        return "The index refused it."
    return "It waits to be written to the index." if states else "The published model has not encoded it."
