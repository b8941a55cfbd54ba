"""While a generation is filled, it stands when what it lacks is counted again."""

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
