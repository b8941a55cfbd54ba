"""`clustered:DIM:ROWS`: synthetic vectors, as hard to search as a network's (benchmarks/clustered.py)."""

from benchmarks.clustered import CLUSTERS, SUBSPACE, clustered
from benchmarks.latency.datasets.base import Made
from shared.errors import Invalid


def make(text: str, queries: int, seed: int) -> Made:
    """Rows and queries of one mixture."""
    try:
        dim, rows = map(int, text.split(":"))
    except ValueError:
        raise Invalid("clustered data read clustered:DIM:ROWS") from None
    vectors = clustered(rows + queries, dim, seed)
    said = f"{CLUSTERS} gaussians in one {SUBSPACE}-dimensional subspace, with noise; seed {seed}"
    return Made(rows=vectors[:rows], queries=vectors[rows:], about={"source": said, "seed": seed})
