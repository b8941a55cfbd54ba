"""Indexes of sent files by digest, identity of stopped files, files that an erasure has to remove, hours of a build."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SENT = (
    "encode(substring(path FROM greatest(length(path) - 74, 1)), 'escape') = '/' || "
    "substr(encode(digest, 'hex'), 1, 2) || '/' || substr(encode(digest, 'hex'), 3, 2) || '/' || "
    "encode(digest, 'hex') || '.dcm'"
)


def upgrade() -> None:
    op.add_column("file", sa.Column("patient_key", sa.LargeBinary()))
    op.add_column("file", sa.Column("study_uid", sa.Text()))
    op.add_column("file", sa.Column("sop_uid", sa.Text()))
    op.create_index("ix_file_patient_key", "file", ["patient_key"], postgresql_where=sa.text("patient_key IS NOT NULL"))
    op.create_index("ix_file_study_uid", "file", ["study_uid"], postgresql_where=sa.text("study_uid IS NOT NULL"))
    op.create_index("ix_file_digest", "file", ["digest"])
    op.create_index("ix_image_digest", "image", ["digest"])
    op.create_index("ix_file_again", "file", ["id"], postgresql_where=sa.text(f"mtime_ns = -1 AND {SENT}"))
    op.create_index(
        "ix_file_root",
        "file",
        [sa.text("SUBSTRING(path FROM 1 FOR GREATEST(length(path) - 75, 0))")],
        postgresql_where=sa.text(SENT),
    )
    op.create_table(
        "removal",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_removal")),
    )
    # their identity is stored when they are read again: sent files by the next scan job, others by a scan of the folder
    op.execute("UPDATE file SET mtime_ns = -1 WHERE outcome = 'quarantined'")
    op.add_column("generation", sa.Column("hours", sa.Text()))


def downgrade() -> None:
    op.drop_column("generation", "hours")
    op.drop_table("removal")
    op.drop_index("ix_file_root", "file")
    op.drop_index("ix_file_again", "file")
    op.drop_index("ix_image_digest", "image")
    for name in ("digest", "study_uid", "patient_key"):
        op.drop_index(f"ix_file_{name}", "file")
    op.drop_column("file", "sop_uid")
    op.drop_column("file", "study_uid")
    op.drop_column("file", "patient_key")
