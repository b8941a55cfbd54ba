"""When a pull or a build may run, and how fast."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from datetime import time as clock
from typing import Self

from sqlalchemy.orm import Session

from shared.errors import Invalid
from shared.pipeline.streamed import BATCH
from shared.store import generations
from shared.store.tables import Generation

LISTENING_S = 5.0  #: a pull checks this often whether it was stopped, or once per instance if it is slower


@dataclass(frozen=True, slots=True)
class Hours:
    """Daily hours in which work may run, by this machine's clock; 22:00-06:00 spans midnight."""

    begin: clock
    end: clock

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse hours such as 22:00-06:00. Raises: `Invalid`."""
        try:
            begin, end = (datetime.strptime(part, "%H:%M").time() for part in text.split("-"))  # noqa: DTZ007
        except ValueError:
            raise Invalid("hours must look like 22:00-06:00") from None
        if begin == end:
            raise Invalid("hours must not begin and end at the same time")
        return cls(begin, end)

    def closed_s(self, now: datetime) -> float:
        """Seconds until the hours begin; 0 within them."""
        moment = now.time()
        inside = self.begin <= moment < self.end if self.begin < self.end else not self.end <= moment < self.begin
        if inside:
            return 0.0
        opening = datetime.combine(now.date(), self.begin, now.tzinfo)
        return (opening + timedelta(days=moment >= self.begin) - now).total_seconds()


def closed_s(hours: str | None) -> float:
    """Seconds until these hours begin, by this machine's clock; 0 within them, and if there are none."""
    return Hours.read(hours).closed_s(datetime.now().astimezone()) if hours else 0.0


def allow(db: Session, generation: Generation, most: int) -> int:
    """Return how many images of this build may be processed now, at most `most`; 0 outside its hours."""
    return 0 if closed_s(generation.hours) else generations.allow(db, generation, most)


class Pace:
    """A rate limit in instances per second, without bursts after a pause."""

    def __init__(self, rate_per_s: float | None) -> None:
        self._every_s = 1 / rate_per_s if rate_per_s else 0.0
        self._next = 0.0

    def wait(self) -> None:
        now = time.monotonic()
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(now, self._next) + self._every_s

    @property
    def batch(self) -> int:
        """Instances that are taken in together, few enough to notice a stop within `LISTENING_S`."""
        return BATCH if not self._every_s else max(1, min(BATCH, int(LISTENING_S / self._every_s)))
