"""The HTTP API, put together."""

import base64
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from services.api import errors
from services.api.answers import ProblemOut
from services.api.auth import Callers, refuse_undeclared, scopes_of
from services.api.limits import Slots
from services.api.metrics import Metrics, software
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

log = get(__name__)

#: /similar before /{uid}: the first that fits is taken
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
WARM_S = 3.0  #: an engine that is away is waited for no longer than this at the end


def create(rt: Runtime) -> FastAPI:
    """The app over this runtime, which it closes at its end.

    Raises: `Denied` where strangers could reach it without a key, or a route declares no scope; `Invalid` where the
    site's rules of admission are wrong.
    """
    rt.admission  # noqa: B018 - read now, not by the first who sends a file
    api = rt.settings.api
    if not api.require_key and not is_loopback(api.host):
        raise Denied("without keys the API listens on loopback only")
    app = FastAPI(
        title="Similis", version=software(), lifespan=_life, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    for router in ROUTERS:
        app.router.routes.extend(router.routes)
    refuse_undeclared(app.routes)
    app.state.rt, app.state.metrics, app.state.callers = rt, Metrics(rt), Callers(rt)
    # one decoder child and one encoder, neither of them for two at once
    app.state.decoding, app.state.readiness = Slots(slots=1, waiting=8), health.Readiness()
    app.state.uploads = Slots(slots=4, waiting=0, each=2)  # each may hold max_upload_mb of memory
    app.state.storing = Slots(slots=8, waiting=0)  # each holds a few chunks, the rest is on the disk
    # each holds one of the 40 threads while it reads every file, or waits; a viewer asks for all series at once
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
    """The engines' clients are made beside the start, so that the first search does not wait for them."""
    warm = threading.Thread(target=_warm, args=(app.state.rt,), name="warm", daemon=True)
    warm.start()
    yield
    warm.join(WARM_S)  # it would make connections anew that nobody closes
    app.state.callers.close()
    app.state.metrics.stored.close()
    app.state.rt.close()


def _warm(rt: Runtime) -> None:
    """The engines are asked for the first time, and one that counts the bits of codes wrongly is told of at once."""
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
    """OpenAPI 3.1, with the scope of each route and the one shape of every refusal."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    schema = get_openapi(
        title="Similis",
        version=app.version,
        summary="Find, in a hospital's own archive, the studies most like this one.",
        routes=app.routes,
    )
    parts = schema.setdefault("components", {})
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key, sml_..."}}
    shapes = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        shapes.pop(name, None)
    for model in (BatchIn, ProblemOut):
        described = model.model_json_schema(ref_template="#/components/schemas/{model}")
        shapes.update(described.pop("$defs", {}))
        shapes[model.__name__] = described
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            _finish(schema["paths"][route.path_format], route)
    app.openapi_schema = schema
    return schema


def _finish(path: dict[str, Any], route: APIRoute) -> None:
    refused = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}
    for method in route.methods or ():
        what = path[method.lower()]
        what["responses"].pop("422", None)
        what["responses"]["default"] = {"description": "A refusal (RFC 9457)", "content": refused}
        if scopes := scopes_of(route):
            what["security"] = [{"key": []}]
            what["x-scope"] = " or ".join(sorted(scopes))
