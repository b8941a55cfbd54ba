"""The receiver or parts of it are killed during a transfer: acknowledged instances stay, partial ones leave nothing."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from benchmarks.dicom_peer import Sender, Template, uid_of
from shared.process import until
from tests.services.dicom.conftest import Running, instance


class Sending(threading.Thread):
    """Sends until it is stopped; after a failure it begins a new association, as a PACS does."""

    def __init__(self, receiver: Running, which: int) -> None:
        super().__init__(daemon=True)
        self.receiver, self.which = receiver, which
        self.acknowledged: list[str] = []
        self.over = threading.Event()
        self.failures = 0

    def run(self) -> None:
        template, number = Template(64), self.which * 100_000
        while not self.over.is_set():
            with suppress(OSError), Sender(self.receiver.port, f"SENDER{self.which}") as sender:
                while not self.over.is_set():
                    number += 1
                    if sender.store(uid_of(number), template.instance(number)) == 0:
                        self.acknowledged.append(uid_of(number))
            self.failures += not self.over.wait(0.05)


def check(receiver: Running, acknowledged: set[str]) -> None:
    rows = {uid: os.fsdecode(path) for uid, path in receiver.rows("SELECT sop_uid, path FROM image")}
    files = {str(path) for path in receiver.blobs()}
    assert acknowledged <= rows.keys(), "every acknowledged instance has its row"
    assert set(rows.values()) <= files, "every row has its file"
    for uid, path in rows.items():
        content = Path(path).read_bytes()
        assert uid.encode() in content
        assert blake3(content).hexdigest() == Path(path).stem, "none is half"


def test_a_receiver_that_is_killed_is_started_again_and_nothing_acknowledged_is_lost(start):
    receiver = start(dicom__processes=2)
    senders = [Sending(receiver, which) for which in (1, 2)]
    for one in senders:
        one.start()
    for _ in range(2):
        before = sum(len(one.acknowledged) for one in senders)
        assert until(lambda before=before: sum(len(one.acknowledged) for one in senders) > before + 8, 20)
        assert until(lambda: len(receiver.receivers()) == 2, 20)
        os.kill(receiver.receivers()[0], signal.SIGKILL)
    reached = sum(len(one.acknowledged) for one in senders)
    assert until(lambda: sum(len(one.acknowledged) for one in senders) > reached + 8, 20)
    for one in senders:
        one.over.set()
    for one in senders:
        one.join(20)
    assert any(one.failures for one in senders)
    check(receiver, {uid for one in senders for uid in one.acknowledged})


def test_after_a_kill_of_everything_the_next_start_goes_on(start):
    receiver = start()
    sender = Sending(receiver, 1)
    sender.start()
    assert until(lambda: len(sender.acknowledged) > 10, 20)
    receiver.kill()
    acknowledged = set(sender.acknowledged)
    sender.over.set()
    sender.join(20)
    check(receiver, acknowledged)
    receiver.start()
    assert receiver.send(instance()) == [0]


def test_a_stop_answers_what_is_being_stored(start):
    receiver = start()
    sender = Sending(receiver, 1)
    sender.start()
    assert until(lambda: len(sender.acknowledged) > 5, 20)
    assert receiver.stop() == 0
    sender.over.set()
    sender.join(20)
    check(receiver, set(sender.acknowledged))
    assert [path for path in receiver.blobs() if path.suffix == ".part"] == []


def test_a_receiver_that_no_longer_answers_is_replaced(start, injected):
    injected("import services.dicom.door as d\nd.WATCH_S = 1.0  # not half a minute\n")
    receiver = start()
    (wedged,) = receiver.receivers()
    os.kill(wedged, signal.SIGSTOP)
    assert until(lambda: receiver.receivers() not in ([], [wedged]), 15)
    assert until(receiver.echo, 15)
