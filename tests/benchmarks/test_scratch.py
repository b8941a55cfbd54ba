"""Cached results of the retrieval benchmarks are not reused for other data, weights or recipes."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.retrieval import finetune, frozen
from benchmarks.retrieval.scratch import converted, digest
from benchmarks.retrieval.trunk import Trunk, seen_by_backbone
from shared.datasets.collection import Collection
from shared.datasets.development import load
from shared.encoder.build import build
from shared.imaging.recipe import Recipe
from shared.training.data import Named
from tests.training.small_set import stripes


@pytest.fixture
def asked(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(data=tmp_path, scratch=tmp_path / "scratch", threads=1, ready=False)


def mirrored(data: Collection) -> Collection:
    return replace(data, images=np.ascontiguousarray(data.images[:, :, ::-1]))


def test_each_thing_that_something_was_made_of_makes_another_digest() -> None:
    data, recipe = stripes(8, 32, 0), Recipe(size=64)
    ways = (data, recipe), (mirrored(data), recipe), (data, replace(recipe, size=32)), (recipe, data)
    assert len({digest(*made_of) for made_of in ways}) == len(ways)
    assert digest(data, recipe) == digest(stripes(8, 32, 0), Recipe(size=64))


def test_another_pickle_of_the_same_name_is_converted_again(tmp_path: Path) -> None:
    made = []
    for value in (0.0, 1.0):
        torch.save({"a": torch.full((1,), value)}, tmp_path / "net.pth")
        made.append(Path(converted("net.pth", tmp_path, tmp_path / "scratch")))
    assert made[0].read_bytes() != made[1].read_bytes()
    assert converted("net.pth", tmp_path, tmp_path / "scratch") == str(made[1])
    assert converted("random:0", tmp_path, tmp_path / "scratch") == "random:0"


def test_frozen_features_are_of_the_data_and_the_network_that_are_there(
    asked: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, net = frozen.Set("phantoms:4:1"), frozen.Net("net", "null", "random:0", 64)
    first = frozen._encoded(net, one, asked)
    assert frozen._encoded(net, one, asked).encode_ms == first.encode_ms  # cached, not measured again
    other = frozen._encoded(replace(net, weights="random:1"), one, asked)
    assert not np.array_equal(first.vectors, other.vectors)
    monkeypatch.setattr(frozen, "load", lambda *words: mirrored(load(*words)))
    assert not np.array_equal(first.vectors, frozen._encoded(net, one, asked).vectors)


def test_vectors_beside_a_model_are_of_the_data_that_are_there(asked: argparse.Namespace, tmp_path: Path) -> None:
    build(tmp_path / "model", "model", "null", "random:0", Recipe(size=finetune.SIDE), dim=8)
    data = stripes(16, finetune.SIDE, 0)
    first = finetune._encoded(tmp_path / "model", data, asked, seen=False)
    assert not np.array_equal(first, finetune._encoded(tmp_path / "model", mirrored(data), asked, seen=False))


def test_what_a_backbone_sees_is_of_the_images_that_are_there(tmp_path: Path) -> None:
    data = stripes(8, 64, 0)
    first, other = (
        seen_by_backbone("squeezenet1_0", "random:0", one, tmp_path).embeddings for one in (data, mirrored(data))
    )
    assert not np.array_equal(first, other)


def test_a_trunk_of_other_data_or_another_recipe_is_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, data = Trunk(widths="xs", epochs=1), stripes(8, 64, 0)
    folders = []
    for one, images in ((trunk, data), (trunk, data), (replace(trunk, seed=1), data), (trunk, mirrored(data))):
        monkeypatch.setattr(Named, "load", lambda *_, images=images: images)
        folders.append(one.folder(tmp_path, tmp_path))
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
