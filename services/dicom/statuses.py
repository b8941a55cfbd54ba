"""The DIMSE statuses of responses to C-STORE, from an instance's outcome or from an error.

Source: PS3.4 B.2.3 (C-STORE), PS3.7 Annex C.
"""

from enum import IntEnum

from pydicom.dataset import Dataset

from shared.errors import Conflict, Denied, Invalid, NotFound, SimilisError, Throttled, Unavailable
from shared.imaging.reasons import PASSING, Reason
from shared.pipeline.arrive import Arrived
from shared.types import FileOutcome


class Status(IntEnum):
    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NOT_AUTHORIZED = 0x0124
    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    NOT_UNDERSTOOD = 0xC000


class Refusal(Invalid):
    """A data set that is refused before it is inspected; the message is one word, for the Error Comment."""

    def __init__(self, message: str, *, mismatch: bool = False) -> None:
        super().__init__(message)
        self.status = Status.MISMATCH if mismatch else Status.NOT_UNDERSTOOD


#: The nearest base class of an error decides; a test checks the table against `shared.errors`.
ERRORS: dict[type[SimilisError], Status] = {
    Unavailable: Status.OUT_OF_RESOURCES,
    Throttled: Status.OUT_OF_RESOURCES,
    Denied: Status.NOT_AUTHORIZED,
    Invalid: Status.NOT_UNDERSTOOD,
    NotFound: Status.PROCESSING_FAILURE,
    Conflict: Status.PROCESSING_FAILURE,
    SimilisError: Status.PROCESSING_FAILURE,
}


def of_error(error: SimilisError) -> Status:
    if isinstance(error, Refusal):
        return error.status
    return next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)


def of_arrived(arrived: Arrived) -> Status:
    """The status for an outcome: success also where an admission rule discards the instance."""
    if arrived.accepted:
        return Status.SUCCESS
    if arrived.outcome == FileOutcome.REFUSED or arrived.reason in (Reason.ERASED, Reason.ENDED):
        return Status.NOT_AUTHORIZED
    if arrived.reason in PASSING:
        return Status.PROCESSING_FAILURE
    return Status.MISMATCH if arrived.reason == Reason.UIDS_DIFFER else Status.NOT_UNDERSTOOD


def answer(status: Status, comment: str = "") -> Dataset:
    """The response; its ErrorComment, cut to 64 characters, must never quote the data set."""
    response = Dataset()
    response.Status = int(status)
    if comment:
        response.ErrorComment = comment[:64]
    return response
