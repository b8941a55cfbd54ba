"""The only place that imports Qdrant's protobuf messages.

They are part of qdrant-client, whose import loads its REST client, a model of every request and its local mode: a
second of processor time in every process that speaks gRPC and needs none of these. So the messages are imported
without the rest of the package, which can still be imported as usual, before or after this module.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "qdrant_client"


@contextmanager
def _bare() -> Iterator[None]:
    """Within the block the package is a bare folder: its modules are imported without its `__init__`."""
    spec = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        yield
        return
    folder = ModuleType(PACKAGE)
    folder.__path__ = list(spec.submodule_search_locations)
    sys.modules[PACKAGE] = folder
    try:
        yield
    finally:
        del sys.modules[PACKAGE]


with _bare():
    from qdrant_client import grpc as pb

__all__ = ["pb"]
