"""Queries that run every few seconds read a handful of rows, however many images wait."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.pipeline import sweep
from shared.store import catchup, images, operations
from shared.types import Job
from tests.miniature import Platform

WAITING = 20_000
FEW = 200

_FILL = """
    INSERT INTO image (sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, body_part, manufacturer,
        presentation_intent, rows, columns, frames, digest, path, operation_id, status, not_before)
    SELECT '1.2.' || n, 1, '1.3', '1.4', '1.5', 'MG', '', '', '', 9, 9, 1, 'x', convert_to('/archive/' || n, 'UTF8'),
        CAST(:operation AS uuid), CASE WHEN n <= 2000 THEN 'encoded' ELSE 'received' END,
        clock_timestamp() + make_interval(secs => :rests)
    FROM generate_series(1, :waiting) AS n
"""


@pytest.fixture(params=[None, 600.0], ids=["all are due", "all rest"])
def backlog(request: pytest.FixtureRequest, platform: Platform) -> Platform:
    """The images of a complete scan, most of them on a share that may be away."""
    with platform.begin() as db:
        operation = operations.create(db, "scan", {})
        operation.state, operation.registered_at = "running", sa.func.clock_timestamp()
        db.execute(sa.text("INSERT INTO study (uid, patient_key) VALUES ('1.2', 'x')"))
        db.execute(sa.text(_FILL), {"operation": operation.id, "rests": request.param, "waiting": WAITING})
    with platform.store.reading() as connection:
        connection.execute(sa.text("VACUUM ANALYZE image"))
    return platform


@pytest.mark.parametrize(
    "act",
    [
        lambda db: images.claim(db, limit=8, lease_s=10, max_failures=5),
        lambda db: images.exhaust(db, 5),
        images.any_due,
        operations.finish_settled,
    ],
    ids=["claim", "exhaust", "any due", "finish settled"],
)
def test_a_backlog_is_not_read_to_know_what_is_due(backlog: Platform, act: Callable[[Session], object]) -> None:
    assert backlog.rows_read(act) < FEW


@pytest.fixture
def owing(backlog: Platform) -> Platform:
    """A model that has to catch up on all these images."""
    backlog.add_model()
    with backlog.begin() as db:
        db.execute(sa.text("INSERT INTO catch_up (model_id, image_id, not_before) SELECT 1, id, not_before FROM image"))
    with backlog.store.reading() as connection:
        connection.execute(sa.text("VACUUM ANALYZE catch_up"))
    return backlog


@pytest.mark.parametrize(
    "act",
    [
        catchup.asking,
        lambda db: catchup.claim(db, 1, limit=8, lease_s=10, max_failures=5),
        lambda db: catchup.exhaust(db, 1, 5),
    ],
    ids=["asking", "claim", "exhaust"],
)
def test_what_a_model_has_to_catch_up_on_is_not_read_to_know_what_is_due(
    owing: Platform, act: Callable[[Session], object]
) -> None:
    assert owing.rows_read(act) < FEW


def test_a_sweep_reads_a_few_rows(backlog: Platform) -> None:
    assert backlog.rows_read(lambda db: sweep.ring_for_due(db, backlog.effort)) < FEW


def test_a_sweep_reads_a_few_rows_of_a_generation_that_is_being_written(platform: Platform) -> None:
    platform.add_model()
    with platform.begin() as db:
        db.execute(
            sa.text(
                "INSERT INTO ledger (generation_id, point_id, image_id, frame, op, revision) "
                "SELECT 1, gen_random_uuid(), n, 1, 'upsert', 1 FROM generate_series(1, :waiting) AS n"
            ),
            {"waiting": WAITING},
        )
    with platform.store.reading() as connection:
        connection.execute(sa.text("VACUUM ANALYZE ledger"))
    assert platform.rows_read(lambda db: sweep.ring_for_due(db, platform.effort)) < FEW
    assert Job.PROJECT in platform.queue.rung
