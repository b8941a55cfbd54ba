"""Golden outputs of each network for a known picture: a change here would change every stored vector."""

import numpy as np
import pytest
import torch

from shared.encoder import runtime
from shared.encoder.kinds import assemble, kind
from shared.encoder.samples import samples
from shared.encoder.weights import find
from tests.conftest import ROOT

XS = {"widths": "xs", "bits": 64, "side": 112}


@pytest.mark.parametrize(
    ("architecture", "options", "first", "norm"),
    [
        ("densenet121", {}, (0.88262, 0.38972, 0.27737, 0.53951), 18.1299),
        ("resnet50", {}, (2.03634, 1.53542, 2.25065, 1.53264), 67.3336),
        ("vgg16", {}, (1.02302, 0.0, 3.28081, 0.12393), 62.2227),
        ("efficientnet_b0", {}, (1.23237, 0.21748, 0.76049, 1.03313), 36.7608),
        ("squeezenet1_0", {}, (0.45115, 0.32036, 0.34448, 0.42634), 9.09704),
        ("mobilenet_v2", {}, (0.50629, 0.62965, 0.72251, 0.52406), 16.4770),
        ("acir", XS, (0.07274, 0.02682, 0.03080, -0.05772), 1.0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_drawn_by_a_seed_gives_the_same_vector_as_ever(
    architecture: str, options: dict, first: tuple[float, ...], norm: float
) -> None:
    side, known = options.get("side", 224), kind(architecture)
    network = assemble(find(architecture, "random:0", options).body, known.mean, known.std, "none", side)
    with torch.inference_mode():
        found = network(torch.from_numpy(samples(1, side, 0)))
    vector = (found if isinstance(found, torch.Tensor) else found.embeddings)[0]
    assert vector[:4].tolist() == pytest.approx(first, rel=1e-3, abs=1e-4)
    assert float(vector.norm()) == pytest.approx(norm, rel=1e-3)
    if architecture == "acir":
        assert found.logits[0, :4].tolist() == pytest.approx([-0.25279, 0.09219, 0.34662, 0.12684], abs=1e-3)
        assert float(found.errors[0]) == pytest.approx(2.08241, rel=1e-3)


def test_the_shipped_model_gives_the_same_vector_code_and_error_as_ever() -> None:
    found = runtime.load(ROOT / "models" / "similis-base", "torch", 1).encode(samples(1, 112, 0))
    ends = [*found.embeddings[0, :4], *found.embeddings[0, -2:]]  # the last ones count spots
    assert ends == pytest.approx([-0.020647, -0.018858, -0.012313, 0.009284, 0.019836, -0.040493], abs=1e-4)
    assert found.codes is not None
    other = found.codes[0] ^ np.array([167, 222, 145, 180, 170, 159, 108, 214], np.uint8)
    assert np.unpackbits(other).sum() <= 1  # another processor may round a logit across zero
    assert found.ood is not None
    assert float(found.ood[0]) == pytest.approx(0.134498, rel=1e-3)
