"""Opaque cursors of lists: they say where the next page begins."""

from services.api.schemas import MOST_ID
from shared.errors import Invalid
from shared.pipeline import cursor

FIRST = MOST_ID


def write_cursor(last: int) -> str:
    return cursor.spell(b"s%d" % last)


def read_cursor(text: str | None) -> int:
    """The id before which the page begins; `FIRST` without a cursor. Raises: `Invalid`."""
    if text is None:
        return FIRST
    try:
        raw = cursor.unspell(text)
    except ValueError:
        raw = b""
    number = int(raw[1:]) if raw[:1] == b"s" and raw[1:].isdigit() and len(raw) <= 20 else -1
    if not 0 <= number <= FIRST:
        raise Invalid("this is not a cursor")
    return number
