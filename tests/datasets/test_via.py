import math
from collections import Counter

import numpy as np
import pytest

from shared.datasets.via import POINT_RADIUS, Region, mask, parse_region, read_regions
from shared.errors import Invalid
from tests.datasets import made

SQUARE = {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [20, 20, 40, 40]}


def test_every_shape_is_read_and_belongs_to_its_image(tmp_path):
    made.regions(tmp_path / "via.csv", [
        ("P1_L_DM_CC.jpg", SQUARE),
        ("P1_L_DM_CC.jpg", {"name": "ellipse", "cx": 50, "cy": 60, "rx": 20, "ry": 10, "theta": 0.5}),
        ("P1_L_DM_MLO .jpg", {"name": "circle", "cx": 50, "cy": 60, "r": 7.5}),
        ("P2_L_DM_CC.jpg", {"name": "polyline", "all_points_x": [1, 2, 3], "all_points_y": [1, 5, 1]}),
        ("P2_L_DM_CC.jpg", {"name": "point", "cx": 5, "cy": 6}),
        ("P2_L_DM_CC.jpg", {"name": "rect", "x": 5, "y": 6, "width": 10, "height": 20}),
        ("P3_L_DM_CC.jpg", {}),
    ])  # fmt: skip
    warnings: Counter[str] = Counter()
    found = read_regions(tmp_path / "via.csv", warnings)
    assert {name: [r.shape for r in regions] for name, regions in found.items()} == {
        "P1_L_DM_CC": ["polygon", "ellipse"],
        "P1_L_DM_MLO": ["circle"],
        "P2_L_DM_CC": ["polyline", "point", "rect"],
    }
    assert found["P1_L_DM_CC"][1] == Region("ellipse", ((50.0, 60.0),), (20.0, 10.0), 0.5)
    assert not warnings


@pytest.mark.parametrize("shape", ["{", "[]", '"x"', {"name": "heart"}, {"name": "circle", "cx": 1, "cy": 2},
                                   {"name": "circle", "cx": 1, "cy": 2, "r": "3"},
                                   '{"name": "circle", "cx": NaN, "cy": 2, "r": 3}',
                                   f'{{"name": "circle", "cx": 1{"0" * 400}, "cy": 2, "r": 3}}',
                                   {"name": "polygon", "all_points_x": [1], "all_points_y": []}])  # fmt: skip
def test_a_region_that_is_not_understood_is_counted_and_left_out(tmp_path, shape):
    made.regions(tmp_path / "via.csv", [("a.jpg", shape), ("a.jpg", SQUARE)])
    warnings: Counter[str] = Counter()
    assert [len(found) for found in read_regions(tmp_path / "via.csv", warnings).values()] == [1]
    assert warnings == ({} if shape == "[]" else {"region-not-understood": 1})


def test_what_is_not_the_annotators_table_is_invalid(tmp_path):
    made.table(tmp_path / "via.csv", ["a", "b"], [[1, 2]])
    with pytest.raises(Invalid):
        read_regions(tmp_path / "via.csv", Counter())


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (SQUARE, 21 * 21),
        ({"name": "rect", "x": 10, "y": 20, "width": 20, "height": 20}, 21 * 21),
        ({"name": "circle", "cx": 60, "cy": 60, "r": 30}, math.pi * 30**2),
        ({"name": "ellipse", "cx": 60, "cy": 60, "rx": 40, "ry": 15, "theta": 0.7}, math.pi * 40 * 15),
        ({"name": "point", "cx": 60, "cy": 60}, math.pi * POINT_RADIUS**2),
        ({"name": "polyline", "all_points_x": [10, 50, 50], "all_points_y": [10, 10, 90]}, 40 * 80 / 2),
    ],
)
def test_a_mask_covers_the_area_of_its_shape(shape, area):
    region = parse_region(shape)
    assert region is not None
    assert mask([region], 120, 130).sum() == pytest.approx(area, rel=0.06)


def test_an_ellipse_is_turned_clockwise_by_its_angle():
    flat = {"name": "ellipse", "cx": 60, "cy": 60, "rx": 40, "ry": 10}
    turned = mask([parse_region(flat | {"theta": math.pi / 4})], 120, 120)
    assert turned[60 + 25, 60 + 25]  # to the right and down, as y grows downwards
    assert not turned[60 - 25, 60 + 25]
    level = mask([parse_region(flat)], 120, 120)
    assert level[60, 95]
    assert not level[95, 60]


def test_masks_of_several_regions_are_joined_and_cut_at_the_edge():
    joined = mask([parse_region(SQUARE), parse_region({"name": "circle", "cx": 0, "cy": 0, "r": 10})], 50, 40)
    assert joined.shape == (50, 40)
    assert joined.dtype == np.bool_
    assert joined[30, 20]
    assert joined[2, 2]
    assert not mask([], 5, 5).any()
