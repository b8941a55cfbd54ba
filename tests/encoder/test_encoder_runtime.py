import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.encoder.cards import CARD, GRAPH, WEIGHTS, read, sha256_of
from shared.encoder.runtime import BATCH, Loaded, load, prove
from shared.encoder.samples import samples
from shared.errors import Invalid, NotFound

ROOT = Path(__file__).resolve().parents[2]


def test_importing_the_encoder_loads_neither_torch_nor_onnx_runtime() -> None:
    code = (
        "import sys, shared.encoder.runtime, shared.encoder.cards, shared.encoder.build, shared.encoder.null; "
        "print(sorted({'torch', 'torchvision', 'onnxruntime', 'onnx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_onnx_runtime_serves_without_torch_and_null_without_either(built) -> None:
    for architecture, absent in (("squeezenet1_0", {"torch"}), ("null", {"torch", "onnxruntime"})):
        code = (
            "import sys; from pathlib import Path; import numpy as np; from shared.encoder.runtime import load; "
            f"load(Path({str(built(architecture))!r})).encode(np.ones((1, 224, 224), np.float32)); "
            f"print(sorted({absent!r} & sys.modules.keys()))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("makes", [True, False])
def test_onnx_runtime_reports_to_nobody(built, tmp_path: Path, *, makes: bool) -> None:
    """Its telemetry keeps a database in the user's cache until it has sent it. Torch's exporter imports it, too."""
    made = f"build(Path({str(tmp_path / 'made')!r}), 'made', 'squeezenet1_0', 'random:1')"
    loaded = f"load(Path({str(built('squeezenet1_0'))!r})).encode(np.ones((1, 224, 224), np.float32))"
    code = (
        "import sys; from pathlib import Path; import numpy as np; from shared.encoder.build import build; "
        f"from shared.encoder.runtime import load; {made if makes else loaded}; print('onnxruntime' in sys.modules)"
    )
    (home := tmp_path / "home").mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    own["HOME"] = str(home)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=own)
    assert done.stdout.split()[-1] == "True"
    assert list(home.rglob("*.db")) == []


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize("architecture", ["densenet121", "efficientnet_b0", "null"])
def test_an_image_has_the_same_vector_alone_and_in_any_batch(built, runtime, architecture: str) -> None:
    encoder = load(built(architecture), runtime)
    pixels = samples(BATCH + 3, 224, 11)
    together = encoder.encode(pixels).embeddings
    for i in (0, BATCH - 1, BATCH, BATCH + 2):
        alone = encoder.encode(pixels[i : i + 1]).embeddings[0]
        np.testing.assert_allclose(alone, together[i], atol=1e-4 * np.abs(together).max())


def test_the_runtime_and_the_device_are_recorded_and_are_no_part_of_the_fingerprint(built) -> None:
    one, two = (load(built("squeezenet1_0"), runtime) for runtime in ("onnx", "torch"))
    infos = [encoder.encode(samples(1, 224, 0)).runtime for encoder in (one, two)]
    assert [info["runtime"].split()[0] for info in infos] == ["onnxruntime", "torch"]
    assert all(re.fullmatch(r"\w+ \d+\.\d+\S*", info["runtime"]) for info in infos)
    assert {info["device"] for info in infos} == {"cpu"}
    assert one.card.fingerprint == two.card.fingerprint


def test_threads_do_not_change_the_vectors(built) -> None:
    pixels = samples(2, 224, 4)
    one, two = (load(built("densenet121"), threads=n).encode(pixels).embeddings for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_no_images_give_no_vectors(built) -> None:
    for architecture in ("squeezenet1_0", "null"):
        encoder = load(built(architecture))
        assert encoder.encode(np.empty((0, 224, 224), np.float32)).embeddings.shape == (0, encoder.card.dim)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("architecture", ["densenet121", "efficientnet_b0", "null"])
def test_a_uniform_image_has_a_vector_too(built, architecture: str, value: float) -> None:
    found = load(built(architecture)).encode(np.full((2, 224, 224), value, np.float32)).embeddings
    assert np.isfinite(found).all()
    assert found.any(axis=1).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 224, 223), np.float32),
        np.zeros((224, 224), np.float32),
        np.zeros((1, 1, 224, 224), np.float32),
        np.zeros((1, 224, 224), np.float64),
        np.zeros((1, 224, 224), np.uint8),
        np.full((1, 224, 224), 255, np.float32),
        np.full((1, 224, 224), -1, np.float32),
        np.full((1, 224, 224), np.nan, np.float32),
        np.full((1, 224, 224), np.inf, np.float32),
    ],
    ids=["side", "no batch", "channel", "float64", "bytes", "range", "negative", "nan", "inf"],
)
def test_pixels_that_the_card_does_not_describe_are_refused(built, pixels: np.ndarray) -> None:
    with pytest.raises(Invalid):
        load(built("null")).encode(pixels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_vector_that_is_nan_infinite_or_zero_never_leaves_the_encoder(built, bad: float) -> None:
    def forward(batch: np.ndarray) -> dict[str, np.ndarray]:
        out = np.ones((len(batch), 64), np.float32)
        out[-1] = bad
        return {"embeddings": out}

    with pytest.raises(Invalid, match="NaN, infinite or zero"):
        Loaded(read(built("null")), forward, "fake 1.0").encode(samples(3, 224, 0))


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize("architecture", ["squeezenet1_0", "null"])
def test_a_model_whose_weights_were_changed_is_not_loaded(built, tmp_path: Path, runtime, architecture: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built(architecture), folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(Invalid, match="changed"):
        load(folder, runtime)


def remade(built, folder: Path, name: str, content: bytes, **change: object) -> Path:
    """A squeezenet whose named file has this content, with a card that matches it."""
    shutil.copytree(built("squeezenet1_0"), folder)
    (folder / name).write_bytes(content)
    card = read(folder, verify=False).to_json()
    card.pop("fingerprint")
    for part, file in (("weights", WEIGHTS), ("graph", GRAPH)):
        card[part]["sha256"] = sha256_of(folder / file)
    (folder / CARD).write_text(json.dumps(card | change))
    return folder


@pytest.mark.parametrize(
    ("runtime", "name", "content"),
    [
        ("onnx", GRAPH, b"of another version"),
        ("torch", WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
    ],
)
def test_what_a_runtime_cannot_read_is_a_wrong_model(built, tmp_path: Path, runtime, name: str, content: bytes) -> None:
    with pytest.raises(Invalid, match="cannot be loaded here"):
        load(remade(built, tmp_path / "model", name, content), runtime)


def test_a_model_is_tried_before_it_is_said_to_run(built, tmp_path: Path) -> None:
    assert prove(built("squeezenet1_0")) == read(built("squeezenet1_0"))
    graph = (built("squeezenet1_0") / GRAPH).read_bytes()
    with pytest.raises(Invalid, match="do not have the shape that its card states"):
        prove(remade(built, tmp_path / "model", GRAPH, graph, dim=7))


def test_an_unknown_runtime_and_a_missing_model_are_refused(built, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        load(built("squeezenet1_0"), "cuda")
    with pytest.raises(NotFound):
        load(tmp_path)


def test_no_pickle_is_read_but_by_the_convert_command_and_by_a_training_that_resumes_its_own_run() -> None:
    words = re.compile(r"torch\.load\(|pickle\.loads?\(|weights_only=False|allow_pickle=True|joblib\.load")
    found = {
        str(path.relative_to(ROOT))
        for room in ("services", "workers", "shared", "benchmarks", "migrations")
        for path in (ROOT / room).rglob("*.py")
        if words.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"shared/encoder/convert.py", "shared/training/checkpoint.py"}
