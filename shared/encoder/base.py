"""The seam to models: one pass turns pixels into everything that the platform stores about them."""

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
    """A loaded model. Not thread-safe: each slot has its own.

    Raises: `Invalid` if the pixels do not have the shape that the card asks for, or a vector is NaN or zero.
    """

    card: Card

    def encode(self, pixels: Pixels) -> Encoded:
        """Encode (n, side, side) float32 in [0, 1]; the encoder repeats the channels and normalises."""
