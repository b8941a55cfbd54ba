"""`KIND:...` names a data set; the kind is a module of this folder with `make(text, queries, seed)`."""

import importlib
import pkgutil

from benchmarks.latency.datasets.base import Made
from shared.errors import NotFound


def kinds() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")


def fingerprint(name: str) -> str:
    """Of data that lie elsewhere, what changes with them (`fingerprint(text)` of the kind's module); else empty."""
    kind, _, text = name.partition(":")
    module = importlib.import_module(f"{__name__}.{kind}") if kind in kinds() else None
    return str(getattr(module, "fingerprint", lambda _text: "")(text))


def make(name: str, queries: int, seed: int) -> Made:
    """The data of this name. Raises: `NotFound`, `Invalid`."""
    kind, _, text = name.partition(":")
    if kind not in kinds():
        raise NotFound(f"there is no kind of data {kind}; there are {', '.join(kinds())}")
    made: Made = importlib.import_module(f"{__name__}.{kind}").make(text, queries, seed)
    return made
