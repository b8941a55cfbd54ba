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


def test_a_full_disk_is_named_also_while_it_keeps_the_database_from_starting(similis, monkeypatch, tmp_path):
    (tmp_path / "database.url").write_text("postgresql+psycopg://127.0.0.1:1/none")
    (tmp_path / "vectors.key").write_text("a-key")
    (tmp_path / "pseudonym.key").write_text("k" * 43)
    for name in doctor.SECRETS:
        if (tmp_path / name).exists():
            (tmp_path / name).chmod(0o600)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000 * GB, 0, 0))
    ran = similis("doctor", "--home", tmp_path)
    assert (ran.code, ran.out.splitlines()[1].split()[0]) == (1, "disk-low")
    assert "the database cannot be reached" in ran.err
    ran = similis("doctor", "--home", tmp_path, "--json")
    assert (ran.code, [one["kind"] for one in ran.json["findings"]]) == (1, ["disk-low"])
    assert ran.json["complete"] is False


def test_of_a_home_and_a_store_that_are_elsewhere_nothing_is_said(tmp_path):
    assert list(doctor._machine(tmp_path / "home", Blobs(tmp_path / "store"), repair=True)) == []
    assert list(tmp_path.iterdir()) == []
