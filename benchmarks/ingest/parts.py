"""The parts of intake, each measured alone: decoding, the forward pass, and every step of the pipeline in turn."""

import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from sqlalchemy.orm import Session

from benchmarks import processes
from benchmarks.latency.vectors import KEY, vectors_process
from migrations import run
from services.embedded.postgres import Postgres
from shared.encoder.base import Encoder
from shared.encoder.cards import read
from shared.encoder.runtime import Runtime, load
from shared.errors import Rejected
from shared.imaging.answers import Inspected
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.index.base import Index, Point
from shared.index.qdrant import QdrantStore
from shared.pipeline import batch, lifecycle, project, receive, scan
from shared.pipeline.encode import Effort, Intake
from shared.store.session import Store
from shared.types import Decoded, Pixels

BATCH = Effort().batch


@dataclass(frozen=True, slots=True)
class Part:
    """The speed of one part when it has all slots to itself."""

    per_s: float  #: images, all slots together
    core_ms: float  #: processor time per image, which other processes hardly change


def _used_s() -> float:
    """Processor seconds of this process and all its descendants."""
    below = processes.tree(os.getpid(), processes.children())
    return time.process_time() + sum(map(processes.cpu_s, below))


def decoding(paths: Sequence[Path], recipe: Recipe, slots: int) -> Part:
    """Decode with `slots` sandboxes in parallel, each constantly busy, after a warm-up."""
    shares = [paths[n::slots] for n in range(slots)]
    boxes = [Sandbox() for _ in range(slots)]
    try:
        with ThreadPoolExecutor(slots) as pool:
            list(pool.map(lambda box: _decode(box, paths[:2], recipe), boxes))
            started, used = time.perf_counter(), _used_s()
            done = sum(pool.map(lambda box, share: _decode(box, share, recipe), boxes, shares))
            return Part(done / (time.perf_counter() - started), (_used_s() - used) * 1000 / done)
    finally:
        for box in boxes:
            box.close()


def _decode(box: Sandbox, paths: Sequence[Path], recipe: Recipe) -> int:
    answers = list(box.decode_many(paths, recipe))
    refused = [answer.reason for answer in answers if isinstance(answer, Rejected)]
    if refused:
        raise AssertionError(f"a file of the benchmark is refused: {refused[0]}")
    return len(answers)


class Forward:
    """The forward pass alone: `slots` warm processes with one thread each."""

    def __init__(self, folder: Path, slots: int, runtime: Runtime = "onnx") -> None:
        context = multiprocessing.get_context("spawn")
        self.slots, self.side = slots, read(folder).recipe.size
        self.pool = ProcessPoolExecutor(slots, mp_context=context, initializer=_load, initargs=(folder, runtime))
        list(self.pool.map(_encode, [(0.2, self.side)] * slots))

    def rate(self, seconds: float) -> Part:
        """Encode in all slots for `seconds`."""
        done = list(self.pool.map(_encode, [(seconds, self.side)] * self.slots))
        return Part(sum(part.per_s for part in done), sum(part.core_ms for part in done) / len(done))

    def close(self) -> None:
        self.pool.shutdown()


_loaded: list[Encoder] = []


def _load(folder: Path, runtime: Runtime) -> None:
    _loaded.append(load(folder, runtime))


def _encode(order: tuple[float, int]) -> Part:
    """Encode in this process for the given seconds."""
    seconds, side = order
    pixels: Pixels = np.random.default_rng(0).random((BATCH, side, side), np.float32)
    done, started, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds or not done:
        _loaded[0].encode(pixels)
        done += BATCH
    return Part(done / (time.perf_counter() - started), (time.process_time() - used) * 1000 / done)


class Watch:
    """Wall-clock and processor seconds of this process, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.core: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        started, used = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
            self.core[name] += time.process_time() - used

    def take_out(self, whole: str, part: str) -> None:
        """Subtract `part`, which was measured within `whole`, from `whole`."""
        for spent in (self.seconds, self.core):
            spent[whole] -= spent[part]

    def per_image(self, count: int) -> dict[str, dict[str, float]]:
        return {
            name: {"ms": round(s * 1000 / count, 3), "core_ms": round(self.core[name] * 1000 / count, 3)}
            for name, s in self.seconds.items()
        }


class TimedSandbox(Sandbox):
    """Records the time for headers and digests, and for decoding."""

    watch: Watch

    def inspect_many(self, paths: Any) -> list[Inspected | Rejected]:  # noqa: ANN401 - the sandbox's signature
        with self.watch.of("scan: header and digest, in the sandbox"):
            return super().inspect_many(paths)

    def decode_many(self, sources: Any, recipe: Recipe) -> Generator[Decoded | Rejected]:  # noqa: ANN401
        with self.watch.of("encode: decode, in the sandbox"):
            yield from list(super().decode_many(sources, recipe))


class TimedIndex:
    """Records the time of writes to the engine."""

    def __init__(self, index: Index, watch: Watch) -> None:
        self.index, self.watch = index, watch

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - everything else belongs to the engine
        return getattr(self.index, name)

    def write(self, points: Sequence[Point]) -> None:
        with self.watch.of("project: write to the engine, durable"):
            self.index.write(points)


def steps(folder: Path, files: Path, model: Path) -> dict[str, dict[str, float]]:
    """Milliseconds per image of every step, run one after the other.

    Also this process's own processor time: the sandbox, Postgres and the engine are other processes.

    Args:
        folder: for a Postgres and a vectors process of their own.
        files: folder of the files to ingest.
        model: the card's folder.
    """
    watch = Watch()
    with Postgres(folder / "steps") as server, vectors_process() as url:
        run.upgrade(server.url)
        store, indexes = Store(server.url), QdrantStore(url, KEY)
        sandbox, encoder = TimedSandbox(), load(model)
        sandbox.watch = watch
        try:
            with store.transaction() as db:
                lifecycle.add_model(db, indexes, model.name, encoder.card)
            sandbox.decode(next(p for p in files.rglob("*.dcm")), encoder.card.recipe)  # warm up
            count = _scan(store, sandbox, files, watch)
            _encode_all(store, sandbox, encoder, watch)
            with watch.of("project: SQL and payloads"):
                project.drain(store.transaction, lambda name: _timed(indexes, name, watch), 600)
            watch.take_out("scan: walk and SQL", "scan: header and digest, in the sandbox")
            watch.take_out("project: SQL and payloads", "project: write to the engine, durable")
        finally:
            sandbox.close()
            indexes.close()
            store.close()
    return watch.per_image(count)


def _timed(indexes: QdrantStore, name: str, watch: Watch) -> Any:  # noqa: ANN401 - acts as an Index
    return TimedIndex(indexes.open(name), watch)


def _scan(store: Store, sandbox: Sandbox, files: Path, watch: Watch) -> int:
    def go_on(_db: Session, _progress: scan.Progress) -> bool:
        return True

    with watch.of("scan: walk and SQL"):
        progress = scan.scan(
            store.transaction,
            sandbox,
            files,
            table=None,
            rules=receive.Rules(secret=b"a secret of the benchmark, 32 bytes"),
            operation_id=None,
            report=go_on,
        )
    return progress.counts["taken"]


def _encode_all(store: Store, sandbox: Sandbox, encoder: Encoder, watch: Watch) -> None:
    intake = Intake(store.transaction, lambda _model: encoder, Effort(lease_s=600))
    while True:
        with watch.of("encode: claim, SQL"):
            work = intake.claim()
        if not work.claimed:
            return
        batch.decode(sandbox, work)
        with watch.of("encode: gates, forward pass, thumbnail"):
            result = batch.forward(work, lambda _model: encoder)
        with watch.of("encode: settle, SQL"):
            intake.settle(work, result)


def hashing(paths: Sequence[Path]) -> float:
    """Milliseconds per file to compute the digest, with the file in memory."""
    contents = [path.read_bytes() for path in paths]
    started = time.perf_counter()
    for content in contents:
        blake3(content).digest()
    return (time.perf_counter() - started) * 1000 / len(contents)
