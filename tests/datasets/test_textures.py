import numpy as np

from shared.datasets.textures import textures


def test_the_same_seed_gives_the_same_pictures_and_more_of_them_hold_the_fewer():
    few, more = textures(3, 48, 7), textures(6, 48, 7)
    assert np.array_equal(more[:3], few)
    assert not np.array_equal(textures(3, 48, 8), few)


def test_no_two_pictures_are_alike_and_all_use_the_range():
    pictures = textures(24, 32, 0)
    assert pictures.shape == (24, 32, 32)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 24
    assert np.mean([picture.max() == 255 and picture.min() == 0 for picture in pictures]) > 0.9


def test_grain_and_layout_differ_between_pictures():
    pictures = textures(60, 32, 1).astype(float) / 255
    roughness = np.abs(np.diff(pictures, axis=1)).mean((1, 2))
    assert roughness.max() > 5 * roughness.min()
    assert pictures.mean((1, 2)).std() > 0.1
