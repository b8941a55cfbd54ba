"""Real engines for the tests: one PostgreSQL and one Valkey per session, an empty database per test."""

import itertools
import os
from collections.abc import Iterator

import pytest

from services.embedded.postgres import Postgres
from services.embedded.valkey import Valkey
from tests.moves import GUARD

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """The session's server; it does not survive a loss of power, which no test simulates."""
    quick = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "100"}
    with Postgres(tmp_path_factory.mktemp("postgres"), quick) as server:
        yield server


def _fresh(server: Postgres, template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    with server.connect("postgres") as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield server.url_of(name)
    with server.connect("postgres") as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database, for this test only."""
    yield from _fresh(postgres, "template1")


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """The name of a template database at the newest schema."""
    from migrations import run

    run.upgrade(postgres.url_of("similis"))
    with postgres.connect("similis") as connection:
        connection.execute(GUARD)
    return "similis"


@pytest.fixture
def database_url(postgres: Postgres, migrated: str) -> Iterator[str]:
    """A database at the newest schema, for this test only."""
    yield from _fresh(postgres, migrated)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey_url(valkey: Valkey) -> Iterator[str]:
    """The URL of an empty broker, as Celery reads it."""
    import redis

    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.flushall()
    return valkey.url
