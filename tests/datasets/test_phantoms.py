import numpy as np
import pytest

from shared.datasets.lesions import KINDS, Lesion
from shared.datasets.phantom import TOP, Breast, render

ROWS, COLS = 512, 400


def breast(**changes) -> Breast:
    return Breast(**({"woman": (1, 2), "side": "L", "exam": 0, "density": "B"} | changes))


def small(picture: np.ndarray) -> np.ndarray:
    """A 32 by 25 thumbnail, which reduces the effect of position and noise."""
    return picture.reshape(32, 16, 25, 16).mean((1, 3))


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(small(a).ravel(), small(b).ravel())[0, 1])


@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_the_same_breast_is_drawn_the_same_and_another_woman_is_not(view):
    first = render(breast(), view, ROWS, COLS)
    assert np.array_equal(first, render(breast(), view, ROWS, COLS))
    assert not np.array_equal(first, render(breast(woman=(1, 3)), view, ROWS, COLS))
    assert first.dtype == np.uint16
    assert first.max() <= TOP


def test_the_chest_wall_is_left_for_a_left_breast_and_right_for_a_right_one():
    left, right = (render(breast(side=side), "CC", ROWS, COLS) for side in "LR")
    assert left[:, : COLS // 4].mean() > 10 * left[:, -COLS // 8 :].mean()
    assert right[:, -COLS // 4 :].mean() > 10 * right[:, : COLS // 8].mean()


def test_only_the_oblique_view_shows_the_pectoral_muscle():
    corner = {view: render(breast(density="A"), view, ROWS, COLS)[40:80, :40].mean() for view in ("CC", "MLO")}
    assert corner["MLO"] > 0.4 * TOP > corner["CC"]


def test_an_earlier_exam_is_more_like_its_woman_than_any_other_woman_is():
    now = render(breast(), "CC", ROWS, COLS)
    before = render(breast(exam=1), "CC", ROWS, COLS)
    others = [render(breast(woman=(1, n)), "CC", ROWS, COLS) for n in range(3, 9)]
    assert not np.array_equal(now, before)
    assert likeness(now, before) > max(likeness(now, other) for other in others)


def test_a_denser_breast_is_brighter():
    means = [render(breast(density=density), "CC", ROWS, COLS).mean() for density in "ABCD"]
    assert means == sorted(means)
    assert means[-1] > 1.3 * means[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_a_lesion_brightens_one_place_at_the_same_depth_in_both_views(kind, view):
    lesion = Lesion(kind=kind, place=(0.5, 0.2, 0.1), size_mm=18)
    without = render(breast(density="A"), view, ROWS, COLS).astype(int)
    added = render(breast(density="A", lesion=lesion), view, ROWS, COLS).astype(int) - without
    rows, cols = np.nonzero(added > 0.1 * TOP)
    assert len(rows) > 3
    assert abs(cols.mean() / COLS - 0.5 * 0.6) < 0.05
    assert np.hypot(rows.std(), cols.std()) < 18 * ROWS / 215
    assert np.count_nonzero(added) < 0.15 * added.size


def test_a_lesion_at_the_edge_of_the_picture_is_cut_off_and_no_error():
    for kind in KINDS:
        for place in ((0.0, 0.9, 0.9), (1.0, -0.9, -0.9), (2.0, 3.0, 3.0)):
            lesion = Lesion(kind=kind, place=place, size_mm=60)
            assert render(breast(lesion=lesion), "MLO", 128, 100).shape == (128, 100)
