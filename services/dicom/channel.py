"""The channel between the door and a receiver: connections go one way, short messages about them the other.

A SOCK_SEQPACKET socket pair; several threads may use each end.
"""

import json
import select
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

_MESSAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Handed:
    """What the door tells a receiver about a connection."""

    number: int = 0  #: 0: a check of our own, which is not counted
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def is_check(self) -> bool:
        return self.number == 0


class Channel:
    """One end of the channel."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def hand_over(self, handed: Handed, connection: socket.socket) -> None:
        """Send a copy of the connection's descriptor; the caller closes its own.

        Raises: `OSError` where the other end is gone or its buffer is full.
        """
        message = json.dumps(asdict(handed)).encode()
        socket.send_fds(self.connection, [message], [connection.fileno()])

    def wait(self, timeout_s: float) -> bool:
        return bool(select.select([self.connection], [], [], timeout_s)[0])

    def receive(self) -> tuple[Handed, socket.socket] | None:
        """The next connection; None where the door has closed the channel."""
        message, descriptors, _, _ = socket.recv_fds(self.connection, _MESSAGE_BYTES, 1)
        if not message:
            return None
        return Handed(**json.loads(message)), socket.socket(fileno=descriptors[0])

    def tell(self, *words: str | int) -> None:
        """Send a message to the door; ignored where the door is gone."""
        with suppress(OSError):
            self.connection.send(json.dumps(words).encode())

    def heard(self) -> list[Any] | None:
        """The receiver's next message; an empty list where there is none now, None where the receiver is gone."""
        try:
            message = self.connection.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return list(json.loads(message)) if message else None
