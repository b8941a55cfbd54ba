import gc
import socket

import pytest

from shared.address import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_any_free_port_is_listened_on(host: str) -> None:
    with listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        assert listener.getsockname()[1] > 0


def test_what_cannot_listen_is_closed() -> None:
    with listen("127.0.0.1", 0) as listener:
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", listener.getsockname()[1])
        gc.collect()  # an unclosed socket warns, and warnings are errors
