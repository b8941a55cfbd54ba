import pytest
import sqlalchemy as sa

from shared.errors import Unavailable
from shared.store import neighbours
from shared.store.session import Store, enqueue
from shared.types import Job
from tests.miniature import Platform


def test_a_bell_rings_after_the_commit_and_once(platform: Platform) -> None:
    with platform.begin() as db:
        enqueue(db, Job.ENCODE)
        enqueue(db, Job.ENCODE)
        assert platform.queue.rung == []
    assert platform.queue.rung == [Job.ENCODE]


def test_no_bell_rings_after_a_rollback(platform: Platform) -> None:
    with pytest.raises(ZeroDivisionError), platform.begin() as db:
        enqueue(db, Job.ENCODE)
        raise ZeroDivisionError
    assert platform.queue.rung == []


def test_a_database_that_is_away_is_unavailable() -> None:
    store = Store("postgresql+psycopg://nobody@/nothing?host=/nonexistent")
    with pytest.raises(Unavailable):
        store.ping()
    store.close()


def test_a_connection_that_dies_is_unavailable_and_the_next_one_works(platform: Platform) -> None:
    with pytest.raises(Unavailable), platform.store.reading() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with platform.store.reading() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(sa.text("SELECT 1"))
    platform.store.ping()


def test_a_connection_that_dies_under_a_statement_given_to_the_driver_is_unavailable_too(platform: Platform) -> None:
    with pytest.raises(Unavailable), platform.store.reading() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with platform.store.reading() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        neighbours.vectors(connection, ["2.25.1"], 1)
    with platform.store.reading() as connection:
        assert neighbours.vectors(connection, ["2.25.1"], 1) == []


def test_a_wrong_statement_is_our_own_fault(platform: Platform) -> None:
    with pytest.raises(sa.exc.ProgrammingError), platform.store.reading() as connection:
        connection.execute(sa.text("SELECT nothing FROM nowhere"))
