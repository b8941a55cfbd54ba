"""The only place that opens a pickle, on an explicit command: `similis models convert`.

`weights_only` has been bypassed twice (CVE-2025-32434, CVE-2026-24747), so no model is ever loaded from a pickle:
a person converts a file they trust, once, and everything after that reads safetensors.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from shared.encoder.network import save_state
from shared.encoder.weights import modern
from shared.errors import Conflict, Invalid, NotFound


def convert(pth: Path, out: Path) -> int:
    """Write a torch state dict to `out` as float32 safetensors, and return the number of its tensors.

    Of a training checkpoint, only the `state_dict` is kept, without the `module.` prefix that parallel training adds.

    Raises:
        NotFound: `pth` or the folder of `out` does not exist.
        Conflict: `out` exists.
        Invalid: `pth` is not a state dict, or holds more than tensors.
    """
    if not pth.is_file():
        raise NotFound("there is no such weights file")
    if out.suffix != ".safetensors":
        raise Invalid("the output file must end in .safetensors")
    if out.exists():
        raise Conflict("the output file exists already")
    if not out.parent.is_dir():
        raise NotFound("there is no such folder for the output file")
    try:
        loaded = torch.load(pth, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        raise Invalid(f"the file is not a plain torch state dict ({type(error).__name__})") from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise Invalid("the file is not a plain torch state dict")
    if not all(isinstance(key, str) and _plain(value) for key, value in loaded.items()):
        raise Invalid("the file must hold nothing but named tensors of numbers")
    # clones, because safetensors refuses tensors that share memory
    state = {
        key.removeprefix("module."): (value.float() if value.is_floating_point() else value).clone().contiguous()
        for key, value in loaded.items()
    }
    with TemporaryDirectory(dir=out.parent, prefix=".") as folder:
        save_state(modern(state), Path(folder) / out.name)
        (Path(folder) / out.name).rename(out)
    return len(state)


def _plain(value: object) -> bool:
    """Whether the value is a dense (strided) tensor on the CPU, of a type that safetensors supports."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested or value.dtype is torch.complex128)
    )
