"""What a client wants to have: `Accept`, also as a parameter of the address (PS3.18 section 8.3.3)."""

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
    plain: frozenset[str]  #: the kinds that the header names without parameters, refused ones among them

    def fits(self, offered: str) -> bool:
        """Whether this range speaks of it, and none that is more specific (RFC 9110 section 12.5.1)."""
        covering = (offered, f"{offered.partition('/')[0]}/*", "*/*")
        return self.kind in covering and self.plain.isdisjoint(covering[: covering.index(self.kind)])


def ranges(request: Request) -> list[Range]:
    """What the client takes, the best first; without a word of it, anything."""
    said = request.query_params.get("accept") or request.headers.get("accept") or "*/*"
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
    """Of what is offered, the first that the client likes best. Raises: `NotAcceptable`."""
    for wanted in ranges(request):
        for kind in offered:
            if wanted.fits(kind):
                return kind
    raise NotAcceptable(f"this answer is there as {' or '.join(offered)}")
