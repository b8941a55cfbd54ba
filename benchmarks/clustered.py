"""Synthetic embeddings that are as hard as real ones: clustered, of low intrinsic dimension, unit length.

200 Gaussians with Dirichlet weights, each spread over one shared 48-dimensional subspace with decreasing variance,
plus isotropic noise. Uniform noise would make every index look bad, well-separated clusters every index good.
"""

import numpy as np
from numpy.typing import NDArray

CLUSTERS = 200
SUBSPACE = 48
COPY = 1e-3  #: unit vectors nearer than this count as copies: float32 computes their cosine to about 1e-7


def clustered(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    """(n, dim) unit vectors of one mixture, in random order.

    The mixture depends on `seed` alone, so `clustered(n + q, dim, seed)` cut in two gives a gallery and queries.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLUSTERS, dim), dtype=np.float32) / np.sqrt(dim)
    weights = rng.dirichlet(np.ones(CLUSTERS))
    basis = np.linalg.qr(rng.standard_normal((dim, min(SUBSPACE, dim))))[0].T.astype(np.float32)
    spread = (0.95 ** np.arange(len(basis))).astype(np.float32)
    spread /= np.linalg.norm(spread)
    out = np.empty((n, dim), np.float32)
    for start in range(0, n, 10_000):
        size = min(10_000, n - start)
        chosen = rng.choice(CLUSTERS, size, p=weights)
        inner = rng.standard_normal((size, len(basis)), dtype=np.float32) * spread
        noise = rng.standard_normal((size, dim), dtype=np.float32) * np.float32(0.65 / np.sqrt(dim))
        rows = centres[chosen] + 0.75 * inner @ basis + noise
        out[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def local_dimension(gallery: NDArray[np.float32], queries: NDArray[np.float32], k: int = 100) -> float:
    """Median local intrinsic dimension by maximum likelihood; copies of a query do not count as its neighbours.

    Vectors are normalised first. NaN if no query has two neighbours at different distances.

    Source: Levina and Bickel, Maximum likelihood estimation of intrinsic dimension, 2004.
    """
    cosine = np.clip(_unit(queries) @ _unit(gallery).T, -1, 1)
    nearest = np.sqrt(np.maximum(2 - 2 * -np.sort(-cosine, axis=1)[:, :k], 0))
    found = []
    for distances in nearest:
        apart = distances[distances > COPY]
        if len(apart) > 1 and apart[0] < apart[-1]:
            found.append(-1 / np.mean(np.log(apart[:-1] / apart[-1])))
    return float(np.median(found)) if found else float("nan")


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)
