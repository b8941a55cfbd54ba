"""How the supervisor counts the silence of a child."""

import os
import socket
import time

import pytest

from services.embedded import pulse
from services.embedded.pulse import Answered, Pulse, Touched
from shared import process
from shared.process import until


class Said:
    """A sign of life that the test sets."""

    def __init__(self):
        self.life = False

    def seen(self):
        said, self.life = self.life, False
        return said

    def forget(self):
        self.life = False


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """Ignore the load of the test machine."""
    monkeypatch.setattr(pulse, "CROWDED", float("inf"))


def watched(**how):
    made = Pulse(Said(), 60.0, **how)
    made.begin(1000.0)
    return made


NOBODY = 1 << 22  # above every process id: uses no processor time


def looks(one, times, start=1000.0, pid=NOBODY):
    """Look `times` times, 5 s apart, as the supervisor does."""
    return [one.stopped(pid, start + 5.0 * n) for n in range(1, times + 1)]


def test_a_child_that_says_nothing_is_given_up_after_its_patience():
    assert looks(watched(), 13) == [False] * 12 + [True]


def test_one_sign_is_enough():
    one = watched()
    looks(one, 12)
    one.sign.life = True
    assert looks(one, 13, start=1060.0) == [False] * 13
    assert looks(one, 1, start=1125.0) == [True]


def test_it_is_not_looked_at_more_often_than_it_is_counted():
    one = watched()
    assert not any(one.stopped(NOBODY, 1000.0 + n / 100) for n in range(499))
    assert one.silent_s == 0


def test_what_passes_while_we_do_not_look_does_not_count():
    one = watched()
    assert not one.stopped(0, 1000.0 + 8 * 3600)
    assert one.silent_s == 10.0


def test_on_a_crowded_machine_nobodys_silence_counts(monkeypatch):
    monkeypatch.setattr(pulse, "CROWDED", -1.0)
    assert not any(looks(watched(), 100))


def test_who_computes_is_busy_unless_it_must_answer_at_any_time():
    def burn():
        until_s = time.process_time() + 0.2
        while time.process_time() < until_s:
            pass

    for computes, silent_s in ((True, 0.0), (False, 20.0)):
        one = watched(computes=computes)
        one.stopped(os.getpid(), 1005.0)
        for n in range(2, 5):
            burn()
            one.stopped(os.getpid(), 1000.0 + 5 * n)
        assert one.silent_s == silent_s


def test_processor_time_counts_that_of_descendants():
    before = process.used_s(os.getpid())
    until_s = time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    assert 0.05 <= process.used_s(os.getpid()) - before < 5


def test_a_file_that_is_touched_is_a_sign_whatever_its_time_says(tmp_path):
    path = tmp_path / "alive"
    one = Touched(path)
    assert not one.seen()
    for moment in (100, 50, 2**33):  # clocks may jump backwards and forwards
        path.touch()
        os.utime(path, (moment, moment))
        assert one.seen()
        assert not one.seen()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(5)
        yield made


def answering(listener, answer):
    with listener.accept()[0] as client:
        asked = client.recv(4096)
        client.sendall(answer)
    return asked


def test_an_answer_is_a_sign_and_is_not_waited_for(listener):
    one = Answered(*listener.getsockname())
    assert not one.seen()  # sends the request
    assert not one.seen()
    asked = answering(listener, b"HTTP/1.1 200 OK\r\n\r\n")
    assert asked.startswith(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:")
    assert until(one.seen, 2)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b""])
def test_another_answer_is_none_and_it_is_asked_again(listener, answer):
    one = Answered(*listener.getsockname())
    assert not one.seen()
    answering(listener, answer)
    for _ in range(2):
        time.sleep(0.05)
        assert not one.seen()
    answering(listener, b"HTTP/1.1 200 OK\r\n\r\n")
    assert until(one.seen, 2)


def test_a_question_that_is_lost_is_asked_again(listener):
    one = Answered(*listener.getsockname())
    for _ in range(pulse.ASK_AGAIN + 1):
        assert not one.seen()
    listener.accept()[0].close()  # drops the lost request
    assert not one.seen()
    answering(listener, b"HTTP/1.1 200 OK\r\n\r\n")
    assert until(one.seen, 2)


def test_nobody_there_is_no_sign():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host, port = gone.getsockname()
    one = Answered(host, port)
    assert not any(one.seen() for _ in range(4))
