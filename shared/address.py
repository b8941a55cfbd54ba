"""Who reaches an address."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host; of names, which anybody may point anywhere, `localhost` alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
