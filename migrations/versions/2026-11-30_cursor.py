"""Columns for an operation's cursor and the time its files were registered; its counts are tallies only."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operation", sa.Column("cursor", postgresql.JSONB()))
    op.add_column("operation", sa.Column("registered_at", sa.DateTime(timezone=True)))
    op.execute(
        """
        UPDATE operation SET
            cursor = CASE WHEN counts ? 'looked_at' THEN jsonb_build_object('image', counts -> 'looked_at')
                          WHEN kind = 'scan' AND counts ? 'cursor' THEN jsonb_build_object('path', counts -> 'cursor')
                          ELSE nullif(counts -> 'cursor', '{}') END,
            registered_at = CASE WHEN counts ? 'scanned' THEN coalesce(finished_at, clock_timestamp()) END,
            counts = counts - ARRAY['cursor', 'looked_at', 'scanned']
        WHERE counts ?| ARRAY['cursor', 'looked_at', 'scanned']
        """
    )


def downgrade() -> None:
    op.execute(
        """
        UPDATE operation SET counts = counts
            || CASE WHEN cursor IS NULL THEN '{}'
                    WHEN cursor ? 'image' THEN jsonb_build_object('looked_at', cursor -> 'image')
                    ELSE jsonb_build_object('cursor', coalesce(cursor -> 'path', cursor)) END
            || CASE WHEN registered_at IS NULL THEN '{}' ELSE '{"scanned": true}'::jsonb END
        WHERE cursor IS NOT NULL OR registered_at IS NOT NULL
        """
    )
    op.drop_column("operation", "registered_at")
    op.drop_column("operation", "cursor")
