"""Generations that are built beside the live one, the images their models have yet to encode, and tombstones."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATES = "state IN ('pending', 'running', {}'succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    for column in (
        sa.Column("operation_id", sa.UUID()),
        sa.Column("filled_to", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("filled_at", time),
        sa.Column("throttle", sa.REAL()),
        sa.Column("paced_from", time),
        sa.Column("gate", sa.REAL(), server_default="0.97", nullable=False),
        sa.Column("measured", postgresql.JSONB(astext_type=sa.Text())),
        sa.Column("accepted", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("retired_at", time),
        sa.Column("purged_at", time),
    ):
        op.add_column("generation", column)
    # existing generations were opened when there was nothing to fill in
    op.execute("UPDATE generation SET filled_at = created_at")
    op.execute("UPDATE generation SET retired_at = clock_timestamp() WHERE state = 'retired'")
    op.add_column("live", sa.Column("previous_id", sa.BigInteger()))
    op.create_foreign_key("fk_live_previous_id_generation", "live", "generation", ["previous_id"], ["id"])
    _operation_states("'paused', ")
    op.create_table(
        "backfill",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="due", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", time),
        sa.Column("not_before", time),
        sa.Column("last_error", sa.Text()),
        sa.CheckConstraint("state IN ('due', 'failed')", name=op.f("ck_backfill_state")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_backfill_model_id_model"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["image.id"], name=op.f("fk_backfill_image_id_image"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "image_id", name=op.f("pk_backfill")),
    )
    op.create_index("ix_backfill_due", "backfill", ["model_id", "image_id"], postgresql_where=sa.text("state = 'due'"))
    op.create_index(op.f("ix_backfill_image_id"), "backfill", ["image_id"])
    op.create_table(
        "tombstone",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.UUID(), nullable=False),
        sa.Column("created_at", time, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("kind IN ('image', 'study', 'patient')", name=op.f("ck_tombstone_kind")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_tombstone")),
    )
    op.create_index(op.f("ix_tombstone_operation_id"), "tombstone", ["operation_id"])


def _operation_states(more: str) -> None:
    op.drop_constraint(op.f("ck_operation_state"), "operation", type_="check")
    op.create_check_constraint(op.f("ck_operation_state"), "operation", STATES.format(more))


def downgrade() -> None:
    op.drop_table("tombstone")
    op.drop_table("backfill")
    op.execute("UPDATE operation SET state = 'cancelled' WHERE state = 'paused'")
    _operation_states("")
    op.drop_column("live", "previous_id")
    for name in (
        "purged_at",
        "retired_at",
        "accepted",
        "measured",
        "gate",
        "paced_from",
        "throttle",
        "filled_at",
        "filled_to",
        "operation_id",
    ):
        op.drop_column("generation", name)
