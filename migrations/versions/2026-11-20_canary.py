"""The results of a generation's canary, round by round."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("generation", sa.Column("canary", JSONB(), server_default=sa.text("'[]'"), nullable=False))
    op.add_column("generation", sa.Column("canary_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("generation", "canary_at")
    op.drop_column("generation", "canary")
