"""`similis tombstones replay`, on a database that is older than an erasure."""

import sqlalchemy as sa

from shared.pipeline import erase, tombstone_file
from tests.miniature import SECRET, Platform
from tests.pipeline.conftest import platform

__all__ = ["platform"]  # a fixture


def test_what_the_file_names_is_erased_again(platform: Platform, similis, monkeypatch, tmp_path):
    platform.add_model()
    platform.take_in(8)
    file = tmp_path / "kept"
    with platform.begin() as db:
        erase.erase_study(db, SECRET, "1.2.4.1")
        tombstone_file.write(db, file)
        db.rollback()  # resets the database, but not the file
    monkeypatch.setenv("SIMILIS_DATABASE__URL", platform.store.engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SIMILIS_PSEUDONYM_KEY", SECRET.decode())
    ran = similis("tombstones", "replay", file, "--home", tmp_path / "home")
    assert (ran.code, ran.out) == (0, "4 images are erased again\n")
    assert similis("tombstones", "replay", file, "--home", tmp_path / "home", "--json").json == {"images": 0}
    with platform.store.reading() as connection:
        statuses = connection.execute(sa.text("SELECT status, count(*) FROM image GROUP BY 1 ORDER BY 1")).all()
    assert [tuple(row) for row in statuses] == [("deleted", 4), ("encoded", 4)]
    assert similis("tombstones", "replay", tmp_path / "none", "--home", tmp_path / "home").code == 3
