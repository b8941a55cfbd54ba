"""The targets of the shipped model, against plain loops."""

import numpy as np
import pytest
import torch

from shared.errors import Invalid
from shared.training.descriptors import SIDE, Targets, brightness, describe, gradients, patterns

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


@pytest.fixture
def images():
    return torch.rand(6, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_patterns_are_those_of_a_plain_loop(images):
    image = images[0].numpy()
    for place, radius in enumerate((1, 2, 4)):
        wanted = np.zeros((4, 256))
        for y in range(SIDE):
            for x in range(SIDE):
                code = 0
                for bit, (down, right) in enumerate(NEIGHBOURS):
                    row = min(max(y + down * radius, 0), SIDE - 1)
                    column = min(max(x + right * radius, 0), SIDE - 1)
                    code += int(image[row, column] > image[y, x] + np.float32(0.01)) << bit
                wanted[2 * (y >= SIDE // 2) + (x >= SIDE // 2), code] += 1
        found = patterns(images[:1])[0, place].square().numpy() * (SIDE // 2) ** 2
        assert np.allclose(found, wanted, atol=1e-2)


def test_brightness_counts_levels_cell_by_cell():
    image = torch.zeros(1, 1, SIDE, SIDE)
    image[..., :16, 48:] = 1.0  # the upper right cell
    found = brightness(image).view(12, 4, 4)
    assert found[11, 0, 3] == pytest.approx(1.0)
    assert found[0, 0, 3] == pytest.approx(0.0, abs=1e-6)
    assert found[0, 3, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(("axis", "bin_"), [(1, 0), (0, 2)])
def test_a_ramp_has_its_gradient_in_one_direction(axis, bin_):
    ramp = torch.linspace(0, 1, SIDE).expand(SIDE, SIDE)
    image = (ramp if axis == 1 else ramp.T)[None, None]
    found = gradients(image).view(4, 8, 4, 4)[0, :, 1, 1]
    assert int(found.argmax()) == bin_
    assert found[(bin_ + 4) % 8] == pytest.approx(0.0, abs=1e-3)


def test_a_mirror_image_has_the_same_descriptors(images):
    for mine, mirrored in zip(describe(images), describe(images.flip(-1)), strict=True):
        assert torch.allclose(mine, mirrored, atol=1e-5)
    assert not torch.allclose(gradients(images[:, None]), gradients(images[:, None].flip(-1)), atol=1e-3)


def test_targets_are_unit_vectors_whose_angles_are_those_of_the_blocks(images):
    weights = (1.0, 0.7, 1.0, 0.5)
    targets = Targets([5, 2], [weights, (0.0, 0.0, 1.0, 0.0)], images)
    whole, grain = targets(images)
    assert whole.shape == (6, 5)
    assert grain.shape == (6, 2)
    assert torch.allclose(whole.norm(dim=1), torch.ones(6), atol=1e-5)
    mixed = []
    for block, weight in zip(describe(images), weights, strict=True):
        standard = (block - block.mean(0)) / (block.std(0) + 0.1 * block.std())
        mixed.append(weight * standard / standard.norm(dim=1, keepdim=True))
    joined = torch.cat(mixed, 1)
    joined = joined - joined.mean(0)  # six images span five directions, so none is lost
    joined = joined / joined.norm(dim=1, keepdim=True)
    assert torch.allclose(whole @ whole.T, joined @ joined.T, atol=1e-3)


def test_too_few_images_for_the_components_are_refused(images):
    with pytest.raises(Invalid, match="need more than"):
        Targets([6], [(1.0, 0.0, 0.0, 0.0)], images)


def test_targets_are_made_where_the_images_are(images):
    """On a GPU, tensors of two devices do not mix; the meta device is as strict and available everywhere."""
    targets = Targets([5], [(1.0, 0.7, 1.0, 0.5)], images).to("meta")
    (found,) = targets(images.to("meta"))
    assert (found.device.type, found.shape) == ("meta", (6, 5))
