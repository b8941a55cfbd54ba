"""The command line's HTTP client: finds the server's address and key, and raises `shared.errors`."""

import functools
import inspect
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, Self, get_type_hints
from urllib.parse import quote

import typer

from services.cli.terminal import say
from services.embedded.home import Home
from shared.config import Settings
from shared.errors import (
    Conflict,
    Denied,
    Invalid,
    NotFound,
    SimilisError,
    Throttled,
    Unavailable,
    Unidentified,
)
from shared.tls import verifying

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
Answer = dict[str, Any]

PATIENCE_S = 30.0  #: how long requests to a busy or restarting server are retried
ANSWERS_WITHIN_S = 60.0  #: read timeout: a calibration reads all stored scores
NOT_RUNNING = "start it with `similis up`, or name another with --url, --home or SIMILIS_URL"

#: The error that each HTTP status raises; other statuses raise `SimilisError`.
BY_STATUS: Mapping[int, type[SimilisError]] = {
    400: Invalid,
    401: Unidentified,
    403: Denied,
    404: NotFound,
    405: Invalid,
    406: Invalid,
    409: Conflict,
    410: NotFound,
    411: Invalid,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: Throttled,
    503: Unavailable,
}

Url = Annotated[
    str | None, typer.Option(envvar="SIMILIS_URL", help="The server. Default: the one that runs on the home.")
]
KeyFile = Annotated[
    Path | None, typer.Option(envvar="SIMILIS_KEY_FILE", help="A file with the API key. Default: the home's.")
]
HomeFolder = Annotated[Path | None, typer.Option(help="The home of the embedded stack. Default: ~/.similis.")]


class Client:
    """Requests to one server with one key; a response is a JSON object, a refusal raises an error of `shared.errors`.

    Args:
        home: folder of a server on this machine.
        patience_s: how long to retry after a 429, a 503 or while the server restarts; an idempotent request is also
            retried after a broken connection.
        say: called once per request, before the first wait.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        home: Path | None = None,
        patience_s: float = PATIENCE_S,
        say: Callable[[str], None] | None = None,
    ) -> None:
        import httpx

        self.url = url.rstrip("/")
        self.home = home
        self._patience_s = patience_s
        self._say = say
        self._spoke = False
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(ANSWERS_WITHIN_S, connect=5.0),
                trust_env=False,  # neither a proxy setting nor ~/.netrc may redirect the key
                verify=verifying(),  # the machine's trust store, which may hold a hospital's CA
            )
        except httpx.InvalidURL:
            raise Invalid("the server's address is not a valid URL") from None

    def get(self, path: str, **params: Any) -> Answer:  # noqa: ANN401 - what httpx takes
        return self._ask("GET", path, params=given(**params))

    def post(self, path: str, **what: Any) -> Answer:  # noqa: ANN401
        """POST; `json`, `files`, `params` and `headers` are those of httpx."""
        return self._ask("POST", path, **what)

    def delete(self, path: str) -> Answer:
        return self._ask("DELETE", path)

    def pages(self, path: str, name: str, **params: Any) -> Iterator[Answer]:  # noqa: ANN401
        """All items of the list `name`, over all pages."""
        cursor = None
        while True:
            page = self.get(path, **params, cursor=cursor)
            yield from page[name]
            cursor = page.get("next")
            if not cursor:
                return

    def _ask(self, method: str, path: str, **what: Any) -> Answer:  # noqa: ANN401
        deadline = time.monotonic() + self._patience_s
        told = False
        while True:
            try:
                return self._once(method, path, what)
            except (Unavailable, Throttled) as error:
                wait_s = max(0.1, float(error.retry_after_s))
                if time.monotonic() + wait_s > deadline:
                    raise
                if self._say is not None and not told:
                    self._say(f"waiting for the server: {error}")
                told = True
                time.sleep(wait_s)

    def _once(self, method: str, path: str, what: Mapping[str, Any]) -> Answer:
        import httpx

        try:
            response = self._http.request(method, path, **what)
        except UnicodeEncodeError:
            raise Invalid("an argument is not valid UTF-8") from None
        except ValueError:  # JSON cannot represent NaN and infinity
            raise Invalid("a number is not finite") from None
        except (httpx.ReadTimeout, httpx.WriteTimeout):  # no retry: the server may still be working on it
            said = f"{self.url} has not answered within {ANSWERS_WITHIN_S:g} s; it may still do what was asked"
            raise SimilisError(said) from None
        except (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError) as error:
            said = f"the connection to {self.url} was lost ({type(error).__name__})"
            if method == "GET" or "Idempotency-Key" in what.get("headers", {}):
                raise Unavailable(said, retry_after_s=1) from None
            raise SimilisError(f"{said}; it may still do what was asked") from None
        except httpx.TransportError as error:  # the request never reached the server
            if (refused := _tls(error)) is not None:
                raise Invalid(f"{self.url} {refused}") from None
            if self._spoke:  # the server answered before, so its supervisor is probably restarting it
                raise Unavailable(f"{self.url} does not answer ({type(error).__name__})", retry_after_s=1) from None
            raise NotFound(f"nothing answers at {self.url}: {NOT_RUNNING}") from None
        self._spoke = True
        if response.is_success:
            return _object(response)
        raise _error(response)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()


def _tls(error: BaseException | None) -> str | None:
    """The TLS error behind a failed connection, as a phrase; None where TLS is not the cause."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that this machine does not trust: {error.verify_message}"
    return None if error is None else "does not speak TLS: should its address begin with http://?"


def _object(response: "httpx.Response") -> Answer:
    if not response.content:
        return {}
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SimilisError(f"{response.url.host} does not answer as Similis does: is --url right?")
    return answer


def _error(response: "httpx.Response") -> SimilisError:
    """The error for a refused request, with the problem's explanation or field errors as its message."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    told = (problem.get(name) for name in ("explanation", "detail", "title"))
    said = next(filter(None, told), f"the server answered {response.status_code}")
    wrong = [item for item in problem.get("errors") or [] if isinstance(item, dict)]
    places = [f"{_field(item)}: {item.get('message', 'wrong')}" for item in wrong]
    text = "; ".join(dict.fromkeys(places)) or str(said)  # `detail` only lists the same fields
    kind = BY_STATUS.get(response.status_code, SimilisError)
    if problem.get("code") == "unidentified":  # the server tells of HTTP's header
        wrong_key = "Authorization" in response.request.headers
        text = "this API key is not valid" if wrong_key else "an API key is needed"
        text += ": name the file of one with --key-file"
    if issubclass(kind, Unavailable | Throttled):
        seconds = response.headers.get("Retry-After", "")
        return kind(text, int(seconds)) if seconds.isdecimal() else kind(text)
    if kind is SimilisError and problem.get("trace_id"):
        text += f" (trace {problem['trace_id']})"
    return kind(text)


def _field(item: Mapping[str, Any]) -> str:
    """The field's name without its place: `query.k` is the option `k`."""
    return str(item.get("where", "?")).partition(".")[2] or str(item.get("where", "?"))


def given(**options: Any) -> Answer:  # noqa: ANN401 - whatever JSON or a query string holds
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def part(text: str) -> str:
    """The text, percent-encoded as one segment of a path. Raises: `Invalid` for an empty one."""
    if not text:
        raise Invalid("an id or a name must not be empty")
    return quote(text, safe="", errors="surrogateescape")


def folder_of(home: Path | None) -> Path:
    """The home of the command line, or of the settings."""
    return (home or Settings().home).expanduser()


def connect(
    url: str | None, key_file: Path | None, home: Path | None, say: Callable[[str], None] | None = None
) -> Client:
    """A client of the server at `url`, or of the server that runs on the home.

    Raises: `NotFound` where no server runs on the home, `Invalid` for a wrong address or an unreadable key file.
    """
    folder = folder_of(home)
    own = _running(folder)
    if url is None and own is None:
        raise NotFound(f"nothing runs on the home {folder}: {NOT_RUNNING}")
    chosen = url or own or ""
    if not chosen.startswith(("http://", "https://")):
        raise Invalid("the server's address must begin with http:// or https://")
    if key_file is None and chosen.rstrip("/") == own:
        key_file = folder / "api.key"  # only this home's own server may receive its key
    return Client(chosen, _key(key_file) if key_file else "", home=folder, say=say)


def _running(folder: Path) -> str | None:
    """The address of the server on this home; None unless its supervisor holds the home's lock.

    A killed supervisor leaves its state file, and another program on its old port must not receive the key.
    """
    home = Home(folder)
    try:
        state = home.state if home.locked else {}
    except OSError:
        return None
    return str(state["url"]).rstrip("/") if state.get("supervisor") and state.get("url") else None


def _key(path: Path) -> str:
    try:
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        lost = isinstance(error, FileNotFoundError) and path.name == "api.key"
        hint = "; the next start of `similis up` makes a new one" if lost else ""
        raise Invalid(f"the API key file {path} cannot be read ({type(error).__name__}){hint}") from None
    if not key or not key.isprintable() or " " in key:
        raise Invalid("the API key file must hold one key and nothing else")
    return key


def connected(command: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
    """Decorator that adds --url, --key-file and --home to a command and passes the client of that server to it."""

    @functools.wraps(command)
    def run(url: Url = None, key_file: KeyFile = None, home: HomeFolder = None, **rest: Any) -> None:  # noqa: ANN401
        with connect(url, key_file, home, say) as client:
            command(client, **rest)  # type: ignore[call-arg]  # typer passes the parameters of the signature below

    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command)
    kept = [p.replace(annotation=hints[p.name]) for p in list(own.parameters.values())[1:]]
    where = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in (("url", Url), ("key_file", KeyFile), ("home", HomeFolder))
    ]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *where)} | {"return": None}
    run.__signature__ = own.replace(parameters=[*kept, *where])  # type: ignore[attr-defined]
    return run
