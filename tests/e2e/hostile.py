"""A hostile peer of the DICOM receiver: mutated PDUs, stalls and floods, while C-ECHOs must be answered.

`python -m tests.e2e.hostile --pdus 10000 --seed 1` starts engines and a receiver of its own and attacks it from many
addresses; every two seconds another peer sends a C-ECHO, and between them an instance.
"""

import argparse
import contextlib
import random
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.dicom import Receiving, receiving
from benchmarks.dicom_peer import SOP_CLASS, Sender, Template, store_command, uid_of, value_pdu
from benchmarks.processes import anonymous_mib
from services.dicom import echo

WITHIN_S = 10.0
EVERY_S = 2.0
ATTACKERS = 8

Bytes = bytes


def request() -> Bytes:
    return echo.request("SIMILIS", "EVIL", SOP_CLASS.encode())


def conversation(rng: random.Random) -> list[Bytes]:
    """The valid PDUs of a whole association."""
    uid = uid_of(rng.randrange(10**6), 9)
    stored = [value_pdu(store_command(uid), 3), value_pdu(rng.randbytes(rng.randrange(2, 4000)), 2)]
    return [request(), *rng.choice([[echo.echo()], stored, [echo.echo(), *stored]]), echo.RELEASE]


def mutated(rng: random.Random, pdu: Bytes) -> Bytes:
    """The PDU with one of several small errors."""
    data = bytearray(pdu)
    kind = rng.randrange(8)
    if kind == 0:  # flipped bits
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # a wrong PDU length
        data[2:6] = struct.pack(">I", rng.choice([0, 1, 5, 7, len(data), 2**16, 2**20, 2**31, 2**32 - 1]))
    elif kind == 2:  # another PDU type
        data[0] = rng.randrange(256)
    elif kind == 3:  # truncated
        del data[rng.randrange(len(data)) :]
    elif kind == 4:  # a wrong length of an item
        place = rng.randrange(max(1, len(data) - 4))
        data[place : place + 4] = struct.pack(">I", rng.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 0x10000]))
    elif kind == 5:  # a repeated part
        first = rng.randrange(len(data))
        data[first:first] = data[first : first + rng.randrange(1, 200)]
    elif kind == 6:  # random bytes
        data = bytearray(rng.randbytes(rng.randrange(1, 2000)))
    else:  # many items
        data[74:74] = struct.pack(">BxH", rng.choice([0x20, 0x30, 0x40, 0x50, 0x55]), 0) * rng.randrange(1, 3000)
        data[2:6] = struct.pack(">I", len(data) - 6)
    return bytes(data)


@dataclass
class Attack:
    """The attacks, and counts of what was done."""

    receiver: Receiving
    seed: int
    left: int
    done: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def connect(self, rng: random.Random) -> socket.socket:
        source = f"127.{rng.randrange(4, 8)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
        return socket.create_connection(("127.0.0.1", self.receiver.port), 5, (source, 0))

    def admitted(self, rng: random.Random) -> socket.socket:
        """A connection that the receiver has admitted, so that its PDUs are read."""
        while True:
            connection = self.connect(rng)
            connection.settimeout(0.02)
            try:
                connection.recv(10)
            except TimeoutError:
                connection.settimeout(0.05)
                return connection
            except OSError:
                pass
            connection.close()
            self.done["turned away"] += 1
            time.sleep(0.05)

    def mutate(self, number: int) -> None:
        """Send mutated PDUs until none are left."""
        rng = random.Random(f"{self.seed}-{number}")
        while self._take():
            pdus = conversation(rng)
            which = rng.randrange(len(pdus))
            pdus[which] = mutated(rng, pdus[which])
            with contextlib.suppress(OSError), self.admitted(rng) as connection:
                for pdu in pdus[: which + 2]:
                    connection.sendall(pdu)
                    with contextlib.suppress(TimeoutError):
                        if not connection.recv(4096):
                            break
            self.done["mutated"] += 1

    def _take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def stall(self, words: Callable[[random.Random], Bytes], name: str) -> None:
        """Again and again, open ten connections that send these bytes and then nothing."""
        rng = random.Random(f"{self.seed}-{name}")
        while not self.over.wait(0.5):
            with contextlib.ExitStack() as held:
                for _ in range(10):
                    with contextlib.suppress(OSError):
                        held.enter_context(self.connect(rng)).sendall(words(rng))
                        self.done[name] += 1
                self.over.wait(6)

    def trickle(self) -> None:
        """Send a request byte by byte, as a slow loris."""
        rng = random.Random(f"{self.seed}-trickle")
        while not self.over.is_set():
            with contextlib.suppress(OSError), self.connect(rng) as connection:
                self.done["slow loris"] += 1
                for byte in request():
                    connection.sendall(bytes([byte]))
                    if self.over.wait(0.2):
                        return

    def flood(self) -> None:
        """Send a PDU of 4 GiB, or a data set that never ends, for as long as the receiver accepts it."""
        rng = random.Random(f"{self.seed}-flood")
        while not self.over.wait(0.2):
            with contextlib.suppress(OSError), self.connect(rng) as connection:
                connection.settimeout(2)
                if rng.random() < 0.5:
                    connection.sendall(struct.pack(">BxI", 1, 0xFFFFFFF0))
                else:
                    connection.sendall(request())
                    connection.recv(4096)
                    connection.sendall(value_pdu(store_command(uid_of(1, 8)), 3))
                self.done["flood"] += 1
                for _ in range(200):
                    connection.sendall(value_pdu(bytes(16_000), 0))

    def bare(self) -> None:
        rng = random.Random(f"{self.seed}-bare")
        while not self.over.wait(0.02):
            with contextlib.suppress(OSError):
                self.connect(rng).close()
                self.done["bare connect"] += 1


STALLS: dict[str, Callable[[random.Random], Bytes]] = {
    "claims 4 GiB": lambda _: struct.pack(">BxI", 1, 0xFFFFFFF0),
    "half a request": lambda rng: request()[: rng.randrange(1, 200)],
    "says nothing": lambda _: b"",
    "half a data set": lambda _: request() + value_pdu(store_command(uid_of(2, 8)), 3) + value_pdu(bytes(1000), 0),
}


@dataclass
class Asker:
    """A peer that sends C-ECHOs, and records the time until each is answered."""

    receiver: Receiving
    waits: list[float] = field(default_factory=list)
    tries: int = 0
    stored: int = 0

    def ask(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 3 * WITHIN_S:
            self.tries += 1
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", self.receiver.port), WITHIN_S)
                left = 3 * WITHIN_S - (time.monotonic() - began)
                if echo.ask(connection, "SIMILIS", left, "ASKER"):
                    break
            time.sleep(0.1)
        self.waits.append(time.monotonic() - began)

    def store(self, template: Template) -> None:
        """Send an instance during the attack; try again while the connection is refused."""
        number = time.monotonic_ns() % 10**12
        for _ in range(20):
            with contextlib.suppress(OSError, struct.error), Sender(self.receiver.port, "ASKER") as sender:
                self.stored += sender.store(uid_of(number), template.instance(number)) == 0
                return
            time.sleep(0.1)


def run(receiver: Receiving, pdus: int, seed: int) -> dict[str, object]:
    """Attack in parallel until all PDUs are sent; return the counts and times."""
    attack, asker, template = Attack(receiver, seed, pdus), Asker(receiver), Template(64)
    for _ in range(8):  # so that both receivers have their sandbox
        asker.ask()
        asker.store(template)
    asker = Asker(receiver)
    before, memory = set(receiver.receivers()), _memory(receiver)
    attackers = [threading.Thread(target=attack.mutate, args=[n], daemon=True) for n in range(ATTACKERS)]
    others = [threading.Thread(target=attack.stall, args=[words, name], daemon=True) for name, words in STALLS.items()]
    others += [threading.Thread(target=one, daemon=True) for one in (attack.trickle, attack.flood, attack.bare)]
    began = time.monotonic()
    for thread in (*attackers, *others):
        thread.start()
    while any(thread.is_alive() for thread in attackers):
        asker.ask()
        asker.store(template)
        time.sleep(EVERY_S)
    took_s = time.monotonic() - began
    attack.over.set()
    for thread in others:
        thread.join(20)
    asker.ask()
    log = receiver.log.read_text(errors="replace")
    parts = [path for path in receiver.blobs.rglob("*.part") if path.is_file()]
    return {
        "attacks": dict(attack.done),
        "seconds": round(took_s, 1),
        "echoes": len(asker.waits),
        "echo_tries": asker.tries,
        "echo_slowest_s": round(max(asker.waits), 2),
        "echo_median_s": round(sorted(asker.waits)[len(asker.waits) // 2], 3),
        "stored_meanwhile": asker.stored,
        "receivers_ended": log.count("receiver_ended"),
        "same_receivers": before == set(receiver.receivers()),
        "memory_mib_before": memory,
        "memory_mib_after": _memory(receiver),
        "parts_left": len(parts),
        "texts_of_peers_in_log": log.count("EVIL"),
    }


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {what}" for what, count in sorted(value.items()))
    return str(value)


def _memory(receiver: Receiving) -> float:
    return round(sum(anonymous_mib(pid) for pid in receiver.processes()), 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.e2e.hostile", description=__doc__)
    parser.add_argument("--pdus", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=report.RESULTS / "dicom")
    options = parser.parse_args()
    about = report.facts("hostile", {"attack": options.seed})
    about["command"] = f"python -m tests.e2e.hostile --pdus {options.pdus} --seed {options.seed}"
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="similis-hostile-"))
        receiver = stack.enter_context(receiving(Path(scratch), 2, SIMILIS_LOG_LEVEL="WARNING"))
        seen = run(receiver, options.pdus, options.seed)
    good = float(str(seen["echo_slowest_s"])) <= WITHIN_S
    verdict = "reached" if good else "not reached"
    body = [
        "# A hostile neighbour of the DICOM receiver",
        "",
        f"The slowest C-ECHO was answered after **{seen['echo_slowest_s']} s** (target {WITHIN_S:g} s: {verdict}).",
        "",
        "Mutated conversations by eight threads, connections that stall in four ways, a slow loris, floods and bare",
        "connects at once, from thousands of loopback addresses that are all admitted; a C-ECHO every two seconds,",
        "tried again where there is no room, and an instance after each.",
        "",
        *report.table(("what", "seen"), [(what.replace("_", " "), _words(value)) for what, value in seen.items()]),
    ]
    report.write("hostile", about, {"seen": seen}, body, options.out)
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
