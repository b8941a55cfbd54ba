"""What a scratch folder keeps stands under the digest of what it was made of: what anything else makes is another."""

import hashlib
from pathlib import Path

from shared.datasets.collection import Collection
from shared.encoder.cards import sha256_of
from shared.encoder.convert import convert


def digest(*made_of: object) -> str:
    """12 hexadecimal digits: others for other images, labels, groups or split of a collection, or other values."""
    told = [one.digest if isinstance(one, Collection) else repr(one) for one in made_of]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def converted(weights: str, folder: Path, scratch: Path) -> str:
    """Weights as `shared.encoder.weights.find` reads them: a pickle of the folder as safetensors, all else as it is.

    The file's name says its content, so that a digest of the name is one of the weights.
    """
    if not weights.endswith(".pth"):
        return weights
    pickle = folder / weights
    out = scratch / "weights" / f"{pickle.stem}-{sha256_of(pickle)[:12]}.safetensors"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        convert(pickle, out)
    return str(out)
