import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pictures import breast, dataset, file_of

from shared.errors import Invalid
from shared.imaging.preprocess import box_mean, breast_box, cut, reduction, thumbnail, wants_mirror
from shared.imaging.recipe import Recipe
from shared.types import Header


def header(**changes):
    return Header(sop_instance_uid="1.1", study_instance_uid="1.2", series_instance_uid="1.3", **changes)


def slow_mean(values, factor):
    rows, columns = values.shape[0] // factor, values.shape[1] // factor
    out = np.zeros((rows, columns))
    for y in range(rows):
        for x in range(columns):
            out[y, x] = values[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].astype(np.float64).mean()
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
@given(st.data())
def test_the_box_mean_is_the_mean_of_each_box(dtype, data):
    factor = data.draw(st.integers(1, 7))
    shape = data.draw(st.tuples(st.integers(factor, 20), st.integers(factor, 20)))
    elements = {"min_value": -1000, "max_value": 1000} if dtype is np.float32 else None
    values = data.draw(arrays.arrays(dtype, shape, elements=elements))
    got = box_mean(values, factor, values.dtype.itemsize * 8)
    assert got.dtype == np.float32
    expected = slow_mean(values, factor)
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-2)


def test_twelve_bits_do_not_overflow_at_any_factor():
    values = np.full((64, 64), 4095, dtype=np.uint16)
    assert all(np.all(box_mean(values, factor, 12) == 4095) for factor in (2, 3, 4, 5, 8, 16))


@pytest.mark.parametrize(
    ("rows", "columns", "recipe", "factor"),
    [
        (2294, 1914, Recipe(), 4),
        (447, 900, Recipe(), 1),
        (448, 448, Recipe(), 1),
        (896, 896, Recipe(), 2),
        (2294, 1914, Recipe(crop="breast"), 2),
        (10, 10, Recipe(), 1),
    ],
)
def test_the_shorter_side_keeps_at_least_twice_the_input(rows, columns, recipe, factor):
    assert reduction(rows, columns, recipe) == factor


def half(right=False):
    frame = np.zeros((40, 30), dtype=np.float32)
    frame[5:35, :20] = 0.8
    return frame[:, ::-1].copy() if right else frame


def test_the_breast_box_ignores_small_marks():
    frame = half()
    frame[0, 28] = 1.0
    rows, columns = breast_box(frame)
    assert (rows, columns) == (slice(5, 35), slice(0, 20))


def test_an_empty_frame_is_kept_whole():
    assert breast_box(np.zeros((10, 12), dtype=np.float32)) == (slice(0, 10), slice(0, 12))


@pytest.mark.parametrize(
    ("right", "changes", "expected"),
    [
        (False, {"modality": "MG", "laterality": "R"}, True),
        (True, {"modality": "MG", "laterality": "L"}, False),
        (True, {"modality": "CR", "laterality": "R"}, False),
        (True, {"modality": "MG"}, True),
        (False, {"modality": "MG"}, False),
        (True, {"modality": "OT"}, True),
        (True, {"modality": "CT"}, False),
        (True, {"modality": "MG", "laterality": "B"}, True),
    ],
)
def test_a_mirror_follows_the_laterality_and_else_the_mass(right, changes, expected):
    assert wants_mirror(half(right=right), header(**changes)) is expected


def test_right_and_left_breasts_become_the_same_picture(sandbox):
    recipe = Recipe(crop="breast", mirror="left", pad="square")
    left, right = breast(600, 500), breast(600, 500, right=True)
    one = sandbox.decode(file_of(dataset(left, ImageLaterality="L", BitsStored=12), left), recipe)
    other = sandbox.decode(file_of(dataset(right, ImageLaterality="R", BitsStored=12), right), recipe)
    assert (one.flipped, other.flipped) == (False, True)
    assert np.abs(one.pixels - other.pixels).max() < 1e-5


@pytest.mark.parametrize(("side", "rows_run_to", "flipped"), [("R", "A", False), ("L", "PL", True), ("R", "L", True)])
def test_the_orientation_of_a_mammogram_counts_more_than_its_side(sandbox, side, rows_run_to, flipped):
    values = breast(300, 250, right=flipped)
    ds = dataset(values, ImageLaterality=side, PatientOrientation=[rows_run_to, "F"], BitsStored=12)
    assert sandbox.decode(file_of(ds, values), Recipe(mirror="left")).flipped is flipped


def test_a_right_knee_is_not_mirrored(sandbox):
    values = breast(300, 250)
    ds = dataset(values, Modality="DX", ImageLaterality="R", PatientOrientation=["P", "F"], BitsStored=12)
    assert not sandbox.decode(file_of(ds, values), Recipe(mirror="left")).flipped


def test_a_square_keeps_the_aspect_ratio_and_the_chest_wall_at_the_edge():
    tall = np.ones((100, 50), dtype=np.float32)
    centred = cut(tall, Recipe(size=40, pad="square"), mirror=False)
    assert np.all(centred[:, 12:28] == 1)
    assert np.all(centred[:, :8] == 0)
    assert np.all(centred[:, 32:] == 0)
    at_wall = cut(tall, Recipe(size=40, pad="square", mirror="left"), mirror=False)
    assert np.all(at_wall[:, :18] == 1)
    assert np.all(at_wall[:, 22:] == 0)


def test_a_squash_fills_the_square():
    assert np.all(cut(np.ones((100, 50), dtype=np.float32), Recipe(size=40), mirror=False) == 1)


def test_a_mirror_turns_columns_round():
    frame = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    straight = cut(frame, Recipe(size=64), mirror=False)
    assert np.array_equal(cut(frame, Recipe(size=64), mirror=True), straight[:, ::-1])


@pytest.mark.parametrize(
    ("shape", "expected"), [((512, 256), (256, 128)), ((100, 50), (100, 50)), ((1000, 3), (256, 1))]
)
def test_a_thumbnail_fits_256_pixels(shape, expected):
    picture = thumbnail(np.full(shape, 0.5, dtype=np.float32))
    assert picture.shape == expected
    assert np.all(picture == 128)


def test_a_small_picture_is_enlarged_to_the_input_size(sandbox):
    values = breast(20, 18)
    assert sandbox.decode(file_of(dataset(values), values), Recipe()).pixels.shape == (1, 224, 224)


def test_an_unknown_key_of_a_recipe_is_refused():
    with pytest.raises(Invalid):
        Recipe.from_json({"size": 224, "sise": 3})


def test_a_large_picture_is_cut_at_a_large_size_within_the_memory_limit(sandbox):
    values = np.tile(breast(1024, 1024, bits=8), (4, 4))
    got = sandbox.decode(file_of(dataset(values), values), Recipe(size=2048, pad="square"))
    assert got.pixels.shape == (1, 2048, 2048)
    assert got.pixels.max() > 0.5
