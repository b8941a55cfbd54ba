"""How often an image waited before it is tried again, which its fence does not tell."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("image", "catch_up"):
        op.add_column(table, sa.Column("waited", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    for table in ("catch_up", "image"):
        op.drop_column(table, "waited")
