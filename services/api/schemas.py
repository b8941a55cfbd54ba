"""Request shapes. Each refuses unknown fields: a misspelt filter must not be ignored."""

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.api.dicom_json import ATTRIBUTES, KEYWORDS
from shared.datasets.names import DatasetName
from shared.encoder.ood import Rule
from shared.errors import Gate, Invalid
from shared.index.base import Metric
from shared.pipeline.pace import Hours
from shared.pipeline.question import Filters, Request
from shared.store.catalog import Wanted
from shared.store.keys import Scope
from shared.store.letters import Kind
from shared.types import Status

UID = r"^[0-9.]{1,64}$"
ITEM = r"^(image|file)-\d{1,18}$"
NEW_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
KEY_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$"
CODE = r"^[A-Za-z0-9_ -]{1,16}$"
MODALITY = r"^[A-Z0-9_ ]{1,16}$"
REASON = r"^[a-z-]{1,40}$"
HOURS = r"^\d\d:\d\d-\d\d:\d\d$"
LETTER = r"^(image-\d{1,18}|encoding-\d{1,18}-\d{1,18}|point(-\d{1,18}){3}|file-\d{1,18})$"
LETTER_REASON = r"^[A-Za-z][A-Za-z_-]{0,39}$"
LETTERS_CURSOR = r"^[0-9T:.+-]{19,40}~[a-z0-9-]{1,80}$"
ACTION = r"^[a-z][a-z-]{0,39}$"
PRINTABLE = r"^[^\x00-\x1f]*$"
VIEWPORT = r"^[1-9]\d{0,4},[1-9]\d{0,4}$"
#: The message of a refusal, in place of the pattern.
WRITTEN = {
    UID: "a UID has 1 to 64 characters: digits and dots",
    ITEM: "an item must be image-NUMBER or file-NUMBER, as `similis quarantine list` shows it",
    NEW_NAME: "a name has 1 to 64 characters: a-z, 0-9, '.', '_', '-'; it starts with a letter or digit",
    NAME: "a name has 1 to 64 characters: letters, digits, '.', '_', '-'; it starts with a letter or digit",
    KEY_NAME: "a key's name has 1 to 64 characters: letters, digits, ' ', '.', '_', '@', '-'; it starts with a letter "
    "or digit",
    CODE: "a code has 1 to 16 characters: letters, digits, ' ', '_', '-'",
    MODALITY: "a modality has 1 to 16 characters: A-Z, 0-9, ' ', '_', such as MG",
    REASON: "a reason must be written as the list shows it, such as out-of-distribution",
    HOURS: "hours must look like 22:00-06:00",
    LETTER: "a dead letter must be written as `similis letters list` shows it, such as image-17",
    LETTER_REASON: "a reason must be written as the list shows it, such as encoder-error",
    LETTERS_CURSOR: "a cursor must be the `next` of an earlier answer",
    ACTION: "an action must be written as the list shows it, such as erase",
    PRINTABLE: "must not contain control characters",
    VIEWPORT: "must be a width and a height of 1 to 99999, such as 512,512",
}
Uid = Annotated[str, Field(pattern=UID)]
ModelName = Annotated[str, Field(pattern=NAME, description="Name or fingerprint of the model")]
MOST_VALUES = 200  #: in any list that may be written with commas
MOST_ID = 2**62  #: above every row's id, and within the database's 64-bit integers
Id = Annotated[int, Field(ge=1, le=MOST_ID)]


def _split(value: object) -> object:
    """The values as one list, whether written `a,b` or as repeated parameters."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list):
        return value
    pieces = [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part])]
    if len(pieces) > MOST_VALUES:  # before validation makes one error for each wrong value
        raise ValueError(f"a list may have at most {MOST_VALUES} values")
    return [piece.strip() if isinstance(piece, str) else piece for piece in pieces]  # JSON items may be of any type


def _coded(values: list[str]) -> list[str]:
    return [value.upper() for value in values]


_Split = BeforeValidator(_split)
Codes = Annotated[list[Annotated[str, Field(pattern=CODE)]], _Split, AfterValidator(_coded), Field(max_length=32)]
Birads = Annotated[list[Annotated[int, Field(ge=0, le=6)]], _Split, Field(max_length=7)]
Excluded = Annotated[
    Literal["self", "study", "patient", "none"],
    BeforeValidator(lambda word: word.lower() if isinstance(word, str) else word),
]
Uids = Annotated[list[Uid], _Split, Field(max_length=MOST_VALUES)]

_RANGE = re.compile(r"(\d{8})?(?:(-)(\d{8})?)?", re.ASCII)
_RANGE_READS = "a date range must look like 20240101-20241231; either side may be left out"


def dates(text: str | None) -> tuple[date | None, date | None]:
    """First and last day of a DICOM date range `A`, `A-B`, `A-` or `-B`; None where a side is open.

    Raises: `ValueError`, with a message that does not quote the text.
    """
    if not text:
        return None, None
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError(_RANGE_READS)
    low, dash, high = found.groups()
    try:
        first, last = (datetime.strptime(d, "%Y%m%d").date() if d else None for d in (low, high))  # noqa: DTZ007
    except ValueError:  # no such day
        raise ValueError(_RANGE_READS) from None
    if first and last and last < first:
        raise ValueError("the date range ends before it begins")
    return first, last if dash else first


def _checked(text: str | None) -> str | None:
    dates(text)
    return text


Range = Annotated[str | None, AfterValidator(_checked)]


class In(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false for all but booleans: pydantic would read them as the numbers 1 and 0."""
        given = value if isinstance(value, list) else [value]
        if cls.model_fields[str(info.field_name)].annotation is not bool and any(isinstance(v, bool) for v in given):
            raise ValueError("must not be true or false")
        return value


def keyword(name: str) -> str:
    """The keyword of an attribute given as a tag of eight hexadecimal digits; any other name unchanged."""
    return KEYWORDS.get(name.upper(), name)


def _also(name: str) -> str:
    return f"May also be given as {ATTRIBUTES[name][0]}"


class Filtered(In):
    """A shape whose DICOM filters may be named by keyword or by tag, as in QIDO-RS."""

    @model_validator(mode="before")
    @classmethod
    def _by_keyword(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        found: dict[str, object] = {}
        for name, value in given.items():
            if keyword(name) in found:  # else one of the two values would be ignored
                raise ValueError(f"{keyword(name)} is given by keyword and by tag; give one of them")
            found[keyword(name)] = value
        return found


class SearchIn(Filtered):
    """How to search."""

    #: at most the server's `max_k`: `Request.check` refuses more, and the OpenAPI document names it
    k: int = Field(10, ge=1, description="Number of studies to return")
    exclude: Annotated[list[Excluded], _Split] = Field(
        ["self", "study", "patient"], max_length=4, description="The query's own images to exclude, or none"
    )
    view: Literal["any", "match"] = Field("any", description="match: compare only images of the same view")
    mode: Literal["dense", "hash", "hybrid"] = Field(
        "dense",
        description="dense: by embedding; hash: a Hamming ball, by content; hybrid: a wide Hamming ball, by embedding",
    )
    radius: int | None = Field(
        None, ge=0, le=4096, description="With mode=hash: radius of the ball in bits; default: as wide as k needs"
    )
    exact: bool = Field(False, description="Compare with every image instead of following the index's graph")
    cursor: Annotated[str | None, Field(max_length=16_384)] = None
    Modality: Codes = Field([], description=_also("Modality"))
    ModalitiesInStudy: Codes = Field(
        [], description=f"Means the same as Modality: the matched image must have it. {_also('ModalitiesInStudy')}"
    )
    ViewPosition: Codes = Field([], description=_also("ViewPosition"))
    ImageLaterality: Codes = Field([], description=_also("ImageLaterality"))
    StudyDate: Range = Field(None, description=_also("StudyDate"))
    birads: Birads = []
    density: Codes = []

    def request(self) -> Request:
        """Raises: `Invalid`."""
        if len(self.exclude) > 1 and "none" in self.exclude:
            raise Invalid("exclude must be none, or some of self, study and patient")
        low, high = dates(self.StudyDate)
        filters = Filters(
            modality=tuple(sorted({*self.Modality, *self.ModalitiesInStudy})),
            view=tuple(self.ViewPosition),
            laterality=tuple(self.ImageLaterality),
            density=tuple(self.density),
            birads=tuple(self.birads),
            date_from=low,
            date_to=high,
        )
        return Request(
            k=self.k,
            exclude=frozenset(self.exclude) - {"none"},
            view=self.view,
            filters=filters,
            exact=self.exact,
            cursor=self.cursor,
            mode=self.mode,
            radius=self.radius,
        )


class BatchIn(SearchIn):
    """Options of a search, and the stored studies to search for."""

    studies: Annotated[list[Uid], Field(min_length=1, max_length=50)]


class StudiesIn(Filtered):
    StudyInstanceUID: Uids = Field([], description=_also("StudyInstanceUID"))
    ModalitiesInStudy: Codes = Field([], description=_also("ModalitiesInStudy"))
    StudyDate: Range = Field(None, description=_also("StudyDate"))
    birads: Birads = []
    density: Codes = []
    status: Annotated[list[Status], _Split] = []
    limit: int = Field(100, ge=1, le=200)
    cursor: Annotated[str | None, Field(max_length=200)] = None

    def wanted(self) -> Wanted:
        low, high = dates(self.StudyDate)
        return Wanted(
            uids=tuple(self.StudyInstanceUID),
            modality=tuple(self.ModalitiesInStudy),
            density=tuple(self.density),
            birads=tuple(self.birads),
            status=tuple(status.value for status in self.status),
            date_from=low,
            date_to=high,
        )


def _plain_path(text: str) -> str:
    if "\0" in text or not text.startswith("/"):
        raise ValueError("a path must be absolute, on the server's own file system")
    return text


ServerPath = Annotated[str, Field(max_length=4096), AfterValidator(_plain_path)]


class ScanIn(In):
    path: ServerPath
    labels: ServerPath | None = None
    dataset: Annotated[
        DatasetName | None, Field(description="The folder is a download of this published set, with its labels")
    ] = None
    watch: bool = False


class ModelIn(In):
    card: Annotated[str, Field(pattern=NEW_NAME, description="Name of the card's folder in the models folder")]


class HashIn(In):
    name: Annotated[str, Field(pattern=NEW_NAME, description="Name of the new model")]
    bits: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = 64
    rotate: bool = Field(
        True, description="Rotate after PCA (iterative quantisation), so that all bits say about equally much"
    )


def _hours(text: str | None) -> str | None:
    try:
        if text is not None:
            Hours.read(text)
    except Invalid as error:
        raise ValueError(str(error)) from None
    return text


Between = Annotated[
    str | None,
    Field(pattern=HOURS, description="Hours of the server's clock, such as 22:00-06:00"),
    AfterValidator(_hours),
]
PerSecond = Annotated[float | None, Field(ge=1, le=1e6, description="Images per second, at most")]


def _six_digits(share: float) -> float:
    """The share rounded to six digits: the column is a float32, which cannot hold the smallest float64 values."""
    return round(share, 6)


class GenerationIn(In):
    model: ModelName
    metric: Metric | None = Field(None, description="Default: the model's own")
    scale: Literal["exact", "hnsw", "hnsw-int8"] = "hnsw-int8"
    m: Annotated[int, Field(ge=2, le=256)] = 16
    ef_construct: Annotated[int, Field(ge=4, le=10_000)] = 100
    throttle: PerSecond = None
    between: Between = None
    gate: Annotated[
        float, Field(ge=0, le=1, description="Lowest recall@10 that allows publishing"), AfterValidator(_six_digits)
    ] = 0.97

    def choices(self) -> dict[str, Any]:
        """The requested fields of `shared.index.base.Spec`."""
        return self.model_dump(exclude={"model", "throttle", "between", "gate"}, exclude_none=True)


class ThrottleIn(In):
    """New limits of a build: a field that is absent keeps its value, null removes the limit."""

    per_s: PerSecond = None
    between: Between = None


class SwitchIn(In):
    accept: Annotated[
        list[Uid],
        Field(max_length=10_000, description="Images that may be missing, each by its id or SOP Instance UID"),
    ] = []


class RetireIn(In):
    force: Annotated[bool, Field(description="Retire also the generation that a rollback would publish")] = False


class PatientIn(In):
    patient_id: Annotated[str, Field(min_length=1, max_length=64, description="PatientID, as in the DICOM header")]
    issuer: Annotated[str, Field(max_length=64, description="IssuerOfPatientID, as in the DICOM header")] = ""


def _written(value: object) -> object:
    """The timestamp, refused unless it is ISO 8601 text: pydantic would read a number as seconds since 1970."""
    if not isinstance(value, str) or value.replace(".", "").lstrip("+-").isdigit():
        raise ValueError("a time must look like 2024-05-01T08:00:00Z")
    return value


_Moment = Annotated[AwareDatetime, BeforeValidator(_written)]


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a note must not contain a NUL character")
    return text


_Word = Annotated[str, Field(pattern=REASON)]
Modality = Annotated[str, Field(pattern=MODALITY)]
Item = Annotated[str, Field(pattern=ITEM, description="As the list shows it")]


class QuarantineIn(In):
    gate: Gate | None = None
    reason: _Word | None = None
    modality: Modality | None = None
    model: Annotated[
        ModelName | None, Field(description="Name or fingerprint of the model whose threshold stopped it")
    ] = None
    since: Annotated[_Moment | None, Field(description="Stopped at this time or later")] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Item | None = None


class DecisionIn(In):
    note: Annotated[str, Field(max_length=1000), AfterValidator(_no_nul)] = ""
    since: Annotated[
        _Moment | None, Field(description="`since` of the item as you reviewed it; 409 if it was stopped again")
    ] = None


class RetryIn(In):
    gate: Gate | None = None
    reason: _Word | None = None
    modality: Modality | None = None


Letter = Annotated[str, Field(pattern=LETTER, description="As the list shows it")]
_Reason = Annotated[str, Field(pattern=LETTER_REASON, description="As the list shows it")]


class LettersIn(In):
    kind: Kind | None = None
    reason: _Reason | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str | None, Field(pattern=LETTERS_CURSOR)] = None


class LettersRetryIn(In):
    kind: Kind | None = None
    reason: _Reason | None = None


class CalibrateIn(In):
    """The stored images to calibrate from: all encoded ones, or those of an operation or below a folder."""

    modality: Annotated[Modality | None, Field(description="Default: every modality with encoded images")] = None
    rule: Rule = "mean+3sd"
    operation: UUID | None = None
    folder: ServerPath | None = None


class ReplayIn(In):
    """The thresholds to replay: given ones, those of a rule or of an earlier calibration, or those in force."""

    model: ModelName
    modality: Modality
    threshold: Annotated[float | None, Field(allow_inf_nan=False, description="Scores above it are stopped")] = None
    distance_threshold: Annotated[
        float | None, Field(allow_inf_nan=False, description="Distances above it are stopped")
    ] = None
    rule: Rule | None = None
    calibration: Annotated[Id | None, Field(description="Id of an earlier calibration")] = None
    apply: Annotated[
        bool, Field(description="Put the thresholds in force and judge stored images by them; else only report")
    ] = False
    shown: Annotated[int, Field(ge=0, le=10_000, description="Images listed per direction")] = 100


class AuditIn(In):
    action: Annotated[str | None, Field(pattern=ACTION, description="As the list shows it")] = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str | None, Field(max_length=200)] = None


class KeyIn(In):
    name: Annotated[str, Field(pattern=KEY_NAME)]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    days: Annotated[int | None, Field(ge=1, le=3650)] = None
