from pathlib import Path

import pytest
import sqlalchemy as sa

from migrations import run as migrations
from services.embedded import production, setup
from services.embedded.postgres import Postgres
from shared.errors import Conflict, Denied
from shared.store.blobs import Blobs


def test_the_database_of_a_newer_version_is_told_as_one(database_url: str, tmp_path: Path) -> None:
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(Conflict, match="newer version of Similis"):
        setup.prepare(database_url, None, Blobs(tmp_path))


def test_a_database_is_not_prepared_with_another_key_than_its_pseudonyms_were_made_with(
    database_url: str, tmp_path: Path
) -> None:
    for key in (b"", b"k" * 40, b"k" * 40):
        setup.prepare(database_url, None, Blobs(tmp_path), key)
    with pytest.raises(Conflict, match="pseudonym key"):
        setup.prepare(database_url, None, Blobs(tmp_path), b"q" * 40)


def test_secrets_are_not_made_anew_for_pseudonyms_that_exist(tmp_path: Path) -> None:
    """`similis secrets` after the key was lost: a new key would not recognise patients and tombstones."""
    production.write_secrets(tmp_path)
    (tmp_path / "broker_password").unlink()
    assert production.write_secrets(tmp_path) == ["broker_password"]
    (tmp_path / "pseudonym_key").unlink()
    with pytest.raises(Conflict, match="pseudonym_key is missing"):
        production.write_secrets(tmp_path)
    assert not (tmp_path / "pseudonym_key").exists()


def test_a_user_that_may_not_make_tables_is_told_so(postgres: Postgres, postgres_url: str, tmp_path: Path) -> None:
    weak = sa.make_url(postgres_url).set(username="weak", password="weak").render_as_string(hide_password=False)
    with postgres.connect("postgres") as connection:
        connection.execute("CREATE ROLE weak LOGIN PASSWORD 'weak'")
    try:
        with pytest.raises(Denied, match="own the schema"):
            setup.prepare(weak, None, Blobs(tmp_path))
    finally:
        with postgres.connect("postgres") as connection:
            connection.execute("DROP ROLE weak")


def test_a_second_deployer_waits_for_the_first_as_long_as_it_takes(postgres_url: str) -> None:
    asked: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", hear)
    try:
        migrations.upgrade(postgres_url)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", hear)
    (lock,) = (number for number, statement in enumerate(asked) if "pg_advisory_lock" in statement)
    (limit,) = (number for number, statement in enumerate(asked) if "lock_timeout" in statement)
    assert lock < limit


def test_each_migration_lets_go_of_what_it_has_locked(postgres_url: str) -> None:
    commits: list[object] = []

    def hear(connection: object) -> None:
        commits.append(connection)

    sa.event.listen(sa.Engine, "commit", hear)
    try:
        migrations.upgrade(postgres_url)
    finally:
        sa.event.remove(sa.Engine, "commit", hear)
    assert len(commits) >= len(migrations.known())
