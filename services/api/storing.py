"""STOW-RS below HTTP: a body becomes files as it streams by, in batches, and each file gets its answer."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from services.api.dicom_json import Json, item
from services.api.errors import UnsupportedMedia
from shared.errors import Invalid
from shared.imaging.reasons import Reason
from shared.multipart import Begin, Data, Splitter, media_type
from shared.pipeline.arrive import Arrived
from shared.store.blobs import Blobs, Part

BATCH = 32  #: files that are committed together
DICOM = "application/dicom"
MAGIC = slice(128, 132)  #: PS3.10 section 7.1

#: FailureReason of PS3.18 table I.2-2, and of PS3.7 Annex C where it has none
NOT_ALLOWED, OUT_OF_RESOURCES, OTHER_STUDY = 0x0124, 0xA700, 0xA900
NO_SUCH_CLASS, PROCESSING, NOT_UNDERSTOOD = 0x0122, 0x0110, 0xC000

Take = Callable[[Sequence[Part]], list[Arrived]]


class Storing:
    """The files of one request. Whoever makes it closes it: what was not taken in by then is gone.

    Args:
        study: the one that all of them must belong to, or "".
        splitter: of a multipart body; None: the body is one file.
        most: bytes of one file; one that has more is refused, and its rest is not kept.
    """

    def __init__(self, blobs: Blobs, take: Take, study: str, splitter: Splitter | None, most: int) -> None:
        self._blobs, self._take, self._study, self._splitter, self._most = blobs, take, study, splitter, most
        self._batch = ExitStack()
        self._parts: list[Part] = []
        self._head = b""
        self._answers: list[Arrived] = []

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body. Raises: `Invalid`, `UnsupportedMedia`, `Unavailable` (also `Full`)."""
        if self._splitter is None:
            if not self._parts:
                self._begin()
            self._write(chunk)
            return
        for event in self._splitter.feed(chunk):
            if isinstance(event, Begin):
                if media_type(event.headers.get("content-type", DICOM))[0] != DICOM:
                    raise UnsupportedMedia(f"a part is not {DICOM}")
                if event.headers.get("content-transfer-encoding", "binary").lower() != "binary":
                    raise UnsupportedMedia("a part is not in binary")
                self._begin()
            elif isinstance(event, Data):
                self._write(event.chunk)
            else:
                self._end()

    def finish(self) -> list[Arrived]:
        """The body is over: an answer for each file. Raises: as `feed`; `Invalid` also where there was none."""
        if self._splitter is not None:
            self._splitter.finish()
        elif self._parts:
            self._end()
        self._settle()
        if not self._answers:
            raise Invalid("there is no file in the body")
        return self._answers

    def close(self) -> None:
        self._batch.close()

    def _begin(self) -> None:
        part = self._batch.enter_context(self._blobs.part())
        part.expects = ("", self._study)
        self._parts.append(part)
        self._head = b""

    def _write(self, chunk: bytes) -> None:
        part = self._parts[-1]
        self._head += chunk[: max(0, MAGIC.stop - len(self._head))]
        part.write(chunk[: max(0, self._most + 1 - part.size)])  # one byte too many, and the sandbox refuses it

    def _end(self) -> None:
        if self._head[MAGIC] != b"DICM":  # a picture, say, which a folder scan would take
            self._parts.pop()
            self._answers.append(Arrived(outcome="failed", reason=Reason.NOT_A_STUDY_OBJECT, kept=False))
        if len(self._parts) >= BATCH:
            self._settle()

    def _settle(self) -> None:
        if self._parts:
            self._answers += self._take(self._parts)
        self._parts.clear()
        self._batch.close()


def failure(arrived: Arrived) -> int:
    """The FailureReason of a file that was not kept."""
    if arrived.outcome == "refused" or arrived.reason in (Reason.ERASED, Reason.ENDED):
        return NOT_ALLOWED
    if arrived.reason == Reason.UIDS_DIFFER:
        return OTHER_STUDY
    if arrived.outcome == "empty":
        return NO_SUCH_CLASS
    if arrived.reason == Reason.FILE_SIZE:
        return OUT_OF_RESOURCES
    return PROCESSING if arrived.reason == Reason.SANDBOX else NOT_UNDERSTOOD


def accepted(arrived: Arrived) -> bool:
    """Its sender need not send it again: we have it, or a rule of the site does not want it."""
    return arrived.kept or arrived.outcome == "discarded"


def told(answers: Sequence[Arrived], base: str) -> tuple[int, Json]:
    """Status and body of a store request. Source: PS3.18 section 10.5.3, tables 10.5.3-1 and I.2-1."""
    good = [_good(one, base) for one in answers if accepted(one)]
    bad = [_bad(one) for one in answers if not accepted(one) and one.sop_instance_uid]
    nameless = [item({"FailureReason": failure(one)}) for one in answers if not (accepted(one) or one.sop_instance_uid)]
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
