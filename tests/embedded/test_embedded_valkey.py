import os
import shutil
import signal

import pytest
import redis

from services.embedded.valkey import Valkey


@pytest.fixture
def server(tmp_path):
    with Valkey(tmp_path) as made:
        yield made


def ask(server):
    return redis.Redis(unix_socket_path=str(server.socket))


def test_it_answers_on_its_socket_only_and_only_to_us(server):
    with ask(server) as client:
        assert client.ping()
        assert client.config_get("port")["port"] == "0"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert server.socket.stat().st_mode & 0o777 == 0o700
    assert server.socket.parent.stat().st_mode & 0o777 == 0o700


def test_it_comes_back_after_kill_9_over_the_socket_that_was_left(server):
    os.kill(server.child.pid, signal.SIGKILL)
    server.child.wait()
    assert server.socket.exists()
    assert not server.ready()
    server.start()
    with ask(server) as client:
        assert client.ping()


def test_stopped_it_leaves_no_socket(tmp_path):
    with Valkey(tmp_path) as server:
        pass
    assert not server.socket.exists()


def test_a_home_with_spaces_in_its_name_works(tmp_path):
    with Valkey(tmp_path / "a home with spaces") as server, ask(server) as client:
        assert client.config_get("dir")["dir"] == str(tmp_path / "a home with spaces/valkey")
        shutil.rmtree(server.socket.parent)
