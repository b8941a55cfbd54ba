from shared.pipeline import turns
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task


@task(Job.PULL)
def pull_studies() -> None:
    """Advance one due backfill for a while; send the message again if work is left."""
    rt = runtime()
    most = rt.sandbox.limits.file_bytes
    if turns.advance_pull(rt.transaction, rt.sandbox, rt.blobs, rt.access, rt.rules, most=most):
        rt.queue.ring(Job.PULL)
