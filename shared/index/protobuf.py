"""The one door to Qdrant's messages.

They lie in qdrant-client, whose own import brings its REST client, a model of every request and its local mode: a
second of processor time, of every process that speaks gRPC and needs none of that. So the messages are imported
without what surrounds them; whoever wants the whole package imports it as ever, before this or after it.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "qdrant_client"


@contextmanager
def _bare() -> Iterator[None]:
    """Within the block the package is a folder: what is imported of it is imported alone."""
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
