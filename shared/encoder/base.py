"""The seam to models: pixels in, everything the platform stores of them out, in one pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.encoder.cards import Card
from shared.types import Codes, Embeddings, Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    embeddings: Embeddings  #: (n, dim), finite, not zero
    codes: Codes | None = None  #: (n, bits / 8) where the model has a hash head
    ood: NDArray[np.float32] | None = None  #: (n,) reconstruction error where the model has a decoder
    runtime: Mapping[str, str] | None = None  #: runtime and device, recorded beside the encoding


class Encoder(Protocol):
    """A loaded model. Not thread-safe; one per slot.

    Raises: `Invalid` for another shape than the card's, or a vector that comes out NaN or zero.
    """

    card: Card

    def encode(self, pixels: Pixels) -> Encoded:
        """Encode (n, side, side) float32 in [0, 1]; channels and normalisation are the encoder's own part."""
