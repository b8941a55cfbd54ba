"""Searches. Their responses are serialised here, because FastAPI would validate a ranking first."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.api import present
from services.api.answers import BatchOut, RankingOut, headed
from services.api.dependencies import CanSearch, Decoding, Known, Measured, Rt, Uploads
from services.api.errors import TooLarge, UnsupportedMedia
from services.api.metrics import Metrics
from services.api.query_params import refuse_twice
from services.api.schemas import BatchIn, SearchIn, Uid, keyword
from shared.encoder.base import Encoder
from shared.errors import Invalid, NotFound, Unavailable
from shared.pipeline import question, search
from shared.pipeline.question import Ranking
from shared.runtime import Runtime
from shared.store.generations import Published

router = APIRouter(tags=["search"])

PICTURES = ("application/dicom", "image/png", "image/jpeg", "application/octet-stream")
MOST_AT_ONCE = 2000  #: k times the studies of one batch
MOST_JSON = 1024 * 1024
ARRIVES_WITHIN_S = 300.0  #: deadline for a body, so that a slow sender does not hold an upload slot


async def _asked(request: Request) -> SearchIn:
    """The search options of the query string, parsed by hand: FastAPI takes half a millisecond for such a model."""
    given: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        given.setdefault(keyword(name), []).append(value)
    refuse_twice({name: len(values) for name, values in given.items() if name not in LISTS})
    fields = {name: values if name in LISTS else values[-1] for name, values in given.items()}
    try:
        return SearchIn.model_validate(fields)
    except ValidationError as error:
        raise refused("query", error, SearchIn) from None


def refused(where: str, error: ValidationError, shape: type[SearchIn]) -> RequestValidationError:
    known = sorted(shape.model_fields)
    return RequestValidationError(
        [{**e, "loc": (where, *e["loc"]), "ctx": {**e.get("ctx", {}), "known": known}} for e in error.errors()]
    )


_SHAPES = SearchIn.model_json_schema()["properties"]
LISTS = frozenset(name for name, shape in _SHAPES.items() if "items" in shape)
#: the options as OpenAPI parameters
OPTIONS = [{"name": name, "in": "query", "required": False, "schema": shape} for name, shape in _SHAPES.items()]
Asked = Annotated[SearchIn, Depends(_asked)]
Body = bytes | Mapping[str, Any]


@router.get(
    "/v1/studies/{study_instance_uid}/similar",
    response_model=RankingOut,
    responses={200: headed("Link", "rel=next: the next page, if there is one")},
    openapi_extra={"parameters": OPTIONS},
)
def similar(_: CanSearch, request: Request, study_instance_uid: Uid, asked: Asked) -> Response:
    """The studies most like this one, best first."""
    started = time.perf_counter()
    rt: Runtime = request.app.state.rt
    wanted = asked.request()
    wanted.check(rt.settings.api.max_k)
    with rt.store.reading() as connection:
        (found,) = search.by_studies(connection, rt.index, [study_instance_uid], wanted)
    observe(request.app.state.metrics, rt, found)
    body = present.ranking(found, wanted, (time.perf_counter() - started) * 1000)
    return Response(to_json(body), headers=_next(request, found), media_type="application/json")


def _next(request: Request, found: Ranking) -> dict[str, str]:
    if found.next is None:
        return {}
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"Link": f'<{request.url.path}?{urlencode([*kept, ("cursor", found.next)])}>; rel="next"'}


def observe(metrics: Metrics, rt: Runtime, found: Ranking) -> None:
    backend = rt.settings.qdrant.url.partition(":")[0] or "memory"
    for stage, ms in found.timings_ms.items():
        metrics.searches.labels(stage, backend).observe(ms / 1000)
    if found.hidden_studies:
        metrics.hidden.labels("excluded").inc(found.hidden_studies)


async def _body(request: Request, bearer: CanSearch, uploads: Uploads) -> AsyncIterator[Body]:
    """A picture's bytes or a JSON object, read only when the caller is known and an upload slot is free.

    The slots bound the memory of uploads.

    Raises: `UnsupportedMedia`, `Invalid`, `TooLarge`; `Throttled` and `Unavailable` before anything is read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _object(await _arrived(_small(request)))
        return
    if kind not in (*PICTURES, "multipart/form-data"):
        raise UnsupportedMedia(f"send multipart/form-data with a file, application/json, or {', '.join(PICTURES)}")
    with uploads.taken("uploading", bearer.id):  # no one waits in line here, so this never blocks the loop
        yield await _arrived(_picture(request, kind))


async def _arrived(body: Awaitable[bytes]) -> bytes:
    """The body's bytes. Raises: `Invalid` where the sender is too slow, or has disconnected."""
    try:
        async with asyncio.timeout(ARRIVES_WITHIN_S):
            return await body
    except TimeoutError:
        raise Invalid(f"the body did not arrive within {ARRIVES_WITHIN_S:g} s") from None
    except ClientDisconnect:
        raise Invalid("the client disconnected before the body was complete") from None


async def _picture(request: Request, kind: str) -> bytes:
    if kind in PICTURES:
        return await request.body()
    try:
        async with request.form(max_files=1, max_fields=0) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Invalid("the form has no file named `file`")
            return await file.read()
    except HTTPException:
        raise Invalid("the form must hold one file named `file` and nothing else; put options into the URL") from None


async def _small(request: Request) -> bytes:
    """A JSON body. Raises: `TooLarge` as soon as it exceeds `MOST_JSON` bytes."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > MOST_JSON:
            raise TooLarge(f"a JSON body may have at most {MOST_JSON} bytes")
    return bytes(raw)


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise Invalid("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise Invalid("the body is not a JSON object")
    return fields


_FORM: dict[str, Any] = {
    "parameters": OPTIONS,
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": "DICOM, PNG, JPEG"}},
                }
            },
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURES},
            "application/json": {"schema": {"$ref": "#/components/schemas/BatchIn"}},
        },
    },
}


@router.post("/v1/searches", response_model=RankingOut | BatchOut, openapi_extra=_FORM)
def searches(
    rt: Rt,
    metrics: Measured,
    callers: Known,
    bearer: CanSearch,
    decoding: Decoding,
    asked: Asked,
    body: Annotated[Body, Depends(_body, scope="function")],  # the slot is released before the response is sent
) -> Response:
    """The studies most similar to an uploaded image, which is not stored; for JSON, to each of several studies."""
    if not isinstance(body, bytes):
        batch = _merged(asked, body)
        callers.buckets.charge(bearer.id, len(batch.studies) - 1)
        return _batch(rt, metrics, batch)
    started = time.perf_counter()
    wanted = asked.request()
    wanted.check(rt.settings.api.max_k)
    if wanted.cursor is not None:
        raise Invalid("a search by image has one page: ask for a larger k")
    with decoding.taken("decoding"), rt.store.reading() as connection:
        found = by_image(rt, connection, body, wanted)
    observe(metrics, rt, found)
    answer = present.ranking(found, wanted, (time.perf_counter() - started) * 1000)
    return Response(to_json(answer), media_type="application/json")


def by_image(rt: Runtime, connection: sa.Connection, picture: bytes, wanted: question.Request) -> Ranking:
    """The ranking for a picture. The caller must hold a decoding slot: one picture is decoded at a time."""
    return search.by_image(
        connection,
        rt.index,
        partial(rt.sandbox.decode, picture),
        partial(_encoder, rt),
        rt.rules.secret,
        wanted,
    )


def _encoder(rt: Runtime, published: Published) -> Encoder:
    try:
        return rt.encoder(published)
    except (Invalid, NotFound, ImportError) as error:
        # not the request's fault: this process cannot load the model
        raise Unavailable("the encoder of the published model cannot be loaded here", retry_after_s=30) from error


def _merged(asked: SearchIn, fields: Mapping[str, Any]) -> BatchIn:
    """The options of the query string and the body together; the body wins. Raises: `RequestValidationError`."""
    try:
        batch = BatchIn.model_validate(fields)
    except ValidationError as error:
        raise refused("body", error, BatchIn) from None
    return batch.model_copy(update=asked.model_dump(include=asked.model_fields_set - batch.model_fields_set))


def _batch(rt: Runtime, metrics: Metrics, batch: BatchIn) -> Response:
    started = time.perf_counter()
    wanted = batch.request()
    wanted.check(rt.settings.api.max_k)
    if wanted.k * len(batch.studies) > MOST_AT_ONCE:
        raise Invalid(f"k times the number of studies must be at most {MOST_AT_ONCE}")
    with rt.store.reading() as connection:
        rankings = search.by_studies(connection, rt.index, batch.studies, wanted)
    took_ms = (time.perf_counter() - started) * 1000
    for found in rankings:
        observe(metrics, rt, found)
    answer: BatchOut = {
        "rankings": [present.ranking(found, wanted, took_ms) for found in rankings],
        "took_ms": round(took_ms, 3),
    }
    return Response(to_json(answer), media_type="application/json")
