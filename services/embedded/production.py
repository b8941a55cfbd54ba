"""The secret files for docker-compose.yml, and the heartbeats that its health checks look at."""

import os
import secrets
import time
from pathlib import Path

from services.embedded.home import write
from shared.disk import exists
from shared.errors import Conflict
from shared.process import sign_of_life

SILENT_S = 120.0  #: age of a heartbeat; workers touch their file every 5 s, but not within a step of a task


def write_secrets(folder: Path, owner: int | None = None) -> list[str]:
    """Create the missing secret files, mode 0600; returns their names.

    Args:
        owner: id of the user whom the containers run as; None: the caller owns the files.

    Raises: `Conflict` where only the pseudonym key is gone: with a new key, known patients would not be recognised.
    """
    if exists(folder / "database_url") and not exists(folder / "pseudonym_key"):
        raise Conflict("pseudonym_key is missing, but the database was created with it: restore it from a backup")
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def secret(name: str, value: str) -> str:
        path = folder / name
        if exists(path):
            return path.read_text(encoding="utf-8").strip()
        write(path, value)
        if owner is not None:
            os.chown(path, owner, owner)
        made.append(name)
        return value

    database = secret("database_password", secrets.token_urlsafe(32))
    secret("database_url", f"postgresql+psycopg://similis:{database}@postgres:5432/similis")
    broker = secret("broker_password", secrets.token_urlsafe(32))
    secret("broker_url", f"redis://:{broker}@broker:6379/0")
    for name in ("qdrant_api_key", "pseudonym_key"):
        secret(name, secrets.token_urlsafe(32))
    secret("api_key", "sml_" + secrets.token_urlsafe(32))
    return made


def lives(home: Path, name: str) -> bool:
    """Whether the worker or beat of that name on this machine has sent a heartbeat in the last `SILENT_S`."""
    try:
        touched = sign_of_life(home, name).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - touched < SILENT_S
