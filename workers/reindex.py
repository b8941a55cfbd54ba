from shared.log import get
from shared.pipeline import canary, catchup, reindex
from shared.types import Job
from workers.heartbeat import still_here
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)


@task(Job.REINDEX)
def build_generations() -> None:
    """Carry on one due build, and purge what was retired; ring again if there may be more."""
    rt = runtime()
    reindex.purge(rt.transaction, rt.indexes)
    if reindex.advance(rt.transaction, rt.index, alive=still_here):
        rt.queue.ring(Job.REINDEX)


@task(Job.CANARY)
def ask_canary() -> None:
    """Ask the published index a few questions whose answers are known; behind builds, never beside one."""
    rt = runtime()
    canary.ask(rt.transaction, rt.index, rt.settings.qdrant.canary_s)


@task(Job.CATCH_UP)
def catch_up() -> None:
    """Encode for a while what a new model has not encoded yet; ring again if there may be more."""
    rt = runtime()
    if encoded := catchup.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort):
        log.info("images_encoded_beside", count=encoded)
        rt.queue.ring(Job.CATCH_UP)
