"""Raw results: JSON lines, appended as they are measured. Everything else is computed from them.

A line with `what: environment` describes machine, versions, commit, seeds and command; every measurement refers to it
by `run`, and names its data set, engine and round. A line with `what: note` holds `text` by a person for the report. A
last line cut short by a kill is dropped. Archived results may be compressed (`gzip raw.jsonl`).
"""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from shared.errors import Invalid, NotFound

Json = dict[str, Any]
FILE: Final = "raw.jsonl"
PACKED: Final = f"{FILE}.gz"


def there(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (FILE, PACKED))


def read(folder: Path) -> list[Json]:
    """All complete lines. Raises: `NotFound`; `Invalid` if a line other than the last is broken or an archive cut."""
    if not there(folder):
        raise NotFound(f"there are no results in {folder.name}: no {FILE}")
    plain = folder / FILE
    try:
        text = plain.read_bytes() if plain.is_file() else gzip.decompress((folder / PACKED).read_bytes())
    except EOFError:
        raise Invalid(f"the results in {folder.name} are cut: {PACKED}") from None
    return list(_parsed(text.decode("utf-8").splitlines()))


def forget(folder: Path) -> None:
    for name in (FILE, PACKED):
        (folder / name).unlink(missing_ok=True)


def _parsed(lines: list[str]) -> Iterator[Json]:
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise Invalid(f"line {number} of the results is broken") from None


class Writer:
    """Appends lines; it first decompresses the file if needed, and cuts off an incomplete last line."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path, packed = folder / FILE, folder / PACKED
        if packed.is_file() and not path.is_file():
            part = path.with_suffix(".part")
            part.write_bytes(gzip.decompress(packed.read_bytes()))
            part.replace(path)  # atomic: a partial file would be taken for the whole
            packed.unlink()
        if path.is_file():
            whole = path.read_bytes().rpartition(b"\n")[0]
            os.truncate(path, len(whole) + 1 if whole else 0)
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: Json) -> None:
        self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
