"""Tables of published sets, read within limits: CSV files and workbook sheets, with columns by name.

Column names are compared without case and punctuation, in which copies of one set differ. An error names the line
and the column, never a value.
"""

import csv
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import Invalid

MAX_BYTES = 256 << 20  #: of a table, uncompressed
MAX_ROWS = 1_000_000
MAX_MEMBERS = 10_000  #: files in a workbook or a document

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table: cells by the `plain` name of their column, without surrounding space."""

    number: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def parse(self, column: str, parser: Callable[[str], T]) -> T:
        """Return the parsed cell. Raises: `Invalid` if the parser raises `ValueError`."""
        try:
            return parser(self[column])
        except ValueError as reason:
            raise Invalid(f"line {self.number}, column {column}: {reason}") from None


def plain(column: str) -> str:
    return re.sub(r"[\W_]", "", column.lower())


def listing(root: Path) -> list[Path]:
    """Return the files under `root`, relative to it, sorted; symbolic links are neither followed nor listed."""
    found = []
    for folder, below, names in os.walk(root):
        below.sort()
        here = Path(folder)
        found += [(here / name).relative_to(root) for name in sorted(names) if not (here / name).is_symlink()]
    return found


def find(root: Path, files: Sequence[Path], name: str) -> Path | None:
    """Return the file of that name anywhere under `root`, compared without case and punctuation; None if absent."""
    wanted = plain(name)
    return next((root / path for path in files if plain(path.name) == wanted), None)


def require(root: Path, files: Sequence[Path], name: str) -> Path:
    """Return the file of that name, as `find`. Raises: `Invalid` if there is none."""
    found = find(root, files, name)
    if found is None:
        raise Invalid(f"the data set has no {name}")
    return found


def read_csv(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[Line]:
    """Yield the rows of a CSV file in UTF-8 that are not empty.

    Raises:
        Invalid: too large, not such a table, or one of `columns` (plain names) is missing.
    """
    if path.stat().st_size > MAX_BYTES:
        raise Invalid("a table of the data set is too large")
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.reader(file, delimiter=delimiter)
            yield from _lines(((reader.line_num, row) for row in reader), columns)
        except (UnicodeDecodeError, csv.Error):
            raise Invalid("a table of the data set is not CSV in UTF-8") from None


def read_sheet(path: Path, sheet: str, columns: Sequence[str]) -> Iterator[Line]:
    """Yield the rows of one sheet of an xlsx workbook, found by its name.

    Raises:
        Invalid: not a workbook, too large, no such sheet, or one of `columns` (plain names) is missing.
    """
    from openpyxl import load_workbook

    check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # warnings about styles and extensions are irrelevant here
            book = load_workbook(path, read_only=True, data_only=True)
    except Exception:  # a damaged workbook can raise any exception
        raise Invalid("the workbook cannot be read") from None
    try:
        named = {name.strip().lower(): name for name in book.sheetnames}
        if sheet not in named:
            raise Invalid(f"the workbook has no sheet named {sheet}")
        yield from _lines(_rows(book[named[sheet]]), columns)
    finally:
        book.close()


def _rows(page: Any) -> Iterator[tuple[int, Sequence[str]]]:  # noqa: ANN401 - a read-only sheet of openpyxl
    try:
        for number, row in enumerate(page.iter_rows(values_only=True), start=1):
            yield number, [text(value) for value in row]
    except Exception:  # a damaged workbook can also fail while it is read
        raise Invalid("the workbook cannot be read") from None


def check_zip(path: Path) -> None:
    """Raises: `Invalid` if the file is not a zip archive, or unpacks to too many members or bytes."""
    try:
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
    except (zipfile.BadZipFile, OSError):
        raise Invalid("not a workbook or document of Office Open XML") from None
    if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
        raise Invalid("a workbook or document of the data set is too large")


def text(value: object) -> str:
    """Return a workbook's cell as displayed: 4.0 is 4."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _lines(rows: Iterator[tuple[int, Sequence[str]]], columns: Sequence[str]) -> Iterator[Line]:
    header: list[str] | None = None
    for count, (number, row) in enumerate(rows):
        if count > MAX_ROWS:
            raise Invalid("a table of the data set has too many rows")
        if any("\0" in cell for cell in row):
            raise Invalid(f"line {number}: binary data in a table")  # no database column would accept it
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [plain(cell) for cell in row]
            if missing := [column for column in columns if column not in header]:
                raise Invalid(f"a table of the data set has no column {missing[0]}")
            continue
        yield Line(number, {name: cell.strip() for name, cell in zip(header, row, strict=False) if name})
    if header is None:
        raise Invalid("a table of the data set is empty")
