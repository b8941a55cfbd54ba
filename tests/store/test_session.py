import time

import pytest
import sqlalchemy as sa

from shared.errors import Invalid, Unavailable
from shared.store import neighbours
from shared.store.session import PINGED_AFTER_S, Store, enqueue
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


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://me:SECRET@host/db", "postgresql+psycopg://me:SECRET@host:port/db", "no+such://x"]
)
def test_an_address_that_is_none_is_told_and_not_shown(url: str) -> None:
    with pytest.raises(Invalid, match="must have the form postgresql\\+psycopg://") as told:
        Store(url)
    assert "SECRET" not in str(told.value)


def test_a_connection_that_dies_is_unavailable_and_the_next_one_works(platform: Platform) -> None:
    with pytest.raises(Unavailable), platform.store.reading() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with platform.store.reading() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(sa.text("SELECT 1"))
    platform.store.ping()


@pytest.mark.parametrize("rest_s", [0.0, PINGED_AFTER_S])
def test_connections_that_die_while_they_rest_are_not_noticed(platform: Platform, rest_s: float) -> None:
    with platform.store.reading(), platform.store.reading():
        pass  # two connections rest in the pool
    time.sleep(rest_s)
    other = Store(platform.store.engine.url.render_as_string(hide_password=False))
    with other.reading() as connection:
        ended = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        assert connection.scalar(sa.text(f"{ended} AND datname = current_database()")) >= 2
    other.close()
    platform.store.ping()
    with platform.begin() as db:
        db.execute(sa.text("SELECT 1"))


def test_a_database_that_ends_each_new_connection_is_unavailable(platform: Platform) -> None:
    url = platform.store.engine.url
    with platform.store.reading() as connection:
        connection.execute(sa.text(f'ALTER DATABASE "{url.database}" SET idle_session_timeout = 1'))
    store = Store(url.render_as_string(hide_password=False))
    sa.event.listen(store.engine, "connect", lambda *_: time.sleep(0.1))  # until the server has ended it
    with pytest.raises(Unavailable):
        store.ping()
    store.close()


def test_a_connection_that_dies_under_a_statement_given_to_the_driver_is_unavailable_too(platform: Platform) -> None:
    with pytest.raises(Unavailable), platform.store.reading() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with platform.store.reading() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        neighbours.vectors(connection, ["2.25.1"], 1)
    with platform.store.reading() as connection:
        assert neighbours.vectors(connection, ["2.25.1"], 1) == []


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("53100", "disk is full"),
        ("40P01", "deadlock"),
        ("55P03", "locked by another session"),
        ("08006", "cannot be reached"),
    ],
)
def test_what_the_database_lacks_is_told(platform: Platform, state: str, word: str) -> None:
    with pytest.raises(Unavailable, match=word), platform.begin() as db:
        db.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"))


def test_a_server_that_loses_its_power_is_missed_within_a_minute(platform: Platform) -> None:
    with platform.store.reading() as connection:
        told = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
    asked_s = int(told["keepalives_idle"]) + int(told["keepalives_interval"]) * int(told["keepalives_count"])
    assert asked_s <= 60
    assert int(told["tcp_user_timeout"]) <= 60_000


def test_a_wrong_statement_is_our_own_fault(platform: Platform) -> None:
    with pytest.raises(sa.exc.ProgrammingError), platform.store.reading() as connection:
        connection.execute(sa.text("SELECT nothing FROM nowhere"))
