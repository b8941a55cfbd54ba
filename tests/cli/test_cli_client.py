"""Finding the server, sending the key, waiting politely, and reporting errors in one sentence."""

import json
import re
import shutil
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from services.api.errors import KINDS
from services.cli import client as client_module
from services.cli.client import Client, connect
from shared.errors import Conflict, Denied, Invalid, NotFound, SimilisError, Throttled, Unavailable, Unidentified
from tests.certificates import openssl


def test_address_and_key_come_from_the_home(home, server):
    server.on("GET /v1/keys", {"keys": []})
    with connect(None, None, home) as client:
        assert client.get("/v1/keys") == {"keys": []}
    assert server.asked[0].headers["Authorization"] == "Bearer sml_of-this-home"


def test_who_has_taken_the_port_of_a_killed_server_does_not_get_its_key(home, server, tmp_path):
    left = tmp_path / "left"
    shutil.copytree(home, left)  # as after a kill of the supervisor: nobody holds the lock
    with pytest.raises(NotFound, match="nothing runs"):
        connect(None, None, left)


def test_another_server_does_not_get_to_see_this_homes_key(home, server):
    server.on("GET /v1/keys", {"keys": []})
    (home / "state.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "supervisor": {"pid": 1}}))
    with connect(server.url, None, home) as client:
        client.get("/v1/keys")
    assert "Authorization" not in server.asked[0].headers


def test_a_key_file_is_used_for_the_server_that_was_named(tmp_path, server, monkeypatch, similis):
    server.on("GET /v1/keys", {"keys": []})
    (tmp_path / "key").write_text("sml_mine")
    monkeypatch.setenv("SIMILIS_URL", server.url)
    monkeypatch.setenv("SIMILIS_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("SIMILIS_HOME", str(tmp_path))
    assert similis("keys", "list", "--json").json == {"keys": []}
    assert server.asked[0].headers["Authorization"] == "Bearer sml_mine"


def test_a_key_file_that_is_not_there_is_said(tmp_path, server, similis):
    ran = similis("keys", "list", "--url", server.url, "--key-file", tmp_path / "none", "--home", tmp_path)
    assert (ran.code, ran.out) == (5, "")
    assert f"the API key file {tmp_path / 'none'} cannot be read (FileNotFoundError)" in " ".join(ran.err.split())


def test_who_lost_the_key_of_a_home_is_told_how_to_get_another(home, server, similis):
    (home / "api.key").unlink()
    ran = similis("keys", "list", "--home", home)
    assert (ran.code, ran.out, server.asked) == (5, "", [])
    assert "api.key cannot be read (FileNotFoundError)" in ran.err
    assert "the next start of `similis up` makes a new one" in ran.err


def test_where_nothing_runs_the_command_says_so_and_exits_3(tmp_path, similis):
    ran = similis("search", "--study", "1.2", "--home", tmp_path)
    assert (ran.code, ran.out) == (3, "")
    assert "similis up" in ran.err
    assert "Traceback" not in ran.err


def test_a_supervisor_that_has_stopped_is_not_asked(home, similis):
    (home / "state.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "supervisor": None}))
    assert similis("keys", "list", "--home", home).code == 3


def test_a_port_where_nobody_listens_exits_3(tmp_path, similis):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ran = similis("keys", "list", "--url", f"http://127.0.0.1:{free.getsockname()[1]}", "--home", tmp_path)
    assert ran.code == 3
    assert "nothing answers" in ran.err


def test_a_server_without_tls_is_told_as_one(server, similis, tmp_path):
    ran = similis("keys", "list", "--url", server.url.replace("http:", "https:"), "--home", tmp_path)
    assert (ran.code, ran.out) == (5, "")
    assert "does not speak TLS" in ran.err


def test_a_certificate_that_nobody_vouches_for_is_told_as_one(similis, tmp_path):
    openssl(tmp_path, "req -x509 -newkey rsa:2048 -nodes -keyout own.key -out own.pem -days 2 -subj /CN=own")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "own.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with ThreadPoolExecutor(1) as pool:
            shaken = pool.submit(shake_hands, listener, context)
            ran = similis("keys", "list", "--url", url, "--home", tmp_path)
            assert shaken.result()
    assert (ran.code, ran.out) == (5, "")
    assert "a certificate that this machine does not trust: self-signed certificate" in ran.err


def shake_hands(listener: socket.socket, context: ssl.SSLContext) -> bool:
    """Whether the client aborts the TLS handshake."""
    caller, _ = listener.accept()
    with caller:
        try:
            context.wrap_socket(caller, server_side=True).close()
        except ssl.SSLError:
            return True
    return False


def test_an_address_without_a_scheme_is_refused(tmp_path, similis):
    assert similis("keys", "list", "--url", "localhost:8000", "--home", tmp_path).code == 5


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, Invalid, 5),
        (403, Denied, 1),
        (404, NotFound, 3),
        (409, Conflict, 4),
        (413, Invalid, 5),
        (422, Invalid, 5),
        (500, SimilisError, 1),
        (507, SimilisError, 1),
    ],
)
def test_a_problem_is_one_sentence_and_an_exit_code(home, server, similis, status, kind, code):
    server.problem("GET /v1/keys", status, "the words of the server")
    with connect(None, None, home) as client, pytest.raises(kind, match="the words of the server") as raised:
        client.get("/v1/keys")
    assert type(raised.value) is kind
    ran = similis("keys", "list", "--home", home)
    assert (ran.code, ran.out, ran.err) == (code, "", "similis: the words of the server\n")


def test_who_lacks_a_key_is_told_of_the_option_whatever_words_the_server_has(home, server, similis, tmp_path):
    server.on("GET /v1/keys", {"code": KINDS[Unidentified].code, "detail": "Authorization: Bearer 12:30"}, 401)
    with connect(None, None, home) as client, pytest.raises(Unidentified):
        client.get("/v1/keys")
    ran = similis("keys", "list", "--home", home)
    assert (ran.code, ran.err) == (1, "similis: this API key is not valid: name the file of one with --key-file\n")
    ran = similis("keys", "list", "--url", server.url, "--home", tmp_path)
    assert (ran.code, ran.err) == (1, "similis: an API key is needed: name the file of one with --key-file\n")


def test_a_proxy_that_asks_who_is_there_is_quoted(home, server, similis):
    server.problem("GET /v1/keys", 401, "sign in: at the front desk")
    assert similis("keys", "list", "--home", home).err == "similis: sign in: at the front desk\n"


def test_a_file_that_is_rejected_is_explained_in_a_sentence(home, server, similis, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    problem = {"detail": "failed: not-a-study-object", "explanation": "It is neither this nor that."}
    server.on("POST /v1/searches", problem, 422)
    ran = similis("search", "--image", tmp_path / "notes.txt", "--home", home)
    assert (ran.code, ran.err) == (5, "similis: It is neither this nor that.\n")


def test_each_wrong_field_of_a_request_is_named(home, server, similis):
    server.on("GET /v1/keys", {"detail": "wrong", "errors": [{"where": "query.k", "message": "too large"}]}, 400)
    assert similis("keys", "list", "--home", home).err == "similis: k: too large\n"


def test_a_busy_server_is_asked_again_after_the_time_it_named(server):
    server.problem("GET /x", 503, "no model is published yet", Retry_After="0")
    server.problem("GET /x", 429, "slow down", Retry_After="0")
    server.on("GET /x", {"ok": True})
    said: list[str] = []
    with Client(server.url, "", say=said.append) as client:
        assert client.get("/x") == {"ok": True}
    assert len(server.asked) == 3
    assert said == ["waiting for the server: no model is published yet"]


@pytest.mark.parametrize(("status", "kind"), [(503, Unavailable), (429, Throttled)])
def test_patience_has_an_end(server, status, kind):
    server.problem("GET /x", status, "busy", Retry_After="60")
    with Client(server.url, "", patience_s=1) as client, pytest.raises(kind, match="busy"):
        client.get("/x")
    assert len(server.asked) == 1


def test_a_server_that_is_slow_to_answer_is_neither_called_absent_nor_asked_twice(monkeypatch):
    monkeypatch.setattr(client_module, "ANSWERS_WITHIN_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, "") as client, pytest.raises(SimilisError, match="not answered within") as raised:
            client.post("/v1/models/base:hash", json={"name": "coded"})
        assert type(raised.value) is SimilisError
        silent.settimeout(5)
        silent.accept()[0].close()
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()


@contextmanager
def breaking_off(number: int) -> Iterator[tuple[str, list[bytes]]]:
    """A server that closes the connection without an answer at this request; yields its URL and the requests read."""
    asked: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b"".join(iter(self.rfile.readline, b"\r\n"))
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            self.rfile.read(int(length[1]) if length else 0)
            asked.append(head)
            if len(asked) != number:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_asked_when_the_connection_broke_off_may_have_been_done_and_is_not_asked_twice(number):
    with breaking_off(number) as (url, asked), Client(url, "") as client:
        for _ in range(1, number):
            client.get("/v1/keys")
        with pytest.raises(SimilisError, match=r"was lost.*may still do") as raised:
            client.post("/v1/keys", json={"name": "viewer"})
        assert type(raised.value) is SimilisError
    assert len(asked) == number


def test_what_does_no_harm_twice_is_asked_again_when_the_connection_breaks_off():
    with breaking_off(1) as (url, asked), Client(url, "") as client:
        assert client.get("/v1/keys") == {}
    assert len(asked) == 2
    with breaking_off(1) as (url, asked), Client(url, "") as client:
        assert client.post("/v1/ingest/scans", json={}, headers={"Idempotency-Key": "one"}) == {}
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quarantine", "replay", "--model", "base", "--modality", "MG", "--threshold", "nan"), "not finite"),
        (("backfill", "--dicomweb", "pacs", "--rate", "inf/s"), "not finite"),
        (("ingest", b"/data/caf\xe9".decode(errors="surrogateescape"), "--no-wait"), "UTF-8"),
        (("studies", "list", "--modality", b"\xe9".decode(errors="surrogateescape")), "UTF-8"),
    ],
)
def test_what_no_request_can_hold_is_refused_in_a_sentence(home, server, similis, words, said):
    ran = similis(*words, "--home", home)
    assert (ran.code, ran.out) == (5, "")
    assert said in ran.err
    assert server.asked == []


def test_an_identifier_that_is_not_utf_8_is_unknown_to_the_server(home, similis):
    assert similis("studies", "show", b"\xe9".decode(errors="surrogateescape"), "--home", home).code == 3


@pytest.mark.parametrize("content", ["", "\n", "sml_one\nsml_two\n", "export KEY=sml_one", "sml\x00one"])
def test_a_key_file_with_more_than_a_key_is_said(tmp_path, server, similis, content):
    (tmp_path / "key").write_text(content)
    ran = similis("keys", "list", "--url", server.url, "--key-file", tmp_path / "key", "--home", tmp_path)
    assert (ran.code, ran.err) == (5, "similis: the API key file must hold one key and nothing else\n")


def test_an_address_that_is_none_is_said(tmp_path, similis):
    ran = similis("keys", "list", "--url", "http://localhost:port", "--home", tmp_path)
    assert ran.code == 5
    assert "not a valid URL" in ran.err


def test_a_list_is_read_page_by_page(server):
    server.on("GET /v1/studies", {"studies": [1, 2], "next": "c1"})
    server.on("GET /v1/studies", {"studies": [3], "next": None})
    with Client(server.url, "") as client:
        assert list(client.pages("/v1/studies", "studies", limit=2)) == [1, 2, 3]
    assert [one.path for one in server.asked] == ["/v1/studies?limit=2", "/v1/studies?limit=2&cursor=c1"]


def test_a_server_that_is_no_similis_is_recognised(server):
    server.answers["GET /x"] = [(200, [1], {})]
    with Client(server.url, "") as client, pytest.raises(SimilisError, match="is --url right"):
        client.get("/x")


def test_a_uid_cannot_leave_its_place_in_the_path(home, server, similis):
    similis("studies", "show", "../../keys?x", "--home", home)
    assert server.asked[0].path == "/v1/studies/..%2F..%2Fkeys%3Fx"


def test_neither_a_proxy_nor_netrc_gets_between_us_and_the_server(home, server, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server.on("GET /x", {})
    with connect(None, None, home) as client:
        client.get("/x")
    assert server.asked[0].headers["Authorization"] == "Bearer sml_of-this-home"
