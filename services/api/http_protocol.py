"""uvicorn's HTTP protocol with limits on the size and time of request heads, and problems as answers to bad HTTP.

uvicorn alone buffers a head of any size, joining it again with each piece, and any number of pipelined requests: one
connection without a key could stall all others and exhaust the memory. It also waits for ever for the rest of a body
whose request was already answered, and for a client that no longer reads.
"""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from services.api.errors import KINDS, problem
from shared.errors import Invalid

MOST_HEAD = 64 * 1024  #: bytes of an incomplete head
HEAD_WITHIN_S = 30.0
TAKEN_WITHIN_S = 300.0  #: within which a client must acknowledge data that we send
MOST_WAITING = 16  #: pipelined requests of one connection


class HttpProtocol(HttpToolsProtocol):
    _head = 0  #: bytes since the last complete head or piece of a body
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        taken_within_ms = int(TAKEN_WITHIN_S * 1000)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, taken_within_ms)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response(f"the request line and headers may have at most {MOST_HEAD} bytes")
        elif self._late is None and not self._answering():  # an empty line, or the rest of a body nobody reads
            self._wait()

    def on_message_begin(self) -> None:
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._arrived()
        if len(self.pipeline) >= MOST_WAITING:
            raise Invalid("too many pipelined requests")  # ends the parser and the connection
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._arrived()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        answer = problem(KINDS[Invalid], msg, "", {"Connection": "close"})
        head = b"".join(b"%b: %b\r\n" % pair for pair in answer.raw_headers)
        self.transport.write(STATUS_LINE[400] + head + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def _wait(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(HEAD_WITHIN_S, self._end)

    def _end(self) -> None:
        if self._answering():  # reading may be paused during an answer, so the client is not late
            self._wait()
        else:
            self.transport.close()

    def _answering(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)  # `cycle` is None before the first request

    def _arrived(self) -> None:
        self._head = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None
