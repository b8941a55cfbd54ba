"""Nothing is lost or doubled, whichever process is killed; and the test fails if a guard is switched off."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared import process
from shared.pipeline import batch, encode
from shared.store import images
from tests import tiny
from tests.e2e import killing
from tests.miniature import Platform
from tests.oracle import Oracle


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_studies_survive_the_death_of_every_role(tmp_path: Path, each: int) -> None:
    kills = each * len(killing.ROLES)
    report = killing.run(tmp_path, studies=12 * kills, kills=kills, seed=20, pauses_s=(0.1, 0.8))
    assert report.findings == []
    assert report.kills == dict.fromkeys(killing.ROLES, each)
    assert report.with_lease.total() >= kills // 3


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_oracle_sees_what_dead_workers_held_until_its_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMILIS_INTAKE__LEASE_S", "100000")  # so long that leases never expire
    archive = killing.Archive(tmp_path, studies=150)
    try:
        archive.open()
        archive.scan(tmp_path / "archive")
        assert process.until(lambda: any(kind == "image" for kind, *_ in archive.leases()), 60, 0.02)
        for role in ("worker-ingest1", "worker-ingest2"):
            pid = archive.stack.pid_of(role)
            assert pid is not None
            process.kill_tree(pid)
        assert archive.come_to_rest(4.0, 60)  # other images are done; nobody takes these over
        assert any(finding.startswith("encoding: ") for finding in archive.findings())
        with archive.store.transaction() as db:
            db.execute(sa.text("UPDATE image SET lease_until = clock_timestamp() WHERE status = 'encoding'"))
        assert archive.settle(60)
        assert archive.findings() == []
    finally:
        archive.close()


def stale_writer(platform: Platform, *, taken_over: bool) -> list[str]:
    """A worker stops with a claim and goes on too late.

    Meanwhile the files have changed, and either wait to be encoded again or are leased to another worker.
    """
    folder = platform.folder / "archive"
    sent = tiny.archive(folder, 4)
    effort = replace(platform.effort, batch=8)
    platform.scan()
    stale = encode.Intake(platform.begin, platform.encoder, replace(effort, lease_s=0.0)).claim()
    late = batch.forward(batch.decode(platform.sandbox, stale), platform.encoder)
    for study in range(4):
        for image in range(2):
            tiny.write(folder / f"{study:05}-{image}.dcm", study, image, version=1)
    platform.scan()
    if taken_over:
        fresh = encode.Intake(platform.begin, platform.encoder, effort).claim()
        platform.intake.settle(stale, late)
        platform.intake.settle(fresh, batch.forward(batch.decode(platform.sandbox, fresh), platform.encoder))
    else:
        platform.intake.settle(stale, late)
        platform.encode()
    platform.project()
    live = platform.published()
    return Oracle(
        store=platform.store,
        index=platform.index(live.collection),
        sandbox=platform.sandbox,
        encoder=platform.encoder(live),
        sent=sent,
    ).findings()


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_stale_writer_is_fenced_out(small: Platform, taken_over: bool) -> None:
    assert stale_writer(small, taken_over=taken_over) == []


@pytest.mark.parametrize(
    ("guard", "taken_over"),
    [(" AND image.attempt = u.attempt", True), (" AND image.status = 'encoding'", False)],
)
def test_without_either_half_of_the_fence_the_oracle_sees_the_stale_vector(
    small: Platform, monkeypatch: pytest.MonkeyPatch, guard: str, taken_over: bool
) -> None:
    statement = str(images._SETTLE)
    assert guard in statement
    monkeypatch.setattr(images, "_SETTLE", sa.text(statement.replace(guard, "")))
    with small.begin() as db:
        db.execute(sa.text("DROP TRIGGER moves ON image"))  # it would refuse the move that the oracle must find
    assert any("another vector" in finding for finding in stale_writer(small, taken_over=taken_over))


def test_a_plan_gives_each_role_its_share() -> None:
    deck = killing.plan(30, random.Random(1))
    assert len(deck) == 30
    assert all(deck.count(role) >= 3 for role in killing.ROLES)
    assert len(killing.plan(5, random.Random(1))) == 5
