"""Kill processes of a running stack at random while it takes in studies, and count.

`python -m tests.e2e.killing --studies 1000 --kills 24 --seed 1` prints what was killed, when, with how many
leases held, and the oracle's findings; exit 1 if there are any.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from services.embedded import process
from services.embedded.client import Embedded
from shared.encoder.build import build
from shared.encoder.runtime import load
from shared.errors import SimilisError
from shared.imaging.sandbox import Sandbox
from shared.index.base import Index
from shared.index.qdrant import QdrantStore
from shared.pipeline import lifecycle
from shared.store import generations, operations
from shared.store.session import Store
from tests import tiny
from tests.oracle import Oracle

ROLES = ("postgres", "valkey", "vectors", "api", "worker-ingest1", "worker-ingest2", "worker-index", "beat")


@dataclass
class Report:
    kills: Counter[str] = field(default_factory=Counter)
    with_lease: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "kills": sum(self.kills.values()),
            "by_role": dict(self.kills),
            "with_a_lease_held": self.with_lease,
            "seconds": round(self.seconds, 1),
            "findings": self.findings[:50],
        }


class Archive:
    """A stack under fire, with the null encoder: what is tested is the protocol, not the forward pass."""

    def __init__(self, folder: Path, studies: int) -> None:
        self.home = folder / "home"
        self.sent = tiny.archive(folder / "archive", studies)
        self.stack = Embedded(self.home, workers=2)

    def open(self) -> None:
        self.stack.start()
        home = self.stack.home
        self.store = Store((home / "database.url").read_text().strip())
        self.indexes = QdrantStore(
            f"unix://{home.sockets / 'vectors.sock'}", api_key=(home / "vectors.key").read_text().strip()
        )
        self.folder = self.home / "models" / "null"
        card = build(self.folder, "null", "null", "random:0")
        with self.store.transaction() as db:
            lifecycle.add_model(db, self.indexes, "null", card)
            live = generations.published(db)
            assert live is not None
        self.collection = live.collection

    def scan(self, folder: Path) -> None:
        """A scan is due; the next sweep rings for it."""
        with self.store.transaction() as db:
            operations.create(db, "scan", {"path": str(folder)})

    def left(self) -> int | None:
        """How much work is not done, or None while the database is away."""
        try:
            with self.store.reading() as connection:
                return int(
                    connection.execute(
                        sa.text(
                            "SELECT (SELECT count(*) FROM operation WHERE state IN ('pending', 'running')) "
                            "+ (SELECT count(*) FROM image WHERE status IN ('received', 'encoding')) "
                            "+ (SELECT count(*) FROM ledger WHERE state = 'pending')"
                        )
                    ).scalar_one()
                )
        except SimilisError:
            return None

    def leases(self) -> int:
        try:
            with self.store.reading() as connection:
                return int(
                    connection.execute(
                        sa.text(
                            "SELECT count(*) FROM image WHERE status = 'encoding' AND lease_until > clock_timestamp()"
                        )
                    ).scalar_one()
                )
        except SimilisError:
            return 0

    def index(self) -> Index:
        return self.indexes.open(self.collection)

    def settle(self, timeout_s: float) -> bool:
        return process.until(lambda: self.left() == 0, timeout_s, 0.5)

    def findings(self) -> list[str]:
        with Sandbox() as sandbox:
            oracle = Oracle(
                store=self.store, index=self.index(), sandbox=sandbox, encoder=load(self.folder), sent=self.sent
            )
            return oracle.findings()

    def close(self) -> None:
        self.store.close()
        self.indexes.close()
        self.stack.stop()


def plan(kills: int, rng: random.Random) -> list[str]:
    """Each role at least three times where there are kills enough, then at random, ingest workers favoured."""
    deck = [role for role in ROLES for _ in range(3)][: max(kills, 0)] if kills >= 3 * len(ROLES) else []
    deck += rng.choices(ROLES, weights=[2, 1, 2, 1, 4, 4, 2, 1], k=kills - len(deck))
    rng.shuffle(deck)
    return deck


def shoot(archive: Archive, kills: int, rng: random.Random, report: Report) -> None:
    """One kill every one to three seconds, of the process and whatever it started."""
    for role in plan(kills, rng):
        time.sleep(rng.uniform(1.0, 3.0))
        pid = archive.stack.pid_of(role)
        if pid is None:
            process.until(lambda role=role: archive.stack.pid_of(role) is not None, 30, 0.1)  # type: ignore[misc]
            pid = archive.stack.pid_of(role)
        if role.startswith("worker-ingest"):
            process.until(lambda: archive.leases() > 0 or archive.left() == 0, 5, 0.05)
        held = archive.leases()
        if pid is not None:
            process.kill_tree(pid)
            report.kills[role] += 1
            report.with_lease += held > 0


def run(folder: Path, *, studies: int, kills: int, seed: int, settle_s: float = 180.0) -> Report:
    """Studies are taken in while processes die; the report has the oracle's findings."""
    report, rng = Report(), random.Random(seed)
    archive = Archive(folder, studies)
    try:
        archive.open()
        started = time.monotonic()
        archive.scan(folder / "archive")
        shoot(archive, kills, rng, report)
        if not archive.settle(settle_s):
            report.findings.append(f"{archive.left()} pieces of work left after {settle_s:.0f} s")
        report.seconds = time.monotonic() - started
        report.findings += archive.findings()
    finally:
        archive.close()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="similis-kill-") as folder:
        report = run(Path(folder), studies=options.studies, kills=options.kills, seed=options.seed)
    sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
