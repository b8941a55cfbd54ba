"""A strict parser of QIDO-RS queries, and the attributes of their responses (PS3.18 section 8.3.4)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from services.api.dicom_json import ATTRIBUTES, KEYWORDS, Json, item
from services.api.schemas import dates
from shared.errors import Invalid
from shared.store.qido import COLUMNS, Level, Matching

MOST_VALUES = 200
LIMIT, MOST = 100, 200  #: rows of a response: the default, and the maximum
FARTHEST = 10**12

#: attributes of every response, and (`MORE`) those that `includefield` adds
DEFAULT: Mapping[Level, tuple[str, ...]] = {
    "study": (
        "StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "InstanceAvailability", "RetrieveURL",
        "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "series": (
        "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "Modality", "InstanceAvailability", "RetrieveURL",
        "NumberOfSeriesRelatedInstances",
    ),
    "instance": (
        "StudyInstanceUID", "StudyDate", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality", "Rows",
        "Columns", "NumberOfFrames", "AvailableTransferSyntaxUID", "InstanceAvailability", "RetrieveURL",
    ),
}  # fmt: skip
MORE: Mapping[Level, tuple[str, ...]] = {
    "study": (),
    "series": ("BodyPartExamined", "Manufacturer"),
    "instance": ("BodyPartExamined", "Manufacturer", "ImageLaterality", "ViewPosition", "PresentationIntentType"),
}
MATCHED = (*COLUMNS, "StudyDate", "ModalitiesInStudy")

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UID = re.compile(r"[0-9.]{1,64}")
_CODE = re.compile(r"[A-Z0-9_ *?]{1,16}")  #: PS3.5 table 6.2-1, and wildcards
_NUMBER = re.compile(r"[0-9]{1,9}")
_PATIENT = 0x0010  #: the group of attributes that name a patient


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    matching: Matching
    fields: tuple[str, ...]
    limit: int
    offset: int
    warnings: tuple[str, ...]


def read(given: Iterable[tuple[str, str]], level: Level) -> Asked:
    """The parsed query. Raises: `Invalid` for a malformed parameter and for a filter by a patient's attribute."""
    numbers = {"limit": LIMIT, "offset": 0}
    filters: dict[str, list[str]] = {}
    fields, warnings = set(DEFAULT[level]), dict[str, None]()
    for name, value in given:
        if name in numbers:
            numbers[name] = _number(name, value)
        elif name == "includefield":
            fields |= _included(value, level, warnings)
        elif name == "fuzzymatching":
            if value.lower() not in ("true", "false"):
                raise Invalid("fuzzymatching must be true or false")
            if value.lower() == "true":
                warnings["fuzzymatching is not supported: only literal matching has been performed"] = None
        elif name != "accept":
            _filter(name, value, filters, warnings)
    low, high = _dates(filters.pop("StudyDate", []))
    return Asked(
        matching=Matching(
            modalities_in_study=tuple(filters.pop("ModalitiesInStudy", ())),
            values={k: [int(v) for v in found] if _numeric(k) else found for k, found in filters.items()},
            date_from=low,
            date_to=high,
        ),
        fields=tuple(sorted(fields)),
        limit=min(numbers["limit"], MOST),
        offset=numbers["offset"],
        warnings=tuple(warnings),
    )


def keyword_of(name: str) -> tuple[str, int]:
    """The keyword and tag of an attribute given by either; of a path into a sequence, those of the sequence.

    Raises: `Invalid` for a name that is not in the DICOM dictionary.
    """
    first = name.partition(".")[0]
    if first in ATTRIBUTES:
        return first, int(ATTRIBUTES[first][0], 16)
    if first.upper() in KEYWORDS:
        return KEYWORDS[first.upper()], int(first, 16)
    from pydicom.datadict import keyword_for_tag, tag_for_keyword

    tag = int(first, 16) if _TAG.fullmatch(first) else tag_for_keyword(first)
    keyword = keyword_for_tag(tag) if tag is not None else ""
    if tag is None or not keyword:
        raise Invalid("a parameter is neither one of QIDO-RS nor an attribute of the DICOM dictionary")
    return keyword, tag


def _number(name: str, value: str) -> int:
    found = int(value) if value.isascii() and value.isdigit() and len(value) <= 15 else -1
    least = 1 if name == "limit" else 0
    if not least <= found <= FARTHEST:
        raise Invalid(f"{name} must be {least} to {FARTHEST}")
    return found


def _included(value: str, level: Level, warnings: dict[str, None]) -> set[str]:
    found = set()
    for name in value.split(","):
        if name == "all":
            found |= set(MORE[level])
            continue
        keyword, _ = keyword_of(name)
        if keyword in (*DEFAULT[level], *MORE[level]):
            found.add(keyword)
        else:
            warnings[f"{keyword} is not available at this level and was left out"] = None
    return found


def _filter(name: str, value: str, filters: dict[str, list[str]], warnings: dict[str, None]) -> None:
    keyword, tag = keyword_of(name)
    if not value.strip("*"):  # universal matching (PS3.4 C.2.2.2.3) narrows nothing
        return
    if tag >> 16 == _PATIENT:
        raise Invalid("patients cannot be searched: this archive keeps only pseudonyms of them")
    if keyword not in MATCHED or "." in name:
        warnings[f"{keyword} is not stored here and was not matched"] = None
        return
    filters.setdefault(keyword, []).extend(_values(keyword, value))
    if len(filters[keyword]) > MOST_VALUES:
        raise Invalid(f"at most {MOST_VALUES} values are matched at once")


def _numeric(keyword: str) -> bool:
    return ATTRIBUTES[keyword][1] in ("US", "IS")


def _values(keyword: str, value: str) -> list[str]:
    """The values to match. Raises: `Invalid`, with a message that never repeats a value."""
    vr = ATTRIBUTES[keyword][1]
    values = [value] if vr in ("LO", "DA") else [one.strip() for one in value.replace("\\", ",").split(",")]
    if not all(one and len(one) <= 64 and one.isprintable() for one in values):
        raise Invalid(f"a value of {keyword} is empty, too long, or not printable")
    if vr == "UI" and not all(_UID.fullmatch(one) for one in values):
        raise Invalid(f"every value of {keyword} must be a UID")
    if _numeric(keyword) and not all(_NUMBER.fullmatch(one) for one in values):
        raise Invalid(f"every value of {keyword} must be a whole number")
    if vr != "CS":
        return values
    codes = [one.upper() for one in values]
    if not all(_CODE.fullmatch(one) for one in codes):
        raise Invalid(
            f"every value of {keyword} must be a code of letters, digits, spaces and _, or a pattern with * and ?"
        )
    return codes


def _dates(values: list[str]) -> tuple[date | None, date | None]:
    if len(values) > 1:
        raise Invalid("StudyDate must be one day or one range")
    try:
        return dates(values[0] if values else None)
    except ValueError as error:
        raise Invalid(str(error)) from None


def answer(row: Mapping[str, object], fields: Iterable[str], base: str) -> Json:
    """One match as a DICOM JSON data set."""
    more = {"InstanceAvailability": "ONLINE", "RetrieveURL": place(row, base)}
    found = {name: more.get(name, row.get(name)) for name in fields}
    return item({name: None if value == "unknown" else value for name, value in found.items()})


def place(row: Mapping[str, object], base: str) -> str:
    steps = (("studies", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("instances", "SOPInstanceUID"))
    return base + "".join(f"/{step}/{row[name]}" for step, name in steps if row.get(name))
