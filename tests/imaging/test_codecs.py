"""Every transfer syntax decodes to the picture that was encoded; a reduced decode is close to the full one, scaled."""

import struct
import zlib  # noqa: F401 - before gdcm, see shared/imaging/child.py
from dataclasses import replace

import gdcm
import numpy as np
import pytest
from pictures import (
    BUNDLED,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K,
    J2K_LOSSY,
    JPEG,
    JPEG_LS,
    LOSSLESS,
    RLE,
    breast,
    dataset,
    encoded,
    file_of,
    jpeg_ls,
)

from shared.errors import Rejected
from shared.imaging import codecs
from shared.imaging.codecs import decode_frame, jpeg_2000_size, jpeg_size
from shared.imaging.fragments import Encapsulated
from shared.imaging.frames import luma
from shared.imaging.geometry import Geometry, geometry_of
from shared.imaging.limits import Limits
from shared.imaging.preprocess import box_mean
from shared.imaging.read import open_dataset
from shared.imaging.recipe import Recipe

FULL = Recipe(size=512)


def geometry(values, *, stored, photometric="MONOCHROME2"):
    return Geometry(
        rows=values.shape[0],
        columns=values.shape[1],
        frames=1,
        samples=1 if values.ndim == 2 else 3,
        allocated=values.dtype.itemsize * 8,
        stored=stored,
        signed=values.dtype.kind == "i",
        planar=False,
        photometric=photometric,
    )


@pytest.mark.parametrize("syntax", [IMPLICIT, DEFLATED, RLE, JPEG_LS, LOSSLESS, J2K])
def test_a_lossless_encoding_gives_the_same_input_as_none(sandbox, syntax):
    values = breast(500, 400)
    made = [file_of(dataset(values, BitsStored=12), values, each) for each in (EXPLICIT, syntax)]
    plain, other = (sandbox.decode(data, FULL) for data in made)
    assert other.reduced == 1
    assert np.array_equal(plain.pixels, other.pixels)
    assert plain.stats == other.stats


@pytest.mark.parametrize("syntax", [RLE, J2K])
def test_a_lossless_encoding_keeps_signs(sandbox, syntax):
    values = (breast(500, 400).astype(np.int32) - 2000).astype(np.int16)
    made = [file_of(dataset(values), values, each) for each in (EXPLICIT, syntax)]
    plain, other = (sandbox.decode(data, FULL) for data in made)
    assert np.array_equal(plain.pixels, other.pixels)


@pytest.mark.parametrize("side", [64, 512])
def test_signed_values_in_an_unsigned_jpeg_2000_keep_their_signs(sandbox, side):
    values = (breast(500, 400).astype(np.int32) - 2000).astype(np.int16)
    bare = values.view(np.uint16) & 0x1FFF
    plain = sandbox.decode(file_of(dataset(values, BitsStored=13), values), Recipe(size=side))
    other = sandbox.decode(file_of(dataset(bare, BitsStored=13, PixelRepresentation=1), bare, J2K), Recipe(size=side))
    assert np.array_equal(plain.pixels, other.pixels)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_overlays_above_the_stored_bits_are_dropped(sandbox, syntax, kind):
    values = breast(500, 400).astype(kind)
    marked = values | (np.random.default_rng(0).integers(0, 16, values.shape) << 12).astype(kind)
    plain = sandbox.decode(file_of(dataset(values, BitsStored=12), values), Recipe(size=64))
    other = sandbox.decode(file_of(dataset(marked, BitsStored=12), marked, syntax), Recipe(size=64))
    assert np.array_equal(plain.pixels, other.pixels)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_values_at_the_top_of_their_words_are_brought_down(sandbox, syntax, kind):
    values = breast(500, 400).astype(kind) - (2000 if kind is np.int16 else 0)
    high, wrong = dataset(values, BitsStored=12), dataset(values, BitsStored=12)
    high.HighBit = wrong.HighBit = 15
    plain = sandbox.decode(file_of(dataset(values, BitsStored=12), values), Recipe(size=64))
    other = sandbox.decode(file_of(high, (values << 4).astype(kind), syntax), Recipe(size=64))
    assert np.array_equal(plain.pixels, other.pixels)
    at_the_bottom = sandbox.decode(file_of(wrong, values, syntax), Recipe(size=64))
    assert np.array_equal(plain.pixels, at_the_bottom.pixels)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_signs_stand_where_the_stored_bits_end(sandbox, syntax):
    values = (breast(500, 400).astype(np.int32) - 2000).astype(np.int16)
    bare = values & 0x1FFF
    plain = sandbox.decode(file_of(dataset(values, BitsStored=13), values), Recipe(size=64))
    other = sandbox.decode(file_of(dataset(bare, BitsStored=13), bare, syntax), Recipe(size=64))
    assert np.array_equal(plain.pixels, other.pixels)


def test_a_stream_of_more_bits_than_the_header_says_is_averaged_as_it_is(sandbox):
    values = breast(600, 500, bits=16)
    plain = sandbox.decode(file_of(dataset(values), values), Recipe(size=64))
    other = sandbox.decode(file_of(dataset(values, BitsStored=10), values, JPEG_LS), Recipe(size=64))
    assert np.array_equal(plain.pixels, other.pixels)


@pytest.mark.parametrize("syntax", [JPEG_LS, J2K, LOSSLESS])
def test_a_stream_of_many_bits_is_no_picture_of_eight(sandbox, syntax):
    values = breast(64, 48, bits=12)
    stream = encoded(values, dataset(values, BitsStored=12), syntax)
    with pytest.raises(Rejected, match="codestream-differs-from-header"):
        decode_frame(stream, syntax, geometry(values, stored=8), 1)


@pytest.mark.parametrize("syntax", [RLE, J2K])
def test_a_lossless_encoding_keeps_colours(sandbox, syntax):
    values = np.stack([breast(300, 200, bits=8, seed=seed) for seed in range(3)], axis=-1)
    kind = "YBR_RCT" if syntax == J2K else "RGB"
    plain = sandbox.decode(file_of(dataset(values), values), FULL)
    other = sandbox.decode(file_of(dataset(values, PhotometricInterpretation=kind), values, syntax), FULL)
    assert np.abs(plain.pixels - other.pixels).max() < 1 / 255


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_reduced_jpeg_2000_is_the_full_one_only_smaller(bits, signed, factor):
    values = breast(768, 640, bits=bits)
    if signed:
        values = (values.astype(np.int32) - (1 << (bits - 1))).astype(np.int8 if bits == 8 else np.int16)
    shape = geometry(values, stored=bits)
    data = encoded(values, dataset(values, BitsStored=bits), J2K)
    full = decode_frame(data, J2K, shape, 1)
    assert full.reduced == 1
    assert np.array_equal(full.values, values)
    small = decode_frame(data, J2K, shape, factor)
    assert small.reduced == factor
    expected = box_mean(values, factor, 16)
    error = np.abs(small.values[2:-2, 2:-2].astype(np.float32) - expected[2:-2, 2:-2])
    # the low-pass is the wavelet's, not the box's, and shifted by up to half a pixel: near, not equal
    assert error.mean() < 0.02 * (1 << bits)


def test_a_reduced_colour_jpeg_2000_is_the_full_one_only_smaller():
    values = np.stack([breast(512, 512, bits=8, seed=seed) for seed in range(3)], axis=-1)
    shape = geometry(values, stored=8, photometric="YBR_RCT")
    small = decode_frame(encoded(values, dataset(values), J2K), J2K, shape, 2)
    assert small.rgb
    assert small.reduced == 2
    error = np.abs(luma(small.values).astype(np.float32) - box_mean(luma(values), 2, 8))
    assert error.mean() < 2


def test_a_stream_with_no_level_to_leave_out_is_decoded_in_full():
    values = breast(600, 500)
    data = bytearray(encoded(values, dataset(values, BitsStored=12), J2K))
    assert jpeg_2000_size(bytes(data)).levels >= 2
    small = decode_frame(bytes(data), J2K, geometry(values, stored=12), 1 << 12)
    assert small.reduced <= 1 << jpeg_2000_size(bytes(data)).levels


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_scaled_jpeg_is_the_full_one_only_smaller(factor):
    values = breast(800, 640, bits=8)
    small = decode_frame(encoded(values, dataset(values), JPEG), JPEG, geometry(values, stored=8), factor)
    assert small.reduced == factor
    assert np.abs(small.values.astype(np.float32) - box_mean(values, factor, 8)).mean() < 2


def test_a_mammogram_in_jpeg_2000_gives_nearly_the_same_input_as_uncompressed(sandbox):
    values = breast()
    attributes = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000}
    plain = sandbox.decode(file_of(dataset(values, **attributes), values), Recipe())
    small = sandbox.decode(file_of(dataset(values, **attributes), values, J2K), Recipe())
    lossy = sandbox.decode(file_of(dataset(values, **attributes), values, J2K_LOSSY), Recipe())
    assert (plain.reduced, small.reduced) == (1, 4)
    for other in (small, lossy):
        assert np.corrcoef(plain.pixels.ravel(), other.pixels.ravel())[0, 1] > 0.999
        assert np.abs(plain.pixels - other.pixels).mean() < 0.005


@pytest.mark.parametrize("syntax", [JPEG, JPEG_LS, J2K, LOSSLESS])
def test_a_codestream_of_another_size_than_the_header_is_refused(sandbox, syntax):
    values = breast(64, 48, bits=8 if syntax == JPEG else 12)
    ds = dataset(values, BitsStored=8 if syntax == JPEG else 12)
    ds.Rows = 32
    with pytest.raises(Rejected, match="codestream-differs-from-header"):
        sandbox.decode(file_of(ds, values, syntax), Recipe())


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
def test_missing_pixels_are_missed(sandbox, syntax):
    values = breast(64, 48)
    with pytest.raises(Rejected, match="pixel-data-too-short"):
        sandbox.decode(file_of(dataset(values, Rows=65), values, syntax), Recipe())


def test_sizes_are_read_from_the_streams_themselves():
    values = breast(96, 64)
    size = jpeg_2000_size(encoded(values, dataset(values, BitsStored=12), J2K))
    assert (size.rows, size.columns, size.samples, size.precision) == (96, 64, 1, 12)
    size = jpeg_size(encoded(values, dataset(values, BitsStored=12), LOSSLESS))
    assert (size.rows, size.columns, size.samples) == (96, 64, 1)
    for junk in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"abc" * 50):
        with pytest.raises(Rejected):
            jpeg_size(junk)
        with pytest.raises(Rejected):
            jpeg_2000_size(junk)


def test_an_unknown_transfer_syntax_is_undecodable(sandbox):
    values = breast(64, 48)
    data = file_of(dataset(values), values, RLE).replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.7\0")
    with pytest.raises(Rejected, match="no-permitted-decoder"):
        sandbox.decode(data, Recipe())


def test_a_frame_of_a_multi_frame_file_is_decoded_by_itself(sandbox):
    values = np.stack([breast(64, 64, bits=8, seed=seed) for seed in range(5)])
    recipe = Recipe(size=64, frames=2)
    plain = sandbox.decode(file_of(dataset(values), values), recipe)
    for syntax in (RLE, J2K, JPEG_LS):
        other = sandbox.decode(file_of(dataset(values), values, syntax), recipe)
        assert other.frames == plain.frames == (2, 4)
        assert np.array_equal(plain.pixels, other.pixels)


@pytest.fixture(params=["pyjpegls", "gdcm"])
def jpeg_ls_decoder(request, monkeypatch):
    """Decode JPEG-LS by this library; return the list of streams that it was given."""
    given = []
    if request.param == "gdcm":
        image = gdcm.Image
        monkeypatch.setattr(codecs, "jpeg_ls", None)
        monkeypatch.setattr(gdcm, "Image", lambda: given.append(1) or image())
    elif codecs.jpeg_ls is None:
        pytest.skip("pyjpegls has no wheels for this Python")
    else:
        decode = codecs.jpeg_ls.decode_pixel_data
        monkeypatch.setattr(codecs.jpeg_ls, "decode_pixel_data", lambda data: given.append(1) or decode(data))
    return given


def test_a_jpeg_ls_stream_without_its_end_is_refused_before_the_decoder_searches_for_it(jpeg_ls_decoder):
    values = breast(64, 48)
    stream = encoded(values, dataset(values), JPEG_LS)
    size = geometry(values, stored=12)
    jpeg_ls_decoder.clear()
    assert np.array_equal(decode_frame(stream + b"\0", JPEG_LS, size, 1).values, values)
    for cut in (-1, -2, -100, len(stream) // 2):
        with pytest.raises(Rejected, match="corrupt-pixel-data"):
            decode_frame(stream[:cut], JPEG_LS, size, 1)
    assert len(jpeg_ls_decoder) == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_both_decoders_of_jpeg_ls_keep_values_and_signs(jpeg_ls_decoder, bits):
    values = breast(65, 47, bits=bits)
    stream, size = jpeg_ls(values), geometry(values, stored=bits)
    jpeg_ls_decoder.clear()
    assert np.array_equal(decode_frame(stream, JPEG_LS, size, 1).values, values)
    below_zero = values.view(f"i{bits // 8}")
    assert below_zero.min() < 0
    assert np.array_equal(decode_frame(stream, JPEG_LS, replace(size, signed=True), 1).values, below_zero)
    in_sixteen = decode_frame(stream, JPEG_LS, replace(size, allocated=16), 1)
    assert np.array_equal(in_sixteen.values, values)
    assert len(jpeg_ls_decoder) == 3


@pytest.mark.skipif(codecs.jpeg_ls is None, reason="pyjpegls, which encodes these, has no wheels for this Python")
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("loss", [0, 1, 3])
@pytest.mark.parametrize("bits", [9, 10, 12, 13, 15])
def test_both_decoders_of_jpeg_ls_read_every_precision(monkeypatch, bits, loss, signed):
    values = breast(65, 47, bits=bits)
    stream = bytes(codecs.jpeg_ls.encode_array(values, lossy_error=loss))
    assert jpeg_size(stream).precision == bits
    size = replace(geometry(values, stored=bits), signed=signed)
    one = decode_frame(stream, JPEG_LS, size, 1).values
    monkeypatch.setattr(codecs, "jpeg_ls", None)
    assert np.array_equal(decode_frame(stream, JPEG_LS, size, 1).values, one)
    assert signed or np.abs(one.astype(int) - values).max() == loss


@pytest.mark.parametrize("planar", [False, True])  # of the header, which does not describe a compressed stream
@pytest.mark.parametrize("kind", ["line", "sample"])
def test_both_decoders_of_jpeg_ls_keep_interleaved_colours(jpeg_ls_decoder, kind, planar):
    plain, lossy = bundled("SC_rgb_rle.dcm"), bundled(f"SC_rgb_jls_lossy_{kind}.dcm", planar=planar)
    assert lossy.rgb
    assert np.abs(plain.values.astype(int) - lossy.values.astype(int)).max() == 2  # as much as the encoder was allowed
    assert len(jpeg_ls_decoder) == 1


@pytest.mark.parametrize("planar", [False, True])
def test_both_decoders_of_jpeg_ls_keep_the_colours_of_separate_scans(jpeg_ls_decoder, planar):
    values = np.stack([breast(65, 47, bits=8, seed=seed) for seed in range(3)], axis=-1)
    head = b"\xff\xd8" + struct.pack(">HHBHHB9B", 0xFFF7, 17, 8, 65, 47, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0)
    scans = [jpeg_ls(values[..., sample]).rstrip(b"\0") for sample in range(3)]
    scans = [one[one.index(b"\xff\xda") : -2] for one in scans]
    named = [one[:5] + bytes([number]) + one[6:] for number, one in enumerate(scans, 1)]
    stream = head + b"".join(named) + b"\xff\xd9"
    size = replace(geometry(values, stored=8, photometric="RGB"), planar=planar)
    assert np.array_equal(decode_frame(stream, JPEG_LS, size, 1).values, values)
    assert len(jpeg_ls_decoder) >= 1


def test_gdcm_is_not_asked_for_fewer_bits_than_eight(monkeypatch):
    values = breast(65, 47, bits=7)
    stream = bytearray(jpeg_ls(values))
    stream[stream.index(b"\xff\xf7") + 4] = 7
    monkeypatch.setattr(codecs, "jpeg_ls", None)
    with pytest.raises(Rejected, match="no-permitted-decoder"):
        decode_frame(bytes(stream), JPEG_LS, geometry(values, stored=7), 1)


def bundled(name, **changed):
    """The first frame of one of pydicom's own files."""
    opened = open_dataset(memoryview((BUNDLED / name).read_bytes()), Limits())
    size = geometry_of(opened, Limits())
    stream = Encapsulated(opened.buffer, opened.pixels, opened.dataset, size.frames, Limits())
    return decode_frame(stream.frame(1), opened.transfer_syntax, replace(size, **changed), 1)


@pytest.mark.parametrize(("precision", "allocated"), [(59, 16), (17, 16), (1, 16), (12, 32)])
def test_a_precision_that_jpeg_does_not_have_never_reaches_gdcm(monkeypatch, precision, allocated):
    values, given = breast(64, 48), []
    stream = bytearray(encoded(values, dataset(values, BitsStored=12), LOSSLESS))
    stream[stream.index(b"\xff\xc3") + 4] = precision
    monkeypatch.setattr(gdcm, "Image", lambda: given.append(precision))
    with pytest.raises(Rejected, match="codestream-differs-from-header"):
        decode_frame(bytes(stream), LOSSLESS, replace(geometry(values, stored=12), allocated=allocated), 1)
    assert not given


@pytest.mark.parametrize("marker", [b"\xff\xc4", b"\xff\xda"])
def test_stray_bytes_on_which_gdcm_ends_the_process_never_reach_it(monkeypatch, marker):
    values, given, image = breast(64, 48), [], gdcm.Image
    stream = encoded(values, dataset(values, BitsStored=12), LOSSLESS)
    monkeypatch.setattr(gdcm, "Image", lambda: given.append(marker) or image())
    place, size = stream.index(marker), geometry(values, stored=12)
    filled = stream[:place] + b"\xff\xff" + stream[place:]  # fill bytes may stand before any marker
    assert np.array_equal(decode_frame(filled, LOSSLESS, size, 1).values, values)
    with pytest.raises(Rejected, match="corrupt-pixel-data"):
        decode_frame(stream[:place] + b"\0\0" + stream[place:], LOSSLESS, size, 1)
    assert given == [marker]


@pytest.mark.parametrize(("rows", "reduced"), [(1000, 8), (1002, 4), (1001, 2)])
def test_jpeg_2000_is_reduced_as_far_as_its_size_allows(rows, reduced):
    """Pillow rounds a reduced size to the nearest, OpenJPEG up; where they differ, Pillow refuses the stream."""
    values = breast(rows, 808)
    plane = decode_frame(encoded(values, dataset(values, BitsStored=12), J2K), J2K, geometry(values, stored=12), 8)
    assert plane.reduced == reduced
    means = box_mean(values, reduced, 16)
    assert np.abs(plane.values[: means.shape[0]] - means).mean() < 0.02 * (1 << 12)
