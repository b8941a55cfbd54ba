"""Links new points into the graph without stopping searches.

Edge optimises under the GIL, for tens of seconds. So a spawned child of low priority optimises a copy of the shard;
the copy then catches up with later writes and replaces the shard. A kill at any moment leaves the old shard in place
and a folder that the next start removes. Files that Edge never writes to again, which hold nearly all of a large
shard, are hard links in the copy.

One graph of 100,000 points takes half a minute to a minute of two cores to build, and 10 to 20 s to extend. So few new
points get a small graph of their own beside the large one (2 to 5 s). A search uses both, and its engine takes a third
longer. So there is one graph of all once the new points exceed a quarter, when a client asks for an optimisation, and
after a while without new graphs.

The child runs this module by `shared.priority`: `services.vectors.optimize SHARD PARENT_PID SEGMENTS`.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import qdrant_edge as edge

from services.vectors.disk import sync_tree, warm
from services.vectors.refused import Refused
from services.vectors.shard_service import WRITTEN
from services.vectors.shards import MIN_FREE_BYTES, Collection, read_config, unlinked
from services.vectors.translate import config_of
from shared import log
from shared.index.protobuf import pb
from shared.priority import BACKGROUND
from shared.process import die_with_parent, used_s

DEFAULT_ABOVE: Final = 2000  # threshold in unindexed points, where the collection has none
NOTHING_TO_DO: Final = 10  # exit code of the child
WHOLE: Final = "whole"  # a file in the shard's folder: number of points of its large graph
GROWTH: Final = 1.25
#: Segments to build: one large graph; or a large graph, a small one, and the empty segment for the next writes.
MERGED: Final = 1
BESIDE: Final = 3
ONE_GRAPH: Final = 2  # segments of a shard with one graph, with the one for the next writes
#: Wait before a small graph is merged, counted from its making: fifty times as long as merging takes.
MERGE_AFTER_S: Final = 60.0
MERGE_AFTER_S_PER_POINT: Final = 0.01
#: A child that used no processor for so many looks in a row hangs: three quarters of an hour. No clock is compared, as
#: the machine may have slept (decision 25).
SILENT_LOOKS = 90
LOOK_S = 30.0
#: Files that Edge writes once, when it builds a segment with a graph, and only maps for reading afterwards: vectors,
#: quantised vectors, links, and payload indexes. Deleting a point changes other files.
FROZEN: Final = frozenset(
    {"matrix.dat", "quantized.data", "links_compressed.bin", "data.bin", "point_to_values.bin", "values_to_points.bin"}
)
_log = log.get(__name__)


class Due(NamedTuple):
    at: float  #: on the monotonic clock
    whole: bool  #: build one graph of all, however few points are new
    urgent: bool = True  #: points wait to be linked, or a client for the graph


@dataclass(slots=True)
class _State:
    """What is known of one collection."""

    due: Due | None = None
    rest_until: float = 0.0  # points are not linked again before, on the monotonic clock
    left: int = 0  # points that were still unlinked after the last run
    segments: int = 0  # after the last merge
    failed: bool = False


class Optimizer:
    """A thread that rebuilds one collection at a time."""

    def __init__(self, collections: Iterable[Collection] = ()) -> None:
        self._wake = threading.Condition()
        self._states: defaultdict[Collection, _State] = defaultdict(_State)
        self._running: Collection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(collections,), name="optimizer")
        self._thread.start()

    def consider(self, collection: Collection) -> None:
        """Schedule what the collection needs: called at the start, after each write and after each rebuild.

        Points above the threshold are linked soon, but rebuilds take half of the time at most. Nothing is scheduled
        during a rebuild, which may be all that is needed.
        """
        if not collection.linked:
            return
        info, now = collection.info(), time.monotonic()
        with self._wake:
            if collection is self._running or collection.dropped:
                return
            state = self._states[collection]
            if unlinked(info) - state.left > threshold(collection):
                due = Due(max(now, state.rest_until), whole=False)
            elif mergeable(info, state.segments):
                wait_s = max(MERGE_AFTER_S, MERGE_AFTER_S_PER_POINT * info.points_count)
                due = Due(now + wait_s, whole=True, urgent=False)
            else:
                return
            if state.due is None or due.urgent > state.due.urgent:
                state.due = due
                self._wake.notify()

    def request(self, collection: Collection) -> None:
        """Build one graph of all points as soon as possible, unless there is one already."""
        info = collection.info()
        with self._wake:
            if not collection.linked or collection.dropped:
                return
            state = self._states[collection]
            state.failed = False
            if unlinked(info) or mergeable(info, state.segments):
                state.due = Due(0.0, whole=True)
                self._wake.notify()

    def busy(self, collection: Collection) -> bool:
        """Whether points are being linked, or wait for it; not while only a merge is scheduled."""
        with self._wake:
            state = self._states.get(collection)
            due = None if state is None else state.due
            return collection is self._running or (due is not None and due.urgent)

    def failed(self, collection: Collection) -> bool:
        with self._wake:
            state = self._states.get(collection)
            return state is not None and state.failed

    def forget(self, collection: Collection) -> None:
        """Cancel rebuilds of a collection that will be deleted; none is running when this returns, and none begins."""
        with self._wake:
            collection.dropped = True  # also a write that is being answered now starts no rebuild any more
            if self._running is collection and self._child is not None:
                self._child.kill()
            self._wake.wait_for(lambda: self._running is not collection)
            self._states.pop(collection, None)

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            if self._child is not None:
                self._child.kill()
            self._wake.notify()
        self._thread.join()

    def _run(self, collections: Iterable[Collection]) -> None:
        while True:
            for collection in collections:
                with suppress(Exception):  # the next write considers it again
                    self.consider(collection)
            if (taken := self._next()) is None:
                return
            collections = [taken[0]] if self._optimize(*taken) else []

    def _optimize(self, collection: Collection, whole: bool) -> bool:
        """Whether the rebuild succeeded; else the old shard goes on serving, and the next write schedules another."""
        started, state, succeeded = time.monotonic(), self._states[collection], False
        try:
            state.left = self._rebuild(collection, state, whole=whole)
            state.failed, succeeded = False, True
        except Exception as error:
            if not (self._stopped or collection.dropped):
                state.failed = True
                _log.warning("optimising_failed", exception_type=type(error).__name__)
        took = time.monotonic() - started
        with self._wake:
            state.rest_until = time.monotonic() + took
            self._running = None
            self._wake.notify_all()
        return succeeded

    def _next(self) -> tuple[Collection, bool] | None:
        """The next collection, and whether to build one graph of all its points."""
        with self._wake:
            while not self._stopped:
                now = time.monotonic()
                waiting = [(state.due, collection) for collection, state in self._states.items() if state.due]
                ready = [item for item in waiting if item[0].at <= now]
                if ready:
                    due, self._running = min(ready, key=lambda item: item[0].at)
                    self._states[self._running].due = None
                    return self._running, due.whole
                self._wake.wait(min((due.at for due, _ in waiting), default=now + 3600) - now)
        return None

    def _rebuild(self, collection: Collection, state: _State, *, whole: bool) -> int:
        """Rebuild the collection; returns how many points of the copied shard are still unlinked."""
        started = time.monotonic()
        require_room(collection.path)
        info = collection.info()
        left = unlinked(info)
        whole = whole or outgrown(collection.path, info)
        with collection.shadow(copy) as target:
            command = [sys.executable, "-m", "shared.priority", str(BACKGROUND), "services.vectors.optimize"]
            command += [str(target), str(os.getpid()), str(MERGED if whole else BESIDE)]
            with self._wake:
                if self._stopped or collection.dropped:
                    return left
                child = self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                code = _ended(child)
            finally:
                with self._wake:
                    self._child = None
            if code == 0:
                left = collection.adopt(target)
                outcome = "one-graph" if whole else "small-graph"
                _log.info("optimised", outcome=outcome, duration_ms=round((time.monotonic() - started) * 1000))
            elif code != NOTHING_TO_DO:
                raise RuntimeError(f"the optimising child ended with {code}")
            if whole:
                state.segments = collection.info().segments_count
            return left


def _ended(child: subprocess.Popen[bytes]) -> int:
    """Wait for the child; return its exit code. Raises: `TimeoutError` if it hung and was killed."""
    used, silent = 0.0, 0
    while silent < SILENT_LOOKS:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(LOOK_S)
        before, used = used, used_s(child.pid)
        silent = 0 if used > before else silent + 1
    child.kill()
    child.wait()
    raise TimeoutError


def threshold(collection: Collection) -> int:
    """The collection's `indexing_threshold` (kB) as a number of points."""
    kilobytes = collection.config.optimizers_config.indexing_threshold
    return int(kilobytes * 1024 // (4 * sum(collection.layout.sizes.values()))) or DEFAULT_ABOVE


def mergeable(info: pb.CollectionInfo, left: int) -> bool:
    """Whether the shard has more than one graph, and more segments than its last merge left.

    Edge does not merge those that have lost all their points, for instance.
    """
    return bool(info.segments_count > max(ONE_GRAPH, left))


def outgrown(shard: Path, info: pb.CollectionInfo) -> bool:
    """Whether the shard has a quarter more points than its large graph."""
    whole = shard / WHOLE
    made_of = int(whole.read_text(encoding="ascii")) if whole.exists() else 0
    return bool(info.points_count > GROWTH * made_of)


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
