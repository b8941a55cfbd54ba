"""Indexes that find what a model has to catch up on now among a million images that rest, and what failed."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

DUE = "state = 'due'"


def upgrade() -> None:
    op.drop_index("ix_catch_up_due", "catch_up")
    waits = sa.text("COALESCE(not_before, '-infinity'::timestamp with time zone)")
    op.create_index("ix_catch_up_due", "catch_up", ["model_id", waits, "image_id"], postgresql_where=sa.text(DUE))
    failing = sa.text(f"{DUE} AND (lease_until IS NOT NULL OR failures > 0)")
    op.create_index("ix_catch_up_failing", "catch_up", ["model_id", "image_id"], postgresql_where=failing)


def downgrade() -> None:
    op.drop_index("ix_catch_up_failing", "catch_up")
    op.drop_index("ix_catch_up_due", "catch_up")
    op.create_index("ix_catch_up_due", "catch_up", ["model_id", "image_id"], postgresql_where=sa.text(DUE))
