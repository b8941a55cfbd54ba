"""Collections on disk, each an Edge shard that only this process and its children may touch.

    DIR/lock                          held for the life of the process
    DIR/<collection>/collection.json  the request that made it
    DIR/<collection>/current          symlink to the shard folder in use
    DIR/<collection>/shard.N/         Edge's files

A collection is created under a dotted name and renamed; incomplete folders that a kill left (dotted folders, shard
folders that `current` does not name) are removed at the next start. A write is acknowledged once Edge's log of it is
synced: `update` alone survives a kill, not a power loss.
"""

import fcntl
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import grpc
import qdrant_edge as edge
from google.protobuf import json_format  # type: ignore[import-untyped]  # ships no types

from services.vectors import translate
from services.vectors.disk import sync_tree
from services.vectors.refused import Refused, wrong
from services.vectors.shard_client import WRITES, ForkServer, Gone, Hung, ShardClient
from shared import log
from shared.disk import sync
from shared.index.protobuf import pb

MIN_FREE_BYTES: Final = 256 * 2**20  # Edge writes through memory maps, so a full disk would raise SIGBUS
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
REPLAY: Final = 256  # points per step of catching up
CALLS: Final = 64  # concurrent calls to one collection: an API's forty threads, and the workers
ALL_CALLS: Final = 112  # concurrent calls to all collections, which mostly stall together as they share a disk
WATCH_S: Final = 5.0  # between two rounds of pinging the shards
SILENT_S: Final = 15.0  # a shard with a request unanswered for so long is reported
_log = log.get(__name__)


class Collection:
    """A collection: one shard, held by a process of its own, and its folder on disk. Thread-safe.

    `_write` is held by each write until it is on disk; `_change` while the shard's process is replaced by another.
    Reads take neither lock.
    """

    def __init__(self, folder: Path, fork_server: ForkServer) -> None:
        self.folder = folder
        self.name = folder.name
        self.config = read_config(folder)
        vectors = self.config.vectors_config.params_map.map
        self.layout = translate.layout_of(self.config)
        self.linked = any(vectors[name].hnsw_config.m > 0 for name in self.layout.sizes)
        self.dropped = False
        self.places = threading.BoundedSemaphore(CALLS)
        self._fork_server = fork_server
        self._write = threading.Lock()
        self._change = threading.Lock()
        self._touched: set[str] | None = None  # ids written since the shadow was copied; None without a shadow
        self._remove_stale()
        self.path = self._current()
        self._shard = fork_server.load(self.path, self.layout)

    @staticmethod
    def make(root: Path, config: pb.CreateCollection) -> Path:
        """Create a collection on disk; returns its folder."""
        folder = root / f".new.{config.collection_name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        edge.EdgeShard.create(str(folder / "shard.0"), translate.config_of(config, wal=True)).close()
        (folder / "collection.json").write_text(json_format.MessageToJson(config), encoding="utf-8")
        (folder / "current").symlink_to("shard.0")
        sync_tree(folder)
        made = folder.rename(root / config.collection_name)
        sync(root)
        return made

    def ask(self, name: str, raw: bytes) -> bytes:
        """The shard's reply. A shard process that has ended or hangs is restarted.

        A read is then retried, but not where the process hung, as it might hang again.

        Raises: `Refused`; UNAVAILABLE after a write or a hang, when the write may or may not have been applied.
        """
        while True:
            if self.dropped:
                raise Refused(grpc.StatusCode.NOT_FOUND, "there is no such collection")
            shard = self._shard
            try:
                return shard.ask(name, raw)
            except Gone as error:
                with self._change:
                    if shard is self._shard and not self.dropped:
                        reason = "hung" if isinstance(error, Hung) else "gone"
                        _log.warning("shard_process_ended", collection=self.name, reason=reason)
                        self._shard = self._fork_server.load(self.path, self.layout)
                        shard.close()
                if name in WRITES or isinstance(error, Hung):
                    raise Refused(grpc.StatusCode.UNAVAILABLE, "the shard's process ended; try again") from None

    def silent_s(self) -> float:
        """Seconds for which the shard has left a request unanswered; 0 without one."""
        return self._shard.silent_s()

    def write(self, name: str, raw: bytes, ids: Sequence[str]) -> bytes:
        """Apply the write to the points with these ids, as Edge spells them, durably; returns the shard's reply."""
        require_space(self.folder)
        with self._write:
            if self._touched is not None:
                self._touched.update(ids)
            return self.ask(name, raw)

    def index_field(self, raw: bytes) -> bytes:
        """Create a payload index. Raises: `Refused` while a shadow is optimised, as the shadow would lack the index."""
        with self._write:
            if self._touched is not None:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the collection is being optimised; try again")
            return self.ask("CreateFieldIndex", raw)

    def info(self) -> pb.CollectionInfo:
        """The shard's part of the info: counts and payload indexes."""
        info: pb.CollectionInfo = pb.CollectionInfo.FromString(self.ask("Info", b""))
        return info

    def unindexed(self) -> int:
        return unlinked(self.info()) if self.linked else 0

    @contextmanager
    def shadow(self, copy: Callable[[Path, Path], None]) -> Iterator[Path]:
        """A copy of the shard to work on, removed unless adopted; the ids of later writes are recorded.

        The copy is not flushed, as after a kill: loading it replays the log. Flushing before the copy would block
        reads for 80 to 400 ms.
        """
        target = self.folder / f"shard.{int(self.path.name.split('.')[1]) + 1}"
        try:
            with self._write, self._change:  # no restart meanwhile, as loading a shard writes to its files
                copy(self.path, target)
                self._touched = set()
            yield target
        finally:
            with self._write:
                self._touched = None
            if self.path != target:
                shutil.rmtree(target, ignore_errors=True)

    def adopt(self, target: Path) -> int:
        """Replace the shard by the shadow, updated with every write since the copy; searches never stop.

        The shadow is loaded by a process of its own. Writes go on while it catches up, except during the last step.
        Returns how many of the shadow's points were unlinked before catching up.
        """
        fresh = self._fork_server.load(target, self.layout)
        try:
            left = unlinked(pb.CollectionInfo.FromString(fresh.ask("Info", b"")))
            while len(pending := self._take_touched()) > REPLAY:
                self._replay(fresh, pending)
            with self._write:
                self._replay(fresh, pending | self._take_touched_now())
                fresh.ask("Flush", b"")
                with self._change:
                    self._point_to(target)
                    old_path, old, self.path, self._shard = self.path, self._shard, target, fresh
                sync(self.folder)
        except BaseException:
            (old if self.path == target else fresh).close()  # close whichever shard is not in use
            raise
        old.close()
        shutil.rmtree(old_path, ignore_errors=True)
        return left

    def _take_touched(self) -> set[str]:
        """The recorded ids, taken between writes, because a write in progress is not yet in the old shard."""
        with self._write:
            return self._take_touched_now()

    def _take_touched_now(self) -> set[str]:
        taken, self._touched = self._touched or set(), set()
        return taken

    def _replay(self, fresh: ShardClient, ids: set[str]) -> None:
        """Copy these points from the old shard to the new one; delete there those that the old one lacks."""
        listed = sorted(ids)
        for start in range(0, len(listed), REPLAY):
            part = listed[start : start + REPLAY]
            wanted = pb.GetPoints(collection_name=self.name, ids=[pb.PointId(uuid=id_) for id_ in part])
            wanted.with_payload.enable = wanted.with_vectors.enable = True
            records = pb.GetResponse.FromString(self.ask("Get", wanted.SerializeToString())).result
            gone = set(part) - {record.id.uuid for record in records}
            if records:
                points = [translate.stored(record) for record in records]
                fresh.ask("Replay", pb.UpsertPoints(collection_name=self.name, points=points).SerializeToString())
            if gone:
                selected = pb.PointsSelector(points=pb.PointsIdsList(ids=[pb.PointId(uuid=id_) for id_ in gone]))
                fresh.ask("Delete", pb.DeletePoints(collection_name=self.name, points=selected).SerializeToString())

    def close(self) -> None:
        with self._write, self._change:
            self.dropped = True
            self._shard.close()

    def _current(self) -> Path:
        return self.folder / (self.folder / "current").readlink()

    def _point_to(self, target: Path) -> None:
        link = self.folder / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.rename(self.folder / "current")

    def _remove_stale(self) -> None:
        for folder in self.folder.glob("shard.*"):
            if folder != self._current():
                _log.info("half_made_shard_removed")
                shutil.rmtree(folder)


class Shards:
    """All collections of one folder, which this process locks.

    A collection that cannot be loaded is `broken`: it keeps its name, can be dropped, and is tried again at the next
    start; if the disk was nearly full when this process started, also as soon as it has room.
    """

    def __init__(self, root: Path, fork_server: Callable[[], ForkServer] = ForkServer) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "another process holds this folder") from error
        for folder in (*root.glob(".new.*"), *root.glob(".gone.*")):
            shutil.rmtree(folder)
        self._change = threading.Lock()
        self._places = threading.BoundedSemaphore(ALL_CALLS)
        self._fork_server = fork_server()
        self._collections: dict[str, Collection] = {}
        self.broken: dict[str, Path] = {}
        for folder in sorted(root.iterdir()):
            if (folder / "current").is_symlink():
                self._open(folder)
        self._cramped = not has_space(root)
        self._stopped = threading.Event()
        threading.Thread(target=self._look_after, name="watch", daemon=True).start()

    def _open(self, folder: Path) -> None:
        try:
            self._collections[folder.name] = Collection(folder, self._fork_server)
            self.broken.pop(folder.name, None)
        except Exception as error:  # the other collections are served all the same
            _log.exception("collection_not_loaded", collection=folder.name, exception_type=type(error).__name__)
            self.broken[folder.name] = folder

    def _look_after(self) -> None:
        """Ping each shard every `WATCH_S`, so that a hung one is noticed without other requests."""
        while not self._stopped.wait(WATCH_S):
            with suppress(OSError):  # of a disk that does not even tell its size
                self._load_again()
            for collection in self.loaded():
                try:
                    collection.ask("Ping", b"")
                except Refused:  # logged where it happened
                    continue
                except Exception as error:
                    _log.exception("watch_failed", exception_type=type(error).__name__)

    def _load_again(self) -> None:
        if self._cramped and has_space(self.root):
            with self._change:
                for folder in () if self._stopped.is_set() else [*self.broken.values()]:
                    self._open(folder)
            self._cramped = not has_space(self.root)

    def silent(self) -> list[str]:
        """Collections whose shard has left a request unanswered for longer than `SILENT_S`."""
        return [name for name, one in sorted(self._collections.items()) if one.silent_s() > SILENT_S]

    def create(self, config: pb.CreateCollection) -> None:
        if not NAME.fullmatch(config.collection_name):
            raise wrong("a collection name may contain letters, digits, - and _")
        with self._change:
            if config.collection_name in self.names():
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, "the collection exists already")
            require_space(self.root)
            self._open(Collection.make(self.root, config))
        self.get(config.collection_name)

    def get(self, name: str) -> Collection:
        found = self._collections.get(name)
        if name in self.broken:
            raise Refused(grpc.StatusCode.DATA_LOSS, f"collection {name} cannot be loaded; the log says why")
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "there is no such collection")
        return found

    @contextmanager
    def called(self, name: str) -> Iterator[Collection]:
        """The collection, for one client's call.

        Raises: `Refused`, also at the limit of concurrent calls: calls go on waiting after their clients have given up.
        """
        collection = self.get(name)
        with _place(self._places), _place(collection.places):
            yield collection

    def loaded(self) -> list[Collection]:
        return list(self._collections.values())

    def drop(self, name: str) -> bool:
        with self._change:
            collection, folder = self._collections.pop(name, None), self.broken.pop(name, None)
            if collection is not None:
                collection.close()
                folder = collection.folder
            if folder is None:
                return False
            gone = folder.rename(tempfile.mkdtemp(prefix=".gone.", dir=self.root))
            sync(self.root)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def names(self) -> list[str]:
        return sorted([*self._collections, *self.broken])

    def close(self) -> None:
        """Flush and close all collections, and release the folder's lock."""
        self._stopped.set()
        with self._change:
            for collection in self._collections.values():
                collection.close()
            self._collections = {}
            self._fork_server.close()
        os.close(self._lock)


def read_config(folder: Path) -> pb.CreateCollection:
    """The request that made the collection of this folder."""
    text = (folder / "collection.json").read_text(encoding="utf-8")
    config: pb.CreateCollection = json_format.Parse(text, pb.CreateCollection())
    return config


def unlinked(info: pb.CollectionInfo) -> int:
    return int(info.points_count - info.indexed_vectors_count)


def has_space(folder: Path) -> bool:
    return shutil.disk_usage(folder).free >= MIN_FREE_BYTES


def require_space(folder: Path) -> None:
    if not has_space(folder):
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk of the vectors is nearly full")


@contextmanager
def _place(places: threading.BoundedSemaphore) -> Iterator[None]:
    """Hold one place of the semaphore, without waiting for it.

    Raises: `Refused` (RESOURCE_EXHAUSTED, because clients retry UNAVAILABLE at once).
    """
    if not places.acquire(blocking=False):
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the collection is busy; try again later")
    try:
        yield
    finally:
        places.release()
