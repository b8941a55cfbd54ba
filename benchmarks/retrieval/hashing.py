"""ACIR's hashing against other losses on the 16 classes: quality, order within classes, balls, bytes, search time.

Every trunk is trained end to end; each head of the grid is trained on the features of ACIR's own trunks. Raw results
are appended to `runs.jsonl`, so a stopped run resumes; the tables are made from them at the end.

    python -m benchmarks.retrieval.hashing --profile quick
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import RESULTS, Json, commit, facts, machine, write
from benchmarks.retrieval import hashing_tables as tables
from benchmarks.retrieval.heads import Head, codes, grid, measured
from benchmarks.retrieval.options import parser
from benchmarks.retrieval.scratch import converted, keep
from benchmarks.retrieval.trunk import Seen, Trunk, seen, seen_by_backbone
from shared.datasets import development
from shared.datasets.collection import Collection
from shared.encoder.acir import WIDTHS
from shared.encoder.hashing import codes as packed
from shared.training.configs import acir
from shared.training.hashing import METHODS

COLLECTION, STORED = "radiology_16class", 64
BITS = (16, 32, 64, 128, 256, 512)
GALLERY, ASKED, K = 100_000, 200, 100  #: for search times
FLOATS = 1152  #: dimensions of the content at widths `s`

OUT = RESULTS / "retrieval" / "hashing"
SCRATCH = "similis-hashing"  #: trunks and features, also used by `ood`
INTRODUCTION = """# Hashing on the 16 classes

Gallery: the train split ({gallery} images; a validation part of them trained nothing). Queries: the test split
({queries}). No group of patients or slices is on both sides. Relevant: the same of 16 classes. Ties count with their
expectation over all orders.

Trunk: ACIR with widths `{widths}` at 112 pixels, {epochs} epochs from nothing, trained once per seed with ACIR's own
loss at {bits} bits: its features favour ACIR, if anything. Heads were trained on cached features and saw no
augmentation. All methods share optimiser, batches (16 classes x 8), epochs and a cross-entropy on the head's middle
layer; only the hashing loss differs. The learning rate, 0.01, was the best or as good for the three methods that were
tried on another trunk. `acir` is our soft loss, `acir-released` has the weights and fingerprints of the released code
with a distance and a quantiser that work, `pairwise` is the same loss with all fingerprints equal.
"""


@dataclass(frozen=True, slots=True)
class Profile:
    trunks: tuple[Trunk, ...]  #: heads are trained on those of ACIR with DaRF
    apart: tuple[str, ...] = (
        "radiology_mednist",
        "mias",
        "busi",
    )  #: sets used one by one to vary the size of fingerprints


def profile(name: str, widths: acir.Widths = "s") -> Profile:
    """`quick`: ten epochs, as two cores allow; `full`: the recipe's forty, for a GPU."""
    usual: Json = {}
    rivals: tuple[Json, ...] = ({"objective": "csq"}, {"objective": "pairwise"}, {"darf": False})
    order = [(seed, kind) for kinds in ((usual,), rivals) for seed in range(3) for kind in kinds]  # rivals last
    epochs = {"quick": 10, "full": 40}[name]
    return Profile(tuple(Trunk(widths=widths, epochs=epochs, seed=seed, **kind) for seed, kind in order))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and append what the file lacks, then write the tables from all records."""
    chosen = options(arguments)
    torch.set_num_threads(chosen.threads)
    wanted = profile(chosen.profile, chosen.widths)
    about = facts("retrieval.hashing", {"trunks and heads": chosen.seeds})
    collection = development.load(COLLECTION, chosen.data, STORED)
    chosen.out.mkdir(parents=True, exist_ok=True)
    log = Log(chosen.out / "runs.jsonl")
    if not chosen.tables:
        _run(wanted, collection, chosen, log)
    text = [*_introduction(wanted.trunks[0], collection), *tables.body(log.records, log.average_precision, collection)]
    tables.flat(log.records, chosen.out / "figures.csv")
    write("hashing", about, {"profile": chosen.profile, "runs": len(log.records)}, text, chosen.out)


def _run(wanted: Profile, collection: Collection, chosen: argparse.Namespace, log: "Log") -> None:
    for trunk in wanted.trunks:
        if trunk.seed >= chosen.seeds:
            continue
        _trunk(trunk, collection, chosen, log)
    for source, weights in _backbones(chosen.data):
        _backbone(source, weights, collection, chosen, log)
    for name in wanted.apart:
        _apart(development.load(name, chosen.data, STORED), chosen, log)
    for bits in (*BITS, 0):
        log.once({"kind": "search", "bits": bits}, lambda bits=bits: (search_time(bits), None))


def _introduction(trunk: Trunk, collection: Collection) -> list[str]:
    asked = int((collection.split == "test").sum())
    return [
        INTRODUCTION.format(
            gallery=len(collection) - asked, queries=asked, widths=trunk.widths, epochs=trunk.epochs, bits=acir.BITS
        )
    ]


class Log:
    """Records as JSON lines; the average precision of each query is stored in a separate npz file."""

    def __init__(self, path: Path) -> None:
        self.path, self._beside = path, path.with_name("average_precision.npz")
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.records: list[Json] = [json.loads(line) for line in lines]
        self._average = dict(np.load(self._beside)) if self._beside.exists() else {}

    def once(self, key: Json, run: Any) -> None:  # noqa: ANN401 - () -> (figures, average precisions or None)
        """Run and append the record of this key unless the file has it."""
        if any(record["key"] == key for record in self.records):
            return
        started = time.process_time()
        figures, average = run()
        record = {
            "key": key,
            "figures": figures,
            "cpu_s": round(time.process_time() - started, 1),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": commit(),
            "machine": machine(),
        }
        if average is not None:
            self._average[name_of(key)] = average.astype(np.float32)
            keep(self._beside, **self._average)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.records.append(record)
        print(name_of(key), {n: round(v, 3) for n, v in figures.items() if isinstance(v, float)}, flush=True)

    def average_precision(self, key: Json) -> NDArray[np.float64] | None:
        found = self._average.get(name_of(key))
        return None if found is None else found.astype(np.float64)


def name_of(key: Json) -> str:
    parts = [f"{name}={value}" for name, value in key.items()]
    return "_".join(parts).replace("/", "-")


def _trunk(trunk: Trunk, collection: Collection, chosen: argparse.Namespace, log: Log) -> None:
    found = seen(trunk, collection, chosen.data, chosen.scratch)
    key = {"kind": "trunk", **asdict(trunk)}
    log.once({**key, "search": "float"}, lambda: measured(found.embeddings, collection, "cosine"))
    features = found.blended.numpy()  # input of the heads: an upper bound for them
    log.once({**key, "search": "features"}, lambda: measured(features, collection, "cosine"))
    if found.logits is not None:
        own = packed(found.logits)
        log.once({**key, "search": "code"}, lambda: measured(own, collection, "hamming"))
    if trunk.objective == "acir" and trunk.darf:
        fusion = 2 * WIDTHS[trunk.widths].fusion
        _heads(trunk.name, found, collection, fusion, grid(BITS, METHODS), trunk.seed, log)


def _heads(
    trunk: str, found: Seen, collection: Collection, fusion: int, heads: Sequence[Head], seed: int, log: Log
) -> None:
    for head in heads:
        log.once(
            {"kind": "head", "trunk": trunk, "seed": seed, **asdict(head)},
            lambda head=head: measured(codes(head, found, collection, fusion, seed), collection, "hamming"),
        )


def _backbones(data: Path) -> Iterator[tuple[str, str]]:
    """MobileNetV2 with ImageNet weights, if available, and with random weights."""
    trained = "weights/mobilenet_v2_imagenet_fp16.pth"  # expects inputs in [-1, 1]
    if (data / trained).exists():
        yield "mobilenet_v2:imagenet", trained
    yield "mobilenet_v2:random", "random:0"


def _backbone(name: str, weights: str, collection: Collection, chosen: argparse.Namespace, log: Log) -> None:
    weights = converted(weights, chosen.data, chosen.scratch)
    found = seen_by_backbone(name.partition(":")[0], weights, collection, chosen.scratch)
    log.once(
        {"kind": "trunk", "trunk": name, "search": "float"}, lambda: measured(found.embeddings, collection, "cosine")
    )
    _heads(name, found, collection, 0, [Head(method=method) for method in METHODS], 0, log)


def _apart(collection: Collection, chosen: argparse.Namespace, log: Log) -> None:
    """Fingerprints of three sizes on one set alone, over frozen features."""
    name, weights = next(_backbones(chosen.data))
    weights = converted(weights, chosen.data, chosen.scratch)
    found = seen_by_backbone(name.partition(":")[0], weights, collection, chosen.scratch)
    sizes = [Head(prints=size) for size in (8, 16, 32)]
    _heads(f"{name} on {collection.name}", found, collection, 0, sizes, 0, log)


def search_time(bits: int) -> dict[str, float]:
    """Milliseconds of one exact FAISS search among 100,000 random codes (bits 0: unit vectors of `FLOATS`)."""
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(bits)
    if bits:
        vectors = rng.integers(0, 256, (GALLERY, bits // 8), np.uint8)
        index: Any = faiss.IndexBinaryFlat(bits)
    else:
        vectors = rng.standard_normal((GALLERY, FLOATS), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(FLOATS)
    index.add(vectors)
    spent = []
    for query in vectors[:ASKED]:
        started = time.thread_time()
        index.search(query[None], K)
        spent.append(1000 * (time.thread_time() - started))
    p50, p95 = np.percentile(spent[ASKED // 10 :], [50, 95])  # the first tenth warms caches
    return {"p50_cpu_ms": float(p50), "p95_cpu_ms": float(p95), "bytes": float(vectors.shape[1] * vectors.itemsize)}


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    own = parser(__doc__, OUT, SCRATCH)
    own.add_argument("--widths", choices=("s", "s-half"), default="s", help="of the trunks")
    own.add_argument("--seeds", type=int, default=3, help="how many of the profile's seeds")
    own.add_argument("--tables", action="store_true", help="write the tables of what was run so far; run nothing")
    return own.parse_args(arguments)


if __name__ == "__main__":
    main()
