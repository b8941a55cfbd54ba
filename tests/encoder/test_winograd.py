"""Winograd's convolution computes what the plain one does, in torch and in a graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared.encoder.export import export
from shared.encoder.simplify import simplify
from shared.encoder.winograd import Winograd


def convolution(inputs: int, outputs: int, seed: int, **options: object) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options).requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("height", "width"),
    [(28, 28), (32, 5), (56, 56), (112, 1), (14, 6), *((height, 6) for height in range(29, 36))],
    ids=str,
)
def test_it_computes_the_convolution(height: int, width: int, bias: bool) -> None:
    plain = convolution(32, 64, height + width, bias=bias)
    x = torch.randn(3, 32, height, width)
    wanted = plain.double()(x.double())
    found = Winograd(plain.float())(x)
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-5)  # outputs are about 1


def flops(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(x)
    return counter.get_total_flops()


@pytest.mark.parametrize(("side", "share"), [(56, 0.55), (14, 0.65), (15, 0.6), (17, 0.65)], ids=str)
def test_it_takes_half_the_multiplications(side: int, share: float) -> None:
    plain = convolution(128, 64, 1)
    x = torch.randn(1, 128, side, side)
    assert flops(Winograd(plain), x) < share * flops(plain, x)  # a half, the transforms, and rows beyond the end


@pytest.mark.parametrize(("height", "outputs"), [(7, 128), (13, 128), (14, 48), (27, 32)], ids=str)
def test_a_map_for_which_it_does_not_pay_goes_through_the_convolution(height: int, outputs: int) -> None:
    plain = convolution(16, outputs, height)
    x = torch.randn(2, 16, height, 9)
    assert torch.equal(Winograd(plain)(x), plain(x))


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 20, 3, padding=1),
        nn.Conv2d(16, 16, (3, 1), padding=(1, 0)),
        nn.ConvTranspose2d(16, 16, 3, padding=1),
    ],
    ids=lambda module: repr(module)[:60],
)
def test_other_convolutions_are_left_alone(other: nn.Module) -> None:
    network = nn.Sequential(other)
    assert not Winograd.fits(other)
    assert simplify(network) is network


class Grey(nn.Module):
    """A network as `export` takes it: normalisation, ReLU and a pool that must know its input's size follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = convolution(3, 16, 3)
        self.body = nn.Sequential(
            convolution(16, 32, 4, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten()
        )
        nn.init.uniform_(self.body[1].running_mean, -0.1, 0.1)
        nn.init.uniform_(self.body[1].running_var, 0.1, 0.2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body(self.first(pixels.unsqueeze(1).expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("side", [28, 35])
def test_the_graph_takes_any_number_of_images_and_what_follows_is_folded_in(tmp_path: Path, side: int) -> None:
    network = Grey().eval().requires_grad_(requires_grad=False)
    graph = export(network, side, tmp_path / "model.onnx")
    assert graph.min_cosine > 0.999999
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("Conv") == 1 + 6 + 6 + 1  # the first; transforms and products; the last
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 3, 5):
        pixels = np.random.default_rng(n).random((n, side, side), np.float32)
        (found,) = session.run(None, {"pixels": pixels})
        np.testing.assert_allclose(found, network(torch.from_numpy(pixels)).numpy(), atol=1e-5)
