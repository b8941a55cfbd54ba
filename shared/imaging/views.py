"""Laterality, view and view modifiers of a breast image: attributes are read in the order of their reliability.

Source: PS3.3 C.8.11.7 (Mammography Image), C.8.21 (multi-frame functional groups), CID 4014 and 4015 (views,
modifiers). Free text is read only where a coded value is missing.
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from shared.imaging.read import attribute, clean, text
from shared.imaging.spellings import SIDES, VIEW_ALIASES, VIEW_MEANINGS

#: ViewPosition (0018,5101) as it occurs, to the short names of CID 4014.
_VIEWS = frozenset(
    ("CC", "MLO", "ML", "LM", "LMO", "SIO", "ISO", "XCCL", "XCCM", "XCC", "FB", "AT", "CV", "AP", "PA", "LL", "RL")
)

#: CID 4015 meanings and spellings in file names: the word to look for, and its short name.
_MODIFIERS = (
    ("implantdisplaced", "ID"),
    ("eklund", "ID"),
    ("spotcompression", "S"),
    ("spot", "S"),
    ("magnification", "M"),
    ("rolledlateral", "RL"),
    ("rolledmedial", "RM"),
    ("rolledinferior", "RI"),
    ("rolledsuperior", "RS"),
    ("rolled", "R"),
    ("axillarytail", "AT"),
    ("cleavage", "CV"),
    ("tangential", "TAN"),
    ("nippleinprofile", "NP"),
    ("anteriorcompression", "AC"),
    ("inframammaryfold", "IMF"),
)


def _squeezed(meaning: str) -> str:
    return "".join(c for c in meaning.lower() if c.isalpha())


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, an empty list for anything else."""
    value = attribute(dataset, keyword)
    try:
        return [item for item in value or () if isinstance(item, Dataset)]
    except MemoryError:
        raise
    except Exception:  # pydicom converts a sequence during iteration, which can raise any error
        return []


def groups(dataset: Dataset, name: str, frame: int = 1) -> Iterator[Dataset]:
    """Yield the functional group macro of a 1-based frame: its own first, then the shared one."""
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    if 0 < frame <= len(per_frame):
        yield from items(per_frame[frame - 1], name)
    for shared in items(dataset, "SharedFunctionalGroupsSequence"):
        yield from items(shared, name)


def laterality(dataset: Dataset) -> str | None:
    """Return L, R, B or None."""
    candidates = [text(dataset, "ImageLaterality"), text(dataset, "Laterality")]
    candidates += [text(group, "FrameLaterality") for group in groups(dataset, "FrameAnatomySequence")]
    for candidate in candidates:
        if found := SIDES.get(candidate.lower()):
            return found
    return None


def chest_wall_at_right(dataset: Dataset) -> bool | None:
    """Return by the patient's orientation whether the chest wall is on the right; None if it is not stated.

    Source: PS3.3 C.7.6.1.1.1: the first value is the direction of a row; A (anterior) leads away from the wall.
    """
    for source in (dataset, *groups(dataset, "PatientOrientationInFrameSequence")):
        row = text(source, "PatientOrientation").upper()
        if row[:1] in ("A", "P"):
            return row[0] == "P"
    return None


def view(dataset: Dataset) -> str | None:
    """Return CC, MLO, ... or None. An unknown spelling is returned in upper case, at most eight letters."""
    position = _position(dataset)
    position = VIEW_ALIASES.get(position, position)
    if position in _VIEWS:
        return position
    for code in _view_codes(dataset):
        if found := VIEW_MEANINGS.get(_squeezed(text(code, "CodeMeaning", 128))):
            return found
    return clean(position, 8) or None


def view_modifiers(dataset: Dataset) -> tuple[str, ...]:
    """Return short names in a stable order; a CC or MLO with a modifier is not a standard view."""
    codes = items(dataset, "ViewModifierCodeSequence")
    for code in _view_codes(dataset):
        codes += items(code, "ViewModifierCodeSequence")
    found = {name for code in codes if (name := _modifier(_squeezed(text(code, "CodeMeaning", 128))))}
    if _position(dataset).endswith(("CCID", "MLOID")):
        found.add("ID")
    return tuple(sorted(found))


def _position(dataset: Dataset) -> str:
    return text(dataset, "ViewPosition").upper().replace(" ", "").replace("-", "")


def _modifier(meaning: str) -> str | None:
    return next((name for word, name in _MODIFIERS if word in meaning), None)


def _view_codes(dataset: Dataset) -> list[Dataset]:
    return items(dataset, "ViewCodeSequence") or [
        code for group in groups(dataset, "XRay3DFrameTypeSequence") for code in items(group, "ViewCodeSequence")
    ]


def implant(dataset: Dataset) -> bool | None:
    return {"YES": True, "NO": False}.get(text(dataset, "BreastImplantPresent").upper())


def synthetic_marks(dataset: Dataset, frames: int) -> tuple[str, ...]:
    """Return SYNTHETIC for computed mammograms and TOMO for several slices, to be appended to the image type."""
    if text(dataset, "Modality") != "MG":
        return ()
    if frames > 1:
        return ("TOMO",)
    kinds = {clean(str(value)).upper() for value in attribute(dataset, "ImageType") or ()}
    description = text(dataset, "SeriesDescription").lower()
    computed = {"GENERATED_2D", "TOMO_2D", "TOMOSYNTHESIS"} & kinds
    if computed or any(word in description for word in ("s-view", "c-view", "synthetic", "sview", "cview")):
        return ("SYNTHETIC",)
    return ()
