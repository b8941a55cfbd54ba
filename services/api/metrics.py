"""Numbers for Prometheus. No label ever holds a UID, a patient or a file name."""

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.log import get
from shared.runtime import Runtime
from shared.store import gauges

log = get(__name__)

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
        self.registry.register(Stored(rt))


class Stored(Collector):
    """Asked at each scrape. When the database is away the scrape still answers, and says so."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt

    def describe(self) -> Iterable[Metric]:
        return []  # else the registry would ask the database when the app is made

    def collect(self) -> Iterator[Metric]:
        yield _gauge("similis_build_info", "The version", ("version",), {(software(),): 1.0})
        try:
            with self.rt.store.reading() as connection:
                found = gauges.read(connection)
        except Exception:
            log.warning("metrics_incomplete", exc_info=True)
            yield _gauge("similis_database_up", "Whether the database answers", (), {(): 0.0})
            return
        yield _gauge("similis_database_up", "Whether the database answers", (), {(): 1.0})
        yield _gauge("similis_images", "Images by status", ("status",), {(s,): n for s, n in found.images.items()})
        yield _gauge("similis_queue_depth", "Due work", ("queue",), {(q,): n for q, (n, _) in found.queues.items()})
        yield _gauge(
            "similis_queue_oldest_age_seconds",
            "Age of the oldest due work",
            ("queue",),
            {(q,): age for q, (_, age) in found.queues.items()},
        )
        yield _gauge("similis_quarantine_items", "Stopped images and files", ("gate", "state"), found.stopped)
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
