"""Parsers for the cells of a label table.

Each parser returns None for an empty cell and raises `ValueError` for an unknown value, because a guessed label is
worse than none. No message quotes a cell, which may hold a person's name in the wrong column.
"""

import re
from collections import Counter
from datetime import date

from shared.imaging.spellings import SIDES, VIEW_ALIASES, VIEW_MEANINGS

MISSING = frozenset({"", "_", "-", "na", "n/a", "nan", "none", "null"})
_BIRADS = re.compile(r"(?:bi[-_ ]?rads)?[\s:]*([0-6])(?:\.0)?([abc])?", re.IGNORECASE)
_DENSITY = re.compile(r"(?:density|acr)?[\s:]*([a-d1-4])(?:\.0)?", re.IGNORECASE)
_DATE = re.compile(r"(\d{4})(-?)(\d{2})\2(\d{2})", re.ASCII)


def missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def birads(cell: str) -> int | None:
    """Return the most severe category of a cell: `3$2` is 3, `4a` is 4, `BI-RADS 5` and `5.0` are 5."""
    if missing(cell):
        return None
    found = []
    for part in cell.strip().split("$"):
        match = _BIRADS.fullmatch(part.strip())
        if match is None or (match[2] and match[1] != "4"):
            raise ValueError("not a BI-RADS category: 0 to 6, 4a to 4c, or several with $ between them")
        found.append(int(match[1]))
    return max(found)


def density(cell: str) -> str | None:
    """Return A to D; the older 1 to 4 denote the same four classes."""
    if missing(cell):
        return None
    match = _DENSITY.fullmatch(cell.strip())
    if match is None:
        raise ValueError("not a breast density: A to D, or 1 to 4")
    letter = match[1].upper()
    return letter if letter in "ABCD" else "ABCD"[int(letter) - 1]


def known_density(cell: str, warnings: Counter[str]) -> str | None:
    """As `density`, but an unknown value is counted and gives None."""
    try:
        return density(cell)
    except ValueError:
        warnings["density-unknown"] += 1
        return None


def laterality(cell: str) -> str | None:
    if missing(cell):
        return None
    side = SIDES.get(cell.strip().lower())
    if side is None:
        raise ValueError("not a side: L, R or B")
    return side


def view(cell: str) -> str | None:
    if missing(cell):
        return None
    name = re.sub(r"[^a-z0-9]", "", cell.lower())
    name = VIEW_MEANINGS.get(name, name.upper())
    name = VIEW_ALIASES.get(name, name)
    if not re.fullmatch(r"[A-Z]{2,16}", name):
        raise ValueError("not a view: letters such as CC or MLO")
    return name


def modality(cell: str) -> str | None:
    if missing(cell):
        return None
    if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", cell.strip().upper()):
        raise ValueError("not a modality: a DICOM code such as MG")
    return cell.strip().upper()


def study_date(cell: str) -> date | None:
    """Parse a date with the year first; 01/02/2020 is refused as ambiguous."""
    if missing(cell):
        return None
    match = _DATE.fullmatch(cell.strip())
    if match is None:
        raise ValueError("not a date: YYYY-MM-DD or YYYYMMDD")
    try:
        return date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        raise ValueError("no such day") from None


def pathology(cell: str) -> str | None:
    return None if missing(cell) else cell.strip().lower()


def age(cell: str) -> int | None:
    """Return whole years; None for anything else."""
    return int(cell) if re.fullmatch(r"\d{1,3}", cell.strip()) else None


def name(cell: str) -> str | None:
    return None if missing(cell) else cell.strip()
