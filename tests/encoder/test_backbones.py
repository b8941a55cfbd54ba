import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as nnf

from shared.encoder import weights as sources
from shared.encoder.backbones import BACKBONES, PAPER_WEIGHTS, backbone, parse_seed
from shared.encoder.network import Network, body, fill, state_of
from shared.encoder.samples import samples
from shared.encoder.untrained import untrained
from shared.encoder.vision import models
from shared.errors import Invalid, NotFound, Unavailable


def noise(module: nn.Module, seed: int = 1) -> nn.Module:
    """Set random weights quickly: a comparison of two forward passes does not depend on their values."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1, generator=generator) if "var" in key else value.uniform_(
                -0.1, 0.1, generator=generator
            )
    return module


def mean(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).mean(2)


def resnet_maps(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = m.maxpool(m.relu(m.bn1(m.conv1(x))))
    return m.layer4(m.layer3(m.layer2(m.layer1(x))))


def vgg_fc7(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = m.avgpool(m.features(x)).flatten(1)
    return nnf.relu(m.classifier[3](nnf.relu(m.classifier[0](x))))


BY_HAND: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "densenet121": lambda m, x: mean(nnf.relu(m.features(x))),
    "resnet50": lambda m, x: mean(resnet_maps(m, x)),
    "vgg16": vgg_fc7,
    "efficientnet_b0": lambda m, x: mean(m.features(x)),
    "mobilenet_v2": lambda m, x: mean(m.features(x)),
    "squeezenet1_0": lambda m, x: mean(m.features(x)),
}


@pytest.mark.parametrize("architecture", BACKBONES)
def test_features_are_pooled_as_the_papers_pool_them(architecture: str) -> None:
    module = noise(body(architecture, empty=True))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found, wanted = module(x), BY_HAND[architecture](module, x)
    assert found.shape == (2, BACKBONES[architecture].dim)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("architecture", "dim"),
    [("densenet121", 1024), ("resnet50", 2048), ("vgg16", 4096), ("efficientnet_b0", 1280)],
)
def test_dimensions_are_those_of_the_papers(architecture: str, dim: int) -> None:
    module = body(architecture, empty=True).to("meta")  # shapes only
    assert module(torch.empty(3, 3, 224, 224, device="meta")).shape == (3, dim)
    assert backbone(architecture).dim == dim


def test_an_unknown_architecture_is_refused_with_those_there_are() -> None:
    with pytest.raises(Invalid, match=r"densenet121.*vgg16.*null"):
        backbone("alexnet")


def test_grey_is_repeated_and_normalised() -> None:
    network = Network(nn.Identity(), (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    pixels = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1))
    out = network(pixels)
    for channel, (m, s) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(out[:, channel], (pixels - m) / s)


def squeeze() -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in state_of(noise(body("squeezenet1_0", empty=True))).items()}


def test_a_file_may_hold_the_classifier_or_not(tmp_path: Path) -> None:
    state = squeeze()
    save_file(state, tmp_path / "body.safetensors")
    save_file(state | {"classifier.1.weight": torch.ones(2, 2)}, tmp_path / "whole.safetensors")
    one = sources.find("squeezenet1_0", str(tmp_path / "body.safetensors"))
    two = sources.find("squeezenet1_0", str(tmp_path / "whole.safetensors"))
    assert one.trained
    assert state_of(one.body).keys() == state_of(two.body).keys() == state.keys()
    assert all(torch.equal(value, state_of(two.body)[key]) for key, value in state_of(one.body).items())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.pop("features.0.weight"), r"1 missing \(features.0.weight\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"features.0.bias": torch.ones(5)}), r"1 of another shape \(features.0.bias\)"),
        (lambda s: s["features.0.bias"].fill_(torch.nan), r"1 not finite \(features.0.bias\)"),
        (lambda s: s.clear() or s.update(a=torch.ones(1)), r"50 missing .* 1 unexpected"),
    ],
    ids=["missing", "unexpected", "shape", "nan", "other model"],
)
def test_weights_that_do_not_fit_are_refused_in_words(damage: Callable, words: str) -> None:
    state = squeeze()
    damage(state)
    with pytest.raises(Invalid, match=words):
        fill(body("squeezenet1_0", empty=True), state, "squeezenet1_0")


def test_half_precision_weights_become_float32() -> None:
    module = body("squeezenet1_0", empty=True)
    state = {key: value.half() for key, value in squeeze().items()}
    fill(module, state, "squeezenet1_0")
    assert {value.dtype for value in state_of(module).values()} == {torch.float32}
    torch.testing.assert_close(module.features[0].bias, state["features.0.bias"].float())


def test_torchvisions_old_densenet_names_are_understood() -> None:
    state = state_of(noise(body("densenet121", empty=True)))
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    assert sources.modern(old).keys() == state.keys()


def test_a_missing_file_a_pickle_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        sources.find("squeezenet1_0", str(tmp_path / "none.safetensors"))
    torch.save(squeeze(), tmp_path / "some.pth")
    with pytest.raises(Invalid, match="models convert"):
        sources.find("squeezenet1_0", str(tmp_path / "some.pth"))
    (tmp_path / "some.safetensors").write_bytes(b"\x80" * 100)
    with pytest.raises(Invalid, match="safetensors format"):
        sources.find("squeezenet1_0", str(tmp_path / "some.safetensors"))


@pytest.mark.parametrize("architecture", PAPER_WEIGHTS)
def test_torchvision_knows_the_weights_of_the_papers(architecture: str) -> None:
    known = models().get_model_weights(architecture).__members__
    assert PAPER_WEIGHTS[architecture].removeprefix("torchvision:") in known


def test_without_internet_the_weights_are_unavailable_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port, where nobody answers
    with pytest.raises(Unavailable, match=r"IMAGENET1K_V1 of densenet121 .*\.pth.*models convert"):
        sources.find("densenet121", "torchvision:IMAGENET1K_V1")


def test_unknown_torchvision_weights_are_refused_with_those_there_are() -> None:
    with pytest.raises(Invalid, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        sources.find("resnet50", "torchvision:BEST")


@pytest.mark.parametrize(("words", "seed"), [("random:12", 12), ("random", 0), ("random:", None), ("file", None)])
def test_seeds_are_read(words: str, seed: int | None) -> None:
    assert parse_seed(words) == seed


def test_a_seed_gives_the_same_weights_again_and_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(99)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    one, again, other = (state_of(untrained("squeezenet1_0", seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("weight"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_file_made_of_untrained_weights_stays_untrained(built) -> None:
    source = sources.find("squeezenet1_0", str(built("squeezenet1_0") / "weights.safetensors"))
    assert (source.trained, source.seed, source.source) == (False, 0, "random:0")


def test_torchvision_can_be_imported_by_many_threads_at_once() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from shared.encoder.vision import models
with ThreadPoolExecutor(8) as pool:
    found = {id(f.result()) for f in [pool.submit(models) for _ in range(32)]}
assert len(found) == 1
print(models().get_model("squeezenet1_0", weights=None).__class__.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "SqueezeNet"), done.stderr


def test_samples_are_frames_and_the_same_for_the_same_seed() -> None:
    one = samples(3, 64, 5)
    assert one.shape == (3, 64, 64)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1
    assert one.std(axis=(1, 2)).min() > 0.05
    np.testing.assert_array_equal(one, samples(3, 64, 5))
    assert not np.array_equal(one, samples(3, 64, 6))
