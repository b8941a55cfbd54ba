"""Alembic, configured from pyproject.toml; the URL comes from the caller or from the settings."""

import sqlalchemy as sa
from alembic import context

from shared.config import Settings
from shared.store.tables import Base

LOCK = 0x51A115  # two deployers may start at once: the second waits, then finds nothing to do


def run() -> None:
    url = context.config.attributes.get("url") or Settings().database.url.get_secret_value()
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        connection.execute(sa.text("SET lock_timeout = '30s'"))  # for locks on tables, not for the other deployer
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_server_default=False,
            transaction_per_migration=True,  # a search waits for the locks of one migration, not of all
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
        connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
    engine.dispose()


run()
