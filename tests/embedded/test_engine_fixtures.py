import psycopg
import pytest


def test_each_test_gets_an_empty_database(postgres_url):
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        version = connection.info.server_version
    assert tables == (0,)
    assert version // 10000 == 18


def test_the_server_wants_the_password(postgres_url, postgres):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=str(postgres.sockets), dbname="similis", user="similis", password="wrong")


def test_celery_can_ring_over_the_socket(valkey_url):
    import celery

    app = celery.Celery(broker=valkey_url)
    app.send_task("similis.nothing", queue="ingest", retry=True, retry_policy={"max_retries": 0})
    with app.connection_for_read() as connection:
        assert connection.default_channel.client.llen("ingest") == 1
    app.close()
