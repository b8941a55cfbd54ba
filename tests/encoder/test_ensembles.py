from pathlib import Path

import numpy as np
import pytest
import torch

from shared.encoder.build import build
from shared.encoder.cards import IMAGENET_MEAN, IMAGENET_STD, WEIGHTS, read
from shared.encoder.derive import build_ensemble, read_features
from shared.encoder.ensemble import PRESETS
from shared.encoder.kinds import body, load_network
from shared.encoder.network import Network
from shared.encoder.runtime import load
from shared.encoder.samples import samples
from shared.encoder.tta import Views
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe

SIDE = 64
PIXELS = samples(5, SIDE, 21)
HALF = (0.5,) * 3


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models with a long and a short embedding, of different scale and normalisation."""
    models = tmp_path_factory.mktemp("members")
    build(models / "long", "long", "mobilenet_v2", "random:1", Recipe(size=SIDE))
    build(models / "short", "short", "squeezenet1_0", "random:2", Recipe(size=SIDE), HALF, HALF)
    build(models / "same", "same", "squeezenet1_0", "random:3", Recipe(size=SIDE))
    return [models / name for name in ("long", "short", "same")]


@pytest.fixture(scope="module")
def united(members, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of the first two, each normalised; read only."""
    folder = tmp_path_factory.mktemp("ensembles") / "united"
    build_ensemble(folder, "united", members[:2], note="a test")
    return folder


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(folder: Path, pixels: np.ndarray = PIXELS) -> np.ndarray:
    return load(folder, "torch").encode(pixels).embeddings


def check(folder: Path, wanted: np.ndarray) -> None:
    for runtime in ("onnx", "torch"):
        found = load(folder, runtime).encode(PIXELS).embeddings
        np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())


def test_unit_makes_each_member_unit_before_they_are_concatenated(members, united: Path) -> None:
    card = read(united)
    check(united, np.concatenate([unit(vectors(m)) for m in members[:2]], 1))
    assert (card.dim, card.pooling, card.channels, card.mean, card.weights.note) == (
        1792, "members", 1, (0.0,), "a test",
    )  # fmt: skip
    assert [member["architecture"] for member in card.options["members"]] == ["mobilenet_v2", "squeezenet1_0"]
    assert card.options["members"][1]["mean"] == list(HALF)
    assert card.about["members"] == [read(m).fingerprint for m in members[:2]]


def test_raw_leaves_them_as_they_are(members, tmp_path: Path) -> None:
    build_ensemble(tmp_path / "e", "e", members[:2], "raw")
    wanted = np.concatenate([vectors(m) for m in members[:2]], 1)
    check(tmp_path / "e", wanted)
    assert not np.allclose(wanted[:, :1280], unit(wanted[:, :1280]), atol=0.1)


def test_a_mean_weighs_unit_vectors_of_equal_length(members, tmp_path: Path) -> None:
    build_ensemble(tmp_path / "e", "e", members[1:], "mean", weights=(3, 1))
    check(tmp_path / "e", 0.75 * unit(vectors(members[1])) + 0.25 * unit(vectors(members[2])))
    build_ensemble(tmp_path / "even", "even", members[1:], "mean")
    check(tmp_path / "even", 0.5 * unit(vectors(members[1])) + 0.5 * unit(vectors(members[2])))
    with pytest.raises(Invalid, match="different lengths"):
        build_ensemble(tmp_path / "unlike", "unlike", members[:2], "mean")


def test_principal_components_are_fitted_on_training_images_and_stand_in_the_weights(
    members, united: Path, tmp_path: Path
) -> None:
    train = vectors(united, samples(30, SIDE, 3))
    np.save(tmp_path / "train.npy", train)
    card = build_ensemble(tmp_path / "e", "e", members[:2], "pca", features=read_features(tmp_path / "train.npy"))
    assert card.dim == 29  # 30 centred vectors span at most 29 dimensions
    _, _, rows = np.linalg.svd((train - train.mean(0)).astype(np.float64), full_matrices=False)
    found = load(tmp_path / "e").encode(PIXELS).embeddings
    wanted = (vectors(united) - train.mean(0)) @ rows[:29].T
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-3)
    check(tmp_path / "e", found)
    doubled = np.concatenate([train, train[:5]])  # a folder with copies of images
    assert build_ensemble(tmp_path / "d", "d", members[:2], "pca", features=doubled).dim == 29
    with pytest.raises(Invalid, match="all images are equal"):
        build_ensemble(tmp_path / "x", "x", members[:2], "pca", features=train[[0, 0]])
    with pytest.raises(Invalid, match="needs features"):
        build_ensemble(tmp_path / "x", "x", members[:2], "pca")
    with pytest.raises(Invalid, match="other joins take none"):
        build_ensemble(tmp_path / "x", "x", members[:2], "unit", features=train)
    with pytest.raises(Invalid, match=r"\(n, 1792\)"):
        build_ensemble(tmp_path / "x", "x", members[:2], "pca", features=train[:, :99])


def test_components_are_not_fitted_to_vectors_of_another_ensemble(members, united: Path, tmp_path: Path) -> None:
    """They have the right shape, but would be components of directions that this ensemble's vectors do not have."""
    frames = samples(30, SIDE, 3)
    raw = np.concatenate([vectors(member, frames) for member in members[:2]], 1)
    for wrong, order in ((raw, members[:2]), (vectors(united, frames), members[1::-1])):
        with pytest.raises(Invalid, match="vectors of the unit ensemble of the same members"):
            build_ensemble(tmp_path / "x", "x", order, "pca", features=wrong)


def test_five_views_are_averaged_raw_for_each_member_before_they_are_joined(
    members, united: Path, tmp_path: Path
) -> None:
    card = build_ensemble(tmp_path / "e", "e", members[:2], tta="five")
    views = Views(SIDE)(torch.from_numpy(PIXELS)).numpy().clip(0, 1)
    means = [vectors(m, views).reshape(5, len(PIXELS), -1).mean(0) for m in members[:2]]
    check(tmp_path / "e", np.concatenate([unit(mean) for mean in means], 1))
    plain = read(united)
    assert (card.tta, plain.tta) == ("five", "none")
    assert card.weights.sha256 == plain.weights.sha256
    assert card.fingerprint != plain.fingerprint


def test_an_ensembles_weights_are_its_members_under_a_prefix(members, united: Path) -> None:
    network = load_network(read(united), united / WEIGHTS)
    alone = load_network(read(members[1]), members[1] / WEIGHTS)
    mine = dict(network.named_parameters())
    for key, value in alone.named_parameters():
        assert torch.equal(mine[f"body.members.1.{key}"], value)


def test_one_untrained_member_makes_the_ensemble_untrained(united: Path, tmp_path: Path) -> None:
    card = read(united)
    assert (card.weights.trained, card.weights.seed) == (False, 1)
    assert "untrained" in card.label
    again = build(tmp_path / "f", "f", "ensemble", str(united / WEIGHTS), Recipe(size=SIDE), options=card.options)
    assert again.fingerprint == card.fingerprint  # its ensemble file rebuilds the same model
    assert not again.weights.trained


def test_members_that_do_not_go_together_are_refused(members, united: Path, tmp_path: Path) -> None:
    build(tmp_path / "wide", "wide", "squeezenet1_0", "random:0", Recipe(size=96), graph=False)
    build(tmp_path / "views", "views", "squeezenet1_0", "random:0", Recipe(size=SIDE), tta="five:4", graph=False)
    build(tmp_path / "null", "null", "null", "random:0", Recipe(size=SIDE))
    others = [*(tmp_path / name for name in ("wide", "views", "null")), united]
    for wrong in ([], *([members[0], other] for other in others)):
        with pytest.raises(Invalid):
            build_ensemble(tmp_path / "x", "x", wrong)
    with pytest.raises(NotFound):
        build_ensemble(tmp_path / "x", "x", [tmp_path / "nowhere"])
    with pytest.raises(Conflict):
        build_ensemble(united, "united", members[:2])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("preset", "dim"),
    [("best_two_advanced", 3072), ("mixed_best", 2560), ("best_two_metric", 1024), ("mega_all", 7168)],
)
def test_the_named_ensembles_have_the_papers_dimensions(preset: str, dim: int) -> None:
    members = [
        {"architecture": part.architecture, "options": {"head": part.head} if part.head else {}}
        for part in PRESETS[preset]
    ]
    network = Network(body("ensemble", {"members": members}, empty=True), (0.0,), (1.0,)).to("meta")
    assert network(torch.empty(2, 64, 64, device="meta")).shape == (2, dim)


def test_a_named_ensemble_takes_its_own_members_in_its_own_order(members, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"densenet121 \(advanced\), resnet50 \(advanced\)"):
        build_ensemble(tmp_path / "e", "e", members[:2], preset="best_two_advanced")
    with pytest.raises(Invalid, match="mega_all"):
        build_ensemble(tmp_path / "e", "e", members[:2], preset="best")


def test_features_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_features(tmp_path / "none.npy")
    (tmp_path / "text.npy").write_text("no numbers")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ")
    np.save(tmp_path / "flat.npy", np.ones(4))
    np.save(tmp_path / "empty.npy", np.ones((0, 4)))
    np.save(tmp_path / "nan.npy", np.full((9, 4), np.nan))
    np.save(tmp_path / "large.npy", np.full((9, 4), 1e300))
    for name in ("text", "zip", "header", "flat", "empty", "nan", "large"):
        with pytest.raises(Invalid):
            read_features(tmp_path / f"{name}.npy")


@pytest.mark.soak  # 35 million weights, five views of 224 x 224
def test_the_super_ensemble_with_five_views_at_full_size(built, tmp_path: Path) -> None:
    folders = [built("densenet121"), built("resnet50")]
    card = build_ensemble(tmp_path / "super", "super", folders, preset="best_two_advanced", tta="five")
    assert (card.dim, card.tta) == (3072, "five")
    pixels = samples(2, 224, 8)
    views = Views(224)(torch.from_numpy(pixels)).numpy().clip(0, 1)
    means = [vectors(folder, views).reshape(5, 2, -1).mean(0) for folder in folders]
    found = load(tmp_path / "super").encode(pixels).embeddings
    wanted = np.concatenate([unit(mean) for mean in means], 1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (read(folders[0]).mean, read(folders[0]).std) == (IMAGENET_MEAN, IMAGENET_STD)
