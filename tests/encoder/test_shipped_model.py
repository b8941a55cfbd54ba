"""The shipped model: the statements of its card, and its use."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from services.embedded.default_model import SHIPPED
from shared.datasets.sketches import sketches
from shared.encoder import cards
from shared.encoder.derive import with_graph
from shared.encoder.runtime import load
from shared.training.blend import mammograms


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "similis-base"
    with_graph(folder, SHIPPED)
    return load(folder)


def encoded(encoder, images):
    return encoder.encode(np.divide(images, 255, dtype=np.float32))


def test_it_is_small_trained_and_says_what_it_is_made_of():
    card = cards.read(SHIPPED)
    weights = load_file(SHIPPED / "weights.safetensors")
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 25e6
    assert sum(value.size for name, value in weights.items() if "running" not in name) < 12e6
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    assert (card.architecture, card.bits, card.reconstructs, card.weights.trained) == ("acir", 64, True, True)
    assert "not for diagnosis" in card.about["intended_use"]
    assert {"data", "recipe", "figures", "limits", "licence", "command"} <= card.about.keys()
    assert set(card.calibrations) == {"CT", "MR", "DX", "CR"}


def test_its_licence_and_attribution_stand_beside_it():
    assert (SHIPPED / "LICENSE").read_text().startswith("Attribution-ShareAlike 4.0 International")
    assert "Erickson" in (SHIPPED / "README.md").read_text()


def test_the_graph_says_what_torch_says(encoder):
    pictures, _ = sketches(12, encoder.card.recipe.size, 3)
    graph, eager = encoded(encoder, pictures), encoded(load(SHIPPED, "torch"), pictures)
    assert np.allclose(graph.embeddings, eager.embeddings, atol=1e-4)
    assert np.mean(np.unpackbits(graph.codes ^ eager.codes)) < 0.001
    assert np.allclose(graph.ood, eager.ood, rtol=1e-3)


@pytest.fixture(scope="module")
def seen(encoder):
    """Synthetic images of a seed not used in training, by kind, with the model's outputs."""
    side = encoder.card.recipe.size
    drawn, names = sketches(60, side, 99)
    breasts = mammograms(8, side, 99).images
    kinds = np.array([name.split()[0] for name in names] + ["breast"] * len(breasts))
    return kinds, encoded(encoder, np.concatenate([drawn, breasts]))


@pytest.mark.parametrize("space", ["embeddings", "codes"])
def test_the_nearest_image_is_of_the_same_kind(seen, space):
    kinds, found = seen
    vectors = found.embeddings if space == "embeddings" else np.unpackbits(found.codes, axis=1) * 2.0 - 1
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    assert np.mean(kinds[likeness.argmax(axis=1)] == kinds) > 0.95


def test_blank_images_are_stranger_than_what_it_knows(encoder):
    """White noise is an exception: its error is its variance, and the pixel gate stops it."""
    side = encoder.card.recipe.size
    odd = np.stack([np.zeros((side, side)), np.full((side, side), 255)])
    scores = encoded(encoder, odd.astype(np.uint8)).ood
    for calibration in encoder.card.calibrations.values():
        assert calibration.exceeded(scores).all()


def test_a_wheel_would_have_it():
    text = Path("pyproject.toml").read_text()
    assert '"models*"' in text
    assert 'models = ["*/*"]' in text
