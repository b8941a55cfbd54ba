from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.encoder.build import build
from shared.encoder.cards import GRAPH, read
from shared.encoder.derive import build_hashed
from shared.encoder.hashing import codes, fit_hash, principal
from shared.encoder.runtime import load
from shared.encoder.samples import samples
from shared.errors import Conflict, Invalid

RNG = np.random.default_rng(3)
CLOUD = (RNG.standard_normal((200, 24)) * np.linspace(3, 0.5, 24) + 1).astype(np.float32)


def test_the_components_are_those_of_a_covariance_and_each_has_a_sign_of_its_own() -> None:
    head = fit_hash(CLOUD, 16)
    unit = (CLOUD / np.linalg.norm(CLOUD, axis=1, keepdims=True)).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(unit.T))
    for row, vector in zip(head.components, vectors.T[np.argsort(-values)], strict=False):
        assert abs(row @ vector) == pytest.approx(1, abs=1e-4)
        assert row[np.abs(row).argmax()] > 0
    np.testing.assert_allclose(head.mean, unit.mean(0), atol=1e-6)


def test_the_code_does_not_see_a_vectors_length() -> None:
    head = fit_hash(CLOUD, 8)
    np.testing.assert_array_equal(codes(head.logits(CLOUD)), codes(head.logits(CLOUD * 7)))


@given(st.integers(0, 5), st.sampled_from([8, 24, 64]), st.integers(0, 99))
@settings(max_examples=30)
def test_a_bit_is_set_where_the_logit_is_at_least_zero(n: int, bits: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(-1, 2, (n, bits)).astype(np.float32)
    packed = codes(logits)
    assert packed.shape == (n, bits // 8)
    for i in range(n):
        for j in range(bits):
            bit = packed[i, j // 8] >> (7 - j % 8) & 1
            assert bit == (1 if logits[i, j] >= 0 else 0)


def test_rotation_brings_vectors_nearer_to_their_signs_and_is_the_seeds_own() -> None:
    plain, turned = fit_hash(CLOUD, 16), fit_hash(CLOUD, 16, seed=1, rotate=True)

    def loss(head) -> float:
        logits = head.logits(CLOUD)
        scale = np.abs(logits).mean()
        return float(((logits - scale * np.where(logits >= 0, 1, -1)) ** 2).mean() / scale**2)

    assert loss(turned) < loss(plain)
    np.testing.assert_allclose(turned.components @ turned.components.T, np.eye(16), atol=1e-4)  # same subspace
    np.testing.assert_array_equal(turned.components, fit_hash(CLOUD, 16, seed=1, rotate=True).components)
    assert not np.array_equal(turned.components, fit_hash(CLOUD, 16, seed=2, rotate=True).components)


@pytest.mark.parametrize(("rows", "bits"), [(200, 12), (200, 0), (200, 32), (8, 8)], ids=["12", "0", "dim", "few"])
def test_bits_that_the_images_cannot_carry_are_refused(rows: int, bits: int) -> None:
    with pytest.raises(Invalid):
        fit_hash(CLOUD[:rows], bits)


def test_copies_of_one_image_give_no_code() -> None:
    with pytest.raises(Invalid, match="directions"):
        fit_hash(np.repeat(CLOUD[:4], 20, axis=0), 8)


def test_a_logit_of_zero_sets_its_bit() -> None:
    assert codes(np.array([[-1, 0, 1, 0, -1, -1, -1, 0]], np.float32)).tolist() == [[0b01110001]]


def test_principal_directions_are_orthonormal() -> None:
    rows = principal((CLOUD - CLOUD.mean(0)).astype(np.float64), 10)
    np.testing.assert_allclose(rows @ rows.T, np.eye(10), atol=1e-9)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """A base model, the same with a fitted code, and the embeddings that the code was fitted to."""
    models = tmp_path_factory.mktemp("hashed")
    base = models / "base"
    build(base, "base", "squeezenet1_0", "random:0", recipe(64))
    vectors = load(base).encode(samples(60, 64, 1)).embeddings
    build_hashed(models / "coded", base, vectors, 32, seed=5, name="coded", rotate=True)
    return base, models / "coded", vectors


def recipe(size: int):
    from shared.imaging.recipe import Recipe

    return Recipe(size=size)


def test_a_hashed_model_gives_the_bases_vectors_and_a_code_in_both_runtimes(pair) -> None:
    base, coded, _ = pair
    pixels = samples(9, 64, 2)
    plain = load(base).encode(pixels)
    by_onnx, by_torch = (load(coded, runtime).encode(pixels) for runtime in ("onnx", "torch"))
    np.testing.assert_array_equal(by_onnx.embeddings, plain.embeddings)
    assert plain.codes is None
    assert by_onnx.codes.shape == (9, 4)
    np.testing.assert_array_equal(by_onnx.codes, by_torch.codes)
    assert len(np.unique(by_onnx.codes, axis=0)) > 1


def test_a_hashed_models_card_is_another_than_its_bases(pair) -> None:
    base, coded, _ = pair
    one, two = read(base), read(coded)
    assert (two.name, two.bits, two.options["hash"], two.about["hash"]["base"]) == ("coded", 32, "itq", one.fingerprint)
    assert one.fingerprint != two.fingerprint
    assert (base / GRAPH).read_bytes() == (coded / GRAPH).read_bytes()
    assert (two.weights.trained, two.weights.seed) == (False, 0)


def test_a_head_is_fitted_the_same_again(pair, tmp_path: Path) -> None:
    base, coded, vectors = pair
    again = build_hashed(tmp_path / "again", base, vectors, 32, seed=5, rotate=True)
    assert again.fingerprint == read(coded).fingerprint
    assert again.name == "again"
    assert build_hashed(tmp_path / "plain", base, vectors, 32).fingerprint != again.fingerprint


def test_a_code_on_a_code_a_taken_folder_and_strange_vectors_are_refused(pair, tmp_path: Path) -> None:
    base, coded, vectors = pair
    with pytest.raises(Invalid, match="already"):
        build_hashed(tmp_path / "twice", coded, vectors, 8)
    with pytest.raises(Invalid, match="512"):
        build_hashed(tmp_path / "short", base, vectors[:, :64], 8)
    with pytest.raises(Invalid, match="has no stored encodings"):  # as for a model new to the archive
        build_hashed(tmp_path / "none", base, np.empty((0, 0), np.float32), 8)
    with pytest.raises(Conflict):
        build_hashed(coded, base, vectors, 8)
    assert list(tmp_path.iterdir()) == []


def test_the_null_encoder_can_have_a_code_too(tmp_path: Path) -> None:
    build(tmp_path / "null", "null", "null", "random:0", dim=32)
    pixels = samples(40, 224, 3)
    vectors = load(tmp_path / "null").encode(pixels).embeddings
    build_hashed(tmp_path / "coded", tmp_path / "null", vectors, 16)
    found = load(tmp_path / "coded").encode(pixels)
    np.testing.assert_array_equal(found.embeddings, vectors)
    np.testing.assert_array_equal(found.codes, codes(fit_hash(vectors, 16).logits(vectors)))
    assert load(tmp_path / "coded").encode(pixels[:0]).codes.shape == (0, 2)
