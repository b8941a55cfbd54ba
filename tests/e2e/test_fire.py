"""A model change under load; and proof that the oracle notices a missing fence."""

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.api import present
from shared.pipeline import batch, encode
from shared.pipeline.question import Request
from shared.pipeline.search import by_studies
from shared.store import images
from tests import tiny
from tests.e2e import fire
from tests.e2e.fire import Witness, vectors
from tests.miniature import Platform


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nobody_notices_that_the_model_changes_under_fire(tmp_path: Path) -> None:
    report = fire.run(tmp_path, images=80, switches=3, seed=3, pauses_s=(1.0, 2.0))
    assert report.findings == []
    assert report.switches == 3
    assert len(report.by_model) == 2
    assert report.kills.total() >= 2
    assert report.queries > 20


def witnessed(platform: Platform, files: dict[str, Path]) -> list[str]:
    """The witness's findings for a search by each study in the published generation."""
    live = platform.published()
    witness = Witness(vectors([platform.encoder(live)], files))
    found = []
    for study in sorted({fire._study(uid) for uid in files}):
        wanted = Request(k=10, exclude=frozenset())
        with platform.store.reading() as connection:
            (ranking,) = by_studies(connection, platform.index, [study], wanted)
        found += list(witness.wrong(present.ranking(ranking, wanted, 1.0)))
    return found


def late_writer(platform: Platform) -> dict[str, Path]:
    """A worker decodes a study's images; then the files change, another worker encodes them, and the first goes on."""
    folder = platform.folder / "archive"
    files = tiny.archive(folder, 4)
    platform.scan()
    late = encode.Intake(platform.begin, platform.encoder, replace(platform.effort, batch=8, lease_s=0.0)).claim()
    stale = batch.forward(batch.decode(platform.sandbox, late), platform.encoder)
    for study in range(2):
        for image in range(2):
            tiny.write(folder / f"{study:05}-{image}.dcm", study, image, version=1)
    platform.scan()
    while (fresh := platform.intake.claim()).claimed:  # one at a time
        platform.intake.settle(fresh, batch.forward(batch.decode(platform.sandbox, fresh), platform.encoder))
    platform.intake.settle(late, stale)
    platform.project()
    return files


def test_the_witness_is_content_with_a_fenced_writer(small: Platform) -> None:
    assert witnessed(small, late_writer(small)) == []


def test_without_the_fence_the_witness_sees_the_stale_vectors(small: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = str(images._SETTLE)
    fence = "AND image.attempt = u.attempt AND image.status = 'encoding'"
    assert fence in statement
    monkeypatch.setattr(images, "_SETTLE", sa.text(statement.replace(fence, "")))
    assert witnessed(small, late_writer(small)) != []


def test_the_witness_sees_vectors_of_another_model(small: Platform) -> None:
    """As if a generation had been filled with another model's vectors."""
    files = tiny.archive(small.folder / "archive", 4)
    small.scan()
    small.encode()
    small.project()
    assert witnessed(small, files) == []
    other = small.add_model("other", seed=7)
    number = small.begin_generation("other")
    small.reindex()
    with small.begin() as db:
        db.execute(sa.text("UPDATE generation SET collection = 'swapped' WHERE id = 1"))
        db.execute(sa.text("UPDATE generation SET collection = 'g1-m1' WHERE id = :id"), {"id": number})
        db.execute(sa.text("UPDATE live SET generation_id = :id"), {"id": number})
    assert small.published().fingerprint == other.fingerprint
    assert witnessed(small, files) != []
