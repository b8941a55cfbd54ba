"""The only place that opens a pickle, asked for by name: `similis models convert`.

`weights_only` has been bypassed twice (CVE-2025-32434, CVE-2026-24747), so no model is ever loaded from a pickle:
a person converts a file they trust, once, and everything after that reads safetensors.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from shared.encoder.weights import modern
from shared.errors import Conflict, Invalid, NotFound


def convert(pth: Path, out: Path) -> int:
    """A torch state dict stands at `out` as float32 safetensors; the answer is how many tensors it holds.

    A training checkpoint is taken apart: its `state_dict`, without the `module.` that parallel training adds.

    Raises:
        NotFound: there is no such file, or no folder for the new one.
        Conflict: `out` exists.
        Invalid: not a state dict, or it holds more than tensors.
    """
    if not pth.is_file():
        raise NotFound("there is no such weights file")
    if out.suffix != ".safetensors":
        raise Invalid("weights are converted to a .safetensors file")
    if out.exists():
        raise Conflict("the output file exists already")
    if not out.parent.is_dir():
        raise NotFound("there is no such folder for the output file")
    try:
        loaded = torch.load(pth, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way there is
        raise Invalid(f"the file is no plain torch state dict ({type(error).__name__})") from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise Invalid("the file is no plain torch state dict")
    if not all(isinstance(key, str) and _plain(value) for key, value in loaded.items()):
        raise Invalid("the file holds more than named tensors of plain numbers")
    # clones, because safetensors refuses tensors that share memory
    state = {
        key.removeprefix("module."): (value.float() if value.is_floating_point() else value).clone().contiguous()
        for key, value in loaded.items()
    }
    with TemporaryDirectory(dir=out.parent, prefix=".") as folder:
        save_file(modern(state), Path(folder) / out.name)
        (Path(folder) / out.name).rename(out)
    return len(state)


def _plain(value: object) -> bool:
    """Whether it is a tensor whose numbers lie in memory one after the other, of a type that safetensors has."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.dtype is torch.complex128)
    )
