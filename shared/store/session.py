"""Database connections: transactions for writing, autocommit reads for the search path."""

import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, LiteralString

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from shared.errors import Invalid, Unavailable
from shared.types import Job

#: Opens a unit of work, `with begin() as db`, which commits at the end of the block.
Begin = Callable[[], AbstractContextManager[Session]]


#: A server that loses power closes no connection. By default TCP retransmits a statement for a quarter of an hour, and
#: notices only after two hours that an idle connection is dead. Unix sockets need none of this.
WATCHED = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}

PINGED_AFTER_S = 0.2  #: of rest in the pool: a server that lost its power told nobody

#: Transient PostgreSQL errors by SQLSTATE, worded for the administrator.
BUSY = {
    "53100": "the database's disk is full",
    "53200": "the database is out of memory",
    "40P01": "the database found a deadlock between two transactions",
    "55P03": "a table of the database is locked by another session",
}


class Store:
    """One process's access to the database. Raises: `Invalid` for a malformed URL."""

    def __init__(self, url: str, pool_size: int = 8) -> None:
        try:
            self.engine = sa.create_engine(
                url,
                pool_size=pool_size,
                max_overflow=2,
                pool_timeout=5,
                connect_args={"connect_timeout": 5, "prepare_threshold": 3, **WATCHED},
            )
        except (ArgumentError, ImportError, ValueError):  # their messages may contain the password
            raise Invalid(
                "the database URL must have the form postgresql+psycopg://user:password@host/database"
            ) from None
        sa.event.listen(self.engine, "checkin", _rested)
        sa.event.listen(self.engine, "checkout", partial(_check, self.engine))
        self.reads = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self, ring: Callable[[Job], None] | None = None) -> Iterator[Session]:
        """Run one unit of work: commit, then call `ring` for each job it enqueued; on an error, do neither.

        Raises: `Unavailable` where the database cannot be reached.
        """
        with reachable(), self.sessions() as db:
            with db.begin():
                yield db
            jobs: list[Job] = db.info.pop("outbox", [])
        if ring is not None:
            for job in dict.fromkeys(jobs):
                ring(job)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection in autocommit mode: each statement sees what is committed when it runs."""
        with reachable(), self.reads.connect() as connection:
            yield connection

    def ping(self) -> None:
        with self.reading() as connection:
            connection.execute(sa.text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def _rested(_driver: object, pooled: ConnectionPoolEntry) -> None:
    pooled.info["since"] = time.monotonic()


def _check(engine: sa.Engine, driver: DBAPIConnection, pooled: ConnectionPoolEntry, _: object) -> None:
    """Ping a pooled connection, which is dead after Postgres restarts.

    One that has just been used is pinged only if there is something to read from it: mostly, that the server ended it.
    """
    since = pooled.info.get("since")
    if since is None:  # it is new
        return
    try:
        if time.monotonic() - since >= PINGED_AFTER_S or _readable(driver):
            engine.dialect.do_ping(driver)
    except psycopg.Error:
        raise sa.exc.InvalidatePoolError from None  # the pool then opens a new connection


def _readable(driver: Any) -> bool:  # noqa: ANN401 - a driver's connection has no common type
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def rows(connection: sa.Connection, statement: LiteralString, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Fetch through the driver, for the search path: SQLAlchemy adds 0.1 ms to a statement."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - the url names this driver
    with driver.cursor(binary=True) as cursor:
        return cursor.execute(statement, values).fetchall()


@contextmanager
def reachable() -> Iterator[None]:
    """Raise `Unavailable` where the database cannot serve; errors of the statement itself pass through."""
    try:
        yield
    except PoolTimeout:
        raise Unavailable("the database is busy", retry_after_s=2) from None
    except (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError) as error:
        state = getattr(getattr(error, "orig", error), "sqlstate", None)
        raise Unavailable(BUSY.get(state or "", "the database cannot be reached")) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("the connection to the database was lost") from error
        raise


def enqueue(db: Session, job: Job) -> None:
    """Request a job: its message is sent after the commit, and never after a rollback."""
    db.info.setdefault("outbox", []).append(job)
