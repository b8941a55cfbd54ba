import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.encoder.build import build
from shared.encoder.null import _boxes
from shared.encoder.runtime import load
from shared.encoder.samples import samples
from shared.imaging.recipe import Recipe


@given(side=st.integers(32, 100), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_box_means_are_those_of_plain_loops(side: int, seed: int) -> None:
    frame = np.random.default_rng(seed).random((1, side, side), np.float32)
    edges = [i * side // 32 for i in range(33)]
    spans = list(pairwise(edges))
    wanted = [[frame[0, a:b, c:d].mean() for c, d in spans] for a, b in spans]
    np.testing.assert_allclose(_boxes(frame)[0], wanted, rtol=1e-5)


def test_it_is_built_and_loaded_in_milliseconds(tmp_path: Path) -> None:
    times = []
    for i in range(5):
        start = time.perf_counter()
        build(tmp_path / str(i), "null", "null", "random:0")
        load(tmp_path / str(i))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25  # 10 ms on a quiet machine


@pytest.mark.parametrize("dim", [1, 64, 1024])
def test_its_length_is_free_and_its_label_admits_that_it_learnt_nothing(tmp_path: Path, dim: int) -> None:
    card = build(tmp_path / "n", "n", "null", "random:5", Recipe(size=48), dim=dim)
    assert (card.dim, card.label, card.graph) == (dim, "null (untrained, seed 5)", None)
    assert load(tmp_path / "n", "torch").encode(samples(3, 48, 0)).embeddings.shape == (3, dim)


def test_its_vectors_depend_on_image_and_seed_alone(tmp_path: Path) -> None:
    pixels = samples(4, 224, 1)
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(tmp_path / name, name, "null", f"random:{seed}")
        found.append(load(tmp_path / name).encode(pixels).embeddings)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_it_finds_the_same_body_part(built, radiology, p_at_1) -> None:
    encoder = load(built("null"))
    gallery, of = radiology("train", 40)
    queries, wanted = radiology("test", 20)
    assert p_at_1(encoder.encode(gallery).embeddings, encoder.encode(queries).embeddings, of, wanted) > 0.6
