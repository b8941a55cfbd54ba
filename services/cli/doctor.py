"""`similis doctor`: finds inconsistencies and repairs them on request. It needs the database and the index."""

import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.client import HomeFolder, folder_of
from services.cli.ingest import advise
from services.cli.terminal import AsJson, say, table, tell, tell_json
from shared.errors import Unavailable

if TYPE_CHECKING:
    from shared.pipeline.reconcile import Finding
    from shared.store.blobs import Blobs

FINDINGS = 6  #: the exit code
ROOM_BYTES = 2 << 30  #: less free space is reported: intake stops soon
SECRETS = ("api.key", "pseudonym.key", "vectors.key", "database.password", "database.url", "broker.url")

SAID = {
    "blob-without-row": "a file that was sent to Similis and has no row in the database",
    "calibration-foreign": "judged by a threshold of a model that did not encode the image, or of another modality",
    "collection-damaged": "the index cannot open the collection of an open generation",
    "collection-missing": "the collection of an open generation is gone",
    "collection-stray": "a collection that belongs to no generation",
    "disk-low": "a disk is nearly full: intake stops soon, or has stopped",
    "encoding-invalid": "a stored encoding is not a usable vector",
    "encoding-missing": "the row says encoded, but no encoding of the published model is stored",
    "erased-remains": "an encoding or a thumbnail of an erased image is still stored",
    "file-changed": "the file has changed since it was taken in",
    "file-missing": "the file is gone; its image can still be found",
    "file-without-image": "a file that was taken in and has no image",
    "job-exhausted": "work that was given up after several attempts",
    "ledger-missing": "an encoded image without a ledger row in an open generation",
    "ledger-orphan": "the ledger lists an image that must not be found",
    "ledger-stale": "the ledger lists another revision than the image has",
    "lease-expired": "work whose lease has expired, or that rests for months since a wrong clock was set back",
    "model-changed": "the folder of a model is gone, or does not hold the registered one",
    "operation-stuck": "an operation that no worker continues",
    "payload-drift": "a point's payload differs from its row",
    "point-missing": "the ledger says applied, but the index does not hold the point",
    "point-phantom": "the index holds a point that the ledger does not list",
    "point-stale": "the index holds another revision of a point than the ledger",
    "point-zero": "the index holds a vector that is zero or not finite",
    "pointer-missing": "no generation is published",
    "pointer-retired": "the published generation is retired",
    "recall-low": "the recall of the published index is clearly below its gate: build another generation",
    "secret-open": "other users can read a secret file",
    "tombstoned": "an erased image is still in the database",
    "vector-differs": "the index holds another vector than the encoding",
    "code-differs": "the index holds another hash code than the encoding",
    "wrong-fingerprint": "the index holds a vector of another model",
}


def register(app: typer.Typer) -> None:
    """Add the command `doctor`."""
    app.command()(doctor)


def doctor(
    home: HomeFolder = None,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired; workers do the rest.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every file and compare every vector.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare files, rows, ledgers, indexes, jobs and tombstones; exit 6 if something does not agree.

    Items are shown by internal ids only. Safe during intake. With --repair, exit 0 if everything was repaired.
    """
    from services.embedded.attach import settings_of_running
    from shared.pipeline import thresholds
    from shared.pipeline.reconcile import examine
    from shared.runtime import Runtime

    folder = folder_of(home)
    with closing(Runtime(settings_of_running(folder))) as runtime:
        found = [*_machine(folder, runtime.blobs, repair=repair)]
        try:
            found += examine(runtime.site, repair=repair, deep=deep, say=lambda name: say(f"checking {name}"))
            with runtime.transaction() as db:
                model, wanting = thresholds.wanting(db)
        except Unavailable:  # often because of what was found on this machine, such as a full disk
            if found:
                _tell(found, as_json=as_json, repair=repair, complete=False)
            raise
    _tell(found, as_json=as_json, repair=repair, complete=True)
    advise(model, wanting)
    if any(not (one.repaired and repair) for one in found):
        raise typer.Exit(FINDINGS)


def _tell(found: "list[Finding]", *, as_json: bool, repair: bool, complete: bool) -> None:
    if as_json:
        tell_json({"findings": [asdict(one) for one in found], "repaired": repair, "complete": complete})
    else:
        show(found)


def show(found: "list[Finding]") -> None:
    if not found:
        tell("nothing: files, rows, ledgers and indexes agree")
        return
    rows = [
        [one.kind, one.count, SAID[one.kind], "yes" if one.repaired else "", ", ".join(map(str, one.ids))]
        for one in found
    ]
    table(("finding", "count", "what it means", "repaired", "ids"), rows, right=("count",))


def _machine(home: Path, blobs: "Blobs", *, repair: bool) -> "Iterator[Finding]":
    """Findings about this machine: secrets that others may read, and low disk space of the home or the blob store."""
    from shared.pipeline.reconcile import Finding

    names = [name for name in SECRETS if (home / name).exists() and stat.S_IMODE((home / name).stat().st_mode) & 0o077]
    for name in names if repair else ():
        (home / name).chmod(0o600)
    if names:
        yield Finding(kind="secret-open", count=len(names), ids=[*names], repaired=repair)
    low = {
        "home": home.is_dir() and shutil.disk_usage(home).free < ROOM_BYTES,
        "store": blobs.root.is_dir() and not blobs.has_room,
    }
    if full := [place for place, is_low in low.items() if is_low]:
        yield Finding(kind="disk-low", count=len(full), ids=[*full])
