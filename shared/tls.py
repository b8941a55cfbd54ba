"""TLS of our requests to other servers."""

import ssl
from pathlib import Path


def verifying(authorities: Path | None = None) -> ssl.SSLContext:
    """A context that verifies the server by these authorities, or by those that the machine trusts.

    From Python 3.13 on, the default refuses authorities without all extensions of RFC 5280. OpenSSL's own command
    makes such authorities, hospitals use them, and browsers, curl and Python 3.11 accept them.

    Raises: `OSError`, also for a file that holds no certificate.
    """
    context = ssl.create_default_context(cafile=authorities)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
