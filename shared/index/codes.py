"""Exact Hamming balls over packed codes.

Codes have many duplicates, on which graph indexes fail (recall .76 where half are copies), and a scan of a million
takes a millisecond. So every engine of ours scans. Source: Norouzi et al., "Fast search in Hamming space with
multi-index hashing", for the ball; FAISS for the scan.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.types import Codes

WORD: Final = 8  #: bytes; shorter codes are padded with zeros: the scan has no fast path below 64 bits
SAMPLE: Final = 8192  #: codes from which a radius is guessed; up to this many are all counted with NumPy
STRIP: Final = 64  #: adjacent codes in a strip of the sample: single ones would cost a cache line each
SPARE: Final = 4  #: the guessed radius should hold this many times k codes
FEW: Final = 0.1  #: where at most this share of the rows is allowed, only their distances are counted

Rows = NDArray[np.int64]
Distances = NDArray[np.int32]
#: Which of these rows are allowed (alive, and within the filter); for None, which of all rows.
Allowed = Callable[[Rows | None], NDArray[np.bool_]]


class Scan(NamedTuple):
    rows: Rows
    distances: Distances
    radius: int  #: of the ball


def padded(codes: Codes) -> Codes:
    """(n, bytes) to (n, a multiple of eight bytes), C-contiguous; distances stay the same."""
    missing = -codes.shape[1] % WORD
    return np.ascontiguousarray(np.pad(codes, ((0, 0), (0, missing))))


def distances(codes: Codes, code: Codes) -> Distances:
    """Hamming distance of each of (n, bytes) codes to one of (bytes,), all `padded`, counted with NumPy."""
    words = np.bitwise_count(codes.view(np.uint64) ^ code.view(np.uint64))
    # a matrix product sums short rows ten times as fast as `sum`, and is exact for integers below 2^24
    counts: NDArray[np.float32] = words.astype(np.float32) @ np.ones(words.shape[1], np.float32)
    return counts.astype(np.int32)


def ball(codes: Codes, code: Codes, allowed: Allowed, *, k: int | None, radius: int | None) -> Scan:
    """The allowed rows within `radius`, or as near as the k-th nearest allowed row, in no order.

    Args:
        codes: (n, bytes), `padded`.
        code: (bytes,), `padded`.
    """
    if k is None:
        assert radius is not None  # noqa: S101 - checked at the seam
        rows, found = within(codes, code, radius)
        kept = allowed(rows)
        return Scan(rows[kept], found[kept], radius)
    guess = _guess(codes, code, k)
    if guess is not None:
        rows, found = within(codes, code, guess)
        kept = allowed(rows)
        if np.count_nonzero(kept) >= k:
            return _nearest(rows[kept], found[kept], k)
    every = allowed(None)
    if np.count_nonzero(every) <= FEW * len(every):
        rows = np.flatnonzero(every)
        return _nearest(rows, distances(codes[rows], code), k)
    rows, found = within(codes, code, 8 * codes.shape[1])
    kept = every[rows]
    return _nearest(rows[kept], found[kept], k)


def within(codes: Codes, code: Codes, radius: int) -> tuple[Rows, Distances]:
    """All rows whose distance is at most `radius`."""
    if len(codes) <= SAMPLE:
        found = distances(codes, code)
        rows = np.flatnonzero(found <= radius)
        return rows, found[rows]
    import faiss as _faiss

    faiss: Any = _faiss
    result = faiss.RangeSearchResult(1)
    query, table = faiss.swig_ptr(code), faiss.swig_ptr(codes)
    faiss.hamming_range_search(query, table, 1, len(codes), radius + 1, codes.shape[1], result)  # exclusive radius
    count = int(faiss.rev_swig_ptr(result.lims, 2)[1])
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    labels, found = (faiss.rev_swig_ptr(part, count) for part in (result.labels, result.distances))
    return labels.astype(np.int64), found.astype(np.int32)


def ordered(scan: Scan, numbers: Callable[[int], int], most: int) -> tuple[list[tuple[int, int, int]], bool]:
    """(number, distance, row) by distance, then number; and whether the ball was larger than `most`.

    Args:
        numbers: gives the id of a row as a number, so that no million id objects are made for a hundred answers.
    """
    rows, found, cut = scan.rows, scan.distances, len(scan.rows) > most
    if cut:
        last = int(np.partition(found, most - 1)[most - 1])
        inside = found < last
        rim = heapq.nsmallest(  # the rim may be the whole archive: no more than `most` of it are held at a time
            most - int(np.count_nonzero(inside)),
            ((numbers(row), last, row) for row in map(int, rows[found == last])),
        )
        rows, found = rows[inside], found[inside]
    listed = [(numbers(row), distance, row) for row, distance in zip(rows.tolist(), found.tolist(), strict=True)]
    listed.sort(key=lambda one: (one[1], one[0]))
    return listed + rim if cut else listed, cut


def signs(code: Sequence[int] | Codes, bits: int) -> NDArray[np.float32]:
    """A packed code as a vector for Qdrant: -1 for 0, +1 for 1. The dot product of two is bits - 2 * distance."""
    return np.unpackbits(np.asarray(code, np.uint8), count=bits).astype(np.float32) * 2 - 1


def _guess(codes: Codes, code: Codes, k: int) -> int | None:
    """A radius that should hold about `SPARE * k` codes, from evenly spaced strips; None for few codes."""
    step = len(codes) // SAMPLE
    if step < 1:
        return None
    strips = len(codes) // (step * STRIP)
    spread = codes[: strips * step * STRIP].reshape(strips, step * STRIP, -1)[:, :STRIP]
    sample = distances(np.ascontiguousarray(spread).reshape(strips * STRIP, -1), code)
    place = min(SPARE * k // step + 2, len(sample) - 1)
    return int(np.partition(sample, place)[place])


def _nearest(rows: Rows, found: Distances, k: int) -> Scan:
    if len(rows) <= k:
        return Scan(rows, found, int(found.max(initial=0)))
    radius = int(np.partition(found, k - 1)[k - 1])
    kept = found <= radius
    return Scan(rows[kept], found[kept], radius)
