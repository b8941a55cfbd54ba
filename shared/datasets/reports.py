"""The reports of CDD-CESM: one Word document per patient, from which the BI-RADS opinions are read.

Source: the layout that users of the set describe: headed sections, a line for the side, categories in brackets.
"""

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from shared.datasets.record import Modality
from shared.datasets.tables import check_zip
from shared.errors import Invalid

MAX_XML = 8 << 20  #: bytes of a report's XML
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_NAME = re.compile(r"P(\d+)\.docx", re.IGNORECASE)
_SIDE = re.compile(r"(left|right)\s+breast\s*:?", re.IGNORECASE)
_BIRADS = re.compile(r"BI[-\s]?RADS[\s:]*([0-6])(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Opinion:
    """The most severe category that a report gives to one breast in one kind of image."""

    laterality: str
    modality: Modality
    birads: int


def read_opinions(root: Path, files: Sequence[Path], warnings: Counter[str]) -> Mapping[str, tuple[Opinion, ...]]:
    """Return the opinions by patient; a report that cannot be read is counted and left out.

    Args:
        files: relative to `root`. Lock files of Word (`~$P54.docx`) are counted and skipped.
    """
    found = {}
    for path in files:
        match = _NAME.fullmatch(path.name)
        if match is None:
            warnings["lock-file"] += path.name.startswith("~$")
            continue
        try:
            found[str(int(match[1]))] = parse_opinions(read_document(root / path))
        except Invalid:
            warnings["unreadable-report"] += 1
    return found


def parse_opinions(lines: Iterator[str]) -> tuple[Opinion, ...]:
    """Return the opinions: OPINION heads those on the low-energy images, CONTRAST ENHANCED those on the subtracted."""
    kind: Modality | None = None
    side = ""
    worst: dict[tuple[str, Modality], int] = {}
    for line in lines:
        upper = line.upper()
        if upper.startswith("OPINION"):
            kind, side = "DM_low_energy", ""
        elif upper.startswith("CONTRAST ENHANCED"):
            kind, side = "CESM_subtracted", ""
        elif match := _SIDE.match(line):
            side = match[1][0].upper()
        for category in _BIRADS.findall(line):
            if kind and side:
                worst[side, kind] = max(worst.get((side, kind), 0), int(category))
    return tuple(Opinion(side, kind, birads) for (side, kind), birads in sorted(worst.items()))


def read_document(path: Path) -> Iterator[str]:
    """Yield the lines of a Word document that are not empty.

    Raises:
        Invalid: not a Word document, too large, or with a DOCTYPE, which Word never writes and XML bombs need.
    """
    check_zip(path)
    try:
        with zipfile.ZipFile(path) as packed, packed.open("word/document.xml") as file:
            xml = file.read(MAX_XML + 1)
    except (KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        raise Invalid("not a Word document") from None
    # no zero byte: in UTF-16 the search for a DOCTYPE would miss it
    if len(xml) > MAX_XML or b"<!DOCTYPE" in xml or b"\0" in xml:
        raise Invalid("the document is too large, or not as Word writes one")
    try:
        tree = ET.fromstring(xml)  # noqa: S314 - without a DOCTYPE there are no entities to expand
    except (ET.ParseError, LookupError, ValueError):  # the last two are raised for an unknown encoding
        raise Invalid("not a Word document") from None
    for paragraph in tree.iter(f"{WORD}p"):
        whole = "".join("\n" if part.tag != f"{WORD}t" else part.text or "" for part in _parts(paragraph))
        yield from (line.strip() for line in whole.splitlines() if line.strip())


def _parts(paragraph: ET.Element) -> Iterator[ET.Element]:
    breaks = {f"{WORD}br", f"{WORD}cr"}
    return (part for part in paragraph.iter() if part.tag == f"{WORD}t" or part.tag in breaks)
