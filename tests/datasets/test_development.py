from functools import cache
from pathlib import Path

import numpy as np
import pytest

from shared.datasets.collection import Collection
from shared.datasets.development import SETS, load, square
from shared.datasets.splits import VAL
from shared.errors import Invalid, NotFound
from shared.imaging.recipe import Recipe

NAMES = [*SETS, "phantoms:10:3"]
#: images and classes according to the sets' descriptions; cxr and busi without their repeated images
SIZES = {
    "radiology_16class": (5477, 16),
    "radiology_mednist": (9000, 6),
    "cxr": (5002, 2),
    "mias": (322, 3),
    "mias-density": (322, 3),
    "mias-lesions": (119, 2),
    "busi": (778, 3),
    "ood": (1075, 23),
    "phantoms:10:3": (40, 5),
}


@cache
def small(name: str, root: Path) -> Collection:
    return load(name, root, 32)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_is_complete_and_no_group_is_on_two_sides(name, data_dir):
    held = small(name, data_dir)
    assert (len(held), len(held.classes)) == SIZES[name]
    assert held.images.shape == (len(held), 32, 32)
    assert held.images.dtype == np.uint8
    assert set(np.unique(held.labels)) == set(range(len(held.classes)))
    assert {len(a) for a in (held.labels, held.groups, held.split, held.sources)} == {len(held)}
    sides = {group: set(held.split[held.groups == group]) for group in np.unique(held.groups)}
    assert all(len(found) == 1 for found in sides.values())
    assert held.licence


@pytest.mark.parametrize("name", [n for n in SETS if n != "ood"])
def test_every_part_holds_every_class_of_a_set_that_is_trained_on(name, data_dir):
    held = small(name, data_dir)
    for part in ("train", "val", "test"):
        assert set(held.part(part).labels) == set(range(len(held.classes)))


def test_splits_that_a_set_brings_are_kept(data_dir):
    held = load("radiology_16class", data_dir)
    assert len(held.part("test")) == 1186
    assert len(held.part("train", "val")) == 4291
    assert len(held.part("val")) == pytest.approx(VAL * 4291, rel=0.15)
    mednist = load("radiology_mednist", data_dir)
    assert [len(mednist.part(part)) for part in ("train", "val", "test")] == [6000, 900, 2100]
    assert set(load("ood", data_dir, 8).split) == {"test"}


def test_images_stand_beside_their_own_labels(data_dir):
    held = load("radiology_16class", data_dir)
    with np.load(data_dir / "radiology_16class" / "radiology16_64.npz") as raw:
        assert np.array_equal(held.images[4291:], raw["test_images"])
        assert np.array_equal(held.labels[:4291], raw["train_labels"].ravel())
    of_mias = held.sources == "mammography_mias"
    assert {held.classes[label] for label in held.labels[of_mias]} == {
        "Mammo_normal",
        "Mammo_benign",
        "Mammo_malignant",
    }


def test_the_same_image_is_there_once_and_not_under_two_labels(data_dir):
    for name in ("cxr", "busi"):
        held = load(name, data_dir)
        assert len({image.tobytes() for image in held.images}) == len(held)


def test_loading_twice_gives_the_same(data_dir):
    first, again = small("mias", data_dir), load("mias", data_dir, 32)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.split, again.split)


def test_phantoms_need_no_folder_and_follow_their_seed():
    first, again, other = (load(name, Path("none"), 64) for name in ("phantoms:3:1", "phantoms:3:1", "phantoms:3:2"))
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    assert first.classes[0] == "BI-RADS 1"
    assert len(np.unique(first.groups)) == 2  # every third woman has an earlier study


@pytest.mark.parametrize("name", ["phantoms", "phantoms:0:1", "phantoms:5", "phantoms:-3:1", "phantoms:a:b"])
def test_a_wrong_number_of_phantoms_is_invalid(name):
    with pytest.raises(Invalid):
        load(name, Path("none"))


def test_an_unknown_name_or_an_absent_folder_is_not_found(tmp_path):
    for name in ("nothing", "mias"):
        with pytest.raises(NotFound):
            load(name, tmp_path)


def test_images_of_several_sizes_need_a_side(data_dir):
    with pytest.raises(Invalid):
        load("ood", data_dir)


def test_a_square_is_padded_in_the_middle_and_shrunk_by_area():
    image = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)
    assert square(image).tolist() == [[0] * 4, [10, 20, 30, 40], [50, 60, 70, 80], [0] * 4]
    assert square(image, 2).tolist() == [[8, 18], [28, 38]]
    colour = np.stack([image, image, 4 * (image // 8)], axis=-1)
    assert square(colour)[1, 0] == round((10 + 10 + 4) / 3)


def test_a_recipe_that_squashes_stretches_the_shorter_axis():
    image = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)
    assert square(image, 2, "squash").tolist() == [[15, 35], [55, 75]]
    assert square(image, pad="squash")[[0, 3]].tolist() == [[10, 20, 30, 40], [50, 60, 70, 80]]
    squashed = load("phantoms:1:1", Path(), recipe=Recipe(size=64))
    padded = load("phantoms:1:1", Path(), recipe=Recipe(size=64, pad="square"))
    assert np.array_equal(padded.images, load("phantoms:1:1", Path(), 64).images)
    edges = [0, -1]
    assert not padded.images[:, :, edges].any()
    assert (squashed.images[:, :, edges] > 0).any(axis=(1, 2)).all()
