"""C-STORE throughput of one sender against eight in the same run, and a check that no acknowledged instance is lost.

`python -m benchmarks.dicom` starts PostgreSQL, Valkey and the receiver, but no workers that would process the images.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from blake3 import blake3

from benchmarks import report
from benchmarks.dicom_peer import Sender, Template, uid_of
from benchmarks.memory import slope
from benchmarks.processes import anonymous_mib
from migrations import run as migrations
from services.embedded import commands
from services.embedded.postgres import Postgres
from services.embedded.valkey import Valkey
from shared import process
from shared.address import listen
from shared.store.session import Store

TARGET = 0.8
FLAT_MIB = 2.0  #: per 1,000 instances
SENDERS = 8
START_S = 30.0
SHARED = 20  #: a second sender also sends one of this many instances


@dataclass
class Receiving:
    """A running receiver with its store."""

    port: int
    pid: int
    store: Store
    blobs: Path
    log: Path

    def receivers(self) -> list[int]:
        """The receiving processes behind the door."""
        return [int(pid) for pid in _read(Path(f"/proc/{self.pid}/task/{self.pid}/children")).split()]

    def processes(self) -> list[int]:
        """The door, its receivers, and their sandboxes."""
        found = [self.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task").glob("*/children")
            found += [int(child) for path in children for child in _read(path).split()]
        return found

    def rows(self, statement: str) -> list[Any]:
        with self.store.reading() as connection:
            return list(connection.execute(sa.text(statement)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the thread has ended
        return ""


@contextmanager
def receiving(folder: Path, processes: int, **settings: str) -> Iterator[Receiving]:
    """Yield a receiver on a PostgreSQL and a Valkey of its own; all of them stop when the block ends."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder))
        valkey = stack.enter_context(Valkey(folder))
        migrations.upgrade(postgres.url)
        with listen("127.0.0.1", 0) as probe:
            port = probe.getsockname()[1]
        home, log = folder / "home", folder / "dicom.log"
        home.mkdir()
        env = os.environ | {
            "SIMILIS_HOME": str(home),
            "SIMILIS_DATABASE__URL": postgres.url,
            "SIMILIS_BROKER__URL": valkey.url,
            "SIMILIS_PSEUDONYM_KEY": "a benchmark's own secret, 32 bytes long",
            "SIMILIS_DICOM__PORT": str(port),
            "SIMILIS_DICOM__PROCESSES": str(processes),
            "SIMILIS_INTAKE__RESERVE_MB": "64",
            **settings,
        }
        sign = folder / "serves"
        with log.open("wb") as output:
            child = process.spawn(commands.dicom(sign=sign), env=env, output=output)
        stack.callback(process.stop, child, (signal.SIGTERM, 30.0))
        if not process.until(sign.exists, 60):
            raise SystemExit(log.read_text())
        store = Store(postgres.url)
        stack.callback(store.close)
        yield Receiving(port, child.pid, store, home / "blobs", log)


@dataclass
class Watch:
    """Samples, once a second: instances received so far, and anonymous memory of all processes in MiB."""

    receiver: Receiving
    count: int = 0
    samples: list[tuple[int, float]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._over.wait(1.0):
            self.samples.append((self.count, sum(anonymous_mib(pid) for pid in self.receiver.processes())))

    def end(self) -> None:
        self._over.set()


def send(receiver: Receiving, template: Template, numbers: Sequence[Sequence[int]], watch: Watch) -> float:
    """Send all instances, one association per sender; return the seconds until every sender has its answers.

    Raises: `SystemExit` if an instance is not answered with success.
    """
    lock, start = threading.Lock(), threading.Barrier(len(numbers) + 1)

    def one(which: int) -> None:
        with Sender(receiver.port, f"SENDER{which}", source=f"127.0.1.{which + 1}") as sender:
            start.wait(START_S)
            for number in numbers[which]:
                status = sender.store(uid_of(number), template.instance(number))
                if status:
                    raise SystemExit(f"answered {status:04X}")
                with lock:
                    watch.count += 1

    with ThreadPoolExecutor(len(numbers)) as pool:
        working = [pool.submit(one, which) for which in range(len(numbers))]
        start.wait(START_S)
        began = time.perf_counter()
        for work in working:
            work.result()
    return time.perf_counter() - began


def shares(first: int, count: int, senders: int) -> list[list[int]]:
    """The instance numbers of each sender: its part of the range, and every `SHARED`-th one of its neighbour's."""
    own = [list(range(first + which, first + count, senders)) for which in range(senders)]
    if senders == 1:
        return own
    return [[*mine, *own[which - 1][::SHARED]] for which, mine in enumerate(own)]


def lost(receiver: Receiving, sent: int) -> dict[str, int]:
    """Counts of rows, files and contents that differ from what the receiver acknowledged."""
    rows = {uid: Path(os.fsdecode(path)) for uid, path in receiver.rows("SELECT sop_uid, path FROM image")}
    expected = {uid_of(number) for number in range(1, sent + 1)}
    files = {path for path in receiver.blobs.rglob("*") if path.is_file()}
    wrong = sum(blake3(path.read_bytes()).hexdigest() != path.stem for path in files if path.suffix == ".dcm")
    return {
        "expected": len(expected),
        "rows_missing": len(expected - rows.keys()),
        "rows_too_many": len(rows.keys() - expected),
        "files_missing": len(set(rows.values()) - files),
        "files_too_many": len(files - set(rows.values())),
        "files_with_other_bytes": wrong,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.dicom", description=__doc__)
    parser.add_argument("--instances", type=int, default=5000, help="by one sender alone, and again by eight")
    parser.add_argument("--side", type=int, default=256, help="of an instance, in pixels of two bytes")
    parser.add_argument("--processes", type=int, default=2, help="of the receiver")
    parser.add_argument("--rounds", type=int, default=4, help="every other one the other way round")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "dicom")
    options = parser.parse_args(arguments)
    about = report.facts("dicom", {"pixels": 1})
    template, each = Template(options.side), options.instances // options.rounds
    spent: dict[int, list[float]] = {1: [], SENDERS: []}
    answered = {1: 0, SENDERS: 0}
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="similis-dicom-"))
        with receiving(Path(scratch), options.processes) as receiver:
            watch = Watch(receiver)
            send(receiver, template, shares(1, 200, 4), watch)  # warms up sandboxes, pools and query plans
            sent, watch.count = 200, 0
            sampler = threading.Thread(target=watch.run, daemon=True)
            sampler.start()
            for number in range(options.rounds):
                for senders in (1, SENDERS) if number % 2 == 0 else (SENDERS, 1):
                    told = shares(sent + 1, each, senders)
                    spent[senders].append(send(receiver, template, told, watch))
                    answered[senders] += sum(map(len, told))
                    sent += each
                    print(f"{senders} senders: {sum(map(len, told)) / spent[senders][-1]:.1f}/s", flush=True)
            watch.end()
            sampler.join()
            missing = lost(receiver, sent)
            statuses = receiver.rows("SELECT outcome, count(*) FROM arrival GROUP BY 1")
    rates = {senders: answered[senders] / sum(times) for senders, times in spent.items()}
    figures = {
        "rates_per_s": {str(senders): round(rate, 1) for senders, rate in rates.items()},
        "ratio": round(rates[SENDERS] / rates[1], 3),
        "instance_bytes": len(template.data),
        "answered": {str(senders): count for senders, count in answered.items()},
        "memory_mib": {
            "first": round(watch.samples[0][1], 1),
            "last": round(watch.samples[-1][1], 1),
            "slope_per_1000": round(slope(*_columns(_settled(watch.samples))), 2),
        },
        "lost": missing,
        "journal": {str(outcome): int(count) for outcome, count in statuses},
        "seconds": {str(senders): [round(t, 2) for t in times] for senders, times in spent.items()},
    }
    name = "dicom" if options.processes == 2 else f"dicom_{options.processes}"
    report.write(name, about, figures, _text(options, figures), options.out)
    if any(missing[what] for what in missing if what != "expected"):
        sys.exit("something is lost, or too much")


def _settled(samples: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The samples without the first 30 % of the instances, in which pools and caches grow to their size."""
    return [one for one in samples if one[0] >= 0.3 * samples[-1][0]]


def _columns(samples: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [count for count, _ in samples], [mib for _, mib in samples]


def _text(options: argparse.Namespace, figures: dict[str, Any]) -> list[str]:
    rates, memory, missing = figures["rates_per_s"], figures["memory_mib"], figures["lost"]
    reached = "reached" if figures["ratio"] >= TARGET else "not reached"
    flat = "flat" if memory["slope_per_1000"] < FLAT_MIB else "not flat"
    return [
        "# C-STORE: one sender and eight",
        "",
        f"Eight senders together reach **{figures['ratio']}** of the rate of one alone (target {TARGET}: {reached}).",
        "",
        f"{options.processes} receiving processes behind one port, on PostgreSQL that syncs; instances of",
        f"{figures['instance_bytes']:,} bytes, one association for each sender, its next instance after the answer.",
        f"{options.rounds} rounds, every other one the other way round; one of {SHARED} instances of the eight is",
        "sent by two of them. The senders run on the same cores, and nothing works on the images.",
        "",
        *report.table(
            ("senders", "instances", "per second", "seconds of each round"),
            [(n, figures["answered"][n], rates[n], figures["seconds"][n]) for n in rates],
        ),
        "",
        f"Memory of the receiver (door, receivers, sandboxes; anonymous): {memory['first']} MiB at first,",
        f"{memory['last']} MiB at last, {memory['slope_per_1000']} MiB per 1,000 after the first 30 %: {flat}.",
        f"Of {missing['expected']:,} instances that were acknowledged, {missing['rows_missing']} have no row,",
        f"{missing['files_missing']} no file, and {missing['files_with_other_bytes']} other bytes;",
        f"{missing['files_too_many']} files are too many.",
    ]


if __name__ == "__main__":
    main()
