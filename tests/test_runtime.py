"""The objects that a runtime creates once and keeps."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.config import Database, Settings
from shared.errors import Unavailable
from shared.pipeline import lifecycle
from shared.runtime import Runtime
from shared.store import generations, pseudonyms
from shared.store.generations import Published
from tests.miniature import Platform

NAMES = ("one", "two", "three", "live")


@pytest.fixture
def platform(database_url: str, tmp_path: Path) -> Iterator[Platform]:
    """A published model, the newest, and beside it a generation of each of three others."""
    made = Platform(database_url, tmp_path)
    for seed, name in enumerate(NAMES):
        made.add_model(name, seed)
    for name in NAMES[:-1]:
        made.begin_generation(name)
    yield made
    made.close()


@pytest.fixture
def runtime(platform: Platform, database_url: str) -> Iterator[Runtime]:
    home = platform.folder
    made = Runtime(Settings(home=home, models=home / "models", database=Database(url=database_url)))
    yield made
    made.close()


def opened(platform: Platform) -> list[Published]:
    with platform.begin() as db:
        return generations.opened(db)


def test_no_batch_loads_a_model_again_however_many_are_open(platform: Platform, runtime: Runtime) -> None:
    models = opened(platform)
    loaded = [runtime.encoder(model) for model in models]
    assert [runtime.encoder(model) for model in models] == loaded


def test_a_model_makes_room_for_the_next_when_no_generation_of_it_is_open(platform: Platform, runtime: Runtime) -> None:
    models = opened(platform)
    first, second = (runtime.encoder(model) for model in models[:2])
    with platform.begin() as db:
        lifecycle.retire(db, models[1].generation_id)
    runtime.encoder(models[2])
    assert runtime.encoder(models[0]) is first
    assert runtime.encoder(models[1]) is not second


def test_a_process_with_another_pseudonym_key_than_the_database_s_does_nothing_with_it(runtime: Runtime) -> None:
    """It would take in erased images again, and assign images to wrong patients."""
    with runtime.transaction() as db:
        pseudonyms.claim(db, b"k" * 40)
    runtime.settings = runtime.settings.model_copy(update={"pseudonym_key": SecretStr("q" * 40)})
    with pytest.raises(Unavailable, match="pseudonym key"):
        runtime.rules  # noqa: B018 - the property checks the key
    runtime.settings = runtime.settings.model_copy(update={"pseudonym_key": SecretStr("k" * 40)})
    assert runtime.rules.secret == b"k" * 40
