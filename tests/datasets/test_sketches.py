import numpy as np

from shared.datasets.sketches import DRAWN, sketches


def test_the_same_seed_gives_the_same_sketches_in_turn_of_their_kinds():
    few, names = sketches(6, 48, 3)
    more, _ = sketches(8, 48, 3)
    assert names == list(DRAWN)
    assert np.array_equal(more[:6], few)
    assert not np.array_equal(sketches(6, 48, 4)[0], few)


def test_a_head_stands_in_the_dark_and_ultrasound_fills_the_picture():
    pictures, names = sketches(48, 64, 0)
    is_head = np.array([name.startswith("head") for name in names])
    edges = np.concatenate([pictures[:, 0], pictures[:, -1]], axis=1).mean(1)
    assert np.median(edges[is_head]) < 40 < np.median(edges[~is_head])


def test_a_smooth_lesion_of_ultrasound_is_darker_than_what_is_around_it():
    pictures, names = sketches(120, 64, 1)
    depth = {
        kind: np.mean([np.percentile(p[12:44, 16:48], 1) for p, n in zip(pictures, names, strict=True) if n == kind])
        for kind in ("ultrasound none", "ultrasound smooth")
    }
    assert depth["ultrasound smooth"] < depth["ultrasound none"]
