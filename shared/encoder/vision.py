"""The only import of torchvision.

The torchvision of the package registries is built for CUDA. With a CPU build of torch its C++ extension cannot load
(it links CUDA libraries that are absent), so the operators that it would register do not exist, and the import of
torchvision fails when it attaches meta kernels to them: `operator torchvision::nms does not exist`. Similis uses only
the model definitions, which need no such operator, so declaring the two schemas is enough. They are declared only
if the extension does not load; if it does, a second declaration would raise.
"""

import importlib.util
import threading
from pathlib import Path
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_lock = threading.Lock()
_declared: list[torch.library.Library] = []  # the operators of a Library disappear when it is garbage-collected


def models() -> ModuleType:
    """Return `torchvision.models`, whichever build of torchvision is installed."""
    with _lock:
        if not _declared and not _extension_loads():
            library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for operator in ("nms", "qnms"):
                library.define(f"{operator}{_SCHEMA}")  # type: ignore[no-untyped-call]
            _declared.append(library)
        import torchvision.models

        return torchvision.models  # type: ignore[no-any-return]


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    try:
        for binary in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(binary)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")
