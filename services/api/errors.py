"""One table from our errors to HTTP; every refusal is an `application/problem+json` (RFC 9457).

A problem never quotes the request: its values may name a patient, and responses end up in other systems' logs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from services.api.answers import ProblemOut
from services.api.query_params import names_of
from services.api.schemas import WRITTEN
from shared.errors import (
    Conflict,
    Denied,
    Invalid,
    NotFound,
    Rejected,
    SimilisError,
    Throttled,
    Unavailable,
    Unidentified,
)
from shared.imaging.reasons import SENTENCES, Reason
from shared.store.blobs import Full
from shared.wording import must

MOST_TOLD = 100  #: wrong fields in one problem
TYPES = "urn:similis:problem:"  #: prefix of problem types; a name, not an address


class TooLarge(Invalid):
    """The body is over the limit."""


class UnsupportedMedia(Invalid):
    """The body has a media type that this route does not accept."""


class NotAcceptable(Invalid):
    """The answer is not available in any media type that the caller accepts."""


class Gone(NotFound):
    """The row exists, but the file it points at does not."""


def unopened(refusal: Rejected) -> Gone | Unavailable:
    """Return the error for an original file that the sandbox's rules did not open."""
    if refusal.reason == Reason.STALLED:
        return Unavailable("the disk or network share of the original file does not answer")
    return Gone("the original file is no longer at the path from which it was taken in")


@dataclass(frozen=True, slots=True)
class Kind:
    status: int
    code: str
    title: str


KINDS: Mapping[type[SimilisError], Kind] = {
    Invalid: Kind(400, "invalid", "The request is not valid"),
    Rejected: Kind(422, "rejected", "The file is not accepted"),
    TooLarge: Kind(413, "too-large", "The body is too large"),
    UnsupportedMedia: Kind(415, "unsupported-media", "Unsupported media type"),
    NotAcceptable: Kind(406, "not-acceptable", "No acceptable media type"),
    NotFound: Kind(404, "not-found", "Not found"),
    Gone: Kind(410, "gone", "The file no longer exists"),
    Conflict: Kind(409, "conflict", "The resource is not in the required state"),
    Denied: Kind(403, "denied", "The API key does not permit this"),
    Unidentified: Kind(401, "unidentified", "A valid API key is required"),
    Throttled: Kind(429, "throttled", "Too many requests"),
    Full: Kind(507, "full", "Insufficient storage"),
    Unavailable: Kind(503, "unavailable", "A required service is down or busy"),
    SimilisError: Kind(500, "internal", "Internal error"),
}

#: The same problems for the statuses that Starlette raises itself.
STATUSES: Mapping[int, Kind] = {kind.status: kind for kind in KINDS.values()} | {
    404: KINDS[NotFound],
    405: Kind(405, "method-not-allowed", "This method is not allowed here"),
}


def kind_of(error: SimilisError) -> Kind:
    return next(KINDS[parent] for parent in type(error).__mro__ if parent in KINDS)


def explain(reason: str | None) -> str | None:
    """The sentence for a reason code; None for no reason and for an unknown one."""
    try:
        return SENTENCES[Reason(reason)] if reason else None
    except ValueError:
        return None


def problem(
    kind: Kind, detail: str, instance: str, headers: Mapping[str, str] | None = None, **more: object
) -> Response:
    body: ProblemOut = {
        "type": TYPES + kind.code,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": instance,
        "code": kind.code,
        "trace_id": structlog.contextvars.get_contextvars().get("trace_id", ""),
        "errors": [],
    }
    return Response(to_json({**body, **more}), kind.status, headers, "application/problem+json")


def route_of(request: Request) -> str:
    """The route's template, since the path itself holds UIDs; empty without a route."""
    route = request.scope.get("route")
    return getattr(route, "path", "") or ""


def of_error(request: Request, error: SimilisError) -> Response:
    kind = kind_of(error)
    headers, more = {}, {}
    if isinstance(error, Unidentified):
        headers["WWW-Authenticate"] = 'Bearer realm="similis"'
    if isinstance(error, (Throttled, Unavailable)):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Rejected):
        more = {
            "outcome": error.outcome.value,
            "gate": error.gate.value if error.gate else None,
            "reason": error.reason,
            "explanation": explain(error.reason),
        }
    return problem(kind, str(error), route_of(request), headers, **more)


def of_validation(request: Request, errors: Sequence[Mapping[str, Any]]) -> Response:
    """A 400 that names each wrong field and the rule it breaks, never its value; at most `MOST_TOLD` fields."""
    known = names_of(request.scope["route"])
    found = [{"where": _place(e), "code": e["type"], "message": _message(e, known)} for e in errors[:MOST_TOLD]]
    listed = ", ".join(dict.fromkeys(e["where"] for e in found))
    return problem(KINDS[Invalid], f"wrong or unknown: {listed}", route_of(request), errors=found)


def _place(error: Mapping[str, Any]) -> str:
    """The field's path, such as `query.k`; an unknown name is not repeated but written `?`."""
    unknown = error["type"] == "extra_forbidden"
    parts = [str(part) for part in error["loc"]]
    return ".".join([*parts[:-1], "?"] if unknown else parts) or "body"


def _message(error: Mapping[str, Any], known: Sequence[str]) -> str:
    """What is wrong, in words that never quote the input."""
    if error["type"] == "json_invalid":
        return "this is not JSON"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(str(error["loc"][-1]), error.get("ctx", {}).get("known", known), 1)
        return "unknown name" + (f"; do you mean {near[0]}?" if near else "")
    return must(error, WRITTEN)


def install(app: FastAPI) -> None:
    """Register handlers that answer every error of the app by the table."""

    @app.exception_handler(SimilisError)
    def ours(request: Request, error: SimilisError) -> Response:
        return of_error(request, error)

    @app.exception_handler(RequestValidationError)
    def validation(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if any(e["loc"] == ("body",) and isinstance(e.get("input"), bytes) for e in found):  # it was not read as JSON
            return of_error(request, UnsupportedMedia("send a JSON object, with Content-Type: application/json"))
        return of_validation(request, found)

    @app.exception_handler(IntegrityError)
    def race(request: Request, error: IntegrityError) -> Response:  # noqa: ARG001 - its text holds values
        return of_error(request, Conflict("a concurrent request conflicted with this one; retry"))

    @app.exception_handler(HTTPException)
    def starlette(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, SimilisError):  # FastAPI wraps errors that are raised while it reads a body
            return of_error(request, error.__cause__)
        kind = STATUSES.get(error.status_code, Kind(error.status_code, "http", "The request cannot be served"))
        headers = {"Allow": ", ".join(sorted(_methods(request)))} if error.status_code == 405 else {}
        # FastAPI raises 400 for a body that it cannot parse, before validation
        detail = "the body is not JSON in UTF-8, or is nested too deep" if error.status_code == 400 else kind.title
        return problem(kind, detail, route_of(request), headers)


def _methods(request: Request) -> set[str]:
    """The methods of all routes at this address: Starlette's own `Allow` names those of the first route only."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    found = {method for route in routes for method in route.methods or ()}
    return found | {"HEAD"} if "GET" in found else found
