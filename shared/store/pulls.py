"""What a pull from another archive asks of the tables: what we have already, and what did not come."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy.orm import Session

from shared.imaging.reasons import LOST, Reason
from shared.store import arrivals, files
from shared.store.arrivals import Arrival, Origin
from shared.store.files import Record, Seen
from shared.store.studies import WITHOUT_FILE


def held(db: Session, sop_uids: Sequence[str]) -> set[str]:
    """Those that stand, also what was rejected: they need not be asked for, unless their files are lost.

    What was erased nobody here can name.
    """
    rows = db.execute(
        sa.text(f"SELECT i.sop_uid FROM image i WHERE i.sop_uid = ANY(CAST(:uids AS text[])) AND NOT {WITHOUT_FILE}"),
        {"uids": list(sop_uids), "lost": sorted(LOST)},
    )
    return {row.sop_uid for row in rows}


def turned_away(db: Session, why: Mapping[str, tuple[str, str]], origin: Origin) -> None:
    """Each has a row with its outcome and reason, by its address at the archive."""
    records = [
        Record(seen=Seen(path=place.encode(), size=0, mtime_ns=0), outcome=outcome, reason=reason)
        for place, (outcome, reason) in why.items()
    ]
    files.record(db, records, origin.operation_id)


def lost(db: Session, study: str, sop_uids: Sequence[str], origin: Origin) -> None:
    """The journal knows of what did not come; "" is the study as a whole."""
    lines = [Arrival(study_uid=study, sop_uid=sop, outcome="failed", reason=Reason.SOURCE) for sop in sop_uids]
    arrivals.add(db, lines, origin)


def forget(db: Session, places: Sequence[str]) -> None:
    """What an earlier try wrote of these addresses is taken back."""
    db.execute(
        sa.text("DELETE FROM file WHERE path_digest = ANY(CAST(:digests AS bytea[])) AND image_id IS NULL"),
        {"digests": [sha256(place.encode()).digest() for place in places]},
    )
