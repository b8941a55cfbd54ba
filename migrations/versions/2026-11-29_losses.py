"""How often in a row an operation has lost its worker."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("operation", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("operation", "losses")
