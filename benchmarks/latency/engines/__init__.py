"""Every module of this folder that does not begin with an underscore lists its engines in `ENGINES`.

The folder named by SIMILIS_BENCH_ENGINES may hold more such modules, with engines of your own.
"""

import importlib
import os
import pkgutil
from collections.abc import Sequence
from fnmatch import fnmatch

from benchmarks.latency.engines.base import Engine
from shared.errors import NotFound

if _own := os.environ.get("SIMILIS_BENCH_ENGINES"):
    __path__.append(_own)


def modules() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name[0] != "_" and info.name != "base")


def of(module: str) -> dict[str, Engine]:
    """The engines of one module; only that module and its libraries are imported."""
    return {engine.name: engine for engine in importlib.import_module(f"{__name__}.{module}").ENGINES}


def module_of(engine: Engine) -> str:
    return next(module for module in modules() if engine.name in of(module))


def engines() -> dict[str, Engine]:
    """All engines by name."""
    return {name: engine for module in modules() for name, engine in of(module).items()}


def chosen(patterns: Sequence[str]) -> list[Engine]:
    """Engines whose names match a pattern (`faiss-*`), in order of definition. Raises: `NotFound`."""
    known = engines()
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in known):
            raise NotFound(f"there is no engine {pattern}; there are {', '.join(known)}")
    return [
        engine
        for name, engine in known.items()
        if any(fnmatch(name, pattern) and not (engine.aside and pattern == "*") for pattern in patterns)
    ]
