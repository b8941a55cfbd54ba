"""Free ports for servers in tests."""

from shared.address import listen


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with listen("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])
