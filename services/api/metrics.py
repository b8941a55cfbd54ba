"""Metrics for Prometheus. No label ever holds a UID, a patient or a file name."""

import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.log import get
from shared.runtime import Runtime
from shared.store import gauges
from shared.store.gauges import Gauges
from shared.version import software

log = get(__name__)

FRESH_S = 10.0  #: the shortest time for which a database reading is reused
SHARE = 0.05  #: of the time the database spends on readings at most: one that takes 1.5 s is reused for 30 s
OLD_S = 120.0  #: a reading that is overdue by more is not reported; the scrape waits for a new one
WAIT_S = 3.0  #: at shutdown, for a reading in progress

SECONDS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.15, 0.5, 1, 2, 5, 15)


class Metrics:
    """The registry: this process's counters and histograms, and gauges read from the database and the disks."""

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
            "similis_search_results_hidden_total",
            "Studies hidden from search results",
            ("reason",),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        places = {"home": rt.settings.home, "models": rt.settings.models_dir, "store": rt.settings.blobs_dir}
        self.registry.register(Disks(places))
        self.stored = Stored(rt)
        self.registry.register(self.stored)


@dataclass(frozen=True, slots=True)
class Reading:
    """The gauges that the database returned, and when it was queried."""

    found: Gauges
    asked: float  #: by the monotonic clock
    took_s: float

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.asked

    @property
    def late_s(self) -> float:
        """Seconds for which a new reading has been due; negative while this one is still fresh."""
        return self.age_s - max(FRESH_S, self.took_s / SHARE)


class Disks(Collector):
    """Free space on the disks that files are written to, as this process sees them."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = places

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        free: dict[tuple[str, ...], float] = {}
        for name, folder in self.places.items():
            with suppress(OSError):  # the folder is created with its first file
                free[name,] = float(shutil.disk_usage(folder).free)
        yield _gauge("similis_disk_free_bytes", "Free space on the disk of this folder", ("place",), free)


class Stored(Collector):
    """Gauges from the database: scrapes share a cached reading and report its age.

    Counting a million images takes more than a second, so the scrape that finds the reading stale returns it and
    starts a new one in the background. A scrape waits only where the reading is overdue by more than `OLD_S`. When
    the database is down the scrape still answers, with `similis_database_up` 0.
    """

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self._held: Reading | None = None
        self._reads = threading.Lock()
        self._beside: threading.Thread | None = None

    def describe(self) -> Iterable[Metric]:
        return []  # without it the registry would call `collect`, and query the database, at registration

    def close(self) -> None:
        """Wait up to `WAIT_S` for a background reading to end."""
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
        except Exception:  # the cached reading stays, and its reported age grows
            log.warning("metrics_incomplete", exc_info=True)

    def _renewed(self, held: Reading | None) -> Reading:
        """A reading newer than `held`; concurrent callers wait for the same one."""
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
            "Age of the database gauges below",
            (),
            {(): reading.age_s},
        )
        yield from _told(reading.found)


def _told(found: Gauges) -> Iterator[Metric]:
    yield _gauge("similis_images", "Images by status", ("status",), {(s,): n for s, n in found.images.items()})
    yield _gauge("similis_queue_depth", "Due work", ("queue",), {(q,): n for q, (n, _) in found.queues.items()})
    yield _gauge(
        "similis_queue_oldest_age_seconds",
        "Age of the oldest waiting work",
        ("queue",),
        {(q,): age for q, (_, age) in found.queues.items() if age is not None},
    )
    yield _gauge("similis_quarantine_items", "Stopped images and files", ("gate", "state"), found.stopped)
    yield _gauge("similis_dead_letters", "Work that was given up", ("kind", "reason"), found.letters)
    yield _gauge("similis_operations_failed", "Operations that failed", ("kind",), found.failed)
    decisions = CounterMetricFamily("similis_quarantine_reviews", "Decisions of reviewers", labels=("action",))
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
        "Searchable images whose distance from known images gate 3 did not measure",
        ("modality",),
        found.undistanced,
    )
    yield _gauge(
        "similis_index_coverage_ratio",
        "Share of a generation's ledger that its index holds",
        ("model", "generation", "published"),
        found.coverage,
    )
    yield _gauge(
        "similis_ann_recall_ratio",
        "Share of the k nearest images that the published index found in the canary's last rounds",
        ("model", "k"),
        found.recall,
    )


def _gauge(name: str, words: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family
