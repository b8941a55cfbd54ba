"""Numbers for Prometheus. No label ever holds a UID, a patient or a file name."""

import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.log import get
from shared.runtime import Runtime
from shared.store import gauges
from shared.store.gauges import Gauges

log = get(__name__)

FRESH_S = 10.0  #: a reading of the database stands at least so long
SHARE = 0.05  #: of the time at most the database counts for us: where it takes 1.5 s, a reading stands for 30 s
OLD_S = 120.0  #: a reading that should have been made anew so long ago is told to nobody
WAIT_S = 3.0  #: at the end, for a reading that is being made

SECONDS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.15, 0.5, 1, 2, 5, 15)


class Metrics:
    """This process's counters, and at each scrape what the database knows."""

    def __init__(self, rt: Runtime) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "similis_http_request_duration_seconds",
            "Requests by route template",
            ("route", "method", "code"),
            registry=self.registry,
            buckets=SECONDS,
        )
        self.searches = Histogram(
            "similis_search_duration_seconds",
            "Searches by stage",
            ("stage", "backend"),
            registry=self.registry,
            buckets=SECONDS,
        )
        self.hidden = Counter(
            "similis_search_results_hidden_total", "Studies kept out of sight", ("reason",), registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(Disks({"models": rt.settings.models_dir, "store": rt.settings.blobs_dir}))
        self.stored = Stored(rt)
        self.registry.register(self.stored)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the database said, and when it was asked."""

    found: Gauges
    asked: float  #: by the monotonic clock
    took_s: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.asked

    @property
    def late_s(self) -> float:
        """For how long a new one is due; less than 0: it stands."""
        return self.age_s - max(FRESH_S, self.took_s / SHARE)


class Disks(Collector):
    """What is left of the disks that files are written to, as this process sees them."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = places

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        free: dict[tuple[str, ...], float] = {}
        for name, folder in self.places.items():
            with suppress(OSError):  # it is made when the first file comes
                free[name,] = float(shutil.disk_usage(folder).free)
        yield _gauge("similis_disk_free_bytes", "Free space where this is kept", ("place",), free)


class Stored(Collector):
    """What the database knows: scrapes share a reading, whose age is told.

    To count a million images takes more than a second. So a reading that is due is made anew beside the scrape that
    finds it so, and the next one tells it; only where the last one is far too old a scrape waits. When the database is
    away the scrape still answers, and says so.
    """

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self._held: Reading | None = None
        self._reads = threading.Lock()
        self._beside: threading.Thread | None = None

    def describe(self) -> Iterable[Metric]:
        return []  # else the registry would ask the database when the app is made

    def close(self) -> None:
        """No reading is being made any more, unless the database hangs."""
        if self._beside is not None:
            self._beside.join(WAIT_S)

    def reading(self) -> Reading:
        held = self._held
        if held is None or held.late_s > OLD_S:
            return self._renewed(held)
        if held.late_s > 0 and (self._beside is None or not self._beside.is_alive()):
            self._beside = threading.Thread(target=self._renew, args=(held,), name="metrics", daemon=True)
            self._beside.start()
        return held

    def _renew(self, held: Reading) -> None:
        try:
            self._renewed(held)
        except Exception:  # the one that stands gets older, and says so
            log.warning("metrics_incomplete", exc_info=True)

    def _renewed(self, held: Reading | None) -> Reading:
        """A later one than this; who asks meanwhile waits for it, too."""
        with self._reads:
            if self._held is None or self._held is held:
                asked = time.monotonic()
                with self.rt.store.reading() as connection:
                    found = gauges.read(connection)
                self._held = Reading(found, asked, time.monotonic() - asked)
            return self._held

    def collect(self) -> Iterator[Metric]:
        yield _gauge("similis_build_info", "The version", ("version",), {(software(),): 1.0})
        try:
            self.rt.store.ping()
            reading = self.reading()
        except Exception:
            log.warning("metrics_incomplete", exc_info=True)
            yield _gauge("similis_database_up", "Whether the database answers", (), {(): 0.0})
            return
        yield _gauge("similis_database_up", "Whether the database answers", (), {(): 1.0})
        yield _gauge(
            "similis_database_reading_age_seconds",
            "For how long all below has been known; a new reading is made beside the scrapes",
            (),
            {(): reading.age_s},
        )
        yield from _told(reading.found)


def _told(found: Gauges) -> Iterator[Metric]:
    yield _gauge("similis_images", "Images by status", ("status",), {(s,): n for s, n in found.images.items()})
    yield _gauge("similis_queue_depth", "Due work", ("queue",), {(q,): n for q, (n, _) in found.queues.items()})
    yield _gauge(
        "similis_queue_oldest_age_seconds",
        "Age of the oldest due work",
        ("queue",),
        {(q,): age for q, (_, age) in found.queues.items() if age is not None},
    )
    yield _gauge("similis_quarantine_items", "Stopped images and files", ("gate", "state"), found.stopped)
    yield _gauge("similis_dead_letters", "Work that ended badly", ("kind", "reason"), found.letters)
    decisions = CounterMetricFamily("similis_quarantine_reviews", "What reviewers did", labels=("action",))
    for label, n in found.reviews.items():
        decisions.add_metric(label, n)
    yield decisions
    yield _gauge(
        "similis_images_uncalibrated",
        "Searchable images for which gate 3 had no threshold",
        ("modality",),
        found.uncalibrated,
    )
    yield _gauge(
        "similis_images_undistanced",
        "Searchable images of which gate 3 measured no distance from known ones",
        ("modality",),
        found.undistanced,
    )
    yield _gauge(
        "similis_index_coverage_ratio",
        "Share of its ledger that a generation holds",
        ("model", "generation"),
        found.coverage,
    )
    yield _gauge(
        "similis_ann_recall_ratio",
        "Share of the true first k that the published index finds, in the canary's last rounds",
        ("model", "k"),
        found.recall,
    )


def _gauge(name: str, words: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def software() -> str:
    try:
        return version("similis")
    except PackageNotFoundError:
        return "unknown"
