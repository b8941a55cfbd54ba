"""Export of a torch network to an ONNX graph, and the check that both give the same outputs."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.encoder.cards import Graph, sha256_of
from shared.encoder.kinds import assemble
from shared.encoder.network import named
from shared.encoder.runtime import Raw, onnx_forward
from shared.encoder.samples import samples
from shared.encoder.simplify import simplify
from shared.errors import Invalid
from shared.types import Embeddings, Pixels

OPSET = 18
MIN_COSINE = 0.9999  #: a runtime below it belongs to another numeric class (`shared.encoder.cards`)
MAX_DIFF = 1e-3  #: relative to the largest component: far above rounding (1e-6), far below the effect of a wrong layer
_FRAMES, _SEED = 4, 20241


def export(network: nn.Module, side: int, path: Path) -> Graph:
    """Write the network's graph to `path`, checked against the network.

    Args:
        network: maps grey pixels (n, side, side) to (n, dim) or `Outputs`.

    Raises:
        Invalid: the outputs of graph and network differ, or are degenerate (NaN, zero).
    """
    wanted = outputs(network, side)
    _write(_Graphed(simplify(network), list(wanted)), side, path)
    diff, cosine = _compare(wanted, onnx_forward(path, threads=1)(_frames(side)))
    return Graph(
        sha256=sha256_of(path),
        opset=OPSET,
        exporter=f"torch {torch.__version__}",
        max_abs_diff=diff,
        min_cosine=min(cosine, 1.0),
    )


def measure(
    body: nn.Module, mean: Sequence[float], std: Sequence[float], tta: str, side: int, graph: Path | None
) -> dict[str, Any]:
    """Return the card's fields that only the network tells; write its graph to `graph`, unless that is None.

    Raises: `Invalid` if the network takes no images of this side, its outputs are degenerate, or the graph disagrees.
    """
    network = assemble(body, mean, std, tta, side)
    raw = outputs(network, side)
    return {
        "dim": raw["embeddings"].shape[1],
        "bits": raw["logits"].shape[1] if "logits" in raw else 0,
        "reconstructs": "errors" in raw,
        "graph": None if graph is None else export(network, side, graph),
    }


def outputs(network: nn.Module, side: int) -> Raw:
    """Return the network's outputs for the frames of the check. Raises: `Invalid` for a vector that is NaN or zero."""
    try:
        with torch.inference_mode():
            raw = {name: value.numpy() for name, value in named(network(torch.from_numpy(_frames(side)))).items()}
    except RuntimeError:
        raise Invalid(f"the network does not accept images of {side} x {side} pixels") from None
    if not (all(np.isfinite(rows).all() for rows in raw.values()) and raw["embeddings"].any(axis=1).all()):
        raise Invalid("the network returns vectors that are NaN, infinite or zero")
    return raw


def _frames(side: int) -> Pixels:
    return samples(_FRAMES, side, _SEED)


def _compare(wanted: Raw, found: Raw) -> tuple[float, float]:
    diff, cosine = agreement(wanted["embeddings"], found["embeddings"])
    if not (cosine >= MIN_COSINE and diff <= _slack(wanted["embeddings"])):
        raise Invalid(f"graph and network disagree: cosine {cosine:.6f}, largest difference {diff:.2e}")
    for name in wanted.keys() - {"embeddings"}:
        away = np.abs(wanted[name] - found[name])
        if not (away <= _slack(wanted[name])).all():
            raise Invalid(f"graph and network disagree: {name}, largest difference {away.max():.2e}")
    return diff, cosine


def _slack(values: NDArray[np.float32]) -> float:
    """The largest permitted difference of two runtimes; a hash bit can differ only if its logit is nearer to 0."""
    return MAX_DIFF * float(np.abs(values).max())


def agreement(a: Embeddings, b: Embeddings) -> tuple[float, float]:
    """Return the largest absolute difference and the smallest cosine of two rows, NaN if a row is degenerate."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        return float(np.abs(x - y).max()), float(cosines.min())


class _Graphed(nn.Module):
    """The network's existing outputs as a tuple: an ONNX graph cannot return None."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        outputs = named(self.network(pixels))
        return tuple(outputs[name] for name in self.names)


def _write(graphed: _Graphed, side: int, path: Path) -> None:
    """Write the graph with the TorchScript exporter.

    For these networks the graph equals the dynamo exporter's in speed and result, and its export takes 1 s instead
    of 13 (DenseNet121). The TorchScript exporter is deprecated; torch is pinned.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation, and the tracer's warnings about constant shapes
        torch.onnx.export(
            graphed.eval(),
            (torch.zeros(2, side, side),),
            path,
            input_names=["pixels"],
            output_names=graphed.names,
            dynamic_axes={name: {0: "n"} for name in ("pixels", *graphed.names)},
            opset_version=OPSET,
            dynamo=False,
        )
