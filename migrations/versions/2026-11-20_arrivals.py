"""The journal of incoming files and their senders."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "arrival",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("source", "sender", "called", "study_uid")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("sop_uid", "outcome")),
        sa.Column("reason", sa.Text()),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("image_id", sa.BigInteger()),
        sa.Column("operation_id", sa.Uuid()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrival")),
    )
    op.create_index("ix_arrival_study_uid", "arrival", ["study_uid"])
    op.create_index("ix_arrival_taken", "arrival", ["image_id", "id"], postgresql_where=sa.text("outcome = 'taken'"))


def downgrade() -> None:
    op.drop_table("arrival")
