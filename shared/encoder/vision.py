"""The one door to torchvision.

The package registries' torchvision is built for CUDA. Beside a CPU build of torch its C++ extension cannot load
(it links CUDA libraries that are not there), so the operators it would register do not exist, and importing
torchvision fails while it attaches meta kernels to them: `operator torchvision::nms does not exist`. Similis uses
only the model definitions, which need no such operator, so declaring the two schemas is enough. It is done only
when the extension does not load: where it does, declaring them a second time would be the error.
"""

import importlib.util
import threading
from pathlib import Path
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_lock = threading.Lock()
_declared: list[torch.library.Library] = []  # a Library takes its operators with it when it is collected


def models() -> ModuleType:
    """`torchvision.models`, importable whichever build of torchvision is installed."""
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
