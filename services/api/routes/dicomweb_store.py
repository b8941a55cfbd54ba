"""STOW-RS (PS3.18 section 10.5): files are sent to us over HTTP."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from services.api import accept, dicom_json, storing
from services.api.dependencies import CanIngest, Rt, StoringPlaces
from services.api.dicomweb import base_of
from services.api.errors import UnsupportedMedia
from services.api.limits import Slots
from services.api.schemas import Uid
from services.api.storing import DICOM, FILES, Storing
from shared.errors import Invalid
from shared.multipart import Splitter, media_type
from shared.pipeline.arrive import Arrived, arrive
from shared.pipeline.streamed import Streamed
from shared.runtime import Runtime
from shared.store.arrivals import Origin
from shared.store.blobs import Part
from shared.store.keys import Bearer

router = APIRouter(prefix="/dicom-web", tags=["dicomweb"])

CHUNK = 1024 * 1024  #: bytes of one write, which runs in a thread beside the event loop
SILENCE_S = 60.0  #: a body that stalls for longer is given up
ARRIVES_WITHIN_S = 3600.0

_ANSWER: dict[str, Any] = {"content": {kind: {"schema": {"type": "object"}} for kind in dicom_json.OFFERED}}
_STORED: dict[int | str, dict[str, Any]] = {
    200: _ANSWER | {"description": "All files are stored durably"},
    202: _ANSWER | {"description": "Some files are stored; FailedSOPSequence has the outcome of the others"},
    409: _ANSWER | {"description": "No file is stored"},
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in FILES},
    }
}


@router.post("/studies", response_class=Response, responses=_STORED, openapi_extra=_BODY)
async def store(request: Request, rt: Rt, bearer: CanIngest, places: StoringPlaces) -> Response:
    """Take in files of any studies; the response has an outcome for each file, and stored files are durable."""
    return await _stored(request, rt, bearer, places, "")


@router.post("/studies/{study_instance_uid}", response_class=Response, responses=_STORED, openapi_extra=_BODY)
async def store_in_study(
    request: Request, rt: Rt, bearer: CanIngest, places: StoringPlaces, study_instance_uid: Uid
) -> Response:
    """Take in files of this study; files of another study fail with A900."""
    return await _stored(request, rt, bearer, places, study_instance_uid)


async def _stored(request: Request, rt: Runtime, bearer: Bearer, places: Slots, study: str) -> Response:
    kind = accept.best(request, dicom_json.OFFERED)
    splitter = _splitter(request)
    origin = Origin(source="stow", sender=bearer.name)

    def take(parts: Sequence[Part]) -> list[Arrived]:
        return arrive(rt.transaction, rt.sandbox, rt.blobs, parts, origin, rt.rules)

    files = Streamed(rt.blobs, take, expects=("", study), most=rt.sandbox.limits.file_bytes)
    with places.taken("storing"), files:  # these slots have no queue, so this never blocks the event loop
        body = Storing(files, splitter)
        try:
            async with asyncio.timeout(ARRIVES_WITHIN_S):
                await _pour(request, body)
                answers = await run_in_threadpool(body.finish)
        except TimeoutError:
            raise Invalid("the body did not arrive in time") from None
        except ClientDisconnect:
            raise Invalid("the client disconnected before the body was complete") from None
    status, told = storing.told(answers, base_of(request))
    return Response(to_json(told), status, media_type=kind)


def _splitter(request: Request) -> Splitter | None:
    """The splitter for a multipart body; None for a single file. Raises: `UnsupportedMedia`, `Invalid`."""
    kind, given = media_type(request.headers.get("content-type", ""))
    if kind == DICOM:
        return None
    if kind != "multipart/related" or given.get("type", DICOM).lower() != DICOM:
        raise UnsupportedMedia(f'send multipart/related; type="{DICOM}", or {DICOM}')
    return Splitter(given.get("boundary", ""))


async def _pour(request: Request, body: Storing) -> None:
    """Write the body to the disk as it arrives, in chunks."""
    stream, held = aiter(request.stream()), bytearray()
    while True:
        async with asyncio.timeout(SILENCE_S):
            chunk = await anext(stream, None)
        if chunk is not None:
            held += chunk
        if held and (chunk is None or len(held) >= CHUNK):
            await run_in_threadpool(body.feed, bytes(held))
            held.clear()
        if chunk is None:
            return
