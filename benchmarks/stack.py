"""An embedded stack on a home of its own for a benchmark, with the model to measure."""

import http.client
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import sqlalchemy as sa

from benchmarks import processes
from services.embedded.client import Embedded
from shared import process
from shared.encoder.build import build
from shared.encoder.cards import Card
from shared.errors import Unavailable
from shared.index.base import Index
from shared.index.qdrant import QdrantStore
from shared.pipeline import lifecycle
from shared.store import generations
from shared.store.generations import Published
from shared.store.session import Store

Json = dict[str, Any]


class Connection:
    """One kept-alive connection to the API, by `http.client` because of its low overhead."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        self._headers = {"Authorization": f"Bearer {key}", "Connection": "keep-alive"}
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fetch(self, path: str, **query: object) -> bytes:
        """The body of the answer. Raises: `Unavailable` for a status of 300 or above."""
        asked = path + ("?" + urlencode(query) if query else "")
        return self._ask("GET", asked, None)

    def post(self, path: str, body: Json) -> Json:
        found: Json = json.loads(self._ask("POST", path, json.dumps(body)))
        return found

    def _ask(self, method: str, path: str, body: str | None) -> bytes:
        more = {"Content-Type": "application/json"} if body is not None else {}
        self._http.request(method, path, body, self._headers | more)
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise Unavailable(f"the API answered {answer.status} to a {method}: {content[:300].decode()}")
        return content

    def close(self) -> None:
        self._http.close()


class Stack:
    """The stack runs inside `with Stack(folder) as stack:`; `stack.use(...)` publishes a model."""

    def __init__(self, folder: Path, *, workers: int = 2, environment: dict[str, str] | None = None) -> None:
        quick = {"SIMILIS_API__RATE_PER_S": "100000", "SIMILIS_API__BURST": "100000"}  # disables the rate limit
        os.environ.update(quick | (environment or {}))  # the processes of the stack inherit these
        self.embedded = Embedded(folder / "home", workers=workers)

    def __enter__(self) -> Self:
        self.embedded.start()
        home = self.embedded.home
        self.store = Store((home / "database.url").read_text().strip())
        self.indexes = QdrantStore(
            f"unix://{home.sockets / 'vectors.sock'}",
            api_key=(home / "vectors.key").read_text().strip(),
            timeout_s=120,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.store.close()
        self.indexes.close()
        self.embedded.stop()

    def connect(self) -> Connection:
        return Connection(self.embedded.url, self.embedded.api_key)

    def use(self, name: str, architecture: str, weights: str, **ingredients: Any) -> Published:  # noqa: ANN401
        """Build this model, publish a generation of it and retire all other generations."""
        folder = self.embedded.home / "models" / name
        card = build(folder, name, architecture, weights, **ingredients)
        return self.publish(card, name)

    def publish(self, card: Card, folder: str) -> Published:
        with self.store.transaction() as db:
            model, _ = lifecycle.add_model(db, self.indexes, folder, card)
            live = generations.published(db)
            retired = sa.text("SELECT state = 'retired' FROM generation WHERE id = :id")
            if live is None or live.model_id != model.id or db.scalar(retired, {"id": live.generation_id}):
                generation = lifecycle.open_generation(db, self.indexes, model)
                generations.publish(db, generation.id)
            live = generations.published(db)
            assert live is not None  # noqa: S101 - published above
            db.execute(sa.text("UPDATE generation SET state = 'retired' WHERE id <> :id"), {"id": live.generation_id})
        return live

    def settle_down(self, timeout_s: float = 180) -> None:
        """Wait until the default model, which the stack builds during its start, exists and no work is left.

        All generations but the published one are then retired. Raises: `Unavailable` after `timeout_s`.
        """
        known = sa.text("SELECT count(*) FROM model WHERE name = 'similis-base'")
        if not process.until(lambda: self.one(known) > 0 and self.left() == 0, timeout_s, 0.2):
            raise Unavailable("the stack does not settle")
        with self.store.transaction() as db:
            live = generations.published(db)
            if live is not None:
                db.execute(
                    sa.text("UPDATE generation SET state = 'retired' WHERE id <> :id"), {"id": live.generation_id}
                )

    def index(self, live: Published) -> Index:
        return self.indexes.open(live.collection)

    def one(self, statement: sa.TextClause, **values: Any) -> Any:  # noqa: ANN401
        """The single value that a query returns."""
        with self.store.reading() as connection:
            return connection.execute(statement, values).scalar_one()

    def left(self) -> int:
        """The number of unfinished operations, images and ledger rows."""
        return int(
            self.one(
                sa.text(
                    "SELECT (SELECT count(*) FROM operation WHERE state IN ('pending', 'running')) "
                    "+ (SELECT count(*) FROM image WHERE status IN ('received', 'encoding')) "
                    "+ (SELECT count(*) FROM ledger l JOIN generation g ON g.id = l.generation_id "
                    "   WHERE l.state = 'pending' AND g.state = 'open')"
                )
            )
        )

    def scan(self, folder: Path) -> str:
        """Request a scan over HTTP; return the operation's ID."""
        connection = self.connect()
        try:
            return str(connection.post("/v1/ingest/scans", {"path": str(folder)})["id"])
        finally:
            connection.close()

    def roles(self) -> dict[str, list[int]]:
        """Process IDs by role: descendants of an ingest worker count as `sandbox`, others as their parent's role."""
        family, found = processes.children(), dict[str, list[int]]()
        for name in self.embedded.home.state.get("processes", {}):
            pid = self.embedded.pid_of(name)
            if pid is None:
                continue
            below = processes.tree(pid, family)
            found.setdefault(_role(name), []).append(pid)
            found.setdefault("sandbox" if name.startswith("worker-ingest") else _role(name), []).extend(below)
        return found

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, by role."""
        roles = self.roles()
        used = {role: sum(map(processes.cpu_s, pids)) for role, pids in roles.items()}
        for role, pids in roles.items():  # reaped children: same roles as in `roles`
            ended = sum(processes.cpu_s(pid, dead_children=True) - processes.cpu_s(pid) for pid in pids)
            heir = "sandbox" if role == "worker-ingest" else role
            used[heir] = used.get(heir, 0.0) + ended
        return used

    def at_rest(self, role: str) -> bool:
        """Whether the role's processes used less than a tenth of a core during one second without queries."""
        before = self.cpu_s().get(role, 0.0)
        time.sleep(1.0)
        return self.cpu_s().get(role, 0.0) - before < 0.1

    def idle_share(self, seconds: float = 3.0) -> float:
        """The share of the machine that the idle stack uses."""
        before, started = sum(self.cpu_s().values()), time.perf_counter()
        time.sleep(seconds)
        return (sum(self.cpu_s().values()) - before) / (time.perf_counter() - started) / (os.cpu_count() or 1)


def _role(name: str) -> str:
    return "worker-ingest" if name.startswith("worker-ingest") else name
