"""Write the parts of a streamed multipart body to files, and take these in by batches."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

from shared.imaging.reasons import Reason
from shared.multipart import Begin, Data, Event
from shared.pipeline.arrive import Arrived
from shared.store.blobs import Blobs, Part
from shared.types import FileOutcome

BATCH = 32  #: files that are committed together
MAGIC = slice(128, 132)  #: PS3.10 section 7.1

Take = Callable[[Sequence[Part]], list[Arrived]]


class Streamed:
    """The files of one body; those that were not taken in are deleted when the context ends.

    Args:
        expects: SOP and Study Instance UID that each file must have, "" where any will do.
        most: maximum bytes of one file; a larger file is refused, and its rest is not stored.

    Attributes:
        answers: one for each file that was taken in or refused so far.
    """

    def __init__(
        self, blobs: Blobs, take: Take, *, expects: tuple[str, str] = ("", ""), most: int, batch: int | None = None
    ) -> None:
        self.answers: list[Arrived] = []
        self._blobs, self._take, self._expects, self._most = blobs, take, expects, most
        self._size = batch or BATCH
        self._parts: list[Part] = []
        self._head = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def on(self, event: Event) -> None:
        """Handle the next event of the body. Raises: `Unavailable` (also `Full`), and what `take` raises."""
        if isinstance(event, Begin):
            self.begin()
        elif isinstance(event, Data):
            self.write(event.chunk)
        else:
            self.end()

    def begin(self) -> None:
        part = self._blobs.part()
        part.expects = self._expects
        self._parts.append(part)
        self._head = b""

    def write(self, chunk: bytes) -> None:
        part = self._parts[-1]
        self._head += chunk[: max(0, MAGIC.stop - len(self._head))]
        part.write(chunk[: max(0, self._most + 1 - part.size)])  # with one byte too many, the sandbox refuses it

    def end(self) -> None:
        if self._head[MAGIC] != b"DICM":  # a picture, say, which a folder scan would take
            with self._parts.pop():  # deleted at once: a body may hold thousands of them
                self.answers.append(Arrived(outcome=FileOutcome.FAILED, reason=Reason.NOT_A_STUDY_OBJECT, kept=False))
        if len(self._parts) >= self._size:
            self.settle()

    def settle(self) -> list[Arrived]:
        """Take in the files so far; return all answers so far."""
        if self._parts:
            self.answers += self._take(self._parts)
        self._close()
        return self.answers

    def _close(self) -> None:
        with ExitStack() as ended:
            while self._parts:
                ended.push(self._parts.pop())
