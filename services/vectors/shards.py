"""Collections on disk, each an Edge shard that only this process may touch.

    DIR/lock                          held for the life of the process
    DIR/<collection>/collection.json  the request that made it
    DIR/<collection>/current          symlink to the shard folder in use
    DIR/<collection>/shard.N/         what Edge wrote

A collection is made under a dotted name and renamed; whatever a kill left half-made (dotted folders, shard folders
that `current` does not name) is removed at the next start. Every write is flushed before it is acknowledged:
`update` alone survives a kill, not a loss of power.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import qdrant_edge as edge
from google.protobuf import json_format  # type: ignore[import-untyped]  # ships no types
from qdrant_client import grpc as pb

from services.vectors import translate
from services.vectors.replies import Replies
from services.vectors.translate import Refused
from shared import log

T = TypeVar("T")
MIN_FREE_BYTES: Final = 256 * 2**20  # a full disk is a SIGBUS: Edge writes through memory maps
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
REPLAY: Final = 256  # points per step of catching up
_log = log.get(__name__)


class Collection:
    """One shard and its place on disk; safe to share between threads.

    Edge holds the GIL in every call, so `_use` costs no parallelism; it keeps a swap from closing the shard under a
    reader. `_write` keeps writes in order, and is held over the flush, which `_use` is not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.config = read_config(folder)
        vectors = self.config.vectors_config.params_map.map
        self.sizes = {name: int(params.size) for name, params in vectors.items()}
        self.linked = any(params.hnsw_config.m > 0 for params in vectors.values())
        self.dropped = False
        self._write = threading.Lock()
        self._use = threading.Lock()
        self._touched: set[str] | None = None  # ids written since the shadow was copied
        self._remove_stale()
        self.path = self._current()
        warm(self.path)
        self._shard = edge.EdgeShard.load(str(self.path))
        self.replies = Replies(lambda ids: self.read(lambda shard: shard.retrieve(ids, True, False)))

    @classmethod
    def create(cls, root: Path, config: pb.CreateCollection) -> "Collection":
        folder = root / f".new.{config.collection_name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        edge.EdgeShard.create(str(folder / "shard.0"), translate.config_of(config)).close()
        (folder / "collection.json").write_text(json_format.MessageToJson(config), encoding="utf-8")
        (folder / "current").symlink_to("shard.0")
        sync_tree(folder)
        folder.rename(root / config.collection_name)
        sync(root)
        return cls(root / config.collection_name)

    def read(self, call: Callable[[Any], T]) -> T:
        with self._use:
            self._require_open()
            return call(self._shard)

    def write(self, operation: Any, ids: Sequence[str]) -> None:  # noqa: ANN401 - Edge's UpdateOperation
        """The operation is applied and on disk."""
        require_space(self.folder)
        with self._write:
            if self._touched is not None:
                self._touched.update(ids)
            self.read(lambda shard: shard.update(operation))
            self.replies.forget(ids)
            self.read(lambda shard: shard.flush())

    def index_field(self, field: str, schema: Any) -> None:  # noqa: ANN401 - Edge's union has no name
        """The payload index exists. Refused while a shadow is optimised, which would not have it."""
        with self._write:
            if self._touched is not None:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "the collection is being optimised; ask again")
            # not flushed: the next write is, and a client that makes the collection again asks for what is missing
            self.read(lambda shard: shard.update(edge.UpdateOperation.create_field_index(field, schema)))

    def unindexed(self) -> int:
        if not self.linked:
            return 0
        info = self.read(lambda shard: shard.info())
        return int(max(0, info.points_count - info.indexed_vectors_count))

    @contextmanager
    def shadow(self, copy: Callable[[Path, Path], None]) -> Iterator[Path]:
        """A copy of the flushed shard to work on; writes from now on are remembered. Removed unless adopted."""
        target = self.folder / f"shard.{int(self.path.name.split('.')[1]) + 1}"
        try:
            with self._write:
                self.read(lambda shard: shard.flush())
                copy(self.path, target)
                self._touched = set()
            yield target
        finally:
            with self._write:
                self._touched = None
            if self.path != target:
                shutil.rmtree(target, ignore_errors=True)

    def adopt(self, target: Path) -> None:
        """The shadow, with every write that came meanwhile, is the shard; searches never stop.

        Most of the catching up happens beside the writers, the last step in front of them.
        """
        fresh = edge.EdgeShard.load(str(target))
        try:
            while len(pending := self._take_touched()) > REPLAY:
                self._replay(fresh, pending)
            with self._write:
                self._replay(fresh, pending | self._take_touched_now())
                fresh.flush()
                self._point_to(target)
                with self._use:
                    old_path, old, self.path, self._shard = self.path, self._shard, target, fresh
        except BaseException:
            fresh.close()
            raise
        old.close()
        shutil.rmtree(old_path, ignore_errors=True)

    def _take_touched(self) -> set[str]:
        """What writers that are through have touched: a write in progress is not yet in the old shard."""
        with self._write:
            return self._take_touched_now()

    def _take_touched_now(self) -> set[str]:
        taken, self._touched = self._touched or set(), set()
        return taken

    def _replay(self, fresh: Any, ids: set[str]) -> None:  # noqa: ANN401 - an EdgeShard
        """The points stand in the new shard as they stand in the old one, or in neither."""
        listed = sorted(ids)
        for start in range(0, len(listed), REPLAY):
            part = listed[start : start + REPLAY]
            records = self._retrieve(part)
            points = [edge.Point(id=row.id, vector=row.vector, payload=row.payload) for row in records]
            gone = set(part) - {str(row.id) for row in records}
            if points:
                fresh.update(edge.UpdateOperation.upsert_points(points))
            if gone:
                fresh.update(edge.UpdateOperation.delete_points(sorted(gone)))

    def _retrieve(self, ids: list[str]) -> list[Any]:
        return self.read(lambda shard: list(shard.retrieve(ids, True, True)))

    def close(self) -> None:
        with self._write, self._use:
            self.dropped = True
            self._shard.flush()
            self._shard.close()

    def _require_open(self) -> None:
        if self.dropped:
            raise Refused(grpc.StatusCode.NOT_FOUND, "there is no such collection")

    def _current(self) -> Path:
        return self.folder / (self.folder / "current").readlink()

    def _point_to(self, target: Path) -> None:
        link = self.folder / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.rename(self.folder / "current")
        sync(self.folder)

    def _remove_stale(self) -> None:
        for folder in self.folder.glob("shard.*"):
            if folder != self._current():
                _log.info("half-made shard removed")
                shutil.rmtree(folder)


class Shards:
    """All collections of one folder, which no other process may open."""

    def __init__(self, root: Path) -> None:
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
        self._collections = {
            folder.name: Collection(folder) for folder in sorted(root.iterdir()) if (folder / "current").is_symlink()
        }

    def create(self, config: pb.CreateCollection) -> None:
        if not NAME.fullmatch(config.collection_name):
            raise translate.wrong("a collection's name is letters, digits, - and _")
        with self._change:
            if config.collection_name in self._collections:
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, "the collection exists already")
            require_space(self.root)
            self._collections[config.collection_name] = Collection.create(self.root, config)

    def get(self, name: str) -> Collection:
        found = self._collections.get(name)
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "there is no such collection")
        return found

    def drop(self, name: str) -> bool:
        with self._change:
            collection = self._collections.pop(name, None)
            if collection is None:
                return False
            collection.close()
            gone = self.root / f".gone.{name}"
            collection.folder.rename(gone)
            sync(self.root)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def names(self) -> list[str]:
        return sorted(self._collections)

    def close(self) -> None:
        """Everything is flushed and the folder is free."""
        with self._change:
            for collection in self._collections.values():
                collection.close()
            self._collections = {}
        os.close(self._lock)


def read_config(folder: Path) -> pb.CreateCollection:
    """The request that made the collection of this folder."""
    text = (folder / "collection.json").read_text(encoding="utf-8")
    config: pb.CreateCollection = json_format.Parse(text, pb.CreateCollection())
    return config


def require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the disk of the vectors is nearly full")


def warm(folder: Path) -> None:
    """Read every file once: loading maps them, and each page fault would hold the GIL."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 22):
                    pass


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            sync(path)
