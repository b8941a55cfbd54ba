"""Models beyond plain backbones: hash heads, ACIR, and their cards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shared.encoder.build import build
from shared.encoder.cards import GRAPH, WEIGHTS, read
from shared.encoder.derive import build_ensemble, with_graph
from shared.encoder.export import export
from shared.encoder.hashing import codes
from shared.encoder.heads import MetricHead
from shared.encoder.kinds import assemble, body
from shared.encoder.network import Network, Outputs, named, state_of
from shared.encoder.runtime import Loaded, load
from shared.encoder.samples import samples
from shared.encoder.untrained import untrained
from shared.errors import Conflict, Invalid, NotFound
from shared.imaging.recipe import Recipe

XS = {"widths": "xs", "bits": 32, "side": 112}


@pytest.fixture(scope="module")
def acir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "acir"
    build(folder, "acir", "acir", "random:0", Recipe(size=112), options=XS, about={"limits": "untrained"})
    return folder


def test_the_metric_head_is_the_papers_stack_on_unit_vectors() -> None:
    head = MetricHead(1024).eval()
    shapes = [tuple(value.shape) for key, value in head.state_dict().items() if key.endswith("weight")]
    assert shapes == [(1024, 1024), (1024,), (512, 1024), (512,), (512, 512), (512,)]
    kinds = [type(layer) for layer in head.layers]
    inner = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert kinds == [*inner, *inner, nn.Linear, nn.BatchNorm1d]
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.3, 0.2]
    features = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0))
    found, raw = head(features), head.raw(features)
    torch.testing.assert_close(found, raw / raw.norm(dim=1, keepdim=True))
    assert (raw.norm(dim=1) - 1).abs().min() > 0.01


def test_a_headed_backbone_is_the_head_on_the_backbones_features(tmp_path: Path) -> None:
    card = build(tmp_path / "m", "m", "squeezenet1_0", "random:0", Recipe(size=64), options={"head": "metric"})
    assert (card.dim, card.bits, card.options, card.pooling) == (512, 0, {"head": "metric"}, "average")
    state = load_file(tmp_path / "m" / WEIGHTS)
    trunk, head = body("squeezenet1_0", empty=True), MetricHead(512).eval()
    trunk.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    head.load_state_dict({k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}, strict=False)
    pixels = samples(3, 64, 9)
    with torch.inference_mode():
        wanted = head(Network(trunk, card.mean, card.std)(torch.from_numpy(pixels))).numpy()
    for runtime in ("onnx", "torch"):
        np.testing.assert_allclose(load(tmp_path / "m", runtime).encode(pixels).embeddings, wanted, atol=1e-5)


def test_acir_gives_embedding_code_and_score_and_both_runtimes_agree(acir: Path) -> None:
    card = read(acir)
    assert (card.bits, card.reconstructs, card.pooling, card.mean, card.std) == (
        32, True, "content", (0.0,) * 3, (1.0,) * 3,
    )  # fmt: skip
    pixels = samples(6, 112, 4)
    module = body("acir", XS)
    module.load_state_dict(load_file(acir / WEIGHTS), strict=False)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(pixels).unsqueeze(1).expand(-1, 3, -1, -1))
    clear = np.abs(wanted.logits.numpy()) > 1e-3  # a logit close to 0 may be rounded to either sign
    for runtime in ("onnx", "torch"):
        found = load(acir, runtime).encode(pixels)
        np.testing.assert_allclose(found.embeddings, wanted.embeddings.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.ood, wanted.errors.numpy(), rtol=1e-3)
        assert ((np.unpackbits(found.codes, axis=1) == (wanted.logits.numpy() >= 0)) | ~clear).all()
        assert found.codes.shape == (6, 4)
    assert np.ptp(wanted.errors.numpy()) > 0.01
    assert clear.mean() > 0.9


def test_acirs_training_parts_may_stand_in_the_file_and_its_decoder_is_left_where_none_is_asked_for(
    acir: Path, tmp_path: Path
) -> None:
    state = load_file(acir / WEIGHTS) | {"classifier.weight": torch.zeros(6, 128), "classifier.bias": torch.zeros(6)}
    save_file(state, tmp_path / "trained.safetensors")
    weights, recipe = str(tmp_path / "trained.safetensors"), Recipe(size=112)
    whole = build(tmp_path / "whole", "whole", "acir", weights, recipe, options=XS, graph=False)
    assert whole.weights.trained
    assert load_file(tmp_path / "whole" / WEIGHTS).keys() == load_file(acir / WEIGHTS).keys()
    bare = build(tmp_path / "bare", "bare", "acir", weights, recipe, options=XS | {"decoder": False})
    assert (bare.reconstructs, bare.bits) == (False, 32)
    assert load(tmp_path / "bare").encode(samples(1, 112, 0)).ood is None
    assert not any(key.startswith("decoder") for key in load_file(tmp_path / "bare" / WEIGHTS))
    with pytest.raises(Invalid, match="missing"):
        save_file(load_file(tmp_path / "bare" / WEIGHTS), tmp_path / "bare.safetensors")
        build(tmp_path / "no", "no", "acir", str(tmp_path / "bare.safetensors"), recipe, options=XS)


@pytest.mark.parametrize(
    ("architecture", "options", "size"),
    [
        ("squeezenet1_0", {"head": "other"}, 64),
        ("squeezenet1_0", {"bits": 64}, 64),
        ("acir", {}, 112),
        ("acir", XS | {"widths": "xxl"}, 112),
        ("acir", XS | {"bits": 12}, 112),
        ("acir", XS | {"bits": "32"}, 112),
        ("acir", XS | {"surprise": 1}, 112),
        ("acir", XS | {"side": 100}, 100),
        ("acir", XS, 128),
        ("acir", XS | {"hash": "pca"}, 112),
        ("ensemble", {}, 64),
        ("ensemble", {"members": []}, 64),
        ("ensemble", {"members": [{"architecture": "alexnet"}]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0", "wings": 2}]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "join": "glue"}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "join": "pca"}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "projection": [2, 512]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "weights": [1.0]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "join": "mean", "weights": [1.0, 2.0]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "join": "mean", "weights": [-1.0]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0", "empty": True}]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0", "mean": [0.5]}]}, 64),
        ("ensemble", {"members": [{"architecture": "squeezenet1_0"}], "join": "pca", "projection": [-1, 512]}, 64),
        ("squeezenet1_0", {"empty": True}, 64),
        ("null", {"head": "metric"}, 64),
        ("squeezenet1_0", {"head": {1, 2}}, 64),
        ("squeezenet1_0", {"head": float("nan")}, 64),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:60],
)
def test_options_that_are_not_the_architectures_are_refused_and_leave_nothing(
    tmp_path: Path, architecture: str, options: dict, size: int
) -> None:
    with pytest.raises(Invalid):
        build(tmp_path / "m", "m", architecture, "random:0", Recipe(size=size), options=options)
    assert list(tmp_path.iterdir()) == []


def test_torchvisions_weights_fit_bare_backbones_only(tmp_path: Path) -> None:
    for architecture, options in (("squeezenet1_0", {"head": "metric"}), ("acir", XS)):
        with pytest.raises(Invalid, match="without options"):
            build(tmp_path / "m", "m", architecture, "torchvision:IMAGENET1K_V1", options=options)


def test_a_seed_makes_the_same_composed_network_again() -> None:
    for architecture, options in (("squeezenet1_0", {"head": "metric"}), ("acir", XS)):
        one, again, other = (state_of(untrained(architecture, seed, options)) for seed in (1, 1, 2))
        assert all(torch.equal(one[key], again[key]) for key in one)
        assert any(not torch.equal(one[key], other[key]) for key in one)


def test_acir_as_a_member_gives_its_vectors_and_keeps_its_code_to_itself(acir: Path, tmp_path: Path) -> None:
    build(tmp_path / "sq", "sq", "squeezenet1_0", "random:0", Recipe(size=112))
    card = build_ensemble(tmp_path / "e", "e", [acir, tmp_path / "sq"])
    assert (card.dim, card.bits, card.reconstructs) == (read(acir).dim + 512, 0, False)
    pixels = samples(2, 112, 5)
    parts = [load(folder).encode(pixels).embeddings for folder in (acir, tmp_path / "sq")]
    wanted = np.concatenate([rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in parts], 1)
    np.testing.assert_allclose(load(tmp_path / "e").encode(pixels).embeddings, wanted, atol=1e-4)
    seeded = build(tmp_path / "r", "r", "ensemble", "random:4", Recipe(size=112), options=card.options, graph=False)
    assert (seeded.dim, seeded.weights.seed) == (card.dim, 4)


def test_half_precision_is_stored_and_is_what_both_runtimes_compute_with(acir: Path, tmp_path: Path) -> None:
    small = build(tmp_path / "h", "h", "acir", str(acir / WEIGHTS), Recipe(size=112), options=XS, half=True)
    state = load_file(tmp_path / "h" / WEIGHTS)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert (tmp_path / "h" / WEIGHTS).stat().st_size < 0.52 * (acir / WEIGHTS).stat().st_size
    assert small.fingerprint != read(acir).fingerprint
    pixels = samples(3, 112, 5)
    by_onnx, by_torch = (load(tmp_path / "h", runtime).encode(pixels) for runtime in ("onnx", "torch"))
    np.testing.assert_allclose(by_onnx.embeddings, by_torch.embeddings, atol=1e-5)
    np.testing.assert_allclose(by_onnx.embeddings, load(acir).encode(pixels).embeddings, atol=0.02)


def test_tables_that_are_computed_are_not_rounded_with_the_weights(tmp_path: Path) -> None:
    """Torch computes them anew when it loads a model; the graph was made from the body that was stored."""
    build(tmp_path / "s", "s", "acir", "random:0", Recipe(size=112), options=XS | {"spots": True}, half=True)
    pixels = samples(3, 112, 5)
    by_onnx, by_torch = (load(tmp_path / "s", runtime).encode(pixels) for runtime in ("onnx", "torch"))
    np.testing.assert_allclose(by_onnx.embeddings, by_torch.embeddings, atol=1e-5)


def test_a_graph_can_be_made_where_the_model_is_used(acir: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    card = build(
        shipped, "s", "acir", str(acir / WEIGHTS), Recipe(size=112), options=XS, tta="five", half=True, graph=False
    )
    assert card.graph is None
    assert sorted(path.name for path in shipped.iterdir()) == ["card.json", WEIGHTS]
    with pytest.raises(Invalid, match="no ONNX graph"):
        load(shipped)
    made = with_graph(tmp_path / "home" / "s", shipped)
    assert made.fingerprint == card.fingerprint
    assert made == read(tmp_path / "home" / "s")
    assert made.graph is not None
    pixels = samples(2, 112, 6)
    by_onnx, by_torch = load(tmp_path / "home" / "s").encode(pixels), load(shipped, "torch").encode(pixels)
    np.testing.assert_allclose(by_onnx.embeddings, by_torch.embeddings, atol=1e-5)
    with pytest.raises(Conflict):
        with_graph(tmp_path / "home" / "s", shipped)
    with pytest.raises(NotFound):
        with_graph(tmp_path / "x", tmp_path / "nowhere")


def test_the_null_encoder_gets_no_graph(built, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        with_graph(tmp_path / "x", built("null"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_about_a_model_is_kept_and_is_no_part_of_its_fingerprint(acir: Path, tmp_path: Path) -> None:
    assert read(acir).about == {"limits": "untrained"}
    weights, said = str(acir / WEIGHTS), {"a": [1, 2]}
    other = build(tmp_path / "o", "o", "acir", weights, Recipe(size=112), options=XS, about=said, graph=False)
    assert other.fingerprint == read(acir).fingerprint
    with pytest.raises(Invalid):
        build(tmp_path / "p", "p", "null", "random:0", about={"when": object()})


class Giving(nn.Module):
    """Three outputs, one of which may differ during tracing."""

    def __init__(self, lies: str = "") -> None:
        super().__init__()
        self.lies = lies

    def forward(self, x: torch.Tensor) -> Outputs:
        grey = x[:, 0]
        found = named(Outputs(grey[:, :8].flatten(1) + 0.1, grey[:, 8] - 0.4, grey.mean((1, 2))))
        if torch.jit.is_tracing() and self.lies:
            found[self.lies] = found[self.lies] * 1.01
        return Outputs(**found)


@pytest.mark.parametrize("output", ["embeddings", "logits", "errors"])
def test_each_output_of_a_graph_is_checked_against_the_network(tmp_path: Path, output: str) -> None:
    whole = assemble(Giving(), (0.0,) * 3, (1.0,) * 3, "none", 32)
    export(whole, 32, tmp_path / GRAPH)
    with pytest.raises(Invalid, match="disagree"):
        export(assemble(Giving(output), (0.0,) * 3, (1.0,) * 3, "none", 32), 32, tmp_path / GRAPH)


@pytest.mark.parametrize("bad", ["logits", "errors"])
def test_a_code_or_score_that_is_no_number_never_leaves_the_encoder(acir: Path, bad: str) -> None:
    card = read(acir)

    def forward(batch: np.ndarray) -> dict[str, np.ndarray]:
        n = len(batch)
        raw = {"embeddings": np.ones((n, card.dim)), "logits": np.ones((n, 32)), "errors": np.ones(n)}
        raw[bad].flat[-1] = np.nan
        return {name: rows.astype(np.float32) for name, rows in raw.items()}

    with pytest.raises(Invalid, match="NaN"):
        Loaded(card, forward, "fake 1.0").encode(samples(2, 112, 0))


@pytest.mark.parametrize("change", ["absent", "short"])
def test_outputs_that_the_card_does_not_describe_are_refused(acir: Path, change: str) -> None:
    card = read(acir)
    bits = {"absent": 0, "short": 24}[change]

    def forward(batch: np.ndarray) -> dict[str, np.ndarray]:
        raw = {"embeddings": np.ones((len(batch), card.dim), np.float32), "errors": np.ones(len(batch), np.float32)}
        return raw | ({"logits": np.ones((len(batch), bits), np.float32)} if bits else {})

    with pytest.raises(Invalid, match="logits"):
        Loaded(card, forward, "fake 1.0").encode(samples(1, 112, 0))


def test_codes_are_packed_most_significant_bit_first_with_zero_as_plus_one() -> None:
    logits = np.array([[0.0, -1, 1, -1, -0.0, 2, -3, -1e-9]], np.float32)
    assert codes(logits).tolist() == [[0b10101100]]
