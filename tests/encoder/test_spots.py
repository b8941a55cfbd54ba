"""Spots: bands of a scale space and their histograms, against plain loops and by what they are for."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from shared.encoder.acir import XS, Acir, content
from shared.encoder.spots import LEVELS, RINGS, SIDE, SIGMAS, WIDTHS, Spots

BANDS = len(SIGMAS) - 1
MIDDLE = SIDE // 2


@pytest.fixture(scope="module")
def spots():
    torch.manual_seed(0)
    return Spots(112)


def disc(radius, height=0.5):
    """A bright disc in the middle of a grey image, (1, 64, 64)."""
    along = torch.arange(SIDE) - (SIDE - 1) / 2
    inside = (along[:, None].square() + along.square()).sqrt() <= radius
    return (0.2 + height * inside.float())[None]


def test_a_disc_is_highest_in_the_band_of_its_size():
    """Bands are half an octave apart, so a disc that is twice as large is highest two bands further."""
    spots = Spots(SIDE)
    found = [int(spots.bands(disc(radius))[0, :, MIDDLE, MIDDLE].argmax()) for radius in (1, 2, 4, 8)]
    assert found == [0, 2, 4, 6]
    assert spots.bands(disc(8, height=0)).abs().max() < 1e-6


def test_bands_are_the_blurs_of_scipy(spots):
    small = np.random.default_rng(0).random((SIDE, SIDE))
    large = torch.from_numpy(np.kron(small, np.ones((7, 7)))).float()  # each of 64 pixels covers seven whole ones
    blurred = [gaussian_filter(small, sigma, mode="nearest", radius=int(np.ceil(3 * sigma))) for sigma in SIGMAS]
    found = Spots(448).bands(large[None])[0].numpy()
    assert np.allclose(found, -np.diff(np.array(blurred), axis=0), atol=1e-5)


@pytest.mark.parametrize("side", [64, 112, 224])
def test_a_reduction_keeps_the_mean_of_an_image(side):
    """The coarsest blur of a constant is the constant, whatever the side."""
    constant = torch.full((1, side, side), 0.7)
    module = Spots(side)
    assert torch.allclose(module.blurs @ constant[:, None] @ module.blurs.transpose(1, 2), torch.tensor(0.7), atol=1e-5)


def test_rings_are_those_of_a_plain_loop(spots):
    bands = spots.bands(torch.rand(1, 112, 112, generator=torch.Generator().manual_seed(1)))
    levels = np.linspace(-0.2, 0.2, LEVELS)
    reach = 1.5 * (levels[1] - levels[0])
    wanted, pixels = np.zeros((LEVELS, BANDS, len(RINGS))), np.zeros(len(RINGS))
    for y in range(SIDE):
        for x in range(SIDE):
            ring = np.searchsorted(RINGS, np.hypot(y - (SIDE - 1) / 2, x - (SIDE - 1) / 2), side="right") - 1
            pixels[ring] += 1
            for band in range(BANDS):
                wanted[:, band, ring] += np.maximum(0, 1 - np.abs(float(bands[0, band, y, x]) - levels) / reach)
    found = spots.in_rings(bands).view(LEVELS, BANDS, len(RINGS)).numpy()
    assert np.allclose(found, np.sqrt(np.maximum(wanted / pixels, 1e-8)), atol=1e-4)


def test_heights_in_deviations_hardly_change_with_contrast_and_those_in_brightness_do(spots):
    noise = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    coarse = functional.interpolate(noise, (112, 112), mode="bilinear")[:, 0]
    strong, weak = (spots.bands(contrast * coarse)[:, 3:] for contrast in (1.0, 0.5))  # it has no finer spots
    apart = [(count(strong) - count(weak)).norm() for count in (spots.in_deviations, spots.in_rings)]
    assert apart[0] < apart[1] / 5


def test_a_mirror_image_has_the_same_spots(spots):
    images = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for mine, mirrored in zip(spots(images), spots(images.flip(-1)), strict=True):
            assert torch.allclose(mine, mirrored, atol=1e-5)


def test_half_precision_elsewhere_changes_no_spot(spots):
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = spots(images)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(mixed, spots(images), strict=True))


def test_a_blank_image_has_finite_spots(spots):
    assert all(part.isfinite().all() for part in spots(torch.zeros(1, 3, 112, 112)))


def test_they_are_two_more_parts_of_the_content():
    plain, counted = (Acir(XS, 64, 0, side=112, decoder=False, spots=spots).eval() for spots in (False, True))
    x = torch.rand(2, 3, 112, 112)
    assert counted.dim == plain.dim + sum(WIDTHS)
    assert [part.shape for part in counted.features(x).parts[-2:]] == [(2, width) for width in WIDTHS]
    assert counted(x).embeddings.shape == (2, counted.dim)
    assert plain.features(x).spots == ()


def test_the_product_of_contents_is_the_weighted_mean_correlation_of_the_parts():
    """f_D weighs as much as both counts: two sixths of all, each other part one."""
    torch.manual_seed(0)
    network = Acir(XS, 64, 0, side=112, decoder=False, spots=True).eval()
    with torch.no_grad():
        features = network.features(torch.rand(2, 3, 112, 112))
    a, b = content(features).double().numpy()
    correlations = [np.corrcoef(part.numpy())[0, 1] for part in features.parts]
    assert a @ b == pytest.approx(np.average(correlations, weights=[1, 1, 2, 1, 1]), abs=1e-5)


def test_only_what_is_trained_is_stored():
    assert set(Spots(112).state_dict()) == {"rings.weight", "rings.bias", "relative.weight", "relative.bias"}
