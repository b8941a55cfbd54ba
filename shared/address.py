"""Loopback test for host names, and listening sockets."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. Of names only `localhost` counts: others may point anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, backlog: int = 128) -> socket.socket:
    """Return a socket that listens on host and port; port 0 picks any free port. Raises: `OSError`."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
