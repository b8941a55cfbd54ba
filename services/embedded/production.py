"""The secrets that docker-compose.yml hands to the processes as files, and the signs of life it asks for."""

import os
import secrets
import time
from pathlib import Path

from services.embedded.home import write
from shared.errors import Conflict
from shared.process import sign_of_life

SILENT_S = 120.0  #: a worker touches its file every 5 s, but not during a task, which may optimise an index


def write_secrets(folder: Path, owner: int | None = None) -> list[str]:
    """Every secret has its file, 0600; those that were there stay. Gives the names of the new ones.

    Args:
        owner: the user the containers run as, who must be able to read them; else whoever calls.

    Raises: `Conflict` where only the key of the pseudonyms is gone: a new one would make every patient a stranger.
    """
    if (folder / "database_url").exists() and not (folder / "pseudonym_key").exists():
        raise Conflict("pseudonym_key is gone, and the database was made with it: put it back from a backup")
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def secret(name: str, value: str) -> str:
        path = folder / name
        if path.exists():
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
    """Whether the worker or beat of that name on this machine has shown life lately."""
    try:
        touched = sign_of_life(home, name).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - touched < SILENT_S
