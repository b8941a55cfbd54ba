"""The rows of a pull from another archive: which instances exist here already, and which were not received."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import LOST, Reason
from shared.store import arrivals, files
from shared.store.arrivals import Arrival, Origin
from shared.store.files import Record, Seen
from shared.store.studies import WITHOUT_FILE
from shared.types import FileOutcome


def held(db: Session, sop_uids: Sequence[str]) -> set[str]:
    """The UIDs of existing images, also rejected ones: they need not be pulled again, unless their files are lost.

    Erased images are not among them, because their UIDs are no longer stored.
    """
    rows = db.execute(
        sa.text(f"SELECT i.sop_uid FROM image i WHERE i.sop_uid = ANY(CAST(:uids AS text[])) AND NOT {WITHOUT_FILE}"),
        {"uids": list(sop_uids), "lost": sorted(LOST)},
    )
    return {row.sop_uid for row in rows}


def turned_away(db: Session, why: Mapping[str, tuple[FileOutcome, str]], origin: Origin) -> None:
    """Record the outcome and reason of each instance under its URL at the archive."""
    records = [
        Record(seen=Seen(path=place.encode(), size=0, mtime_ns=0), outcome=outcome, reason=reason)
        for place, (outcome, reason) in why.items()
    ]
    files.record(db, records, origin.operation_id)


def lost(db: Session, study: str, sop_uids: Sequence[str], origin: Origin) -> None:
    """Write a journal line for each instance that was not received; "" is the study as a whole."""
    lines = [
        Arrival(study_uid=study, sop_uid=sop, outcome=FileOutcome.FAILED, reason=Reason.SOURCE) for sop in sop_uids
    ]
    arrivals.add(db, lines, origin)


def forget(db: Session, places: Sequence[str]) -> None:
    """Delete the rows that an earlier attempt recorded for these URLs."""
    db.execute(
        sa.text("DELETE FROM file WHERE path_digest = ANY(CAST(:digests AS bytea[])) AND image_id IS NULL"),
        {"digests": [sha256(place.encode()).digest() for place in places]},
    )
