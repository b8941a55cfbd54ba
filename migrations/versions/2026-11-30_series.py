"""Indexes that find a series, or the images of a rare modality, without reading all images."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_image_series_uid"), "image", ["series_uid"])
    op.create_index(op.f("ix_image_modality"), "image", ["modality"])


def downgrade() -> None:
    op.drop_index(op.f("ix_image_modality"), "image")
    op.drop_index(op.f("ix_image_series_uid"), "image")
