"""The default model is added automatically: once, by however many processes, and never beside a hospital's own model.

A small model replaces the shipped one, whose graph takes seconds; one test and the demo build the real graph.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.embedded import default_model
from shared.config import Settings
from shared.encoder import cards
from shared.encoder.build import build
from shared.encoder.runtime import load
from shared.errors import Invalid
from shared.index.qdrant import QdrantStore
from shared.pipeline import lifecycle
from shared.store import generations
from shared.store.session import Store

KEY = "a key of the test that is long enough to be one"


@dataclass(frozen=True)
class Site:
    """A database at the newest schema, a vectors process, and a models folder that holds a small default."""

    home: Path
    database: str
    vectors: str

    @property
    def env(self) -> dict[str, str]:
        ours = {
            "SIMILIS_HOME": str(self.home),
            "SIMILIS_DATABASE__URL": self.database,
            "SIMILIS_QDRANT__URL": self.vectors,
            "SIMILIS_QDRANT__API_KEY": KEY,
        }
        return os.environ | ours

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(
            {
                "home": self.home,
                "database": {"url": self.database},
                "qdrant": {"url": self.vectors, "api_key": KEY},
            }
        )

    def known(self) -> tuple[list[str], str | None]:
        """The names of the models, and of the published one."""
        store = Store(self.database, pool_size=1)
        try:
            with store.transaction() as db:
                live = generations.published(db)
                return [row.name for row in generations.models(db)], live and str(live.card["name"])
        finally:
            store.close()

    def ask(self) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "services.embedded.default_model"]
        return subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    (tmp_path / "key").write_text(KEY)
    socket = Path(f"/tmp/similis-{uuid.uuid4().hex[:12]}.sock")  # the path of a socket must be short
    argv = [sys.executable, "-m", "services.vectors", "--dir", str(tmp_path / "vectors")]
    argv += ["--listen", f"unix://{socket}", "--api-key-file", str(tmp_path / "key")]
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Site(tmp_path / "home", database_url, f"unix://{socket}")
    finally:
        child.terminate()
        child.wait(timeout=30)
        socket.unlink(missing_ok=True)


@pytest.fixture
def built(site: Site) -> Site:
    build(site.home / "models" / default_model.NAME, default_model.NAME, "null", "random:0", dim=32)
    return site


def test_two_processes_at_once_register_one_model_and_both_succeed(built):
    children = [built.ask(), built.ask()]
    written = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], written
    assert sorted(bool(out) for out, _ in written) == [False, True]
    assert built.known() == ([default_model.NAME], default_model.NAME)


def test_asked_again_it_does_nothing(built):
    assert default_model.ensure(built.settings) is not None
    assert default_model.ensure(built.settings) is None
    assert built.known() == ([default_model.NAME], default_model.NAME)


def test_where_a_hospital_has_brought_its_own_model_none_is_added(site):
    card = build(site.home / "models" / "ours", "ours", "null", "random:1", dim=32)
    store, indexes = Store(site.database, pool_size=1), QdrantStore(site.vectors, KEY)
    with store.transaction() as db:
        lifecycle.add_model(db, indexes, "ours", card)
    store.close()
    indexes.close()
    assert default_model.ensure(site.settings) is None
    assert site.known() == (["ours"], "ours")
    assert not (site.home / "models" / default_model.NAME).exists()


def test_at_a_first_start_the_shipped_model_is_registered_with_a_graph_of_its_own(site):
    made = default_model.ensure(site.settings)
    assert made is not None
    shipped = cards.read(default_model.SHIPPED)
    assert made.fingerprint == shipped.fingerprint
    assert (made.graph is not None, shipped.graph) == (True, None)
    assert load(site.home / "models" / default_model.NAME).card == made
    assert site.known() == (["similis-base"], "similis-base")


def test_without_a_database_it_says_what_is_missing(tmp_path):
    with pytest.raises(Invalid, match="SIMILIS_DATABASE__URL"):
        default_model.ensure(Settings(home=tmp_path))


def test_a_card_that_was_changed_is_not_registered(built):
    path = built.home / "models" / default_model.NAME / "card.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"dim": 64}))
    with pytest.raises(Invalid):
        default_model.ensure(built.settings)
    assert built.known() == ([], None)


def test_a_folder_of_models_that_takes_none_is_told(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [sys.executable, "-m", "services.embedded.default_model"]
    env = site.env | {"SIMILIS_MODELS": str(tmp_path / "file/models")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"the first model cannot be made in {tmp_path}/file/models (Not a directory)" in done.stderr
    assert "Traceback" not in done.stderr
