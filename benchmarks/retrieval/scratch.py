"""Names in the scratch folder contain a digest of the inputs, so different inputs never share a file."""

import hashlib
from pathlib import Path

from shared.datasets.collection import Collection
from shared.encoder.cards import sha256_of
from shared.encoder.convert import convert


def digest(*made_of: object) -> str:
    """12 hexadecimal digits; they differ for other values, or a collection of other images, labels, groups or split."""
    told = [one.digest if isinstance(one, Collection) else repr(one) for one in made_of]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def converted(weights: str, folder: Path, scratch: Path) -> str:
    """Weights for `shared.encoder.weights.find`: a pickle in the folder converted to safetensors, others unchanged.

    The file's name contains a hash of its content, so a digest of the name is a digest of the weights.
    """
    if not weights.endswith(".pth"):
        return weights
    pickle = folder / weights
    out = scratch / "weights" / f"{pickle.stem}-{sha256_of(pickle)[:12]}.safetensors"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        convert(pickle, out)
    return str(out)
