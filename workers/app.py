"""The Celery app. Each task takes the runtime, calls the pipeline, and sends its message again if work is left.

Messages are acknowledged early: the row in Postgres, not the message, guarantees the work, so late acknowledgement
would gain nothing, and poison loops and stuck messages cannot occur.
"""

import warnings
from typing import Any

from celery import Celery, signals
from celery.platforms import SecurityWarning

from shared.config import need, read
from shared.errors import Invalid
from shared.log import configure
from shared.queue import QUEUES
from shared.types import Job

SWEEP_S = 2.0
SWEEP_LIFE_S = 60.0  #: a sweep's message expires after this; longer than it may have to wait behind a task
TIDY_S = 3600.0


def _every(job: Job, seconds: float, *, expires_s: float) -> dict[str, Any]:
    return {"task": job.value, "schedule": seconds, "options": {"queue": QUEUES[job], "expires": expires_s}}


warnings.filterwarnings("ignore", category=SecurityWarning)  # about pickle as root: only JSON is accepted

settings = read("similis worker")
app = Celery(
    "similis",
    include=[
        "workers.ingest",
        "workers.index",
        "workers.maintenance",
        "workers.pull",
        "workers.quarantine",
        "workers.reindex",
    ],
)
app.conf.update(
    broker_url=settings.broker.url.get_secret_value(),
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    result_backend=None,
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": 3600,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "socket_timeout": 30,
        "socket_keepalive": True,
        "health_check_interval": 25,
    },
    worker_soft_shutdown_timeout=30,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,
    task_default_queue="ingest",
    timezone="UTC",
    beat_schedule={
        "sweep": _every(Job.SWEEP, SWEEP_S, expires_s=SWEEP_LIFE_S),
        "tidy": _every(Job.TIDY, TIDY_S, expires_s=TIDY_S),
    },
)


@signals.worker_init.connect
def _check_settings(**_: object) -> None:
    """Refuse to start a worker that could do no work, or whose admission rules are wrong: every scan would fail."""
    from shared.pipeline import admission

    need("similis worker", settings, "SIMILIS_BROKER__URL", "SIMILIS_DATABASE__URL", "SIMILIS_PSEUDONYM_KEY")
    try:
        admission.read(settings.intake.admission)
    except Invalid as error:
        raise SystemExit(f"similis worker: {error}") from None


@signals.beat_init.connect
def _check_broker(**_: object) -> None:
    need("similis beat", settings, "SIMILIS_BROKER__URL")


@signals.setup_logging.connect
def _logs(**_: object) -> None:
    configure("worker", json=settings.log_json, level=settings.log_level)
