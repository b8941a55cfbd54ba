"""Search time of FAISS's flat indexes, and a check of their answers."""

import os
import time
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from shared.metrics.retrieval import KS

faiss: Any = _faiss  # its stubs are incomplete
REPEATS = 300  #: single queries timed


def flat_times(vectors: NDArray[np.float32]) -> dict[str, Any]:
    """Milliseconds of processor time of one flat search for 100 items among all vectors, one query at a time.

    Also the share of queries whose first ten distances agree with our own ranking.
    """
    found: dict[str, Any] = {}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = np.random.default_rng(0).permutation(len(unit))[:REPEATS]
    for name, make, rows in (("FlatL2", faiss.IndexFlatL2, vectors), ("FlatIP", faiss.IndexFlatIP, unit)):
        index = make(rows.shape[1])
        index.add(np.ascontiguousarray(rows))
        took, same = [], []
        for row in asked:
            began = time.thread_time_ns()
            near, _ = index.search(rows[row : row + 1], min(KS[-1], len(rows)))
            took.append((time.thread_time_ns() - began) / 1e6)
            exact = rows @ rows[row] if name == "FlatIP" else -np.square(rows - rows[row]).sum(axis=1)
            ours = -np.sort(-exact)[:10]
            theirs = near[0, :10] if name == "FlatIP" else -near[0, :10]
            same.append(np.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(exact).max()))
        found[name] = {"p50_ms": float(np.percentile(took, 50)), "p95_ms": float(np.percentile(took, 95))}
        found[name]["same first ten"] = float(np.mean(same))
    found["load"] = round(os.getloadavg()[0], 1)
    return {key: rounded(value) for key, value in found.items()}


def rounded(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
