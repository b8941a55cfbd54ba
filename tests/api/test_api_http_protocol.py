"""Bytes on a socket that are no request yet, with the server's real configuration."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import pytest
import uvicorn

from services.api import http_protocol
from services.api.__main__ import configuration
from shared.process import until
from tests.conftest import ROOT

MUCH = 64 * 1024 * 1024  #: exceeds the socket buffers


async def app(scope, receive, send):
    """Answers with the size of the body: before reading it at /early, after a delay at /slow."""
    size, more = 0, scope["path"] != "/early"
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = bytes(MUCH) if scope["path"] == "/much" else str(size).encode()
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def connection(monkeypatch):
    monkeypatch.setattr(http_protocol, "TAKEN_WITHIN_S", 1.0)
    config = configuration(app, "127.0.0.1", 0)
    config.lifespan = "off"
    server = uvicorn.Server(config)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert until(lambda: server.started, 10)
            with socket.create_connection(listener.getsockname()) as made:
                made.settimeout(10)
                yield made
        finally:
            server.should_exit = True
            thread.join(10)


def answer(connection):
    """Everything received until the peer closes."""
    told = b""
    while part := connection.recv(65536):
        told += part
    head, _, body = told.partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("rest", [b"a", b"a\r\nX: "])
def test_a_head_without_an_end_is_refused(connection, rest):
    connection.sendall(b"GET / HTTP/1.1\r\nX: " + (rest * http_protocol.MOST_HEAD)[: http_protocol.MOST_HEAD])
    head, body = answer(connection)
    assert head.startswith(b"http/1.1 400")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["detail"] == "the request line and headers may have at most 65536 bytes"


def test_what_is_no_http_is_told_as_a_problem(connection):
    connection.sendall(b"\0\1\2\r\n\r\n")
    head, body = answer(connection)
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "invalid"


def test_a_head_that_does_not_come_is_not_waited_for(connection, monkeypatch):
    connection.sendall(b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    assert connection.recv(1000).endswith(b"\r\n\r\n0")
    monkeypatch.setattr(http_protocol, "HEAD_WITHIN_S", 0.2)
    connection.sendall(b"GET / HTTP/1.1\r\nX:")
    assert answer(connection) == (b"", b"")


@pytest.mark.parametrize("rest", [b"\r\n", b"x" * 9])
def test_what_comes_behind_an_answer_and_begins_no_head_is_not_waited_for(connection, monkeypatch, rest):
    monkeypatch.setattr(http_protocol, "HEAD_WITHIN_S", 0.2)
    length = len(rest) if rest.strip() else 0
    connection.sendall(b"GET /early HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length)
    assert connection.recv(1000).endswith(b"\r\n\r\n0")
    connection.sendall(rest)
    assert answer(connection) == (b"", b"")


def test_a_head_behind_an_answer_that_takes_long_is_not_late(connection, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_WITHIN_S", 0.2)
    connection.sendall(b"GET /slow HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nX:")
    assert connection.recv(1000).endswith(b"\r\n\r\n0")
    connection.sendall(b"\r\nConnection: close\r\n\r\n")
    assert answer(connection)[1] == b"0"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_no_head_and_the_next_request_is_read(connection, chunked):
    size = 20 * http_protocol.MOST_HEAD
    if chunked:
        connection.sendall(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"%x\r\n%b\r\n" % (http_protocol.MOST_HEAD, b"x" * http_protocol.MOST_HEAD))
        connection.sendall(b"0\r\n\r\n")
    else:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    assert connection.recv(1000).endswith(b"\r\n\r\n%d" % size)
    connection.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answer(connection)[1] == b"0"


def test_requests_without_an_end_do_not_pile_up(connection):
    many = b"GET / HTTP/1.1\r\n\r\n" * (http_protocol.MOST_WAITING + 2)
    connection.sendall(many)
    head, body = answer(connection)
    assert b"http/1.1 400" in head + body.lower()


def test_a_few_requests_at_once_are_answered_in_turn(connection):
    connection.sendall(
        b"GET / HTTP/1.1\r\n\r\n" * http_protocol.MOST_WAITING + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    )
    head, body = answer(connection)
    assert (head + body).lower().count(b"200 ok") == http_protocol.MOST_WAITING + 1


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(connection):
    connection.sendall(b"GET /much HTTP/1.1\r\nConnection: close\r\n\r\n")
    time.sleep(3)
    took = 0
    with suppress(ConnectionResetError):
        while part := connection.recv(2**20):
            took += len(part)
    assert took < MUCH


def test_the_api_takes_as_many_connections_as_the_system_lets_it() -> None:
    code = (
        "import resource; from services.api.__main__ import raise_limit; kind = resource.RLIMIT_NOFILE\n"
        "resource.setrlimit(kind, (64, resource.getrlimit(kind)[1])); raise_limit()\n"
        "soft, hard = resource.getrlimit(kind); assert soft == hard > 64"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
