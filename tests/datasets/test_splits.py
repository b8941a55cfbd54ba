import numpy as np
import pytest

from shared.datasets.splits import hold_out


def test_what_is_held_out_are_whole_groups_of_every_class():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 200, 1000)
    labels = groups % 5
    labels[rng.random(1000) < 0.1] = 0
    pool = rng.random(1000) < 0.9
    pool = ~np.isin(groups, groups[~pool][:20])
    taken = hold_out(pool, labels, groups, 0.2)
    assert not (taken & ~pool).any()
    assert not set(groups[taken]) & set(groups[pool & ~taken])
    assert taken.sum() == pytest.approx(0.2 * pool.sum(), rel=0.2)
    assert np.array_equal(taken, hold_out(pool, labels, groups, 0.2))


def test_a_class_of_one_group_stays_in_training():
    labels, groups = np.array([0, 0, 0, 0, 1, 1]), np.array([1, 2, 3, 4, 5, 5])
    assert hold_out(np.ones(6, bool), labels, groups, 0.25)[4:].tolist() == [False, False]
