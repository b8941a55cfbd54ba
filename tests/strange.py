"""Pictures of chosen brightness, and a model whose score is the mean brightness.

Its embeddings do not depend on brightness, so the two votes of gate 3 can be told apart.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.encoder.base import Encoded, Encoder
from shared.imaging.recipe import Recipe
from shared.pipeline import replay, thresholds
from shared.store import generations, operations
from shared.store.generations import Published
from shared.store.reviews import Actor
from shared.store.tables import Operation
from shared.types import Decoded, Pixels
from tests.miniature import FakeSandbox, Platform, header

ANNA, BORIS = Actor("Anna", 1), Actor("Boris", 2)


@dataclass
class BrightSandbox(FakeSandbox):
    """Random pictures of mean 0.5; those in `brightness` have that mean instead."""

    brightness: dict[bytes, float] = field(default_factory=dict)

    def _decoded(self, name: bytes, recipe: Recipe) -> Decoded:
        one = super()._decoded(name, recipe)
        level = self.brightness.get(name)
        return one if level is None else replace(one, pixels=(one.pixels * 0.1 + level - 0.05).astype(np.float32))


class Measuring:
    """The null encoder on contrast-stretched pictures; the score is the mean of the original picture."""

    def __init__(self, inner: Encoder) -> None:
        self.inner, self.card = inner, inner.card

    def encode(self, pixels: Pixels) -> Encoded:
        low, high = pixels.min((1, 2), keepdims=True), pixels.max((1, 2), keepdims=True)
        stretched = np.clip((pixels - low) / np.maximum(high - low, 1e-6), 0, 1)
        return replace(self.inner.encode(stretched.astype(np.float32)), ood=pixels.mean((1, 2)))


class Bright(Platform):
    """A platform whose models measure brightness."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.sandbox: BrightSandbox = BrightSandbox()

    def encoder(self, model: Published) -> Encoder:
        return Measuring(super().encoder(model))

    def paint(self, n: int, level: float | None = None, **more: object) -> None:
        """Put image `n` into the archive, with this brightness."""
        path = os.fsencode(self.put(f"{n:04}.dcm", header(n, **more)))
        if level is not None:
            self.sandbox.brightness[path] = level

    def take(self) -> None:
        self.scan()
        self.encode()
        self.project()

    def column(self, statement: str, **values: object) -> list[object]:
        with self.store.reading() as connection:
            return list(connection.execute(sa.text(statement), values).scalars())

    def status(self, n: int) -> str:
        (found,) = self.column("SELECT status FROM image WHERE sop_uid = :uid", uid=f"1.2.3.{n + 1}")
        return str(found)

    def number(self, n: int) -> int:
        (found,) = self.column("SELECT id FROM image WHERE sop_uid = :uid", uid=f"1.2.3.{n + 1}")
        assert isinstance(found, int)
        return found

    def begin_replay(self, db: Session, actor: Actor = BORIS, model: str = "null", **choice: Any) -> Operation:
        row = generations.model(db, model)
        found = thresholds.propose(db, row, "MG", thresholds.Choice(**choice))
        return replay.begin_replay(db, row, "MG", found, actor)

    def plan(self, **choice: Any) -> replay.Plan:
        """The plan of a replay, which changes nothing."""
        with self.begin() as db:
            row = generations.model(db, "null")
            found = thresholds.propose(db, row, "MG", thresholds.Choice(**choice))
            return replay.plan(db, row, "MG", found.standard)

    def replayed(self, **choice: Any) -> Operation:
        """Apply a replay to its end, three images at a time; return the operation."""
        with self.begin() as db:
            number = self.begin_replay(db, **choice).id
        while replay.advance(self.begin, chunk=3):
            pass
        self.project()
        with self.begin() as db:
            return operations.get(db, number)

    def searchable(self) -> set[str]:
        """SOP Instance UIDs that the published index holds."""
        index = self.index(self.published().collection)
        rows = self.column("SELECT point_id FROM ledger WHERE generation_id = (SELECT generation_id FROM live)")
        images = [point.payload["image"] for point in index.get(rows)]  # type: ignore[arg-type]
        return set(self.column("SELECT sop_uid FROM image WHERE id = ANY(:ids)", ids=images))  # type: ignore[arg-type]


@pytest.fixture
def bright(database_url: str, tmp_path: Path) -> Iterator[Bright]:
    made = Bright(database_url, tmp_path)
    made.add_model()
    yield made
    made.close()


@pytest.fixture
def calibrated(bright: Bright) -> Bright:
    """Twenty-four ordinary images, and a threshold made from them: about 0.5 + 0.015."""
    for n in range(24):
        bright.paint(n)
    bright.take()
    with bright.begin() as db:
        thresholds.calibrate(db, generations.model(db, "null"), ANNA)
    return bright
