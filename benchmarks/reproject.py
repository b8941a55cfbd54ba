"""A new generation from the encodings stored in Postgres, without decoding an image.

`python -m benchmarks.reproject --encodings 1000000` writes clustered vectors as encodings, requests a generation with
a quantised graph over HTTP, and reports when it was filled, projected, linked and measured, the peak memory of each
role, the size of the index on disk, and its recall against exact search.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from benchmarks import gallery, report
from benchmarks.clustered import clustered, local_dimension
from benchmarks.gallery import IMAGES, Gallery
from benchmarks.memory import Memory
from benchmarks.processes import Stopwatch
from benchmarks.report import Json
from benchmarks.stack import Stack
from shared.errors import Unavailable
from shared.index.base import Exact, Index, Query

SEED = 7
CHUNK = 100_000  #: encodings written in one transaction
PLANNED = 100_000_000  #: encodings in the extrapolation
SHARD_RAM = 48 * 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    about = report.facts("reproject", {"vectors": SEED, "labels": SEED})
    with tempfile.TemporaryDirectory(prefix="similis-reproject-", dir=options.scratch) as scratch:
        vectors = clustered(options.encodings + options.queries, options.dim, SEED)
        vectors, queries = vectors[: options.encodings], vectors[options.encodings :]
        hard = local_dimension(vectors[:CHUNK], queries[:100])
        with Stack(Path(scratch), workers=2) as stack:
            stack.settle_down()
            live = stack.use("bench-reproject", "null", "random:0", dim=options.dim)
            clock = Stopwatch()
            for start in range(0, len(vectors), CHUNK):
                part = Gallery(vectors[start : start + CHUNK], SEED, start // IMAGES)
                gallery.write(stack.store, live, part, due=False)
                print(f"{start + len(part) * IMAGES} encodings written, {clock.wall_s:.0f} s", flush=True)
            written_s = clock.wall_s
            with Memory(stack) as memory:
                times, number = build(stack, options)
            figures: Json = {"encodings": options.encodings, "dim": options.dim, "local_dimension": round(hard, 1)}
            figures |= {"scale": options.scale, "written_s": round(written_s, 1), "times": times}
            figures |= {"peak_mib": memory.peaks(), "measured": _measured(stack, number)}
            index = stack.indexes.open(_collection(stack, number))
            figures |= {"disk": _disk(stack), "search": search(index, queries), "points": index.info().points}
    figures["plan"] = plan(figures)
    report.write("reproject", about, figures, _text(figures), options.out)


def build(stack: Stack, options: argparse.Namespace) -> tuple[Json, int]:
    """Request a generation; return the seconds from the request to each step, and the generation's number."""
    connection = stack.connect()
    clock = Stopwatch()
    asked = {"model": "bench-reproject", "scale": options.scale}
    number = int(connection.post("/v1/generations", asked)["id"])
    connection.close()
    steps = {
        "filled": "SELECT filled_to >= (SELECT max(id) FROM image) FROM generation WHERE id = :id",
        "projected": "SELECT count(*) = :n FROM ledger WHERE generation_id = :id AND state = 'applied'",
        "ended": "SELECT state NOT IN ('pending', 'running') FROM operation "
        "WHERE id = (SELECT operation_id FROM generation WHERE id = :id)",
    }
    times: Json = {}
    said = time.monotonic()
    for step, done in steps.items():
        values = {"id": number} | ({"n": options.encodings} if ":n" in done else {})
        while not stack.one(sa.text(done), **values):
            if clock.wall_s > options.timeout_s:
                raise Unavailable(f"not {step} after {clock.wall_s:.0f} s")
            if time.monotonic() - said > 30:
                said = time.monotonic()
                print(f"{step}: {_applied(stack, number)} applied, {clock.wall_s:.0f} s", flush=True)
            time.sleep(1)
        times[f"{step}_s"] = round(clock.wall_s, 1)
    times["cpu_s"] = round(clock.busy_s, 1)
    return times, number


def _applied(stack: Stack, number: int) -> int:
    count = sa.text("SELECT count(*) FROM ledger WHERE generation_id = :id AND state = 'applied'")
    return int(stack.one(count, id=number))


def _measured(stack: Stack, number: int) -> Any:  # noqa: ANN401 - JSON of the generation's row
    return stack.one(sa.text("SELECT measured FROM generation WHERE id = :id"), id=number)


def _collection(stack: Stack, number: int) -> str:
    return str(stack.one(sa.text("SELECT collection FROM generation WHERE id = :id"), id=number))


def _disk(stack: Stack) -> Json:
    """Size of the vectors' folder and of the database, MiB."""
    folder = stack.embedded.home / "vectors"
    held = sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())
    return {"vectors_mib": round(held / 2**20), "database_mib": round(_database(stack) / 2**20)}


def _database(stack: Stack) -> int:
    return int(stack.one(sa.text("SELECT pg_database_size(current_database())")))


def search(index: Index, queries: np.ndarray[Any, np.dtype[np.float32]]) -> Json:
    """Recall@10 against exact search, and the latency of single queries in ms, including the connection."""
    shares, took = [], []
    for vector in queries:
        started = time.perf_counter()
        (found,) = index.search([Query(vector=vector, limit=10)])
        took.append((time.perf_counter() - started) * 1000)
        (exact,) = index.search([Query(vector=vector, limit=10, accuracy=Exact())])
        shares.append(len({h.id for h in found.hits} & {h.id for h in exact.hits}) / len(exact.hits))
    p50, p99 = np.percentile(took, [50, 99])
    recall = round(float(np.mean(shares)), 4)
    return {"recall@10": recall, "n": len(shares), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}


def plan(figures: Json) -> Json:
    """Extrapolation to 100 million encodings on a Qdrant cluster, computed from the figures, not measured.

    Linking time grows with the logarithm of the points in a shard; everything else grows linearly.
    """
    dim, made, n = figures["dim"], figures["encodings"], PLANNED
    linked = {"int8": dim, "float32": dim * 4, "graph": 32 * 4 * 1.2}  # bytes of a point; m = 16, both directions
    rest = max(figures["disk"]["vectors_mib"] * 2**20 / made - sum(linked.values()), 0)  # payload, ids, indexes, log
    shards = math.ceil(n * (linked["int8"] + linked["graph"] + rest) / SHARD_RAM)
    per_s = made / figures["times"]["projected_s"]  # the ledger is filled during projection
    deeper = max(math.log(n / shards) / math.log(made), 1)
    return {
        "encodings": n,
        "int8_gib": round(n * linked["int8"] / 2**30),
        "graph_gib": round(n * linked["graph"] / 2**30),
        "payload_gib": round(n * rest / 2**30),
        "float32_on_disk_gib": round(n * linked["float32"] / 2**30),
        "shards": shards,
        "encodings_in_postgres_gib": round(n * dim * 2 / 2**30),
        "postgres_gib": round(n * figures["disk"]["database_mib"] / made / 2**10),
        "one_projector_per_s": round(per_s),
        "projecting_with_one_projector_h": round(n / per_s / 3600, 1),
        "projecting_with_a_projector_for_each_shard_h": round(n / per_s / 3600 / shards, 1),
        "core_hours": round(n * figures["times"]["cpu_s"] / made / 3600),
        "core_hours_at_most": round(n * figures["times"]["cpu_s"] / made / 3600 * deeper),
    }


def _text(figures: Json) -> list[str]:
    times, plan_, found = figures["times"], figures["plan"], figures["search"]
    steps = [
        ("written to Postgres (before)", figures["written_s"]),
        ("ledger filled", times["filled_s"]),
        ("projected: every point applied", times["projected_s"]),
        ("linked, measured, ended", times["ended_s"]),
    ]
    memory = [
        (role, kind["pss"], kind["anonymous"])
        for role, kind in sorted(figures["peak_mib"].items(), key=lambda item: -item[1]["pss"])
    ]
    n, p = figures["encodings"], plan_
    return [
        f"# {n:,} encodings of {figures['dim']} dimensions into another generation",
        "",
        f"Clustered, seed {SEED}, local intrinsic dimension {figures['local_dimension']} (of 100,000). Embedded stack,",
        f"scale `{figures['scale']}`, asked for over HTTP. Seconds count from the request.",
        "",
        *report.table(["step", "s"], steps),
        "",
        f"Recall@10 of hits against exact search: {found['recall@10']} ({found['n']} queries).",
        f"One query p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms, over the socket.",
        f"The gate's own measurement: {figures['measured']}.",
        f"On disk: vectors {figures['disk']['vectors_mib']} MiB, database {figures['disk']['database_mib']} MiB.",
        "",
        "Highest memory, MiB (PSS counts mapped files, which the kernel may take back):",
        "",
        *report.table(["role", "PSS", "anonymous"], memory),
        "",
        "## 100 million on a Qdrant cluster: arithmetic, not measured",
        "",
        f"- In memory: int8 {p['int8_gib']} GiB, graph (m = 16, both directions) {p['graph_gib']} GiB, and what else",
        f"  a point took on disk here (payload, its indexes, ids, log) {p['payload_gib']} GiB.",
        f"- So {p['shards']} shards of 48 GiB memory, twice that with a replica of each.",
        f"- On disk and on the wire: float32 for re-scoring {p['float32_on_disk_gib']} GiB.",
        f"- In Postgres: {p['postgres_gib']} GiB as here: rows, indexes, two ledgers;",
        f"  {p['encodings_in_postgres_gib']} of it encodings.",
        f"- One projector applied {p['one_projector_per_s']} points/s here: {p['projecting_with_one_projector_h']} h.",
        f"- With a projector for each shard {p['projecting_with_a_projector_for_each_shard_h']} h:",
        "  they share the ledger by SKIP LOCKED, and the old generation serves meanwhile.",
        f"- Processor time of all of it, linking included: {p['core_hours']} core hours as here,",
        f"  {p['core_hours_at_most']} if it were all linking, which has longer ways in so large a shard.",
        "- During the build both generations are in memory: plan for twice the shards, or keep the old generation's",
        "  quantised vectors on disk until it is retired.",
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproject", description=__doc__)
    parser.add_argument("--encodings", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--scale", default="hnsw-int8", choices=("exact", "hnsw", "hnsw-int8"))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--timeout-s", type=float, default=4 * 3600)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
