"""A change of model on the real stack during intake, an erasure and kills of workers: no search fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from services.embedded.client import Embedded
from tests import tiny
from tests.e2e.test_end_to_end import similis

STUDIES = 16

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


class Asking:
    """A client that searches without a pause, and records faulty answers."""

    def __init__(self, stack: Embedded) -> None:
        self.url, self.headers = stack.url, {"Authorization": f"Bearer {stack.api_key}"}
        self.wrong: list[tuple[Any, ...]] = []
        self.answered: set[tuple[int, str]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=30) as client:
            while not self._over.wait(0.05):
                answer = client.get("/v1/studies/1.2.826.0.1.3680043.8.1/similar?k=200")
                if answer.status_code != 200:
                    self.wrong.append((answer.status_code, answer.text))
                    continue
                body = answer.json()
                self.answered.add((body["generation"], body["model"]["name"]))
                # all but the two studies of the query's patient, and the erased one
                if len(body["studies"]) < STUDIES - 3:
                    self.wrong.append(("a study vanished", body["generation"], len(body["studies"])))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("fire")
    made = Embedded(folder / "home", workers=2)
    made.start()
    tiny.archive(folder / "archive", STUDIES)
    for name, seed in (("first", 0), ("second", 5)):
        command(made.home.path, "models", "make", name, "--architecture", "null", "--weights", f"random:{seed}")
    command(made.home.path, "models", "add", str(folder / "home" / "models" / "first"))
    yield made
    made.stop()


def command(home: Path, *words: str) -> None:
    env = {**os.environ, "SIMILIS_HOME": str(home), "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-m", "services.cli.main", *words], env=env, check=True, capture_output=True)


def test_nobody_notices_that_the_model_changes(stack: Embedded) -> None:
    home, archive = stack.home.path, stack.home.path.parent / "archive"
    assert similis(home, "ingest", str(archive), "--json")["state"] == "succeeded"
    command(home, "models", "add", str(home / "models" / "second"))
    (first,) = (one["id"] for one in similis(home, "generations", "list", "--json")["generations"] if one["live"])
    with Asking(stack) as asking:
        second = similis(home, "generations", "create", "second", "--scale", "exact", "--throttle", "20", "--json")[
            "id"
        ]
        tiny.archive(archive, 6, first=STUDIES)
        similis(home, "ingest", str(archive), "--no-wait", "--json")
        for name in ("worker-ingest1", "worker-reindex", "worker-index"):
            if (pid := stack.pid_of(name)) is not None:
                os.kill(pid, signal.SIGKILL)
        gone = similis(home, "erase", "--study", "1.2.826.0.1.3680043.8.7", "--yes", "--json")
        assert gone["state"] == "succeeded"
        done = similis(home, "generations", "show", str(second), "--follow", "--json")
        assert (done["state"], done["images"]["exceptions"], done["recall"]["recall"]) == ("ready", 0, 1.0)
        assert similis(home, "ingest", str(archive), "--json")["state"] == "succeeded"
        for leave in (("publish", str(second)), ("rollback",), ("rollback",), ("retire", str(first), "--force")):
            command(home, "generations", *leave)
    assert asking.wrong == []
    assert asking.answered == {(first, "first"), (second, "second")}
    # images of a killed worker are encoded once its lease has expired, even if a scan met them meanwhile
    shown = similis(home, "generations", "show", str(second), "--json")
    until = time.monotonic() + 60
    while shown["images"]["covered"] < 2 * (STUDIES + 6 - 1) and time.monotonic() < until:
        time.sleep(1)
        shown = similis(home, "generations", "show", str(second), "--json")
    assert shown["images"]["covered"] == shown["index"]["points"] == 2 * (STUDIES + 6 - 1)
