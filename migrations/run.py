"""Migrations as functions, for `similis migrate`, the supervisor and the tests."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

HERE = Path(__file__).resolve().parent


def config(url: str | None = None) -> Config:
    conf = Config()
    conf.set_main_option("script_location", str(HERE).replace("%", "%%"))
    conf.attributes["url"] = url
    return conf


def known() -> set[str]:
    """The revisions that this version can read."""
    return {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}


def upgrade(url: str | None = None, revision: str = "head") -> None:
    """The schema is at `revision`. Safe to call from several processes at once."""
    command.upgrade(config(url), revision)


def downgrade(url: str | None = None, revision: str = "base") -> None:
    command.downgrade(config(url), revision)
