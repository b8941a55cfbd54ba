from shared.log import get
from shared.pipeline import arrive, encode, turns
from shared.types import Job
from workers.runtime import runtime
from workers.tasks import task

log = get(__name__)


@task(Job.ENCODE)
def encode_images() -> None:
    """Settle due images for a while; send the message again if some were settled, as more may be due."""
    rt = runtime()
    if settled := encode.drain(rt.transaction, rt.sandbox, rt.encoder, rt.effort):
        log.info("images_handled", count=settled)
        rt.queue.ring(Job.ENCODE)


@task(Job.SCAN)
def scan_folders() -> None:
    """Advance one due scan, then read sent files again whose retry was requested; a watch rests between rounds."""
    rt = runtime()
    every_s = rt.settings.intake.watch_interval_s
    if turns.advance_scan(rt.transaction, rt.sandbox, rt.rules, watch_rules=rt.watch_rules, every_s=every_s):
        rt.queue.ring(Job.SCAN)
    arrive.reread(rt.transaction, rt.sandbox, rt.rules)
