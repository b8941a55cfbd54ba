"""A hash code for a model without one: the signs of the principal components of its unit vectors.

The head is fitted once, to embeddings of an archive or a training split, and stored with the card's weights. It is
applied to the embeddings after the forward pass, in numpy, so that every runtime gives the same code and the base
model's graph is reused.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.encoder.ood import unit
from shared.errors import Invalid
from shared.types import Codes, Embeddings

MEAN, COMPONENTS = "hash.mean", "hash.components"  #: tensor names of the head
_ROUNDS = 50  #: iterations of ITQ, as Gong & Lazebnik use


class HashHead(NamedTuple):
    mean: NDArray[np.float32]  #: (dim,)
    components: NDArray[np.float32]  #: (bits, dim)

    def logits(self, embeddings: Embeddings) -> NDArray[np.float32]:
        """Map (n, dim) to (n, bits). Like the cosine, the logits do not depend on the vectors' lengths."""
        return np.asarray((unit(embeddings) - self.mean) @ self.components.T, np.float32)


def codes(logits: NDArray[np.float32]) -> Codes:
    """Return (n, bits / 8): a bit is set where the logit is at least 0, so the sign of 0 is +1."""
    return np.packbits(logits >= 0, axis=1)


def fit_hash(embeddings: Embeddings, bits: int, seed: int = 0, *, rotate: bool = False) -> HashHead:
    """Fit a head of `bits` bits to the first principal components; symmetric data sets each bit for half its rows.

    `rotate` rotates the components by iterative quantisation, so that all bits carry about the same variance.

    Args:
        embeddings: (n, dim), n above `bits`; an evaluation takes a training split, never its gallery.
        bits: a multiple of 8, at most dim.
        seed: of the first rotation.

    Raises:
        Invalid: `bits` is out of range, or the vectors span fewer than `bits` directions.

    Source: Gong & Lazebnik 2011 (CVPR), PCA and ITQ.
    """
    n, dim = embeddings.shape
    if bits < 8 or bits % 8 or bits > min(dim, n - 1):
        raise Invalid(
            f"a code of {bits} bits cannot be fitted: bits must be a multiple of 8, at most {dim} (the length of an "
            f"embedding), and fewer than the encoded images ({n})"
        )
    rows = unit(embeddings).astype(np.float64)
    mean = rows.mean(0)
    components = principal(rows - mean, bits)
    if rotate:
        components = _rotation((rows - mean) @ components.T, seed).T @ components
    return HashHead(mean.astype(np.float32), components.astype(np.float32))


def principal(centred: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return (count, dim): the directions of largest variance, as `directions`.

    Raises: `Invalid` if the rows vary in fewer than `count` directions.
    """
    rows = directions(centred, count)
    if len(rows) < count:
        raise Invalid(f"the vectors vary in fewer than {count} directions")
    return rows


def directions(centred: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return (n, dim): the directions of largest variance, `most` or as many as the rows vary in.

    They are signed so that the largest entry of each is positive.
    """
    _, sizes, rows = np.linalg.svd(centred, full_matrices=False)
    rows = rows[: min(most, int((sizes > 1e-6 * sizes[0]).sum()))]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(1)])
    return rows * signs[:, None]  # type: ignore[no-any-return]


def _rotation(projected: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return the (bits, bits) rotation that brings the vectors nearest to their signs, from a random start."""
    bits = projected.shape[1]
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    for _ in range(_ROUNDS):
        signs = np.where(projected @ turn >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(projected.T @ signs)
        turn = left @ right
    return turn


def load_hash(weights: Path) -> HashHead:
    """Read the hash head from a card's weights. Raises: `Invalid` if they hold none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "np") as file:
            return HashHead(file.get_tensor(MEAN), file.get_tensor(COMPONENTS))
    except SafetensorError:
        raise Invalid("the weights hold no hash head") from None
