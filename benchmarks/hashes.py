"""Hamming balls over many codes: FAISS, Qdrant Edge and the platform's own code table, on the same codes in one run.

`python -m benchmarks.hashes [--points 1000000] [--bits 64 256]`. Codes are the signs of a random projection of
clustered vectors; a share of them are copies, as hashing by class produces them. Each query is a stored code.
One thread. Before timing, the distances in each engine's answers are compared with those of FAISS.
"""

import argparse
import gc
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss as _faiss
import numpy as np
import qdrant_edge as edge

from benchmarks import report
from benchmarks.clustered import clustered
from services.vectors.codes import CodeTable
from shared.index.codes import signs
from shared.index.protobuf import pb
from shared.types import Codes

faiss: Any = _faiss
SEED, DIM, TOP, COPIES = 7, 128, 100, 0.3
Distances = list[int]
Ask = Callable[[int], Distances]


class Engine(NamedTuple):
    name: str
    top: Ask  #: for a row: the distances of the 100 codes nearest to its code
    ball: Ask  #: for a row: the distances within the radius of the 100th nearest
    bytes_each: float | None  #: growth of the process, per code


def codes_of(count: int, bits: int) -> Codes:
    """(count, bits / 8): signs of a projection, and copies of them."""
    rng = np.random.default_rng(SEED)
    own = int(count * (1 - COPIES))
    projection = rng.standard_normal((DIM, bits)).astype(np.float32)
    parts = [
        np.packbits(clustered(min(100_000, own - start), DIM, seed=SEED + start) @ projection >= 0, axis=1)
        for start in range(0, own, 100_000)
    ]
    unique = np.concatenate(parts)
    return np.concatenate([unique, unique[rng.integers(0, own, count - own)]])


def faiss_flat(codes: Codes, radii: Sequence[int]) -> Engine:
    before = rss_mib()
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)

    def ball(row: int) -> Distances:
        _, distances, _ = index.range_search(codes[row : row + 1], radii[row] + 1)
        return sorted(distances.astype(int).tolist())

    def top(row: int) -> Distances:
        return sorted(index.search(codes[row : row + 1], TOP)[0][0].tolist())

    return Engine("FAISS IndexBinaryFlat", top, ball, (rss_mib() - before) * 2**20 / len(codes))


def qdrant_edge(codes: Codes, bits: int, radii: Sequence[int], folder: Path) -> Engine:
    """The fastest exact layout of Edge: -1 and +1 as float16 under Dot, binary quantisation, no graph."""
    params = edge.EdgeVectorParams(
        size=bits,
        distance=edge.Distance.Dot,
        datatype=edge.VectorStorageDatatype.Float16,
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10),
        quantization_config=edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned),
    )
    before = rss_mib()
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors={"code": params}, max_search_threads=1))
    for start in range(0, len(codes), 2000):
        points = [
            edge.Point(id=start + i, vector={"code": _floats(code, bits)}, payload={})
            for i, code in enumerate(codes[start : start + 2000])
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    plain = edge.SearchParams(quantization=edge.QuantizationSearchParams(rescore=False))

    def ask(row: int, limit: int, radius: int | None) -> Distances:
        query = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(_floats(codes[row], bits), using="code"),
            params=plain,
            score_threshold=None if radius is None else bits - 2 * radius - 1,
        )
        return sorted((bits - round(hit.score)) // 2 for hit in shard.query(query))

    grown = (rss_mib() - before) * 2**20 / len(codes)
    return Engine("Qdrant Edge, BQ", lambda r: ask(r, TOP, None), lambda r: ask(r, len(codes), radii[r]), grown)


def _floats(code: Codes, bits: int) -> Any:  # noqa: ANN401 - Edge's stubs require a list; Edge reads a view faster
    return memoryview(signs(code, bits))  # type: ignore[arg-type]


def served(codes: Codes, bits: int, radii: Sequence[int]) -> Engine:
    """The code table of the vectors process, with eight images per patient."""
    before = rss_mib()
    table = CodeTable(bits)
    for row, code in enumerate(codes):
        table.put(uuid.UUID(int=row + 1).int, code, {"patient": row // 8, "study": row // 4, "revision": 1})

    def ask(row: int, limit: int, radius: int | None) -> Distances:
        return [(bits - round(found.score)) // 2 for found in table.top(codes[row], limit, radius, None)]

    grown = (rss_mib() - before) * 2**20 / len(codes)
    return Engine("served", lambda r: ask(r, TOP, None), lambda r: ask(r, len(codes), radii[r]), grown)


def excluding(codes: Codes, bits: int) -> Ask:
    table = CodeTable(bits)
    for row, code in enumerate(codes):
        table.put(row + 1, code, {"patient": row // 8})

    def ask(row: int) -> Distances:
        condition = pb.Condition(field=pb.FieldCondition(key="patient", match=pb.Match(integer=row // 8)))
        found = table.top(codes[row], TOP, None, pb.Filter(must_not=[condition]))
        return [(bits - round(one.score)) // 2 for one in found]

    return ask


def rss_mib() -> float:
    """Resident memory of this process after a garbage collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def timed(asks: dict[str, Ask], rows: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile in ms; several engines take turns, so each finds the others' data in the cache."""
    spent: dict[str, list[float]] = {name: [] for name in asks}
    for row in rows:
        for name, ask in asks.items():
            started = time.perf_counter()
            ask(row)
            spent[name].append((time.perf_counter() - started) * 1000)
    return {name: (round(float(np.median(s)), 2), round(float(np.percentile(s, 95)), 2)) for name, s in spent.items()}


def measure(count: int, bits: int, queries: int, folder: Path) -> list[dict[str, Any]]:
    codes = codes_of(count, bits)
    rows = np.random.default_rng(SEED).choice(count, queries, replace=False).tolist()
    index = faiss.IndexBinaryFlat(bits)
    index.add(codes)
    radii = dict(zip(rows, index.search(codes[rows], TOP)[0][:, -1].astype(int).tolist(), strict=True))
    del index
    gc.collect()
    engines = [
        faiss_flat(codes, radii),  # type: ignore[arg-type]  # a dict keyed by row
        served(codes, bits, radii),  # type: ignore[arg-type]
        qdrant_edge(codes, bits, radii, folder),  # type: ignore[arg-type]
    ]
    for row in rows[:20]:
        for engine in engines[1:]:
            same = engine.top(row) == engines[0].top(row) and engine.ball(row) == engines[0].ball(row)
            if not same:
                raise AssertionError(f"{engine.name} is not exact")
    took = timed(
        {f"{e.name}/{what}": getattr(e, what) for e in engines for what in ("top", "ball")}
        | {"served/excluding": excluding(codes, bits)},
        rows,
    )
    alone = {engine.name: timed({"top": engine.top}, rows)["top"] for engine in engines}
    sizes = [len(engines[0].ball(row)) for row in rows]
    return [
        {
            "bits": bits,
            "engine": engine.name,
            "alone": alone[engine.name],
            "top": took[f"{engine.name}/top"],
            "ball": took[f"{engine.name}/ball"],
            "top_excluding": took.get(f"{engine.name}/excluding"),
            "bytes_each": round(engine.bytes_each or 0),
            "median_ball": int(np.median(sizes)),
        }
        for engine in engines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    about = report.facts("hashes", {"codes": SEED})
    faiss.omp_set_num_threads(1)
    found: list[dict[str, Any]] = []
    for bits in args.bits:
        with tempfile.TemporaryDirectory() as folder:
            found += measure(args.points, bits, args.queries, Path(folder) / "shard")
    rows = [
        [
            row["bits"],
            row["engine"],
            *(
                f"{row[what][0]:g} / {row[what][1]:g}" if row[what] else "-"
                for what in ("alone", "top", "ball", "top_excluding")
            ),
            row["bytes_each"],
        ]
        for row in found
    ]
    head = ["bits", "engine", f"top {TOP} alone, ms p50 / p95", f"top {TOP}", "ball", "top without the patient"]
    head.append("bytes per code")
    balls = ", ".join(f"{row['median_ball']:,} at {row['bits']} bits" for row in found[::3])
    said = (
        f"{args.points:,} codes, {COPIES:.0%} of them copies, {args.queries} queries, one thread. Alone: one "
        f"question after the other; else the engines take turns, so that each finds the others' codes in the cache. "
        f"The ball has the radius of the {TOP}th nearest; median size {balls}. All distances equal FAISS's. "
        "Bytes: what the process grew by, ids and filter columns included; of Edge's maps what was read."
    )
    body = [
        "# Hamming balls",
        "",
        said,
        "",
        *report.table(head, rows),
    ]
    report.write("hashes", about, {"rows": found}, body, args.out)


if __name__ == "__main__":
    main()
