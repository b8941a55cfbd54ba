"""A preview of a replay is limited in time, and reports how many images it has not looked at."""

from shared.pipeline import replay
from shared.pipeline.judge import Standard
from shared.store import generations
from tests.miniature import Platform


def preview(platform: Platform, within_s: float) -> replay.Plan:
    with platform.begin() as db:
        model = generations.model(db, "null")
        return replay.plan(db, model, "MG", Standard(0, 0.5), within_s=within_s)


def test_a_preview_ends_in_time_and_says_that_it_is_not_whole(platform: Platform) -> None:
    platform.add_model()
    platform.take_in(12)
    whole = preview(platform, 60)
    assert (whole.complete, sum(whole.counts.values())) == (True, 12)
    cut = preview(platform, 0.0)
    assert cut.complete is False
    assert sum(cut.counts.values()) < 12
