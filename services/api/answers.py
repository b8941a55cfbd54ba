"""Response shapes."""

from datetime import date, datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes the one of `typing` from Python 3.12 on

from shared.store.letters import Kind
from shared.types import Decision, Status


class Out(TypedDict):
    """An answer is a dictionary: mypy checks each of its keys, and a ranking takes half as long as pydantic models."""


def headed(name: str, meaning: str) -> dict[str, Any]:
    """The part of a documented response that names one of its headers."""
    return {"headers": {name: {"description": meaning, "schema": {"type": "string"}}}}


LOCATED = headed("Location", "The path of what was made or begun")


class ModelRef(Out):
    name: str
    fingerprint: str
    label: str
    trained: bool


class Match(Out):
    query_sop_instance_uid: str | None
    query_frame: int
    sop_instance_uid: str
    frame: int
    score: float
    hamming: Annotated[int | None, Field(description="In a search by codes: number of bits in which the codes differ")]
    content: Annotated[
        float | None, Field(description="With mode=hash and hybrid: Pearson correlation of the embeddings")
    ]
    laterality: str | None
    view: str | None
    modality: str
    birads: int | None
    density: str | None
    pathology: str | None
    same_view: bool
    thumbnail: str


class LabelsOut(Out):
    """Labels of the matched images; several values where the images differ."""

    birads: list[int]
    density: list[str]
    pathology: list[str]


class StudyFound(Out):
    rank: int
    study_instance_uid: str
    score: Annotated[
        float,
        Field(
            description="Mean over the query's images of the best match. For an image without one in `matches`, the "
            "lowest score among its hits counts instead: a greater `k` compares more hits, so scores may change"
        ),
    ]
    study_date: date | None
    labels: LabelsOut
    matches: list[Match]


class Stop(Out):
    gate: str | None
    reason: str
    explanation: str | None


class GateOut(Out):
    """One gate's verdict on the query image; the feature gate votes by a score and by a distance."""

    gate: str
    verdict: Literal["passed", "stopped", "uncalibrated", "unmeasured"]
    reason: str | None
    score: float | None
    threshold: float | None
    distance: float | None
    distance_threshold: float | None


class QueryImageOut(Out):
    sop_instance_uid: str | None
    frame: int
    laterality: str | None
    view: str | None


class QueryOut(Out):
    study_instance_uid: str | None
    images: list[QueryImageOut]
    stopped_by: list[Stop]
    gates: Annotated[
        list[GateOut], Field(description="For an uploaded image; a stored one was judged when it was taken in")
    ]


class Hidden(Out):
    studies: int
    images: int


class RankingOut(Out):
    query: QueryOut
    studies: list[StudyFound]
    hidden: Hidden
    excluded: list[str]
    model: ModelRef
    generation: int
    mode: Literal["dense", "hash", "hybrid"]
    exact: bool
    cut: Annotated[
        bool,
        Field(
            description="Images were left out of the search: a Hamming ball holds more than 10,000 images, or studies "
            "of very many images rank first. If the page is short for this reason, go on with `next`"
        ),
    ]
    emulated: Annotated[list[str], Field(description="Features that the index lacks and Similis emulated: `group_by`")]
    as_of: datetime
    took_ms: float
    timings_ms: dict[str, float]
    next: str | None


class BatchOut(Out):
    rankings: list[RankingOut]
    took_ms: float


class StudyOut(Out):
    study_instance_uid: str
    study_date: date | None
    modalities: list[str]
    images: int
    statuses: dict[str, int]
    searchable: int
    taken_in_at: datetime


class StudiesOut(Out):
    studies: list[StudyOut]
    next: str | None


class ImageOut(Out):
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    laterality: str | None
    view: str | None
    view_modifiers: list[str]
    body_part: str
    rows: int
    columns: int
    frames: int
    labels: dict[str, Any]
    status: Status
    gate: str | None
    reason: str | None
    score: float | None
    distance: float | None
    calibrated: Annotated[
        bool | None, Field(description="Whether gate 3 had a threshold for the image; null before the image was judged")
    ]
    searchable: bool
    why_not: str | None
    thumbnail: str | None
    rendered: str


class SeriesOut(Out):
    series_instance_uid: str
    modality: str
    images: list[ImageOut]


class StudyDetail(Out):
    study_instance_uid: str
    study_date: date | None
    taken_in_at: datetime
    series: list[SeriesOut]


class OutcomeOut(Out):
    outcome: str
    gate: str | None
    reason: str | None
    explanation: str | None
    count: int


class OperationOut(Out):
    id: UUID
    kind: str
    state: str
    phase: str
    progress: Annotated[int, Field(ge=0, le=100)]
    path: str | None
    watch: bool
    total: int | None
    done: int
    counts: dict[str, int]
    images: dict[str, int]
    rate_per_s: float | None
    took_s: float
    cancel_requested: bool
    error: str | None
    created_at: datetime
    registered_at: Annotated[
        datetime | None,
        Field(description="For scans and pulls: when every file had a row; images may still be waiting"),
    ]
    finished_at: datetime | None


class OperationDetail(OperationOut):
    outcomes: list[OutcomeOut]


class OperationsOut(Out):
    operations: list[OperationOut]
    next: str | None


class FileOut(Out):
    path: str
    outcome: str | None
    gate: str | None
    reason: str | None
    explanation: str | None


class FilesOut(Out):
    files: list[FileOut]
    next: str | None


class ModelOut(ModelRef):
    architecture: str
    dim: int
    bits: int
    published: bool
    created_at: datetime


class ModelDetail(ModelOut):
    card: dict[str, Any]
    generations: list[int]


class ModelsOut(Out):
    models: list[ModelOut]


class Coverage(Out):
    applied: int
    pending: int
    failed: int
    ratio: float


class RecallOut(Out):
    """Recall against exact search, with the query's patient excluded; `points` is the size of the index then."""

    recall: float
    k: int
    sample: int
    points: int


class CanaryOut(Out):
    """Recall of the published index now: every few minutes stored images are searched exactly and as usual."""

    recall: float
    k: int
    queries: int
    since: datetime
    at: datetime


GenerationState = Literal["building", "paused", "ready", "failed", "retiring", "retired"]


class GenerationOut(Out):
    id: int
    model: str
    fingerprint: str
    collection: str
    state: GenerationState
    live: bool
    rollback_target: bool
    spec: dict[str, Any]
    coverage: Coverage
    throttle: float | None
    between: Annotated[
        str | None, Field(description="Hours of the server's clock in which it is built; null: at any time")
    ]
    gate: float
    recall: RecallOut | None
    canary: CanaryOut | None
    operation: UUID | None
    progress: Annotated[int, Field(ge=0, le=100, description="Percent covered; 100 only where nothing is missing")]
    created_at: datetime


class IndexOut(Out):
    points: int
    indexed: int


class ExceptionOut(Out):
    """An image that the generation lacks."""

    image: int
    sop_instance_uid: str
    reason: str
    explanation: str | None


class ImagesOut(Out):
    """Coverage of the images that searches find today: held by the generation, on their way, and exceptions."""

    total: int
    covered: int
    coming: int
    exceptions: int
    by_reason: dict[str, int]


class GenerationDetail(GenerationOut):
    index: IndexOut | None
    images: ImagesOut
    exceptions: list[ExceptionOut]
    error: str | None


class GenerationsOut(Out):
    generations: list[GenerationOut]


class LiftedOut(Out):
    tombstones: int


class ItemOut(Out):
    """A stopped image, or a file that was not taken in; a file names its image and study if it could be read."""

    item: str
    gate: str | None
    reason: str | None
    explanation: str | None
    since: datetime | None
    sop_instance_uid: str | None
    study_instance_uid: str | None
    modality: str | None
    score: float | None
    threshold: float | None
    distance: float | None
    distance_threshold: float | None
    model: str | None
    operation: UUID | None
    releasable: bool
    thumbnail: str | None


class QuarantineOut(Out):
    items: list[ItemOut]
    next: str | None


class ReviewOut(Out):
    item: str
    decision: Decision
    gate: str
    reason: str
    score: float | None
    threshold: float | None
    distance: float | None
    distance_threshold: float | None
    reviewer: str
    note: str
    at: datetime


class ReviewsOut(Out):
    reviews: list[ReviewOut]


class RetriedOut(Out):
    images: int
    files: int
    held: Annotated[
        int,
        Field(
            description="Images that were not retried: a rule of the site holds them until they are released or "
            "rejected"
        ),
    ]


class LetterOut(Out):
    letter: str
    kind: Kind
    reason: str
    explanation: str | None
    attempts: int
    since: datetime
    sop_instance_uid: str | None
    study_instance_uid: str | None
    operation: Annotated[
        UUID | None, Field(description="For a file: the operation that met it; its list of files names the path")
    ]


class LettersOut(Out):
    letters: list[LetterOut]
    next: str | None


class LettersRetriedOut(Out):
    retried: dict[str, int]


class JournalLine(Out):
    at: datetime
    event: Literal["arrived", "judged", "reviewed", "indexed"]
    outcome: str
    reason: str | None
    explanation: str | None
    sop_instance_uid: str
    source: Annotated[
        str,
        Field(description="arrived: folder, dicom, stow, backfill or store; judged: the gate; indexed: the generation"),
    ]
    sender: Annotated[
        str, Field(description="AE title, name of an API key, or host; for a review, the name of the reviewer's key")
    ]
    rule: Annotated[str, Field(description="The admission rule that decided")]


class JournalOut(Out):
    study_instance_uid: str
    journal: list[JournalLine]


class DistancesOut(Out):
    """Calibration of the distance vote: distances of known images, each measured with its patient held out."""

    threshold: float
    mean: float
    std: float
    quantiles: dict[str, float]
    n: int


class CalibrationOut(Out):
    """A calibration. The newest one of a modality is in force. A vote without a threshold is not taken."""

    id: int
    model: str
    modality: str
    source: Literal["card", "archive", "given"]
    rule: str
    threshold: float | None
    mean: float | None
    std: float | None
    quantiles: dict[str, float]
    n: int
    data_sha256: str
    distances: DistancesOut | None
    made_by: str | None
    created_at: datetime
    in_force: bool


class CalibrationsOut(Out):
    """`without` counts searchable images by modality that no threshold has judged.

    `wanting` counts the images of modalities that have many but no thresholds made in this archive: calibrate these.
    """

    calibrations: list[CalibrationOut]
    without: dict[str, int]
    wanting: dict[str, int]


class CalibratedOut(Out):
    calibrations: list[CalibrationOut]
    skipped: Annotated[
        dict[str, int], Field(description="Modalities with too few encoded images, and how many they have")
    ]
    left_out: Annotated[
        dict[str, int],
        Field(description="Images that gate 3 had stopped, by modality; they do not count as known images"),
    ]


class FlipOut(Out):
    image: int
    sop_instance_uid: str
    score: float | None
    distance: float | None
    reason: Annotated[str | None, Field(description="For an image that would be stopped: the vote that stops it")]


class ReplayOut(Out):
    """The effect of other thresholds: searchable images that they stop, stopped images that they admit."""

    model: str
    modality: str
    threshold: float | None
    distance_threshold: float | None
    rule: str
    counts: dict[str, int]
    complete: Annotated[
        bool, Field(description="False: only the images that ten seconds sufficed for are counted; applying judges all")
    ]
    stop: list[FlipOut]
    admit: list[FlipOut]
    applied: bool
    operation: UUID | None


class KeyOut(Out):
    id: int
    name: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class AuditEntry(Out):
    id: int
    at: datetime
    actor: Annotated[str, Field(description="The name of the key")]
    key: int
    action: str
    item: Annotated[
        str | None, Field(description="The image, as the quarantine names it; kept when the image is erased")
    ]
    details: dict[str, Any]


class AuditOut(Out):
    entries: list[AuditEntry]
    next: str | None


class KeyMade(KeyOut):
    secret: str


class KeysOut(Out):
    keys: list[KeyOut]


class AliveOut(Out):
    status: Literal["alive"]


class ReadyOut(Out):
    status: Literal["ready", "degraded", "unavailable"]
    parts: dict[str, Literal["ready", "away"]]
    model: str
    version: str


class WrongOut(Out):
    """A field of the request, and the rule that it breaks."""

    where: str
    code: str
    message: str


class ProblemOut(Out):
    """RFC 9457. The last four fields are about a file that was not accepted."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    trace_id: str
    errors: list[WrongOut]
    outcome: NotRequired[str]
    gate: NotRequired[str | None]
    reason: NotRequired[str]
    explanation: NotRequired[str | None]
