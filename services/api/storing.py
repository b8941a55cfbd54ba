"""STOW-RS without its HTTP: splits a streamed body into files, takes them in by batches, and answers for each file."""

from collections.abc import Mapping, Sequence

from services.api.dicom_json import Json, item
from services.api.errors import UnsupportedMedia
from shared.errors import Invalid
from shared.imaging.reasons import PASSING, Reason
from shared.multipart import Begin, Splitter, media_type
from shared.pipeline.arrive import Arrived
from shared.pipeline.streamed import Streamed
from shared.types import FileOutcome

DICOM = "application/dicom"
FILES = (f'multipart/related; type="{DICOM}"', DICOM)  #: media types of any number of files, and of a single one

#: FailureReason codes of PS3.18 table I.2-2, or of PS3.7 Annex C where that table has none
NOT_ALLOWED, OUT_OF_RESOURCES, OTHER_STUDY = 0x0124, 0xA700, 0xA900
NO_SUCH_CLASS, PROCESSING, NOT_UNDERSTOOD = 0x0122, 0x0110, 0xC000


class Storing:
    """Takes in the files of one request; `files` must be entered as a context manager.

    Args:
        splitter: parses a multipart body; None where the body is one file.
    """

    def __init__(self, files: Streamed, splitter: Splitter | None) -> None:
        self._files, self._splitter, self._begun = files, splitter, False

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body. Raises: `Invalid`, `UnsupportedMedia`, `Unavailable` (also `Full`)."""
        if self._splitter is None:
            if not self._begun:
                self._files.begin()
                self._begun = True
            self._files.write(chunk)
            return
        for event in self._splitter.feed(chunk):
            if isinstance(event, Begin):
                _check(event.headers)
            self._files.on(event)

    def finish(self) -> list[Arrived]:
        """End the body and return the outcome of each file. Raises: as `feed`; `Invalid` for a body without a file."""
        if self._splitter is not None:
            self._splitter.finish()
        elif self._begun:
            self._files.end()
        answers = self._files.settle()
        if not answers:
            raise Invalid("there is no file in the body")
        return answers


def _check(headers: Mapping[str, str]) -> None:
    if media_type(headers.get("content-type", DICOM))[0] != DICOM:
        raise UnsupportedMedia(f"every part must be {DICOM}")
    if headers.get("content-transfer-encoding", "binary").lower() != "binary":
        raise UnsupportedMedia("every part must have the transfer encoding binary")


def failure(arrived: Arrived) -> int:
    """The FailureReason of a file that was not kept."""
    if arrived.outcome == FileOutcome.REFUSED or arrived.reason in (Reason.ERASED, Reason.ENDED):
        return NOT_ALLOWED
    if arrived.reason == Reason.UIDS_DIFFER:
        return OTHER_STUDY
    if arrived.outcome == FileOutcome.EMPTY:
        return NO_SUCH_CLASS
    if arrived.reason == Reason.FILE_SIZE:
        return OUT_OF_RESOURCES
    return PROCESSING if arrived.reason in PASSING else NOT_UNDERSTOOD


def told(answers: Sequence[Arrived], base: str) -> tuple[int, Json]:
    """Status and body of a store request. Source: PS3.18 section 10.5.3, tables 10.5.3-1 and I.2-1."""
    good = [_good(one, base) for one in answers if one.accepted]
    bad = [_bad(one) for one in answers if not one.accepted and one.sop_instance_uid]
    nameless = [item({"FailureReason": failure(one)}) for one in answers if not (one.accepted or one.sop_instance_uid)]
    studies = {one.study_instance_uid for one in answers if one.kept}
    body = item(
        {
            "RetrieveURL": f"{base}/studies/{studies.pop()}" if len(studies) == 1 else None,
            "ReferencedSOPSequence": good,
            "FailedSOPSequence": bad,
            "OtherFailuresSequence": nameless,
        }
    )
    return (200 if len(good) == len(answers) else 202 if good else 409), body


def _good(arrived: Arrived, base: str) -> Json:
    place = (
        f"{base}/studies/{arrived.study_instance_uid}/series/{arrived.series_instance_uid}"
        f"/instances/{arrived.sop_instance_uid}"
    )
    return item(_named(arrived) | {"RetrieveURL": place if arrived.kept else None})


def _bad(arrived: Arrived) -> Json:
    return item(_named(arrived) | {"FailureReason": failure(arrived)})


def _named(arrived: Arrived) -> dict[str, object]:
    return {
        "ReferencedSOPClassUID": arrived.sop_class_uid,
        "ReferencedSOPInstanceUID": arrived.sop_instance_uid,
    }
