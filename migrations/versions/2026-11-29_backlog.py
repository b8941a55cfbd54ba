"""Indexes for queries of a backlog of a million images; the store folder of each file that an erasure removes."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

WORK = "status IN ('received', 'encoding')"


def upgrade() -> None:
    op.drop_index("ix_image_work", "image")
    waits = sa.text("COALESCE(not_before, '-infinity'::timestamp with time zone)")
    op.create_index("ix_image_work", "image", [waits, "id"], postgresql_where=sa.text(WORK))
    failing = sa.text(f"{WORK} AND (status = 'encoding' OR failures > 0)")
    op.create_index("ix_image_failing", "image", ["id"], postgresql_where=failing)
    op.create_index("ix_image_undecided", "image", ["operation_id", "status"], postgresql_where=sa.text(WORK))
    op.drop_index("ix_arrival_taken", "arrival")
    op.create_index("ix_arrival_image", "arrival", ["image_id", "id"])
    op.add_column("removal", sa.Column("root", sa.LargeBinary(), nullable=False, server_default=sa.text("''")))
    op.drop_constraint(op.f("pk_removal"), "removal")
    op.create_primary_key(op.f("pk_removal"), "removal", ["digest", "root"])


def downgrade() -> None:
    op.execute("DELETE FROM removal a USING removal b WHERE a.digest = b.digest AND a.root > b.root")
    op.drop_constraint(op.f("pk_removal"), "removal")
    op.drop_column("removal", "root")
    op.create_primary_key(op.f("pk_removal"), "removal", ["digest"])
    op.drop_index("ix_arrival_image", "arrival")
    op.create_index("ix_arrival_taken", "arrival", ["image_id", "id"], postgresql_where=sa.text("outcome = 'taken'"))
    op.drop_index("ix_image_undecided", "image")
    op.drop_index("ix_image_failing", "image")
    op.drop_index("ix_image_work", "image")
    op.create_index("ix_image_work", "image", ["id"], postgresql_where=sa.text(WORK))
