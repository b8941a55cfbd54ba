"""Indexes that find dead letters without reading all other rows."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_file_failed", "file", ["id"], postgresql_where=sa.text("outcome = 'failed'"))
    op.create_index("ix_ledger_failed", "ledger", ["image_id"], postgresql_where=sa.text("state = 'failed'"))
    op.create_index("ix_backfill_failed", "backfill", ["image_id"], postgresql_where=sa.text("state = 'failed'"))


def downgrade() -> None:
    op.drop_index("ix_backfill_failed", "backfill")
    op.drop_index("ix_ledger_failed", "ledger")
    op.drop_index("ix_file_failed", "file")
