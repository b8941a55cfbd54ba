"""The doctor's findings about the machine."""

import shutil

import pytest

from services.cli import doctor
from shared.store.blobs import MIB, Blobs

GB = 10**9


@pytest.mark.parametrize(
    ("home_free", "store_free", "low"),
    [
        (500 * GB, 500 * GB, []),
        (500 * GB, 2000 * MIB, ["store"]),  # below its reserve, so intake stops
        (2000 * MIB, 500 * GB, ["home"]),
        (0, 0, ["home", "store"]),
    ],
)
def test_a_disk_that_is_nearly_full_is_named_the_one_of_sent_files_too(
    monkeypatch, tmp_path, home_free, store_free, low
):
    blobs = Blobs(tmp_path / "store")
    blobs.root.mkdir()
    free = {tmp_path: home_free, blobs.root: store_free}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000 * GB, 0, free[path]))
    found = [(one.kind, one.ids) for one in doctor._machine(tmp_path, blobs, repair=False)]
    assert found == ([("disk-low", low)] if low else [])


def test_of_a_home_and_a_store_that_are_elsewhere_nothing_is_said(tmp_path):
    assert list(doctor._machine(tmp_path / "home", Blobs(tmp_path / "store"), repair=True)) == []
    assert list(tmp_path.iterdir()) == []
