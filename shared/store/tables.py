"""The tables. Postgres is the source of truth; everything else, such as the vector index, is derived from these rows.

Times are the database's own (`clock_timestamp()`); no lease ever trusts a worker's clock.
"""

import uuid
from datetime import date, datetime
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        str: Text,
        int: BigInteger,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        date: Date,
        float: REAL,
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        uuid.UUID: UUID(as_uuid=True),
    }


def _id() -> Any:  # noqa: ANN401 - a column of any of the tables below
    return mapped_column(BigInteger, Identity(), primary_key=True)


def _now() -> Any:  # noqa: ANN401
    return mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())


class Lease:
    """Claimable work: `attempt` is the holder's fencing token, `lease_until` the end of its lease."""

    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    last_error: Mapped[str | None]  #: one word, or an exception's type; never its text


#: Condition: no worker holds a lease on the row, or its lease has expired.
FREE = "(lease_until IS NULL OR lease_until < clock_timestamp())"
#: Condition: the row's back-off has ended, by the database's clock, which all workers share.
RESTED = "(not_before IS NULL OR not_before <= clock_timestamp())"


class Study(Base):
    __tablename__ = "study"
    id: Mapped[int] = _id()
    uid: Mapped[str] = mapped_column(unique=True)
    patient_key: Mapped[bytes] = mapped_column(index=True)  #: 16 bytes, keyed pseudonym
    study_date: Mapped[date | None] = mapped_column(index=True)
    created_at: Mapped[datetime] = _now()


#: Since when a row is due; rows that never failed sort before retries.
WAITS = "COALESCE(not_before, '-infinity'::timestamp with time zone)"


class Image(Lease, Base):
    __tablename__ = "image"
    id: Mapped[int] = _id()
    sop_uid: Mapped[str] = mapped_column(unique=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    series_uid: Mapped[str] = mapped_column(index=True)
    sop_class: Mapped[str]
    transfer_syntax: Mapped[str]
    modality: Mapped[str] = mapped_column(index=True)
    laterality: Mapped[str | None]
    view: Mapped[str | None]
    view_modifiers: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    body_part: Mapped[str]
    manufacturer: Mapped[str]
    presentation_intent: Mapped[str]
    rows: Mapped[int] = mapped_column(Integer)
    columns: Mapped[int] = mapped_column(Integer)
    frames: Mapped[int] = mapped_column(Integer)
    digest: Mapped[bytes]  #: BLAKE3 of the file
    path: Mapped[bytes]  #: file names are bytes
    birads: Mapped[int | None] = mapped_column(SmallInteger)
    density: Mapped[str | None]
    pathology: Mapped[str | None]
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    status: Mapped[str] = mapped_column(server_default="received")
    gate: Mapped[str | None]
    reason: Mapped[str | None]
    score: Mapped[float | None]  #: reconstruction error that the feature gate measured
    distance: Mapped[float | None]  #: of its embedding from the known images of its modality, when it was judged
    #: that judged the image; None: its model had none for this modality, or an earlier gate stopped the image
    calibration_id: Mapped[int | None] = mapped_column(ForeignKey("calibration.id"))
    revision: Mapped[int] = mapped_column(server_default="1")  #: bumped when the bytes or the labels change
    #: attempts that failed by errors of Similis; transient causes (a share that is away) do not count
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    #: back-offs since it was last settled or retried; each is twice as long as the one before
    waited: Mapped[int] = mapped_column(Integer, server_default="0")
    operation_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    received_at: Mapped[datetime] = _now()
    settled_at: Mapped[datetime | None]  #: when it left `encoding`
    __table_args__ = (
        Index("ix_image_work", text(WAITS), "id", postgresql_where=text("status IN ('received', 'encoding')")),
        Index(
            "ix_image_failing",
            "id",
            postgresql_where=text("status IN ('received', 'encoding') AND (status = 'encoding' OR failures > 0)"),
        ),
        Index(
            "ix_image_undecided", "operation_id", "status", postgresql_where=text("status IN ('received', 'encoding')")
        ),
        Index("ix_image_stopped", "status", "id", postgresql_where=text("status IN ('quarantined', 'failed')")),
        Index("ix_image_digest", "digest"),
    )


#: Condition: an index may hold the image. No other table has a `status`, so the column needs no prefix.
INDEXABLE = "status NOT IN ('deleted', 'rejected', 'quarantined')"
#: The revision that an image's stored encodings belong to: the previous one while it waits to be encoded again.
ENCODED_REVISION = "revision - CASE WHEN status IN ('received', 'encoding') THEN 1 ELSE 0 END"

#: Condition: the path is that of a sent file, named by the digest of its content (`blobs.Blobs.place`), in any store.
SENT = (
    "encode(substring(path FROM greatest(length(path) - 74, 1)), 'escape') = '/' || "
    "substr(encode(digest, 'hex'), 1, 2) || '/' || substr(encode(digest, 'hex'), 3, 2) || '/' || "
    "encode(digest, 'hex') || '.dcm'"
)
#: the store folder of a sent file: its path without /12/34/1234….dcm
ROOT = "SUBSTRING(path FROM 1 FOR GREATEST(length(path) - 75, 0))"
#: Condition: a scan registered the file, so it belongs to the site, even if named as in a store (of another home).
SCANNED = "EXISTS (SELECT 1 FROM operation o WHERE o.id = operation_id AND o.kind = 'scan')"


#: An mtime that no file has: the next comparison finds the file changed, so it is read again.
READ_AGAIN = -1


class File(Base):
    """Every file that a scan met or that was sent, including those not taken in, with the reason."""

    __tablename__ = "file"
    id: Mapped[int] = _id()
    path: Mapped[bytes]
    path_digest: Mapped[bytes] = mapped_column(LargeBinary, Computed("sha256(path)", persisted=True), unique=True)
    size: Mapped[int]
    mtime_ns: Mapped[int]
    digest: Mapped[bytes | None]
    image_id: Mapped[int | None] = mapped_column(ForeignKey("image.id"), index=True)
    outcome: Mapped[str]  #: a `FileOutcome`
    gate: Mapped[str | None]
    reason: Mapped[str | None]
    labels_digest: Mapped[bytes | None]
    operation_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    seen_at: Mapped[datetime] = _now()
    #: identity of a stopped file, which has no image, or one of another patient or study
    patient_key: Mapped[bytes | None]
    study_uid: Mapped[str | None]
    sop_uid: Mapped[str | None]
    __table_args__ = (
        Index("ix_file_stopped", "id", postgresql_where=text("outcome = 'quarantined'")),
        Index("ix_file_failed", "id", postgresql_where=text("outcome = 'failed'")),
        Index("ix_file_patient_key", "patient_key", postgresql_where=text("patient_key IS NOT NULL")),
        Index("ix_file_study_uid", "study_uid", postgresql_where=text("study_uid IS NOT NULL")),
        Index("ix_file_digest", "digest"),
        Index("ix_file_again", "id", postgresql_where=text(f"mtime_ns = {READ_AGAIN} AND {SENT}")),
        Index(
            "ix_file_root",
            text(ROOT),
            postgresql_where=text(SENT),
        ),
    )


#: The outcome of a file `f`; of a file that was taken in, the outcome of its image `i`.
FATE = """
    CASE WHEN f.outcome = 'taken' THEN i.status ELSE f.outcome END AS outcome,
    CASE WHEN f.outcome = 'taken' THEN i.gate ELSE f.gate END AS gate,
    CASE WHEN f.outcome = 'taken' THEN i.reason ELSE f.reason END AS reason
"""


class Removal(Base):
    """A sent file that was erased: the next clean-up unlinks it, unless it was sent again, and drops the row."""

    __tablename__ = "removal"
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    root: Mapped[bytes] = mapped_column(primary_key=True, server_default=text("''"))  #: of the store that received it


class Arrival(Base):
    """The journal of incoming files, one row each; no foreign key, because refused files are recorded, too."""

    __tablename__ = "arrival"
    id: Mapped[int] = _id()
    at: Mapped[datetime] = _now()
    source: Mapped[str]  #: folder, dicom, stow or backfill
    sender: Mapped[str]  #: AE title, name of an API key, or host
    called: Mapped[str]
    study_uid: Mapped[str] = mapped_column(index=True)
    sop_uid: Mapped[str]
    outcome: Mapped[str]
    reason: Mapped[str | None]
    rule: Mapped[str]  #: the site's admission rule that decided
    image_id: Mapped[int | None]
    operation_id: Mapped[uuid.UUID | None]
    __table_args__ = (Index("ix_arrival_image", "image_id", "id"),)


class Model(Base):
    __tablename__ = "model"
    id: Mapped[int] = _id()
    fingerprint: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(unique=True)
    folder: Mapped[str]
    card: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = _now()


class Generation(Base):
    """One index build: one model, one set of index parameters, one collection."""

    __tablename__ = "generation"
    id: Mapped[int] = _id()
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    collection: Mapped[str] = mapped_column(unique=True)
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="open")
    created_at: Mapped[datetime] = _now()
    operation_id: Mapped[uuid.UUID | None]  #: that builds it; None for the first generation of an empty archive
    filled_to: Mapped[int] = mapped_column(server_default="0")  #: the fill has processed all images up to this id
    filled_at: Mapped[datetime | None]
    throttle: Mapped[float | None]  #: rows per second; None: as fast as it goes
    hours: Mapped[str | None]  #: daily window in which it is built, such as 20:00-06:00; None: any time
    paced_from: Mapped[datetime | None]  #: the throttle's allowance is used up to this moment
    count_at: Mapped[datetime | None]  #: while it is filled, its gaps are not counted again before this moment
    gate: Mapped[float] = mapped_column(server_default="0.97")  #: recall@10 required for publishing
    measured: Mapped[dict[str, Any] | None]  #: recall, sample, points and moment of the last measurement
    #: images whose absence publishing accepts
    accepted: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default=text("'{}'"))
    canary: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))  #: the last rounds
    canary_at: Mapped[datetime | None]  #: when the last round began
    retired_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]  #: collection and ledger are gone
    __table_args__ = (CheckConstraint("state IN ('open', 'retired')", name="state"),)


class Live(Base):
    """The one published pointer. API and workers follow it; rollback is moving it back."""

    __tablename__ = "live"
    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1")
    generation_id: Mapped[int] = mapped_column(ForeignKey("generation.id"))
    previous_id: Mapped[int | None] = mapped_column(ForeignKey("generation.id"))  #: where a rollback leads
    published_at: Mapped[datetime] = _now()
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class Encoding(Base):
    """All that an index needs for one frame under one model. Narrow, so that embeddings are stored inline."""

    __tablename__ = "encoding"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id", ondelete="CASCADE"), primary_key=True)
    frame: Mapped[int] = mapped_column(Integer, primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"), primary_key=True)
    ood: Mapped[float | None]
    code: Mapped[bytes | None]
    runtime: Mapped[str]
    embedding: Mapped[bytes]  #: float16, little endian, dim from the card


class Thumbnail(Base):
    """The JPEG preview of an image, in the database so that it is written, erased and backed up with the image."""

    __tablename__ = "thumbnail"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id", ondelete="CASCADE"), primary_key=True)
    jpeg: Mapped[bytes]


class Ledger(Base):
    """What each generation must hold, one row per point. Coverage is `applied / all`; a projector applies pending rows.

    No foreign key to `image`: a delete must outlive its image until every generation has applied it.
    """

    __tablename__ = "ledger"
    generation_id: Mapped[int] = mapped_column(ForeignKey("generation.id", ondelete="CASCADE"), primary_key=True)
    point_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(index=True)
    frame: Mapped[int] = mapped_column(Integer)
    op: Mapped[str]
    revision: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="pending")
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    not_before: Mapped[datetime | None]
    last_error: Mapped[str | None]
    queued_at: Mapped[datetime] = _now()
    applied_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("op IN ('upsert', 'delete')", name="op"),
        CheckConstraint("state IN ('pending', 'applied', 'failed')", name="state"),
        Index("ix_ledger_pending", "generation_id", "queued_at", postgresql_where=text("state = 'pending'")),
        Index("ix_ledger_failed", "image_id", postgresql_where=text("state = 'failed'")),
    )


class CatchUp(Lease, Base):
    """An image that a model has yet to encode outside the normal path; a `failed` row is a named coverage exception."""

    __tablename__ = "catch_up"
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id", ondelete="CASCADE"), primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id", ondelete="CASCADE"), primary_key=True, index=True)
    state: Mapped[str] = mapped_column(server_default="due")
    failures: Mapped[int] = mapped_column(Integer, server_default="0")
    waited: Mapped[int] = mapped_column(Integer, server_default="0")  #: as of an image
    reason: Mapped[str | None]
    __table_args__ = (
        CheckConstraint("state IN ('due', 'failed')", name="state"),
        Index("ix_catch_up_due", "model_id", text(WAITS), "image_id", postgresql_where=text("state = 'due'")),
        Index(
            "ix_catch_up_failing",
            "model_id",
            "image_id",
            postgresql_where=text("state = 'due' AND (lease_until IS NOT NULL OR failures > 0)"),
        ),
        Index("ix_catch_up_failed", "image_id", postgresql_where=text("state = 'failed'")),
    )


class Calibration(Base):
    """The thresholds of one model for one modality. Rows are never changed; the newest one is in force.

    A row has a threshold of reconstruction errors, of distances from known embeddings, or both.
    """

    __tablename__ = "calibration"
    id: Mapped[int] = _id()
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id", ondelete="CASCADE"))
    modality: Mapped[str]
    #: card: it came with the model; archive: from stored scores; given: by a person
    source: Mapped[Literal["card", "archive", "given"]] = mapped_column(Text)
    rule: Mapped[str]  #: a rule of `shared.encoder.ood`, or `given`
    threshold: Mapped[float | None] = mapped_column(Double)  #: reconstruction error above which an image is stopped
    mean: Mapped[float | None] = mapped_column(Double)
    std: Mapped[float | None] = mapped_column(Double)
    quantiles: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    n: Mapped[int]  #: calibrating images
    data_sha256: Mapped[str]
    #: threshold, mean, std, quantiles and n of the distances of held-out known images
    distances: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    gaussian: Mapped[bytes | None] = mapped_column(deferred=True)  #: from which distances are measured, packed
    made_by: Mapped[str | None]  #: a key's name
    created_at: Mapped[datetime] = _now()
    __table_args__ = (
        CheckConstraint("source IN ('card', 'archive', 'given')", name="source"),
        CheckConstraint("threshold IS NOT NULL OR distances IS NOT NULL", name="votes"),
        CheckConstraint("(distances IS NULL) = (gaussian IS NULL)", name="gaussian"),
        Index("ix_calibration_newest", "model_id", "modality", "id"),
    )


class Review(Base):
    """A person's decision on a stopped image, one per time it was stopped. The note is free text and never logged."""

    __tablename__ = "review"
    id: Mapped[int] = _id()
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id", ondelete="CASCADE"))
    digest: Mapped[bytes]
    decision: Mapped[str]
    gate: Mapped[str]
    reason: Mapped[str]
    score: Mapped[float | None]
    threshold: Mapped[float | None] = mapped_column(Double)
    distance: Mapped[float | None]
    distance_threshold: Mapped[float | None] = mapped_column(Double)
    reviewer: Mapped[str]  #: the key's name
    key_id: Mapped[int]
    note: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = _now()
    __table_args__ = (
        Index("ix_review_image_id", "image_id", "digest"),
        CheckConstraint("decision IN ('released', 'rejected')", name="decision"),
    )


class Audit(Base):
    """Who did what. Rows are only added; they name images by opaque numbers and outlive them."""

    __tablename__ = "audit"
    id: Mapped[int] = _id()
    at: Mapped[datetime] = _now()
    actor: Mapped[str]  #: the key's name
    key_id: Mapped[int]
    action: Mapped[str]
    image_id: Mapped[int | None]  #: no foreign key: the entry outlives the image
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))


class PseudonymKey(Base):
    """Identifies the one key of this database's pseudonyms, by a keyed hash that does not reveal the key."""

    __tablename__ = "pseudonym_key"
    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1")
    mark: Mapped[bytes]
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class Tombstone(Base):
    """A keyed hash of an erased image, study or patient that must not come back; meaningless without the secret."""

    __tablename__ = "tombstone"
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    kind: Mapped[str]
    operation_id: Mapped[uuid.UUID] = mapped_column(index=True)  #: the erasure; a lift removes all its tombstones
    created_at: Mapped[datetime] = _now()
    __table_args__ = (CheckConstraint("kind IN ('image', 'study', 'patient')", name="kind"),)


class Operation(Lease, Base):
    """Long work that a client can watch, cancel and retry."""

    __tablename__ = "operation"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    kind: Mapped[str]
    params: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    state: Mapped[str] = mapped_column(server_default="pending")
    counts: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    #: checkpoint from which the next turn continues, in a format of the kind's own; None: not begun, or ended
    cursor: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    total: Mapped[int | None]
    done: Mapped[int] = mapped_column(server_default="0")
    cancel: Mapped[bool] = mapped_column(server_default=text("false"))
    error: Mapped[str | None]
    losses: Mapped[int] = mapped_column(Integer, server_default="0")  #: lost leases in a row, without progress
    key_digest: Mapped[bytes | None] = mapped_column(unique=True)  #: of an Idempotency-Key
    created_at: Mapped[datetime] = _now()
    started_at: Mapped[datetime | None]  #: when a worker first claimed it, since it was created or last retried
    registered_at: Mapped[datetime | None]  #: scan or pull: since when every file has a row and images are awaited
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'running', 'paused', 'succeeded', 'failed', 'cancelled')", name="state"),
        Index("ix_operation_work", "created_at", postgresql_where=text("state IN ('pending', 'running')")),
    )


class ApiKey(Base):
    __tablename__ = "api_key"
    id: Mapped[int] = _id()
    name: Mapped[str]
    prefix: Mapped[str]
    digest: Mapped[bytes] = mapped_column(unique=True)  #: SHA-256 of the secret; the secret is shown once
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
