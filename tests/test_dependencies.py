"""Imported packages are declared; otherwise they would depend on other packages' dependencies."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.conftest import ROOT

#: Parts of a declared framework, which pins their versions itself.
PARTS = {"starlette", "pydantic_core"}
OURS = ("benchmarks", "migrations", "services", "shared", "workers")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    declared = {normal(re.split(r"[\s\[<>=!~;]", line)[0]) for line in listed}
    found = {name.split(".")[0] for top in OURS for path in (ROOT / top).rglob("*.py") for name in imports(path)}
    known = packages_distributions()
    foreign = found - {*OURS, *PARTS, *sys.stdlib_module_names}
    if sys.version_info >= (3, 14):
        known["jpeg_ls"] = ["pyjpegls"]  # imported where it is installed, and it has no wheels for this Python
    assert {name for name in foreign if declared.isdisjoint(map(normal, known.get(name, [name])))} == set()
