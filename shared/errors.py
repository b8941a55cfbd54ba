"""The error classes, grouped by what the caller can do about an error.

    SimilisError
    ├── Invalid           the request or the file is wrong: change it
    │   └── Rejected      a file that is not taken in: outcome, gate and reason say why
    ├── NotFound          there is no such thing, or not for this caller
    ├── Conflict          the thing is in another state than the request assumes
    ├── Denied            the caller may not do this
    │   └── Unidentified  the caller is not authenticated
    ├── Throttled         too much at once: slow down
    └── Unavailable       a service that Similis needs is down or busy: try again later

Messages never carry a patient attribute, a pixel, or a file name from outside. Each edge has one table from
these classes to its own language (HTTP, DIMSE, exit codes); a test checks that each table is complete.
"""

from enum import StrEnum


class SimilisError(Exception):
    """Root of every error that Similis raises on purpose."""


class Invalid(SimilisError):
    pass


class NotFound(SimilisError):
    pass


class Conflict(SimilisError):
    pass


class Denied(SimilisError):
    pass


class Unidentified(Denied):
    pass


class Unavailable(SimilisError):
    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Throttled(SimilisError):
    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Outcome(StrEnum):
    """What became of a file that was not encoded."""

    QUARANTINED = "quarantined"  # a person decides: hostile, undecodable, or stopped by a gate
    EMPTY = "empty"  # a good DICOM object that holds no image; never retried
    FAILED = "failed"  # not readable as a study object, or given up after errors of Similis


class Gate(StrEnum):
    """The check that stopped an image."""

    LIMITS = "limits"  # a resource limit: the file is treated as hostile
    DECODE = "decode"  # pixels that no permitted decoder reads
    METADATA = "metadata"  # gate 1
    PIXELS = "pixels"  # gate 2
    FEATURES = "features"  # gate 3


class Rejected(Invalid):
    """A file is not taken in.

    `reason` is one word of a closed vocabulary (`shared.imaging.reasons`), safe for logs, metrics and answers.
    """

    def __init__(self, outcome: Outcome, reason: str, gate: Gate | None = None) -> None:
        super().__init__(f"{outcome.value}: {reason}" if gate is None else f"{outcome.value} ({gate.value}): {reason}")
        self.outcome = outcome
        self.reason = reason
        self.gate = gate

    def __reduce__(self) -> tuple[type["Rejected"], tuple[Outcome, str, Gate | None]]:
        return Rejected, (self.outcome, self.reason, self.gate)
