"""The scan shared by engines against counting bits, up to sizes where the radius is estimated from a sample."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.index import codes
from shared.index.codes import Rows


def everything(count: int) -> codes.Allowed:
    return lambda rows: np.ones(count if rows is None else len(rows), bool)


def plainly(table: NDArray[np.uint8], code: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.unpackbits(table ^ code, axis=1).sum(axis=1).astype(np.int64)


@pytest.mark.parametrize("copies", [1, 500])
@pytest.mark.parametrize("k", [1, 100, 5000])
def test_a_guessed_radius_changes_nothing(k: int, copies: int) -> None:
    rng = np.random.default_rng(k + copies)
    table = np.repeat(rng.integers(0, 256, (60_000 // copies, 8), dtype=np.uint8), copies, axis=0)
    code = table[0] ^ np.uint8(1)
    counted = plainly(table, code)
    radius = np.sort(counted)[k - 1]
    scan = codes.ball(table, code, everything(len(table)), k=k, radius=None)
    assert scan.radius == radius
    assert sorted(scan.rows.tolist()) == np.flatnonzero(counted <= radius).tolist()
    assert (scan.distances == counted[scan.rows]).all()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.05, 0.5])
def test_a_filter_takes_rows_before_they_are_counted(share: float) -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, 256, (50_000, 32), dtype=np.uint8)
    alive = rng.random(len(table)) < share

    def allowed(rows: Rows | None) -> NDArray[np.bool_]:
        return alive if rows is None else alive[rows]

    counted = np.where(alive, plainly(table, table[0]), 10_000)
    scan = codes.ball(table, table[0], allowed, k=30, radius=None)
    expected = np.flatnonzero(counted <= min(np.sort(counted)[29], 256))
    assert sorted(scan.rows.tolist()) == expected.tolist()


def test_short_codes_are_padded_without_a_difference() -> None:
    table = np.random.default_rng(2).integers(0, 256, (100, 2), dtype=np.uint8)
    assert (codes.distances(codes.padded(table), codes.padded(table[:1])[0]) == plainly(table, table[0])).all()


def test_signs_score_as_qdrant_does() -> None:
    a, b = np.random.default_rng(3).integers(0, 256, (2, 4), dtype=np.uint8)
    assert codes.signs(a, 32) @ codes.signs(b, 32) == 32 - 2 * plainly(a[None], b)[0]


@pytest.mark.parametrize("most", [1, 7, 20, 39, 40])
def test_a_ball_is_cut_nearest_first_and_then_by_id(most: int) -> None:
    rng = np.random.default_rng(4)
    rows, found = np.arange(40), rng.integers(0, 4, 40).astype(np.int32)
    numbers = rng.permutation(40)
    listed, cut = codes.ordered(codes.Scan(rows, found, 4), lambda row: int(numbers[row]), most)
    expected = sorted((int(found[row]), int(numbers[row]), row) for row in range(40))[:most]
    assert [(distance, number, row) for number, distance, row in listed] == expected
    assert cut == (most < 40)


def test_a_rim_of_the_whole_archive_is_cut_in_little_memory() -> None:
    """100,000 equal codes, which as a list would take 15 MB."""
    many = 100_000
    scan = codes.Scan(np.arange(many), np.zeros(many, np.int32), 0)
    tracemalloc.start()
    try:
        listed, cut = codes.ordered(scan, lambda row: many - row, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ([number for number, _, _ in listed], cut) == (list(range(1, 101)), True)
    assert peak < 3e6
