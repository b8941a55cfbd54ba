"""`python -m services.api`: serve until told to stop."""

import gc
import resource
import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from services.api.app import create
from services.api.http_protocol import HttpProtocol
from shared.config import read
from shared.errors import SimilisError
from shared.log import configure, get
from shared.runtime import Runtime, producer

log = get("services.api")


class Server(uvicorn.Server):
    """Calls `serving` once it answers: with a socket that was already open, this cannot be seen from outside."""

    def __init__(self, config: uvicorn.Config, serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.collect()
            gc.freeze()  # a full collection over all loaded objects delayed requests by 70 ms and more
            gc.set_threshold(50_000)
            self._serving()


def configuration(app: ASGIApp, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=HttpProtocol,
        ws="none",  # a WebSocket upgrade would bypass the limits of `HttpProtocol`
        log_config=None,  # `shared.log` configures logging
        access_log=False,  # it would log paths, which hold UIDs
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard limit: services often start with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(listener: socket.socket | None = None, serving: Callable[[], None] = lambda: None) -> int:
    """Serve on the given socket, or on a new one; returns an exit code."""
    settings = read("similis api", "SIMILIS_DATABASE__URL", "SIMILIS_PSEUDONYM_KEY")
    configure("api", json=settings.log_json, level=settings.log_level)
    raise_limit()
    try:
        app = create(Runtime(settings, producer(settings)))
    except SimilisError as error:
        sys.stderr.write(f"similis api: {error}\n")
        return 1
    log.info("starting", host=settings.api.host, port=settings.api.port)
    server = Server(configuration(app, settings.api.host, settings.api.port), serving)
    server.run(sockets=None if listener is None else [listener])
    return 0 if server.started else 3


if __name__ == "__main__":
    sys.exit(main())
