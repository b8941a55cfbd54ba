from functools import cache

from shared.log import get
from shared.pipeline import arrive, sweep, tombstone_file
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)


@task(Job.SWEEP)
def ring_again() -> None:
    """The sweep: send messages for work that stands still after a lost message, a dead worker or an ended rest."""
    rt = runtime()
    with rt.transaction() as db:
        sweep.ring_for_due(db, rt.effort, rt.settings.qdrant.canary_s)
    with rt.transaction() as db:  # a transaction of its own: an unwritable home must not suppress the messages
        tombstones().update(db)


@task(Job.TIDY)
def tidy() -> None:
    """Delete erased sent files, and move sent files without a row to `lost/`."""
    rt = runtime()
    if gone := arrive.sweep(rt.transaction, rt.sandbox, rt.blobs, rt.rules.secret):
        log.info("orphan_files_removed", count=gone)


@cache
def tombstones() -> tombstone_file.TombstoneFile:
    return tombstone_file.TombstoneFile(runtime().settings.home / tombstone_file.NAME)
