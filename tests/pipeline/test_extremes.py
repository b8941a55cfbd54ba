"""Extreme values in one header leave all other files registered: the real sandbox, real rows, the ends of ranges."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from pydicom import config
from pydicom.dataelem import DataElement

from shared.imaging.answers import MOST
from shared.imaging.sandbox import Sandbox
from tests.imaging.pictures import dataset, file_of
from tests.miniature import Platform

VALUES = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)


@pytest.fixture
def real(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    with Sandbox() as sandbox:
        platform.sandbox = sandbox  # type: ignore[assignment]
        platform.add_model()
        yield platform


def put(platform: Platform, n: int, **attributes: Any) -> Path:
    """Write a mammogram with one or two changed elements; a number beyond the range of US is written as SL."""
    ds = dataset(VALUES, SOPInstanceUID=f"1.2.3.{n}", StudyInstanceUID=f"1.2.4.{n}", SpecificCharacterSet="ISO_IR 192")
    for keyword, value in attributes.items():
        kind = "SL" if isinstance(value, int) else "IS" if keyword == "NumberOfFrames" else "UT"
        ds[keyword] = DataElement(keyword, kind, value)
    path = platform.folder / "archive" / f"{n}.dcm"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file_of(ds, VALUES))
    return path


NONE = "noise"  #: the gate's reason for this picture, unless the header decides first
EXTREMES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"NumberOfFrames": str(MOST)}, "too-many-frames"),
    ({"NumberOfFrames": str(MOST + 1)}, "too-many-frames"),
    ({"NumberOfFrames": "9" * 11}, "too-many-frames"),
    ({"NumberOfFrames": "-1"}, "bad-pixel-description"),
    ({"Rows": -1}, "bad-pixel-description"),
    ({"Rows": MOST}, "picture-too-large"),
    ({"Columns": -(2**31)}, "bad-pixel-description"),
    ({"BitsStored": -5}, "bad-pixel-description"),
    ({"BitsStored": MOST}, "bad-pixel-description"),
    ({}, NONE),
    ({"StudyDate": "00010101"}, NONE),
    ({"StudyDate": "99991231"}, NONE),
    ({"StudyDate": "00000000"}, NONE),
    ({"StudyDate": "-4713010"}, NONE),
    ({"Manufacturer": "A\0B" + "\N{LATIN SMALL LIGATURE FFI}" * 80}, NONE),
    ({"BodyPartExamined": "\N{LATIN SMALL LIGATURE FFI}" * 64}, NONE),
    ({"PatientID": "x" * 60_000}, NONE),
    ({"ViewPosition": "M\0L\tO"}, NONE),
)


def test_no_header_costs_another_file_its_row(real: Platform) -> None:
    for n, (attributes, _) in enumerate(EXTREMES):
        put(real, n, **attributes)
    assert real.scan().counts["taken"] == len(EXTREMES)
    real.encode()
    with real.store.reading() as connection:
        statement = "SELECT coalesce(reason, '') FROM image ORDER BY CAST(substring(sop_uid FROM 7) AS int)"
        reasons = connection.execute(sa.text(statement)).scalars().all()
    assert dict(enumerate(reasons)) == {n: expected for n, (_, expected) in enumerate(EXTREMES)}
    assert real.sandbox.deaths == 0  # type: ignore[attr-defined]


@pytest.fixture
def any_year(platform: Platform) -> Iterator[None]:
    """The archive is on tmpfs, which keeps times of any year."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs /dev/shm")
    with TemporaryDirectory(dir="/dev/shm") as folder:
        (platform.folder / "archive").symlink_to(folder)
        yield


@pytest.mark.usefixtures("any_year")
@pytest.mark.parametrize("years", [431, -369])
def test_a_year_that_no_column_holds_costs_the_batch_nothing(real: Platform, years: int) -> None:
    """Nanoseconds since 1970 in a signed column of eight bytes begin in 1677 and end in 2262.

    File systems may report later years, and a share of Windows that knows no time reports 1601.
    """
    seconds = years * 31_556_952
    os.utime(put(real, 1), (seconds, seconds))
    put(real, 2)
    assert real.scan().counts["taken"] == 2
    assert real.scan().counts["unchanged"] == 2
    real.encode()
    with real.store.reading() as connection:
        reasons = connection.execute(sa.text("SELECT reason FROM image")).scalars().all()
    assert set(reasons) == {NONE}, "decoded, and not taken for a file that has changed"
