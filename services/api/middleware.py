"""Middleware around every request: trace id, body limits, security headers, one log line, and a problem on any error.

Plain ASGI: Starlette's function middleware would cost more time than the search itself.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api import errors
from services.api.auth import Callers
from services.api.errors import TooLarge, UnsupportedMedia
from services.api.metrics import Metrics
from shared.address import is_loopback
from shared.errors import Denied, Invalid, SimilisError
from shared.log import get

log = get(__name__)

SMALL = 1024 * 1024  #: bytes of a body, unless the path has a limit of its own
SMALL_WITHIN_S = 60.0  #: deadline for such a body; routes with a limit of their own set their own deadline
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
PROBES = frozenset({"/livez", "/readyz"})
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'sha256-{style}'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RequestMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        callers: Callers,
        limits: Mapping[str, int],
        style: str,
        *,
        only_loopback: bool,
    ) -> None:
        self.app, self.metrics, self.callers, self.limits = app, metrics, callers, limits
        self.only_loopback = only_loopback
        self.headers = [
            (name.lower().encode(), value.replace("{style}", style).encode()) for name, value in HEADERS.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, code = time.perf_counter(), 0
        asked = scope["method"]
        if asked == "HEAD":  # answered by the GET route, without a body
            scope = {**scope, "method": "GET"}
        trace_id = secrets.token_hex(8)
        structlog.contextvars.bind_contextvars(trace_id=trace_id, key_prefix="")

        async def answer(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], *self.headers, (b"x-trace-id", trace_id.encode())]
            elif asked == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        except Exception:
            # the log holds the exception's type and traceback only: its text may quote a value
            log.exception("request_failed")
            if code == 0:
                kind = errors.KINDS[SimilisError]
                detail = "an unexpected error; the log has it under this trace_id"
                response = errors.problem(kind, detail, errors.route_of(Request(scope)))
                await response(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            route = errors.route_of(Request(scope)) or "unknown"
            method = asked if asked in METHODS else "other"  # else a caller could create metric labels
            self.metrics.requests.labels(route, method, code).observe(seconds)
            say = log.debug if route in PROBES and code == 200 else log.info  # probes come several times a second
            say("request", route=route, method=method, code=code, duration_ms=round(seconds * 1000, 2))
            structlog.contextvars.unbind_contextvars("trace_id", "key_prefix")

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except SimilisError as refusal:
            await errors.of_error(Request(scope), refusal)(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        within_s = SMALL_WITHIN_S if limit == SMALL else None
        await self.app(scope, bounded(receive, lambda: self.callers.identify(Request(scope)), limit, within_s), send)

    def _limit(self, path: str) -> int:
        """The body's limit in bytes: that of the longest matching path prefix in `limits`, else `SMALL`."""
        own = [at for at in self.limits if path == at or path.startswith(f"{at}/")]
        return self.limits[max(own, key=len)] if own else SMALL

    def _check(self, scope: Scope, headers: Headers) -> None:
        if headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedMedia("send the body uncompressed")
        length = headers.get("content-length", "0")
        limit = self._limit(scope["path"])
        if not length.isascii() or not length.isdigit() or int(length) > limit:
            raise TooLarge(f"the body may have at most {limit} bytes")
        if self.only_loopback and not is_local(headers.get("host", "")):
            # DNS rebinding: without keys, a web page could reach this API through a host name for 127.0.0.1
            raise Denied("without API keys, only requests addressed to this machine's own name are answered")


def bounded(receive: Receive, known: Callable[[], Awaitable[object]], limit: int, within_s: float | None) -> Receive:
    """The body's stream with three checks: caller known before the first byte, then the size limit and the deadline.

    FastAPI reads a body before the route's own check of the key. `limit` holds whatever `Content-Length` said.
    """
    seen, more = 0, True
    until = None if within_s is None else time.monotonic() + within_s

    async def next_part() -> Message:
        nonlocal seen, more
        if not seen:
            await known()
        try:
            async with asyncio.timeout(until - time.monotonic() if until and more else None):
                message = await receive()
        except TimeoutError:
            raise Invalid(f"the body did not arrive within {within_s:g} s") from None
        seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
        if seen > limit:
            raise TooLarge(f"the body may have at most {limit} bytes")
        return message

    return next_part


def is_local(host: str) -> bool:
    """Whether a `Host` header, with or without a port, names this machine's loopback."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    return is_loopback(name.strip("[]"))
