"""A label table for a folder of images: read completely, checked, and looked up by file or by UID."""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from shared.datasets import cells, tables
from shared.errors import Invalid
from shared.types import Labels

MAX_BYTES = 1 << 30
MAX_ROWS = 5_000_000
MAX_CELL = 4096  #: bytes of UTF-8
MAX_LINE = 1 << 20  #: characters; bounds memory for a file without line ends
MAX_COLUMNS = 256
DELIMITERS = ",;\t"
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
SUFFIXES = DICOM_SUFFIXES | {".png", ".jpg", ".jpeg"}

#: columns that name the file, unless another column does; then they are extra columns
WEAK = frozenset({"image", "imagename", "imageid", "imageindex"})
#: column names by meaning, without case and punctuation
COLUMNS: Mapping[str, frozenset[str]] = {
    "file": frozenset({"file", "filename", "filepath", "path", "imagepath"}) | WEAK,
    "sop": frozenset({"sopinstanceuid", "sopuid", "instanceuid"}),
    "study": frozenset({"study", "studyuid", "studyid", "studyinstanceuid", "exam", "examid"}),
    "patient": frozenset({"patient", "patientid", "pid", "subject", "subjectid"}),
    "laterality": frozenset({"laterality", "side", "imagelaterality", "breastside"}),
    "view": frozenset({"view", "viewposition", "imageview"}),
    "study_date": frozenset({"studydate", "date", "examdate", "acquisitiondate"}),
    "modality": frozenset({"modality"}),
    "birads": frozenset({"birads", "biradscategory", "breastbirads", "assessment"}),
    "density": frozenset({"density", "breastdensity", "breastdensityacr", "acr"}),
    "pathology": frozenset({"pathology", "pathologyclassification", "pathologyclassificationfollowup"}),
}  # fmt: skip
KEYS = ("file", "sop", "study")
LABELS = ("birads", "density", "pathology")  #: without the extra columns
#: columns that identify a person; they are dropped and never stored
PERSONAL = frozenset(
    {
        "name", "patientname", "firstname", "lastname", "surname", "familyname", "givenname", "birthdate",
        "dateofbirth", "patientbirthdate", "dob", "address", "patientaddress", "phone", "telephone", "email", "mrn",
        "ssn", "accession", "accessionnumber", "otherpatientids", "insurance", "referringphysicianname", "physician",
    }
)  # fmt: skip
PARSERS: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(("file", "sop", "study", "patient"), cells.name),
    # cached: few distinct values in many rows
    **{p.__name__: lru_cache(1024)(p) for p in (
        cells.laterality, cells.view, cells.study_date, cells.modality, cells.birads, cells.density, cells.pathology
    )},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The table's facts about an image or a study; None means that the table does not state it.

    The `repr` contains the patient as the table has it: never log a row.
    """

    labels: Labels | None = field(default_factory=Labels)  #: None if the table has no label columns
    study: str | None = None
    patient: str | None = None
    laterality: str | None = None
    view: str | None = None
    study_date: date | None = None
    modality: str | None = None
    #: study and patient of the row replace those of a DICOM header: the headers of published sets lack them, or give
    #: different patients one ID, or each view its own
    identity: bool = False


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A label table after a complete read. Rows with equal keys are equal: the reader refuses any other table."""

    rows: int
    compound: int  #: BI-RADS cells with more than one category
    dropped: tuple[str, ...]  #: columns left out because they name a person, without case and punctuation
    files: Mapping[str, Row] = field(repr=False)
    stems: Mapping[str, Row | None] = field(repr=False)  #: None if two different rows have this stem
    instances: Mapping[str, Row] = field(repr=False)
    studies: Mapping[str, Row] = field(repr=False)  #: rows that name a study and no image
    shared: frozenset[int] = frozenset()  #: `id` of each row that matches files in several folders, see `told_apart`

    def __len__(self) -> int:
        return self.rows

    def find(self, root: Path, path: Path, *, sop_instance_uid: str = "", study_uid: str = "") -> Row | None:
        """Return the row of a file, by the first key that the table has.

        In order: the path relative to `root`; the longest suffix of the path, down to the file name; both without
        the extension, unless two rows share that; the SOP Instance UID, which may be the file name; the study.
        """
        row, exact = self._by_name(root, path)
        if row is not None and (exact or id(row) not in self.shared):
            return row
        return (
            self.instances.get(sop_instance_uid)
            or self.instances.get(_stem(_key(path.name)))
            or self.studies.get(study_uid)
        )

    def shares(self, root: Path, path: Path) -> bool:
        """Return whether the file's only row also matches files in other folders."""
        row, exact = self._by_name(root, path)
        return not exact and id(row) in self.shared

    def told_apart(self, root: Path, paths: Iterable[Path]) -> "LabelTable":
        """Return the table for these files, in which a row that matches files in several folders is ambiguous.

        `find` gives an ambiguous row only to the file at exactly the row's path, not to one that matches its suffix.
        """
        folders: dict[int, int] = {}  # by identity of the row: two rows may be equal
        shared = set()
        for path in paths:
            row, _ = self._by_name(root, path)
            if row is not None and folders.setdefault(id(row), hash(path.parent)) != hash(path.parent):
                shared.add(id(row))
        return replace(self, shared=frozenset(shared))

    def _by_name(self, root: Path, path: Path) -> tuple[Row | None, bool]:
        """Return the row, and whether it names exactly the path relative to `root`."""
        parts = _key(path.as_posix()).split("/")
        inner = _inner(root, path)
        names = [inner, *("/".join(parts[n:]) for n in range(len(parts)))]
        for name in names:
            if name in self.files:
                return self.files[name], name == inner
        for name in names:
            if (row := self.stems.get(_stem(name))) is not None:
                return row, False
        return None, False


def read_labels(path: Path) -> LabelTable:
    """Read and check a table: CSV in UTF-8 (with or without BOM), with comma, semicolon or tab.

    Column names are recognised without case and punctuation (COLUMNS); other columns go to `Labels.extra`, except
    those that identify a person.

    Raises:
        Invalid: no such file, not a label table, over a limit, an invalid value, or two different rows with one key.
            The message names line and column, never a value.
    """
    if not path.is_file():
        raise Invalid("there is no such label table")
    if path.stat().st_size > MAX_BYTES:
        raise Invalid("the label table is larger than 1 GiB")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(file)
    except UnicodeDecodeError:
        raise Invalid("the label table is not UTF-8") from None
    except OSError:
        raise Invalid("the label table cannot be read") from None


def _read(file: IO[str]) -> LabelTable:
    first = next((line for line in _lines(file) if line.strip()), "")
    delimiter = max(DELIMITERS, key=lambda d: _recognised(first, d))
    file.seek(0)
    reader = csv.reader(_lines(file), delimiter=delimiter, strict=True)
    building = _Building()
    header: list[str] | None = None
    try:
        for record in reader:
            if not any(cell.strip() for cell in record):
                continue
            if header is None:
                header = building.columns(record)
                continue
            building.add(reader.line_num, _cells(reader.line_num, header, record))
    except csv.Error:
        raise Invalid(f"line {reader.line_num}: not a CSV line") from None
    if header is None:
        raise Invalid("the label table is empty")
    return building.table()


def _lines(file: IO[str]) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) >= MAX_LINE or "\0" in line:
            raise Invalid("the label table has a line that is too long, or binary data")
        yield line


def _meaning(column: str) -> str | None:
    return next((meaning for meaning, names in COLUMNS.items() if tables.plain(column) in names), None)


def _recognised(line: str, delimiter: str) -> tuple[int, int]:
    columns = line.replace('"', "").strip().split(delimiter)
    return sum(_meaning(column) is not None for column in columns), len(columns)


def _cells(line: int, header: list[str], record: list[str]) -> dict[str, str]:
    if len(record) < len(header) or any(cell.strip() for cell in record[len(header) :]):
        raise Invalid(f"line {line}: {len(record)} cells under {len(header)} columns")
    if any(4 * len(cell) > MAX_CELL and len(cell.encode()) > MAX_CELL for cell in record):
        raise Invalid(f"line {line}: a cell is longer than {MAX_CELL} bytes")
    return dict(zip(header, record, strict=False))


class _Building:
    """The table under construction; each key keeps its line, so that a message can name both lines of a conflict."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.rows = self.compound = 0
        self.maps: dict[str, dict[str, tuple[Row, int]]] = {key: {} for key in KEYS}
        self.stems: dict[str, Row | None] = {}

    def columns(self, record: list[str]) -> list[str]:
        """Return the columns' meanings; `:name` for an extra column, empty for a dropped one."""
        names = []
        weak = WEAK if any(_meaning(c) == "file" and tables.plain(c) not in WEAK for c in record) else frozenset()
        for column in record:
            plain = tables.plain(column)
            if plain in PERSONAL:
                self.dropped.append(plain)
            extra = "" if plain in PERSONAL or not plain else f":{column.strip()[:64]}"
            names.append(extra if plain in weak else _meaning(column) or extra)
        if not set(names) & set(KEYS):
            raise Invalid("line 1: no column for a file, a SOP Instance UID or a study")
        if len(names) > MAX_COLUMNS:
            raise Invalid(f"line 1: more than {MAX_COLUMNS} columns")
        for number, name in enumerate(names, start=1):
            if name and names.index(name) != number - 1:
                raise Invalid(f"line 1: columns {names.index(name) + 1} and {number} mean the same")
        return names

    def add(self, line: int, record: Mapping[str, str]) -> None:
        self.rows += 1
        if self.rows > MAX_ROWS:
            raise Invalid(f"the label table has more than {MAX_ROWS} rows")
        parsed = {name: _parse(line, name, record[name]) for name in PARSERS if name in record}
        self.compound += "$" in record.get("birads", "")
        row = _row(parsed, record)
        keys = {key: str(parsed[key]) for key in KEYS if parsed.get(key)}
        if not keys:
            raise Invalid(f"line {line}: no file, SOP Instance UID or study")
        if len(keys) > 1:
            keys.pop("study", None)  # the row describes one image of the study
        if "file" in keys:
            keys["file"] = _file_key(line, keys["file"])
            stem = _stem(keys["file"])
            self.stems[stem] = row if self.stems.get(stem, row) == row else None
        for key, value in keys.items():
            standing, before = self.maps[key].setdefault(value, (row, line))
            if standing != row:
                raise Invalid(f"lines {before} and {line} have the same {key} but different values")

    def table(self) -> LabelTable:
        files, instances, studies = ({k: row for k, (row, _) in self.maps[key].items()} for key in KEYS)
        return LabelTable(
            self.rows, self.compound, tuple(self.dropped), files=files, stems=self.stems, instances=instances,
            studies=studies,
        )  # fmt: skip


def _parse(line: int, name: str, cell: str) -> object:
    try:
        return PARSERS[name](cell)
    except ValueError as reason:
        raise Invalid(f"line {line}, column {name}: {reason}") from None


def _row(parsed: Mapping[str, object], record: Mapping[str, str]) -> Row:
    extra = {name[1:]: cell.strip() for name, cell in record.items() if name[:1] == ":" and cell.strip()}
    raw = record.get("birads", "").strip()
    if not cells.missing(raw) and raw != str(parsed["birads"]):
        extra["birads_raw"] = raw
    own = ("study", "patient", "laterality", "view", "study_date", "modality")
    labels = Labels(**{n: parsed.get(n) for n in LABELS}, extra=extra)  # type: ignore[arg-type]
    has_labels = any(name in LABELS or name[:1] == ":" for name in record)
    return Row(labels=labels if has_labels else None, **{name: parsed.get(name) for name in own})  # type: ignore[arg-type]


def _file_key(line: int, cell: str) -> str:
    key = _key(cell.replace("\\", "/"))
    if ".." in key.split("/") or not key:
        raise Invalid(f"line {line}, column file: not a path inside the folder")
    return key


def _key(path: str) -> str:
    """Normalise a path for comparison: Unicode NFC, no leading slash, no space around names or before the extension."""
    parts = [part.strip() for part in unicodedata.normalize("NFC", path).split("/")]
    parts = [part for part in parts if part not in {"", "."}]
    if parts:
        parts[-1] = re.sub(r"\s+(\.\w+)$", r"\1", parts[-1])
    return "/".join(parts)


def _inner(root: Path, path: Path) -> str:
    """Return the key of a file's path relative to the root; empty if the file is outside."""
    return _key(path.relative_to(root).as_posix()) if path.is_relative_to(root) else ""


def _stem(key: str) -> str:
    """Return the key without a known extension; the last component of a UID is not one."""
    suffix = PurePosixPath(key).suffix
    return key[: -len(suffix)] if suffix.lower() in SUFFIXES else key
