"""`python -m services.api`: serve until told to stop."""

import sys

import uvicorn

from services.api.app import create
from services.api.broker import producer
from shared.config import Settings
from shared.errors import SimilisError
from shared.log import configure, get
from shared.runtime import Runtime

log = get("services.api")


def main() -> int:
    settings = Settings()
    configure("api", json=settings.log_json, level=settings.log_level)
    try:
        app = create(Runtime(settings, producer(settings)))
    except SimilisError as error:
        sys.stderr.write(f"similis api: {error}\n")
        return 1
    log.info("starting", host=settings.api.host, port=settings.api.port)
    uvicorn.run(
        app,
        host=settings.api.host,
        port=settings.api.port,
        log_config=None,  # ours
        access_log=False,  # it would write paths, which hold UIDs
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
