import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from shared.encoder.base import Encoded, Encoder
from shared.errors import Gate, Invalid, NotFound, Outcome, Rejected, Unavailable
from shared.imaging.answers import Inspected
from shared.imaging.reasons import Reason, failed, undecodable
from shared.imaging.recipe import Recipe
from shared.pipeline import batch, encode
from shared.store import checks, images
from shared.store.session import Store
from shared.types import Decoded, Job, Status, point_id
from tests.miniature import STATS, FakeSandbox, Platform, header

ROOT = Path(__file__).resolve().parents[2]


def statuses(platform: Platform) -> dict[str, int]:
    with platform.store.reading() as connection:
        return images.statuses(connection)


def ledger(platform: Platform) -> list[tuple[str, str, int]]:
    with platform.store.reading() as connection:
        return [
            tuple(row) for row in connection.execute(sa.text("SELECT op, state, count(*) FROM ledger GROUP BY 1, 2"))
        ]


def test_without_a_model_images_wait(platform: Platform) -> None:
    platform.take_in(4)
    assert statuses(platform) == {"received": 4}


def test_images_become_encodings_and_ledger_rows(platform: Platform) -> None:
    platform.add_model()
    for n in range(10):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    assert platform.encode() == 10
    assert statuses(platform) == {"encoded": 10}
    assert ledger(platform) == [("upsert", "pending", 10)]
    assert Job.PROJECT in platform.queue.rung


def test_evenly_spaced_frames_are_points_of_their_own(platform: Platform) -> None:
    platform.add_model()
    platform.put("cine.dcm", header(0, frames=3))
    platform.scan()
    platform.encode()
    with platform.store.reading() as connection:
        points = set(connection.execute(sa.text("SELECT point_id FROM ledger")).scalars())
    assert points == {point_id("1.2.3.1", frame) for frame in (1, 2, 3)}


def test_one_bad_file_never_stops_a_batch(platform: Platform) -> None:
    platform.add_model()
    for n in range(4):
        path = platform.put(f"{n}.dcm", header(n))
        if n == 1:
            platform.sandbox.pixels[os.fsencode(path)] = undecodable(Reason.CORRUPT)
    platform.scan()
    with capture_logs() as told:
        platform.encode()
    assert statuses(platform) == {"encoded": 3, "quarantined": 1}
    (line,) = [line for line in told if line["event"] == "images_stopped"]
    assert (line["outcome"], line["gate"], line["reason"], line["count"]) == (
        "quarantined",
        "decode",
        "corrupt-pixel-data",
        1,
    )


def test_a_gate_stops_an_image_and_keeps_its_picture_for_review(platform: Platform) -> None:
    platform.add_model()
    platform.put("blank.dcm", header(0))
    platform.sandbox.stats = replace(STATS, spread=0.0, distinct=1, content=0.0)
    platform.scan()
    platform.encode()
    with platform.store.reading() as connection:
        row = connection.execute(sa.text("SELECT status, gate, reason FROM image")).one()
        thumbnails = connection.execute(sa.text("SELECT count(*) FROM thumbnail")).scalar_one()
    assert tuple(row) == ("quarantined", "pixels", "blank")
    assert thumbnails == 1
    assert ledger(platform) == []


def test_raw_detector_data_is_kept_out_with_its_reason(platform: Platform) -> None:
    platform.add_model()
    platform.put("raw.dcm", header(0, presentation_intent="FOR PROCESSING"))
    platform.scan()
    platform.encode()
    with platform.store.reading() as connection:
        row = connection.execute(sa.text("SELECT status, gate, reason FROM image")).one()
    assert tuple(row) == ("quarantined", "metadata", "for-processing")


def test_a_share_that_is_away_costs_a_wait_and_no_image(platform: Platform) -> None:
    platform.add_model()
    for n in range(9):  # several batches
        platform.sandbox.pixels[os.fsencode(platform.put(f"{n}.dcm", header(n)))] = failed(Reason.UNREADABLE)
    platform.scan()
    with capture_logs() as told:
        platform.encode()
    waits = [line for line in told if line["event"] == "images_put_back"]
    assert [(line["log_level"], line["reason"], line["count"]) for line in waits] == [("warning", "unreadable-file", 9)]
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET received_at = received_at - interval '1 hour'"))
        count, oldest_s = images.due(db)
    assert (count, (oldest_s or 0) >= 3600) == (0, True), "it rests, and has waited since it came"
    assert statuses(platform) == {"received": 9}
    platform.sandbox.pixels.clear()
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET not_before = NULL"))
    platform.encode()
    assert statuses(platform) == {"encoded": 9}


def test_images_of_a_share_that_stalls_are_given_back(platform: Platform) -> None:
    platform.add_model()
    names = ("0-dead", "1-good", "2-dead")
    for n, name in enumerate(names):
        path = os.fsencode(platform.put(name, header(n)))
        if "dead" in name:
            platform.sandbox.pixels[path] = failed(Reason.STALLED)
    platform.scan()
    platform.encode()
    with platform.store.reading() as connection:
        found = connection.execute(
            sa.text("SELECT status, last_error, failures, not_before > clock_timestamp() FROM image ORDER BY id")
        ).all()
    given_back, encoded = ("received", "share-stalled", 0, True), ("encoded", None, 0, None)
    assert [tuple(row) for row in found] == [encoded if "good" in name else given_back for name in names]


def test_one_file_that_stalls_holds_no_other_back(platform: Platform) -> None:
    platform.add_model()
    paths = [os.fsencode(platform.put(f"{n}.dcm", header(n))) for n in range(3)]
    platform.sandbox.pixels[paths[0]] = failed(Reason.STALLED)
    platform.scan()
    platform.encode()
    assert statuses(platform) == {"received": 1, "encoded": 2}


def test_an_image_that_no_longer_belongs_leaves_the_index(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(1)
    platform.sandbox.pixels[os.fsencode(platform.put("0000.dcm", header(0), b"damaged now"))] = Rejected(
        Outcome.QUARANTINED, Reason.CORRUPT.value, Gate.DECODE
    )
    platform.scan()
    platform.encode()
    assert ledger(platform) == [("delete", "pending", 1)]
    platform.project()
    with platform.begin() as db:
        collection = db.execute(sa.text("SELECT collection FROM generation")).scalar_one()
    assert platform.index(collection).count() == 0


def test_other_bytes_replace_the_vector(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(1)
    with platform.begin() as db:
        collection = db.execute(sa.text("SELECT collection FROM generation")).scalar_one()
    point = point_id("1.2.3.1", 1)
    before = platform.index(collection).get([point])[0]
    platform.put("0000.dcm", header(0), b"another picture")
    platform.scan()
    platform.encode()
    platform.project()
    after = platform.index(collection).get([point])[0]
    assert after.payload["revision"] == 2
    assert not np.allclose(before.vector, after.vector)


def test_frames_that_are_no_longer_chosen_leave_the_index(platform: Platform) -> None:
    platform.add_model()
    platform.put("cine.dcm", header(0, frames=3))
    platform.scan()
    platform.encode()
    platform.project()
    platform.put("cine.dcm", header(0, frames=1), b"cut to one frame")
    platform.scan()
    platform.encode()
    platform.project()
    with platform.begin() as db:
        collection = db.execute(sa.text("SELECT collection FROM generation")).scalar_one()
    assert platform.index(collection).count() == 1


class Broken:
    """An encoder that fails on batches and on one image."""

    def __init__(self, inner: Encoder, error: type[Exception]) -> None:
        self.inner, self.error, self.card = inner, error, inner.card

    def encode(self, pixels: np.ndarray) -> Encoded:
        if len(pixels) > 1 or float(pixels[0, 0, 0]) == 0.5:
            raise self.error("the reason is not to be told")
        return self.inner.encode(pixels)


@pytest.mark.parametrize(("error", "status"), [(Invalid, "failed"), (MemoryError, "received")])
def test_each_image_answers_for_itself_when_a_forward_pass_fails(
    platform: Platform, error: type[Exception], status: str
) -> None:
    platform.add_model()
    for n in range(3):
        platform.put(f"{n}.dcm", header(n))
    bad = platform._mark = os.fsencode(platform.folder / "archive" / "1.dcm")  # type: ignore[attr-defined]
    platform.scan()
    real = platform.sandbox._decoded

    def decoded(name: bytes, recipe: Recipe) -> Decoded:
        one = real(name, recipe)
        if name == bad:
            one.pixels[0, 0, 0] = 0.5
        return one

    platform.sandbox._decoded = decoded  # type: ignore[method-assign]
    encode.drain(
        platform.begin, platform.sandbox, lambda model: Broken(platform.encoder(model), error), platform.effort
    )
    assert statuses(platform) == {"encoded": 2, status: 1}


class Died(BaseException):
    """The process was killed; nothing catches this."""


class Fatal:
    """An encoder whose process is killed by one picture."""

    def __init__(self, inner: Encoder, pixel: float) -> None:
        self.inner, self.pixel, self.card = inner, pixel, inner.card

    def encode(self, pixels: np.ndarray) -> Encoded:
        if (pixels[:, 0, 0] == self.pixel).any():
            raise Died
        return self.inner.encode(pixels)


def test_an_image_of_which_workers_die_takes_no_other_with_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.add_model()
    for n in range(12):
        path = os.fsencode(platform.put(f"{n:02}.dcm", header(n)))
        if n == 1:
            fatal = float(platform.sandbox._decoded(path, batch.recipe_of(platform.published())).pixels[0, 0, 0])
    platform.scan()
    monkeypatch.setattr(encode.Intake, "give_back", lambda *_: None)  # a killed worker releases nothing
    deaths = 0
    while "received" in statuses(platform) or "encoding" in statuses(platform):
        try:
            encode.drain(
                platform.begin, platform.sandbox, lambda model: Fatal(platform.encoder(model), fatal), platform.effort
            )
        except Died:
            deaths += 1
        with platform.begin() as db:
            db.execute(sa.text("UPDATE image SET lease_until = '-infinity' WHERE status = 'encoding'"))
            images.exhaust(db, platform.effort.max_failures)
    assert deaths == platform.effort.max_failures
    assert statuses(platform) == {"encoded": 11, "failed": 1}
    with platform.store.reading() as connection:
        assert connection.execute(sa.text("SELECT max(failures) FROM image WHERE status = 'encoded'")).scalar_one() == 1


def test_what_is_given_up_is_found_no_more_by_its_old_bytes(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(2)
    platform.put("0000.dcm", header(0), b"other bytes, of which workers die")
    platform.scan()
    fading = replace(platform.intake, effort=replace(platform.effort, lease_s=0.0))
    for attempt in range(platform.effort.max_failures):
        assert fading.claim().alone is (attempt > 0)
    platform.encode()
    platform.project()
    assert statuses(platform) == {"encoded": 1, "failed": 1}
    assert sorted(ledger(platform)) == [("delete", "applied", 1), ("upsert", "applied", 1)]
    with platform.store.reading() as connection:
        for table in ("encoding", "thumbnail"):
            assert connection.execute(sa.text(f"SELECT image_id FROM {table}")).scalars().all() == [2]


def test_nothing_that_was_left_behind_is_read_beside_another_batch(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.add_model()
    for n in range(12):
        platform.put(f"{n:02}.dcm", header(n))
    platform.scan()
    with platform.begin() as db:
        last = "(SELECT max(id) FROM image)"
        db.execute(sa.text(f"UPDATE image SET status = 'encoding', lease_until = '-infinity' WHERE id = {last}"))
    held: list[list[bool]] = []
    taking = encode.Holding.take

    def take(self: encode.Holding, work: batch.Work) -> None:
        taking(self, work)
        held.append([c.left_behind for one in self.works() for c in one.claimed])

    monkeypatch.setattr(encode.Holding, "take", take)
    encode.drain(platform.begin, platform.sandbox, platform.encoder, replace(platform.effort, batch=4), budget_s=60.0)
    platform.encode()
    assert statuses(platform) == {"encoded": 12}
    assert [True] in held
    assert all(not any(together) for together in held if len(together) > 1)


def test_an_image_that_fails_waits_by_how_often_it_has_failed_since_it_was_retried(platform: Platform) -> None:
    platform.add_model()
    platform.put("cine.dcm", header(0, frames=3))  # refused by the encoder below, also alone
    platform.scan()
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET attempt = 9"))
    waits = []
    for _ in range(3):
        work = platform.intake.claim()
        decoded = batch.decode(platform.sandbox, work)
        result = batch.forward(decoded, lambda model: Broken(platform.encoder(model), MemoryError))
        waits += [verdict.retry_after_s for verdict in result.verdicts]
        platform.intake.settle(work, result)
        with platform.begin() as db:
            db.execute(sa.text("UPDATE image SET not_before = NULL"))
    assert waits == [batch.RETRY_S, 2 * batch.RETRY_S, 4 * batch.RETRY_S]


def test_a_share_that_is_away_is_waited_for_by_how_often_it_was_since_the_image_was_last_settled(
    platform: Platform,
) -> None:
    platform.add_model()
    path = os.fsencode(platform.put("a.dcm", header(0)))
    platform.scan()

    def waits() -> list[float | None]:
        platform.sandbox.pixels[path] = failed(Reason.UNREADABLE)
        found = []
        for _ in range(3):
            work = platform.intake.claim()
            result = batch.forward(batch.decode(platform.sandbox, work), platform.encoder)
            found += [verdict.retry_after_s for verdict in result.verdicts]
            platform.intake.settle(work, result)
            with platform.begin() as db:
                db.execute(sa.text("UPDATE image SET not_before = NULL"))
        del platform.sandbox.pixels[path]
        return found

    assert waits() == [batch.RETRY_S, 2 * batch.RETRY_S, 4 * batch.RETRY_S]
    for _ in range(7):
        platform.encode()
        with platform.begin() as db:
            checks.encode_again(db, [1])
    assert waits() == [batch.RETRY_S, 2 * batch.RETRY_S, 4 * batch.RETRY_S]


def test_work_that_was_lost_to_another_worker_writes_nothing(platform: Platform) -> None:
    platform.add_model()
    platform.put("a.dcm", header(0))
    platform.scan()
    work = encode.Intake(platform.begin, platform.encoder, replace(platform.effort, lease_s=0.0)).claim()
    batch.decode(platform.sandbox, work)
    result = batch.forward(work, platform.encoder)
    with platform.begin() as db:
        images.claim(db, limit=10, lease_s=30, max_failures=3)
    assert platform.intake.settle(work, result) == 0
    assert ledger(platform) == []
    assert statuses(platform) == {Status.ENCODING.value: 1}


def test_every_open_generation_is_told(platform: Platform) -> None:
    platform.add_model()
    card = platform.add_model("second", seed=7, dim=32)
    with platform.begin() as db:
        model = encode.generations.model(db, card.name)
        encode.generations.add(db, model.id, {"dim": 32, "metric": "cosine"})
    platform.put("a.dcm", header(0))
    platform.scan()
    platform.encode()
    assert ledger(platform) == [("upsert", "pending", 2)]


def test_a_worker_that_cannot_load_a_model_claims_nothing(platform: Platform) -> None:
    platform.add_model()
    platform.put("a.dcm", header(0))
    platform.scan()

    def missing(_model: object) -> Encoder:
        raise NotFound("there is no such card here")

    with pytest.raises(NotFound):
        encode.drain(platform.begin, platform.sandbox, missing, platform.effort)
    assert statuses(platform) == {"received": 1}


def test_what_is_held_when_an_error_ends_it_is_given_back(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.add_model()
    for n in range(12):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()

    def away(*_: object) -> None:
        raise Unavailable("the connection to the database was lost")

    with monkeypatch.context() as patched, pytest.raises(Unavailable):
        patched.setattr(encode.encodings, "save", away)
        platform.encode()
    assert statuses(platform) == {"received": 12}
    platform.encode()
    assert statuses(platform) == {"encoded": 12}


def test_labels_that_change_while_an_image_is_encoded_cost_no_claim(platform: Platform) -> None:
    platform.add_model()
    platform.put("a.dcm", header(0))
    platform.scan()
    work = platform.intake.claim()
    result = batch.forward(batch.decode(platform.sandbox, work), platform.encoder)
    with platform.begin() as db:
        db.execute(sa.text("UPDATE image SET birads = 4, revision = revision + 1"))
    assert platform.intake.settle(work, result) == 1
    with platform.store.reading() as connection:
        assert connection.execute(sa.text("SELECT revision FROM ledger")).scalar_one() == 2


def test_a_share_that_is_away_for_long_fails_no_image(platform: Platform) -> None:
    platform.add_model()
    path = os.fsencode(platform.put("a.dcm", header(0)))
    platform.sandbox.pixels[path] = failed(Reason.UNREADABLE)
    platform.scan()
    for _ in range(12):
        platform.encode()
        with platform.begin() as db:
            db.execute(sa.text("UPDATE image SET not_before = NULL"))
    assert statuses(platform) == {"received": 1}


def test_files_that_take_long_one_after_the_other_are_no_standstill(platform: Platform) -> None:
    platform.add_model()
    for n in range(3):
        platform.put(f"{n}.dcm", header(n))
    platform.scan()
    work = platform.intake.claim()
    assert not work.read
    moments = []

    def slow(paths: Sequence[Path], recipe: Recipe) -> Iterator[Decoded | Rejected]:
        for path in paths:
            work.moved = 0.0
            yield from FakeSandbox.decode_many(platform.sandbox, [path], recipe)
            moments.append(work.moved)

    platform.sandbox.decode_many = slow  # type: ignore[method-assign]
    assert batch.decode(platform.sandbox, work).read
    assert len(moments) == 3
    assert 0.0 not in moments


def test_files_that_are_looked_at_again_one_after_the_other_are_no_standstill(platform: Platform) -> None:
    platform.add_model()
    paths = [platform.put(f"{n}.dcm", header(n)) for n in range(3)]
    platform.scan()
    for path in paths:
        os.utime(path, ns=(0, 10**18))
    work = platform.intake.claim()
    moments = []

    def slow(paths: Sequence[Path]) -> list[Inspected | Rejected]:
        moments.append(work.moved)
        work.moved = 0.0
        return FakeSandbox.inspect_many(platform.sandbox, paths)

    platform.sandbox.inspect_many = slow  # type: ignore[method-assign]
    batch.decode(platform.sandbox, work)
    assert len(moments) == 3
    assert 0.0 not in moments


WEDGED = """
import os, sys
from dataclasses import replace
from pathlib import Path

from shared.pipeline import catchup, encode
from tests.miniature import Platform, header

url, folder, stage, never = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
platform = Platform(url, folder)
platform.add_model()
platform.put("a.dcm", header(0))
if stage == "beside":
    platform.put("b.dcm", header(1))
platform.scan()
drain = encode.drain
if stage == "catch-up":
    drain = catchup.drain
    platform.encode()
    platform.project()
    platform.add_model("second", seed=7)
    platform.begin_generation("second")
    with platform.begin() as db:
        catchup.catchup.fill(db, 2, [1])

def stuck(*_):
    open(never)  # a pipe without a writer, as a share that does not answer

if stage in ("forward", "beside"):
    platform.encoder(platform.published()).encode = stuck
else:
    platform.sandbox.decode_many = stuck
effort = replace(platform.effort, batch=1, lease_s=1.0, wedged_s=2.0)
drain(platform.begin, platform.sandbox, platform.encoder, effort)
"""


@pytest.mark.parametrize(
    ("stage", "row"),
    [
        ("reading", "SELECT status = 'received', last_error, failures, not_before > clock_timestamp() FROM image"),
        ("catch-up", "SELECT state = 'due', last_error, failures, not_before > clock_timestamp() FROM catch_up"),
    ],
    ids=["of a new image", "of one to catch up with"],
)
def test_a_worker_that_gives_up_on_a_share_holds_it_against_no_image(
    database_url: str, tmp_path: Path, stage: str, row: str
) -> None:
    assert wedged(database_url, tmp_path, stage, row) == (True, "unreadable-file", 0, True)


def test_a_worker_that_gives_up_on_a_forward_pass_leaves_its_images_to_be_counted(
    database_url: str, tmp_path: Path
) -> None:
    row = "SELECT status = 'encoding', last_error, failures, lease_until IS NULL FROM image"
    assert wedged(database_url, tmp_path, "forward", row) == (True, None, 0, False)


def test_what_was_read_ahead_meanwhile_is_given_back(database_url: str, tmp_path: Path) -> None:
    row = "SELECT status = 'received', last_error, failures, lease_until IS NULL FROM image ORDER BY id DESC LIMIT 1"
    assert wedged(database_url, tmp_path, "beside", row) == (True, None, 0, True)


def wedged(url: str, folder: Path, stage: str, row: str) -> tuple[object, ...]:
    """Run a worker that hangs at this stage; return the row of the image."""
    never = folder / "never"
    os.mkfifo(never)
    done = subprocess.run([sys.executable, "-c", WEDGED, url, folder, stage, never], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 70
    store = Store(url)
    try:
        with store.reading() as connection:
            return tuple(connection.execute(sa.text(row)).one())
    finally:
        store.close()
