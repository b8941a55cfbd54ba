"""Gates 1 and 2: pure functions from the header or the pixel statistics to the reason to stop an image, or None.

A gate stops an image for review by a person; it never judges the content. The thresholds stop none of the ordinary
mammograms, films, ultrasound, CT and MR images on which they were set (tests/imaging/test_gates.py).
"""

from shared.errors import Gate, Outcome, Rejected
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe
from shared.types import Header, PixelStats

_FOR_PROCESSING = frozenset(
    (
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # digital X-ray
        "1.2.840.10008.5.1.4.1.1.1.2.1",  # digital mammography
        "1.2.840.10008.5.1.4.1.1.1.3.1",  # intra-oral
        "1.2.840.10008.5.1.4.1.1.13.1.5",  # breast projection
    )
)

#: Defined terms of Modality (PS3.3 C.7.3.1.1.1) that stand for images.
_TERMS = (
    "AR BDUS BI BMD CR CT CFM DG DX DMS DS EC ES FA FS GM IO IVOCT IVUS LP LS MG MR NM OAM OCT OP OPM OPR OPT "
    "OPTBSV OPTENF OPV OSS OT PA PT PX RF RG RTIMAGE SM SRF ST TG US VF XA XC"
)
SMALLEST_SIDE = 16  #: pixels; fewer are an icon or a test pattern
IMAGE_MODALITIES = frozenset(_TERMS.split())


def metadata_gate(header: Header, recipe: Recipe) -> Rejected | None:
    """Gate 1: return the reason to stop by the header, or None."""
    if stops_raw(header, recipe):
        return _stop(Reason.FOR_PROCESSING, Gate.METADATA)
    if header.burned_in is True:
        return _stop(Reason.BURNED_IN, Gate.METADATA)
    if header.modality not in IMAGE_MODALITIES:
        return _stop(Reason.MODALITY, Gate.METADATA)
    if min(header.rows, header.columns) < SMALLEST_SIDE:
        return _stop(Reason.TOO_SMALL, Gate.METADATA)
    return None


def stops_raw(header: Header, recipe: Recipe) -> bool:
    """Return whether the image is raw detector data and the recipe takes none."""
    raw = header.presentation_intent == "FOR PROCESSING" or header.sop_class_uid in _FOR_PROCESSING
    return raw and recipe.for_processing == "stop"


def pixel_gate(stats: PixelStats) -> Rejected | None:
    """Gate 2: return the reason to stop by the statistics of the first chosen frame, or None."""
    if stats.distinct <= 1 or stats.spread <= 0:
        return _stop(Reason.BLANK, Gate.PIXELS)
    if stats.distinct <= 2:
        return _stop(Reason.DEPTH_OF_VALUES, Gate.PIXELS)
    if stats.content < 0.01:
        return _stop(Reason.NO_CONTENT, Gate.PIXELS)
    if stats.noise > 0.9:
        return _stop(Reason.NOISE, Gate.PIXELS)
    return None


def _stop(reason: Reason, gate: Gate) -> Rejected:
    return Rejected(Outcome.QUARANTINED, reason.value, gate)
