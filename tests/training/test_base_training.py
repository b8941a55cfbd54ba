"""The shipped model's training: losses against plain loops, data, augmentation, and a few steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.datasets.collection import Collection
from shared.encoder import cards, runtime
from shared.training import train as loop
from shared.training.acir import Shape
from shared.training.blend import TEXTURE, Blend, Portion, joined, mammograms
from shared.training.configs import similis_base
from shared.training.data import batches, parts
from shared.training.distort import Distort
from shared.training.hashing import quantisation_loss
from shared.training.selfsupervised import Descriptive, class_contrast, structure_loss
from tests.training.small_set import Stripes, stripes

STILL = Distort(
    area=(1, 1), stretch=0, degrees=0, horizontal=0, gamma=0, contrast=0, inverted=0, coarse=0, noise=0, vertical=0
)


@pytest.fixture
def vectors():
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


SAME = torch.tensor([0, 0, 1, 1, 1, 2])[:, None] == torch.tensor([0, 0, 1, 1, 1, 2])


def test_class_contrast_is_that_of_a_plain_loop(vectors):
    unit = functional.normalize(vectors, dim=1)
    total = []
    for i in range(6):
        positives = [j for j in range(6) if j != i and SAME[i, j]]
        below = sum(np.exp(float(unit[i] @ unit[k]) / 0.2) for k in range(6) if k != i)
        if positives:
            total.append(-np.mean([np.log(np.exp(float(unit[i] @ unit[j]) / 0.2) / below) for j in positives]))
    assert float(class_contrast(unit, SAME)) == pytest.approx(np.mean(total), rel=1e-6)


def test_class_contrast_is_nothing_where_nobody_belongs_together(vectors):
    assert float(class_contrast(functional.normalize(vectors, dim=1), torch.eye(6, dtype=torch.bool))) == 0


def test_structure_loss_is_that_of_a_plain_loop(vectors):
    likeness = functional.normalize(vectors[:, :4], dim=1) @ functional.normalize(vectors[:, :4], dim=1).T
    total = []
    for i in range(6):
        for j in range(6):
            if i == j:
                continue
            shared = (1 + float(likeness[i, j])) / 2
            target = 1 - 0.25 * (1 - shared) if SAME[i, j] else shared
            d = (1 - float(functional.cosine_similarity(vectors[i], vectors[j], dim=0))) / 2
            total.append(-(target * np.log(1 - d) + (1 - target) * np.log(d)))
    wanted = np.mean(total) + 0.5 * float(quantisation_loss(vectors))
    assert float(structure_loss(vectors, likeness, SAME, 0.25)) == pytest.approx(wanted, rel=1e-5)


def test_codes_that_follow_the_likeness_cost_least():
    codes = torch.sign(torch.randn(8, 64, generator=torch.Generator().manual_seed(1)))
    likeness = codes @ codes.T / 64
    apart = torch.eye(8, dtype=torch.bool)
    exact = structure_loss(codes, likeness, apart, 0.25)
    mixed = codes[torch.randperm(8, generator=torch.Generator().manual_seed(2))]
    assert exact < structure_loss(mixed, likeness, apart, 0.25)


def test_distortion_follows_the_seed_stays_in_range_and_can_be_off():
    images = torch.rand(5, 40, 40, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    first = Distort()(images, 32)
    torch.manual_seed(3)
    assert torch.equal(Distort()(images, 32), first)
    assert not torch.equal(Distort()(images, 32), first)
    assert first.shape == (5, 32, 32)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.allclose(STILL(images, 40), images.clamp(min=1e-4), atol=1e-5)


def test_only_flips_are_left_for_the_decoder():
    images = torch.rand(16, 24, 24, generator=torch.Generator().manual_seed(0)).clamp(min=1e-4)
    for image, shown in zip(images, similis_base.FLIPS(images, 24), strict=True):
        turned = (image, image.flip(1), image.flip(0), image.flip(0, 1))
        assert any(torch.allclose(shown, one, atol=1e-5) for one in turned)


def test_joined_sets_keep_classes_groups_and_parts_apart():
    one, two = stripes(16, 32, 0), replace(stripes(16, 32, 1), name="other")
    texture = replace(two, name="t", classes=(TEXTURE,), labels=np.zeros(16, np.int64))
    both = joined("both", [one, two, texture])
    assert both.classes == (*(f"stripes/{c}" for c in one.classes), *(f"other/{c}" for c in two.classes), TEXTURE)
    assert np.array_equal(both.labels, [*one.labels, *(two.labels + 4), *[8] * 16])
    assert not set(both.groups[:16]) & set(both.groups[16:32])
    assert len(both) == 48


def test_no_woman_of_the_phantoms_is_in_two_parts():
    made = mammograms(12, 32, 0)
    fit, held = parts(made)
    assert len(fit) + len(held) == len(made)
    assert {name.split()[0] for name in made.classes} <= set("ABCD")
    assert made.images.max() > 100


def test_a_portion_of_an_epoch_repeats_nothing_and_follows_the_seed():
    sampler = Portion(batch=4, batches_per_epoch=3)
    drawn = list(sampler.batches(np.zeros(50), np.zeros(50), 1))
    assert [len(batch) for batch in drawn] == [4, 4, 4]
    assert len(set(np.concatenate(drawn))) == 12
    assert np.array_equal(np.concatenate(list(sampler.batches(np.zeros(50), np.zeros(50), 1))), np.concatenate(drawn))


def test_the_blend_has_what_its_card_says_and_nothing_of_the_research_only_sets(data_dir: Path):
    blend = Blend(side=32, chests=40, exams=8, sketches=12, textures=20)
    data = blend.load(data_dir)
    assert {name.partition("/")[0] for name in data.classes} == {
        "radiology_mednist",
        "cxr",
        "phantoms",
        "sketches",
        TEXTURE,
    }
    fit, _ = parts(data)
    assert sum(name.startswith("cxr/") for name in np.array(fit.classes)[fit.labels]) == 40
    assert "research" not in data.licence.lower()


@pytest.fixture(scope="module")
def small():
    experiment = similis_base.experiment("recommended", "trunk")
    return replace(
        experiment,
        data=Stripes(n=448, side=64),
        method=Descriptive(shape=Shape(widths="xs", bits=16, side=112, spots=True), views=600, head_steps=4),
        sampler=Portion(batch=16, batches_per_epoch=2),
        epochs=2,
    )


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "run"
    return out / "model", loop.train(small, Path(), out, threads=1)


def test_training_brings_the_parts_nearer_to_their_descriptors(trained):
    first, last = trained[1]["history"]
    for part in ("layout", "grain"):
        assert last[part] < first[part]


def test_its_model_has_vectors_and_codes_and_half_precision_weights(trained):
    card = cards.read(trained[0])
    assert (card.architecture, card.dim, card.bits, card.reconstructs) == ("acir", 768, 16, False)
    assert card.about["experiment"] == card.name
    encoded = runtime.load(trained[0], "torch").encode(np.zeros((2, 112, 112), np.float32) + 0.5)
    assert encoded.codes is not None
    assert encoded.codes.shape == (2, 2)
    assert np.allclose(np.linalg.norm(encoded.embeddings, axis=1), 1, atol=1e-4)


def test_images_of_no_class_are_not_drawn_together(small):
    data = small.data.load(Path()).part("train")
    texture: Collection = replace(data, classes=(TEXTURE,), labels=np.zeros(len(data), np.int64))
    model = small.method.build(texture)
    (batch,) = batches(small, texture, [np.arange(8)], torch.device("cpu"))
    with torch.inference_mode():
        assert float(small.method.step(model, batch)[1]["classes"]) == 0
        model.unlabelled = -1
        assert float(small.method.step(model, batch)[1]["classes"]) > 0
