"""The feature gate's second vote: the distance of an embedding from those of known images."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("calibration", "threshold", nullable=True)
    op.add_column("calibration", sa.Column("distances", postgresql.JSONB(astext_type=sa.Text())))
    op.add_column("calibration", sa.Column("gaussian", sa.LargeBinary()))
    op.create_check_constraint(
        op.f("ck_calibration_votes"), "calibration", "threshold IS NOT NULL OR distances IS NOT NULL"
    )
    op.create_check_constraint(
        op.f("ck_calibration_gaussian"), "calibration", "(distances IS NULL) = (gaussian IS NULL)"
    )
    op.add_column("image", sa.Column("distance", sa.REAL()))
    op.add_column("review", sa.Column("distance", sa.REAL()))
    op.add_column("review", sa.Column("distance_threshold", sa.Double()))


def downgrade() -> None:
    """Delete calibrations without a first threshold; images that they judged have no calibration then."""
    op.drop_column("review", "distance_threshold")
    op.drop_column("review", "distance")
    op.drop_column("image", "distance")
    op.execute(
        "UPDATE image SET calibration_id = NULL FROM calibration c "
        "WHERE c.id = image.calibration_id AND c.threshold IS NULL"
    )
    op.execute("DELETE FROM calibration WHERE threshold IS NULL")
    op.drop_constraint(op.f("ck_calibration_gaussian"), "calibration")
    op.drop_constraint(op.f("ck_calibration_votes"), "calibration")
    op.drop_column("calibration", "gaussian")
    op.drop_column("calibration", "distances")
    op.alter_column("calibration", "threshold", nullable=False)
