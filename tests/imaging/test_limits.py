"""Each guard stops its file, and without the guard the file does harm: so the guard is what stops it."""

import io
import struct

import damage
import pytest
from PIL import Image

from shared.errors import Gate, Outcome, Rejected
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe

HUGE = 1 << 50


def verdict(box, data):
    """Return (outcome, gate, reason) of a file, or "decoded"."""
    try:
        box.decode(data, Recipe())
    except Rejected as rejected:
        return rejected.outcome, rejected.gate, rejected.reason
    return "decoded"


def hostile(reason):
    return Outcome.QUARANTINED, Gate.LIMITS, reason.value


def test_a_million_elements_are_refused_at_the_limit(sandbox):
    deaths = sandbox.deaths
    assert verdict(sandbox, damage.crowded_file(1_000_000)) == hostile(Reason.ELEMENTS)
    assert sandbox.deaths == deaths


def test_without_the_limit_a_million_elements_use_up_the_processor_time(boxes):
    box = boxes(elements=HUGE, header_bytes=HUGE, cpu_s=1)
    assert verdict(box, damage.crowded_file(2_000_000)) == hostile(Reason.CPU)
    assert box.deaths == 1


def test_the_limit_of_elements_is_exact(boxes):
    elements = 1000 + 5 + 8 + 1  # the private elements, the identity, the description, the pixel data
    assert verdict(boxes(elements=elements), damage.crowded_file(1000)) == "decoded"
    assert verdict(boxes(elements=elements - 1), damage.crowded_file(1000)) == hostile(Reason.ELEMENTS)


def test_two_thousand_frames_that_are_described_one_by_one_are_within_the_limits(sandbox):
    """An enhanced MR: eleven functional groups of a frame, each a sequence of one item with some elements."""
    some = b"".join(damage.element(0x2005, 0x1000 + n, b"DS", b"1 ") for n in range(6))
    group = damage.element(0x0020, 0x9111, b"SQ", item(some))
    per_frame = damage.element(0x5200, 0x9230, b"SQ", item(group * 11) * 2000)
    body = damage.identity() + damage.description(8, 8) + per_frame
    assert verdict(sandbox, damage.part10(body + damage.element(0x7FE0, 0x10, b"OW", bytes(64)))) == "decoded"


def item(body):
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body


@pytest.mark.parametrize("levels", [33, 3000, 100_000])
def test_deep_sequences_are_refused(sandbox, levels):
    assert verdict(sandbox, damage.deep_file(levels)) == hostile(Reason.DEPTH)


def test_thirty_two_levels_are_allowed(sandbox):
    assert verdict(sandbox, damage.deep_file(32)) == "decoded"


def test_without_the_depth_limit_the_parser_itself_breaks(boxes):
    assert verdict(boxes(depth=HUGE), damage.deep_file(3000)) == (Outcome.FAILED, None, Reason.MALFORMED.value)


def test_a_deflate_bomb_is_refused_by_its_ratio(sandbox):
    assert verdict(sandbox, damage.deflate_bomb(96 << 20)) == hostile(Reason.DEFLATE_RATIO)


def test_a_deflate_bomb_is_refused_by_its_size(boxes):
    box = boxes(deflate_ratio=HUGE, deflated_bytes=32 << 20)
    assert verdict(box, damage.deflate_bomb(96 << 20)) == hostile(Reason.DEFLATE_SIZE)


def test_without_the_deflate_limits_a_bomb_takes_all_the_memory_there_is(boxes):
    box = boxes(deflate_ratio=HUGE, deflated_bytes=HUGE)
    assert verdict(box, damage.deflate_bomb(640 << 20)) == hostile(Reason.MEMORY)


def test_an_rle_bomb_is_refused_before_it_is_decoded(sandbox):
    assert verdict(sandbox, damage.rle_bomb()) == hostile(Reason.SIDE)


def test_without_the_picture_limits_an_rle_bomb_takes_all_the_memory_there_is(boxes):
    box = boxes(side=HUGE, frame_pixels=HUGE, decoded_bytes=HUGE)
    assert verdict(box, damage.rle_bomb()) == hostile(Reason.CRASH)  # its decoder aborts when an allocation fails


def test_a_codestream_larger_than_its_header_says_is_refused(sandbox):
    expected = (Outcome.QUARANTINED, Gate.DECODE, Reason.MISMATCH.value)
    assert verdict(sandbox, damage.j2k_bomb(64, 64)) == expected


def test_a_picture_of_twenty_thousand_rows_is_refused(sandbox):
    assert verdict(sandbox, damage.j2k_bomb(20_000, 20_000)) == hostile(Reason.SIDE)


@pytest.mark.parametrize(("rows", "expected"), [(16_384, "short"), (16_385, "side")])
def test_a_side_may_have_16384_pixels(sandbox, rows, expected):
    short = (Outcome.QUARANTINED, Gate.DECODE, Reason.SHORT.value)
    answers = {"short": short, "side": hostile(Reason.SIDE)}
    assert verdict(sandbox, damage.picture_file(rows, 8, data=b"\1\2")) == answers[expected]


@pytest.mark.parametrize(("frames", "reason"), [(4097, Reason.FRAMES), (1_000_000, Reason.FRAMES)])
def test_more_frames_than_the_limit_are_refused(sandbox, frames, reason):
    assert verdict(sandbox, damage.picture_file(8, 8, frames=frames, data=bytes(64))) == hostile(reason)


def test_frames_that_would_decode_to_more_than_a_gibibyte_are_refused(sandbox):
    data = damage.picture_file(8000, 8000, frames=20, data=bytes(64))
    assert verdict(sandbox, data) == hostile(Reason.DECODED_SIZE)


@pytest.mark.parametrize("claimed", [0xFFFFFFF0, 0x7FFFFFFE, (16 << 20) + 2])
def test_an_element_that_claims_too_much_is_refused(sandbox, claimed):
    assert verdict(sandbox, damage.lying_file(claimed)) == hostile(Reason.ELEMENT_SIZE)


def test_a_lie_below_the_limit_is_a_truncated_file(sandbox):
    assert verdict(sandbox, damage.lying_file(1 << 20)) == (Outcome.FAILED, None, Reason.TRUNCATED.value)


def test_a_large_file_meta_information_is_refused(sandbox):
    meta = damage.element(2, 0x0102, b"OB", bytes(100_000))
    assert verdict(sandbox, damage.part10(damage.identity(), meta=meta)) == hostile(Reason.META_SIZE)


def test_more_fragments_than_the_limit_are_refused(boxes):
    body = damage.identity() + damage.description(16, 16) + damage.fragments(*[b"ab"] * 200)
    data = damage.part10(body, syntax=f"{damage.ROOT}.4.90")
    assert verdict(boxes(fragments=100), data) == hostile(Reason.FRAGMENTS)
    assert verdict(boxes(fragments=1000), data) == (Outcome.QUARANTINED, Gate.DECODE, Reason.MISMATCH.value)


def test_a_file_over_the_limit_is_not_even_handed_over(boxes, tmp_path):
    box = boxes(file_bytes=1000)
    path = tmp_path / "big"
    path.write_bytes(bytes(1001))
    assert verdict(box, path) == hostile(Reason.FILE_SIZE)
    assert verdict(box, bytes(1001)) == hostile(Reason.FILE_SIZE)
    assert box.starts == 0


def test_a_png_bomb_is_refused(sandbox):
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    assert len(out.getvalue()) < 200_000
    assert verdict(sandbox, out.getvalue()) == hostile(Reason.SIDE)


def test_a_file_that_takes_too_long_is_killed_and_the_next_one_is_decoded(boxes):
    box = boxes(elements=HUGE, header_bytes=HUGE, wall_s=1.0)
    good = (damage.BUNDLED / "CT_small.dcm").read_bytes()
    box.decode(good, Recipe())  # starts the child, so that its start does not count
    assert verdict(box, damage.crowded_file(3_000_000)) == hostile(Reason.TIME)
    assert verdict(box, good) == "decoded"
    assert box.deaths == 1
