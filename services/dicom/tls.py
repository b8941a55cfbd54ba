"""TLS settings that BCP 195 requires: at least 1.2 with forward secrecy and AEAD, 1.3 where the sender supports it.

Source: PS3.15 B.12 (BCP 195 TLS Secure Transport Connection Profile), RFC 9325.
"""

import ssl

from shared.config import Dicom
from shared.errors import Invalid

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!PSK:!SRP"


def context(settings: Dicom) -> ssl.SSLContext | None:
    """The receiver's TLS context; None without a certificate. Raises: `Invalid`, without quoting the files."""
    if settings.tls_certificate is None:
        if settings.tls_key is not None or settings.tls_ca is not None:
            raise Invalid("a key, or a CA for senders, needs a certificate: set SIMILIS_DICOM__TLS_CERTIFICATE")
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        made.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")  # else OpenSSL asks the terminal
        if settings.tls_ca is not None:
            made.load_verify_locations(settings.tls_ca)
            made.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise Invalid(f"the DICOM receiver's certificate, key or CA cannot be used ({type(error).__name__})") from None
    return made
