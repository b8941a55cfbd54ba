"""Backfill: take in the studies of another archive by QIDO-RS and WADO-RS, one window of days after the other.

A window is listed as a whole and walked in the order of its Study Instance UIDs. The cursor names the window and the
last finished study; after a kill, the next worker fetches what is missing of the interrupted study.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Self, TypeVar
from urllib.parse import urlsplit

from sqlalchemy.orm import Session
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from shared import heartbeat
from shared.errors import Denied
from shared.imaging.reasons import Reason
from shared.multipart import End
from shared.pipeline import erase
from shared.pipeline.arrive import Arrived, arrive
from shared.pipeline.dicomweb import (
    Archive,
    ArchiveIgnoresOffset,
    ArchiveProtocolError,
    ArchiveTimeout,
    ArchiveUnavailable,
    Listing,
)
from shared.pipeline.pace import Pace
from shared.pipeline.receive import Inspector, Rules
from shared.pipeline.streamed import Streamed
from shared.store import pulls
from shared.store.arrivals import Origin
from shared.store.blobs import Blobs, Part
from shared.store.locks import Lock, share
from shared.store.session import Begin
from shared.store.tables import Operation
from shared.types import FileOutcome

FIRST = date(1970, 1, 1)  #: of a backfill without a first day
WINDOW_DAYS = 366
MOST_STUDIES = 2000  #: a window that has more is halved, down to one day
ENOUGH = 200_000  #: most studies of a window that is not halved
ATTEMPTS = 5
PATIENCE_S = 20.0  #: the longest wait between two attempts

OF_INSTANCES = ("pulled", "held", "turned_away", "missing")
COUNTED = ("studies", *OF_INSTANCES, "unnamed")
MISSING = (FileOutcome.FAILED, Reason.SOURCE.value)  #: an instance that did not come

T = TypeVar("T")
Report = Callable[[Session, "Progress"], bool]


class Stopped(Exception):
    """`report` said stop: the operation was cancelled, or another worker has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to pull. Without days, the query selects its studies by other attributes and is one window."""

    query: Mapping[str, str]
    first: date | None
    last: date | None
    rate_per_s: float | None = None  #: instances


@dataclass(slots=True)
class Progress:
    """How far a pull is: instances by outcome, and the cursor."""

    total: int = 0  #: instances, as far as the archive has listed them
    done: int = 0
    studies: int = 0
    pulled: int = 0
    held: int = 0  #: were here already
    turned_away: int = 0  #: came, and were not kept
    missing: int = 0  #: did not come
    unnamed: int = 0  #: studies and instances that were skipped, as the archive lists them without a valid UID
    cursor: dict[str, str] = field(default_factory=dict)  #: `from`, `to`, `after`; `silent`: timeouts of the next study

    @property
    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTED}

    @classmethod
    def of(cls, row: Operation) -> Self:
        """Restore the progress from the row; the instances of an unfinished study are counted again."""
        counts = {name: row.counts.get(name, 0) for name in COUNTED}
        done = sum(counts[name] for name in OF_INSTANCES)
        return cls(total=max(row.total or 0, done), done=done, cursor=dict(row.cursor or {}), **counts)


@dataclass(slots=True, kw_only=True)
class Pull:
    """One worker's share of a backfill.

    Attributes:
        report: saves the progress; returns False to stop the pull.
        over: returns True when this worker's turn is over.
        most: maximum bytes of one file.
    """

    begin: Begin
    inspector: Inspector
    blobs: Blobs
    archive: Archive
    plan: Plan
    progress: Progress
    origin: Origin
    rules: Rules
    report: Report
    over: Callable[[], bool]
    most: int

    def run(self) -> bool:
        """Return True if the whole plan is done, False if a later turn is to go on from `progress`.

        Raises: `Stopped` if `report` said so; `Unavailable`; `Denied`; `Invalid` for invalid answers.
        """
        pace = Pace(self.plan.rate_per_s)
        while (window := self._window()) is not None:
            low, high, listed = window
            cursor = self.progress.cursor
            done = cursor.get("after", "") if cursor.get("from") == _text(low) else ""
            self.progress.cursor = {**cursor, "from": _text(low), "to": _text(high), "after": done}
            left = sorted(study for study in listed.named if study > done)
            self.progress.total = self.progress.done + sum(listed.named[study] for study in left)
            for study in left:
                self._study(study, pace)
                self.progress.cursor |= {"after": study, "silent": "0"}
                self.tell()
                if self.over():
                    return False
            self.progress.unnamed += listed.unnamed
            following = "end" if high is None or high == self.plan.last else _text(high + timedelta(days=1))
            self.progress.cursor = {"from": following, "to": "", "after": ""}
            self.tell()
        return True

    def tell(self) -> None:
        """Save the progress. Raises: `Stopped`."""
        with self.begin() as db:
            go_on = self.report(db, self.progress)
        if not go_on:
            raise Stopped

    def _window(self) -> tuple[date | None, date | None, Listing[int]] | None:
        """Return the next window and its studies, None at the end. A window that was begun keeps its days."""
        at, until = self.progress.cursor.get("from", ""), self.progress.cursor.get("to", "")
        first, last = self.plan.first, self.plan.last
        if at == "end":
            return None
        if first is None or last is None:
            return None, None, self._listed(self.plan.query, ENOUGH)
        low = date.fromisoformat(at) if at else first
        if low > last:
            return None
        high = date.fromisoformat(until) if until else low + min(timedelta(days=WINDOW_DAYS - 1), last - low)
        while True:
            whole = bool(until) or low == high
            days = f"{low:%Y%m%d}-{high:%Y%m%d}" if low < high else f"{low:%Y%m%d}"
            try:
                listed = self._listed({**self.plan.query, "StudyDate": days}, ENOUGH if whole else MOST_STUDIES)
            except ArchiveIgnoresOffset:
                if low == high:
                    raise
            else:
                if whole or len(listed) <= MOST_STUDIES:
                    return low, high, listed
            high, until = low + (high - low) // 2, ""

    def _listed(self, query: Mapping[str, str], most: int) -> Listing[int]:
        found = patiently(lambda: self.archive.studies(query, most))
        if len(found) > ENOUGH:
            raise ArchiveProtocolError(f"the archive lists more than {ENOUGH} studies for one day")
        return found

    def _study(self, study: str, pace: Pace) -> None:
        """Fetch the study's missing instances, and record which did not come and why.

        Raises: `ArchiveTimeout` if a later turn is to request the study; as `ping` if the archive is unavailable.
        """
        one = _Study(self, study, pace)
        try:
            patiently(one.go)
        except (ArchiveUnavailable, Denied, ArchiveProtocolError) as error:
            if isinstance(error, ArchiveTimeout) and self._later():
                raise
            if not isinstance(error, ArchiveProtocolError):
                self.archive.ping()  # raises if the whole archive is unavailable; else only this study fails
            one.give_up()
        one.settle()

    def _later(self) -> bool:
        """Count a turn that ended in a timeout of this study; return whether it gets another turn."""
        turns = int(self.progress.cursor.get("silent", "0")) + 1
        self.progress.cursor["silent"] = str(turns)
        self.tell()
        return turns < ATTEMPTS


def patiently(call: Callable[[], T]) -> T:
    """Return the answer of `call`, retried with back-off while the archive is unavailable.

    Raises: `ArchiveUnavailable` after the last attempt; `ArchiveTimeout` after the first, as each timeout takes a
    minute.
    """
    return Retrying(
        retry=retry_if_exception_type(ArchiveUnavailable) & retry_if_not_exception_type(ArchiveTimeout),
        wait=wait_exponential_jitter(multiplier=0.5, max=PATIENCE_S),
        stop=stop_after_attempt(ATTEMPTS),
        reraise=True,
    )(call)


def _text(day: date | None) -> str:
    return "" if day is None else day.isoformat()


class _Study:
    """One study of a pull, through all attempts."""

    def __init__(self, pull: Pull, study: str, pace: Pace) -> None:
        self._pull, self._study, self._pace = pull, study, pace
        self._base = pull.progress.done
        self._listed: dict[str, str] = {}
        self._unnamed = 0
        self._held: set[str] = set()
        self._came: set[str] = set()
        self._bad: dict[str, tuple[FileOutcome, str]] = {}  #: outcome and reason, by SOP Instance UID

    def go(self) -> None:
        """Request every listed instance that is not here yet.

        Raises: `ArchiveUnavailable`, `Denied`, `ArchiveProtocolError`.
        """
        listing = self._pull.archive.instances(self._study)
        self._listed, self._unnamed = listing.named, listing.unnamed
        with self._pull.begin() as db:
            stands = pulls.held(db, list(self._listed))
        self._held = stands - self._came
        if len(self._listed) > 1 and (listing.cut or not stands) and not self._bad:
            with suppress(ArchiveProtocolError):  # an archive may serve single instances only
                self._fetch("", "")
            self._held -= self._came
        for sop in self._listed:
            if sop not in self._held and sop not in self._came and sop not in self._bad:
                with suppress(ArchiveProtocolError):
                    self._fetch(self._listed[sop], sop)
                if sop not in self._came:
                    self._bad.setdefault(sop, MISSING)

    def give_up(self) -> None:
        """Mark every instance that has not arrived as missing."""
        for sop in self._listed or [""]:
            if sop not in self._held and sop not in self._came:
                self._bad.setdefault(sop, MISSING)

    def settle(self) -> None:
        """Write what became of the study to the counts and rows."""
        pull, progress = self._pull, self._pull.progress
        lost = [sop for sop, why in self._bad.items() if why == MISSING]
        with pull.begin() as db:
            share(db, Lock.INTAKE)  # no erasure between the check and the write
            pulls.forget(db, [self._place(sop) for sop in (*self._listed, "")])
            named = self._may_be_named(db)
            pulls.turned_away(db, {self._place(sop): why for sop, why in named.items()}, pull.origin)
            pulls.lost(db, self._study, [sop for sop in lost if sop in named], pull.origin)
        progress.studies += 1
        progress.held += len(self._held)
        progress.pulled += len(self._came)
        progress.missing += len(lost)
        progress.turned_away += len(self._bad) - len(lost)
        progress.unnamed += self._unnamed
        self._count()
        progress.total = max(progress.total, progress.done)

    def _may_be_named(self, db: Session) -> dict[str, tuple[FileOutcome, str]]:
        """Return the instances that were not kept, without erased ones, which no row or journal may name."""
        bad = [(sop, why) for sop, why in self._bad.items() if why[1] != Reason.ERASED]
        erased = erase.refused(db, self._pull.rules.secret, [(sop, self._study, b"") for sop, _ in bad])
        return {sop: why for (sop, why), gone in zip(bad, erased, strict=True) if not gone}

    def _count(self) -> None:
        self._pull.progress.done = self._base + len(self._held) + len(self._came) + len(self._bad)

    def _place(self, sop: str) -> str:
        return f"{self._pull.archive.url}/studies/{self._study}" + (f"/instances/{sop}" if sop else "")

    def _fetch(self, series: str, sop: str) -> None:
        pull = self._pull
        expects = (sop, self._study)
        with Streamed(pull.blobs, self._take, expects=expects, most=pull.most, batch=self._pace.batch) as files:
            for event in pull.archive.files(self._study, series, sop):
                files.on(event)
                heartbeat.beat()
                if isinstance(event, End):
                    self._pace.wait()
            for one in files.settle():
                self._note(one, sop)

    def _take(self, parts: Sequence[Part]) -> list[Arrived]:
        pull = self._pull
        answers = arrive(pull.begin, pull.inspector, pull.blobs, parts, pull.origin, pull.rules)
        for one in answers:
            self._note(one, "")
        self._count()
        pull.tell()
        return answers

    def _note(self, one: Arrived, asked: str) -> None:
        """Note what became of an instance. One that is not listed replaces no listed one: these are still requested."""
        sop = asked or one.sop_instance_uid
        if one.kept:
            self._came.add(sop)
        elif sop in self._listed:
            self._bad[sop] = (one.outcome, one.reason or one.outcome.value)


def origin_of(url: str, operation_id: uuid.UUID) -> Origin:
    """Return the origin of the pulled files: the journal names the archive's host."""
    return Origin(source="backfill", sender=urlsplit(url).hostname or "", operation_id=operation_id)
