"""The splitter with bodies cut at any place, and with malformed bodies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Invalid
from shared.multipart import HEADER_BYTES, PREAMBLE_BYTES, TYPE_LETTERS, Begin, Data, End, Splitter, media_type

BOUNDARY = "a'b-c"


def body(parts, boundary=BOUNDARY, preamble=b"", epilogue=b""):
    out = preamble
    for headers, content in parts:
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        out += b"\r\n--" + boundary.encode() + b"\r\n" + lines + b"\r\n" + content
    return out + b"\r\n--" + boundary.encode() + b"--\r\n" + epilogue


def split(raw, sizes=(1 << 20,), boundary=BOUNDARY):
    """Every part as (headers, content), fed in pieces of these sizes in rotation."""
    splitter, found, at, turn = Splitter(boundary), [], 0, 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        for event in splitter.feed(raw[at : at + size]):
            if isinstance(event, Begin):
                found.append([dict(event.headers), b"", False])
            elif isinstance(event, Data):
                found[-1][1] += event.chunk
            else:
                assert event == End()
                found[-1][2] = True
        at, turn = at + size, turn + 1
    splitter.finish()
    assert all(done for _, _, done in found)
    return [(headers, content) for headers, content, _ in found]


contents = st.lists(
    st.lists(st.sampled_from([b"\r\n", b"--", b"\r", b"\n", b"\r\n--", b"\r\n--a'b", b"DICM", b"\0"])).map(b"".join),
    max_size=4,
)


@given(contents, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([b"", b"hello\r\nthere"]))
@settings(max_examples=200)
def test_parts_come_back_as_they_were_however_the_body_is_cut(contents, sizes, preamble):
    parts = [({"content-type": "application/dicom", "n": str(i)}, content) for i, content in enumerate(contents)]
    assert split(body(parts, preamble=preamble, epilogue=b"bye"), sizes) == parts


def test_a_part_may_have_no_headers_and_no_content():
    assert split(body([({}, b""), ({}, b"x")])) == [({}, b""), ({}, b"x")]


def test_the_first_boundary_may_stand_at_the_very_beginning():
    assert split(body([({}, b"x")])[2:]) == [({}, b"x")]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (body([({}, b"x")])[:-8], "ends before"),
        (b"", "ends before"),
        (b"x" * (PREAMBLE_BYTES + 100), "no boundary in the first"),
        (b"--a'b-c\r\n" + b"n: " + b"x" * HEADER_BYTES, "too large"),
        (b"--a'b-c\r\nno header\r\n\r\nx\r\n--a'b-c--", "malformed or repeated header"),
        (b"--a'b-c\r\nn: 1\r\nN: 2\r\n\r\nx\r\n--a'b-c--", "malformed or repeated header"),
        (b"--a'b-c\r\nn: 1\r\n folded\r\n\r\nx\r\n--a'b-c--", "malformed or repeated header"),
        (b"--a'b-cd\r\n\r\nx\r\n--a'b-c--", "after a boundary"),
        (b"--a'b-c" + b" " * 200, "line of a boundary is too long"),
        (b"--a'b-c\r\n" + b"".join(b"n%d: 1\r\n" % n for n in range(40)) + b"\r\nx\r\n--a'b-c--", "too many"),
    ],
)
def test_what_is_no_multipart_is_refused(raw, said):
    with pytest.raises(Invalid, match=said):
        split(raw)


@pytest.mark.parametrize("boundary", ["", "x" * 201, "a\r\nb", "é", "a "])
def test_a_boundary_that_is_none_is_refused(boundary):
    with pytest.raises(Invalid, match="boundary"):
        Splitter(boundary)


def test_a_large_part_is_never_held_as_a_whole():
    splitter = Splitter(BOUNDARY)
    list(splitter.feed(b"--a'b-c\r\n\r\n"))
    for _ in range(64):
        list(splitter.feed(bytes(65536)))
        assert len(splitter._buffer) < 100


@pytest.mark.parametrize(
    ("header", "kind", "given"),
    [
        ('multipart/related; type="application/dicom"; boundary="a b"', "multipart/related",
         {"type": "application/dicom", "boundary": "a b"}),
        ("Application/DICOM", "application/dicom", {}),
        ("a/b; boundary*=utf-8''a%20b", "a/b", {"boundary": "a b"}),  # RFC 2231
        ("", "", {}),
    ],
)  # fmt: skip
def test_a_media_type_is_read_with_its_parameters(header, kind, given):
    assert media_type(header) == (kind, given)


def test_a_media_type_that_is_too_long_is_none():
    assert media_type(f'a/b; c="{";" * TYPE_LETTERS}"') == ("", {})
