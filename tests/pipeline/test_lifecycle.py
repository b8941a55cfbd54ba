import pytest

from shared.errors import Conflict
from shared.store import generations
from tests.miniature import Platform


def live(platform: Platform) -> generations.Published:
    with platform.begin() as db:
        found = generations.published(db)
    assert found is not None
    return found


def test_the_first_model_is_published_with_a_generation(platform: Platform) -> None:
    card = platform.add_model()
    assert live(platform).fingerprint == card.fingerprint
    assert platform.index(live(platform).collection).spec.dim == card.dim


def test_before_anything_is_encoded_a_newer_model_takes_its_place(platform: Platform) -> None:
    platform.add_model()
    better = platform.add_model("better", seed=3, dim=32)
    assert live(platform).fingerprint == better.fingerprint
    platform.take_in(4)
    with platform.begin() as db:
        assert [p.fingerprint for p in generations.opened(db)] == [better.fingerprint]


def test_once_something_is_encoded_the_published_model_stays(platform: Platform) -> None:
    first = platform.add_model()
    platform.take_in(4)
    platform.add_model("later", seed=3, dim=32)
    assert live(platform).fingerprint == first.fingerprint


def test_adding_the_same_model_twice_changes_nothing(platform: Platform) -> None:
    card = platform.add_model()
    before = live(platform)
    with platform.begin() as db:
        from shared.pipeline import lifecycle

        lifecycle.add_model(db, platform.indexes, "null", card)
    assert live(platform).generation_id == before.generation_id


def test_a_name_belongs_to_one_model(platform: Platform) -> None:
    card = platform.add_model()
    with pytest.raises(Conflict), platform.begin() as db:
        generations.add_model(db, fingerprint="f" * 64, name=card.name, folder="x", card={})


def test_the_published_generation_cannot_be_retired(platform: Platform) -> None:
    platform.add_model()
    with pytest.raises(Conflict), platform.begin() as db:
        generations.retire(db, live(platform).generation_id)


def test_whoever_changes_the_card_that_was_read_changes_it_for_nobody_else(platform: Platform) -> None:
    card = platform.add_model()
    found = live(platform)
    found.card["recipe"]["size"] = 1
    assert found.card == live(platform).card
    assert found.card["recipe"] == card.recipe.to_json()
