"""Following an intake operation: progress bars on a terminal, otherwise a few plain lines."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

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


@dataclass(frozen=True)
class Operation:
    """The parts of an operation that are shown."""

    id: str
    state: str
    files: int | None  #: files found so far
    registered: int
    outcomes: tuple[tuple[str, str, str, int], ...]  #: outcome, gate, reason, how many
    counts: dict[str, Any]
    error: str
    phase: str = ""
    all_registered: bool = False

    @classmethod
    def of(cls, answer: Answer) -> Self:
        rows = tuple(
            (row["outcome"], row.get("gate") or "", row.get("reason") or "", int(row["count"]))
            for row in answer.get("outcomes") or []
        )
        return cls(
            id=str(answer["id"]),
            state=str(answer["state"]),
            files=answer.get("total"),
            registered=int(answer.get("done") or 0),
            outcomes=rows,
            counts=dict(answer.get("counts") or {}),
            error=str(answer.get("error") or ""),
            phase=str(answer.get("phase") or ""),
            all_registered=answer.get("registered_at") is not None,
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
    def known(self) -> int:
        """Number of files that were new or had changed, and so have a row of this operation."""
        return sum(count for *_, count in self.outcomes)

    @property
    def decided(self) -> int:
        return sum(count for outcome, _, _, count in self.outcomes if outcome not in _UNDECIDED)

    @property
    def images(self) -> int | None:
        """Number of images to be decided, as far as known; None while no file was new."""
        return self.known if self.known or self.all_registered or self.ended else None

    @property
    def unchanged(self) -> int:
        """Files of a scan, or instances of a pull (`held`), that were here already."""
        return int(self.counts.get("unchanged") or self.counts.get("held") or 0)


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
    operation = Operation.of(answer)
    told = sorted(answer.get("outcomes") or [], key=lambda row: -row["count"])
    rows = [(row["outcome"], row.get("gate"), row.get("reason"), row["count"], row.get("explanation")) for row in told]
    if operation.unchanged:
        rows.append(("unchanged", "", "", operation.unchanged, "known since an earlier intake"))
    if operation.counts.get("settling"):
        rows.append(
            ("settling", "", "", operation.counts["settling"], "perhaps still being written; they are checked again")
        )
    for name, meaning in (
        ("unlabelled", "the label table has no row for them"),
        ("namesakes", "unlabelled: the table's file name occurs in several folders"),
        ("unnamed", "studies and instances that were not pulled: the archive lists them without a valid UID"),
    ):
        if operation.counts.get(name):
            rows.append(("warning", "", name, operation.counts[name], meaning))
    for prefix, what, meaning in (
        (ODD, "warning", "unusual in this data set; the files were taken in"),
        (LABEL, "label", "labels of the data set"),
    ):
        told_of = {name.removeprefix(prefix): n for name, n in operation.counts.items() if name.startswith(prefix)}
        rows += [(what, "", name, count, meaning) for name, count in told_of.items()]
    if rows:
        table(("outcome", "gate", "reason", "files", "meaning"), rows, right=("files",))
    elif operation.state == "succeeded" and answer["kind"] in _NOTHING:
        say(_NOTHING[answer["kind"]])
    took = f" in {answer['took_s']:.1f} s" if answer.get("took_s") and operation.ended else ""
    ending = f": {operation.error}" if operation.error else ""
    tell(f"operation {operation.id} {operation.state}{took}{ending}")
