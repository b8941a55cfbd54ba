import math

import numpy as np
import pytest
import torch
from torch import nn

from shared.encoder.kinds import assemble
from shared.encoder.network import Network, Outputs
from shared.encoder.samples import samples
from shared.encoder.tta import VIEWS, Tta, Views, average
from shared.errors import Invalid

SIDE = 56
PIXELS = torch.from_numpy(samples(3, SIDE, 5))


def bilinear(image: np.ndarray, y: float, x: float) -> float:
    """Bilinear interpolation between pixel centres; black outside the image."""
    y0, x0 = math.floor(y), math.floor(x)
    total = 0.0
    for i in (y0, y0 + 1):
        for j in (x0, x0 + 1):
            if 0 <= i < len(image) and 0 <= j < len(image):
                total += image[i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise as seen (rows grow downwards)."""
    side = len(image)
    centre, angle = (side - 1) / 2, math.radians(degrees)
    out = np.zeros_like(image)
    for i in range(side):
        for j in range(side):
            right, up = j - centre, centre - i
            # the content at this place comes from the position rotated backwards
            x = math.cos(angle) * right + math.sin(angle) * up
            y = -math.sin(angle) * right + math.cos(angle) * up
            out[i, j] = bilinear(image, centre - y, centre + x)
    return out


def enlarged(image: np.ndarray) -> np.ndarray:
    side = len(image)
    larger = round(side * 240 / 224)
    start = (larger - side) // 2
    scale = side / larger
    out = np.zeros_like(image)
    for i in range(side):
        for j in range(side):
            y, x = ((k + start + 0.5) * scale - 0.5 for k in (i, j))
            out[i, j] = bilinear(image, min(max(y, 0), side - 1), min(max(x, 0), side - 1))
    return out


def jittered(image: np.ndarray) -> np.ndarray:
    bright = np.clip(image * 1.1, 0, 1)
    return np.clip(bright.mean() + 1.1 * (bright - bright.mean()), 0, 1)


def test_the_five_views_are_those_of_plain_loops() -> None:
    views = Views(SIDE)(PIXELS).reshape(VIEWS, 3, SIDE, SIDE).numpy()
    for i, image in enumerate(PIXELS.numpy()):
        wanted = (image, image[:, ::-1], rotated(image, 5), enlarged(image), jittered(image))
        for view, plain in zip(views[:, i], wanted, strict=True):
            np.testing.assert_allclose(view, plain, atol=2e-5)
    assert all(np.abs(views[v] - views[0]).max() > 0.05 for v in range(1, VIEWS))  # none equals the plain view


def test_views_of_a_mirrored_image_are_mirrored_but_for_the_rotated_one() -> None:
    here = Views(SIDE)(PIXELS).reshape(VIEWS, 3, SIDE, SIDE)
    there = Views(SIDE)(PIXELS.flip(-1)).reshape(VIEWS, 3, SIDE, SIDE)
    torch.testing.assert_close(there[0], here[1])
    torch.testing.assert_close(there[1], here[0])
    for view in (3, 4):
        torch.testing.assert_close(there[view], here[view].flip(-1), rtol=0, atol=1e-5)
    assert (there[2] - here[2].flip(-1)).abs().max() > 0.05  # +5 degrees mirrored is -5 degrees


def test_views_never_change_but_with_the_seed_that_the_card_names() -> None:
    def seen(name: str) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        return Views.named(name, SIDE)(PIXELS)

    assert torch.equal(seen("five"), seen("five"))
    assert torch.equal(seen("five:3"), seen("five:3"))
    assert not torch.equal(seen("five:3"), seen("five:4"))
    assert not torch.equal(seen("five:0"), seen("five"))
    for seed in range(30):
        views = Views(SIDE, seed)
        assert abs(views.angle) <= 5
        assert min(views.brightness, views.contrast) >= 0.9
        assert max(views.brightness, views.contrast) <= 1.1


def network() -> Network:
    layers = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    generator = torch.Generator().manual_seed(8)
    for value in layers.state_dict().values():
        value.uniform_(-1, 1, generator=generator)
    return Network(layers, (0.4,) * 3, (0.2,) * 3).eval()


def test_the_vector_is_the_mean_of_the_raw_ones_made_unit() -> None:
    plain = network()
    with torch.inference_mode():
        raw = [plain(view) for view in Views(SIDE)(PIXELS).split(3)]
        mean = sum(raw) / 5
        found = Tta(plain, Views(SIDE))(PIXELS)
    torch.testing.assert_close(found, mean / mean.norm(dim=1, keepdim=True))
    assert (raw[0] - mean).abs().max() > 1e-3


class Three(nn.Module):
    """Every output that a body can have, each computed from the pixels."""

    def forward(self, x: torch.Tensor) -> Outputs:
        grey = x[:, 0]
        return Outputs(grey.mean(1) + 0.1, grey.mean(2) - 0.3, grey.amax((1, 2)))


def test_logits_are_averaged_and_errors_are_the_plain_views() -> None:
    plain = Network(Three(), (0.0,) * 3, (1.0,) * 3)
    found = Tta(plain, Views(SIDE))(PIXELS)
    each = [plain(view) for view in Views(SIDE)(PIXELS).split(3)]
    torch.testing.assert_close(found.logits, sum(one.logits for one in each) / 5)
    torch.testing.assert_close(found.errors, each[0].errors)
    assert not torch.equal(each[0].errors, each[4].errors)


def test_an_image_has_the_same_views_alone_and_in_a_batch() -> None:
    together = Tta(network(), Views(SIDE))(PIXELS)
    alone = torch.cat([Tta(network(), Views(SIDE))(image[None]) for image in PIXELS])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_the_average_is_over_views_not_over_images(n: int) -> None:
    rows = torch.arange(VIEWS * n * 2, dtype=torch.float32).reshape(VIEWS * n, 2)
    wanted = [[(sum(rows[v * n + i, j] for v in range(VIEWS)) / VIEWS).item() for j in range(2)] for i in range(n)]
    assert average(rows).tolist() == wanted


@pytest.mark.parametrize("name", ["ten", "five:", "five:-1", "five:1.5", "five:0123456789", "none:1"])
def test_views_that_are_none_of_ours_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="five:SEED"):
        assemble(nn.Identity(), (0.5,), (0.5,), name, SIDE)
