"""Sources of weights: torchvision by name, a safetensors file, or a seed. Never a pickle."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from shared.encoder.backbones import BACKBONES, parse_seed
from shared.encoder.cards import Options, Weights, sha256_of
from shared.encoder.kinds import body
from shared.encoder.network import State, fill, save_state, state_of
from shared.encoder.untrained import untrained
from shared.encoder.vision import models
from shared.errors import Invalid, NotFound, Unavailable

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A body with its weights, and the card's facts about their origin."""

    body: nn.Module
    source: str
    trained: bool = True
    seed: int | None = None
    origin_sha256: str | None = None

    def save(self, path: Path, note: str, *, half: bool = False) -> Weights:
        """Write the weights to `path`; the file's metadata name the source, so untrained weights stay marked.

        `half` rounds the weights to float16, in the file and in the body.
        """
        if half:  # only what is stored: tables that are computed keep their precision
            for value in self.body.state_dict().values():
                value.copy_(value.half())
        state = {key: value.half() if half else value for key, value in state_of(self.body).items()}
        save_state(state, path, self.source)
        return Weights(
            source=self.source,
            sha256=sha256_of(path),
            trained=self.trained,
            seed=self.seed,
            origin_sha256=self.origin_sha256,
            note=note,
        )


def find(architecture: str, weights: str, options: Options | None = None) -> Source:
    """Return the body with the weights that `weights` names.

    Args:
        architecture, options: as in `shared.encoder.kinds`.
        weights: `torchvision:IMAGENET1K_V1` (any torchvision name for a bare backbone), `random:SEED`, or the
            path of a .safetensors file with the body's tensor names, which are torchvision's for a bare backbone.

    Raises:
        Invalid: `weights` or the file does not fit the architecture.
        NotFound: the file does not exist.
        Unavailable: torchvision's weights cannot be downloaded from here.
    """
    seed = parse_seed(weights)
    if seed is not None:
        return Source(body=untrained(architecture, seed, options), source=f"random:{seed}", trained=False, seed=seed)
    if not weights.startswith("torchvision:"):
        return _from_file(architecture, Path(weights), options)
    if architecture not in BACKBONES or options:
        raise Invalid("torchvision has weights for backbones without options only")
    return _from_torchvision(architecture, weights)


def modern(state: State) -> State:
    """Return the state under current tensor names: torchvision's DenseNet files still have `norm.1` for `norm1`."""
    return {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in state.items()}


def _from_torchvision(architecture: str, weights: str) -> Source:
    module = body(architecture, empty=True)
    known = models().get_model_weights(architecture)
    name = weights.removeprefix("torchvision:")
    if name not in known.__members__:
        raise Invalid(f"torchvision has no such weights for {architecture}; it has: {', '.join(known.__members__)}")
    try:
        state = known[name].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, TimeoutError, ConnectionError):
        raise Unavailable(
            f"{weights} of {architecture} cannot be fetched from here. Fetch the file where there is internet "
            f"({known[name].url}), convert it with `similis models convert`, and name the .safetensors file instead",
            retry_after_s=60,
        ) from None
    fill(module, modern(state), architecture)
    return Source(body=module, source=weights)


def _from_file(architecture: str, path: Path, options: Options | None) -> Source:
    if path.suffix != ".safetensors":
        raise Invalid(
            "weights must be torchvision:NAME, random:SEED, or a .safetensors file; "
            "convert a .pth file, which is a pickle, with `similis models convert`"
        )
    if not path.is_file():
        raise NotFound("there is no such weights file")
    try:
        with safe_open(path, "pt") as file:
            mark = (file.metadata() or {}).get("source", "")
        state = load_file(path)
    except SafetensorError:
        raise Invalid("the weights file is not in safetensors format") from None
    module = body(architecture, options, empty=True)
    fill(module, modern(state), architecture)
    seed = parse_seed(mark)
    if seed is not None:
        return Source(body=module, source=f"random:{seed}", trained=False, seed=seed, origin_sha256=sha256_of(path))
    return Source(body=module, source="file", origin_sha256=sha256_of(path))
