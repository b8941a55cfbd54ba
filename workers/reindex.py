from shared.log import get
from shared.pipeline import canary, catchup, reindex
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)


@task(Job.REINDEX)
def build_generations() -> None:
    """Purge retired generations, then advance one due build; send the message again if work may be left."""
    rt = runtime()
    reindex.purge(rt.transaction, rt.indexes)
    if reindex.advance(rt.transaction, rt.index):
        rt.queue.ring(Job.REINDEX)


@task(Job.CANARY)
def ask_canary() -> None:
    """Measure the published index's recall by a few exact and usual searches; runs in turn with builds."""
    rt = runtime()
    canary.ask(rt.transaction, rt.index, rt.settings.qdrant.canary_s)


@task(Job.CATCH_UP)
def catch_up() -> None:
    """Encode stored images by a new model for a while; send the message again if some were encoded."""
    rt = runtime()
    if encoded := catchup.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort):
        log.info("images_encoded_beside", count=encoded)
        rt.queue.ring(Job.CATCH_UP)
