"""WADO-RS (PS3.18 section 10.4): metadata and original files.

Metadata is an allow-list without the patient. Original files name the patient, and are sent byte for byte to callers
whose key has the scope `retrieve`.
"""

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from blake3 import blake3
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic_core import to_json

from services.api import accept, dicom_json, qido
from services.api.auth import may_see
from services.api.dependencies import CanRead, CanRetrieve, ReadingPlaces, Rt
from services.api.dicomweb import INSTANCE, Instance, base_of, held
from services.api.errors import Gone, NotAcceptable, unopened
from services.api.limits import Slots
from services.api.schemas import Uid
from services.api.storing import DICOM, FILES
from shared.errors import Conflict, NotFound, Rejected
from shared.imaging.answers import Inspected
from shared.imaging.sources import open_source
from shared.runtime import Runtime
from shared.store.keys import Bearer
from shared.types import Header

router = APIRouter(prefix="/dicom-web", tags=["dicomweb"])

CHUNK = 1024 * 1024
RELATED = "multipart/related"
ALL = (*qido.DEFAULT["instance"], *qido.MORE["instance"])

Row = Any  #: a mapping, as `shared.store.qido.held` gives it

_JSON: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The stored attributes of each instance, in the DICOM JSON model; none names the patient",
        "content": {kind: {"schema": {"type": "array", "items": {"type": "object"}}} for kind in dicom_json.OFFERED},
    }
}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The files as they were taken in", "content": {kind: {} for kind in FILES}}
}


# — metadata


def _metadata(request: Request, rt: Runtime, bearer: Bearer, places: Slots, *where: str) -> Response:
    """Raises: `NotFound`, `NotAcceptable`, `Throttled`, `Unavailable`."""
    kind = accept.best(request, dicom_json.OFFERED)
    with places.taken("reading files", bearer.id):
        found = held(rt, *where)
        looked = rt.sandbox.inspect_many([_path(row) for row in found])
    items = []
    for row, what in zip(found, looked, strict=True):
        more = _of_header(what.header) if isinstance(what, Inspected) and what.digest == row["digest"] else {}
        items.append(dict(sorted((qido.answer(row, ALL, base_of(request)) | dicom_json.item(more)).items())))
    return Response(to_json(items), media_type=kind)


def _of_header(header: Header) -> dict[str, object]:
    """Attributes that only the file's header holds."""
    words = {True: "YES", False: "NO", None: None}
    return {
        "ImageType": header.image_type,
        "PhotometricInterpretation": header.photometric,
        "BitsStored": header.bits_stored,
        "BurnedInAnnotation": words[header.burned_in],
        "BreastImplantPresent": words[header.implant],
    }


def _path(row: Row) -> FilePath:
    return FilePath(os.fsdecode(row["path"]))


@router.get("/studies/{study_instance_uid}/metadata", response_class=Response, responses=_JSON)
def study_metadata(
    request: Request, rt: Rt, bearer: CanRead, places: ReadingPlaces, study_instance_uid: Uid
) -> Response:
    """What Similis keeps of each instance of the study."""
    return _metadata(request, rt, bearer, places, study_instance_uid)


@router.get(
    "/studies/{study_instance_uid}/series/{series_instance_uid}/metadata", response_class=Response, responses=_JSON
)
def series_metadata(
    request: Request,
    rt: Rt,
    bearer: CanRead,
    places: ReadingPlaces,
    study_instance_uid: Uid,
    series_instance_uid: Uid,
) -> Response:
    """What Similis keeps of each instance of the series."""
    return _metadata(request, rt, bearer, places, study_instance_uid, series_instance_uid)


@router.get(f"{INSTANCE}/metadata", response_class=Response, responses=_JSON)
def instance_metadata(request: Request, rt: Rt, bearer: CanRead, places: ReadingPlaces, where: Instance) -> Response:
    """What Similis keeps of the instance."""
    return _metadata(request, rt, bearer, places, *where)


# — files


@dataclass(frozen=True, slots=True)
class Original:
    """A file that is still what was taken in."""

    path: FilePath
    syntax: str
    size: int
    mtime_ns: int

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes. Raises: `Gone` when the file changes meanwhile, before any changed byte is returned."""
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            while True:
                chunk = file.read(CHUNK)
                now = os.fstat(file.fileno())
                if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
                    raise Gone("the file changed while it was being sent")
                if not chunk:
                    return
                yield chunk


def _original(rt: Runtime, row: Row) -> Original:
    """The verified file. Raises: `Gone`, `Unavailable` as `unopened`; `Conflict` where it has another digest."""
    path, digest = _path(row), blake3()
    try:
        with os.fdopen(open_source(path, rt.sandbox.limits), "rb") as file:
            facts = os.fstat(file.fileno())
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except Rejected as refusal:
        raise unopened(refusal) from None
    if digest.digest() != row["digest"] or not stat.S_ISREG(facts.st_mode):
        raise Conflict("the file has changed since it was taken in")
    return Original(path, row["AvailableTransferSyntaxUID"], facts.st_size, facts.st_mtime_ns)


def _files(request: Request, rt: Runtime, bearer: Bearer, places: Slots, *where: str) -> Response:
    """Raises: `NotFound`, `NotAcceptable`, `Gone`, `Conflict`, `Throttled`, `Unavailable`; before the first byte."""
    with places.taken("reading files", bearer.id):  # not while sending, where a slow caller holds no thread
        seen = [row for row in held(rt, *where) if may_see(row["status"], bearer)]
        if not seen:
            raise NotFound("no such study, series or instance")
        alone = _wanted(request, seen)
        originals = [_original(rt, row) for row in seen]
    if alone:
        (one,) = originals
        return StreamingResponse(one.chunks(), headers={"Content-Length": str(one.size)}, media_type=DICOM)
    boundary = secrets.token_hex(16)
    return StreamingResponse(
        _related(originals, boundary), media_type=f'{RELATED}; type="{DICOM}"; boundary={boundary}'
    )


def _wanted(request: Request, found: Sequence[Row]) -> bool:
    """Whether to send a single file as `application/dicom`, without multipart.

    Files are sent in their stored transfer syntax and never transcoded. By the standard, a client that names no
    transfer syntax asks for Explicit VR Little Endian; it gets the stored one, too.

    Raises: `NotAcceptable`.
    """
    syntaxes = {row["AvailableTransferSyntaxUID"] for row in found}
    for wanted in accept.ranges(request):
        asked = wanted.params.get("transfer-syntax", "*")
        if "" in syntaxes or (asked != "*" and syntaxes != {asked}):
            continue
        if wanted.kind == DICOM and len(found) == 1:
            return True
        if wanted.fits(RELATED) and wanted.params.get("type", DICOM).lower() in (DICOM, "*/*"):
            return False
    raise NotAcceptable(
        f'files are available as {RELATED}; type="{DICOM}", a single one as {DICOM}, in their own transfer syntax; '
        "pictures that were taken in from a folder are not DICOM files"
    )


def _related(originals: Sequence[Original], boundary: str) -> Iterator[bytes]:
    for one in originals:
        syntax = f"; transfer-syntax={one.syntax}"
        yield f"--{boundary}\r\nContent-Type: {DICOM}{syntax}\r\nContent-Length: {one.size}\r\n\r\n".encode()
        yield from one.chunks()
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


@router.get("/studies/{study_instance_uid}", response_class=Response, responses=_FILES)
def study_files(
    request: Request, rt: Rt, bearer: CanRetrieve, places: ReadingPlaces, study_instance_uid: Uid
) -> Response:
    """The files of a study, as they were taken in.

    Those of quarantined and rejected images are left out unless the key has the scope quarantine:review, too.
    """
    return _files(request, rt, bearer, places, study_instance_uid)


@router.get("/studies/{study_instance_uid}/series/{series_instance_uid}", response_class=Response, responses=_FILES)
def series_files(
    request: Request,
    rt: Rt,
    bearer: CanRetrieve,
    places: ReadingPlaces,
    study_instance_uid: Uid,
    series_instance_uid: Uid,
) -> Response:
    """The files of a series, as they were taken in.

    Those of quarantined and rejected images are left out unless the key has the scope quarantine:review, too.
    """
    return _files(request, rt, bearer, places, study_instance_uid, series_instance_uid)


@router.get(INSTANCE, response_class=Response, responses=_FILES)
def instance_file(request: Request, rt: Rt, bearer: CanRetrieve, places: ReadingPlaces, where: Instance) -> Response:
    """The file of an instance, as it was taken in.

    Of a quarantined or rejected image only for keys with the scope quarantine:review, too; else 404.
    """
    return _files(request, rt, bearer, places, *where)
