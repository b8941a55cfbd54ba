"""What must be true before the API and the workers start: the newest schema, the first API key, where sent files stand.

`similis migrate` in production and the supervisor run this same module.
"""

import argparse
import sys
import time
from pathlib import Path

from migrations import run as migrations
from shared.config import Settings
from shared.errors import SimilisError, Unavailable
from shared.log import configure, get
from shared.store import keys
from shared.store.blobs import Blobs, follow
from shared.store.locks import Lock, alone
from shared.store.session import Store

log = get(__name__)

WAIT_S = 300.0  # crash recovery of the database may take minutes


def prepare(url: str, secret: str | None, blobs: Blobs, wait_s: float = WAIT_S) -> None:
    """The database is at the newest schema, knows the key, and where sent files stand. Safe to run twice, and at once.

    Raises: `Unavailable` where the database does not answer in time.
    """
    store = Store(url, pool_size=1)
    try:
        _await(store, wait_s)
        migrations.upgrade(url)
        with store.transaction() as db:
            alone(db, Lock.INTAKE)
            moved = follow(db, blobs)
        if moved:
            log.info("store_has_moved")
        if secret is not None:
            with store.transaction() as db:
                keys.ensure(db, secret, name="cli", scopes=keys.ALL)
    finally:
        store.close()


def _await(store: Store, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return store.ping()
        except Unavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def key_file() -> Path | None:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="similis migrate")
    parser.add_argument("--key-file", type=Path, help="a file with an API key that shall be known")
    found: Path | None = parser.parse_args().key_file
    return found


def run(keys_from: Path | None) -> int:
    """The database is prepared; gives an exit code, and says on stderr why it is not 0."""
    settings = Settings()
    configure("migrate", json=settings.log_json, level=settings.log_level)
    try:
        url = settings.database.url.get_secret_value()
        if not url:
            raise Unavailable("SIMILIS_DATABASE__URL or SIMILIS_DATABASE__URL_FILE is not set")
        secret = keys_from.read_text(encoding="utf-8").strip() if keys_from else None
        prepare(url, secret, Blobs(settings.blobs_dir.absolute()))
    except SimilisError as error:
        sys.stderr.write(f"similis migrate: {error}\n")
        return 1
    log.info("schema_ready")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(key_file()))
