"""Cursors, so that the pages of a ranking do not shift.

A cursor names the studies already shown and the time of the first page: the next page ranks the other studies that
existed then. So no study comes twice, and new images change nothing. A cursor is bound to its query and to the
generation; after another generation is published, it is refused as stale.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256

from shared.errors import Conflict, Invalid
from shared.pipeline.question import Found, Request, Subject

MOST = 1000  #: studies that all pages of one query may show


@dataclass(frozen=True, slots=True)
class Page:
    as_of: datetime
    seen: tuple[int, ...] = ()


def first(read_at: datetime | None) -> Page:
    """The first page, as of the moment at which the published pointer was read."""
    return Page(read_at or datetime.now(UTC))


def write(request: Request, generation_id: int, subject: Subject, page: Page, shown: Sequence[Found]) -> str | None:
    seen = sorted({*page.seen, *(found.study_id for found in shown)})
    if len(seen) >= MOST or subject.study_uid is None:
        return None  # an uploaded image would have to be sent again: ask for a larger k instead
    steps = [b - a for a, b in zip([0, *seen], seen, strict=False)]
    data = {"g": generation_id, "t": page.as_of.timestamp(), "q": _bound(request, subject), "s": steps}
    return spell(zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9))


def spell(raw: bytes) -> str:
    """Return URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unspell(text: str) -> bytes:
    """Decode what `spell` wrote. Raises: `ValueError` for any other text, even if base64 accepts it."""
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if spell(raw) != text:
        raise ValueError
    return raw


def read(request: Request, generation_id: int, subject: Subject) -> Page:
    """Return the page of the request's cursor.

    Raises: `Invalid` if it is no cursor of this query, `Conflict` if it is of another generation.
    """
    text = request.cursor or ""
    if len(text) > 16_384:
        raise Invalid("this is not a cursor")
    try:
        unpacker = zlib.decompressobj()
        data = json.loads(unpacker.decompress(unspell(text), 65_536))
        if not unpacker.eof or unpacker.unused_data:  # zlib's checksum stands at the end
            raise ValueError  # noqa: TRY301 - like any other invalid cursor
        generation, bound = int(data["g"]), str(data["q"])
        as_of = datetime.fromtimestamp(float(data["t"]), UTC)
        seen, total = [], 0
        for step in data["s"]:
            total += int(step)
            seen.append(total)
        if not all(0 < one < 2**63 for one in seen):  # engines store 64-bit study ids
            raise ValueError  # noqa: TRY301 - like any other invalid cursor
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, OSError, zlib.error):
        raise Invalid("this is not a cursor") from None
    if bound != _bound(request, subject) or len(seen) > MOST:
        raise Invalid("this cursor belongs to another query")
    if generation != generation_id:
        raise Conflict("this cursor is stale: another generation has been published")
    return Page(as_of, tuple(seen))


def _bound(request: Request, subject: Subject) -> str:
    """Hash what must not change between pages: the study and the request, without its cursor."""
    return sha256(f"{subject.study_uid}|{_asked(request)}".encode()).hexdigest()[:16]


@lru_cache
def _asked(request: Request) -> str:
    """What is asked, as text; cached, because clients repeat it for one study after another."""
    fields = {name: getattr(request, name) for name in ("k", "exclude", "view", "filters", "exact", "mode", "radius")}
    fields["exclude"] = sorted(fields["exclude"])
    return str(sorted(fields.items()))
