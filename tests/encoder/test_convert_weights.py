import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.encoder.build import build
from shared.encoder.convert import convert
from shared.encoder.runtime import load
from shared.errors import Conflict, Invalid, NotFound

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("architecture", "file", "statistics"),
    [
        ("mobilenet_v2", "mobilenet_v2_imagenet_fp16.pth", (HALF, HALF)),
        ("squeezenet1_0", "squeezenet1_0_imagenet_fp16.pth", IMAGENET),
    ],
)
def test_real_trained_weights_are_converted_built_and_useful(
    data_dir: Path, tmp_path: Path, radiology, p_at_1, architecture: str, file: str, statistics: tuple
) -> None:
    out = tmp_path / "weights.safetensors"
    count = convert(data_dir / "weights" / file, out)
    state = load_file(out)
    assert len(state) == count
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    card = build(tmp_path / "model", architecture, architecture, str(out), None, *statistics)
    assert card.label == f"{architecture} (file)"
    assert card.weights.trained
    encoder = load(tmp_path / "model", threads=2)
    gallery, of = radiology("train", 8)
    queries, wanted = radiology("test", 4)
    assert p_at_1(encoder.encode(gallery).embeddings, encoder.encode(queries).embeddings, of, wanted) >= 0.9


def test_values_survive_the_conversion(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4).half(), "b": torch.arange(4), "c": torch.randn(6).double()}
    state["d"] = state["a"][1:]  # shares memory with a
    torch.save(state, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth", tmp_path / "w.safetensors") == 4
    found = load_file(tmp_path / "w.safetensors")
    for key, value in state.items():
        torch.testing.assert_close(found[key].double(), value.double(), rtol=1e-6, atol=0)
    assert found["a"].dtype == torch.float32
    assert found["b"].dtype == torch.int64


def test_a_conversion_touches_no_file_beside_its_own(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    (tmp_path / "w.partial").write_text("of somebody else")
    convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.partial", "w.pth", "w.safetensors"]


def test_a_training_checkpoint_is_taken_apart(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a": torch.ones(2)}, "best": 91.0}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"a"}


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def disguised(payload: bytes) -> bytes:
    """The pickle inside the zip layout of torch.save."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("w/data.pkl", payload)
        archive.writestr("w/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize("wrap", [bytes, disguised], ids=["bare", "zip"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, wrap) -> None:
    proof = tmp_path / "proof"
    (tmp_path / "evil.pth").write_bytes(wrap(pickle.dumps({"a": Hostile(proof)}, protocol=2)))
    with pytest.raises(Invalid):
        convert(tmp_path / "evil.pth", tmp_path / "w.safetensors")
    assert not proof.exists()
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.ones(1)], {"a": {"b": torch.ones(1)}}, torch.ones(2)])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(Invalid):
        convert(tmp_path / "w.pth", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128), torch.zeros(2, device="meta")],
    ids=["sparse", "complex", "empty"],
)
def test_a_tensor_that_safetensors_cannot_hold_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(Invalid, match="named tensors of numbers"):
        convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"PK\x03\x04 not a zip", b"\x80\x02."])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(Invalid):
        convert(tmp_path / "w.pth", tmp_path / "w.safetensors")


def test_a_missing_file_an_existing_output_and_another_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(Invalid):
        convert(tmp_path / "w.pth", tmp_path / "w.bin")
    with pytest.raises(NotFound, match="folder for the output"):
        convert(tmp_path / "w.pth", tmp_path / "absent" / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"mine")
    with pytest.raises(Conflict):
        convert(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == b"mine"
    assert np.array_equal(sorted(p.name for p in tmp_path.iterdir()), ["w.pth", "w.safetensors"])
