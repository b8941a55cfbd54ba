from shared.pipeline import project
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task


@task(Job.PROJECT)
def project_ledger() -> None:
    """Apply what is pending; ring again if there may be more."""
    rt = runtime()
    _, left = project.drain(rt.transaction, rt.index)
    if left:
        rt.queue.ring(Job.PROJECT)
