"""The children's log files: rotates them, and extracts warnings for the terminal."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LARGEST = 10 * 2**20  #: bytes; one rotated file is kept
_SHOWN = {"warning", "error", "critical"}
_LONGEST_READ = 64 * 1024


@dataclass
class Log:
    """One log file, which a child appends to and the supervisor reads."""

    path: Path
    largest: int = LARGEST
    _seen: int = field(default=0, init=False)
    _rest: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self._seen = self.path.stat().st_size if self.path.exists() else 0

    def rotate(self) -> None:
        """Copy and truncate a file above `largest`; not renamed, because the process keeps it open."""
        if self.path.exists() and self.path.stat().st_size > self.largest:
            self.path.with_suffix(".log.1").write_bytes(self.path.read_bytes())
            with self.path.open("r+b") as file:
                file.truncate(0)
            self._seen, self._rest = 0, b""

    def important(self) -> Iterator[str]:
        """New log lines of level warning and above, as short text."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(min(self._seen, size), size - _LONGEST_READ))
            *lines, self._rest = (self._rest + file.read()).split(b"\n")
            self._seen = size
        for line in lines:
            if (told := readable(line)) is not None:
                yield told

    def last(self) -> list[str]:
        """The last six non-empty lines, each cut to 300 characters, for the report of a death."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return [line[:300] for line in lines[-6:]]


def readable(line: bytes) -> str | None:
    """A JSON log line as `event key=value ...`; None below level warning, and for other text."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("level") not in _SHOWN:
        return None
    rest = {k: v for k, v in entry.items() if k not in {"event", "level", "timestamp", "role"}}
    return " ".join([str(entry.get("event", "?")), *(f"{key}={value}" for key, value in rest.items())])
