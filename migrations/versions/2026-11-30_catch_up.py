"""Rename the backfill of a new model to catch-up, because a backfill is also a pull from another archive."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

INDEXES = ("due", "failed", "image_id")


def rename(old: str, new: str) -> None:
    """Rename the table, its indexes and all its constraints; PostgreSQL 18 also names those for NOT NULL."""
    op.rename_table(old, new)
    for index in INDEXES:
        op.execute(f"ALTER INDEX ix_{old}_{index} RENAME TO ix_{new}_{index}")
    op.execute(
        f"""
        DO $$ DECLARE named text; BEGIN
            FOR named IN SELECT conname FROM pg_constraint
                         WHERE conrelid = '{new}'::regclass AND strpos(conname, '{old}') > 0 LOOP
                EXECUTE format('ALTER TABLE {new} RENAME CONSTRAINT %I TO %I', named,
                               replace(named, '{old}', '{new}'));
            END LOOP;
        END $$
        """
    )


def upgrade() -> None:
    rename("backfill", "catch_up")


def downgrade() -> None:
    rename("catch_up", "backfill")
