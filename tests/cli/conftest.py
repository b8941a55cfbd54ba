"""The command line in this process, and a small real server with scripted answers."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.cli import main as entry
from services.embedded.home import Home


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def similis(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one command line as `main` does; return the exit code, stdout and stderr."""

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            entry.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Ran(int(end.value.code or 0), captured.out, captured.err)

    return run


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Script:
    """The server's answers: a list per method and path (without query), of which the last one is repeated."""

    url: str = ""
    answers: dict[str, list[tuple[int, dict[str, Any], dict[str, str]]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def on(self, what: str, body: dict[str, Any], status: int = 200, **headers: str) -> None:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(what, []).append((status, body, told))

    def problem(self, what: str, status: int, detail: str, **headers: str) -> None:
        self.on(what, {"type": "about:blank", "title": "No", "status": status, "detail": detail}, status, **headers)


@pytest.fixture
def server() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            script.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            rest = script.answers.get(f"{self.command} {self.path.partition('?')[0]}")
            status, data, headers = (404, {"detail": "not in the script"}, {})
            if rest:
                status, data, headers = rest.pop(0) if len(rest) > 1 else rest[0]
            content = json.dumps(data).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - names required by http.server

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        script.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        http.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path: Path, server: Script) -> Iterator[Path]:
    """A home whose server is the scripted one."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"url": server.url, "supervisor": {"pid": 1}}))
    (folder / "api.key").write_text("sml_of-this-home\n")
    with Home(folder).lock():
        yield folder
