"""What passes between the door and a receiver: connections one way, a few words about them the other way.

A socket pair of whole messages; each end may be used by several threads.
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
    """A connection, as the door knows it."""

    number: int = 0  #: 0: our own check, which nobody counts
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def is_check(self) -> bool:
        return self.number == 0


class Channel:
    """One end."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def hand_over(self, handed: Handed, connection: socket.socket) -> None:
        """The other end has it, too: close ours. Raises: `OSError` where the other end is gone, or does not read."""
        message = json.dumps(asdict(handed)).encode()
        socket.send_fds(self.connection, [message], [connection.fileno()])

    def wait(self, timeout_s: float) -> bool:
        return bool(select.select([self.connection], [], [], timeout_s)[0])

    def receive(self) -> tuple[Handed, socket.socket] | None:
        """The next connection; None where the door is gone."""
        message, descriptors, _, _ = socket.recv_fds(self.connection, _MESSAGE_BYTES, 1)
        if not message:
            return None
        return Handed(**json.loads(message)), socket.socket(fileno=descriptors[0])

    def tell(self, *words: str | int) -> None:
        """The door hears it, if it is there."""
        with suppress(OSError):
            self.connection.send(json.dumps(words).encode())

    def heard(self) -> list[Any] | None:
        """What the receiver says; None where it is gone, an empty list where it says nothing now."""
        try:
            message = self.connection.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return list(json.loads(message)) if message else None
