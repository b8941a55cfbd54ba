import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared.encoder.build import build
from shared.encoder.cards import IMAGENET_MEAN, IMAGENET_STD, WEIGHTS, folders, read, sha256_of
from shared.encoder.export import agreement, export
from shared.encoder.network import Network, body, state_of
from shared.encoder.runtime import load
from shared.encoder.samples import samples
from shared.encoder.simplify import simplify
from shared.encoder.untrained import untrained
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe


def check_both_runtimes(folder: Path, dim: int) -> None:
    pixels = samples(5, 224, 77)
    by_onnx, by_torch = (load(folder, runtime).encode(pixels).embeddings for runtime in ("onnx", "torch"))
    diff, cosine = agreement(by_torch, by_onnx)
    assert by_onnx.shape == (5, dim)
    assert cosine >= 0.9999
    assert diff <= 1e-3 * np.abs(by_torch).max()
    card = read(folder)
    assert card.graph is not None
    assert card.graph.min_cosine >= 0.9999


@pytest.mark.parametrize(
    ("architecture", "dim"),
    [
        ("densenet121", 1024),
        ("resnet50", 2048),
        ("efficientnet_b0", 1280),
        ("mobilenet_v2", 1280),
        ("squeezenet1_0", 512),
    ],
)
def test_torch_and_onnx_runtime_agree(built, architecture: str, dim: int) -> None:
    check_both_runtimes(built(architecture), dim)


@pytest.mark.soak  # 138 million weights, half a minute
def test_torch_and_onnx_runtime_agree_on_vgg16(tmp_path: Path) -> None:
    folder = tmp_path / "vgg16"
    build(folder, "vgg16", "vgg16", "random:0")
    check_both_runtimes(folder, 4096)
    shutil.rmtree(folder)  # 1.1 GB


@pytest.mark.parametrize("architecture", ["densenet121", "resnet50", "efficientnet_b0", "squeezenet1_0", "null"])
def test_untrained_models_still_tell_images_apart(built, architecture: str) -> None:
    pixels = samples(12, 224, 3)
    nudged = np.clip(pixels * 0.97 + 0.01, 0, 1).astype(np.float32)
    encoder = load(built(architecture))
    one, two = (encoder.encode(p).embeddings for p in (pixels, nudged))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, two)]
    cosines = unit[0] @ unit[1].T
    assert cosines.argmax(1).tolist() == list(range(12))  # the nearest is the nudged copy
    assert cosines[~np.eye(12, dtype=bool)].mean() < 0.96


def test_untrained_densenet_finds_the_same_body_part(built, radiology, p_at_1) -> None:
    encoder = load(built("densenet121"), threads=2)
    gallery, of = radiology("train", 8)
    queries, wanted = radiology("test", 4)
    found = p_at_1(encoder.encode(gallery).embeddings, encoder.encode(queries).embeddings, of, wanted)
    assert found > 0.5  # chance is 0.17


def test_a_seed_makes_the_same_model_again(built, tmp_path: Path) -> None:
    again = build(tmp_path / "again", "again", "squeezenet1_0", "random:0")
    other = build(tmp_path / "other", "other", "squeezenet1_0", "random:1")
    assert again.fingerprint == read(built("squeezenet1_0")).fingerprint
    assert other.fingerprint != again.fingerprint


def test_a_model_is_never_built_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(folder, "model", "null", "random:0")
    before = sha256_of(folder / WEIGHTS)
    with pytest.raises(Conflict):
        build(folder, "model", "null", "random:1")
    assert sha256_of(folder / WEIGHTS) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_of_builders_at_the_same_time_one_wins_whole(tmp_path: Path) -> None:
    def attempt(seed: int) -> bool:
        try:
            build(tmp_path / "model", "model", "null", f"random:{seed}", dim=256)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert read(tmp_path / "model").dim == 256
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("up/../x", "null", "random:0"), {}, Invalid),
        (("model", "alexnet", "random:0"), {}, Invalid),
        (("model", "null", "torchvision:IMAGENET1K_V1"), {}, Invalid),
        (("model", "null", "random:0"), {"dim": 0}, Invalid),
        (("model", "squeezenet1_0", "random:0"), {"dim": 64}, Invalid),
        (("model", "squeezenet1_0", "nowhere.safetensors"), {}, NotFound),
    ],
)
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, arguments: tuple, options: dict, error: type) -> None:
    with pytest.raises(error):
        build(tmp_path / "model", *arguments, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_nothing_in_place_and_is_swept_later(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from shared.encoder.build import build; "
    code += "build(Path(sys.argv[1]), 'model', 'squeezenet1_0', 'random:0')"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")])
    try:
        while not list(tmp_path.glob(f".building-*/{WEIGHTS}")):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert not (tmp_path / "model").exists()
    assert folders(tmp_path) == []
    (left,) = tmp_path.glob(".building-*")
    build(tmp_path / "one", "one", "null", "random:0")
    assert left.exists()  # recent, so another process may be building it
    long_ago = time.time() - 7200
    os.utime(left, (long_ago, long_ago))
    build(tmp_path / "two", "two", "null", "random:0")
    assert not left.exists()


class Liar(nn.Module):
    """Gives one output while it is exported, and another when it runs."""

    def __init__(self, lie) -> None:
        super().__init__()
        self.lie = lie

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        honest = pixels[:, 0, :8].flatten(1)
        return self.lie(honest) if torch.jit.is_tracing() else honest


@pytest.mark.parametrize(
    "lie",
    [lambda y: y * 1.01, lambda y: y.flip(1), lambda y: y * 0, lambda y: y / 0],
    ids=["scale", "order", "zero", "nan"],
)
def test_a_graph_that_disagrees_with_its_network_is_refused(tmp_path: Path, lie) -> None:
    assert (
        export(Network(Liar(lambda y: y), IMAGENET_MEAN, IMAGENET_STD), 32, tmp_path / "true.onnx").min_cosine > 0.9999
    )
    with pytest.raises(Invalid, match="disagree"):
        export(Network(Liar(lie), IMAGENET_MEAN, IMAGENET_STD), 32, tmp_path / "false.onnx")


def test_densenets_graph_is_cheaper_and_says_the_same() -> None:
    module = untrained("densenet121", 3)
    before = state_of(module)
    cheaper = simplify(module)
    with FlopCounterMode(display=False) as plain, torch.inference_mode():
        wanted = module(torch.from_numpy(samples(2, 224, 9)).unsqueeze(1).expand(-1, 3, -1, -1))
    with FlopCounterMode(display=False) as less, torch.inference_mode():
        found = cheaper(torch.from_numpy(samples(2, 224, 9)).unsqueeze(1).expand(-1, 3, -1, -1))
    assert less.get_total_flops() < 0.75 * plain.get_total_flops()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert state_of(module).keys() == before.keys()  # the network itself is unchanged


def test_networks_that_cannot_be_cheaper_are_left_alone() -> None:
    module = body("efficientnet_b0", empty=True)
    assert simplify(module) is module
    padded = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1, padding=1), nn.AvgPool2d(2))
    assert simplify(padded) is padded


def test_weights_that_give_zero_vectors_make_no_model(built, tmp_path: Path) -> None:
    state = load_file(built("squeezenet1_0") / WEIGHTS)
    save_file({key: torch.zeros_like(value) for key, value in state.items()}, tmp_path / "dead.safetensors")
    with pytest.raises(Invalid):
        build(tmp_path / "model", "model", "squeezenet1_0", str(tmp_path / "dead.safetensors"))


def test_preprocessing_is_the_cards_own(built, tmp_path: Path) -> None:
    weights = str(built("squeezenet1_0") / WEIGHTS)
    half = (0.5, 0.5, 0.5)
    card = build(
        tmp_path / "m", "m", "squeezenet1_0", weights, Recipe(size=96, pad="square"), half, half, note="a test"
    )
    assert (card.recipe.size, card.mean, card.std, card.weights.note) == (96, half, half, "a test")
    assert card.weights.sha256 == read(built("squeezenet1_0")).weights.sha256
    assert card.fingerprint != read(built("squeezenet1_0")).fingerprint
    assert load(tmp_path / "m").encode(samples(1, 96, 0)).embeddings.shape == (1, 512)


@pytest.mark.parametrize("half", [False, True])
def test_a_disk_without_room_for_the_weights_is_told_as_such(tmp_path: Path, half: bool) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            build(tmp_path / "models" / "net", "net", "squeezenet1_0", "random:0", Recipe(size=64), half=half)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "models").iterdir()) == []
