"""`KIND:...` names a data set; the kind is a module of this folder with `make(text, queries, seed)`."""

import importlib
import pkgutil

from benchmarks.latency.datasets.base import Made
from shared.errors import NotFound


def kinds() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")


def fingerprint(name: str) -> str:
    """The fingerprint of data stored elsewhere, by the kind's `fingerprint(text)`; empty if the kind has none."""
    kind, _, text = name.partition(":")
    module = importlib.import_module(f"{__name__}.{kind}") if kind in kinds() else None
    return str(getattr(module, "fingerprint", lambda _text: "")(text))


def make(name: str, queries: int, seed: int) -> Made:
    """The data set of this name. Raises: `NotFound`, `Invalid`."""
    kind, _, text = name.partition(":")
    if kind not in kinds():
        raise NotFound(f"there is no kind of data {kind}; there are {', '.join(kinds())}")
    made: Made = importlib.import_module(f"{__name__}.{kind}").make(text, queries, seed)
    return made
