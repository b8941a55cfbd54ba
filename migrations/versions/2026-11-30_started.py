"""When a worker began an operation, which may have waited for one for long."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operation", sa.Column("started_at", sa.DateTime(timezone=True)))
    op.execute("UPDATE operation SET started_at = created_at WHERE attempt > 0")


def downgrade() -> None:
    op.drop_column("operation", "started_at")
