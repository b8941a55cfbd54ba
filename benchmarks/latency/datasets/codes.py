"""`codes:BITS:ROWS`: hash codes, of which three in ten are copies of others, as hashing by class makes them."""

import numpy as np

from benchmarks.clustered import clustered
from benchmarks.latency.datasets.base import Made
from shared.errors import Invalid

DIM = 128
COPIES = 0.3
PART = 100_000


def make(text: str, queries: int, seed: int) -> Made:
    """Signs of a random projection of clustered vectors; every third query is a copy of a row."""
    try:
        bits, rows = map(int, text.split(":"))
    except ValueError:
        raise Invalid("codes read codes:BITS:ROWS") from None
    if bits % 64:
        raise Invalid("codes are of whole words of 64 bits")
    rng = np.random.default_rng(seed)
    projection = rng.standard_normal((DIM, bits)).astype(np.float32)
    own = max(1, int(rows * (1 - COPIES)))
    parts = [
        np.packbits(clustered(min(PART, own + queries - start), DIM, seed + start) @ projection >= 0, axis=1)
        for start in range(0, own + queries, PART)
    ]
    unique = np.concatenate(parts)[rng.permutation(own + queries)]  # queries come from the same mixtures as the rows
    fresh, unique = unique[own:], unique[:own]
    gallery = np.concatenate([unique, unique[rng.integers(0, own, rows - own)]])[rng.permutation(rows)]
    fresh[::3] = gallery[rng.integers(0, rows, len(fresh[::3]))]
    said = f"signs of a projection of clustered vectors, {COPIES:.0%} copies; seed {seed}"
    return Made(rows=gallery, queries=np.ascontiguousarray(fresh), about={"source": said, "seed": seed})
