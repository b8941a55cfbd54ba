"""The settings of an installation, for maintenance from outside its processes."""

from pathlib import Path

from services.embedded.home import Home
from shared.config import Settings
from shared.errors import NotFound


def settings(home: Path) -> Settings:
    """The settings of the embedded stack in this home, or of the environment where the home has no database.

    Raises: `NotFound` where neither names a database.
    """
    given = Settings()
    if not (home / "database.url").exists():
        if not given.database.url.get_secret_value():
            raise NotFound(f"there is no installation in {home}: name it with --home, or set SIMILIS_DATABASE__URL")
        return given

    def secret(name: str) -> str:
        return (home / name).read_text(encoding="utf-8").strip()

    place = Home(home.resolve())
    return Settings.model_validate(
        given.model_dump()
        | {
            "home": place.path,
            "database": {"url": secret("database.url")},
            "qdrant": {"url": f"unix://{place.sockets / 'vectors.sock'}", "api_key": secret("vectors.key")},
            "pseudonym_key": secret("pseudonym.key"),
        }
    )


def settings_of_running(home: Path) -> Settings:
    """As `settings`. Raises: `NotFound` also where the home has a database and nothing runs on it."""
    given = settings(home)
    if (home / "pg").exists() and not Home(home.resolve()).locked:
        raise NotFound(f"nothing runs on the home {home}: start it with `similis up`, or name another with --home")
    return given
