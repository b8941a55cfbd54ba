"""The closed vocabulary of `Rejected.reason`, with a sentence for the user each."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from shared.errors import Gate, Outcome, Rejected


class Reason(StrEnum):
    # failed
    UNREADABLE = "unreadable-file"
    STALLED = "share-stalled"
    GONE = "file-gone"
    CHANGED = "file-changed"
    NOT_REGULAR = "not-a-regular-file"
    NOT_A_STUDY_OBJECT = "not-a-study-object"
    MALFORMED = "malformed-dataset"
    TRUNCATED = "truncated-dataset"
    MISSING_UID = "missing-uid"
    INVALID_UID = "invalid-uid"
    SANDBOX = "sandbox-failure"
    # empty
    DICOMDIR = "dicomdir"
    NOT_AN_IMAGE = "not-an-image"
    NO_PIXEL_DATA = "no-pixel-data"
    # limits
    FILE_SIZE = "file-too-large"
    META_SIZE = "meta-too-large"
    ELEMENTS = "too-many-elements"
    DEPTH = "sequence-too-deep"
    ELEMENT_SIZE = "element-too-large"
    HEADER_SIZE = "header-too-large"
    DEFLATE_SIZE = "inflates-too-large"
    DEFLATE_RATIO = "inflates-too-much"
    SIDE = "picture-too-large"
    FRAMES = "too-many-frames"
    DECODED_SIZE = "decodes-too-large"
    FRAGMENTS = "too-many-fragments"
    MEMORY = "memory-limit"
    CPU = "cpu-limit"
    TIME = "time-limit"
    CRASH = "decoder-crashed"
    # decode
    GEOMETRY = "bad-pixel-description"
    PHOTOMETRIC = "unknown-photometric"
    SHORT = "pixel-data-too-short"
    FRAGMENTATION = "bad-fragments"
    MISMATCH = "codestream-differs-from-header"
    NO_DECODER = "no-permitted-decoder"
    CORRUPT = "corrupt-pixel-data"
    # intake
    PATIENT_CONFLICT = "patient-conflict"
    STUDY_CONFLICT = "study-conflict"
    OTHER_BYTES = "other-bytes"
    ENDED = "erased-or-rejected"
    SITE_RULE = "site-rule"
    UIDS_DIFFER = "uids-differ"
    ERASED = "erased"
    SOURCE = "source-failed"
    WORKER_DIED = "worker-died"
    ENCODER_ERROR = "encoder-error"
    BAD_EMBEDDING = "bad-embedding"
    # metadata gate
    FOR_PROCESSING = "for-processing"
    BURNED_IN = "burned-in-annotation"
    MODALITY = "unknown-modality"
    TOO_SMALL = "too-small"
    # pixel gate
    BLANK = "blank"
    DEPTH_OF_VALUES = "too-few-values"
    NO_CONTENT = "nearly-no-content"
    NOISE = "noise"
    # feature gate
    UNLIKE = "out-of-distribution"
    FAR = "far-from-known"


_R = Reason
SENTENCES: Mapping[Reason, str] = MappingProxyType(
    {
        _R.UNREADABLE: "The file could not be opened or read.",
        _R.STALLED: "The file did not come within the time limit: its disk or network share does not answer.",
        _R.GONE: "The file is no longer in its folder; a scan that finds its bytes again encodes them.",
        _R.CHANGED: "The bytes changed after registration; a scan that finds the registered bytes again encodes them.",
        _R.NOT_REGULAR: "It is a link, a folder, a pipe, a socket or a device, not a regular file.",
        _R.NOT_A_STUDY_OBJECT: "It is neither DICOM nor a PNG or JPEG picture.",
        _R.MALFORMED: "The DICOM data set cannot be parsed.",
        _R.TRUNCATED: "The DICOM data set ends in the middle of an element.",
        _R.MISSING_UID: "The SOP Instance UID or the Study Instance UID is missing.",
        _R.INVALID_UID: "The SOP Instance UID or the Study Instance UID is not a valid UID.",
        _R.SANDBOX: "The decoding process did not start or gave an invalid answer.",
        _R.DICOMDIR: "A DICOMDIR lists files; it holds no image.",
        _R.NOT_AN_IMAGE: "A DICOM object that is no image: report, plan, segmentation, waveform, presentation state.",
        _R.NO_PIXEL_DATA: "A DICOM image object without pixel data.",
        _R.FILE_SIZE: "The file is larger than the limit.",
        _R.META_SIZE: "The file meta information is larger than the limit.",
        _R.ELEMENTS: "The data set has more elements than the limit.",
        _R.DEPTH: "Sequences are nested deeper than the limit.",
        _R.ELEMENT_SIZE: "An element outside the pixel data is, or claims to be, larger than the limit.",
        _R.HEADER_SIZE: "The elements outside the pixel data are together larger than the limit.",
        _R.DEFLATE_SIZE: "The deflated data set inflates beyond the limit.",
        _R.DEFLATE_RATIO: "The deflated data set inflates by more than the permitted ratio.",
        _R.SIDE: "Rows, columns or pixels per frame are over the limit.",
        _R.FRAMES: "There are more frames than the limit.",
        _R.DECODED_SIZE: "The decoded picture would be larger than the limit.",
        _R.FRAGMENTS: "The pixel data has more fragments than the limit.",
        _R.MEMORY: "Decoding needed more memory than the limit.",
        _R.CPU: "Decoding needed more processor time than the limit.",
        _R.TIME: "Decoding took longer than the limit.",
        _R.CRASH: "The decoder crashed on this file, or ended because it was refused memory.",
        _R.GEOMETRY: "The attributes that describe the pixels are missing or contradict each other.",
        _R.PHOTOMETRIC: "The photometric interpretation is missing or unknown.",
        _R.SHORT: "There is less pixel data than the header describes.",
        _R.FRAGMENTATION: "The fragments of the compressed pixel data do not make up the frames.",
        _R.MISMATCH: "The compressed picture has another size or another encoding than the header says.",
        _R.NO_DECODER: "Similis has no decoder for this encoding.",
        _R.CORRUPT: "The compressed pixel data is damaged.",
        _R.PATIENT_CONFLICT: "The study, or the image, belongs to another patient already.",
        _R.STUDY_CONFLICT: "The image belongs to another study already.",
        _R.OTHER_BYTES: "An image with this UID but other bytes was taken in before; that one is kept.",
        _R.ENDED: "An image with this UID was erased or rejected before, and remains so.",
        _R.ERASED: "The image, its study or its patient was erased on request, and does not come back.",
        _R.SOURCE: "The archive did not deliver it when Similis pulled it.",
        _R.SITE_RULE: "An admission rule of this site stopped the file.",
        _R.UIDS_DIFFER: "The data set has other UIDs than its sender announced.",
        _R.WORKER_DIED: "Every worker that began to encode this image died.",
        _R.ENCODER_ERROR: "The encoder failed on this image several times.",
        _R.BAD_EMBEDDING: "The encoder gave no usable vector for this image.",
        _R.FOR_PROCESSING: "Raw detector data (for processing) is not mixed with images for presentation.",
        _R.BURNED_IN: "The header says that identifying text is burned into the picture.",
        _R.MODALITY: "The modality is missing or is not that of an image.",
        _R.TOO_SMALL: "The picture is too small to be compared.",
        _R.BLANK: "All pixels have the same value.",
        _R.DEPTH_OF_VALUES: "The picture has too few different values: a mask or a wrong depth.",
        _R.NO_CONTENT: "Nearly all of the picture is background.",
        _R.NOISE: "Neighbouring pixels are uncorrelated: the picture is noise.",
        _R.UNLIKE: "The model cannot explain the picture: it is unlike those its threshold was calibrated on.",
        _R.FAR: "The picture's embedding lies far from those of the known pictures of its modality.",
    }
)

#: transient reasons (a share that is down or stalls, a sandbox that does not start): the file is read again
PASSING = frozenset({_R.UNREADABLE.value, _R.STALLED.value, _R.SANDBOX.value})
#: the registered bytes are no longer at their path: the image becomes due when a scan finds them again
LOST = frozenset({_R.GONE.value, _R.CHANGED.value})


def failed(reason: Reason) -> Rejected:
    return Rejected(Outcome.FAILED, reason.value)


def empty(reason: Reason) -> Rejected:
    return Rejected(Outcome.EMPTY, reason.value)


def hostile(reason: Reason) -> Rejected:
    return Rejected(Outcome.QUARANTINED, reason.value, Gate.LIMITS)


def undecodable(reason: Reason) -> Rejected:
    return Rejected(Outcome.QUARANTINED, reason.value, Gate.DECODE)
