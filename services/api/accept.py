"""Content negotiation by `Accept`, as a header or as a query parameter (PS3.18 section 8.3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.request import parse_http_list

from fastapi import Request

from services.api.errors import NotAcceptable
from shared.multipart import media_type


@dataclass(frozen=True, slots=True)
class Range:
    """One media range of an `Accept` header."""

    kind: str
    params: Mapping[str, str]
    q: float
    plain: frozenset[str]  #: media ranges that the header names without parameters, including those with q=0

    def fits(self, offered: str) -> bool:
        """Whether this is the most specific range that covers the offered type (RFC 9110 section 12.5.1)."""
        covering = (offered, f"{offered.partition('/')[0]}/*", "*/*")
        return self.kind in covering and self.plain.isdisjoint(covering[: covering.index(self.kind)])


def ranges(request: Request) -> list[Range]:
    """The media ranges that the client accepts, highest q first; without an `Accept`, `*/*`."""
    said = request.query_params.get("accept") or ", ".join(request.headers.getlist("accept")) or "*/*"
    found = []
    for part in parse_http_list(said):
        kind, params = media_type(part)
        if kind == "*":  # not in the grammar, and sent by some
            kind = "*/*"
        found.append((kind, params, _quality(params.pop("q", "1"))))
    plain = frozenset(kind for kind, params, _ in found if not params)
    return sorted((Range(*one, plain) for one in found if one[2] > 0), key=lambda one: -one.q)


def _quality(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def best(request: Request, offered: Sequence[str]) -> str:
    """The offered media type that the client prefers; ties go to the earlier offer. Raises: `NotAcceptable`."""
    for wanted in ranges(request):
        for kind in offered:
            if wanted.fits(kind):
                return kind
    raise NotAcceptable(f"this resource is available as {' or '.join(offered)}")
