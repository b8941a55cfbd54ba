"""Pictures of images, always encoded anew: no bytes of a file are passed on."""

import hashlib
import io
import os
from pathlib import Path as FilePath
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from PIL import Image as Pillow
from sqlalchemy import Row

from services.api.answers import headed
from services.api.auth import may_see
from services.api.dependencies import CanRead, Decoding, Rt
from services.api.errors import explain, unopened
from services.api.schemas import Uid
from shared.errors import Conflict, Invalid, NotFound, Rejected
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe, chosen_frames
from shared.runtime import Runtime
from shared.store import catalog
from shared.store.keys import Bearer
from shared.types import Status

router = APIRouter(tags=["pictures"])

MOST_PIXELS = 64 * 1024 * 1024  #: of all frames that must be decoded to reach one: 256 MB
_TAGGED = headed("ETag", "Of this picture, for If-None-Match")
_IMAGE: dict[int | str, dict[str, Any]] = {
    200: _TAGGED | {"content": {"image/jpeg": {}}, "description": "The picture"},
    304: _TAGGED | {"description": "The picture still has the ETag in If-None-Match"},
}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The picture"}}


@router.get("/v1/instances/{sop_instance_uid}/thumbnail", response_class=Response, responses=_IMAGE)
def thumbnail(
    rt: Rt,
    bearer: CanRead,
    sop_instance_uid: Uid,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """The image in grey, its longest side at most 256 pixels.

    Of a quarantined or rejected image only for keys with the scope quarantine:review, too; else 404.
    """
    row = row_of(rt, sop_instance_uid, bearer)
    if row.jpeg is None:
        raise Conflict(unseen(row))
    tag = f'"{hashlib.sha256(row.jpeg).hexdigest()[:20]}"'
    if if_none_match is not None and tag in (part.strip().removeprefix("W/") for part in if_none_match.split(",")):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(row.jpeg, headers={"ETag": tag}, media_type="image/jpeg")


@router.get("/v1/instances/{sop_instance_uid}/rendered", response_class=Response, responses=_PNG)
def rendered(
    rt: Rt,
    bearer: CanRead,
    decoding: Decoding,
    sop_instance_uid: Uid,
    frame: Annotated[int, Query(ge=1, le=100_000)] = 1,
    size: Annotated[int, Query(ge=32, le=2048)] = 1024,
) -> Response:
    """One frame of the original as it would be shown: 8 bit grey, its longest side at most `size` pixels.

    Of a quarantined or rejected image only for keys with the scope quarantine:review, too; else 404.
    """
    row = row_of(rt, sop_instance_uid, bearer)
    if row.status == Status.EMPTY:
        raise Conflict(unseen(row))
    with decoding.taken("decoding"):
        pixels = decoded_frame(rt, row, frame, size)
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG", compress_level=1)
    return Response(out.getvalue(), media_type="image/png")


def row_of(rt: Runtime, sop_uid: str, bearer: Bearer) -> Row[Any]:
    """The image's row. Raises: `NotFound`, with one message for a missing image and one only a reviewer may see."""
    with rt.store.reading() as connection:
        row = catalog.picture(connection, sop_uid)
    if row is None or not may_see(row.status, bearer):
        raise NotFound("no such image")
    return row


def unseen(row: Row[Any]) -> str:
    return f"there is no picture of this image: {explain(row.reason) or f'it is {row.status}'}"


def decoded_frame(rt: Runtime, row: Row[Any], frame: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The frame as (rows, cols) uint8. Raises: `Gone`, `Unavailable`, `Conflict`, `Rejected`, `Invalid`."""
    path = FilePath(os.fsdecode(row.path))
    side = min(size, max(row.rows, row.columns, 1))
    recipe = Recipe(size=side, frames=_reaching(frame, row.frames, side), pad="square")
    (decoded,) = rt.sandbox.decode_many([path], recipe)
    try:
        # the digest is checked after the pixels were read: the path may now hold another patient's image
        if rt.sandbox.inspect(path).digest != row.digest:
            raise Conflict("the file has changed since it was taken in")
    except Rejected as refusal:
        if refusal.reason in (Reason.UNREADABLE, Reason.STALLED, Reason.NOT_REGULAR):
            raise unopened(refusal) from None
        raise
    if isinstance(decoded, Rejected):
        raise decoded
    square = decoded.pixels[decoded.frames.index(frame)]
    rows, columns = decoded.header.rows, decoded.header.columns
    return _unpadded(square, rows / max(rows, columns), columns / max(rows, columns))


def _reaching(frame: int, frames: int, size: int) -> int:
    """The smallest number of evenly spaced frames that include the requested one. Raises: `Invalid`."""
    if frame > frames:
        raise Invalid(f"this image has {frames} frames")
    for most in range(1, min(frames, MOST_PIXELS // size**2) + 1):
        if frame in chosen_frames(frames, most):
            return most
    raise Invalid("this frame cannot be rendered at this size: ask for a smaller size")


def _unpadded(
    square: "np.ndarray[Any, np.dtype[np.float32]]", high: float, wide: float
) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The picture without the padding that centred it in a square; (rows, cols) uint8."""
    side = square.shape[0]
    rows, columns = max(1, round(side * high)), max(1, round(side * wide))
    top, left = (side - rows) // 2, (side - columns) // 2
    picture = square[top : top + rows, left : left + columns]
    return (picture * 255 + 0.5).astype(np.uint8)
