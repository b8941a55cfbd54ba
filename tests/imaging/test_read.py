import io
from datetime import date

import damage
import numpy as np
import pytest
from pictures import breast, dataset, file_of
from PIL import Image

from shared.errors import Outcome, Rejected
from shared.imaging.header import stable_uid
from shared.imaging.read import clean
from shared.imaging.recipe import Recipe
from shared.types import valid_uid

VALUES = breast(64, 48)


def header_of(sandbox, tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    return sandbox.inspect(path).header


def test_a_header_keeps_the_allow_list_and_nothing_of_the_patient_but_the_id(sandbox, tmp_path):
    attributes = {
        "PatientName": "CANARY^NAME",
        "PatientBirthDate": "19000101",
        "InstitutionName": "CANARY",
        "ImageLaterality": "L",
        "ViewPosition": "MLO",
        "Manufacturer": "ACME\tcorp",
        "BurnedInAnnotation": "NO",
        "IssuerOfPatientID": "HOSPITAL",
    }
    header = header_of(sandbox, tmp_path, file_of(dataset(VALUES, **attributes), VALUES))
    assert (header.modality, header.laterality, header.view, header.rows, header.columns) == ("MG", "L", "MLO", 64, 48)
    assert (header.study_date, header.burned_in, header.implant) == (date(2024, 1, 2), False, None)
    assert (header.patient_id, header.issuer_of_patient_id) == ("CANARY-4711", "HOSPITAL")
    assert header.manufacturer == "ACMEcorp"
    assert "CANARY" not in repr(header)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("SOPInstanceUID", None, "missing-uid"),
        ("StudyInstanceUID", None, "missing-uid"),
        ("StudyInstanceUID", "", "missing-uid"),
        ("StudyInstanceUID", "../../etc/passwd", "invalid-uid"),
        ("StudyInstanceUID", "1.2.x", "invalid-uid"),
        ("StudyInstanceUID", "1." + "2" * 63, "invalid-uid"),
    ],
)
def test_an_image_without_usable_uids_is_refused(sandbox, keyword, value, reason):
    with pytest.raises(Rejected) as caught:
        sandbox.decode(file_of(dataset(VALUES, **{keyword: value}), VALUES), Recipe())
    assert (caught.value.outcome, caught.value.reason) == (Outcome.FAILED, reason)


def test_a_missing_series_is_made_up_from_the_study(sandbox, tmp_path):
    header = header_of(sandbox, tmp_path, file_of(dataset(VALUES, SeriesInstanceUID=None), VALUES))
    assert header.series_instance_uid == stable_uid("series", "1.2.3.2")
    assert valid_uid(header.series_instance_uid)


@pytest.mark.parametrize(
    ("uid", "valid"),
    [
        ("1.2.3", True),
        ("2.25.1", True),
        ("0.0", True),
        ("3.1", False),
        ("1", False),
        ("1.02", False),
        ("1.2.", False),
        ("1.2\n", False),
        ("1.२", False),
        ("1.1२", False),
        ("1." + "2" * 62, True),
        ("1." + "2" * 63, False),
    ],
)
def test_a_uid_has_one_form(uid, valid):
    assert valid_uid(uid) is valid


def test_text_is_printable_trimmed_and_capped():
    assert clean(" a\0b\x1b[31m\u202e ", 64) == "ab[31m"
    assert clean("x" * 500, 64) == "x" * 64


@pytest.mark.parametrize(
    ("date_text", "expected"), [("20240230", None), ("2024", None), ("2024.01.02", date(2024, 1, 2))]
)
def test_a_date_that_is_none_is_unknown(sandbox, tmp_path, date_text, expected):
    data = file_of(dataset(VALUES), VALUES).replace(
        b"DA\x08\x0020240102", b"DA\x08\x00" + date_text.encode().ljust(8)[:8]
    )
    header = header_of(sandbox, tmp_path, data)
    assert header.study_date == (expected if len(date_text) == 8 else None)


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.33", "SR"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"),
        ("1.2.840.10008.5.1.4.1.1.481.2", "RTDOSE"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "DOC"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PR"),
    ],
)
def test_an_object_that_is_no_image_is_empty_whatever_it_carries(sandbox, sop_class, modality):
    with pytest.raises(Rejected) as caught:
        sandbox.decode(file_of(dataset(VALUES, SOPClassUID=sop_class, Modality=modality), VALUES), Recipe())
    assert (caught.value.outcome, caught.value.reason) == (Outcome.EMPTY, "not-an-image")


def test_an_image_object_without_pixels_is_empty(sandbox):
    with pytest.raises(Rejected) as caught:
        sandbox.decode(file_of(dataset(VALUES), None), Recipe())
    assert (caught.value.outcome, caught.value.reason) == (Outcome.EMPTY, "no-pixel-data")


def test_a_data_set_without_its_part_10_header_is_read(sandbox):
    whole = file_of(dataset(VALUES), VALUES)
    bare = whole[whole.index(b"\x08\x00\x16\x00UI") :]
    assert np.array_equal(sandbox.decode(bare, Recipe()).pixels, sandbox.decode(whole, Recipe()).pixels)
    without_preamble = whole[132:]
    assert np.array_equal(sandbox.decode(without_preamble, Recipe()).pixels, sandbox.decode(whole, Recipe()).pixels)


@pytest.mark.parametrize(
    "data", [b"", b"DICM", b"hello, world" * 30, bytes(1000), b"PK\x03\x04" + bytes(200), b"%PDF-1.7" * 40]
)
def test_what_is_no_study_object_is_told_so(sandbox, data):
    with pytest.raises(Rejected) as caught:
        sandbox.decode(data, Recipe())
    assert caught.value.outcome is Outcome.FAILED


def test_bundled_objects_that_are_no_images_are_empty(sandbox):
    names = (
        "rtplan.dcm",
        "rtstruct.dcm",
        "rtdose.dcm",
        "reportsi.dcm",
        "test-SR.dcm",
        "waveform_ecg.dcm",
        "liver_1frame.dcm",
    )
    answers = list(sandbox.decode_many([damage.BUNDLED / name for name in names], Recipe()))
    assert {answer.outcome for answer in answers} == {Outcome.EMPTY}
    (index,) = sandbox.decode_many([damage.BUNDLED / "dicomdirtests" / "DICOMDIR"], Recipe())
    assert index.reason == "dicomdir"


def picture(mode="L", kind="PNG", size=(300, 200)):
    out = io.BytesIO()
    grey = Image.fromarray(breast(size[1], size[0], bits=8))
    (Image.fromarray(breast(size[1], size[0], bits=16)) if mode == "I;16" else grey.convert(mode)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("I;16", "PNG"),
        ("LA", "PNG"),
        ("L", "JPEG"),
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
    ],
)
def test_png_and_jpeg_are_taken_in_every_usual_mode(sandbox, mode, kind):
    got, plain = sandbox.decode(picture(mode, kind), Recipe()), sandbox.decode(picture(), Recipe())
    assert got.header.modality == "OT"
    assert (got.header.rows, got.header.columns) == (200, 300)
    assert np.corrcoef(got.pixels.ravel(), plain.pixels.ravel())[0, 1] > 0.99


def test_the_same_bytes_are_the_same_image_wherever_they_lie(sandbox, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b").write_bytes(picture())
    (tmp_path / "c.png").write_bytes(picture(size=(300, 201)))
    first, second, third = (found.header for found in sandbox.inspect_many(sorted(tmp_path.iterdir())))
    assert first == second
    assert first.sop_instance_uid != third.sop_instance_uid
    assert all(valid_uid(uid) for uid in (first.sop_instance_uid, first.study_instance_uid, first.series_instance_uid))
    assert first.sop_instance_uid.startswith("2.25.")


def test_a_large_jpeg_is_decoded_smaller(sandbox):
    assert sandbox.decode(picture(kind="JPEG", size=(2000, 1800)), Recipe()).reduced == 4


#: What brings an upright picture into the position that an Exif orientation stands for. Source: Exif 2.3, 4.6.4.A.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(orientation, mode="L", kind="PNG", size=(300, 200)):
    """The bytes of `picture`, stored in another position with the tag that says so."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = Image.open(io.BytesIO(picture(mode, size=size)))
    if orientation in STORED:
        stored = stored.transpose(STORED[orientation])
    stored.save(out, kind, exif=exif, quality=95)
    return out.getvalue()


@pytest.mark.parametrize("orientation", [*STORED, 1, 0, 9])
@pytest.mark.parametrize(("mode", "kind", "reduced"), [("RGB", "JPEG", 2), ("L", "PNG", 1), ("I;16", "PNG", 1)])
def test_a_picture_with_an_exif_orientation_is_turned_upright(sandbox, tmp_path, orientation, mode, kind, reduced):
    recipe, size = Recipe(size=64, crop="breast", mirror="left"), (605, 401)
    data = turned(orientation, mode, kind, size)
    got, upright = sandbox.decode(data, recipe), sandbox.decode(turned(1, mode, kind, size), recipe)
    assert (got.header.rows, got.header.columns, got.reduced) == (401, 605, reduced)
    assert header_of(sandbox, tmp_path, data) == got.header
    assert got.thumbnail.shape == upright.thumbnail.shape
    if kind == "PNG":
        assert np.array_equal(got.pixels, upright.pixels)
        assert np.array_equal(got.thumbnail, upright.thumbnail)
    else:  # a scaled JPEG rounds up at the other edge: half a pixel
        assert np.corrcoef(got.pixels.ravel(), upright.pixels.ravel())[0, 1] > 0.998
        assert np.corrcoef(got.thumbnail.ravel(), upright.thumbnail.ravel())[0, 1] > 0.998


def test_a_large_picture_that_is_turned_needs_no_more_memory_than_an_upright_one(sandbox):
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({}, {"exif": exif}):
        out = io.BytesIO()
        Image.new("RGB", (4400, 3400), (90, 80, 70)).save(out, "PNG", compress_level=1, **options)
        assert sandbox.decode(out.getvalue(), Recipe()).header.rows == (4400 if options else 3400)


def test_a_damaged_exif_part_leaves_a_picture_as_it_is(sandbox):
    plain = sandbox.decode(picture(kind="JPEG"), Recipe())
    data = turned(1, kind="JPEG")
    at = data.index(b"Exif\0\0") + 6
    for junk in (b"\0" * 8, b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"II*\0\0\0\0\0"):
        got = sandbox.decode(data[:at] + junk + data[at + len(junk) :], Recipe())
        assert (got.header.rows, got.header.columns) == (200, 300)
        assert np.abs(got.pixels - plain.pixels).max() < 0.1


def test_a_cut_picture_is_undecodable(sandbox):
    with pytest.raises(Rejected, match="corrupt-pixel-data"):
        sandbox.decode(picture()[:3000], Recipe())


def test_other_picture_formats_are_no_study_objects(sandbox):
    for kind in ("GIF", "BMP", "TIFF", "WEBP"):
        with pytest.raises(Rejected, match="not-a-study-object"):
            sandbox.decode(picture(kind=kind), Recipe())
