"""Ports for servers that tests start."""

from shared.address import listen


def free_port() -> int:
    """One of the loopback that nobody listens on."""
    with listen("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])
