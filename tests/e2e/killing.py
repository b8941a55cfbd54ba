"""Kills random processes of a stack during intake, and counts losses.

`python -m tests.e2e.killing --studies 1000 --kills 27 --seed 1` prints how many of each role were killed, with how many
leases held, and the oracle's findings; exit 1 if there are any. `--out benchmarks/results/kill` also writes them there.

The archive is split into as many parts as there are kills. Each part's scan is requested right before its kill, so that
every process has work when one is killed.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from benchmarks import report as results
from services.embedded.client import Embedded
from shared import process
from shared.encoder.build import build
from shared.encoder.runtime import load
from shared.errors import SimilisError
from shared.imaging.sandbox import Sandbox
from shared.index.base import Index
from shared.index.qdrant import QdrantStore
from shared.pipeline import lifecycle
from shared.process import Identity
from shared.store import generations
from shared.store.session import Store
from tests import tiny
from tests.oracle import Oracle

SHARES = {  #: weight of a role in random choices beyond `EACH`; roles that hold leases have the most
    "postgres": 2, "valkey": 1, "vectors": 2, "api": 1, "worker-ingest1": 4, "worker-ingest2": 4, "worker-scan": 2,
    "worker-index": 2, "worker-reindex": 1, "beat": 1,
}  # fmt: skip
ROLES = tuple(SHARES)
LEASE_WITHIN_S = 5.0  #: maximum wait for a lease before a kill
BACK_WITHIN_S = 60.0
EACH = 3  #: minimum of kills per role


@dataclass
class Report:
    kills: Counter[str] = field(default_factory=Counter)
    with_lease: Counter[str] = field(default_factory=Counter)
    studies: int = 0
    images: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "studies": self.studies,
            "images": self.images,
            "kills": sum(self.kills.values()),
            "kills_with_a_lease_held": sum(self.with_lease.values()),
            "by_role": {role: {"kills": self.kills[role], "with_lease": self.with_lease[role]} for role in ROLES},
            "seconds": round(self.seconds, 1),
            "findings": self.findings[:50],
        }


class Archive:
    """A stack under attack, with the null encoder: the protocol is tested, not the forward pass."""

    def __init__(self, folder: Path, studies: int, parts: int = 1) -> None:
        self.home = folder / "home"
        self.parts = [folder / "archive" / f"{part:03}" for part in range(parts)]
        self.sent: dict[str, Path] = {}
        bounds = [studies * part // parts for part in range(parts + 1)]
        for path, first, end in zip(self.parts, bounds, bounds[1:], strict=False):
            self.sent |= tiny.archive(path, end - first, first=first)
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
        if (first := self.stack.pid_of("model")) is not None:
            process.kill_tree(first)  # it builds a model that the test does not need

    def scan(self, folder: Path) -> None:
        """Request a scan until the API accepts it; the idempotency key keeps it a single operation."""
        headers = {"Authorization": f"Bearer {self.stack.api_key}", "Idempotency-Key": folder.name}

        def accepted() -> bool:
            try:
                url = f"{self.stack.url}/v1/ingest/scans"
                answer = httpx.post(url, json={"path": str(folder)}, headers=headers, timeout=10)
            except httpx.TransportError:
                return False
            return answer.status_code == 202

        assert process.until(accepted, BACK_WITHIN_S, 0.05)

    def left(self) -> int | None:
        """The number of unfinished operations, images and ledger rows; None while the database is away."""
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

    def leases(self) -> set[tuple[str, str, int]]:
        """Leased images and scans with their fences. Leases of a killed worker remain until they expire."""
        try:
            with self.store.reading() as connection:
                rows = connection.execute(
                    sa.text(
                        "SELECT 'image', CAST(id AS text), attempt FROM image "
                        "WHERE status = 'encoding' AND lease_until > clock_timestamp() UNION ALL "
                        "SELECT 'scan', CAST(id AS text), attempt FROM operation WHERE state = 'running' "
                        "AND lease_until > clock_timestamp() AND registered_at IS NULL"
                    )
                )
                return {(row[0], row[1], row[2]) for row in rows}
        except SimilisError:
            return set()

    def victim(self, role: str) -> Identity | None:
        """The role's process, if it is alive."""
        kept = self.stack.home.state.get("processes", {}).get(role, {}).get("identity")
        identity = Identity(**kept) if kept else None
        return identity if identity is not None and identity.alive else None

    def index(self) -> Index:
        return self.indexes.open(self.collection)

    def settle(self, timeout_s: float) -> bool:
        return process.until(lambda: self.left() == 0, timeout_s, 0.5)

    def come_to_rest(self, quiet_s: float, timeout_s: float) -> int | None:
        """The work left after `quiet_s` without progress; None if there is still progress after `timeout_s`."""
        left, since, deadline = self.left(), time.monotonic(), time.monotonic() + timeout_s
        while time.monotonic() - since < quiet_s:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)
            if (now := self.left()) != left:
                left, since = now, time.monotonic()
        return left

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
    """Each role up to `EACH` times, as the number of kills allows; the rest by weight at random; shuffled."""
    deck = [role for role in ROLES for _ in range(min(EACH, kills // len(ROLES)))]
    deck += rng.choices(ROLES, weights=list(SHARES.values()), k=kills - len(deck))
    rng.shuffle(deck)
    return deck


def shoot(archive: Archive, pauses_s: tuple[float, float], rng: random.Random, report: Report) -> None:
    """For each part of the archive, kill one process with its descendants."""
    for role, part in zip(plan(len(archive.parts), rng), archive.parts, strict=True):
        time.sleep(rng.uniform(*pauses_s))
        process.until(lambda: archive.left() is not None, BACK_WITHIN_S, 0.05)
        before = archive.leases()  # may belong to killed workers
        archive.scan(part)
        if not process.until(lambda role=role: archive.victim(role) is not None, BACK_WITHIN_S, 0.02):  # type: ignore[misc]
            report.findings.append(f"{role} did not come back")
            continue
        held = process.until(lambda: bool(archive.leases() - before), LEASE_WITHIN_S, 0.02)  # noqa: B023 - called now
        victim = archive.victim(role)
        if victim is None:
            report.findings.append(f"{role} died by itself")
            continue
        process.kill_tree(victim.pid)
        report.kills[role] += 1
        report.with_lease[role] += held


def run(
    folder: Path, *, studies: int, kills: int, seed: int, pauses_s: tuple[float, float] = (0.5, 2.5),
    settle_s: float = 180.0,
) -> Report:  # fmt: skip
    """Ingest studies while processes are killed; the report has the oracle's findings."""
    archive = Archive(folder, studies, parts=kills)
    report, rng = Report(studies=studies, images=len(archive.sent)), random.Random(seed)
    try:
        archive.open()
        started = time.monotonic()
        shoot(archive, pauses_s, rng, report)
        if not archive.settle(settle_s):
            report.findings.append(f"{archive.left()} pieces of work left after {settle_s:.0f} s")
        report.seconds = time.monotonic() - started
        report.findings += archive.findings()
        if kills >= EACH * len(ROLES):
            report.findings += [f"{role} died too seldom" for role in ROLES if report.kills[role] < EACH]
    finally:
        archive.close()
    return report


def write(report: Report, about: dict[str, Any], out: Path) -> None:
    """Write `out`.md and `out`.json."""
    figures = report.to_json()
    rows = [[role, *counts.values()] for role, counts in figures["by_role"].items()]
    rows.append(["all", figures["kills"], figures["kills_with_a_lease_held"]])
    body = [
        "# Whoever dies, nothing is lost and nothing doubled",
        "",
        f"{report.images} images of {report.studies} studies, one folder of them for each kill.",
        "Random processes of the embedded stack got SIGKILL, with all that they had started. Null encoder: the",
        "protocol is tested, not the forward pass. Afterwards the oracle compared the files, Postgres, a full scan of",
        "the index, and a sample of vectors computed afresh. A lease held: right before the kill a worker had images",
        "or a scan in its hands that it had taken since the kill before.",
        "",
        *results.table(["role", "kills", "with a lease held"], rows),
        "",
        f"From the first part to the last image searchable: {figures['seconds']} s.",
        f"Findings of the oracle: {len(report.findings)}.",
        *(f"- {finding}" for finding in figures["findings"]),
    ]
    results.write(out.name, about, figures, body, out.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=EACH * len(ROLES), help="the default: every role three times")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where the figures are written, without an ending")
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.e2e.killing", *sys.argv[1:]])
    about = results.facts("kill", {"kills": options.seed}) | {"command": command}
    with tempfile.TemporaryDirectory(prefix="similis-kill-") as folder:
        report = run(Path(folder), studies=options.studies, kills=options.kills, seed=options.seed)
    if options.out is None:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        write(report, about, options.out)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
