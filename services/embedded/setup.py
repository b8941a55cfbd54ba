"""Prepares the database before the API and workers start: schema, first API key, and the location of sent files.

Both `similis migrate` in production and the supervisor run this module.
"""

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from psycopg.errors import InsufficientPrivilege
from sqlalchemy.exc import ProgrammingError

from migrations import run as migrations
from shared.config import read
from shared.errors import Conflict, Denied, SimilisError, Unavailable
from shared.log import configure, get
from shared.store import keys, pseudonyms
from shared.store.blobs import Blobs, follow
from shared.store.locks import Lock, alone
from shared.store.session import Store, reachable

log = get(__name__)

WAIT_S = 300.0  # crash recovery of the database may take minutes


def prepare(url: str, secret: str | None, blobs: Blobs, pseudonym_key: bytes = b"") -> None:
    """Migrate the schema, and record the pseudonym key's identity, the store's location and the API key.

    Idempotent, and safe to run concurrently.

    Raises: `Unavailable` where the database does not answer in time, `Conflict` where a newer version has migrated it
        or its pseudonyms were made with another key, `Denied` where its user may not change the schema.
    """
    with closing(Store(url, pool_size=1)) as store:
        _await(store)
        _upgrade(store, url)
        with store.transaction() as db:
            pseudonyms.claim(db, pseudonym_key)
            alone(db, Lock.INTAKE)
            moved = follow(db, blobs)
        if moved:
            log.info("store_has_moved")
        if secret is not None:
            with store.transaction() as db:
                keys.ensure(db, secret, name="cli", scopes=keys.ALL)


def _upgrade(store: Store, url: str) -> None:
    with store.reading() as connection:
        made = MigrationContext.configure(connection).get_current_revision()
    if made is not None and made not in migrations.known():
        raise Conflict("this database was made by a newer version of Similis: start that version")
    try:
        with reachable():
            migrations.upgrade(url)
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        raise Denied("the database's user may not change its schema: let it own the schema, or the database") from None


def _await(store: Store) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return store.ping()
        except Unavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def key_file() -> Path | None:
    """The command line's --key-file."""
    parser = argparse.ArgumentParser(prog="similis migrate")
    parser.add_argument("--key-file", type=Path, help="file with an API key to register")
    found: Path | None = parser.parse_args().key_file
    return found


def run(keys_from: Path | None) -> int:
    """Prepare the database of the settings; returns an exit code, with an error message on stderr."""
    settings = read("similis migrate", "SIMILIS_DATABASE__URL")
    configure("migrate", json=settings.log_json, level=settings.log_level)
    try:
        url = settings.database.url.get_secret_value()
        secret = keys_from.read_text(encoding="utf-8").strip() if keys_from else None
        prepare(url, secret, Blobs(settings.blobs_dir.absolute()), settings.pseudonym_key.get_secret_value().encode())
    except SimilisError as error:
        sys.stderr.write(f"similis migrate: {error}\n")
        return 1
    except OSError as error:  # from the key file or a folder of sent files
        sys.stderr.write(f"similis migrate: {error.filename} cannot be read ({error.strerror})\n")
        return 1
    log.info("schema_ready")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(key_file()))
