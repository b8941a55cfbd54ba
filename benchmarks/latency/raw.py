"""Raw results: JSON lines, appended as they are measured. Everything else is computed from them.

A line of `what: environment` describes machine, versions, commit, seeds and command; every measurement names it by
`run`, and says its data set, engine and round. A line of `what: note` is a person's own `text` for the report. A line
cut short by a kill is dropped.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from shared.errors import Invalid, NotFound

Json = dict[str, Any]
FILE: Final = "raw.jsonl"


def read(folder: Path) -> list[Json]:
    """All whole lines. Raises: `NotFound`; `Invalid` where a line but the last is broken."""
    path = folder / FILE
    if not path.is_file():
        raise NotFound(f"there are no results in {folder.name}: no {FILE}")
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(_parsed(lines))


def _parsed(lines: list[str]) -> Iterator[Json]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise Invalid(f"line {number} of the results is broken") from None


class Writer:
    """Appends; what a kill left of a last line is cut off first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        if path.is_file():
            whole = path.read_bytes().rpartition(b"\n")[0]
            os.truncate(path, len(whole) + 1 if whole else 0)
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: Json) -> None:
        self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
