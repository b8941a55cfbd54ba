import numpy as np
import pytest
from PIL import Image

from shared.datasets.development import load
from shared.datasets.published import published
from shared.errors import Invalid, NotFound
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.training.protocols import Subjects, protocol
from tests.datasets import made
from tests.datasets.test_cbis_ddsm import UIDS, line, write

NAMES = {f"P{p}_{side}_{kind}_CC": p % 5 + 1 for p in range(1, 21) for side in "LR" for kind in ("DM", "CM")}


def test_a_download_is_a_collection_by_patient_with_categories_for_classes(tmp_path):
    made.cdd_cesm(tmp_path / "cdd-cesm", NAMES)
    held = load("cdd-cesm", tmp_path, 48)
    assert held.images.shape == (80, 48, 48)
    assert held.classes == tuple(f"BI-RADS {n}" for n in (1, 2, 3, 4, 5))
    assert set(held.sources) == {"cdd-cesm/DM_low_energy", "cdd-cesm/CESM_subtracted"}
    assert len(np.unique(held.groups)) == 20
    for part in ("train", "val", "test"):
        assert set(held.part(part).labels) == set(range(5))
    parts = [set(held.part(part).groups) for part in ("train", "val", "test")]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]


def test_images_stand_beside_their_own_labels_and_are_padded_with_zero(tmp_path):
    root = made.cdd_cesm(tmp_path, NAMES)
    held = load("cdd-cesm:DM_low_energy", root, 96)
    assert len(held) == 40
    paths = sorted((root / made.LOW).iterdir())
    for n, path in enumerate(paths):
        assert held.classes[held.labels[n]] == f"BI-RADS {NAMES[path.stem]}"
        with Image.open(path) as picture:
            assert np.abs(held.images[n][:, 8:88].astype(int) - np.asarray(picture)).mean() < 4
    assert not held.images[:, :, :8].any()


def test_a_model_is_shown_a_published_set_by_its_own_recipe(tmp_path):
    root = made.cdd_cesm(tmp_path, NAMES)
    paths = sorted((root / made.LOW).iterdir())
    with Sandbox() as sandbox:
        for recipe in (Recipe(size=48), Recipe(size=48, pad="square"), Recipe(size=32, crop="breast")):
            held = load("cdd-cesm:DM_low_energy", root, recipe=recipe)
            for image, path in zip(held.images, paths, strict=True):
                decoded = sandbox.decode(path, recipe).pixels[0]
                assert np.abs(image - decoded * 255).max() < 0.51


def test_incomplete_and_proven_categories_and_undecodable_images_are_left_out(tmp_path, capsys):
    names = {"P1_L_DM_CC": 0, "P2_L_DM_CC": 6, "P3_L_DM_CC": None, "P4_L_DM_CC": 3, "P5_L_DM_CC": 4}
    root = made.cdd_cesm(tmp_path, names)
    broken = root / made.LOW / "P5_L_DM_CC.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    table = published("cdd-cesm", root, Recipe(size=32))
    assert (table.classes, list(table.groups), list(table.labels)) == (("BI-RADS 3",), ["4"], [0])
    table = published("cdd-cesm", root, Recipe(size=32), folded=True)
    assert (table.classes, list(table.groups)) == (("BI-RADS 3", "BI-RADS 5"), ["2", "4"])
    assert list(table.labels) == [1, 0]
    assert table.note == "1 files not decoded"
    assert not capsys.readouterr().out, "standard output is for data"


def test_a_name_says_whether_the_proven_ones_are_folded(tmp_path):
    names = {"P1_L_DM_CC": 6, "P1_L_CM_CC": 6, **{f"P{p}_L_DM_CC": 2 for p in range(2, 5)}}
    root = made.cdd_cesm(tmp_path, names)
    assert load("cdd-cesm", root, 32).classes == ("BI-RADS 2",)
    assert np.bincount(load("cdd-cesm::folded", root, 32).labels).tolist() == [3, 2]
    assert np.bincount(load("cdd-cesm:DM_low_energy:folded", root, 32).labels).tolist() == [3, 1]
    with pytest.raises(NotFound, match="folded"):
        load("cdd-cesm::bent", root, 32)


def test_a_name_may_ask_for_the_worst_category_of_each_breast(tmp_path):
    names = {"P1_L_DM_CC": 2, "P1_L_CM_CC": 5, "P1_R_DM_CC": 1, "P2_L_DM_CC": 6, "P2_L_DM_MLO": 4, "P3_L_DM_CC": 1}
    root = made.cdd_cesm(tmp_path, names)

    def labelled(name):
        held = load(name, root, 32)
        return [held.classes[label][-1] for label in held.labels]  # in the order of their paths, low energy first

    assert labelled("cdd-cesm") == ["2", "1", "4", "1", "5"]
    assert labelled("cdd-cesm::breast") == ["5", "1", "1", "5"]
    assert labelled("cdd-cesm:DM_low_energy:breast") == ["5", "1", "1"]
    assert labelled("cdd-cesm::folded:breast") == labelled("cdd-cesm::breast:folded") == ["5", "1", "5", "5", "1", "5"]
    for name in ("cdd-cesm::breast:breast", "cdd-cesm::breast:"):
        with pytest.raises(NotFound, match="breast"):
            load(name, root, 32)


def test_figures_of_a_published_set_are_told_by_view_too(tmp_path):
    names = {f"P{p}_L_DM_{view}": p % 2 + 1 for p in range(1, 9) for view in ("CC", "MLO")}
    held = load("cdd-cesm", made.cdd_cesm(tmp_path, names), 32)
    assert held.views.tolist() == ["CC", "MLO"] * 8
    train = held.part("train")
    assert len(train.views) == len(train) < 16
    subjects = Subjects.of(held)
    assert subjects.columns["view"].tolist() == held.views.tolist()
    (fold,) = protocol("lopo:CC:MLO").folds(subjects)
    assert (set(held.views[fold.queries]), set(held.views[fold.gallery])) == ({"CC"}, {"MLO"})


def test_a_patient_on_both_sides_of_the_published_split_is_in_train_alone(tmp_path):
    both, other = "P_00001", "P_00002"
    write(
        tmp_path,
        mass=[line(both)],
        calc_test=[line(both, kind="Calc", part="Test"), line(other, kind="Calc", part="Test")],
    )
    for n, film in enumerate(sorted((tmp_path / "CBIS-DDSM").iterdir())):
        made.dicom(film / UIDS / "1-1.dcm", made.noise(n), n)
    table = published("cbis-ddsm", tmp_path, Recipe(size=32))
    assert sorted(zip(table.groups, table.split, strict=True)) == [(both, "train"), (both, "train"), (other, "test")]


def test_a_patient_is_in_the_same_part_whatever_the_name_of_the_set_selects(tmp_path):
    rng = np.random.default_rng(0)
    names = {f"P{p}_{side}_{kind}_CC": int(rng.integers(1, 7)) for p in range(1, 41) for side in "LR"
             for kind in ("DM", "CM")}  # fmt: skip
    root = made.cdd_cesm(tmp_path, names)

    def part_of(**options):
        table = published("cdd-cesm", root, Recipe(size=32), **options)
        return set(zip(table.groups, table.split, strict=True))

    whole = part_of(folded=True)
    assert len(whole) == 40
    assert {part for _, part in whole} == {"train", "val", "test"}
    (root / made.LOW / "P7_L_DM_CC.jpg").write_bytes(b"broken")
    for options in ({}, {"kind": "DM_low_energy"}, {"kind": "CESM_subtracted", "folded": True}, {"breast": True}):
        assert part_of(**options) <= whole


def test_without_a_side_or_a_download_or_any_category_there_is_no_collection(tmp_path):
    with pytest.raises(Invalid, match="side"):
        load("cdd-cesm", tmp_path)
    with pytest.raises(Invalid, match="no image"):
        load("cdd-cesm", tmp_path, 32)
    with pytest.raises(Invalid, match="category"):
        load("cdd-cesm", made.cdd_cesm(tmp_path, {"P1_L_DM_CC": 0}), 32)
    with pytest.raises(NotFound, match="cdd-cesm"):
        load("cdd", tmp_path, 32)
