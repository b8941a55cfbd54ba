"""WADO-RS rendered pictures (PS3.18 section 10.4.1.1.3), always encoded anew: no bytes of a file are passed on."""

import io
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from PIL import Image as Pillow

from services.api import accept
from services.api.dependencies import CanRead, Decoding, Rt
from services.api.dicomweb import INSTANCE, Instance, Where, held
from services.api.routes import instances
from services.api.schemas import VIEWPORT
from shared.errors import Conflict, Invalid, NotFound
from shared.runtime import Runtime
from shared.store.keys import Bearer
from shared.types import Status

router = APIRouter(prefix="/dicom-web", tags=["dicomweb"])

KINDS = ("image/jpeg", "image/png")
LARGEST = 2048  #: pixels of a side
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture", "content": {kind: {} for kind in KINDS}}
}


@dataclass(frozen=True, slots=True)
class Look:
    """The requested media type, size and quality of a picture."""

    kind: str
    width: int
    height: int
    quality: int


def _look(
    request: Request,
    viewport: Annotated[
        str | None,
        Query(pattern=VIEWPORT, description="Width and height that the picture must fit into"),
    ] = None,
    quality: Annotated[int, Query(ge=1, le=100, description="Quality of a JPEG")] = 90,
) -> Look:
    """The requested rendering. Raises: `Invalid` for unsupported parameters, such as `window`; `NotAcceptable`."""
    if set(request.query_params) - {"accept", "viewport", "quality"}:
        raise Invalid("only accept, viewport and quality are supported")
    width, height = (int(side) for side in viewport.split(",")) if viewport else (LARGEST, LARGEST)
    return Look(accept.best(request, KINDS), width, height, quality)


Wanted = Annotated[Look, Depends(_look)]


@router.get(f"{INSTANCE}/thumbnail", response_class=Response, responses=_PICTURE)
def thumbnail(request: Request, rt: Rt, bearer: CanRead, where: Instance) -> Response:
    """The image in grey, its longest side at most 256 pixels.

    Of a quarantined or rejected image only for keys with the scope quarantine:review, too; else 404.
    """
    kind = accept.best(request, KINDS)
    held(rt, *where)
    row = instances.row_of(rt, where.sop_instance_uid, bearer)
    if row.jpeg is None:
        raise Conflict(instances.unseen(row))
    if kind == "image/jpeg":
        return Response(row.jpeg, media_type=kind)
    with Pillow.open(io.BytesIO(row.jpeg)) as picture:
        return _encoded(picture, kind)


@router.get(f"{INSTANCE}/rendered", response_class=Response, responses=_PICTURE)
def rendered(rt: Rt, bearer: CanRead, decoding: Decoding, where: Instance, look: Wanted) -> Response:
    """The first frame as it would be shown: 8 bit grey.

    Of a quarantined or rejected image only for keys with the scope quarantine:review, too; else 404.
    """
    with decoding.taken("decoding"):
        return _rendered(rt, bearer, where, 1, look)


@router.get(f"{INSTANCE}/frames/{{frame}}/rendered", response_class=Response, responses=_PICTURE)
def rendered_frame(
    rt: Rt,
    bearer: CanRead,
    decoding: Decoding,
    where: Instance,
    frame: Annotated[int, Path(ge=1, le=100_000)],
    look: Wanted,
) -> Response:
    """One frame as it would be shown: 8 bit grey.

    Of a quarantined or rejected image only for keys with the scope quarantine:review, too; else 404.
    """
    with decoding.taken("decoding"):
        return _rendered(rt, bearer, where, frame, look)


def _rendered(rt: Runtime, bearer: Bearer, where: Where, frame: int, look: Look) -> Response:
    """Raises: `NotFound`, `Conflict`, `Gone`, `Rejected`, `Invalid`."""
    held(rt, *where)
    row = instances.row_of(rt, where.sop_instance_uid, bearer)
    if row.status == Status.EMPTY:
        raise Conflict(instances.unseen(row))
    if frame > row.frames:
        raise NotFound(f"this image has {row.frames} frames")
    rows, columns = max(row.rows, 1), max(row.columns, 1)
    scale = min(look.width / columns, look.height / rows, 1.0)
    size = min(max(1, int(scale * max(rows, columns))), LARGEST)
    return _encoded(Pillow.fromarray(instances.decoded_frame(rt, row, frame, size)), look.kind, look.quality)


def _encoded(picture: Pillow.Image, kind: str, quality: int = 90) -> Response:
    out = io.BytesIO()
    if kind == "image/png":
        picture.save(out, "PNG", compress_level=1)
    else:
        picture.save(out, "JPEG", quality=quality)
    return Response(out.getvalue(), media_type=kind)
