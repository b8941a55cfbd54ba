"""A small platform for tests: real Postgres, the in-memory index, the null encoder, a sandbox without a child."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.encoder.base import Encoder
from shared.encoder.build import build
from shared.encoder.cards import Card
from shared.encoder.runtime import load
from shared.errors import Rejected, Unavailable
from shared.imaging.answers import Inspected
from shared.imaging.recipe import Recipe
from shared.index.base import Index
from shared.index.memory import MemoryStore
from shared.pipeline import catchup, encode, lifecycle, project, reindex, scan
from shared.pipeline.encode import Effort
from shared.pipeline.receive import Rules
from shared.queue import MemoryQueue
from shared.store import generations, operations
from shared.store.generations import Published
from shared.store.session import Store
from shared.types import Decoded, Header, PixelStats

SECRET = b"a test's own secret, 32 bytes long"
STATS = PixelStats(spread=0.8, distinct=500, content=0.7, noise=0.1)


def header(n: int, **more: Any) -> Header:
    """Header of image `n`: four images per study, two studies per patient."""
    study, patient = n // 4, n // 8
    view, side = (("CC", "L"), ("CC", "R"), ("MLO", "L"), ("MLO", "R"))[n % 4]
    fields: dict[str, Any] = {
        "sop_instance_uid": f"1.2.3.{n + 1}",
        "study_instance_uid": f"1.2.4.{study + 1}",
        "series_instance_uid": f"1.2.5.{study + 1}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "modality": "MG",
        "view": view,
        "laterality": side,
        "patient_id": f"WOMAN-{patient}",
        "rows": 64,
        "columns": 64,
    }
    return Header(**fields | more)


@dataclass
class FakeSandbox:
    """Answers from tables by path: headers, and refusals of pixels."""

    headers: dict[bytes, Header | Rejected] = field(default_factory=dict)
    content: dict[bytes, bytes] = field(default_factory=dict)
    pixels: dict[bytes, Rejected] = field(default_factory=dict)
    kinds: dict[bytes, str] = field(default_factory=dict)
    stats: PixelStats = STATS
    decoded: list[bytes] = field(default_factory=list)

    def inspect_many(self, paths: Sequence[Path]) -> list[Inspected | Rejected]:
        return [self._inspect(os.fsencode(path)) for path in paths]

    def _inspect(self, path: bytes) -> Inspected | Rejected:
        what = self.headers[path]
        if isinstance(what, Rejected):
            return what
        digest = sha256(self.content.get(path, path)).digest()
        return Inspected(header=what, digest=digest, kind=self.kinds.get(path, "dicom"))

    def decode_many(self, paths: Sequence[Path], recipe: Recipe) -> Generator[Decoded | Rejected]:
        for path in paths:
            name = os.fsencode(path)
            self.decoded.append(name)
            if name in self.pixels:
                yield self.pixels[name]
            else:
                yield self._decoded(name, recipe)

    def _decoded(self, name: bytes, recipe: Recipe) -> Decoded:
        what = self.headers[name]
        assert isinstance(what, Header)
        seed = int.from_bytes(sha256(self.content.get(name, name)).digest()[:4])
        count = min(what.frames, recipe.frames)
        pixels = np.random.default_rng(seed).random((count, recipe.size, recipe.size), np.float32)
        return Decoded(
            header=what,
            frames=tuple(range(1, count + 1)),
            pixels=pixels,
            thumbnail=(pixels[0] * 255).astype(np.uint8),
            stats=self.stats,
        )


class Platform:
    """A small platform for one test."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.store = Store(url)
        self.queue = MemoryQueue()
        self.indexes = MemoryStore()
        self.sandbox = FakeSandbox()
        self.rules = Rules(secret=SECRET)
        self.effort = Effort(batch=4, lease_s=5)
        self.loaded: dict[str, Encoder] = {}

    def begin(self) -> Any:
        return self.store.transaction(self.queue.ring)

    def rows_read(self, act: Callable[[Session], object]) -> int:
        so_far = sa.text(
            "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
        )
        with self.begin() as db:
            before: int = db.execute(so_far).scalar_one()
            act(db)
            after: int = db.execute(so_far).scalar_one()
        return after - before

    def add_model(self, name: str = "null", seed: int = 0, dim: int = 64) -> Card:
        card = build(self.folder / "models" / name, name, "null", f"random:{seed}", dim=dim)
        with self.begin() as db:
            lifecycle.add_model(db, self.indexes, name, card)
        return card

    def encoder(self, model: Published) -> Encoder:
        if model.fingerprint not in self.loaded:
            self.loaded[model.fingerprint] = load(self.folder / "models" / model.folder)
        return self.loaded[model.fingerprint]

    def index(self, collection: str) -> Index:
        return self.indexes.open(collection)

    def all_but(self, silent: str) -> Callable[[str], Index]:
        """Opens collections; the engine of this one does not answer."""

        def opened(name: str) -> Index:
            if name == silent:
                raise Unavailable("the index does not answer")
            return self.index(name)

        return opened

    def put(self, name: str, what: Header | Rejected, content: bytes | None = None) -> Path:
        """Write a file to the archive; its bytes are `content` or its name, so they do not depend on the folder."""
        path = self.folder / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content or name.encode())
        self.sandbox.headers[os.fsencode(path)] = what
        self.sandbox.content[os.fsencode(path)] = content or name.encode()
        return path

    def scan(self, table: Any = None, progress: scan.Progress | None = None, **rules: Any) -> scan.Progress:
        return scan.scan(
            self.begin,
            self.sandbox,
            self.folder / "archive",
            table=table,
            rules=replace(self.rules, **rules),
            operation_id=None,
            report=lambda _db, _progress: True,
            progress=progress,
        )

    @property
    def intake(self) -> encode.Intake:
        return encode.Intake(self.begin, self.encoder, self.effort)

    def encode(self) -> int:
        return encode.drain(self.begin, self.sandbox, self.encoder, self.effort)

    def project(self) -> int:
        return project.drain(self.begin, self.index, gather_s=0)[0]

    def begin_generation(self, model: str = "null", **choices: Any) -> int:
        """Open an unfilled generation beside the live one; return its number."""
        with self.begin() as db:
            row = generations.model(db, model)
            return lifecycle.begin_generation(db, self.indexes, row, **choices).id

    def reindex(self, rounds: int = 12, **how: Any) -> None:
        """Run the workers until all builds have ended or are stuck."""
        for _ in range(rounds):
            with self.begin() as db:  # skips the rest between two steps
                db.execute(sa.text("UPDATE operation SET not_before = NULL"))
                due = operations.due(db, "reindex")
            reindex.advance(self.begin, self.index, **how)
            busy = catchup.drain(self.begin, self.sandbox, self.encoder, self.effort) + self.project()
            if not due and not busy:
                return

    def published(self) -> Published:
        with self.begin() as db:
            found = generations.published(db)
        assert found is not None
        return found

    def wait_until_blocked(self, count: int) -> None:
        """Wait until so many connections wait for a lock."""
        blocked = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with self.store.reading() as connection:
                if connection.execute(blocked).scalar_one() == count:
                    return
            time.sleep(0.01)
        raise AssertionError("nobody waits for the lock")

    def take_in(self, count: int) -> None:
        """Ingest `count` images until they are searchable."""
        for n in range(count):
            self.put(f"{n:04}.dcm", header(n))
        self.scan()
        self.encode()
        self.project()

    def close(self) -> None:
        self.store.close()
