"""Supervises the processes of one home: starts them in order, restarts those that die or hang, stops them in order.

Everything runs in the main thread, because a child dies with the thread that started it. Only the supervisor gets the
terminal's signals; the children have sessions of their own.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from services.embedded.home import Home
from services.embedded.logs import Log
from services.embedded.part import Part, Program
from services.embedded.pulse import Pulse
from shared import process
from shared.errors import SimilisError
from shared.process import Identity

TICK_S = 0.05
LONG_LIFE_S = 10.0  #: a process that was ready for longer did not fail at its start: the count of failures starts anew
LOUD_AFTER = 3  #: failures in a row from which on each message tells their number and the back-off


def back_off_s(failures: int) -> float:
    """Seconds to wait before the next start: 0 after the first failure, then 0.25, doubling up to 30."""
    return 0.0 if failures <= 1 else min(30.0, 0.25 * 2.0 ** min(failures - 2, 10))


@dataclass
class Watched:
    """One part and the state of its process."""

    part: Part
    log: Log
    needs: tuple[str, ...] = ()  #: parts that must be ready before the first start
    child: subprocess.Popen[bytes] | None = None
    identity: Identity | None = None
    ready: bool = False
    started: bool = False  #: later starts do not wait for `needs`
    failures: int = 0
    restarts: int = 0
    ready_at: float = 0.0
    not_before: float = 0.0
    done: bool = False  #: a part that runs once has exited with 0

    @property
    def runs_once(self) -> bool:
        return isinstance(self.part, Program) and self.part.once

    @property
    def pulse(self) -> Pulse | None:
        return self.part.pulse if isinstance(self.part, Program) else None

    @property
    def state(self) -> str:
        if self.done:
            return "done"
        if self.child is None:
            return "waiting"
        if self.runs_once:
            return "working"
        return "ready" if self.ready else "starting"


@dataclass
class Supervisor:
    """Supervises the parts of one home.

    Args:
        stop_order: names, first to last; parts of one group stop together.
        facts: further entries of `state.json`, such as the URL.
        say: prints one line on the terminal.
    """

    home: Home
    parts: Sequence[tuple[Part, tuple[str, ...]]]
    stop_order: Sequence[Sequence[str]]
    facts: dict[str, Any]
    say: Callable[[str], None]
    watched: dict[str, Watched] = field(init=False)
    asked_to_stop: bool = field(default=False, init=False)
    _told: str = field(default="", init=False)
    _announced: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.watched = {
            part.name: Watched(part, Log(self.home / f"logs/{part.name}.log"), needs) for part, needs in self.parts
        }

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until INT, TERM or HUP, then stop all parts in order.

        Raises: `SimilisError` where a part can never start; the other parts are stopped first.
        """
        process.become_subreaper()
        with self._signals() as wake:
            try:
                self.write_state()  # before the first tick, which may take long because it creates the database
                while not self.asked_to_stop:
                    self.tick(time.monotonic())
                    if self.is_ready and not self._announced:
                        self._announced = True
                        on_ready()
                    self._rest(wake)
            finally:
                self.stop()

    @property
    def is_ready(self) -> bool:
        """Whether all awaited parts serve or are done; the others may still be starting."""
        return all(w.ready or w.done for w in self.watched.values() if w.part.awaited)

    def tick(self, now: float) -> None:
        """Check each part once: clean up after a dead process, start, check readiness, or check for a hang."""
        for watched in self.watched.values():
            if watched.child is not None and process.has_ended(watched.child):
                self._bury(watched, now)
            if watched.child is None:
                self._start(watched, now)
            elif not watched.ready:
                watched.ready, watched.ready_at = watched.part.ready(), now
                if watched.pulse is not None:
                    watched.pulse.begin(now)
            elif watched.pulse is not None and watched.pulse.stopped(watched.child.pid, now):
                self._end_hung(watched, watched.pulse, now)
            self._read_log(watched)
            if self.asked_to_stop:
                break
        process.reap_strangers({w.child.pid for w in self.watched.values() if w.child is not None})
        self.write_state()

    def stop(self) -> None:
        """Stop every child in `stop_order`; the parts of one group are signalled together."""
        for names in self.stop_order:
            group = [self.watched[name] for name in names if name in self.watched]
            for watched in group:
                if watched.child is not None and not process.has_ended(watched.child):
                    with contextlib.suppress(ProcessLookupError):
                        watched.child.send_signal(watched.part.stop_steps[0][0])
            for watched in group:
                if watched.child is not None:
                    whole = _owns_its_group(watched)
                    process.stop(watched.child, *watched.part.stop_steps, group=whole, asked=True)
                    watched.child, watched.identity, watched.ready = None, None, False
        process.reap_strangers(set())
        self.write_state(stopped=True)

    def write_state(self, *, stopped: bool = False) -> None:
        """Write `state.json`, for `status`, `down` and the next start, if it has changed."""
        us = Identity.of(os.getpid())
        state = {
            **self.facts,
            "ready": self.is_ready and not stopped,
            "supervisor": None if stopped or us is None else vars(us),
            "processes": {
                name: {
                    "state": "stopped" if stopped and not w.done else w.state,
                    "restarts": w.restarts,
                    "identity": None if w.identity is None else vars(w.identity),
                }
                for name, w in self.watched.items()
            },
        }
        if (told := repr(state)) != self._told:
            with contextlib.suppress(OSError):  # a full disk must not stop the supervisor; the next tick retries
                self.home.remember(state)
                self._told = told

    def _read_log(self, watched: Watched) -> None:
        with contextlib.suppress(OSError):
            for line in watched.log.important():
                self.say(f"{watched.part.name}: {line}")
            watched.log.rotate()

    def _start(self, watched: Watched, now: float) -> None:
        waits = not watched.started and not all(self._served(name) for name in watched.needs)
        if watched.done or waits or now < watched.not_before:
            return
        try:
            if not watched.part.prepare():
                return
            with watched.log.path.open("ab") as output:
                watched.child = watched.part.spawn(output)
        except (SimilisError, OSError) as error:
            if not watched.started:
                raise  # it never ran, so a retry would not help
            watched.failures += 1
            watched.not_before = now + back_off_s(watched.failures)
            self.say(f"{watched.part.name} cannot be restarted now: {error}")
            return
        watched.identity = Identity.of(watched.child.pid)
        watched.started, watched.ready = True, False

    def _served(self, name: str) -> bool:
        return self.watched[name].ready or self.watched[name].done

    def _bury(self, watched: Watched, now: float) -> None:
        assert watched.child is not None  # noqa: S101 - the caller has checked it; for mypy
        rc = process.bury(watched.child, group=_owns_its_group(watched))
        served = watched.ready and now - watched.ready_at > LONG_LIFE_S
        watched.child, watched.identity, watched.ready = None, None, False
        if watched.runs_once and rc == 0:
            watched.done = True
            return
        watched.failures = 1 if served else watched.failures + 1
        watched.restarts += 1
        wait_s = back_off_s(watched.failures)
        watched.not_before = now + wait_s
        self._tell_death(watched, rc, wait_s)

    def _end_hung(self, watched: Watched, pulse: Pulse, now: float) -> None:
        """Kill a hung process, which would ignore SIGTERM; a later tick restarts it."""
        assert watched.child is not None  # noqa: S101 - the caller has checked it; for mypy
        self.say(f"{watched.part.name} has not responded for {pulse.silent_s:.0f} s; it is killed")
        watched.child.kill()
        pulse.begin(now)  # so that the message is not repeated while the process dies

    def _tell_death(self, watched: Watched, rc: int, wait_s: float) -> None:
        how = f"signal {signal.Signals(-rc).name}" if rc < 0 else f"code {rc}"
        name = watched.part.name
        if watched.failures < LOUD_AFTER:
            self.say(f"{name} ended ({how}); restarting it")
            return
        self.say(f"{name} has ended {watched.failures} times in a row ({how}); next try in {wait_s:.1f} s")
        for line in watched.log.last() if watched.failures == LOUD_AFTER else ():
            self.say(f"{name} |  {line}")

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Install handlers: INT, TERM and HUP request a stop; all of them and SIGCHLD wake `_rest`.

        Yields the read end of the wake-up pipe.
        """
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def ask(_number: int, _frame: FrameType | None) -> None:
            self.asked_to_stop = True

        def ignore(_number: int, _frame: FrameType | None) -> None:
            pass  # without a handler, the signal would not be written to the wake-up pipe

        handlers = {signal.SIGINT: ask, signal.SIGTERM: ask, signal.SIGHUP: ask, signal.SIGCHLD: ignore}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _rest(self, wake: int) -> None:
        """Sleep until a signal comes, for at most 1 s, or `TICK_S` while a part is starting."""
        quiet = all(w.done or w.ready or (w.child is not None and w.runs_once) for w in self.watched.values())
        with contextlib.suppress(InterruptedError):
            select.select([wake], [], [], 1.0 if quiet else TICK_S)
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _owns_its_group(watched: Watched) -> bool:
    """Whether to signal the part's whole process group.

    Not for Postgres, which ends its own children and must be able to finish a checkpoint.
    """
    return watched.part.name != "postgres"


def bury_orphans(home: Home, say: Callable[[str], None], patience_s: float = 10.0) -> None:
    """End all processes of a killed supervisor: wait, as the kernel has signalled each, then TERM, then KILL.

    Postgres gets INT and QUIT instead.

    First the dead supervisor is removed from the home's state, so that `down` and clients do not use its data.

    Raises: `SimilisError` where a process does not end.
    """
    state = home.state
    processes = state.get("processes", {})
    kept = {name: Identity(**entry["identity"]) for name, entry in processes.items() if entry.get("identity")}
    if state.get("supervisor"):
        with contextlib.suppress(OSError):
            home.remember({**state, "ready": False, "supervisor": None})
    if not any(identity.alive for identity in kept.values()):
        return
    say("waiting for processes of a supervisor that was killed")
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        for name, identity in kept.items():
            if number is not None:
                gentle = signal.SIGINT if number is signal.SIGTERM else signal.SIGQUIT
                identity.signal(gentle if name == "postgres" else number, group=name != "postgres")
        if process.until(lambda: not any(i.alive for i in kept.values()), patience_s if number is None else 5.0):
            return
    raise SimilisError(
        "processes of an earlier start have not ended: " + ", ".join(n for n, i in kept.items() if i.alive)
    )


def to_terminal(line: str) -> None:
    """Write a message to stderr; errors are ignored, as a closed terminal must not stop the supervisor."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"similis  {line}\n")
        sys.stderr.flush()
