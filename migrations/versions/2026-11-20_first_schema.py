"""first schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_key_digest")),
    )
    op.create_table(
        "model",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("card", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_model_fingerprint")),
        sa.UniqueConstraint("name", name=op.f("uq_model_name")),
    )
    op.create_table(
        "operation",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cancel", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("key_digest", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_operation_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation")),
        sa.UniqueConstraint("key_digest", name=op.f("uq_operation_key_digest")),
    )
    op.create_index(
        "ix_operation_work",
        "operation",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('pending', 'running')"),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("patient_key", sa.LargeBinary(), nullable=False),
        sa.Column("study_date", sa.Date(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("uid", name=op.f("uq_study_uid")),
    )
    op.create_index(op.f("ix_study_patient_key"), "study", ["patient_key"], unique=False)
    op.create_index(op.f("ix_study_study_date"), "study", ["study_date"], unique=False)
    op.create_table(
        "generation",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("state IN ('open', 'retired')", name=op.f("ck_generation_state")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_generation_model_id_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generation")),
        sa.UniqueConstraint("collection", name=op.f("uq_generation_collection")),
    )
    op.create_table(
        "image",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("sop_uid", sa.Text(), nullable=False),
        sa.Column("study_id", sa.BigInteger(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("sop_class", sa.Text(), nullable=False),
        sa.Column("transfer_syntax", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("laterality", sa.Text(), nullable=True),
        sa.Column("view", sa.Text(), nullable=True),
        sa.Column("view_modifiers", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("body_part", sa.Text(), nullable=False),
        sa.Column("manufacturer", sa.Text(), nullable=False),
        sa.Column("presentation_intent", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("columns", sa.Integer(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("birads", sa.SmallInteger(), nullable=True),
        sa.Column("density", sa.Text(), nullable=True),
        sa.Column("pathology", sa.Text(), nullable=True),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("status", sa.Text(), server_default="received", nullable=False),
        sa.Column("gate", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("score", sa.REAL(), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("operation_id", sa.UUID(), nullable=True),
        sa.Column(
            "received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_image_study_id_study")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("sop_uid", name=op.f("uq_image_sop_uid")),
    )
    op.create_index(op.f("ix_image_operation_id"), "image", ["operation_id"], unique=False)
    op.create_index(
        "ix_image_stopped",
        "image",
        ["status", "id"],
        unique=False,
        postgresql_where=sa.text("status IN ('quarantined', 'failed')"),
    )
    op.create_index(op.f("ix_image_study_id"), "image", ["study_id"], unique=False)
    op.create_index(
        "ix_image_work", "image", ["id"], unique=False, postgresql_where=sa.text("status IN ('received', 'encoding')")
    )
    op.create_table(
        "encoding",
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("frame", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("ood", sa.REAL(), nullable=True),
        sa.Column("code", sa.LargeBinary(), nullable=True),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["image.id"], name=op.f("fk_encoding_image_id_image"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_encoding_model_id_model")),
        sa.PrimaryKeyConstraint("image_id", "frame", "model_id", name=op.f("pk_encoding")),
    )
    op.create_table(
        "file",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("path_digest", sa.LargeBinary(), sa.Computed("sha256(path)", persisted=True), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("image_id", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("gate", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("labels_digest", sa.LargeBinary(), nullable=True),
        sa.Column("operation_id", sa.UUID(), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_file_image_id_image")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file")),
        sa.UniqueConstraint("path_digest", name=op.f("uq_file_path_digest")),
    )
    op.create_index(op.f("ix_file_image_id"), "file", ["image_id"], unique=False)
    op.create_index(op.f("ix_file_operation_id"), "file", ["operation_id"], unique=False)
    op.create_table(
        "ledger",
        sa.Column("generation_id", sa.BigInteger(), nullable=False),
        sa.Column("point_id", sa.UUID(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("frame", sa.Integer(), nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("op IN ('upsert', 'delete')", name=op.f("ck_ledger_op")),
        sa.CheckConstraint("state IN ('pending', 'applied', 'failed')", name=op.f("ck_ledger_state")),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generation.id"], name=op.f("fk_ledger_generation_id_generation"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("generation_id", "point_id", name=op.f("pk_ledger")),
    )
    op.create_index(op.f("ix_ledger_image_id"), "ledger", ["image_id"], unique=False)
    op.create_index(
        "ix_ledger_pending",
        "ledger",
        ["generation_id", "queued_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "live",
        sa.Column("id", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("generation_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "published_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("id = 1", name=op.f("ck_live_one_row")),
        sa.ForeignKeyConstraint(["generation_id"], ["generation.id"], name=op.f("fk_live_generation_id_generation")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_live")),
    )
    op.create_table(
        "thumbnail",
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("jpeg", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"], ["image.id"], name=op.f("fk_thumbnail_image_id_image"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_thumbnail")),
    )
    # An embedding of 1,024 float16 is 2 kB: in line, one page read; the default target would move it out of line.
    # MAIN rather than PLAIN: 4,096 float16 do not fit a page and may go out of line.
    op.execute("ALTER TABLE encoding SET (toast_tuple_target = 8160)")
    op.execute("ALTER TABLE encoding ALTER COLUMN embedding SET STORAGE MAIN")


def downgrade() -> None:
    op.drop_table("thumbnail")
    op.drop_table("live")
    op.drop_index("ix_ledger_pending", table_name="ledger", postgresql_where=sa.text("state = 'pending'"))
    op.drop_index(op.f("ix_ledger_image_id"), table_name="ledger")
    op.drop_table("ledger")
    op.drop_index(op.f("ix_file_operation_id"), table_name="file")
    op.drop_index(op.f("ix_file_image_id"), table_name="file")
    op.drop_table("file")
    op.drop_table("encoding")
    op.drop_index("ix_image_work", table_name="image", postgresql_where=sa.text("status IN ('received', 'encoding')"))
    op.drop_index(op.f("ix_image_study_id"), table_name="image")
    op.drop_index(
        "ix_image_stopped", table_name="image", postgresql_where=sa.text("status IN ('quarantined', 'failed')")
    )
    op.drop_index(op.f("ix_image_operation_id"), table_name="image")
    op.drop_table("image")
    op.drop_table("generation")
    op.drop_index(op.f("ix_study_study_date"), table_name="study")
    op.drop_index(op.f("ix_study_patient_key"), table_name="study")
    op.drop_table("study")
    op.drop_index(
        "ix_operation_work", table_name="operation", postgresql_where=sa.text("state IN ('pending', 'running')")
    )
    op.drop_table("operation")
    op.drop_table("model")
    op.drop_table("api_key")
