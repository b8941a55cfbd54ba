"""QIDO-RS (PS3.18 section 10.6): studies, series and instances by the attributes that Similis keeps."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json

from services.api import accept, dicom_json, qido
from services.api.answers import headed
from services.api.dependencies import CanRead, Rt
from services.api.dicomweb import base_of
from services.api.schemas import Uid
from shared.runtime import Runtime
from shared.store import qido as rows
from shared.store.qido import Level

router = APIRouter(prefix="/dicom-web", tags=["dicomweb"])

_WARNED = headed("Warning", "299: what was not matched, or that there are more matches")
_FOUND: dict[int | str, dict[str, Any]] = {
    200: _WARNED
    | {
        "description": "The matches, in the DICOM JSON model",
        "content": {kind: {"schema": {"type": "array", "items": {"type": "object"}}} for kind in dicom_json.OFFERED},
    },
    204: _WARNED | {"description": "No match, or no further match"},
}
_MORE = "There are additional results that can be requested"  #: PS3.18 section 8.3.4.4
_TEXTS = {
    "UI": r"^([0-9.]{1,64}(,[0-9.]{1,64})*)?$",
    "DA": r"^(\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8})?$",
    "US": r"^(\d{1,9}(,\d{1,9})*)?$",
    "IS": r"^(\d{1,9}(,\d{1,9})*)?$",
    "CS": r"^([A-Za-z0-9_ *?]{1,16}(,[A-Za-z0-9_ *?]{1,16})*)?$",
    "LO": r"^[A-Za-z0-9_ *?.-]{0,64}$",
}


def _documented() -> dict[str, Any]:
    matched = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"May also be given as {dicom_json.ATTRIBUTES[name][0]}",
            "schema": {"type": "string", "pattern": _TEXTS[dicom_json.ATTRIBUTES[name][1]]},
        }
        for name in qido.MATCHED
    ]
    numbers = (
        ("limit", 1, qido.LIMIT, f"Matches to return; at most {qido.MOST}"),
        ("offset", 0, 0, "Matches to skip"),
    )
    paging = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": meaning,
            "schema": {"type": "integer", "minimum": least, "maximum": qido.FARTHEST, "default": default},
        }
        for name, least, default, meaning in numbers
    ]
    words = [
        ("includefield", {"type": "array", "items": {"type": "string", "enum": ["all", *dicom_json.ATTRIBUTES]}}),
        ("fuzzymatching", {"type": "string", "enum": ["true", "false"]}),
    ]
    more = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in words]
    return {"parameters": [*matched, *paging, *more]}


def _found(request: Request, rt: Runtime, level: Level, **named: str) -> Response:
    kind = accept.best(request, dicom_json.OFFERED)
    asked = qido.read(request.query_params.multi_items(), level)
    matching = replace(asked.matching, values={**asked.matching.values, **{k: [uid] for k, uid in named.items()}})
    with rt.store.reading() as connection:
        found = rows.find(connection, level, matching, asked.limit + 1, asked.offset)
    warnings = [*asked.warnings, *([_MORE] if len(found) > asked.limit else [])]
    headers = {"Warning": ", ".join(f'299 similis "{warning}"' for warning in warnings)} if warnings else {}
    if not found:
        return Response(status_code=204, headers=headers)
    body = to_json([qido.answer(row, asked.fields, base_of(request)) for row in found[: asked.limit]])
    return Response(body, headers=headers, media_type=kind)


_HOW: dict[str, Any] = {"response_class": Response, "responses": _FOUND, "openapi_extra": _documented()}


@router.get("/studies", **_HOW)
def studies(request: Request, rt: Rt, _: CanRead) -> Response:
    """Matching studies, in the order in which they were taken in."""
    return _found(request, rt, "study")


@router.get("/series", **_HOW)
def series(request: Request, rt: Rt, _: CanRead) -> Response:
    """Series of any study."""
    return _found(request, rt, "series")


@router.get("/instances", **_HOW)
def instances(request: Request, rt: Rt, _: CanRead) -> Response:
    """Instances of any study."""
    return _found(request, rt, "instance")


@router.get("/studies/{study_instance_uid}/series", **_HOW)
def series_of_study(request: Request, rt: Rt, _: CanRead, study_instance_uid: Uid) -> Response:
    """Series of this study."""
    return _found(request, rt, "series", StudyInstanceUID=study_instance_uid)


@router.get("/studies/{study_instance_uid}/instances", **_HOW)
def instances_of_study(request: Request, rt: Rt, _: CanRead, study_instance_uid: Uid) -> Response:
    """Instances of this study."""
    return _found(request, rt, "instance", StudyInstanceUID=study_instance_uid)


@router.get("/studies/{study_instance_uid}/series/{series_instance_uid}/instances", **_HOW)
def instances_of_series(
    request: Request, rt: Rt, _: CanRead, study_instance_uid: Uid, series_instance_uid: Uid
) -> Response:
    """Instances of this series."""
    named = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}
    return _found(request, rt, "instance", **named)
