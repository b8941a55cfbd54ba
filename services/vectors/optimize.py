"""Links new points into the graph without stopping searches.

Edge optimises under the GIL, for tens of seconds. So a spawned child of low priority optimises a copy of the shard;
the copy then catches up with later writes and replaces the shard. A kill at any moment leaves the old shard in place
and a folder that the next start removes. Files that Edge never writes to again, which hold nearly all of a large
shard, are hard links in the copy.

Rebuilding one graph of 100,000 points takes a minute of two cores. So few new points get a small graph of their own
beside the large one (2 to 5 s; a search uses both); once they exceed a quarter, one graph is built of all.

The child runs this module by `shared.priority`: `services.vectors.optimize SHARD PARENT_PID SEGMENTS`.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc
import qdrant_edge as edge

from services.vectors.disk import sync_tree, warm
from services.vectors.refused import Refused
from services.vectors.shard_service import WRITTEN
from services.vectors.shards import MIN_FREE_BYTES, Collection, read_config
from services.vectors.translate import config_of
from shared import log
from shared.priority import BACKGROUND
from shared.process import die_with_parent

DEFAULT_ABOVE: Final = 2000  # threshold in unindexed points, where the collection has none
NOTHING_TO_DO: Final = 10  # exit code of the child
WHOLE: Final = "whole"  # a file in the shard's folder: number of points of its large graph
GROWTH: Final = 1.25
#: Segments: one large graph; or a large graph, a small one, and the empty segment for the next writes.
MERGED: Final = 1
BESIDE: Final = 3
#: Files that Edge writes once, when it builds a segment with a graph, and only maps for reading afterwards: vectors,
#: quantised vectors, links, and payload indexes. Deleting a point changes other files.
FROZEN: Final = frozenset(
    {"matrix.dat", "quantized.data", "links_compressed.bin", "data.bin", "point_to_values.bin", "values_to_points.bin"}
)
_log = log.get(__name__)


class Optimizer:
    """A thread that rebuilds one collection at a time."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._due: dict[Collection, float] = {}
        self._running: Collection | None = None
        self._rest_until: dict[str, float] = {}
        self._left: dict[str, int] = {}  # points that were still unlinked after the last run
        self._failed: set[str] = set()
        self._cancelled: Collection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="optimizer")
        self._thread.start()

    def consider(self, collection: Collection) -> None:
        """Called after each write: schedules a rebuild above the threshold. Rebuilds take half of the time at most."""
        if collection.unindexed() - self._left.get(collection.name, 0) > threshold(collection):
            with self._wake:
                self._due.setdefault(collection, self._rest_until.get(collection.name, 0.0))
                self._wake.notify()

    def request(self, collection: Collection) -> None:
        """Rebuild as soon as possible, whatever the number of unindexed points."""
        if collection.unindexed():
            with self._wake:
                self._failed.discard(collection.name)
                self._due[collection] = 0.0
                self._wake.notify()

    def busy(self, collection: Collection) -> bool:
        with self._wake:
            return collection is self._running or collection in self._due

    def failed(self, collection: Collection) -> bool:
        return collection.name in self._failed

    def forget(self, collection: Collection) -> None:
        """Cancel rebuilds of a collection that will be deleted; none is running when this returns."""
        with self._wake:
            self._due.pop(collection, None)
            self._cancelled = collection  # stops also a rebuild whose child is not started yet
            if self._running is collection and self._child is not None:
                self._child.kill()
            self._wake.wait_for(lambda: self._running is not collection)
            for kept in (self._rest_until, self._left):
                kept.pop(collection.name, None)
            self._failed.discard(collection.name)

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            if self._child is not None:
                self._child.kill()
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while (collection := self._next()) is not None:
            started = time.monotonic()
            try:
                self._left[collection.name] = self._rebuild(collection)
                self._failed.discard(collection.name)
                _log.info("optimised", duration_ms=round((time.monotonic() - started) * 1000))
            except Exception as error:  # the old shard goes on serving; the next write schedules another rebuild
                if not (self._stopped or self._cancelled is collection or collection.dropped):
                    self._failed.add(collection.name)
                    _log.warning("optimising_failed", exception_type=type(error).__name__)
            took = time.monotonic() - started
            with self._wake:
                self._rest_until[collection.name] = time.monotonic() + took
                self._running = None
                self._wake.notify_all()

    def _next(self) -> Collection | None:
        with self._wake:
            while not self._stopped:
                now = time.monotonic()
                due = [item for item in self._due.items() if item[1] <= now]
                if due:
                    self._running = min(due, key=lambda item: item[1])[0]
                    del self._due[self._running]
                    return self._running
                self._wake.wait(min(self._due.values(), default=now + 3600) - now)
        return None

    def _rebuild(self, collection: Collection) -> int:
        """Rebuild the collection; returns how many points of the copied shard are still unlinked."""
        require_room(collection.path)
        left = collection.unindexed()
        with collection.shadow(copy) as target:
            command = [sys.executable, "-m", "shared.priority", str(BACKGROUND), "services.vectors.optimize"]
            command += [str(target), str(os.getpid()), str(segments(collection))]
            with self._wake:
                if self._stopped or self._cancelled is collection:
                    return left
                child = self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            code = child.wait()
            with self._wake:
                self._child = None
            if code == 0:
                return collection.adopt(target)
            if code == NOTHING_TO_DO:
                return left
            raise RuntimeError(f"the optimising child ended with {code}")


def threshold(collection: Collection) -> int:
    """The collection's `indexing_threshold` (kB) as a number of points."""
    kilobytes = collection.config.optimizers_config.indexing_threshold
    return int(kilobytes * 1024 // (4 * sum(collection.layout.sizes.values()))) or DEFAULT_ABOVE


def segments(collection: Collection) -> int:
    whole = collection.path / WHOLE
    made_of = int(whole.read_text(encoding="ascii")) if whole.exists() else 0
    points = collection.info().points_count
    return MERGED if points > GROWTH * made_of else BESIDE


def require_room(shard: Path) -> None:
    """Raises: `Refused` unless the disk has room for a full copy of the shard and its new segments."""
    size = 0
    for path in shard.rglob("*"):
        with suppress(FileNotFoundError):  # Edge replaces small files at any time
            size += path.stat().st_blocks * 512
    if shutil.disk_usage(shard).free < 2 * size + MIN_FREE_BYTES:
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room to optimise")


def copy(source: Path, target: Path) -> None:
    """Copy the shard so that later writes do not change the copy; sparse, as an empty shard is 230 MB of holes."""
    try:
        shutil.rmtree(target, ignore_errors=True)
        _cp("--link", source, target)
        changed = [path.relative_to(target) for path in target.rglob("*") if path.is_file() and path.name not in FROZEN]
        _cp("--sparse=always", "--remove-destination", "--parents", *changed, target.absolute(), cwd=source)
    except subprocess.CalledProcessError:  # a file system without hard links, or Edge changed its log files meanwhile
        shutil.rmtree(target, ignore_errors=True)
        _cp("--sparse=always", source, target)


def _cp(*arguments: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(["cp", "-a", *arguments], check=True, cwd=cwd)  # noqa: S607 - coreutils


def main(shard: Path, parent: int, segment_number: int) -> int:
    """Optimise the shard at this path, which no other process may hold; its files are then synced and cached."""
    die_with_parent(parent)
    held = edge.EdgeShard.load(str(shard), config_of(read_config(shard.parent), segment_number))
    changed = held.optimize()
    if segment_number == MERGED:
        (shard / WHOLE).write_text(str(held.info().points_count), encoding="ascii")
    held.flush()
    held.close()
    (shard / WRITTEN).unlink(missing_ok=True)
    shutil.rmtree(shard / "temp_segments", ignore_errors=True)
    sync_tree(shard)
    warm(shard)
    return 0 if changed else NOTHING_TO_DO


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
