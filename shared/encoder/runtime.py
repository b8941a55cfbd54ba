"""Load an encoder from a card's folder. Torch or ONNX Runtime is imported only when a model of it is loaded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.encoder.base import Encoded, Encoder
from shared.encoder.cards import GRAPH, WEIGHTS, Card, read
from shared.encoder.hashing import codes, load_hash
from shared.encoder.null import NULL, Projection
from shared.encoder.samples import samples
from shared.errors import Invalid, SimilisError
from shared.types import Pixels

Runtime = Literal["onnx", "torch"]
#: Outputs of one pass by name: embeddings (n, dim); logits (n, bits) and errors (n,) if the model has them.
Raw = Mapping[str, NDArray[np.float32]]
Forward = Callable[[Pixels], Raw]

#: Frames per forward pass: bounds memory; no runtime is faster with larger batches (benchmarks/results/encoding.md).
BATCH = 4


def load(folder: Path, runtime: Runtime = "onnx", threads: int = 1) -> Encoder:
    """Return the folder's model, ready to encode. `torch` sets the threads of the whole process: torch has one pool.

    Raises:
        NotFound: there is no card.
        Invalid: card, weights or graph are malformed or were changed, or the runtime is unknown.
    """
    card = read(folder)
    with _ours("the model cannot be loaded here: its weights or its graph are damaged, or of another version"):
        forward, version = _forward(card, folder, runtime, threads)
        return Loaded(card, _hashed(forward, folder) if card.fitted_hash else forward, version)


def prove(folder: Path, runtime: Runtime = "onnx", threads: int = 1) -> Card:
    """Return the folder's card after its model encoded a synthetic frame here, with outputs as the card states.

    Raises: as `load`.
    """
    encoder = load(folder, runtime, threads)
    with _ours("the model cannot be run here"):
        encoder.encode(samples(1, encoder.card.recipe.size, 0))
    return encoder.card


@contextmanager
def _ours(said: str) -> Iterator[None]:
    """Raise `Invalid(said)` for the errors of runtimes and file formats, which share no base class."""
    try:
        yield
    except (SimilisError, MemoryError):
        raise
    except Exception as error:
        raise Invalid(said) from error


def _forward(card: Card, folder: Path, runtime: Runtime, threads: int) -> tuple[Forward, str]:
    if card.architecture == NULL:
        projection = Projection(folder, card.dim)
        return lambda batch: {"embeddings": projection(batch)}, f"numpy {np.__version__}"
    if runtime == "onnx":
        if card.graph is None:
            raise Invalid("the model has no ONNX graph")
        import onnxruntime

        return onnx_forward(folder / GRAPH, threads), f"onnxruntime {onnxruntime.__version__}"
    if runtime == "torch":
        import torch

        return torch_forward(card, folder / WEIGHTS, threads), f"torch {torch.__version__}"
    raise Invalid("the runtime must be onnx or torch")


def _hashed(forward: Forward, folder: Path) -> Forward:
    head = load_hash(folder / WEIGHTS)

    def both(batch: Pixels) -> Raw:
        raw = forward(batch)
        return {**raw, "logits": head.logits(raw["embeddings"])}

    return both


class Loaded:
    """The `Encoder` of every runtime: checks, batches and packs around a runtime's forward pass."""

    def __init__(self, card: Card, forward: Forward, runtime: str, device: str = "cpu") -> None:
        self.card = card
        self._forward = forward
        self._info = {"runtime": runtime, "device": device}
        self._shapes: dict[str, tuple[int, ...]] = {"embeddings": (card.dim,)}
        if card.bits:
            self._shapes["logits"] = (card.bits,)
        if card.reconstructs:
            self._shapes["errors"] = ()

    def encode(self, pixels: Pixels) -> Encoded:
        self._check_pixels(pixels)
        found = {name: np.empty((len(pixels), *shape), np.float32) for name, shape in self._shapes.items()}
        for start in range(0, len(pixels), BATCH):
            part = np.ascontiguousarray(pixels[start : start + BATCH])
            raw = self._forward(part)
            for name, rows in found.items():
                if name not in raw or raw[name].shape != (len(part), *self._shapes[name]):
                    raise Invalid(f"the model's {name} do not have the shape that its card states")
                rows[start : start + BATCH] = raw[name]
        embeddings = found["embeddings"]
        if not (all(np.isfinite(rows).all() for rows in found.values()) and embeddings.any(axis=1).all()):
            raise Invalid("the model returned a vector that is NaN, infinite or zero")
        logits = found.get("logits")
        return Encoded(
            embeddings=embeddings,
            codes=None if logits is None else codes(logits),
            ood=found.get("errors"),
            runtime=self._info,
        )

    def _check_pixels(self, pixels: Pixels) -> None:
        side = self.card.recipe.size
        if pixels.dtype != np.float32 or pixels.ndim != 3 or pixels.shape[1:] != (side, side):
            raise Invalid(f"the model takes float32 pixels of shape (n, {side}, {side})")
        # a little slack, because interpolation overshoots; NaN fails both comparisons
        if len(pixels) and not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
            raise Invalid("the model takes pixels in [0, 1]")


def onnx_forward(graph: Path, threads: int) -> Forward:
    """Return a forward pass through the graph on `threads` cores.

    Threads spin within a pass and sleep between passes, because other slots share the machine. Measured with two
    threads and one frame of DenseNet121: 31 ms against 45 ms without spinning, at the same processor time (61 ms).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def forward(batch: Pixels) -> Raw:
        return dict(zip(names, session.run(names, {pixels.name: batch}), strict=True))

    return forward


def torch_forward(card: Card, weights: Path, threads: int) -> Forward:
    """Return the same forward pass in torch: eager, without gradients."""
    import torch

    from shared.encoder.kinds import load_network
    from shared.encoder.network import named

    torch.set_num_threads(threads)
    network = load_network(card, weights)

    def forward(batch: Pixels) -> Raw:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in named(network(torch.from_numpy(batch))).items()}

    return forward
