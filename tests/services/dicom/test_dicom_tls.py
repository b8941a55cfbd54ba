"""TLS with server and client certificates made in the test."""

import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
import warnings
from pathlib import Path

import pytest
from pynetdicom import AE

from services.dicom import echo, tls
from shared.config import Dicom
from shared.errors import Invalid
from shared.process import until
from shared.tls import verifying
from tests.certificates import authority, openssl
from tests.conftest import ROOT
from tests.ports import free_port
from tests.services.dicom.conftest import MAMMOGRAM, closing, instance, written


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A CA, a server and a sender with certificates of it, and a stranger without."""
    folder = tmp_path_factory.mktemp("keys")
    authority(folder, "server", "sender")
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout stranger.key -out stranger.pem -days 2 -subj /CN=me")
    return folder


@pytest.fixture
def receiver(start, keys):
    return start(
        dicom__tls_certificate=keys / "server.pem",
        dicom__tls_key=keys / "server.key",
        dicom__tls_ca=keys / "ca.pem",
        dicom__pdu_s=2,
    )


def caller(keys, name: str | None, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = verifying(keys / "ca.pem")
    if name is not None:
        context.load_cert_chain(keys / f"{name}.pem", keys / f"{name}.key")
    if maximum is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = maximum
    return context


def associated(receiver, context):
    ae = AE(ae_title="SCANNER")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    ae.add_requested_context(MAMMOGRAM)
    return ae.associate("127.0.0.1", receiver.port, ae_title="SIMILIS", tls_args=(context, "127.0.0.1"))


def served(receiver, context) -> bool:
    """Whether a C-ECHO is answered: without pynetdicom, which leaves its sockets open after a failed handshake."""
    with socket.create_connection(("127.0.0.1", receiver.port), 5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                return echo.ask(connection, "SIMILIS", 5, "SCANNER")
        except OSError:
            return False


def test_a_sender_with_a_certificate_is_served_and_nobody_else(receiver, keys):
    with closing(associated(receiver, caller(keys, "sender"))) as association:
        assert association.is_established
        assert association.send_c_store(instance(side=600)).Status == 0
        assert association.send_c_store(instance(2)).Status == 0
    assert served(receiver, caller(keys, "sender"))
    assert len(receiver.blobs()) == 2
    assert not served(receiver, caller(keys, None))
    assert not served(receiver, caller(keys, "stranger"))
    assert not receiver.echo(timeout_s=3), "without TLS nothing is said"
    assert echo.answers(receiver.home, "SIMILIS"), "our own check needs no certificate"


def test_a_handshake_that_fails_is_counted_and_logged_with_the_address(start, keys):
    """As when the certificate of a scanner has expired: its images stop coming, and nothing else shows why."""
    port = free_port()
    receiver = start(
        dicom__tls_certificate=keys / "server.pem",
        dicom__tls_key=keys / "server.key",
        dicom__tls_ca=keys / "ca.pem",
        dicom__metrics_port=port,
    )

    def shown() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    socket.create_connection(("127.0.0.1", receiver.port), 5).close()  # as a load balancer probes a port
    assert not served(receiver, caller(keys, "stranger"))
    assert not receiver.echo(timeout_s=3)  # without TLS
    assert until(lambda: 'similis_dicom_associations_total{result="tls-failed"} 2.0' in shown(), 5), receiver.said
    told = [json.loads(line) for line in receiver.said.splitlines() if "tls-failed" in line]
    assert [(line["event"], line["address"]) for line in told] == [("association_rejected", "127.0.0.1")] * 2
    assert [line["error"] for line in told] == ["CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER"]


def test_who_does_not_finish_the_handshake_holds_nobody_up(receiver, keys):
    silent = [socket.create_connection(("127.0.0.1", receiver.port), 5, (f"127.0.5.{n}", 0)) for n in range(1, 5)]
    for one in silent:
        one.sendall(b"\x16\x03\x01")
    with closing(associated(receiver, caller(keys, "sender"))) as association:
        assert association.is_established
    assert until(lambda: all(_closed(one) for one in silent), 8)
    for one in silent:
        one.close()


def _closed(connection) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(100) == b"" or _closed(connection)
    except TimeoutError:
        return False
    except OSError:
        return True


def test_old_versions_are_not_spoken(receiver, keys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the old protocol version is intended
        old = caller(keys, "sender", ssl.TLSVersion.TLSv1_1)
    assert not served(receiver, old)


def test_only_forward_secret_ciphers_are_offered(keys):
    made = tls.context(Dicom(tls_certificate=keys / "server.pem", tls_key=keys / "server.key"))
    assert made is not None
    assert made.verify_mode == ssl.CERT_NONE
    for cipher in made.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert cipher["name"].startswith(("TLS_", "ECDHE")), cipher["name"]


def test_a_key_without_a_certificate_or_of_another_is_told(keys):
    for wrong in (
        Dicom(tls_key=keys / "server.key"),
        Dicom(tls_ca=keys / "ca.pem"),
        Dicom(tls_certificate=keys / "server.pem", tls_key=keys / "sender.key"),
        Dicom(tls_certificate=keys / "nothing.pem", tls_key=keys / "server.key"),
    ):
        with pytest.raises(Invalid):
            tls.context(wrong)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(keys):
    openssl(keys, "pkey -in server.key -aes256 -passout pass:secret -out locked.key")
    ask = (
        "from services.dicom import tls\nfrom shared.config import Dicom\nfrom shared.errors import Invalid\n"
        "try:\n    tls.context(Dicom(tls_certificate='server.pem', tls_key='locked.key'))\n"
        "except Invalid as error:\n    print(error)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", ask], cwd=keys, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=True,
    ) as child:  # fmt: skip
        try:
            child.wait(60)  # its stdin stays open and silent, as a terminal
        finally:
            child.kill()
        assert child.stdout is not None
        assert b"cannot be used" in child.stdout.read()


def test_dcmtk_sends_over_tls(receiver, keys, tmp_path, tool):
    path = written(instance(3), tmp_path)
    asked = [tool("storescu"), "-aec", "SIMILIS", "+tls", keys / "sender.key", keys / "sender.pem", "+cf",
             keys / "ca.pem", "127.0.0.1", str(receiver.port), path]  # fmt: skip
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert len(receiver.blobs()) == 1
