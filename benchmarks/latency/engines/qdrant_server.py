"""A real Qdrant server, if `--qdrant-url` names one: through the platform's gRPC adapter, and by plain REST.

The URL is that of gRPC (`http://host:6334`); REST is expected one port below. The API key, if any, is read from
SIMILIS_QDRANT__API_KEY. Collections have the platform's layout and are deleted afterwards; memory and disk of the
server are not measured.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.latency.engines import _grpc
from benchmarks.latency.engines.base import Array, Clause, Columns, Effort, Engine, Found, Opened, efforts, never
from benchmarks.latency.engines.edge_dense import scans
from shared.index import messages
from shared.index.base import Recall, Spec
from shared.index.qdrant import QdrantStore

URL: Final = "SIMILIS_BENCH_QDRANT_URL"
KEY: Final = "SIMILIS_QDRANT__API_KEY"
#: by scale, the graph parameters of the platform's layout
SETTINGS: Final[dict[str, dict[str, float | str]]] = {
    "exact": {},
    "hnsw": {"m": 16, "ef_construct": 100},
    "hnsw-int8": {"m": 16, "ef_construct": 100, "copies": "int8"},
}
NAME: Final = "collection"  #: the file that holds the collection's name


def _absent() -> str:
    return "" if os.environ.get(URL) else "no --qdrant-url"


def _store() -> QdrantStore:
    return QdrantStore(os.environ[URL], os.environ.get(KEY, ""), timeout_s=600)


def _build(scale: str) -> Callable[[Path, Array, Columns], None]:
    """A builder that fills a collection on the server and writes its name to the folder."""

    def build(folder: Path, rows: Array, columns: Columns) -> None:
        name = f"bench-{uuid.uuid4().hex[:12]}"
        (folder / NAME).write_text(name)  # first, so that the collection of an interrupted build is also deleted
        store = _store()
        _grpc.fill(store, name, rows, columns, scale)
        store.close()

    return build


def _drop(folder: Path) -> None:
    if (folder / NAME).is_file():
        store = _store()
        store.drop((folder / NAME).read_text())
        store.close()


def _grpc_open(folder: Path, columns: Columns) -> _grpc.Collection:
    del columns
    return _grpc.Collection(_store(), (folder / NAME).read_text(), [])


class _Rest:
    """Sends one question to `/query`, several in one request to `/query/batch`."""

    def __init__(self, folder: Path, columns: Columns, transport: httpx.BaseTransport | None = None) -> None:
        self._points = len(columns["patient"])
        parts = urlsplit(os.environ[URL])
        headers = {"api-key": key} if (key := os.environ.get(KEY)) else {}
        address = f"{parts.scheme}://{parts.hostname}:{(parts.port or 6334) - 1}"
        self._http = httpx.Client(base_url=address, headers=headers, timeout=600, trust_env=False, transport=transport)
        self._path = f"/collections/{(folder / NAME).read_text()}/points/query"

    def search(self, queries: Array, k: int, effort: Effort, clauses: Sequence[Clause] | None) -> Found:
        wanted: Sequence[Clause | None] = clauses or [None] * len(queries)
        searches = [
            _request(query, k, effort, clause, self._points) for query, clause in zip(queries, wanted, strict=True)
        ]
        if len(searches) == 1:
            answer = self._http.post(self._path, json=searches[0])
        else:
            answer = self._http.post(f"{self._path}/batch", json={"searches": searches})
        body = answer.raise_for_status().json()
        results = [body["result"]] if len(searches) == 1 else body["result"]
        ids = np.full((len(queries), k), -1, np.int64)
        for row, result in enumerate(results):
            found = [uuid.UUID(point["id"]).int for point in result["points"]]
            ids[row, : len(found)] = found
        return Found(ids, body["time"] * 1000)

    def close(self) -> None:
        self._http.close()

    def pids(self) -> list[int]:
        return []


def _request(query: Array, k: int, effort: Effort, clause: Clause | None, points: int) -> dict[str, Any]:
    """The body of one question, with the parameters of the adapter.

    The server ignores those of quantisation if it has no quantised copies.
    """
    params: dict[str, Any] = {"exact": True}
    if effort:
        filtered = clause is not None and not clause.exclude
        same = messages.params(Spec(dim=len(query)), Recall(effort["target"]), points, filtered=filtered)
        oversampling = same.quantization.oversampling
        params = {"hnsw_ef": same.hnsw_ef, "quantization": {"rescore": True, "oversampling": oversampling}}
    asked: dict[str, Any] = {"query": query.tolist(), "using": messages.VECTOR, "limit": k, "params": params}
    if clause is not None:
        value = str(clause.value) if clause.field == "modality" else clause.value
        condition = {"key": _grpc.FIELD[clause.field], "match": {"value": value}}
        asked["filter"] = {"must_not" if clause.exclude else "must": [condition]}
    return asked


def _engine(name: str, transport: Callable[[Path, Columns], Opened], scale: str, kind: str = "vectors") -> Engine:
    tried = efforts("target", *_grpc.TARGETS) if scale != "exact" else ({},)
    return Engine(
        name=name, build=_build(scale), open=transport, exact=scale == "exact", efforts=tried, available=_absent,
        drop=_drop, kind=kind, settings=SETTINGS[scale],  # type: ignore[arg-type]  # a Literal
        scans=scans if scale != "exact" else never,
    )  # fmt: skip


ENGINES = (
    _engine("server-grpc-exact", _grpc_open, "exact"),
    _engine("server-grpc-hnsw", _grpc_open, "hnsw"),
    _engine("server-grpc-int8", _grpc_open, "hnsw-int8"),
    _engine("server-grpc-codes", _grpc_open, "exact", "codes"),
    _engine("server-rest-exact", _Rest, "exact"),
    _engine("server-rest-hnsw", _Rest, "hnsw"),
    _engine("server-rest-int8", _Rest, "hnsw-int8"),
)
