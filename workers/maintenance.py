from functools import cache

from shared.log import get
from shared.pipeline import arrive, sweep, tombstone_file
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)


@task(Job.SWEEP)
def ring_again() -> None:
    """Ring for whatever has stood still: lost messages, dead workers, ended rests."""
    rt = runtime()
    with rt.transaction() as db:
        sweep.ring_for_due(db, rt.effort, rt.settings.qdrant.canary_s)
    with rt.transaction() as db:  # apart: a home that cannot be written to must not silence the bells
        tombstones().update(db)


@task(Job.TIDY)
def tidy() -> None:
    """Sent files that were erased are gone, and those that no row knows are put aside."""
    rt = runtime()
    if gone := arrive.sweep(rt.transaction, rt.sandbox, rt.blobs, rt.rules.secret):
        log.info("orphan_files_removed", count=gone)


@cache
def tombstones() -> tombstone_file.TombstoneFile:
    return tombstone_file.TombstoneFile(runtime().settings.home / tombstone_file.NAME)
