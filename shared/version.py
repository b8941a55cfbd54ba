"""The version of the installed software."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def software() -> str:
    """The version of this process's software, also after a newer one was installed beside it; "unknown" without one."""
    try:
        return version("similis")
    except PackageNotFoundError:
        return "unknown"
