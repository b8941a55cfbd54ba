"""Stored values to brightness, against values worked out by hand from the standard's formulas."""

import struct

import numpy as np
import pytest
from pictures import BIG, EXPLICIT, IMPLICIT, J2K, dataset, file_of
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from shared.errors import Invalid, Rejected
from shared.imaging.frames import canonical_frames
from shared.imaging.geometry import geometry_of
from shared.imaging.limits import Limits
from shared.imaging.read import open_dataset
from shared.imaging.recipe import Recipe, chosen_frames
from shared.imaging.tone import Window, apply_window, lut_of

SMALL = Recipe(size=8)


def frames_of(values, syntax=EXPLICIT, recipe=SMALL, **attributes):
    opened = open_dataset(memoryview(file_of(dataset(values, **attributes), values, syntax)), Limits())
    return list(canonical_frames(opened, geometry_of(opened, Limits()), recipe, Limits()))


def shown(values, syntax=EXPLICIT, recipe=SMALL, **attributes):
    return frames_of(values, syntax, recipe, **attributes)[0].frame


def row(*values, dtype=np.uint16):
    return np.array([values], dtype=dtype)


def close(got, *expected):
    return np.allclose(got, [expected], atol=1e-6)


def test_a_linear_window_follows_the_formula_of_the_standard():
    # PS3.3 C.11.2.1.2.1, c = 128, w = 5: y = (x - 127.5) / 4 + 0.5
    values = np.array([[100, 125, 126, 128, 129, 130, 200]], dtype=np.float32)
    assert close(apply_window(values, Window(128, 5)), 0, 0, 0.125, 0.625, 0.875, 1, 1)


def test_an_exact_window_has_no_half_pixel():
    values = np.array([[0, 25, 50, 75, 100]], dtype=np.float32)
    assert close(apply_window(values, Window(50, 100, "LINEAR_EXACT")), 0, 0.25, 0.5, 0.75, 1)


def test_a_sigmoid_window_is_one_half_at_its_centre():
    values = np.array([[50, 75, 25]], dtype=np.float32)
    # 1 / (1 + exp(-4 * 25 / 100)) = 0.731059
    assert close(apply_window(values, Window(50, 100, "SIGMOID")), 0.5, 0.7310586, 0.2689414)


def test_a_window_of_width_one_is_a_step():
    assert close(apply_window(np.array([[9, 10, 11]], dtype=np.float32), Window(10, 1)), 0, 1, 1)


@pytest.mark.parametrize(("width", "function"), [(0.5, "LINEAR"), (0, "LINEAR_EXACT"), (0, "SIGMOID")])
def test_a_window_without_width_is_invalid(width, function):
    with pytest.raises(Invalid):
        apply_window(np.zeros((1, 1), dtype=np.float32), Window(0, width, function))


@pytest.mark.parametrize("width", [0, -5, 0.5, "nan"])
def test_a_useless_window_in_a_file_is_ignored(width):
    (frame,) = frames_of(row(0, 50, 100), WindowCenter=50, WindowWidth=str(width))
    assert frame.voi == "none"
    assert close(frame.frame, 0, 0.5, 1)


@pytest.mark.parametrize(
    ("centre", "width", "function"),
    [("1e300", "1e300", "LINEAR"), ("0", "1e300", "SIGMOID"), ("10", "1e-40", "LINEAR_EXACT"), ("nan", "9", "LINEAR")],
)
def test_a_window_that_no_picture_has_is_ignored(centre, width, function):
    attributes = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    assert close(shown(row(0, 10, 20), **attributes), 0, 0.5, 1)


def test_a_function_that_the_standard_does_not_have_is_the_linear_one():
    assert close(shown(row(0, 10, 20), WindowCenter=10, WindowWidth="0.5", VOILUTFunction="CURVE"), 0, 0.5, 1)


def test_of_several_windows_the_first_counts():
    (frame,) = frames_of(row(0, 10, 20, 1000), WindowCenter=["10.5", "500"], WindowWidth=["21", "1000"])
    assert frame.voi == "window"
    assert close(frame.frame, 0, 0.5, 1, 1)


def test_the_window_is_in_units_after_the_rescale():
    # 2 x - 100: 0, 50, 100 become -100, 0, 100; window -100..100
    got = shown(row(0, 50, 100), RescaleSlope=2, RescaleIntercept=-100, WindowCenter="0.5", WindowWidth=201)
    assert close(got, 0, 0.5, 1)


def test_a_recipe_may_ignore_the_window():
    (frame,) = frames_of(row(0, 500, 1000), recipe=Recipe(size=8, voi="ignore"), WindowCenter=10, WindowWidth=20)
    assert frame.voi == "none"
    assert close(frame.frame, 0, 0.5, 1)


def lut(count, first, bits, data, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count, first, bits])
    item.add_new("LUTData", vr, data)
    return Sequence([item])


def words(values, syntax):
    return np.array(values, ">u2" if syntax == BIG else "<u2").tobytes()


def test_a_voi_lut_comes_before_a_window():
    (frame,) = frames_of(
        row(9, 10, 11, 12, 50),
        VOILUTSequence=lut(3, 10, 8, [0, 51, 255]),
        WindowCenter=30,
        WindowWidth=60,
    )
    assert frame.voi == "lut"
    assert close(frame.frame, 0, 0, 0.2, 1, 1)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(
    ("stored", "first", "attributes"),
    [
        (row(0, 1024, 2047), -1024, {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12}),
        (row(4095, 3071, 2048), -3072, {"RescaleSlope": -1, "RescaleIntercept": 1023, "BitsStored": 12}),
        (row(-1024, 0, 1023, dtype=np.int16), -1024, {}),
        (row(-32768, -31744, -30721, dtype=np.int16), 40000, {"RescaleSlope": 1, "RescaleIntercept": 72768}),
        (row(40000, 41024, 42047), 40000, {}),
        (row(0, 1, 2, dtype=np.int16), 40000, {"ModalityLUTSequence": lut(3, 0, 16, [40000, 41024, 42047])}),
    ],
)
def test_the_first_value_of_a_voi_lut_has_the_sign_of_what_the_modality_transform_gives(
    stored, first, attributes, syntax
):
    voi = lut(2048, first % 65536, 8, [0] * 1024 + [100] * 1023 + [255])
    assert close(shown(stored, syntax, VOILUTSequence=voi, **attributes), 0, 100 / 255, 1)


def test_a_modality_lut_is_applied_to_stored_values():
    got = shown(row(0, 1, 2, 3), ModalityLUTSequence=lut(4, 0, 16, [0, 100, 900, 1000]))
    assert close(got, 0, 0.1, 0.9, 1)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_lut_of_words_is_read_in_every_byte_order(keyword, syntax):
    table = lut(4, 0, 12, words([0, 1000, 3000, 4095], syntax), vr="OW")
    assert close(shown(row(0, 1, 2, 3), syntax, **{keyword: table}), 0, 1000 / 4095, 3000 / 4095, 1)


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_a_lut_of_two_bytes_a_word_is_read_in_every_byte_order(syntax):
    table = lut(4, 0, 8, words([51 << 8, 255 << 8 | 153], syntax), vr="OW")
    assert close(shown(row(0, 1, 2, 3), syntax, VOILUTSequence=table), 0, 0.2, 0.6, 1)


def test_a_lut_of_no_entries_has_65536():
    table = lut_of([0, 0, 16], list(range(65536)), signed=False)
    assert len(table.entries) == 65536
    assert lut_of([0, 0, 16], None, signed=False) is None
    assert lut_of(None, [1], signed=False) is None
    assert lut_of(struct.pack("<HhH", 2, -5, 8), b"\x00\xff", signed=True).first == -5


def test_a_lut_of_as_many_bytes_as_entries_has_a_byte_each():
    table = lut_of([3, 0, 16], b"\x00\x80\xff\x00", signed=False)
    assert (table.entries.tolist(), table.top) == ([0, 128, 255], 255)


def test_monochrome1_is_inverted_after_the_window():
    attributes = {"WindowCenter": "10.5", "WindowWidth": 21}
    straight = shown(row(0, 5, 20, 1000), **attributes)
    inverse = shown(row(0, 5, 20, 1000), PhotometricInterpretation="MONOCHROME1", **attributes)
    assert np.allclose(straight + inverse, 1)
    assert close(inverse, 1, 0.75, 0, 0)


def test_an_inverse_presentation_shape_inverts_once_also_with_monochrome1():
    by_shape = shown(row(0, 100), PresentationLUTShape="INVERSE")
    by_both = shown(row(0, 100), PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1")
    assert close(by_shape, 1, 0)
    assert np.array_equal(by_shape, by_both)


def test_eight_bits_without_a_window_keep_their_own_range():
    assert close(shown(row(0, 51, 102, dtype=np.uint8)), 0, 0.2, 0.4)


def test_padding_is_background_and_does_not_stretch_the_range():
    got = shown(row(-2000, 0, 50, 100, dtype=np.int16), PixelPaddingValue=-2000)
    assert close(got, 0, 0, 0.5, 1)
    inverse = shown(
        row(-2000, 0, 50, 100, dtype=np.int16), PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1"
    )
    assert close(inverse, 0, 1, 0.5, 0)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize(("value", "limit"), [(0, 30), (30, 0), (5, 5)])
def test_padding_may_be_a_range_whichever_end_of_it_comes_first(syntax, value, limit):
    got = shown(row(5, 5, 50, 75, 100), syntax, PixelPaddingValue=value, PixelPaddingRangeLimit=limit)
    assert close(got, 0, 0, 0, 0.5, 1)


def test_a_range_without_a_padding_value_is_none():
    assert close(shown(row(0, 50, 100), PixelPaddingRangeLimit=60), 0, 0.5, 1)


@pytest.mark.parametrize(
    ("stored", "vr", "value", "limit"),
    [
        (row(-2000, -1990, 0, 50, 100, dtype=np.int16), "US", 63536, 63546),
        (row(63536, 63546, 0, 50, 100), "SS", -2000, -1990),
    ],
)
def test_padding_is_read_by_the_sign_of_the_pixels_whatever_its_vr(stored, vr, value, limit):
    ds = dataset(stored)
    ds.add_new("PixelPaddingValue", vr, value)
    ds.add_new("PixelPaddingRangeLimit", vr, limit)
    opened = open_dataset(memoryview(file_of(ds, stored)), Limits())
    (got,) = canonical_frames(opened, geometry_of(opened, Limits()), SMALL, Limits())
    assert close(got.frame, 0, 0, 0, 0.5, 1)


def padded(value):
    """A disc with a ramp from 0 to 1000, its edge not aligned with the boxes, surrounded by padding of `value`."""
    y, x = np.mgrid[0:66, 0:70]
    ramp = np.broadcast_to(np.linspace(0, 1000, 70).round(), (66, 70))
    return np.where((y - 31.5) ** 2 + (x - 33.5) ** 2 < 27**2, ramp, value).astype(np.int16)


def means_of_the_picture(values, padding, factor):
    """The mean of each box without its padding; NaN for a box of padding only."""
    rows, columns = values.shape[0] // factor, values.shape[1] // factor
    out = np.full((rows, columns), np.nan)
    for y, x in np.ndindex(rows, columns):
        box = values[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        if (box != padding).any():
            out[y, x] = box[box != padding].mean()
    return out


@pytest.mark.parametrize("padding", [-32768, -2000, 32767])
@pytest.mark.parametrize("syntax", [EXPLICIT, J2K])
def test_padding_is_not_averaged_into_the_picture_beside_it(syntax, padding):
    values = padded(padding)
    means = means_of_the_picture(values, padding, 4)
    low, high = np.nanmin(means), np.nanmax(means)
    got = shown(values, syntax, PixelPaddingValue=padding)
    assert np.allclose(got, np.nan_to_num((means - low) / (high - low)), atol=1e-5)
    windowed = shown(values, WindowCenter="500.5", WindowWidth=1001, PixelPaddingValue=padding)
    assert np.allclose(windowed, np.nan_to_num(means / 1000), atol=1e-5)


def test_padding_is_a_stored_value_also_where_a_lut_maps_it():
    got = shown(row(0, 1, 2, 3), ModalityLUTSequence=lut(4, 0, 16, [5000, 100, 900, 1100]), PixelPaddingValue=0)
    assert close(got, 0, 0, 0.8, 1)


def test_a_picture_with_padding_is_decoded_reduced_where_a_window_says_where_its_range_ends():
    attributes = {"PixelPaddingValue": -2000}
    (whole,) = frames_of(padded(-2000), J2K, **attributes)
    (reduced,) = frames_of(padded(-2000), J2K, WindowCenter="500.5", WindowWidth=1001, **attributes)
    assert (whole.reduced, reduced.reduced) == (1, 4)


@pytest.mark.parametrize("values", [row(5, 5, 5, 5, 5), np.pad(np.full((32, 32), 5, np.uint16), (0, 1))])
def test_a_picture_of_nothing_but_padding_is_shown_as_if_it_had_none(values):
    assert np.all(np.isfinite(shown(values, PixelPaddingValue=5)))


def floats(values, syntax=EXPLICIT, **attributes):
    """The frame of a picture of floating point numbers, in the pixel element of their size."""
    element, vr = {4: ("FloatPixelData", "OF"), 8: ("DoubleFloatPixelData", "OD")}[values.dtype.itemsize]
    order = ">" if syntax == BIG else "<"
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    ds = dataset(values, BitsStored=values.dtype.itemsize * 8, **attributes)
    ds.add_new(element, vr, data)
    opened = open_dataset(memoryview(file_of(ds, None, syntax)), Limits())
    (got,) = canonical_frames(opened, geometry_of(opened, Limits()), SMALL, Limits())
    return got.frame


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "Float"), (np.float64, "DoubleFloat")])
@pytest.mark.parametrize(("value", "limit"), [(-2000.5, None), (-2000.5, -1000), (-1000, -2000.5), (-1e308, -2000.5)])
def test_padding_of_floating_point_numbers_has_attributes_of_its_own(syntax, dtype, kind, value, limit):
    value = max(value, float(np.finfo(dtype).min))
    attributes = {f"{kind}PixelPaddingValue": value, f"{kind}PixelPaddingRangeLimit": limit}
    attributes = {keyword: bound for keyword, bound in attributes.items() if bound is not None}
    got = floats(row(-2000.5, value, 0.25, 0.5, 0.75, dtype=dtype), syntax, **attributes)
    assert close(got, 0, 0, 0, 0.5, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_background_whether_declared_as_padding_or_not(dtype, value):
    kind = "Float" if dtype == np.float32 else "DoubleFloat"
    stored = row(value, 100.25, 100.5, 100.75, dtype=dtype)
    assert close(floats(stored), 0, 0, 0.5, 1)
    declared = {f"{kind}PixelPaddingValue": value, f"{kind}PixelPaddingRangeLimit": value}
    assert close(floats(stored, **declared), 0, 0, 0.5, 1)
    assert close(floats(stored, **declared, PhotometricInterpretation="MONOCHROME1"), 0, 1, 0.5, 0)
    assert not floats(row(value, value, dtype=dtype)).any()


def test_a_number_beyond_single_precision_is_no_picture_value():
    assert close(floats(row(-1e300, 100.25, 100.5, 100.75, dtype=np.float64)), 0, 0, 0.5, 1)


def test_padding_of_integers_says_nothing_of_floating_point_numbers():
    assert close(floats(row(0, 5, 10, dtype=np.float32), PixelPaddingValue=0, PixelPaddingRangeLimit=6), 0, 0.5, 1)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_signed_values_are_read_in_every_byte_order(syntax):
    assert close(shown(row(-1000, 0, 1000, dtype=np.int16), syntax), 0, 0.5, 1)


def test_bytes_in_swapped_words_are_read_in_order_where_frames_begin_within_a_word():
    frames = np.arange(0, 255, 17, dtype=np.uint8).reshape(3, 1, 5)
    ds = dataset(frames)
    ds.PixelData = np.frombuffer(frames.tobytes() + b"\0", np.uint16).byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    opened = open_dataset(memoryview(file_of(ds, None, BIG)), Limits())
    got = [one.frame for one in canonical_frames(opened, geometry_of(opened, Limits()), SMALL, Limits())]
    assert np.allclose(got, frames / 255)


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_bits_in_words_are_read_in_order_where_frames_begin_within_a_word(syntax):
    frames = np.random.default_rng(5).integers(0, 2, (3, 3, 9), dtype=np.uint8)
    ds = dataset(frames, BitsAllocated=1, BitsStored=1)
    packed = np.packbits(frames, bitorder="little").tobytes() + b"\0"
    ds.PixelData = words(np.frombuffer(packed, "<u2"), syntax)
    ds["PixelData"].VR = "OW"
    opened = open_dataset(memoryview(file_of(ds, None, syntax)), Limits())
    got = [one.frame for one in canonical_frames(opened, geometry_of(opened, Limits()), SMALL, Limits())]
    assert np.array_equal(got, frames)


@pytest.mark.parametrize("bits", [1, 8])
def test_what_follows_the_pixel_data_is_no_frame(bits):
    frames = np.zeros((2, 16, 16), dtype=np.uint8)
    ds = dataset(frames, BitsAllocated=bits, BitsStored=bits)
    ds.PixelData = bytes(16 * 16 * bits // 8)
    ds["PixelData"].VR = "OB"
    ds.add_new("DataSetTrailingPadding", "OB", bytes(range(256)) * 4)
    opened = open_dataset(memoryview(file_of(ds, None)), Limits())
    shown_frames = canonical_frames(opened, geometry_of(opened, Limits()), SMALL, Limits())
    assert next(shown_frames).number == 1
    with pytest.raises(Rejected, match="pixel-data-too-short"):
        next(shown_frames)


def test_bits_above_the_stored_ones_are_no_brightness():
    # 12 bits stored, overlay bits above them
    assert close(shown(row(0x8000, 0x4800, 0xFFFF), BitsStored=12), 0, 2048 / 4095, 1)


def test_twelve_signed_bits_in_sixteen_are_extended():
    # 0xFFF is -1, 0x800 is -2048, 0x7FF is 2047, whatever the upper four bits hold
    got = shown(np.array([[0x0FFF, 0x0800, 0x07FF]], dtype=np.int16), BitsStored=12)
    assert close(got, 2047 / 4095, 0, 1)


@pytest.mark.parametrize(("slope", "intercept"), [("1e300", 0), (1, "1e300"), ("1e12", 0)])
def test_an_absurd_rescale_is_refused(slope, intercept):
    with pytest.raises(Rejected, match="bad-pixel-description"):
        shown(row(0, 1), RescaleSlope=slope, RescaleIntercept=intercept)


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
COLOURS = np.array([[RED, GREEN, BLUE, WHITE]], dtype=np.uint8)
LUMA = (76 / 255, 150 / 255, 29 / 255, 1.0)  # 0.299, 0.587, 0.114, rounded to whole steps


def test_colour_becomes_luma_by_pixel_and_by_plane():
    by_pixel = shown(COLOURS)
    planes = np.moveaxis(COLOURS, -1, 0).reshape(COLOURS.shape)  # the same bytes, planar
    by_plane = shown(np.ascontiguousarray(planes), PlanarConfiguration=1)
    assert close(by_pixel, *LUMA)
    assert np.array_equal(by_pixel, by_plane)


def test_ybr_needs_only_its_first_component():
    ybr = np.array([[[76, 85, 255], [150, 44, 21], [29, 255, 107], [255, 128, 128]]], dtype=np.uint8)
    assert close(shown(ybr, PhotometricInterpretation="YBR_FULL"), *LUMA)


def test_subsampled_ybr_is_two_lumas_then_two_chromas():
    values = np.array([[10, 20, 128, 128, 30, 40, 128, 128]], dtype=np.uint8)
    ds = dataset(np.zeros((1, 4, 3), dtype=np.uint8), PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OB"
    opened = open_dataset(memoryview(file_of(ds, None)), Limits())
    (frame,) = canonical_frames(opened, geometry_of(opened, Limits()), SMALL, Limits())
    assert close(frame.frame, 10 / 255, 20 / 255, 30 / 255, 40 / 255)


TABLES = {"Red": [0, 65535, 0, 65535], "Green": [0, 0, 65280, 65535], "Blue": [0, 0, 255, 65535]}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_palette_is_looked_up_before_anything_is_averaged(syntax):
    attributes = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in TABLES.items():
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 10, 16]
        attributes[f"{colour}PaletteColorLookupTableData"] = words(table, syntax)
    got = shown(row(10, 11, 12, 13, 99, dtype=np.uint8), syntax, **attributes)
    assert close(got, 0, 76 / 255, 149 / 255, 1, 1)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_segmented_palette_is_expanded(syntax):
    attributes = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in TABLES:
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        # PS3.3 C.7.9.2: one discrete value, then three on a line to the last
        attributes[f"Segmented{colour}PaletteColorLookupTableData"] = words([0, 1, 0, 1, 3, 65535], syntax)
    assert close(shown(row(0, 1, 2, 3, dtype=np.uint8), syntax, **attributes), 0, 85 / 255, 170 / 255, 1)


def test_a_missing_palette_is_refused():
    with pytest.raises(Rejected, match="bad-pixel-description"):
        shown(row(0, 1, dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")


@pytest.mark.parametrize(
    ("frames", "most", "expected"),
    [
        (1, 8, (1,)),
        (8, 8, (1, 2, 3, 4, 5, 6, 7, 8)),
        (3, 1, (2,)),
        (96, 8, (7, 19, 31, 43, 55, 67, 79, 91)),
        (10, 2, (3, 8)),
    ],
)
def test_frames_are_chosen_evenly(frames, most, expected):
    assert chosen_frames(frames, most) == expected


def test_each_chosen_frame_is_the_one_that_its_number_says():
    values = np.stack([np.full((16, 16), n, dtype=np.uint8) for n in range(20)])
    values[:, 0, 0] = 255
    got = frames_of(values, recipe=Recipe(size=8, frames=4))
    assert [frame.number for frame in got] == [3, 8, 13, 18]
    assert [round(float(frame.frame[5, 5]) * 255) for frame in got] == [2, 7, 12, 17]


def test_a_functional_group_of_the_frame_comes_before_the_shared_one():
    def window(center):
        item, group = Dataset(), Dataset()
        item.WindowCenter, item.WindowWidth = center, 101
        group.FrameVOILUTSequence = Sequence([item])
        return group

    values = np.full((2, 16, 16), 100, dtype=np.uint16)
    shared = Sequence([window("50.5")])
    own = Sequence([window("100.5"), Dataset()])
    first, second = frames_of(values, SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=own)
    assert np.allclose(first.frame, 0.5)
    assert np.allclose(second.frame, 1.0)
