"""TLS as a client: which servers are trusted."""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.tls import verifying
from tests.certificates import authority


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """An authority as OpenSSL makes it by default, without a key usage, and a server's certificate of it."""
    folder = tmp_path_factory.mktemp("keys")
    authority(folder, "server")
    return folder


def greeted(keys: Path, context: ssl.SSLContext, name: str = "127.0.0.1") -> bytes:
    """What a server with the certificate says to a client with this context."""
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(keys / "server.pem", keys / "server.key")

    def serve() -> None:
        caller, _ = listener.accept()
        with caller, served.wrap_socket(caller, server_side=True) as connection:
            connection.sendall(b"welcome")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(serve)
        with (
            socket.create_connection(listener.getsockname(), 5) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            return connection.recv(7)


def test_an_authority_of_ones_own_is_trusted_if_it_is_named(keys):
    assert greeted(keys, verifying(keys / "ca.pem")) == b"welcome"


def test_without_it_and_for_another_host_the_server_is_refused(keys):
    with pytest.raises(ssl.SSLCertVerificationError):
        greeted(keys, verifying())
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        greeted(keys, verifying(keys / "ca.pem"), "127.0.0.2")
