"""The DICOM JSON model (PS3.18 Annex F): an allow-list of attributes, none of which names a patient."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

Json = dict[str, Any]
MEDIA_TYPE = "application/dicom+json"
OFFERED = (MEDIA_TYPE, "application/json")

#: keyword -> (tag, value representation); all that any DICOMweb answer of ours may hold
ATTRIBUTES: Mapping[str, tuple[str, str]] = {
    "SpecificCharacterSet": ("00080005", "CS"),
    "ImageType": ("00080008", "CS"),
    "SOPClassUID": ("00080016", "UI"),
    "SOPInstanceUID": ("00080018", "UI"),
    "StudyDate": ("00080020", "DA"),
    "InstanceAvailability": ("00080056", "CS"),
    "Modality": ("00080060", "CS"),
    "ModalitiesInStudy": ("00080061", "CS"),
    "PresentationIntentType": ("00080068", "CS"),
    "Manufacturer": ("00080070", "LO"),
    "ReferencedSOPClassUID": ("00081150", "UI"),
    "ReferencedSOPInstanceUID": ("00081155", "UI"),
    "RetrieveURL": ("00081190", "UR"),
    "FailureReason": ("00081197", "US"),
    "FailedSOPSequence": ("00081198", "SQ"),
    "ReferencedSOPSequence": ("00081199", "SQ"),
    "OtherFailuresSequence": ("0008119A", "SQ"),
    "AvailableTransferSyntaxUID": ("00083002", "UI"),
    "BodyPartExamined": ("00180015", "CS"),
    "ViewPosition": ("00185101", "CS"),
    "StudyInstanceUID": ("0020000D", "UI"),
    "SeriesInstanceUID": ("0020000E", "UI"),
    "ImageLaterality": ("00200062", "CS"),
    "NumberOfStudyRelatedSeries": ("00201206", "IS"),
    "NumberOfStudyRelatedInstances": ("00201208", "IS"),
    "NumberOfSeriesRelatedInstances": ("00201209", "IS"),
    "PhotometricInterpretation": ("00280004", "CS"),
    "NumberOfFrames": ("00280008", "IS"),
    "Rows": ("00280010", "US"),
    "Columns": ("00280011", "US"),
    "BitsStored": ("00280101", "US"),
    "BurnedInAnnotation": ("00280301", "CS"),
    "BreastImplantPresent": ("00281300", "CS"),
}
KEYWORDS: Mapping[str, str] = {tag: keyword for keyword, (tag, _) in ATTRIBUTES.items()}


def item(values: Mapping[str, object]) -> Json:
    """One data set, its tags in order; an attribute without a value is left out."""
    found = {}
    for keyword, value in values.items():
        listed = [one for one in _several(value) if one not in (None, "")]
        if listed:
            tag, vr = ATTRIBUTES[keyword]
            found[tag] = {"vr": vr, "Value": [_plain(one) for one in listed]}
    return dict(sorted(found.items()))


def _several(value: object) -> Iterable[object]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _plain(value: object) -> object:
    return value.strftime("%Y%m%d") if isinstance(value, date) else value
