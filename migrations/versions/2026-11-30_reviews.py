"""The same bytes may be stopped, and decided on, more than once: by a rule of the site, then by a gate."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_review_image_id", "review", ["image_id", "digest"])
    op.drop_constraint("uq_review_image_id", "review", type_="unique")


def downgrade() -> None:
    """The latest decision on the same bytes stays."""
    op.execute(
        "DELETE FROM review r USING review later "
        "WHERE later.image_id = r.image_id AND later.digest = r.digest AND later.id > r.id"
    )
    op.create_unique_constraint("uq_review_image_id", "review", ["image_id", "digest"])
    op.drop_index("ix_review_image_id", "review")
