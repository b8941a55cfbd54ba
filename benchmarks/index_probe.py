"""What a search costs through the seam: `python -m benchmarks.index_probe [--points 100000] [--url URL --key KEY]`.

Starts the vectors process on a folder of its own (or uses the given server), writes clustered vectors, and prints
one JSON object: batches of four queries of 1,024 dimensions, limit 40, the patient excluded.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from benchmarks.clustered import clustered
from shared.errors import Unavailable
from shared.index.base import Exact, Filter, Index, Match, Point, Query, Recall, Spec
from shared.index.qdrant import QdrantStore

DIM, BATCH, LIMIT = 1024, 4, 40
KEY = "a-key-of-the-benchmark"


@contextlib.contextmanager
def vectors_process() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        key, socket = Path(folder) / "key", Path(folder) / "sock"
        key.write_text(KEY, encoding="utf-8")
        command = [sys.executable, "-m", "services.vectors", "--dir", f"{folder}/data", "--listen", f"unix:{socket}"]
        process = subprocess.Popen([*command, "--api-key-file", str(key)])
        try:
            wait_until_ready(f"unix://{socket}")
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(url: str) -> None:
    store = QdrantStore(url, KEY)
    for attempt in range(20):
        with contextlib.suppress(Unavailable):
            return store.ping()
        time.sleep(0.1 * attempt)
    store.ping()
    return None


def points_of(vectors: NDArray[np.float32], first: int = 0) -> Iterator[Point]:
    """Four images to a study, two studies to a patient; density C of one in a hundred points."""
    for number, vector in enumerate(vectors, start=first):
        payload: dict[str, int | str] = {
            "image": number,
            "study": number // 4,
            "patient": number // 8,
            "revision": 1,
            "modality": "MG",
            "view": ("CC", "MLO")[number % 2],
            "laterality": "LR"[number // 2 % 2],
            "density": "C" if number % 100 == 7 else "B",
            "birads": number % 7,
            "study_date": 20200101 + number % 28,
        }
        yield Point(id=uuid.uuid5(uuid.NAMESPACE_OID, str(number)), vector=vector, payload=payload)


def batches(queries: NDArray[np.float32], **more: Any) -> list[list[Query]]:  # noqa: ANN401 - fields of Query
    made = []
    for start in range(0, len(queries) - BATCH + 1, BATCH):
        own = Filter(must_not=(Match(field="patient", values=(start,)),))
        rows = queries[start : start + BATCH]
        made.append([Query(**{"vector": row, "limit": LIMIT, "filter": own, **more}) for row in rows])
    return made


def timed(index: Index, asked: list[list[Query]], rounds: int) -> dict[str, float]:
    total, engine = [], []
    for queries in asked * rounds:
        started = time.perf_counter()
        answers = index.search(queries)
        total.append((time.perf_counter() - started) * 1000)
        engine.append(answers[0].engine_ms or 0.0)
    return {
        "p50_ms": round(float(np.percentile(total, 50)), 2),
        "p99_ms": round(float(np.percentile(total, 99)), 2),
        "max_ms": round(max(total), 2),
        "engine_p50_ms": round(float(np.percentile(engine, 50)), 2),
        "n": len(total),
    }


def recall(index: Index, queries: NDArray[np.float32], target: float, filter_: Filter) -> float:
    shares = []
    for start in range(0, len(queries), 8):
        rows = queries[start : start + 8]
        exact = index.search([Query(vector=row, limit=10, filter=filter_, accuracy=Exact()) for row in rows])
        found = index.search([Query(vector=row, limit=10, filter=filter_, accuracy=Recall(target)) for row in rows])
        for want, got in zip(exact, found, strict=True):
            shares.append(len({hit.id for hit in want.hits} & {hit.id for hit in got.hits}) / 10)
    return round(float(np.mean(shares)), 4)


def model_layer(url: str, key: str, name: str, asked: list[list[Query]]) -> float:
    """p50 of the same batch through qdrant-client's own models, for comparison."""
    if url.startswith("unix:"):
        return float("nan")  # the client knows host and port only
    host, port = url.removeprefix("http://").split(":")
    with warnings.catch_warnings(action="ignore"):  # the key goes over loopback
        client = QdrantClient(
            host=host, grpc_port=int(port), api_key=key, prefer_grpc=True, https=False, check_compatibility=False
        )
    took = []
    for queries in asked:
        started = time.perf_counter()
        own = models.Filter(must_not=[models.FieldCondition(key="patient", match=models.MatchAny(any=[1]))])
        params = models.SearchParams(hnsw_ef=128)
        requests = [
            models.QueryRequest(
                query=query.vector.tolist(), using="dense", filter=own, params=params, limit=LIMIT, with_payload=True
            )
            for query in queries
        ]
        client.query_batch_points(name, requests)
        took.append((time.perf_counter() - started) * 1000)
    client.close()
    return round(float(np.percentile(took, 50)), 2)


def while_optimising(index: Index, asked: list[list[Query]], fresh: list[Point]) -> dict[str, float]:
    """Latency while new points are written, linked and swapped in."""
    index.write(fresh)
    done = threading.Event()

    def optimise() -> None:
        index.optimize()
        done.set()

    thread = threading.Thread(target=optimise)
    thread.start()
    total, started_all = [], time.perf_counter()
    while not done.is_set():
        for queries in asked[:20]:
            started = time.perf_counter()
            index.search(queries)
            total.append((time.perf_counter() - started) * 1000)
    thread.join()
    return {
        "p50_ms": round(float(np.percentile(total, 50)), 2),
        "p99_ms": round(float(np.percentile(total, 99)), 2),
        "max_ms": round(max(total), 2),
        "seconds": round(time.perf_counter() - started_all, 1),
        "n": len(total),
    }


def probe(url: str, key: str, n: int) -> dict[str, Any]:
    data = clustered(n + 3000 + 500, DIM, seed=7)
    queries = data[n + 3000 :]
    store = QdrantStore(url, key, timeout_s=60)
    name = f"probe-{uuid.uuid4().hex[:8]}"
    index = store.create(name, Spec(dim=DIM, scale="hnsw-int8"))
    result: dict[str, Any] = {"points": n, "dim": DIM, "batch": BATCH, "limit": LIMIT, "seed": 7}
    started = time.perf_counter()
    rows = list(points_of(data[:n]))
    for start in range(0, n, 4096):
        index.write(rows[start : start + 4096])
    result["write_s"] = round(time.perf_counter() - started, 1)
    started = time.perf_counter()
    index.optimize()
    result["optimise_s"] = round(time.perf_counter() - started, 1)
    result["indexed"] = index.info().indexed
    asked = batches(queries)
    timed(index, asked, 1)
    result["search"] = timed(index, asked, 8)
    print(json.dumps(result), file=sys.stderr)
    result["search_one"] = timed(index, [[batch[0]] for batch in asked], 4)
    result["search_exact"] = timed(index, batches(queries, accuracy=Exact()), 1)
    rare = Filter(must=(Match(field="density", values=("C",)),))
    own = Filter(must_not=(Match(field="patient", values=(1, 2, 3)),))
    half = Filter(must=(Match(field="view", values=("CC",)),))
    for target in (0.97, 0.985, 0.995):
        result[f"recall@10 for {target}"] = {
            label: recall(index, queries[:200], target, condition)
            for label, condition in (("excluding", own), ("1 %", rare), ("50 %", half))
        }
    result["model_layer_p50_ms"] = model_layer(url, key, name, asked)
    result["while_optimising"] = while_optimising(index, asked, list(points_of(data[n : n + 3000], n)))
    store.drop(name)
    store.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--url", default="")
    parser.add_argument("--key", default=KEY)
    args = parser.parse_args()
    with contextlib.nullcontext(args.url) if args.url else vectors_process() as url:
        print(json.dumps(probe(url, args.key, args.points), indent=1))


if __name__ == "__main__":
    main()
