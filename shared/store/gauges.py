"""The figures for monitoring, read by a few statements.

Where the labels are known beforehand, a count of 0 is told, too: of a series that begins with 1 nobody sees the rise.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from shared.store import calibrations, canaries, images, ledger, letters, operations
from shared.types import OperationKind, Status


@dataclass(frozen=True, slots=True)
class Gauges:
    images: dict[str, float]  #: by status
    queues: dict[str, tuple[float, float | None]]  #: depth and age of the oldest, in seconds, where it is known
    stopped: dict[tuple[str, ...], float]  #: by gate and status
    letters: dict[tuple[str, ...], float]  #: dead letters, by kind and reason
    failed: dict[tuple[str, ...], float]  #: failed operations, by kind
    coverage: dict[tuple[str, ...], float]  #: by model, generation and whether that is published
    recall: dict[tuple[str, ...], float]  #: of the published generation's last canary rounds, by model and k
    reviews: dict[tuple[str, ...], float]  #: by action
    uncalibrated: dict[tuple[str, ...], float]  #: searchable images that no threshold has judged, by modality
    undistanced: dict[tuple[str, ...], float]  #: ditto, that no threshold of distances has judged


_STOPPED = sa.text(
    "SELECT coalesce(gate, 'none'), status, count(*) FROM image WHERE status IN ('quarantined', 'failed') "
    "GROUP BY 1, 2 "
    "UNION ALL SELECT coalesce(gate, 'none'), 'file', count(*) FROM file WHERE outcome = 'quarantined' GROUP BY 1"
)
_DONE = sa.text("SELECT action, count(*) FROM audit WHERE action IN ('release', 'reject', 'retry') GROUP BY 1")
_OPEN = sa.text(
    "SELECT g.id, m.name, CASE WHEN EXISTS (SELECT FROM live WHERE generation_id = g.id) THEN 'yes' ELSE 'no' END "
    "FROM generation g JOIN model m ON m.id = g.model_id WHERE g.state = 'open' ORDER BY g.id"
)
_CANARY = sa.text(
    "SELECT m.name, g.canary FROM generation g JOIN model m ON m.id = g.model_id "
    "WHERE g.id = (SELECT generation_id FROM live)"
)
_FAILED = sa.text("SELECT kind, count(*) FROM operation WHERE state = 'failed' GROUP BY 1")
_PENDING = sa.text("SELECT count(*) FROM ledger WHERE state = 'pending'")
_BESIDE = sa.text("SELECT count(*) FROM catch_up WHERE state = 'due'")


def read(connection: sa.Connection) -> Gauges:
    waiting, oldest = images.due(connection)
    scans = [operations.waiting(connection, kind) for kind in (OperationKind.SCAN, OperationKind.PULL)]
    pending = connection.execute(_PENDING).scalar_one()
    stopped = connection.execute(_STOPPED).all()
    generations = connection.execute(_OPEN).all()
    canary = [(name, canaries.told(rounds)) for name, rounds in connection.execute(_CANARY)]
    return Gauges(
        images=dict.fromkeys(Status, 0.0) | {status: float(n) for status, n in images.statuses(connection).items()},
        queues={
            "scan": (float(sum(n for n, _ in scans)), max(oldest_s for _, oldest_s in scans)),
            "ingest": (float(waiting), oldest or 0.0),
            "reindex": (float(connection.execute(_BESIDE).scalar_one()), None),
            "index": (float(pending), float(ledger.oldest_pending_s(connection) or 0.0)),
        },
        stopped={(gate, status): float(n) for gate, status, n in stopped},
        letters={(kind, reason): float(n) for kind, reason, n in letters.counts(connection)},
        failed=dict.fromkeys(((kind,) for kind in OperationKind), 0.0)
        | {(kind,): float(n) for kind, n in connection.execute(_FAILED)},
        reviews={(row[0],): float(row[1]) for row in connection.execute(_DONE)},
        uncalibrated={(modality,): float(n) for modality, n in calibrations.unjudged(connection).items()},
        undistanced={(modality,): float(n) for modality, n in calibrations.unjudged(connection, "distance").items()},
        recall={(name, str(one.k)): one.recall for name, one in canary if one is not None},
        coverage={
            (name, str(id_), published): ledger.point_counts(connection, id_).ratio
            for id_, name, published in generations
        },
    )
