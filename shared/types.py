"""Value types that several packages share. Arrays have one name per shape."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from shared.errors import Outcome

Frame = NDArray[np.float32]  #: (rows, cols) in [0, 1]: a canonical frame, bright means dense
Pixels = NDArray[np.float32]  #: (n, side, side) in [0, 1]: frames as the recipe cuts them, one channel
Thumbnail = NDArray[np.uint8]  #: (rows, cols) grey, longest side at most 256
Embeddings = NDArray[np.float32]  #: (n, dim)
Codes = NDArray[np.uint8]  #: (n, bits / 8), packed by numpy.packbits, most significant bit first

POINTS = uuid.UUID("6f0f3a3e-6f3b-5b0a-9a53-3d3b0f7c6c55")


_UID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")


def valid_uid(value: str) -> bool:
    """Whether this is a UID. Source: PS3.5 9.1."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def point_id(sop_instance_uid: str, frame: int) -> uuid.UUID:
    """Name the point of one frame, the same in every generation and on every engine."""
    return uuid.uuid5(POINTS, f"{sop_instance_uid}/{frame}")


class Status(StrEnum):
    """The state of an image. *Searchable* is no status: it means "applied in the live generation's ledger"."""

    RECEIVED = "received"
    ENCODING = "encoding"
    ENCODED = "encoded"
    QUARANTINED = "quarantined"
    EMPTY = "empty"
    FAILED = "failed"
    REJECTED = "rejected"
    DELETED = "deleted"


_S = Status
MOVES: Mapping[Status, frozenset[Status]] = {
    # to quarantined: an admission rule holds the image; to failed: it was tried too often
    _S.RECEIVED: frozenset({_S.ENCODING, _S.QUARANTINED, _S.FAILED, _S.DELETED}),
    # back to received: an attempt failed for a transient reason
    _S.ENCODING: frozenset({_S.ENCODED, _S.QUARANTINED, _S.EMPTY, _S.FAILED, _S.RECEIVED, _S.DELETED}),
    # back to received: the bytes of the image changed, or a retry was asked for; between encoded and quarantined:
    # other thresholds were replayed
    _S.ENCODED: frozenset({_S.RECEIVED, _S.QUARANTINED, _S.DELETED}),
    # to encoded or received: a person released it, with or without a stored encoding; to received also as above
    _S.QUARANTINED: frozenset({_S.RECEIVED, _S.ENCODED, _S.REJECTED, _S.DELETED}),
    _S.EMPTY: frozenset({_S.RECEIVED, _S.DELETED}),
    _S.FAILED: frozenset({_S.RECEIVED, _S.DELETED}),
    _S.REJECTED: frozenset({_S.DELETED}),
    _S.DELETED: frozenset(),
}


class Decision(StrEnum):
    """A reviewer's decision on a quarantined image."""

    RELEASED = "released"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What Similis keeps of a file's header: an allow-list. The patient fields never reach a table or a log."""

    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    modality: str = ""
    laterality: str | None = None  #: L, R, B or unknown
    view: str | None = None  #: CC, MLO, ML, ... upper case, or unknown
    view_modifiers: tuple[str, ...] = ()
    study_date: date | None = None
    body_part: str = ""
    manufacturer: str = ""
    presentation_intent: str = ""
    image_type: tuple[str, ...] = ()
    photometric: str = ""
    rows: int = 0
    columns: int = 0
    frames: int = 1
    bits_stored: int = 0
    implant: bool | None = None
    burned_in: bool | None = None
    #: used once, to make the pseudonym; see `shared.imaging.pseudonym`
    patient_id: str = field(default="", repr=False)
    issuer_of_patient_id: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelStats:
    """What gate 2 looks at, measured on the first chosen frame after the modality transform."""

    spread: float  #: 99th minus 1st percentile of the canonical frame, in [0, 1]
    distinct: int  #: number of different values, at most 65,536
    content: float  #: share of pixels that are not the background value
    noise: float  #: share of the variance that neighbouring pixels do not explain, in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One file, decoded by its recipe."""

    header: Header
    frames: tuple[int, ...]  #: 1-based frame numbers, evenly spaced over the file
    pixels: Pixels  #: one row per chosen frame
    thumbnail: Thumbnail
    stats: PixelStats
    voi: str = "none"  #: which value-of-interest transform was applied: lut, window or none
    reduced: int = 1  #: the factor by which the decoder itself reduced the resolution
    flipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What a table or a report says of an image. None means unknown, never "normal"."""

    birads: int | None = None  #: 0 to 6
    density: str | None = None  #: A to D
    pathology: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


class FileOutcome(StrEnum):
    """What became of a file that a scan met or that was sent."""

    TAKEN = "taken"  # its image is stored, and has a status of its own
    SAME = "same"  # another copy of a stored image
    KEPT = "kept"  # other bytes of a known UID, of which the first ones stay
    DISCARDED = "discarded"  # by an admission rule, and acknowledged
    REFUSED = "refused"  # by an admission rule
    QUARANTINED = Outcome.QUARANTINED.value
    EMPTY = Outcome.EMPTY.value
    FAILED = Outcome.FAILED.value


class OperationKind(StrEnum):
    """What an operation does."""

    SCAN = "scan"
    PULL = "backfill-dicomweb"
    REINDEX = "reindex"
    REPLAY = "replay"
    ERASE = "erase"


class OperationState(StrEnum):
    """The state of an operation; the last three are its end."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: States of an operation that workers still work on, or will.
UNDER_WAY = frozenset({OperationState.PENDING, OperationState.RUNNING})


class Job(StrEnum):
    """The kinds of work that a message can announce; the value is the task's name."""

    SCAN = "similis.scan"
    ENCODE = "similis.encode"
    PULL = "similis.pull"
    PROJECT = "similis.project"
    REINDEX = "similis.reindex"
    CATCH_UP = "similis.catch_up"
    REPLAY = "similis.replay"
    CANARY = "similis.canary"
    SWEEP = "similis.sweep"
    TIDY = "similis.tidy"
