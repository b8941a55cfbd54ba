"""Decoding in a persistent child process, which a hostile file may kill without harm to the caller.

One child takes jobs in order, several in flight. Each file is passed as an open descriptor, so the child needs no
access to any folder. If the child dies, the file that it was decoding is quarantined at once, and the other jobs go
to a new child. If the child was killed from outside (not by this process or a limit), the file is retried. If the
child only waited until the time limit, its network share has probably stalled, and the file is retried later; a
decoder that sleeps looks the same and is treated the same. After `STALLS` such files of one mount, the caller's other
files of that mount are not tried.
"""

import math
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from shared.errors import Rejected, Unavailable
from shared.imaging import launch, wire
from shared.imaging.answers import Inspected
from shared.imaging.limits import Limits
from shared.imaging.reasons import PASSING, Reason, failed, hostile
from shared.imaging.recipe import Recipe
from shared.imaging.sources import Source, open_source, readable, shared_memory
from shared.mounts import mount_of
from shared.types import Decoded

Answer = Decoded | Inspected | Rejected

STALLS = 2  #: of one mount; each further file of it would cost the time limit again
_WINDOW = 16  #: jobs in flight: bounds open descriptors and shared memory
_TRIES = 3
_START_S = 60.0  #: a start takes a third of a second on an idle machine
_COMPUTING = 0.1  #: share of the time limit: a child that used less processor time was waiting
#: the signals by which a limit or a crash ends a child; no SIGKILL: the time limit passes its own reason
_EXITS = {
    signal.SIGXCPU: Reason.CPU,
    signal.SIGABRT: Reason.CRASH,  # a decoder's exception that nothing catches: bad data, or a failed allocation
    signal.SIGSEGV: Reason.CRASH,
    signal.SIGBUS: Reason.CRASH,
    signal.SIGFPE: Reason.CRASH,
    signal.SIGILL: Reason.CRASH,
    signal.SIGSYS: Reason.CRASH,
    signal.SIGXFSZ: Reason.CRASH,
}


@dataclass(slots=True)
class _Job:
    source: Source
    recipe: Recipe | None
    answer: Answer | None = None
    tries: int = 0
    memory: mmap.mmap | None = None


class Sandbox:
    """Decodes files in a child process. Start is lazy. Thread-safe: calls from several threads take turns.

    Attributes:
        starts: children started so far.
        deaths: children that a file ended (limit, crash, time), not those that reached `limits.files`.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.starts = 0
        self.deaths = 0
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._waiting: deque[_Job] = deque()  # jobs without an answer, in order; the first `_flying` are in flight
        self._flying = 0
        self._moved = self._computed_s = 0.0  # time of the child's last progress, and its processor time then
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, source: Source, recipe: Recipe) -> Decoded:
        """Raises: `Rejected`; `Unavailable` if no child can be started."""
        (answer,) = self._all([source], recipe)
        if isinstance(answer, Decoded):
            return answer
        raise _as_rejected(answer)

    def inspect(self, source: Path) -> Inspected:
        """Read the header and the digest of a file, no pixels. Raises: as `decode`."""
        (answer,) = self._all([source], None)
        if isinstance(answer, Inspected):
            return answer
        raise _as_rejected(answer)

    def inspect_many(self, paths: Iterable[Path]) -> list[Inspected | Rejected]:
        """Return one answer for each path, in order."""
        return [a if isinstance(a, Inspected) else _as_rejected(a) for a in self._all(list(paths), None)]

    def decode_many(self, sources: Iterable[Source], recipe: Recipe) -> Generator[Decoded | Rejected]:
        """Yield one answer for each source, in order; a bad source never stops the others.

        Sources that the child has not got yet are dropped when the generator is closed.
        """
        for answer in self._all(list(sources), recipe):
            yield answer if isinstance(answer, Decoded) else _as_rejected(answer)

    def close(self) -> None:
        """End the child and drop the jobs without an answer. The sandbox may be used again."""
        with self._lock:
            self._waiting.clear()
            self._flying = 0
            self._end()

    def _all(self, sources: list[Source] | list[Path], recipe: Recipe | None) -> Iterator[Answer]:
        jobs = deque(_Job(source, recipe) for source in sources)
        stalls = Counter[Path]()
        begun_by = os.getpid()
        with self._lock:
            if self._pid != os.getpid():  # a fork: child and jobs belong to the process that started them
                self._disown()
            self._waiting.extend(jobs)
        try:
            while jobs:
                if os.getpid() != begun_by:  # the answers go to the process that began
                    raise Unavailable("a fork cannot go on with the files of its parent")
                answer, source = self._answered(jobs[0]), jobs[0].source
                if isinstance(source, Path) and isinstance(answer, Rejected) and answer.reason == Reason.STALLED:
                    stalls[mount := mount_of(source)] += 1
                    if stalls[mount] == STALLS:
                        self._give_up(jobs, mount)
                yield answer
                jobs.popleft()  # keep no reference to the answer: there may be thousands
        finally:
            self._drop(jobs)

    def _give_up(self, jobs: Iterable[_Job], mount: Path) -> None:
        """Answer those of these jobs whose files are on this mount, untried."""
        left = [job for job in jobs if isinstance(job.source, Path) and mount_of(job.source) == mount]
        with self._lock:
            self._drop(left)
            for job in left:
                job.answer = job.answer or failed(Reason.STALLED)

    def _drop(self, jobs: Iterable[_Job]) -> None:
        """Drop the jobs of a caller that failed or left, except those in flight."""
        with self._lock:
            left = {id(job) for job in jobs if job.answer is None}
            flying = [self._waiting[i] for i in range(self._flying)]  # the child has these and answers them in order
            rest = [job for job in list(self._waiting)[self._flying :] if id(job) not in left]
            self._waiting = deque([*flying, *rest])

    def _answered(self, job: _Job) -> Answer:
        with self._lock:
            while job.answer is None:
                self._send()
                if job.answer is None:
                    self._receive()
            return job.answer

    def _send(self) -> None:
        """Put jobs in flight, up to the window; a file that cannot be opened gets its answer here."""
        while self._flying < min(_WINDOW, len(self._waiting)):
            job = self._waiting[self._flying]
            if not self._hand_over(job):
                return

    def _hand_over(self, job: _Job) -> bool:
        """Send one job; False if the child is gone and the window must be filled again."""
        try:
            descriptor = open_source(job.source, self.limits)
        except Rejected as rejected:
            job.answer = rejected
            del self._waiting[self._flying]
            return True
        descriptors = [descriptor]
        try:
            if job.recipe is not None:
                size = wire.room_for(job.recipe)
                descriptors.append(shared_memory("answer", size))
                job.memory = mmap.mmap(descriptors[1], size, prot=mmap.PROT_READ)
            connection = self._connection()
            socket.send_fds(connection, [wire.pack_job(job.recipe)], descriptors)
        except ConnectionError:
            self._drain()
            return False
        finally:
            for each in descriptors:
                os.close(each)
        job.tries += 1
        if self._flying == 0:
            self._got_on()
        self._flying += 1
        return True

    def _connection(self) -> socket.socket:
        if self._socket is None:
            try:
                self._process, self._socket = launch.start(self.limits)
            except OSError:
                raise Unavailable("the decoding process cannot be started") from None
            self.starts += 1
            self._ready = False
            self._buffer.clear()
        return self._socket

    def _receive(self) -> None:
        """Wait for the answer to the first job in flight, or for the end of the child."""
        process = self._process
        if process is None or process.stdout is None or self._flying == 0:
            return
        allowed = self.limits.wall_s if self._ready else max(self.limits.wall_s, _START_S)
        left = self._moved + allowed - time.monotonic()
        if not _has_more(process.stdout, max(0.0, left)):
            reason = self._overdue() if self._ready else None
            process.kill()
            self._lost(reason)
            return
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            self._lost()
            return
        self._buffer += chunk
        while len(self._buffer) >= 4:
            length = struct.unpack_from("<I", self._buffer)[0]
            if length > wire.REPLY_LIMIT:
                self._lost(Reason.CRASH)
                return
            if len(self._buffer) < 4 + length:
                return
            reply = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            if not self._take(reply):
                return

    def _take(self, reply: bytes) -> bool:
        if not reply:
            self._ready = True
            self._got_on()
            return True
        if not self._flying:
            self._lost(Reason.CRASH)
            return False
        job = self._waiting[0]
        try:
            answer = wire.unpack(reply, job.recipe, job.memory)
        except wire.Garbled:
            self._lost(Reason.CRASH)
            return False
        self._settle(answer)
        self._got_on()
        return True

    def _got_on(self) -> None:
        """Start the time limit of the first file in flight."""
        self._moved, self._computed_s = time.monotonic(), self._processor_s()

    def _overdue(self) -> Reason:
        """Return the reason for a file that exceeded the time limit: stalled if the child only waited for it."""
        waited = self._processor_s() - self._computed_s < _COMPUTING * self.limits.wall_s
        return Reason.STALLED if waited and isinstance(self._waiting[0].source, Path) else Reason.TIME

    def _processor_s(self) -> float:
        """Return the processor time of all threads of the child so far."""
        if self._process is None:
            return 0.0
        clock = ~self._process.pid << 3 | 2  # as in clock_getcpuclockid(3); parsing /proc costs 50 times as much
        try:
            return time.clock_gettime(clock)
        except OSError:  # the child has ended and was reaped, because this process inherited an ignored SIGCHLD
            return 0.0

    def _drain(self) -> None:
        """Read the last answers of a child that is gone, so that the right file is blamed."""
        process = self._process
        while self._flying and self._process is process:
            self._receive()
        if self._process is process:
            self._end()

    def _settle(self, answer: Answer) -> None:
        job = self._waiting.popleft()
        self._flying -= 1
        job.answer, job.memory = answer, None

    def _lost(self, reason: Reason | None = None) -> None:
        """End the child, settle the file that it was decoding if that file is to blame, and put the others back."""
        code = self._end()
        if not self._flying:
            return
        job = self._waiting[0]
        if not self._ready and job.tries >= _TRIES:  # the child does not even start, so the file is not to blame
            self._flying = 0
            raise Unavailable("the decoding process does not start")
        if reason is None and self._ready and code is not None:
            reason = _blamed(job.source, code)
        if reason is None and self._ready and job.tries >= _TRIES:
            reason = Reason.CRASH if readable(job.source, self.limits) else Reason.UNREADABLE
        if reason is not None:
            self.deaths += 1
            self._settle(failed(reason) if reason in PASSING else hostile(reason))
        for other in list(self._waiting)[1:]:  # the child can have begun only the first job
            other.tries = 0
        self._flying = 0

    def _end(self) -> int | None:
        """Kill and reap the child; return its exit code."""
        process, connection = self._process, self._socket
        self._process = self._socket = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        if self._pid == os.getpid():
            with suppress(subprocess.TimeoutExpired):
                if process.stdout is not None and not _at_end(process):
                    process.kill()
                process.wait(timeout=5)
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    def _disown(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
            self._process.returncode = 0  # the process that forked waits for it
        self._process = self._socket = None
        self._pid, self._flying = os.getpid(), 0
        self._waiting.clear()


def _at_end(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the child has closed its output, which happens only when it ends with its own exit code."""
    if process.stdout is None or not _has_more(process.stdout, 0):
        return False
    return os.read(process.stdout.fileno(), 1) == b""


def _blamed(source: Source, code: int) -> Reason | None:
    """Return the reason that the child's exit gives for its file; None if the file is not to blame and is retried."""
    if code == -signal.SIGBUS and isinstance(source, Path):
        return None  # the file was truncated, or its disk or share failed, while it was read
    return _EXITS.get(signal.Signals(-code)) if code < 0 else Reason.CRASH if code > 0 else None


def _has_more(pipe: IO[bytes], timeout_s: float) -> bool:
    """Wait until there is data or end of file; `select` would refuse descriptors above 1023."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    return bool(waiting.poll(math.ceil(timeout_s * 1000)))


def _as_rejected(answer: Answer) -> Rejected:
    return answer if isinstance(answer, Rejected) else failed(Reason.SANDBOX)
