"""Backup and restore of one home: the database, sent files, models, the pseudonym key and the tombstones.

A backup holds no vectors: a restore writes them again from the stored encodings. Images that were erased after the
backup are erased again before anything is served.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from blake3 import blake3
from psycopg.conninfo import make_conninfo

from migrations import run as migrations
from services.embedded import attach, commands
from services.embedded.home import Home, write
from services.embedded.postgres import MAJOR, Postgres, binaries
from services.embedded.stack import connects
from shared import process
from shared.config import Settings
from shared.disk import exists, sync
from shared.encoder import cards
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.imaging.pseudonym import KEY_BYTES
from shared.pipeline import arrive, lifecycle, project, reconcile, tombstone_file
from shared.pipeline.reconcile import NAMED, SHOWN, Finding
from shared.runtime import Runtime
from shared.store import checks, files, generations, pseudonyms
from shared.store.blobs import MIB, SUFFIX, Blobs, digest_of, has_moved
from shared.store.session import Store
from shared.version import software

MANIFEST, DUMP, KEY, MODELS, BLOBS = "manifest.json", "database.dump", "pseudonym.key", "models", "blobs"
FORMAT = 1
_COUNTS = ("study", "image", "encoding", "generation", "tombstone")

Say = Callable[[str], None]


def backup(home: Path, folder: Path, say: Say) -> dict[str, Any]:
    """Write a backup and return its manifest: the folder is complete and durable, or does not exist.

    Safe during intake. The backup holds the pseudonym key, so protect it like the home.

    Raises: `Conflict` where the folder exists or is being made, or for another pseudonym key than the database's;
    `Invalid` where it cannot be locked or without a pseudonym key, `NotFound` where the home has no installation or the
    model of an open generation is missing, `Unavailable` where the database or a store of sent files is away.
    """
    folder = folder.absolute()
    part = folder.with_name(f".{folder.name}.part")
    with _making(part):
        if folder.exists():
            raise Conflict("the folder for the backup exists already")
        part.mkdir(mode=0o700)
        with _database(home) as (settings, store):
            key = settings.pseudonym_key.get_secret_value()
            if not key:
                raise Invalid("there is no pseudonym key to back up: set SIMILIS_PSEUDONYM_KEY as for the server")
            manifest = _about(store)
            if manifest["schema"] >= "0015":  # before, no key was bound to a database
                with store.reading() as connection:
                    pseudonyms.check(connection, key.encode())
            say("dumping the database")
            _dump(settings.database.url.get_secret_value(), part / DUMP)
            say("copying the models")
            _copy_models(store, settings.models_dir, part / MODELS)
            with store.transaction() as db:
                tombstone_file.write(db, part / tombstone_file.NAME)
            write(part / KEY, key)
            manifest["settings"] = settings.model_dump(mode="json", exclude={"home", "models"})
            sent_to = _sent_to(store, settings.blobs_dir.absolute())
        manifest["files"] = {str(path.relative_to(part)): _digest(path) for path in _files(part)}
        say("copying the files that were sent to Similis")
        manifest["blobs"] = _copy_blobs(sent_to, part / BLOBS)  # after the dump, which names them
        if changed := manifest["blobs"]["changed"]:
            say(f"{len(changed)} of them have changed since they were taken in: see `similis doctor --deep`")
        write(part / MANIFEST, json.dumps(manifest, indent=2))
        for place in [*(p for p in part.rglob("*") if p.is_dir()), part]:
            sync(place)
        part.rename(folder)
        sync(folder.parent)
    return manifest


@contextmanager
def _making(part: Path) -> Iterator[None]:
    """Hold a lock for making this folder; the folder is removed before the block and, unless renamed, after it.

    Raises: `Conflict` where another process holds the lock, `Invalid` where the file system has no locks.
    """
    lock = part.with_name(f"{part.name}.lock")  # a file beside the folder, as NFS cannot lock folders
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), lock.stat())  # the previous holder may have removed it
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError as error:  # some network shares have no locks
            lock.unlink(missing_ok=True)
            raise Invalid(
                f"this folder cannot be locked ({error.strerror}), and two processes could write to it at once: "
                "choose one on another file system"
            ) from None
        if not ours:
            raise Conflict("another backup or restore is writing this folder")
        try:
            shutil.rmtree(part, ignore_errors=True)
            yield
        finally:
            shutil.rmtree(part, ignore_errors=True)
            lock.unlink(missing_ok=True)


@contextmanager
def _database(home: Path) -> Iterator[tuple[Settings, Store]]:
    """An installation's settings and database; an embedded PostgreSQL that does not run is started for the block."""
    settings = attach.settings(home)
    with ExitStack() as stack:
        if (home / "pg").exists() and not Home(home.resolve()).locked:
            place = Home.at(home)
            stack.enter_context(place.lock())
            stack.enter_context(Postgres(place.path))
        yield settings, stack.enter_context(closing(Store(settings.database.url.get_secret_value(), pool_size=1)))


def _dump(url: str, out: Path) -> None:
    _postgres("pg_dump", url, "--format=custom", "--compress=6", "--no-owner", "--no-privileges", f"--file={out}")
    with out.open("rb") as file:
        os.fsync(file.fileno())


def _postgres(program: str, url: str, *arguments: str) -> None:
    """Run one of the wheel's PostgreSQL programs on the database at `url`. Raises: `Unavailable`.

    Secrets are not passed as arguments, which other users can see; so the password of a TLS key cannot be passed.
    """
    parts = sa.make_url(url)
    _, given = parts.get_dialect()().create_connect_args(parts)
    env = {"PGPASSWORD": given.pop("password", ""), "PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    given.pop("sslpassword", None)
    argv = [str(binaries() / program), f"--dbname={make_conninfo(**given)}", "--no-password", *arguments]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        cause = next((line for line in said if "error:" in line), said[0])  # warnings may come first
        raise Unavailable(f"{program} failed: {cause}")


def _about(store: Store) -> dict[str, Any]:
    with store.reading() as connection:
        schema = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        counts = {
            name: connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one()  # noqa: S608 - constants
            for name in _COUNTS
        }
    return {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "schema": schema,
        "postgres": MAJOR,
        "similis": software(),
        "python": sys.version.split()[0],
        "counts": counts,
    }


def _copy_models(store: Store, models: Path, out: Path) -> None:
    """Copy every model with a card. Cards never change, so the copies are consistent.

    Raises: `NotFound` where a model of an open generation is not in the models folder.
    """
    out.mkdir(mode=0o700)
    for folder in cards.folders(models) if models.is_dir() else ():
        shutil.copytree(folder, out / folder.name)
    with store.transaction() as db:
        served = {one.model_id for one in generations.opened(db)}
        needed = {model.folder for model in generations.models(db) if model.id in served}
    if lacking := sorted(name for name in needed if not (out / name / cards.CARD).exists()):
        raise NotFound(f"the model {', '.join(lacking)} is not in {models}: set SIMILIS_MODELS as for the server")
    for path in _files(out):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sent_to(store: Store, own: Path) -> list[Path]:
    """The present folder of sent files, and the earlier ones that rows still name.

    Raises: `Unavailable` where an earlier folder is away, because the backup would be incomplete.
    """
    with store.transaction() as db:
        sent = [Path(os.fsdecode(root)) for root in files.sent_to(db)]
        gone = [str(one) for one in sent if not Blobs(one).stands and not has_moved(db, Blobs(one), Blobs(own))]
    if gone:
        raise Unavailable(f"files were sent to {', '.join(gone)}, which is missing or empty: make it available first")
    return list(dict.fromkeys([own, *sent]))


def _copy_blobs(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Copy every sent file, including those that came after the dump; each is named by its digest.

    A file with another digest than its name is copied all the same, being the only copy, and listed as changed.
    """
    out.mkdir(mode=0o700)
    count = size = 0
    changed = []
    for place in (place for folder in folders for place in Blobs(folder).every()):
        copy = out / place.relative_to(place.parents[2])
        if copy.exists():
            continue  # the same content, from two folders
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            digest = _copy_blob(place, copy)
        except FileNotFoundError:
            continue  # erased meanwhile
        if digest != digest_of(place):
            changed.append(place.name[:NAMED])
        count, size = count + 1, size + copy.stat().st_size
    return {
        "root": str(folders[0]), "roots": [str(folder) for folder in folders], "count": count, "bytes": size,
        "changed": changed,
    }  # fmt: skip


def _copy_blob(place: Path, copy: Path) -> bytes:
    """Copy the file durably with its modification time, which its row also holds; returns the copy's digest."""
    digest = blake3()
    with place.open("rb") as source, copy.open("xb") as target:
        while chunk := source.read(MIB):
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.utime(target.fileno(), ns=(0, os.fstat(source.fileno()).st_mtime_ns))
        os.fsync(target.fileno())
    return digest.digest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The result of a restore: counts of images erased again and points written, and the findings of its checks."""

    erased: int
    points: int
    findings: list[Finding]


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a complete backup that this version can read.

    Of the sent files only number and total size are checked; `restore` compares their digests.

    Raises: `NotFound` without a backup, `Invalid` where a file is missing or changed, `Conflict` for a newer version's
    backup.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, schema = dict(manifest["files"]), manifest["schema"]
        newer = int(manifest["format"]) > FORMAT or int(manifest["postgres"]) > MAJOR
        sent = manifest.get("blobs")
        told = sent and (sent["count"], sent["bytes"])
    except FileNotFoundError:
        raise NotFound("there is no backup in this folder") from None
    except (ValueError, KeyError, TypeError):
        raise Invalid("the manifest of this backup is damaged") from None
    if newer or schema not in migrations.known():
        raise Conflict("this backup was made by a newer version of Similis: restore it with that version")
    wrong = [name for name, was in files.items() if not (folder / name).is_file() or _digest(folder / name) != was]
    if wrong or not {DUMP, KEY, tombstone_file.NAME} <= files.keys():
        raise Invalid(f"the backup is damaged: {', '.join(wrong) or 'files are missing'}")
    if (folder / KEY).stat().st_size < KEY_BYTES:
        raise Invalid("the backup holds no pseudonym key, but its database was created with one")
    sizes = [path.stat().st_size for path in (folder / BLOBS).glob(f"??/??/*{SUFFIX}")]
    if told and (len(sizes), sum(sizes)) != told:
        raise Invalid("the backup is damaged: files that were sent to Similis are missing or truncated")
    return manifest


def restore(folder: Path, home: Path, say: Say, *, tombstones: Path | None = None, verify: bool = False) -> Restored:
    """Make a home from the backup, ready for `similis up`; an error leaves the place of the home as it was.

    Args:
        tombstones: the file `tombstones` of the lost home, which names what was erased after the backup. Such a file
            in the new home's folder is used, too.
        verify: compare every file and every vector afterwards. Without it, only changed sent files are found.

    Raises: as `check`; `Conflict` where the home is not empty, mounted, in use or being made, `NotFound` where the
    tombstone file does not exist.
    """
    manifest = check(folder)
    home = home.expanduser().resolve()
    _check_empty(home)
    if tombstones is not None and not tombstones.is_file():
        raise NotFound("there is no such tombstone file")
    if home.is_mount():
        raise Conflict("a disk is mounted on this folder, so a home cannot replace it: restore to a folder below it")
    part = home.with_name(f".{home.name}.restoring")
    with _making(part):
        _check_empty(home)  # again: another restore may just have ended
        place = Home.at(part)
        shutil.copytree(folder / MODELS, place / MODELS, dirs_exist_ok=True)
        changed = []
        if exists(folder / BLOBS):
            say("copying the files that were sent to Similis")
            changed = _copy_blobs([folder / BLOBS], place / BLOBS)["changed"]
        write(place / KEY, (folder / KEY).read_text(encoding="utf-8"))
        known = [
            path
            for path in (tombstones, home / tombstone_file.NAME, folder / tombstone_file.NAME)
            if path and exists(path)
        ]
        with place.lock(), Postgres(place.path) as server, closing(Store(server.url, pool_size=1)) as store:
            _restore_database(server, folder, say)
            if sent := manifest.get("blobs"):
                for root in sent.get("roots", [sent["root"]]):
                    _rename_blobs(store, root, place / BLOBS)
            found = _fill(place, server, known, say, verify=verify)
            if changed and not verify:  # `verify` finds them itself
                found.findings.append(Finding(kind="file-changed", count=len(changed), ids=changed[:SHOWN]))
            _rename_blobs(store, str(place / BLOBS), home / BLOBS)
        shutil.rmtree(place / "run", ignore_errors=True)
        _take_place(part, home)
        Home.at(home).keep("database.url", Postgres(home).url)  # the socket's path has changed
    return found


def _check_empty(home: Path) -> None:
    left = {path.name for path in home.iterdir()} if exists(home) else set()
    if left - {tombstone_file.NAME}:
        raise Conflict("the home is not empty")


def _take_place(part: Path, home: Path) -> None:
    """Rename the restored home to its place, which is absent or an empty folder.

    A tombstone file there was already replayed and is removed; if the rename fails it is put back.

    Raises: `Conflict` where the rename fails.
    """
    stood = home / tombstone_file.NAME
    left = stood.read_bytes() if exists(stood) else None
    stood.unlink(missing_ok=True)
    try:
        part.rename(home)
    except OSError as error:
        if left is not None:
            stood.write_bytes(left)
        raise Conflict(
            f"the restored home cannot be moved to its place ({error.strerror}): is the folder in use?"
        ) from None
    sync(home.parent)


def _restore_database(server: Postgres, folder: Path, say: Say) -> None:
    """Restore the dump and migrate it to this version's schema."""
    say("restoring the database")
    arguments = ("--exit-on-error", "--no-owner", "--no-privileges", "--single-transaction", str(folder / DUMP))
    _postgres("pg_restore", server.url, *arguments)
    migrations.upgrade(server.url)


def _fill(place: Home, server: Postgres, known: list[Path], say: Say, *, verify: bool) -> Restored:
    """Replay the tombstones, then write the vectors, so that erased images never reach an index."""
    socket = place.sockets / "vectors.sock"
    commands.write_secrets(place, {"database": server.url, "broker": ""})
    with _vectors(place, socket), closing(Runtime(attach.settings(place.path))) as runtime:
        with runtime.transaction() as db:
            checks.release_all_leases(db)
            erased = sum(tombstone_file.replay(db, path, runtime.rules.secret) for path in known)
            tombstone_file.write(db, place / tombstone_file.NAME)
        site = replace(runtime.site, blobs=Blobs(place / BLOBS))
        since = arrive.strays(site.begin, site.inspector, site.blobs)  # acknowledged files that came after the dump
        arrive.recover(site.begin, site.inspector, site.blobs, site.rules, since)
        say("writing the vectors from their stored encodings")
        points = _rebuild(runtime, say)
        findings = reconcile.examine(site, deep=True, say=lambda name: say(f"checking {name}")) if verify else []
    return Restored(erased=erased, points=points, findings=findings)


def _rename_blobs(store: Store, old: str, new: Path) -> None:
    """Change the rows' paths of sent files from the old folder to the new one."""
    with store.transaction() as db:
        files.move(db, os.fsencode(old), os.fsencode(new))


@contextmanager
def _vectors(place: Home, socket: Path) -> Iterator[None]:
    """Run the vector engine on this home during the block. Raises: `Unavailable`."""
    argv = commands.vectors(place / "vectors", f"unix://{socket}", place / "vectors.key")
    with (place / "logs/vectors.log").open("ab") as output:
        child = process.spawn(argv, cwd=place.path, output=output)
    try:
        if not process.until(lambda: process.has_ended(child) or connects(socket), 60.0, 0.05) or child.poll():
            raise Unavailable("the vector engine did not start")
        yield
    finally:
        process.stop(child, (signal.SIGTERM, 30.0))


def _rebuild(runtime: Runtime, say: Say) -> int:
    """Rebuild the collection of every open generation from its ledger; returns the number of applied rows."""
    with runtime.transaction() as db:
        for one in generations.every(db):
            if one.state == "open":
                lifecycle.begin_again(db, runtime.indexes, one)
    points, left = 0, True
    while left:
        done, left = project.drain(runtime.transaction, runtime.index, gather_s=0)
        points += done
        say(f"{points} points written")
    return points
