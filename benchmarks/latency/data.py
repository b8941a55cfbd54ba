"""A data set on disk: rows, queries, attributes, and the true neighbours of each query under each filter."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks import clustered
from benchmarks.clustered import local_dimension
from benchmarks.latency import datasets
from benchmarks.latency.datasets.base import Made
from benchmarks.latency.engines.base import FIELDS, Array, Clause
from shared.errors import Invalid

DEEPEST: Final = 100  #: true neighbours stored for each query
NEAR: Final = 2e-6  #: cosines this close are equal: the error of a float32 sum of 3,072 products
IMAGES_OF_A_PATIENT: Final = 8
MODALITY_SHARE: Final = 0.2
#: The filters of the product: the query's own patient hidden; one modality, which lies in one part of the space;
#: and two rare attributes that do not depend on the image.
FILTERS: Final = ("all", "patient", "modality", "1 %", "0.1 %")
PART: Final = 32


def clauses(name: str, patients: NDArray[np.int64]) -> list[Clause] | None:
    """One clause per query; None without a filter."""
    match name:
        case "all":
            return None
        case "patient":
            return [Clause("patient", int(patient), exclude=True) for patient in patients]
        case "modality":
            return [Clause("modality", 1)] * len(patients)
        case "1 %":
            return [Clause("hundredth", 7)] * len(patients)
        case "0.1 %":
            return [Clause("thousandth", 7)] * len(patients)
    raise Invalid(f"there is no filter {name}")


@dataclass(frozen=True, slots=True)
class Data:
    rows: Array
    queries: Array
    columns: dict[str, NDArray[np.int64]]
    patients: NDArray[np.int64]  #: patient of each query
    truth: dict[str, Array]  #: by filter: (q, <= DEEPEST) similarities in descending order, padded with -inf
    about: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self:
        with np.load(folder / "truth.npz") as held:
            truth = {name: held[name] for name in FILTERS}
        with np.load(folder / "columns.npz") as held:
            columns = {name: held[name] for name in FIELDS}
            patients = held["query_patients"]
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        rows = np.load(folder / "rows.npy", mmap_mode="r")
        return cls(rows, np.load(folder / "queries.npy"), columns, patients, truth, about)

    def similarities(self, query: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Similarities of the rows to the query, in float64; minus infinity for -1."""
        found = np.full(len(ids), -np.inf)
        there = ids >= 0
        found[there] = similarity(self.queries[query], np.asarray(self.rows[ids[there]]))
        return found

    def clauses(self, name: str) -> list[Clause] | None:
        return clauses(name, self.patients)


def similarity(query: Array, rows: Array) -> NDArray[np.float64]:
    """Higher is nearer: the cosine of unit vectors, or minus the Hamming distance of codes."""
    if rows.dtype == np.uint8:
        return np.asarray(-np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.float64))
    return np.asarray(rows.astype(np.float64) @ query.astype(np.float64))


def prepare(name: str, cache: Path, queries: int, seed: int) -> Path:
    """The cache folder of this data set, made with its truth unless it exists.

    The folder's name depends on the contents of the source files and on the code that makes data.
    """
    key = f"{name}|{queries}|{seed}|{datasets.fingerprint(name)}|{_code()}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if (folder / "about.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    made = datasets.make(name, queries, seed)
    rows, asked = _unit(made.rows), _unit(made.queries)
    columns = _columns(rows, made, seed)
    patients = made.patients if made.patients is not None else columns["patient"][_nearest(rows, asked)]
    truth = _truth(rows, asked, columns, patients)
    np.save(folder / "rows.npy", rows)
    np.save(folder / "queries.npy", asked)
    np.savez(folder / "columns.npz", query_patients=patients, **columns)  # type: ignore[arg-type]  # its stubs
    np.savez(folder / "truth.npz", **truth)  # type: ignore[arg-type]
    about = made.about | {"data": name, "rows": len(rows), "queries": len(asked)} | _described(rows, asked)
    about["content"] = hashlib.sha256(rows.tobytes() + asked.tobytes()).hexdigest()[:16]
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    return folder


def _code() -> str:
    """A hash of the code that makes data and truth."""
    files = [Path(__file__), Path(clustered.__file__), *sorted(Path(datasets.__path__[0]).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _unit(rows: Array) -> Array:
    if rows.dtype == np.uint8:
        if rows.shape[1] % 8:
            raise Invalid("codes are of whole words of 64 bits")
        return np.ascontiguousarray(rows)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise Invalid("a vector is zero, infinite or not a number")
    return np.ascontiguousarray(rows / lengths, np.float32)


def _columns(rows: Array, made: Made, seed: int) -> dict[str, NDArray[np.int64]]:
    """Attributes by row; missing ones are drawn: eight images a patient, modality by a half-space, others at random."""
    rng = np.random.default_rng([seed, 3])
    count = len(rows)
    floats = rows[:, :64].astype(np.float32)
    side = floats @ rng.standard_normal(floats.shape[1], dtype=np.float32)
    drawn = {
        "patient": rng.permutation(count) // IMAGES_OF_A_PATIENT,
        "modality": (side > np.quantile(side, 1 - MODALITY_SHARE)).astype(np.int64),
        "hundredth": rng.integers(0, 100, count),
        "thousandth": rng.integers(0, 1000, count),
    }
    return {name: np.asarray(made.columns.get(name, drawn[name]), np.int64) for name in FIELDS}


def _nearest(rows: Array, queries: Array) -> NDArray[np.int64]:
    return np.array([int(np.argmax(_scores(rows, query[None])[0])) for query in queries], np.int64)


def _scores(rows: Array, queries: Array) -> Array:
    if rows.dtype == np.uint8:
        words, asked = rows.view(np.uint64), queries.view(np.uint64)
        return np.stack([-np.bitwise_count(words ^ code).sum(axis=1, dtype=np.int16) for code in asked])
    scores: Array = queries @ rows.T
    return scores


def _truth(
    rows: Array, queries: Array, columns: dict[str, NDArray[np.int64]], patients: NDArray[np.int64]
) -> dict[str, Array]:
    """By filter: descending similarities of each query's nearest rows, preselected in float32, ordered in float64."""
    truth = {name: np.full((len(queries), DEEPEST), -np.inf) for name in FILTERS}
    for start in range(0, len(queries), PART):
        scores = _scores(rows, queries[start : start + PART])
        for row, own in enumerate(scores, start):
            for name in FILTERS:
                wanted = clauses(name, patients[row : row + 1])
                allowed = np.arange(len(rows)) if wanted is None else np.flatnonzero(wanted[0].mask(columns))
                depth = min(DEEPEST + 32, len(allowed))
                if not depth:
                    continue
                proposed = allowed[np.argpartition(-own[allowed], depth - 1)[:depth]]
                exact = np.sort(similarity(queries[row], rows[proposed]))[::-1][:DEEPEST]
                truth[name][row, : len(exact)] = exact
    return truth


def _described(rows: Array, queries: Array) -> dict[str, Any]:
    if rows.dtype == np.uint8:
        kept = len(np.unique(rows.view([("", np.uint64)] * (rows.shape[1] // 8))))
        return {"kind": "codes", "dim": 8 * rows.shape[1], "copies": round(1 - kept / len(rows), 3)}
    dimension = local_dimension(rows, queries[:100], min(100, len(rows) - 1))
    known = None if np.isnan(dimension) else round(dimension, 1)
    return {"kind": "vectors", "dim": rows.shape[1], "intrinsic_dimension": known}
