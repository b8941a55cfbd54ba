"""Generates the tables of the conformance statement from the code: `python -m services.dicom.conformance FILE`.

Replaces the text between each `<!-- name -->` and `<!-- end -->` in that file.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services.dicom import contexts, guard, receiver, stream
from services.dicom.statuses import Status
from shared.config import Dicom

Rows = Sequence[Sequence[object]]


def _sop_classes() -> list[str]:
    return _table(("SOP class", "UID", "role"), [(uid.name, uid, "SCP") for uid in contexts.sop_classes()])


def _transfer_syntaxes() -> list[str]:
    return _table(("transfer syntax", "UID"), [(uid.name, uid) for uid in contexts.TRANSFER_SYNTAXES])


def _statuses() -> list[str]:
    reasons = {
        Status.SUCCESS: "it is on the disk and in the database; or a rule of the site discards it",
        Status.NOT_AUTHORIZED: "a rule of the site refuses it, or it was erased or rejected here before",
        Status.OUT_OF_RESOURCES: "the disk is below its reserve or fails, or the database is away: send it again",
        Status.MISMATCH: "the data set has another SOP class or SOP Instance UID than the command",
        Status.NOT_UNDERSTOOD: "no image, damaged, without valid UIDs, or over a limit; the Error Comment says which",
        Status.PROCESSING_FAILURE: "an internal error, which the log has, or the file could not be examined",
    }
    return _table(("status", "name", "when"), [(f"{s:04X}", s.name.lower(), reasons[s]) for s in Status])


def _limits() -> list[str]:
    d = Dicom()
    rows = [
        ("Maximum PDU length that is offered", f"{receiver.MAXIMUM_LENGTH:,} bytes", "no"),
        ("Longest A-ASSOCIATE-RQ", f"{guard.REQUEST_BYTES:,} bytes", "no"),
        ("Longest other PDU", f"{guard.PDU_BYTES:,} bytes", "no"),
        ("Longest command set", f"{stream.COMMAND_BYTES:,} bytes", "no"),
        ("Time for the request, and for each PDU that has begun", f"{d.pdu_s:g} s", "`SIMILIS_DICOM__PDU_S`"),
        ("Silence after which an association is aborted", f"{d.idle_s:g} s", "`SIMILIS_DICOM__IDLE_S`"),
        ("Longest association", f"{d.association_s:g} s", "`SIMILIS_DICOM__ASSOCIATION_S`"),
        ("Associations at once", d.associations, "`SIMILIS_DICOM__ASSOCIATIONS`"),
        ("Associations at once from one address", d.associations_per_address, "`…_PER_ADDRESS`"),
        ("Largest data set", f"{d.max_instance_mb} MiB", "`SIMILIS_DICOM__MAX_INSTANCE_MB`, may only be lowered"),
    ]
    return _table(("limit", "default", "setting"), rows)


def _identity() -> list[str]:
    rows = [
        ("Application context", "1.2.840.10008.3.1.1.1"),
        ("Implementation class UID", stream.IMPLEMENTATION),
        ("Implementation version name", stream.VERSION),
        ("AE title (default)", Dicom().ae_title),
        ("TCP port (default)", Dicom().port),
        ("Asynchronous operations", "not supported (one operation at a time)"),
    ]
    return _table(("what", "value"), rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    "sop-classes": _sop_classes,
    "transfer-syntaxes": _transfer_syntaxes,
    "statuses": _statuses,
    "limits": _limits,
    "identity": _identity,
}


def _table(head: Sequence[str], rows: Rows) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def renewed(text: str) -> str:
    """The statement with regenerated tables. Raises: `KeyError` for an unknown table name."""

    def table(found: re.Match[str]) -> str:
        return "\n".join([found[0].split("\n")[0], "", *TABLES[found[1]](), "", "<!-- end -->"])

    return re.sub(r"<!-- ([a-z-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
