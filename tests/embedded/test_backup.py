"""Backup during intake, restore to an empty home, and the doctor on the real stack."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from blake3 import blake3
from pydicom.data import get_testdata_file

from services.cli.backup import size_of
from services.embedded import backup as backups
from services.embedded import commands, setup
from services.embedded.client import Embedded
from services.embedded.home import Home
from services.embedded.postgres import Postgres
from shared import process
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.index.base import Spec
from shared.store import files, generations
from shared.store.blobs import Blobs
from shared.store.files import Seen
from shared.store.session import Store
from tests.e2e.killing import Archive

SIMILIS = Path(sys.executable).parent / "similis"
STUDIES = 24
ERASED = "1.2.826.0.1.3680043.8.7"


def similis(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SIMILIS, *map(str, words)], capture_output=True, text=True, check=False, timeout=300)


def client(stack: Embedded) -> httpx.Client:
    return httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {stack.api_key}"}, timeout=30)


def answers(stack: Embedded) -> dict[str, object]:
    """Hits with scores for some studies; None for a study that does not exist."""
    found: dict[str, object] = {}
    with client(stack) as http:
        for study in range(1, STUDIES + 1, 3):
            uid = f"1.2.826.0.1.3680043.8.{study}"
            reply = http.get(f"/v1/studies/{uid}/similar", params={"k": 5, "exact": True})
            if reply.status_code == 404:
                found[uid] = None
                continue
            reply.raise_for_status()
            found[uid] = [(one["study_instance_uid"], round(one["score"], 5)) for one in reply.json()["studies"]]
    return found


def scan(stack: Embedded, folder: Path) -> None:
    with client(stack) as http:
        assert http.post("/v1/ingest/scans", json={"path": str(folder)}).status_code == 202


@pytest.fixture(scope="module")
def archive(quick_folder: Path) -> Iterator[Archive]:
    made = Archive(quick_folder, STUDIES)
    made.stack = Embedded(made.home, workers=1)
    made.open()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_backup_taken_mid_ingest_gives_the_same_answers_elsewhere(archive: Archive, tmp_path: Path) -> None:
    folder = archive.parts[0]
    scan(archive.stack, folder)
    assert process.until(lambda: _count(archive, "image") > 0, 60, 0.01)
    sent = Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes()
    with client(archive.stack) as http:
        told_us = http.post("/dicom-web/studies", content=sent, headers={"Content-Type": "application/dicom"})
        assert told_us.status_code == 200, told_us.text
    kept = similis("backup", tmp_path / "backup", "--home", archive.home, "--json")
    assert kept.returncode == 0, kept.stderr
    manifest = json.loads(kept.stdout)
    assert manifest["counts"]["image"] > 0
    assert archive.settle(300)
    with client(archive.stack) as http:
        assert http.delete(f"/v1/studies/{ERASED}").status_code == 202
    assert archive.settle(120)
    stones = archive.home / "tombstones"
    assert process.until(lambda: stones.exists() and len(stones.read_text().splitlines()) == 3, 30, 0.1)
    expected = answers(archive.stack)
    assert expected[ERASED] is None

    home = tmp_path / "new"
    told = similis("restore", tmp_path / "backup", "--home", home, "--tombstones", stones, "--verify", "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    assert json.loads(told.stdout)["findings"] == []
    with Embedded(home, workers=1) as stack:
        scan(stack, folder)  # images that the backup does not have
        assert process.until(lambda: answers_or_none(stack) == expected, 240, 0.5), answers_or_none(stack)
        (archive.home / "blobs").rename(archive.home / "away")  # so that a row that names the old home fails
        checked = similis("doctor", "--home", home, "--deep")
        (archive.home / "away").rename(archive.home / "blobs")
        assert checked.returncode == 0, checked.stdout
    (blob,) = (home / "blobs").rglob("*.dcm")
    assert blob.read_bytes()[132:] == sent[132:]


def answers_or_none(stack: Embedded) -> dict[str, object] | None:
    try:
        return answers(stack)
    except httpx.HTTPError:
        return None


def _count(archive: Archive, table: str) -> int:
    with archive.store.reading() as connection:
        number: int = connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
    return number


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_doctor_names_and_repairs_on_the_real_stack(archive: Archive) -> None:
    if _count(archive, "image") == 0:
        scan(archive.stack, archive.parts[0])
        assert process.until(lambda: _count(archive, "image") > 0, 60, 0.05)
    assert archive.settle(300)
    index = archive.index()
    points = [point for batch in index.scan() for point, _ in batch]
    index.delete(points[:3])
    (archive.home / "api.key").chmod(0o644)
    told = similis("doctor", "--home", archive.home, "--json")
    assert told.returncode == 6, told.stderr
    found = {one["kind"]: one for one in json.loads(told.stdout)["findings"]}
    assert found.keys() == {"point-missing", "secret-open"}
    assert found["point-missing"]["ids"] == [str(point) for point in points[:3]]
    mended = similis("doctor", "--home", archive.home, "--repair")
    assert mended.returncode == 0, mended.stderr
    assert process.until(lambda: len(index.get(points)) == len(points), 60, 0.2)
    assert archive.settle(30)
    again = similis("doctor", "--home", archive.home, "--deep", "--repair")
    assert again.returncode == 0
    assert "agree" in again.stdout


# --- refusals, without engines ---


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder that `check` accepts as a backup of this version."""
    folder = tmp_path / "whole"
    (folder / "models").mkdir(parents=True)
    for name in (backups.DUMP, backups.KEY, "tombstones"):
        (folder / name).write_text("x" * 32)
    manifest = {
        "format": 1,
        "postgres": 18,
        "schema": _head(),
        "files": {path.name: backups._digest(path) for path in backups._files(folder)},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _head() -> str:
    from alembic.script import ScriptDirectory

    from migrations import run

    return str(ScriptDirectory.from_config(run.config()).get_current_head())


def _change(folder: Path, **more: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_a_whole_one_is_read(whole: Path) -> None:
    assert backups.check(whole)["format"] == 1


def test_the_size_that_is_told_is_of_all_that_is_kept(tmp_path: Path) -> None:
    names = [f"ab/cd/abcd{n:060}.dcm" for n in (1, 2)]
    for store, name in (("store", names[0]), ("earlier", names[0]), ("earlier", names[1])):
        blob = tmp_path / store / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"x" * 700)
    (tmp_path / "store" / "incoming").mkdir()
    blobs = backups._copy_blobs([tmp_path / "store", tmp_path / "earlier"], tmp_path / "out")
    assert size_of({"files": {"database.dump": {"bytes": 42}}, "blobs": blobs}) == 1442
    assert all((tmp_path / "out" / name).read_bytes() == b"x" * 700 for name in names)


def test_no_backup_is_made_while_a_store_of_sent_files_is_away(tmp_path: Path, database_url: str) -> None:
    content = hashlib.sha256(b"sent").digest()
    own, earlier = Blobs(tmp_path / "own"), Blobs(tmp_path / "earlier")
    store = Store(database_url)
    assert backups._sent_to(store, own.root) == [own.root]  # nothing was sent so far
    with store.transaction() as db:
        seen = Seen(path=os.fsencode(earlier.place(content)), size=4, mtime_ns=0)
        files.record(db, [files.Record(seen=seen, outcome="quarantined", digest=content)], None)
    with pytest.raises(Unavailable, match=f"{earlier.root}, which is missing"):
        backups._sent_to(store, own.root)
    earlier.place(content).parent.mkdir(parents=True)
    earlier.place(content).write_bytes(b"sent")
    assert backups._sent_to(store, own.root) == [own.root, earlier.root]
    earlier.root.rename(own.root)  # as if moved with its home; the next start updates the rows
    assert backups._sent_to(store, own.root) == [own.root, earlier.root]
    store.close()


def test_no_backup_is_made_without_a_model_that_is_served(tmp_path: Path, database_url: str) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    store = Store(database_url)
    with store.transaction() as db:
        model, _ = generations.add_model(db, fingerprint="f", name="small", folder="small", card={})
        generations.add(db, model.id, Spec(dim=4).to_json())
    with pytest.raises(NotFound, match=f"small .* {models}"):  # as if only the server had SIMILIS_MODELS set
        backups._copy_models(store, models, out)
    out.rmdir()
    (models / "small").mkdir(parents=True)
    (models / "small/card.json").write_text("{}")
    backups._copy_models(store, models, out)
    store.close()
    assert (out / "small/card.json").read_text() == "{}"


def test_no_backup_is_made_without_the_key_of_the_pseudonyms(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMILIS_DATABASE__URL", database_url)
    monkeypatch.setenv("SIMILIS_PSEUDONYM_KEY", "")
    with pytest.raises(Invalid, match="set SIMILIS_PSEUDONYM_KEY as for the server"):
        backups.backup(tmp_path / "home", tmp_path / "kept", print)
    assert os.listdir(tmp_path) == []


def test_no_backup_is_made_with_another_key_than_the_pseudonyms_were_made_with(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be restored."""
    setup.prepare(database_url, None, Blobs(tmp_path / "blobs"), b"k" * 40)
    monkeypatch.setenv("SIMILIS_DATABASE__URL", database_url)
    monkeypatch.setenv("SIMILIS_PSEUDONYM_KEY", "q" * 40)
    with pytest.raises(Conflict, match="pseudonym key differs"):
        backups.backup(tmp_path / "home", tmp_path / "kept", print)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["", "k" * 31])
def test_a_backup_that_holds_no_key_is_refused(whole: Path, key: str) -> None:
    (whole / backups.KEY).write_text(key)
    _change(
        whole,
        files={
            path.name: backups._digest(path) for path in map(whole.joinpath, (backups.DUMP, backups.KEY, "tombstones"))
        },
    )
    with pytest.raises(Invalid, match="holds no pseudonym key"):
        backups.check(whole)


@pytest.mark.parametrize("newer", [{"schema": "ffff_later"}, {"format": 2}, {"postgres": 19}])
def test_a_newer_one_is_refused(whole: Path, newer: dict[str, object]) -> None:
    _change(whole, **newer)
    with pytest.raises(Conflict, match="newer"):
        backups.check(whole)


def test_a_damaged_one_is_refused(whole: Path) -> None:
    (whole / backups.DUMP).write_text("y")
    with pytest.raises(Invalid, match=r"damaged: database\.dump"):
        backups.check(whole)
    (whole / backups.DUMP).unlink()
    with pytest.raises(Invalid, match="damaged"):
        backups.check(whole)
    (whole / "manifest.json").write_text("{")
    with pytest.raises(Invalid, match="manifest"):
        backups.check(whole)


@pytest.mark.parametrize("damage", [{"format": "x"}, {"postgres": None}, {"blobs": {"count": 1}}, {"blobs": 7}])
def test_a_damaged_manifest_is_refused(whole: Path, damage: dict[str, object]) -> None:
    _change(whole, **damage)
    with pytest.raises(Invalid, match="manifest"):
        backups.check(whole)


def test_no_backup_and_no_home_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        backups.check(tmp_path)
    with pytest.raises(NotFound):
        backups.backup(tmp_path / "nothing", tmp_path / "out", print)
    assert os.listdir(tmp_path) == []


def test_a_home_in_use_and_a_folder_that_exists_are_refused(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "pg").mkdir()
    with pytest.raises(Conflict, match="not empty"):
        backups.restore(whole, home, print)
    with pytest.raises(Conflict, match="exists"):
        backups.backup(home, whole, print)


def test_tombstones_stay_where_a_restored_home_cannot_take_its_place(tmp_path: Path) -> None:
    part, home = tmp_path / "part", tmp_path / "home"
    for folder in (part, home):
        folder.mkdir()
        (folder / "tombstones").write_text("erased\n")
    (home / "pg").mkdir()  # the home came into use meanwhile
    with pytest.raises(Conflict, match="cannot be moved to its place"):
        backups._take_place(part, home)
    assert (home / "tombstones").read_text() == "erased\n"
    (home / "pg").rmdir()
    backups._take_place(part, home)
    assert not part.exists()
    assert (home / "tombstones").read_text() == "erased\n"


def test_a_home_on_which_a_disk_is_mounted_is_refused_before_anything_is_done(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "disk"
    home.mkdir()
    words = f"mount -t tmpfs none {home} && {SIMILIS} restore {whole} --home {home}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode != 4:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()[-200:]}")
    assert "restore to a folder below it" in done.stderr


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty installation."""
    home = Home.at(tmp_path / "home")
    home.secret("pseudonym.key")
    with Postgres(home.path) as server:
        commands.write_secrets(home, {"database": server.url, "broker": ""})
        setup.prepare(server.url, None, Blobs(home / "blobs"))
    return home


def test_a_second_one_to_the_same_folder_is_refused_while_the_first_is_being_made(home: Home, tmp_path: Path) -> None:
    kept, new = tmp_path / "kept", tmp_path / "new"
    refused = []

    def once_more(words: str) -> None:
        with pytest.raises(Conflict, match="another backup or restore is writing this folder"):
            if "copying the files" in words:  # the dump is done, and the home's lock is free again
                backups.backup(home.path, kept, print)
            else:
                backups.restore(kept, new, print)
        refused.append(words)

    backups.backup(home.path, kept, lambda words: once_more(words) if "copying the files" in words else None)
    backups.restore(kept, new, lambda words: once_more(words) if "restoring" in words else None)
    assert len(refused) == 2
    assert (new / "pg/PG_VERSION").exists()
    assert sorted(os.listdir(tmp_path)) == ["home", "kept", "new"]


def test_a_folder_that_cannot_be_locked_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network share without locks."""

    def without_locks(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(backups.fcntl, "flock", without_locks)  # type: ignore[attr-defined]
    with pytest.raises(Invalid, match=r"cannot be locked \(No locks available\)"):
        backups.backup(tmp_path / "home", tmp_path / "kept", print)
    assert list(tmp_path.iterdir()) == []


def test_what_a_backup_that_was_killed_has_left_is_in_nobodys_way(home: Home, tmp_path: Path) -> None:
    (tmp_path / ".kept.part").mkdir()
    (tmp_path / ".kept.part/stray").touch()
    (tmp_path / ".kept.part.lock").touch()
    backups.backup(home.path, tmp_path / "kept", print)
    assert backups.check(tmp_path / "kept")["files"].keys() == {backups.DUMP, backups.KEY, "tombstones"}
    assert sorted(os.listdir(tmp_path)) == ["home", "kept"]


def test_a_home_that_is_a_link_is_restored_where_the_link_leads(home: Home, tmp_path: Path) -> None:
    backups.backup(home.path, tmp_path / "kept", print)
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk)
    assert backups.restore(tmp_path / "kept", link, print).points == 0
    assert link.readlink() == disk
    assert (disk / "pg/PG_VERSION").exists()
    assert (disk / "database.url").read_text() == Postgres(disk).url


def test_a_file_that_was_sent_and_has_changed_in_the_backup_is_restored_and_said(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.secret("pseudonym.key")
    blobs = Blobs(home / "blobs")
    place = blobs.place(blake3(b"sent").digest())
    place.parent.mkdir(parents=True)
    place.write_bytes(b"sent")
    with Postgres(home.path) as server:
        commands.write_secrets(home, {"database": server.url, "broker": ""})
        setup.prepare(server.url, None, blobs)
        seen = Seen(path=os.fsencode(place), size=4, mtime_ns=place.stat().st_mtime_ns)
        store = Store(server.url)
        with store.transaction() as db:
            files.record(db, [files.Record(seen=seen, outcome="empty", digest=blake3(b"sent").digest())], None)
        store.close()
    said: list[str] = []
    backups.backup(home.path, tmp_path / "kept", said.append)
    assert not any("have changed" in words for words in said)
    copy = tmp_path / "kept" / place.relative_to(home.path)
    assert copy.stat().st_mtime_ns == seen.mtime_ns
    assert backups.restore(tmp_path / "kept", tmp_path / "new", print).findings == []
    copy.write_bytes(b"sEnt")
    (finding,) = backups.restore(tmp_path / "kept", tmp_path / "newer", print).findings
    assert (finding.kind, finding.count, finding.ids) == ("file-changed", 1, [place.name[:16]])


def test_a_backup_of_a_file_that_has_changed_is_made_and_says_so(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "store")
    for content, digest in ((b"sent", blake3(b"sent").digest()), (b"rot", blake3(b"root").digest())):
        blobs.place(digest).parent.mkdir(parents=True)
        blobs.place(digest).write_bytes(content)
    copied = backups._copy_blobs([blobs.root], tmp_path / "out")
    assert copied["changed"] == [blake3(b"root").hexdigest()[:16]]
    assert (copied["count"], copied["bytes"]) == (2, 7)


def test_what_is_told_of_a_program_that_failed_is_its_error_and_no_warning_before_it(
    tmp_path: Path, database_url: str
) -> None:
    """A server warns on connection once the machine's collation library has changed."""
    backups._dump(database_url, tmp_path / "dump")
    store = Store(database_url)
    with store.transaction() as db:
        db.execute(sa.text("UPDATE pg_database SET datcollversion = '0' WHERE datname = current_database()"))
    store.close()
    with pytest.raises(Unavailable, match=r"pg_restore failed: pg_restore: error: .* already exists"):
        backups._postgres("pg_restore", database_url, "--exit-on-error", str(tmp_path / "dump"))


def test_the_database_is_reached_with_the_options_of_its_address(tmp_path: Path, database_url: str) -> None:
    with pytest.raises(Unavailable, match='role "nobody" does not exist'):
        backups._dump(f"{database_url}&options=-crole%3Dnobody", tmp_path / "dump")
    with pytest.raises(Unavailable, match=r"sslmode.*none-such"):
        backups._dump(f"{database_url}&sslmode=none-such", tmp_path / "dump")


def test_a_secret_of_the_address_is_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, seen = tmp_path / "pg_dump", tmp_path / "seen"
    program.write_text(f'#!/bin/sh\nprintf \'%s\\n\' "$@" "PGPASSWORD=$PGPASSWORD" > {seen}\n')
    program.chmod(0o700)
    monkeypatch.setattr(backups, "binaries", lambda: tmp_path)
    options = "sslmode=verify-full&sslrootcert=/a/ca.pem&sslpassword=hidden"
    backups._postgres("pg_dump", f"postgresql+psycopg://me:a%40b@db:5433/rows?{options}")
    database, *others = seen.read_text().splitlines()
    assert set(database.removeprefix("--dbname=").split()) == {
        "host=db", "port=5433", "user=me", "dbname=rows", "sslmode=verify-full", "sslrootcert=/a/ca.pem"
    }  # fmt: skip
    assert others == ["--no-password", "PGPASSWORD=a@b"]


def test_a_restore_that_fails_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    """The dump is not valid."""
    home = tmp_path / "home"
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Exception, match="pg_restore failed"):
        backups.restore(whole, home, print)
    assert sorted(os.listdir(tmp_path)) == before
