"""Following an intake operation: progress bars on a terminal, otherwise a few plain lines."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.client import Answer, Client
from services.cli.terminal import err, say, table, tell
from services.cli.waiting import PLAIN_EVERY_S, poll

_UNDECIDED = frozenset({"received", "encoding"})
_MODELLESS = "waiting for a model"  #: a phase
ODD, LABEL = "dataset:", "label:"  #: prefixes of counts: oddities of a published data set, and its labels
_NOTHING = {  #: by kind
    "scan": "there is no file in this folder",
    "backfill-dicomweb": "the archive lists no image for this query",
}
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
#: counts beside those of the outcomes: name, what to show as outcome and reason, meaning
_COUNTED = (
    ("unchanged", "unchanged", "", "known since an earlier intake"),
    ("held", "unchanged", "", "known since an earlier intake"),
    ("settling", "settling", "", "perhaps still being written; they are checked again"),
    ("unlabelled", "warning", "unlabelled", "the label table has no row for them"),
    ("namesakes", "warning", "namesakes", "unlabelled: the table's file name occurs in several folders"),
    ("unnamed", "warning", "unnamed", "not pulled: the archive lists these studies and instances without a valid UID"),
)


@dataclass(frozen=True)
class Operation:
    """The parts of an operation that are shown while it goes on."""

    state: str
    phase: str
    error: str
    files: int | None  #: files found so far
    registered: int
    all_registered: bool
    known: int  #: files that were new or had changed, and so have a row of this operation
    decided: int

    @classmethod
    def of(cls, answer: Answer) -> Self:
        rows = answer["outcomes"]
        return cls(
            state=answer["state"],
            phase=answer["phase"],
            error=answer["error"] or "",
            files=answer["total"],
            registered=answer["done"],
            all_registered=answer["registered_at"] is not None,
            known=sum(row["count"] for row in rows),
            decided=sum(row["count"] for row in rows if row["outcome"] not in _UNDECIDED),
        )

    @property
    def ended(self) -> bool:
        return self.state in _ENDED

    @property
    def held_up_by(self) -> str:
        """Why it stands still; empty while it goes on, and once it has ended."""
        if self.ended:
            return ""
        return _MODELLESS if self.phase == _MODELLESS else self.error

    @property
    def images(self) -> int | None:
        """Number of images to be decided, as far as known; None while no file was new."""
        return self.known if self.known or self.all_registered or self.ended else None


class Rate:
    """The recent growth rate of a count, and the time that the rest takes at that rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window_s: float = 20.0) -> None:
        self._clock = clock
        self._window_s = window_s
        self._seen: list[tuple[float, int]] = []

    def add(self, done: int) -> None:
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > self._window_s:
            self._seen.pop(0)

    @property
    def per_s(self) -> float:
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now > began else 0.0

    def left_s(self, remaining: int) -> float | None:
        return remaining / self.per_s if self.per_s > 0 else None


class Bars:
    """Two bars: files registered, images decided."""

    COLUMNS = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )

    def __init__(self, bars: Progress) -> None:
        self._rate = Rate()
        self._bars = bars
        self._files = bars.add_task("registered", total=None, rate="files")
        self._images = bars.add_task("decided", total=None, rate="images")

    def show(self, operation: Operation) -> None:
        self._bars.update(self._files, completed=operation.registered, total=operation.files)
        self._rate.add(operation.decided)
        rate = operation.held_up_by or f"{self._rate.per_s:.1f} images/s"
        self._bars.update(self._images, completed=operation.decided, total=operation.images, rate=rate)


class Lines:
    """For output that is no terminal: a line at each quarter, and at intervals of `PLAIN_EVERY_S`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = Rate(clock)
        self._told: tuple[int, int] = (-1, -1)
        self._held_up_by = ""
        self._at = clock()

    def show(self, operation: Operation) -> None:
        self._rate.add(operation.decided)
        mark = (_quarter(operation.registered, operation.files), _quarter(operation.decided, operation.known or None))
        why = operation.held_up_by
        moved = mark[0] > self._told[0] or mark[1] > self._told[1] or why not in ("", self._held_up_by)
        if not moved and self._clock() - self._at < PLAIN_EVERY_S:
            return
        self._told, self._held_up_by, self._at = mark, why, self._clock()
        left = self._rate.left_s(operation.known - operation.decided)
        rest = "" if not left or operation.ended else f", {self._rate.per_s:.1f}/s, {left:.0f} s left"
        rest = f", {why}" if why else rest
        files = "?" if operation.files is None else operation.files
        say(
            f"registered {operation.registered}/{files} files, "
            f"decided {operation.decided}/{operation.known} images{rest}"
        )


def _quarter(done: int, total: int | None) -> int:
    return -1 if not total else 4 * done // total


def follow(client: Client, operation_id: str) -> Answer:
    """Show the operation's progress until it has ended; a watch ends only when it is cancelled or fails."""
    if not sys.stderr.isatty():
        lines = Lines()
        return poll(client, operation_id, lambda answer: lines.show(Operation.of(answer)))
    with Progress(*Bars.COLUMNS, console=err()) as progress:
        bars = Bars(progress)
        return poll(client, operation_id, lambda answer: bars.show(Operation.of(answer)))


def summarise(answer: Answer) -> None:
    """Print the outcomes of the files on stdout: one row per outcome, gate and reason."""
    counts, ended = answer["counts"], answer["state"] in _ENDED
    told = sorted(answer["outcomes"], key=lambda row: -row["count"])
    rows = [(row["outcome"], row["gate"], row["reason"], row["count"], row["explanation"]) for row in told]
    rows += [(what, "", reason, counts[name], words) for name, what, reason, words in _COUNTED if counts.get(name)]
    for prefix, what, meaning in (
        (ODD, "warning", "unusual in this data set; the files were taken in"),
        (LABEL, "label", "labels of the data set"),
    ):
        told_of = {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}
        rows += [(what, "", name, count, meaning) for name, count in told_of.items()]
    if rows:
        table(("outcome", "gate", "reason", "files", "meaning"), rows, right=("files",))
    elif answer["state"] == "succeeded" and answer["kind"] in _NOTHING:
        say(_NOTHING[answer["kind"]])
    took = f" in {answer['took_s']:.1f} s" if answer["took_s"] and ended else ""
    ending = f": {answer['error']}" if answer["error"] else ""
    tell(f"operation {answer['id']} {answer['state']}{took}{ending}")
