"""The sweep: send messages for due work again, as earlier ones may have been lost."""

from sqlalchemy.orm import Session

from shared.log import get
from shared.pipeline import encode
from shared.pipeline.encode import Effort
from shared.pipeline.reindex import GRACE_S
from shared.store import canaries, catchup, files, generations, images, ledger, operations
from shared.store.session import enqueue
from shared.types import Job, OperationKind

log = get(__name__)


def ring_for_due(db: Session, effort: Effort, canary_s: float = 0) -> None:
    """Send a message for each kind of work that could be claimed now, and give up what failed too often.

    Superfluous messages do no harm.
    """
    encode.give_up(db, effort)
    for number in operations.exhaust(db):
        log.error("operation_given_up", operation_id=str(number))
    operations.finish_settled(db)
    if images.any_due(db):
        enqueue(db, Job.ENCODE)
    if operations.due(db, OperationKind.SCAN) or files.again(db, 0, 1):
        enqueue(db, Job.SCAN)
    if operations.due(db, OperationKind.PULL):
        enqueue(db, Job.PULL)
    if operations.due(db, OperationKind.REINDEX) or generations.purgeable(db, GRACE_S):
        enqueue(db, Job.REINDEX)
    if operations.due(db, OperationKind.REPLAY):
        enqueue(db, Job.REPLAY)
    if canaries.due(db, canary_s):
        enqueue(db, Job.CANARY)
    if catchup.asking(db):
        enqueue(db, Job.CATCH_UP)
    if ledger.any_due(db) or operations.due(db, OperationKind.ERASE):
        enqueue(db, Job.PROJECT)
