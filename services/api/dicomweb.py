"""The addresses of DICOMweb: studies, series and instances below `/dicom-web`."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request

from services.api.schemas import Uid
from shared.errors import NotFound
from shared.runtime import Runtime
from shared.store import qido

INSTANCE = "/studies/{study_instance_uid}/series/{series_instance_uid}/instances/{sop_instance_uid}"


class Where(NamedTuple):
    """The UIDs that address one instance."""

    study_instance_uid: Uid
    series_instance_uid: Uid
    sop_instance_uid: Uid


Instance = Annotated[Where, Depends()]


def held(rt: Runtime, study: str, series: str = "", sop: str = "") -> Sequence[Any]:
    """The rows of a study, series or instance. Raises: `NotFound`."""
    with rt.store.reading() as connection:
        found = qido.held(connection, study, series, sop)
    if not found:
        raise NotFound("no such study, series or instance")
    return found


def base_of(request: Request) -> str:
    """The base URL of DICOMweb, from `public_url` or the request.

    Forwarding headers of a proxy are ignored, because any caller could send them.
    """
    address = request.app.state.rt.settings.api.public_url or str(request.base_url)
    return f"{address.rstrip('/')}/dicom-web"
