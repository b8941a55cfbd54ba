"""Assembles the HTTP API."""

import base64
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from pydantic import TypeAdapter

from services.api import errors
from services.api.answers import ProblemOut
from services.api.auth import Callers, refuse_undeclared, scopes_of
from services.api.limits import Slots
from services.api.metrics import Metrics
from services.api.middleware import RequestMiddleware
from services.api.routes import (
    audit,
    dicomweb_backfill,
    dicomweb_pictures,
    dicomweb_query,
    dicomweb_retrieve,
    dicomweb_store,
    erase,
    generations,
    health,
    instances,
    keys,
    letters,
    models,
    operations,
    quarantine,
    search,
    studies,
)
from services.api.schemas import BatchIn
from shared.address import is_loopback
from shared.errors import Denied, SimilisError
from shared.log import get
from shared.pipeline import hashes
from shared.runtime import Runtime
from shared.store import generations as store_generations
from shared.version import software

log = get(__name__)

#: in order of matching: `/similar` must come before `/{uid}`
ROUTERS = (
    health.router,
    search.router,
    studies.router,
    erase.router,
    instances.router,
    operations.router,
    models.router,
    generations.router,
    quarantine.router,
    letters.router,
    audit.router,
    keys.router,
    dicomweb_backfill.router,
    dicomweb_store.router,
    dicomweb_query.router,
    dicomweb_pictures.router,
    dicomweb_retrieve.router,
)
MIB = 1024 * 1024
#: otherwise FastAPI tells a site's OpenTelemetry paths, which hold UIDs, and exceptions, which may quote a patient
UNTOLD: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
WARM_S = 3.0  #: longest wait at shutdown for a warm-up that hangs on an engine


def create(rt: Runtime) -> FastAPI:
    """The app on this runtime, which it closes at shutdown.

    Raises: `Denied` where the app would listen beyond loopback without keys, or a route declares no scope; `Invalid`
    where the site's admission rules are wrong.
    """
    rt.admission  # noqa: B018 - read now, so that a wrong file stops the start and not the first upload
    api = rt.settings.api
    if not api.require_key and not is_loopback(api.host):
        raise Denied("without API keys the API may listen on a loopback address only")
    app = FastAPI(
        title="Similis", version=software(), lifespan=_life, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False, telemetry=UNTOLD,
    )  # fmt: skip
    for router in ROUTERS:
        app.router.routes.extend(router.routes)
    refuse_undeclared(app.routes)
    app.state.rt, app.state.metrics, app.state.callers = rt, Metrics(rt), Callers(rt)
    # there is one sandbox child and one encoder, each for one request at a time
    app.state.decoding, app.state.readiness = Slots(slots=1, waiting=8), health.Readiness()
    app.state.uploads = Slots(slots=4, waiting=0, each=2)  # each may hold max_upload_mb of memory
    app.state.storing = Slots(slots=8, waiting=0)  # each holds a few chunks in memory, the rest is on the disk
    # each request occupies one of the 40 threads while it reads or waits; a viewer requests all series at once
    app.state.reading = Slots(slots=12, waiting=12, each=18)
    errors.install(app)
    style = base64.b64encode(hashlib.sha256(health.STYLE.encode()).digest()).decode()
    app.add_middleware(
        RequestMiddleware,
        metrics=app.state.metrics,
        callers=app.state.callers,
        limits={"/v1/searches": api.max_upload_mb * MIB, "/dicom-web/studies": api.max_store_mb * MIB},
        style=style,
        only_loopback=not api.require_key,
    )
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    """Create the engines' clients in a background thread at startup, so that the first search does not wait."""
    warm = threading.Thread(target=_warm, args=(app.state.rt,), name="warm", daemon=True)
    warm.start()
    yield
    warm.join(WARM_S)  # a warm-up that outlives `close` would open connections that nobody closes
    app.state.callers.close()
    app.state.metrics.stored.close()
    app.state.rt.close()


def _warm(rt: Runtime) -> None:
    """Make the first call to each engine, and log an error where the index computes wrong Hamming distances."""
    if health.look(rt)["status"] == "unavailable":
        return
    try:
        with rt.store.reading() as connection:
            live = store_generations.published(connection)
        if live is not None:
            hashes.trusted(rt.index(live.collection))
    except SimilisError as error:
        log.error("warm_up_failed", error=str(error))  # noqa: TRY400 - our own words; hash searches say the same


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document, with the scope of each route and the problem shape of every refusal."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    schema = get_openapi(
        title="Similis",
        version=app.version,
        summary="Find, in a hospital's own archive, the studies most like this one.",
        routes=app.routes,
    )
    parts = schema.setdefault("components", {})
    parts["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, sml_..."},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key"},
    }
    shapes = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        shapes.pop(name, None)
    for model in (BatchIn, ProblemOut):
        described = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}")
        shapes.update(described.pop("$defs", {}))
        shapes[model.__name__] = described
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            _finish(schema["paths"][route.path_format], route)
    _limit(schema, app.state.rt.settings.api.max_k)
    app.openapi_schema = schema
    return schema


def _limit(schema: dict[str, Any], max_k: int) -> None:
    """Tell the largest `k` of this server wherever a search may name it."""
    whats = [what for path in schema["paths"].values() for what in path.values()]
    asked = [part["schema"] for what in whats for part in what.get("parameters", []) if part["name"] == "k"]
    for k in [*asked, schema["components"]["schemas"][BatchIn.__name__]["properties"]["k"]]:
        k["maximum"] = max_k


def _finish(path: dict[str, Any], route: APIRoute) -> None:
    refused = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}
    for method in route.methods or ():
        what = path[method.lower()]
        what["responses"].pop("422", None)
        what["responses"]["default"] = {
            "description": "Problem details (RFC 9457)",
            "content": refused,
            "headers": {
                "Retry-After": {"description": "With 429, 503 and 507: seconds", "schema": {"type": "integer"}}
            },
        }
        if scopes := scopes_of(route):
            what["security"] = [{"key": []}, {"header": []}]
            what["x-scope"] = " or ".join(sorted(scopes))
