"""Who reaches an address, and listening there."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host; of names, which anybody may point anywhere, `localhost` alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A socket that listens there, on any free port for 0. Raises: `OSError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
