import asyncio
import html
import re
import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.api.answers import AliveOut, ReadyOut
from services.api.auth import public
from services.api.dependencies import CanMeasure, Measured, Rt
from shared.errors import SimilisError
from shared.log import get
from shared.runtime import Runtime
from shared.store import generations
from shared.version import software

log = get(__name__)
router = APIRouter(tags=["health"])

_UNREADY: dict[int | str, dict[str, Any]] = {503: {"description": "Searches do not work", "model": ReadyOut}}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
PARTS = {"postgres": "store", "vectors": "indexes", "broker": "queue"}  #: the runtime's clients, by backend
REMEMBERED_S = 0.25  #: probes need no key, so frequent ones must not reach the engines
STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:60em;overflow-wrap:anywhere}code{background:#eee}"
    "dt{margin-top:.7em}dd{color:#444}"
)


@router.get("/livez", response_model=AliveOut)
@public
async def livez() -> JSONResponse:
    """This process answers; its backends are not checked."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz", response_model=ReadyOut, responses=_UNREADY)
@public
async def readyz(rt: Rt, request: Request) -> JSONResponse:
    """200 while Postgres and the vector engine answer, so that searches work; without the broker it is degraded.

    Names the published model and the version of the software, too.
    """
    found = await request.app.state.readiness.ask(rt)
    return JSONResponse(found, 200 if found["status"] != "unavailable" else 503)


class Readiness:
    """The backends' states, cached for `REMEMBERED_S`; concurrent callers await one check without holding a thread."""

    def __init__(self) -> None:
        self._look: asyncio.Task[dict[str, Any]] | None = None
        self._until = 0.0

    async def ask(self, rt: Runtime) -> dict[str, Any]:
        if self._look is None or (self._look.done() and time.monotonic() >= self._until):
            self._look = asyncio.create_task(self._looked(rt))
        return await asyncio.shield(self._look)  # a caller that disconnects must not cancel it for the others

    async def _looked(self, rt: Runtime) -> dict[str, Any]:
        found = await run_in_threadpool(look, rt)
        self._until = time.monotonic() + REMEMBERED_S
        return found


def look(rt: Runtime) -> dict[str, Any]:
    parts = {name: _state(rt, client) for name, client in PARTS.items()}
    needed = all(parts[name] == "ready" for name in ("postgres", "vectors"))
    status = "unavailable" if not needed else "ready" if parts["broker"] == "ready" else "degraded"
    model = _model(rt) if parts["postgres"] == "ready" else "unknown"
    return {"status": status, "parts": parts, "model": model, "version": software()}


def _state(rt: Runtime, client: str) -> str:
    try:
        getattr(rt, client).ping()  # the runtime may create the client now, which may fail, too
    except SimilisError:
        return "away"
    except Exception:  # any failure is a state of the backend, never a 500
        log.warning("probe_failed", exc_info=True)
        return "away"
    return "ready"


def _model(rt: Runtime) -> str:
    try:
        with rt.store.reading() as connection:
            live = generations.published(connection)
    except Exception:
        log.warning("probe_failed", exc_info=True)
        return "unknown"
    return "none yet" if live is None else str(live.card["name"])


@router.get("/metrics", response_class=Response, responses=_METRICS)
def metrics(measured: Measured, _: CanMeasure) -> Response:
    """Metrics for Prometheus; needs the scope `read`. Without the database, for keys used within the last day."""
    return Response(generate_latest(measured.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
@public
def openapi(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/", include_in_schema=False)
@public
def start() -> RedirectResponse:
    """Where a browser arrives that is given the server's address only."""
    return RedirectResponse("/docs")


@router.get("/docs", include_in_schema=False)
@public
def docs(request: Request) -> HTMLResponse:
    """All routes on one page, without scripts or external resources, so that it works in a closed network."""
    described = request.app.openapi()
    shapes = described["components"]["schemas"]
    rows = [
        f"<dt><code>{method.upper()} {html.escape(path)}</code> "
        f"<small>{html.escape(str(what.get('x-scope', 'public')))}</small></dt><dd>{_words(what, shapes)}</dd>"
        for path, methods in described["paths"].items()
        for method, what in methods.items()
    ]
    title = f"Similis {html.escape(described['info']['version'])}"
    return HTMLResponse(
        f"<!doctype html><html lang=en><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        "<p>The whole description: <a href=/openapi.json>openapi.json</a>. Keys go as "
        f"<code>Authorization: Bearer sml_...</code></p><dl>{''.join(rows)}</dl></html>"
    )


def _words(what: dict[str, Any], shapes: dict[str, Any]) -> str:
    query = ", ".join(p["name"] for p in what.get("parameters", []) if p["in"] == "query")
    lines = [query, *_bodies(what, shapes)]
    text = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(what.get("description", "")))
    return text + "".join(f"<br><small>{html.escape(line)}</small>" for line in lines if line)


def _bodies(what: dict[str, Any], shapes: dict[str, Any]) -> Iterator[str]:
    """Each media type that a request's body may have, with the names of its fields."""
    for media_type, content in what.get("requestBody", {}).get("content", {}).items():
        schema = content["schema"].get("anyOf", [content["schema"]])[0]  # an optional body is its shape or null
        shape = shapes[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        fields = ", ".join(shape.get("properties", {}))
        yield f"{media_type}: {fields}" if fields else media_type
