"""The peers that may send: AE titles with their addresses. Both must match, as either alone is easily forged.

[[peer]]
ae_title = "SCANNER1"
addresses = ["10.1.2.3"]

[[peer]]
ae_title = "*"                      # any title, from these addresses
addresses = ["10.1.3.0/24", "fd00:3::/64"]
"""

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.address import is_loopback
from shared.disk import toml
from shared.errors import Denied, Invalid

ANY = "*"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_AE_TITLE = 16  #: most characters, PS3.5 6.2


@dataclass(frozen=True, slots=True)
class Peer:
    ae_title: str
    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Peers:
    """The allow-list of peers."""

    peers: tuple[Peer, ...]

    def knows(self, address: str) -> bool:
        """Whether any peer has this address; checked before a byte is read."""
        return any(_within(address, peer) for peer in self.peers)

    def admits(self, ae_title: str, address: str) -> bool:
        return any(peer.ae_title in (ANY, ae_title) and _within(address, peer) for peer in self.peers)


LOOPBACK = Peers((Peer(ANY, (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))),))


def _within(address: str, peer: Peer) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in peer.networks)


def known(path: Path | None, host: str) -> Peers:
    """The peers of the file; without a file, any AE title from loopback.

    Raises: `Invalid`, which names the error in the file; `Denied` without a file on a host that others can reach.
    """
    if path is not None:
        return read(path)
    if not is_loopback(host):
        raise Denied(
            f"other machines can reach {host}: list who may send in a file and name it in SIMILIS_DICOM__PEERS"
        )
    return LOOPBACK


def read(path: Path) -> Peers:
    """Raises: `Invalid`."""
    if os.path.isdir(path):  # noqa: PTH112 - False, and no error, in a folder that may not be entered
        raise Invalid("the file of DICOM peers is a folder: Docker makes one where a file to mount is missing")
    found = toml(path, "the file of DICOM peers")
    told = found.get("peer")
    if set(found) != {"peer"} or not isinstance(told, list) or not told:
        raise Invalid("the file of DICOM peers must contain at least one [[peer]] table, and nothing else")
    return Peers(tuple(_peer(number, one) for number, one in enumerate(told, 1)))


def _peer(number: int, told: Any) -> Peer:  # noqa: ANN401 - what a person wrote
    if not isinstance(told, dict) or set(told) != {"ae_title", "addresses"}:
        raise Invalid(f"DICOM peer {number} must have an ae_title and addresses, and nothing else")
    title, addresses = told["ae_title"], told["addresses"]
    if not isinstance(title, str) or not 0 < len(title.strip()) <= _AE_TITLE:
        raise Invalid(f"DICOM peer {number}: the ae_title must have 1 to 16 characters; {ANY!r} stands for any")
    if not isinstance(addresses, list) or not addresses:
        raise Invalid(f"DICOM peer {number}: addresses must be a list of addresses or networks")
    try:
        return Peer(title.strip(), tuple(ipaddress.ip_network(one) for one in addresses))
    except (ValueError, TypeError) as error:
        raise Invalid(f"DICOM peer {number}: {error}") from None
