from shared.log import get
from shared.pipeline import project
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)


@task(Job.PROJECT)
def project_ledger() -> None:
    """Apply pending ledger rows; send the message again if rows may be left."""
    rt = runtime()
    applied, left = project.drain(rt.transaction, rt.index)
    if applied:
        log.info("points_applied", count=applied)
    if left:
        rt.queue.ring(Job.PROJECT)
