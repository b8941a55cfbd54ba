"""`make check`: the migrations go up, match the tables, go down to nothing, and up again, on a real Postgres."""

import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command

from migrations import run
from services.embedded.postgres import Postgres


def left_over(url: str) -> list[str]:
    """Tables that a full downgrade left behind."""
    engine = sa.create_engine(url)
    names = sa.inspect(engine).get_table_names()
    engine.dispose()
    return [name for name in names if name != "alembic_version"]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, Postgres(Path(folder)) as server:
        run.upgrade(server.url)
        command.check(run.config(server.url))
        run.downgrade(server.url)
        if rest := left_over(server.url):
            sys.stderr.write(f"a downgrade leaves {', '.join(rest)}\n")
            return 1
        run.upgrade(server.url)
    sys.stdout.write("migrations: up, down and up again\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
