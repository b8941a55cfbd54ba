"""When the gaps of a generation are counted again while it is filled."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generation", sa.Column("count_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("generation", "count_at")
