"""A card's folder to a loaded encoder. Torch and ONNX Runtime are imported only when one is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from shared.encoder.base import Encoded, Encoder
from shared.encoder.cards import GRAPH, WEIGHTS, Card, read
from shared.encoder.null import NULL, Projection
from shared.errors import Invalid
from shared.types import Embeddings, Pixels

Runtime = Literal["onnx", "torch"]
Forward = Callable[[Pixels], Embeddings]

#: Frames per forward pass: bounds memory, and beyond it no runtime gets faster (benchmarks/results/encoding.md).
BATCH = 4


def load(folder: Path, runtime: Runtime = "onnx", threads: int = 1) -> Encoder:
    """The model of the folder, ready to encode. `torch` sets the threads of the whole process: it has one pool.

    Raises:
        NotFound: there is no card.
        Invalid: card, weights or graph are malformed or were changed, or there is no such runtime.
    """
    card = read(folder)
    if card.architecture == NULL:
        return Loaded(card, Projection(folder, card.dim), f"numpy {np.__version__}")
    if runtime == "onnx":
        if card.graph is None:
            raise Invalid("the model has no ONNX graph")
        import onnxruntime

        return Loaded(card, onnx_forward(folder / GRAPH, threads), f"onnxruntime {onnxruntime.__version__}")
    if runtime == "torch":
        import torch

        return Loaded(card, torch_forward(card, folder / WEIGHTS, threads), f"torch {torch.__version__}")
    raise Invalid("a runtime is onnx or torch")


class Loaded:
    """The `Encoder` of every runtime: what surrounds the forward pass."""

    def __init__(self, card: Card, forward: Forward, runtime: str, device: str = "cpu") -> None:
        self.card = card
        self._forward = forward
        self._info = {"runtime": runtime, "device": device}

    def encode(self, pixels: Pixels) -> Encoded:
        self._check_pixels(pixels)
        embeddings = np.empty((len(pixels), self.card.dim), np.float32)
        for start in range(0, len(pixels), BATCH):
            part = np.ascontiguousarray(pixels[start : start + BATCH])
            embeddings[start : start + BATCH] = self._forward(part)
        if not (np.isfinite(embeddings).all() and embeddings.any(axis=1).all()):
            raise Invalid("the model gave a vector that is NaN, infinite or zero")
        return Encoded(embeddings=embeddings, runtime=self._info)

    def _check_pixels(self, pixels: Pixels) -> None:
        side = self.card.recipe.size
        if pixels.dtype != np.float32 or pixels.ndim != 3 or pixels.shape[1:] != (side, side):
            raise Invalid(f"the model takes float32 pixels of shape (n, {side}, {side})")
        # a little slack, because interpolation overshoots; NaN fails both comparisons
        if len(pixels) and not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
            raise Invalid("the model takes pixels in [0, 1]")


def onnx_forward(graph: Path, threads: int) -> Forward:
    """A forward pass through the graph on `threads` cores.

    Threads spin within a pass and sleep between passes, because other slots share the machine. Measured with two
    threads and one frame of DenseNet121: 31 ms; never spinning 45 ms; for the same processor time (61 ms).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (pixels,), (embeddings,) = session.get_inputs(), session.get_outputs()

    def forward(batch: Pixels) -> Embeddings:
        return session.run([embeddings.name], {pixels.name: batch})[0]  # type: ignore[no-any-return]

    return forward


def torch_forward(card: Card, weights: Path, threads: int) -> Forward:
    """The same forward pass by torch, eager, without gradients."""
    import torch
    from safetensors.torch import load_file

    from shared.encoder.network import Network, body, fill

    torch.set_num_threads(threads)
    module = body(card.architecture, empty=True)
    fill(module, load_file(weights), card.architecture)
    network = Network(module, card.mean, card.std).eval()

    def forward(batch: Pixels) -> Embeddings:
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()  # type: ignore[no-any-return]

    return forward
