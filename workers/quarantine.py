from shared.pipeline import replay
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task


@task(Job.REPLAY)
def replay_thresholds() -> None:
    """Advance one due replay; send the message again if work may be left."""
    rt = runtime()
    if replay.advance(rt.transaction):
        rt.queue.ring(Job.REPLAY)
