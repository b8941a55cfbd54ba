"""Authentication and scopes. Deny by default: a route that declares no scope stops the app from starting.

A key's lookup is cached for `CACHE_S`, so a revoked key is refused within that time.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from services.api.limits import TokenBuckets
from services.api.query_params import check_names
from shared.errors import Denied, Unavailable, Unidentified
from shared.log import get
from shared.runtime import Runtime
from shared.store import keys
from shared.store.keys import Bearer, Scope
from shared.types import Status

log = get(__name__)

CACHE_S = 0.8
OFFLINE_S = 24 * 3600.0  #: for so long a lookup counts where the database is not needed
MOST = 1024  #: cached lookups, of valid and of unknown keys
TOUCH_S = 60.0
HELD_BACK = frozenset({Status.QUARANTINED, Status.REJECTED})  #: images whose pictures only a reviewer may see
ANYBODY = Bearer(0, "anybody", "", frozenset(keys.ALL))  #: loopback callers when `api.require_key` is off


class Callers:
    """A cache of key lookups, and a token bucket for each key."""

    def __init__(self, rt: Runtime) -> None:
        api = rt.settings.api
        self.rt = rt
        self.buckets = TokenBuckets(api.rate_per_s, api.burst)
        self._seen: OrderedDict[str, tuple[Bearer | None, float]] = OrderedDict()
        self._touched: dict[int, float] = {}
        self._later = ThreadPoolExecutor(1, "touch")

    async def identify(self, request: Request, *, offline: bool = False) -> Bearer:
        """The caller's key.

        Args:
            offline: while the database is away, a key is enough that was valid within the last `OFFLINE_S`.

        Raises: `Unidentified` for a missing, unknown, expired or revoked key alike, `Unavailable`.
        """
        if not self.rt.settings.api.require_key:
            return ANYBODY
        secret = presented(request)
        if secret is None or not 32 <= len(secret) <= 256:
            raise Unidentified("an API key is needed: Authorization: Bearer sml_...")
        bearer, known_at = self._seen.get(secret, (None, 0.0))
        if time.monotonic() - known_at > CACHE_S:
            asked = time.monotonic()  # taken before the lookup, so that a revocation during it is seen in time
            try:
                bearer = await run_in_threadpool(self._ask, secret)
            except Unavailable:
                if bearer is None or not offline or asked - known_at > OFFLINE_S:
                    raise
            else:
                self._remember(secret, bearer, asked)
        if bearer is None:
            raise Unidentified("this API key is not valid")
        self._touch(bearer.id)
        return bearer

    def _remember(self, secret: str, bearer: Bearer | None, asked: float) -> None:
        self._seen[secret] = (bearer, asked)
        self._seen.move_to_end(secret)
        while len(self._seen) > MOST:
            self._seen.popitem(last=False)

    def _ask(self, secret: str) -> Bearer | None:
        with self.rt.store.reading() as connection:
            return keys.identify(connection, secret)

    def _touch(self, key_id: int) -> None:
        """Update the key's time of last use, at most once per `TOUCH_S` and in a background thread."""
        now = time.monotonic()
        if now - self._touched.get(key_id, -TOUCH_S) >= TOUCH_S:
            self._touched[key_id] = now
            self._later.submit(self._write_touch, key_id)

    def _write_touch(self, key_id: int) -> None:
        try:
            with self.rt.transaction() as db:
                keys.touch(db, key_id)
        except Unavailable:
            self._touched.pop(key_id, None)
        except Exception:
            log.warning("touch_failed", exc_info=True)

    def close(self) -> None:
        self._later.shutdown(wait=True)


def presented(request: Request) -> str | None:
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret:
        return secret.strip()
    return request.headers.get("x-api-key")


class Needs:
    """A dependency that admits callers with one of these scopes and a token left in their bucket.

    It also refuses query parameters that the route does not declare.
    """

    def __init__(self, *scopes: Scope, offline: bool = False) -> None:
        self.scopes, self.offline = frozenset(scopes), offline

    async def __call__(self, request: Request) -> Bearer:
        callers: Callers = request.app.state.callers
        bearer = await callers.identify(request, offline=self.offline)
        structlog.contextvars.bind_contextvars(key_prefix=bearer.prefix)
        if not self.scopes & bearer.scopes:
            raise Denied(f"this needs a key with the scope {' or '.join(sorted(self.scopes))}")
        callers.buckets.take(bearer.id)
        check_names(request)
        return bearer


def may_see(status: str, bearer: Bearer) -> bool:
    return status not in HELD_BACK or Scope.REVIEW in bearer.scopes


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Declare explicitly that a route needs no key."""
    function.__similis_public__ = True  # type: ignore[attr-defined]
    return function


def scopes_of(route: APIRoute) -> frozenset[Scope] | None:
    """The scopes that the route declares; empty for a public route, None for a route that declares neither."""
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, Needs):
            return dependency.call.scopes
    return frozenset() if hasattr(route.endpoint, "__similis_public__") else None


def refuse_undeclared(routes: Iterable[object]) -> None:
    """Raises: `Denied` when a route says neither which scope it needs nor that it is public."""
    for route in routes:
        if not isinstance(route, APIRoute) or scopes_of(route) is None:
            raise Denied(f"the route {getattr(route, 'path', '?')} declares no scope")
