"""Client for another archive's QIDO-RS and WADO-RS.

Its answers are not trusted: URLs are made of the configured address and of UIDs that were checked, no redirect is
followed, and an answer's size is limited before it is parsed.
"""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

from shared.errors import Denied, Invalid, SimilisError, Unavailable
from shared.multipart import Begin, Data, End, Event, Splitter, media_type
from shared.tls import verifying
from shared.types import valid_uid

if TYPE_CHECKING:
    import httpx

PAGE = 100
MOST_JSON = 64 * 1024 * 1024  #: bytes of one page
MOST_INSTANCES = 100_000  #: of one study
LEAST = 256 * 1024  #: bytes of an unfinished answer that must come within a timeout: 4 KiB/s, far below any link
DICOM = "application/dicom"
FILES = f'multipart/related; type="{DICOM}"; transfer-syntax=*'

STUDY, SERIES, SOP, COUNT = "0020000D", "0020000E", "00080018", "00201208"


T = TypeVar("T")


class ArchiveUnavailable(Unavailable):
    """The other archive does not answer, or not now."""


class ArchiveTimeout(ArchiveUnavailable):
    """The other archive timed out: ask it later, not again at once."""


class ArchiveProtocolError(Invalid):
    """The other archive sent an invalid answer."""


class ArchiveIgnoresOffset(ArchiveProtocolError):
    """The other archive gives only the first page of a listing."""


@dataclass(slots=True)
class Listing(Generic[T]):
    """The items of an archive's listing, by UID."""

    named: dict[str, T] = field(default_factory=dict)
    unnamed: int = 0  #: items without a valid UID, which cannot be requested
    cut: bool = False  #: there may be more, which the archive does not list

    def __len__(self) -> int:
        return len(self.named) + self.unnamed

    def add(self, uid: str, what: T) -> None:
        if uid:
            self.named[uid] = what
        else:
            self.unnamed += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach an archive. The secrets are read from their files when they are used, and shown nowhere."""

    url: str
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    ca_file: Path | None = None

    def headers(self) -> dict[str, str]:
        """Raises: `Invalid` where a secret cannot be read."""
        return {"Authorization": f"Bearer {_secret(self.token_file)}"} if self.token_file else {}

    def login(self) -> tuple[str, str] | None:
        return (self.user, _secret(self.password_file)) if self.user and self.password_file else None


def checked(url: str) -> str:
    """Return the archive's address without trailing slashes. Raises: `Invalid` if it is malformed."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        fine = False
    if not fine or "?" in url or "#" in url or not url.isascii() or not url.isprintable() or " " in url:
        raise Invalid("the archive's URL must have the form https://host/dicom-web, without user, query or fragment")
    return url.rstrip("/")


def _secret(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"the file with the archive's secret cannot be read ({type(error).__name__})") from None


def _trust(authorities: Path | None) -> ssl.SSLContext:
    try:
        return verifying(authorities)
    except OSError as error:  # also for a file that is no certificate
        raise Invalid(f"the archive's file of CA certificates cannot be used ({type(error).__name__})") from None


class Archive:
    """A connection to another archive.

    Args:
        timeout_s: the longest silence, and the longest wait for the next `LEAST` bytes of an answer.

    Raises, from every method: `ArchiveUnavailable`, `ArchiveProtocolError`, and `Denied` if it refuses our credentials.
    """

    def __init__(self, access: Access, *, timeout_s: float = 60.0) -> None:
        import httpx

        self.url = access.url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            headers={"Accept-Encoding": "identity", **access.headers()},  # compressed answers could exceed any limit
            auth=access.login(),
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            trust_env=False,  # a proxy or ~/.netrc must not decide who gets the password
            follow_redirects=False,
            verify=_trust(access.ca_file),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def ping(self) -> None:
        """Check that the archive answers a query."""
        self._page("studies", {"limit": "1"})

    def studies(self, query: Mapping[str, str], most: int) -> Listing[int]:
        """Return Study Instance UID -> instances by the archive's count (0 without one); at most `most` + 1 studies."""
        found = Listing[int]()
        for item in self._pages("studies", {**query, "includefield": COUNT}, STUDY):
            found.add(_uid(item, STUDY), _count(item))
            if len(found) > most:
                break
        return found

    def instances(self, study: str) -> Listing[str]:
        """Return SOP Instance UID -> Series Instance UID of a study, "" where the archive names no series."""
        found = Listing[str]()
        try:
            for item in self._pages(f"studies/{study}/instances", {}, SOP):
                found.add(_uid(item, SOP), _uid(item, SERIES))
                if len(found) > MOST_INSTANCES:
                    raise ArchiveProtocolError(f"a study has more than {MOST_INSTANCES} instances")
        except ArchiveIgnoresOffset:  # the other instances come with the whole study
            found.cut = True
        return found

    def files(self, study: str, series: str = "", sop: str = "") -> Iterator[Event]:
        """Stream the files of a study, or of one instance, in their own transfer syntax."""
        if sop and not series:
            raise ArchiveProtocolError("the archive does not name the series of an instance")
        path = f"studies/{study}" + (f"/series/{series}/instances/{sop}" if sop else "")
        with self._asked(path, {}, FILES) as response:
            kind, given = media_type(response.headers.get("content-type", ""))
            if kind == DICOM:
                yield Begin({})
                yield from (Data(chunk) for chunk in self._chunks(response))
                yield End()
                return
            if kind != "multipart/related":
                raise ArchiveProtocolError("the archive answered with something other than DICOM files")
            try:
                yield from self._parts(response, given.get("boundary", ""))
            except Invalid as error:  # a malformed body fails its study, not the whole pull
                raise ArchiveProtocolError(str(error)) from None

    def _parts(self, response: "httpx.Response", boundary: str) -> Iterator[Event]:
        splitter = Splitter(boundary)
        for chunk in self._chunks(response):
            for event in splitter.feed(chunk):
                if isinstance(event, Begin) and media_type(event.headers.get("content-type", DICOM))[0] != DICOM:
                    raise ArchiveProtocolError("the archive answered with something other than DICOM files")
                yield event
        splitter.finish()

    def _pages(self, path: str, query: Mapping[str, str], key: str) -> Iterator[Mapping[str, Any]]:
        """Yield every item once, told apart by its value of `key`, valid or not; stop at a page without new items.

        An archive may cap a page below the limit, and one that ignores offsets repeats the first page for ever.

        Raises: `ArchiveIgnoresOffset` if it repeats a full page: there may be more, which it does not list.
        """
        offset, seen = 0, set[str]()
        while True:
            page = self._page(path, {**query, "limit": str(PAGE), "offset": str(offset)})
            fresh = {}
            for item in page:
                if (said := repr(_value(item, key))) not in seen:
                    fresh[said] = item
            if not fresh:
                if len(page) == PAGE:
                    raise ArchiveIgnoresOffset(
                        f"the archive lists only the first {PAGE} results, and one query may have more: narrow it"
                    )
                return
            seen |= fresh.keys()
            yield from fresh.values()
            offset += len(page)

    def _page(self, path: str, query: Mapping[str, str]) -> list[Mapping[str, Any]]:
        with self._asked(path, query, "application/dicom+json") as response:
            raw = bytearray()
            for chunk in self._chunks(response):
                raw += chunk
                if len(raw) > MOST_JSON:
                    raise ArchiveProtocolError("a page of the archive's answer is too large")
        if not raw:
            return []
        try:
            # only UIDs and numbers are read; other text may be in another encoding, with control characters
            found = json.loads(raw.decode("utf-8-sig", "replace"), strict=False)
        except (ValueError, RecursionError):
            raise ArchiveProtocolError("the archive's answer is not valid JSON") from None
        if not isinstance(found, list):
            raise ArchiveProtocolError("the archive's answer is not a JSON list")
        return [item for item in found if isinstance(item, dict)]

    @contextmanager
    def _asked(self, path: str, query: Mapping[str, str], accept: str) -> Iterator["httpx.Response"]:
        """Yield the streamed answer, whose status is 2xx."""
        import httpx

        with ExitStack() as ended:
            asked = self._http.stream("GET", f"{self.url}/{path}", params=dict(query), headers={"Accept": accept})
            try:
                response = ended.enter_context(asked)
            except httpx.TransportError as error:
                raise _away(error, "the archive does not answer") from None
            if not response.is_success:
                raise _refusal(response.status_code)
            yield response

    def _chunks(self, response: "httpx.Response") -> Iterator[bytes]:
        """Yield the answer as it comes. Each byte renews the timeout of a read, so a minimum rate bounds the answer."""
        import httpx

        chunks = response.iter_bytes()
        waited_s, came = 0.0, 0
        while True:
            asked = time.monotonic()
            try:
                chunk = next(chunks, None)
            except (httpx.TransportError, httpx.DecodingError) as error:
                raise _away(error, "the archive's answer was interrupted") from None
            if chunk is None:
                return
            waited_s += time.monotonic() - asked  # not what the caller does with the bytes
            came += len(chunk)
            if came >= LEAST:
                waited_s, came = 0.0, 0
            elif waited_s > self._timeout_s:
                raise ArchiveTimeout("the archive's answer comes too slowly")
            yield chunk


def _refusal(status: int) -> SimilisError:
    if status in (401, 403, 407):
        return Denied(f"the archive rejects our credentials (status {status})")
    if status == 504:  # of a gateway in front of the archive, which has timed out
        return ArchiveTimeout("the archive answered with status 504")
    if status in (408, 425, 429) or status >= 500:
        return ArchiveUnavailable(f"the archive answered with status {status}")
    return ArchiveProtocolError(f"the archive answered with status {status}")


def _away(error: Exception, what: str) -> ArchiveUnavailable:
    import httpx

    kind = ArchiveTimeout if isinstance(error, httpx.TimeoutException) else ArchiveUnavailable
    return kind(f"{what} ({type(error).__name__})")


def _value(item: Mapping[str, Any], tag: str) -> object:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _uid(item: Mapping[str, Any], tag: str) -> str:
    """Return the UID, "" if there is no valid one."""
    value = _value(item, tag)
    return value if isinstance(value, str) and valid_uid(value) else ""


def _count(item: Mapping[str, Any]) -> int:
    value = _value(item, COUNT)
    try:
        return max(0, min(int(str(value)), MOST_INSTANCES)) if value is not None else 0
    except ValueError:
        return 0
