"""Torch network to ONNX graph, and the proof that both say the same."""

import warnings
from pathlib import Path

import numpy as np
import torch

from shared.encoder.cards import Graph, sha256_of
from shared.encoder.network import Network
from shared.encoder.runtime import onnx_forward
from shared.encoder.samples import samples
from shared.encoder.simplify import simplify
from shared.errors import Invalid
from shared.types import Embeddings

OPSET = 18
MIN_COSINE = 0.9999  #: below it, a runtime is another numeric class (DESIGN idea 5)
MAX_DIFF = 1e-3  #: of the largest component: far above rounding (1e-6), far below a wrong layer
_FRAMES, _SEED = 4, 20241


def export(network: Network, side: int, path: Path) -> Graph:
    """The network's graph stands at `path`, checked against the network itself.

    Raises:
        Invalid: their outputs differ, or are degenerate (NaN, zero).
    """
    _write(network.around(simplify(network.body)), side, path)
    frames = samples(_FRAMES, side, _SEED)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(frames)).numpy()
    diff, cosine = agreement(wanted, onnx_forward(path, threads=1)(frames))
    if not (cosine >= MIN_COSINE and diff <= MAX_DIFF * float(np.abs(wanted).max())):
        raise Invalid(f"graph and network disagree: cosine {cosine:.6f}, largest difference {diff:.2e}")
    return Graph(
        sha256=sha256_of(path),
        opset=OPSET,
        exporter=f"torch {torch.__version__}",
        max_abs_diff=diff,
        min_cosine=min(cosine, 1.0),
    )


def agreement(a: Embeddings, b: Embeddings) -> tuple[float, float]:
    """The largest absolute difference, and the smallest cosine of two rows; NaN where one of them is degenerate."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        return float(np.abs(x - y).max()), float(cosines.min())


def _write(network: Network, side: int, path: Path) -> None:
    """The graph, by the TorchScript exporter.

    For these networks it is equal to the dynamo exporter's in speed and result, and takes 1 s where that takes 13
    (DenseNet121). It is deprecated; torch is pinned.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, and notes of the tracer on constant shapes
        torch.onnx.export(
            network,
            (torch.zeros(2, side, side),),
            path,
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_axes={"pixels": {0: "n"}, "embeddings": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
