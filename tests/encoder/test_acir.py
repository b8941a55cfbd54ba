"""ACIR as a whole: the published shapes and costs, the stem against torchvision, the graph against the network."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.encoder import vision
from shared.encoder.acir import FULL, S_HALF, WIDTHS, XS, Acir, Features, S, content, relative_error, squared_error
from shared.encoder.stem import Stem
from shared.errors import Invalid


def on_paper(widths, **options):
    """The network without weights, for shapes and counts."""
    with torch.device("meta"):
        return Acir(widths, 64, 16, **options).eval()


def macs(network, side=224):
    """Multiply-adds of one image, in millions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        network(torch.empty(1, 3, side, side))
    return counter.get_total_flops() / 2e6


def parameters(network):
    """Number of parameters, in millions."""
    return sum(p.numel() for p in network.parameters()) / 1e6


def test_full_size_has_the_published_shapes():
    network = on_paper(FULL)
    x = torch.empty(2, 3, 224, 224, device="meta")
    shallow, deep = network.stem(x)
    assert shallow.shape == (2, 512, 28, 28)
    assert deep.shape == (2, 2048, 7, 7)
    assert network.darf.shallow(shallow).shape == (2, 512, 7, 7)
    assert network.darf.deep(deep).shape == (2, 2048, 7, 7)
    cls, cells = network.transformer(deep)
    assert cls.shape == (2, 4608)
    assert cells.shape == (2, 49, 4608)
    features = network.features(x)
    assert [part.shape[1] for part in features.parts] == [1536, 1536, 512]
    logits, hidden = network.head(features.blended)
    assert hidden.shape == (2, 512)
    assert network.classifier(hidden).shape == (2, 16)
    assert network.decoder(features.deep).shape == (2, 3, 224, 224)
    outputs = network(x)
    assert outputs.embeddings.shape == (2, 3584)
    assert logits.shape == outputs.logits.shape == (2, 64)
    assert outputs.errors.shape == (2,)


def test_full_size_costs_what_was_counted_of_the_released_shapes():
    with_decoder, without = on_paper(FULL), on_paper(FULL, decoder=False)
    assert parameters(with_decoder) == pytest.approx(170.0, abs=0.1)
    assert parameters(without) == pytest.approx(156.1, abs=0.1)
    assert parameters(on_paper(FULL, decoder=False, head="linear")) == pytest.approx(139.3, abs=0.1)
    # the reference omits the products inside the transformer's attention, which are not torch layers
    inside = 12 * 12 * 2 * 50 * 50 * 64 / 1e6
    assert macs(with_decoder) - inside == pytest.approx(12_410, abs=10)
    assert macs(without) - inside == pytest.approx(10_240, abs=10)


def test_the_small_widths_cost_what_they_promise():
    inside = 6 * 6 * 2 * 50 * 50 * 64 / 1e6
    assert parameters(on_paper(S)) == pytest.approx(29.8, abs=0.05)
    assert macs(on_paper(S)) - inside == pytest.approx(2_750, abs=10)
    assert on_paper(S).dim == 1152
    assert parameters(on_paper(S_HALF)) == pytest.approx(9.8, abs=0.05)
    assert parameters(on_paper(XS)) < 12


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_at_112_pixels_the_taps_are_14_and_7_cells(widths):
    network = on_paper(widths, side=112)
    shallow, deep = network.stem(torch.empty(1, 3, 112, 112, device="meta"))
    assert shallow.shape[2:] == (14, 14)
    assert deep.shape[2:] == (7, 7)
    assert network(torch.empty(1, 3, 112, 112, device="meta")).errors.shape == (1,)
    assert network.decoder(deep).shape == (1, 3, 112, 112)


def test_other_sides_are_refused():
    with pytest.raises(Invalid, match="160"):
        Acir(XS, 64, 0, side=160)


@pytest.mark.parametrize(
    ("name", "blocks", "bottleneck"), [("resnet18", (2, 2, 2, 2), False), ("resnet50", (3, 4, 6, 3), True)]
)
def test_the_stem_is_torchvisions_resnet_and_takes_its_weights(name, blocks, bottleneck):
    torch.manual_seed(0)
    resnet = vision.models().get_model(name, weights=None).eval()
    stem = Stem(blocks, 64, bottleneck=bottleneck, last_stride=2).eval()
    assert {k: v.shape for k, v in resnet.state_dict().items() if not k.startswith("fc.")} == {
        k: v.shape for k, v in stem.state_dict().items()
    }
    stem.load_state_dict({k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")})
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = resnet.layer2(resnet.layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))))
        shallow, deep = stem(x)
        torch.testing.assert_close(shallow, wanted)
        torch.testing.assert_close(deep, resnet.layer4(resnet.layer3(wanted)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Acir(XS, 64, 0, side=112).eval()


def test_content_is_a_unit_vector_whose_product_is_the_mean_correlation_of_the_parts(network):
    with torch.no_grad():
        features = network.features(torch.rand(2, 3, 112, 112))
    a, b = content(features).double().numpy()
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-6)
    correlations = [np.corrcoef(part.numpy())[0, 1] for part in features.parts]
    assert len(correlations) == 3
    assert a @ b == pytest.approx(np.mean(correlations), abs=1e-5)


def test_content_without_variation_is_zero_and_no_nan():
    flat = [torch.ones(1, 4)] * 3
    assert content(Features(*flat, (), torch.zeros(1, 1, 7, 7))).abs().max() == 0


def test_darf_and_the_kan_can_be_left_out():
    torch.manual_seed(0)
    plain = Acir(XS, 16, 0, side=112, head="linear", darf=False, decoder=False).eval()
    with torch.no_grad():
        outputs = plain(torch.rand(2, 3, 112, 112))
    assert outputs.embeddings.shape == (2, 2 * XS.fusion)
    assert outputs.logits.shape == (2, 16)
    assert outputs.errors is None
    assert plain.classifier is None
    assert not any(name.startswith("darf") for name, _ in plain.named_parameters())


def test_every_weight_has_a_gradient():
    torch.manual_seed(0)
    network = Acir(XS, 16, 4, side=112)
    x = torch.rand(2, 3, 112, 112)
    features = network.features(x)
    logits, hidden = network.head(features.blended)
    (logits.pow(2).mean() + network.classifier(hidden).pow(2).mean() + network(x).errors.mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_errors_are_what_loops_over_pixels_give():
    torch.manual_seed(0)
    x, painted = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    for row in range(3):
        values, made = x[row].flatten().tolist(), painted[row].flatten().tolist()
        mean = sum(values) / 48
        error = sum((a - b) ** 2 for a, b in zip(values, made, strict=True)) / 48
        variance = sum((value - mean) ** 2 for value in values) / 48
        assert float(squared_error(x, painted)[row]) == pytest.approx(error, rel=1e-5)
        assert float(relative_error(x, painted)[row]) == pytest.approx(error / (variance + 1e-3), rel=1e-5)


def test_the_same_mistake_weighs_more_on_a_dimmed_image():
    image = torch.rand(1, 3, 8, 8)
    dim = image / 10
    off = 0.01 * torch.randn(1, 3, 8, 8)
    assert relative_error(dim, dim + off) > 10 * relative_error(image, image + off)


def test_graph_and_network_say_the_same_for_any_number_of_images(network, tmp_path):
    path = tmp_path / "acir.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and its tracer warns about constant shapes
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, 112, 112),),
            path,
            input_names=["x"],
            output_names=["embeddings", "logits", "errors"],
            dynamic_axes={name: {0: "n"} for name in ("x", "embeddings", "logits", "errors")},
            opset_version=18,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(path)
    for n in (1, 3):
        x = torch.rand(n, 3, 112, 112)
        with torch.no_grad():
            wanted = network(x)
        for got, expected in zip(session.run(None, {"x": x.numpy()}), wanted, strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
