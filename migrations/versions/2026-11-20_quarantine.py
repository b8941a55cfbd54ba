"""Calibrations of the feature gate, reviews of stopped images, and the audit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _calibration()
    op.add_column("image", sa.Column("calibration_id", sa.BigInteger()))
    op.create_foreign_key(
        op.f("fk_image_calibration_id_calibration"), "image", "calibration", ["calibration_id"], ["id"]
    )
    op.create_index("ix_file_stopped", "file", ["id"], postgresql_where=sa.text("outcome = 'quarantined'"))
    op.create_table(
        "review",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("gate", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("score", sa.REAL()),
        sa.Column("threshold", sa.Double()),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        _now("created_at"),
        sa.CheckConstraint("decision IN ('released', 'rejected')", name=op.f("ck_review_decision")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_review_image_id_image"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
        sa.UniqueConstraint("image_id", "digest", name="uq_review_image_id"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        _now("at"),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("image_id", sa.BigInteger()),
        _json("details"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )


def _calibration() -> None:
    op.create_table(
        "calibration",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("mean", sa.Double()),
        sa.Column("std", sa.Double()),
        _json("quantiles"),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("data_sha256", sa.Text(), nullable=False),
        sa.Column("made_by", sa.Text()),
        _now("created_at"),
        sa.CheckConstraint("source IN ('card', 'archive', 'given')", name=op.f("ck_calibration_source")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("fk_calibration_model_id_model"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibration")),
    )
    op.create_index("ix_calibration_newest", "calibration", ["model_id", "modality", "id"])


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False)


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_table("review")
    op.drop_index("ix_file_stopped", "file")
    op.drop_column("image", "calibration_id")
    op.drop_table("calibration")
