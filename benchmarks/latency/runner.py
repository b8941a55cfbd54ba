"""Runs a profile: makes each data set, builds each engine, then measures them in turn, round after round.

Every build, and every round of an engine, has its own process, so threads and memory are not shared. The order of
engines is drawn anew for each round, so that disturbances by other work are spread over all of them.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import report
from benchmarks.latency import child, raw
from benchmarks.latency.data import prepare
from benchmarks.latency.engines import chosen, module_of
from benchmarks.latency.engines.base import Engine
from benchmarks.latency.profiles import Profile
from shared.errors import Invalid, Unavailable

Json = dict[str, Any]
Say = Callable[[str, float], None]  #: called with the current step, and the share of all steps done
SEED: Final = 7
PACKAGES: Final = ("faiss-cpu", "qdrant-edge-py", "qdrant-client", "numpy", "hnswlib", "usearch")


@dataclass
class Outcome:
    """The result of a run, besides its measurements."""

    different: list[str] = field(default_factory=list)  #: engines declared exact whose answers differ from the oracle
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def run(profile: Profile, out: Path, patterns: Sequence[str], say: Say, *, scratch: Path, resume: bool) -> Outcome:
    """Measure what the profile asks for; write raw lines to `out`.

    Raises: `Invalid` if `out` holds results and `resume` is false, or if they were measured under other circumstances.
    """
    known = raw.read(out) if raw.there(out) else []
    if known and not resume:
        raise Invalid(f"{out.name} holds results already; --resume goes on with them, --anew forgets them")
    about = environment(profile)
    if other := differences(known, about):
        raise Invalid(
            f"{out.name} was measured with another {', another '.join(other)}: one report would mix what cannot be "
            "compared; choose another --out, or --anew to forget those results"
        )
    writer = raw.Writer(out)
    try:
        return _Run(profile, known, writer, say, scratch).all(patterns, about)
    finally:
        writer.close()


class _Run:
    def __init__(self, profile: Profile, known: list[Json], writer: raw.Writer, say: Say, scratch: Path) -> None:
        self.profile, self.known, self.say, self.scratch = profile, known, say, scratch
        self.writer = writer
        self.outcome = Outcome()
        self.id = uuid.uuid4().hex[:8]
        self.steps = self.taken = 0

    def all(self, patterns: Sequence[str], environment: Json) -> Outcome:
        asked = chosen(patterns)
        sets = [
            (one, [e for e in asked if one.engines == ("*",) or e in chosen(one.engines)]) for one in self.profile.sets
        ]  # "*" leaves out engines marked `aside`; they run if named
        self.steps = sum(1 + len(engines) * (1 + self.profile.rounds) for _, engines in sets)
        # all data first: a set that cannot be made is told before hours of measuring
        folders = [self._prepared(one.data) for one, _ in sets]
        self.writer.add({"what": "environment", "run": self.id} | environment)
        for (one, engines), folder in zip(sets, folders, strict=True):
            self._data_set(one.data, folder, engines)
        self.writer.add({"what": "end", "run": self.id, "load": os.getloadavg()[0]})
        self.say("done", 1.0)
        return self.outcome

    def _step(self, text: str) -> None:
        self.say(text, self.taken / max(self.steps, 1))
        self.taken += 1

    def _prepared(self, data: str) -> Path:
        """The data set's folder. Raises: `Invalid`, also if the known results are of other vectors; `NotFound`."""
        self._step(f"{data}: data and truth")
        folder = prepare(data, self.scratch / "data", self.profile.queries, SEED)
        was = self._known(data)
        if was is not None and was["content"] != _about(folder)["content"]:
            raise Invalid(f"{data} holds other vectors than those that the results are of: --anew forgets them")
        return folder

    def _known(self, data: str) -> Json | None:
        return next((line for line in self.known if line["what"] == "data" and line["data"] == data), None)

    def _data_set(self, data: str, folder: Path, engines: list[Engine]) -> None:
        about = _about(folder)
        if self._known(data) is None:
            self.writer.add({"what": "data", "run": self.id} | about)
        ready = [engine for engine in engines if self._fits(engine, data, about)]
        self.taken += (len(engines) - len(ready)) * (1 + self.profile.rounds)
        for engine in ready:
            self._build(engine, data, folder)
        for number in range(self.profile.rounds):
            for place in np.random.default_rng([SEED, number]).permutation(len(ready)):
                self._measure(ready[place], data, folder, number)
        for engine in ready:
            engine.drop(self._place(engine, folder))
            shutil.rmtree(self._place(engine, folder), ignore_errors=True)

    def _fits(self, engine: Engine, data: str, about: Json) -> bool:
        """Whether the engine takes this kind of data and can run here; if it cannot run, report it as skipped."""
        if engine.kind != about["kind"]:
            return False
        why = engine.missing() or (f"more than {engine.most:,} rows" if about["rows"] > engine.most else "")
        if why:
            self.outcome.skipped.append(f"{engine.name} on {data}: {why}")
            self._write(engine, data, 0, {"what": "skipped", "why": why})
        return not why

    def _place(self, engine: Engine, data: Path) -> Path:
        return self.scratch / "built" / data.name / engine.name

    def _build(self, engine: Engine, data: str, folder: Path) -> None:
        """Build the index; twice if that is quick."""
        self._step(f"{data}: {engine.name}, build")
        known = [line for line in self.known if _of(line, engine, data) and line["what"] == "build"]
        if self._over(engine, data) or (known and (self._place(engine, folder) / child.BUILT).is_file()):
            return
        if self._child(engine, data, folder, 0, {"step": "build"}, quiet=bool(known)) and not known:
            marked = json.loads((self._place(engine, folder) / child.BUILT).read_text(encoding="utf-8"))
            if marked["wall_s"] < self.profile.again_s:
                self._child(engine, data, folder, 0, {"step": "build"})

    def _over(self, engine: Engine, data: str) -> bool:
        """Whether all rounds are done, so that the index is not needed any more."""
        ended = [line for line in self.known if _of(line, engine, data) and line["what"] == "round"]
        return len({line["round"] for line in ended}) >= self.profile.rounds

    def _measure(self, engine: Engine, data: str, folder: Path, number: int) -> None:
        self._step(f"{data}: {engine.name}, round {number + 1} of {self.profile.rounds}")
        own = [line for line in self.known if _of(line, engine, data) and line["round"] == number]
        if any(line["what"] == "round" for line in own) or not (self._place(engine, folder) / child.BUILT).is_file():
            return
        if f"{engine.name} on {data}" in self.outcome.different:
            return
        more = {"step": "measure", "round": number, "done": own, "plan": asdict(self.profile.plan)}
        if self._child(engine, data, folder, number, more):
            self._write(engine, data, number, {"what": "round"})

    def _child(self, engine: Engine, data: str, folder: Path, number: int, more: Json, *, quiet: bool = False) -> bool:
        """Run the job in a process and write its lines; report a failure and return whether it succeeded."""
        job = {"engine": engine.name, "module": module_of(engine), "data": str(folder)} | more
        job["folder"] = str(self._place(engine, folder))

        def take(line: Json) -> None:
            if not quiet:
                self._write(engine, data, number, line)
            if line["what"] == "parity" and line["wrong"]:
                self.outcome.different.append(f"{engine.name} on {data}")

        why = ask_child(job, take, self.profile.timeout_s)
        if why:
            self.outcome.failed.append(f"{engine.name} on {data}, {more['step']}: {why}")
            self._write(engine, data, number, {"what": "failed", "step": more["step"], "why": why})
        return not why

    def _write(self, engine: Engine, data: str, number: int, line: Json) -> None:
        self.writer.add({"run": self.id, "data": data, "engine": engine.name, "round": number} | line)


def _about(folder: Path) -> Json:
    about: Json = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return about


def _of(line: Json, engine: Engine, data: str) -> bool:
    return line.get("engine") == engine.name and line.get("data") == data


def ask_child(job: Json, take: Callable[[Json], None], timeout_s: float) -> str:
    """Run the job in a process, call `take` with each line, and return the reason of a failure, or empty.

    After `timeout_s`, the process and all its descendants are killed.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.latency.child"], env=child.environment(), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        late = threading.Event()

        def stop() -> None:
            late.set()
            end(process.pid)

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            with process:
                assert process.stdin is not None  # noqa: S101 - both are pipes
                assert process.stdout is not None  # noqa: S101
                with contextlib.suppress(BrokenPipeError):  # it ended before reading; its exit status tells
                    process.stdin.write(json.dumps(job).encode())
                    process.stdin.close()
                for text in process.stdout:
                    if text.endswith(b"\n"):
                        take(json.loads(text))
        except BaseException:
            end(process.pid)
            raise
        finally:
            timer.cancel()
        if late.is_set():
            return f"it took more than {timeout_s:g} s"
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().rpartition("\n")[2][:300]
        return (last or f"it ended with status {process.returncode}") if process.returncode else ""


def end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def differences(known: Sequence[Json], about: Json) -> list[str]:
    """The circumstances that affect figures and differ from those of the known results.

    The number of rounds and the data sets may differ.
    """
    was = next((line for line in reversed(known) if line["what"] == "environment"), None)
    if was is None:
        return []
    found = [name for name in ("commit", "machine", "versions", "blas") if was.get(name) != about[name]]
    before, now = was["profile"], json.loads(json.dumps(about["profile"]))
    return found + (["profile"] if any(before[name] != now[name] for name in ("plan", "queries")) else [])


def environment(profile: Profile) -> Json:
    """Machine, versions, commit, command, threads and seeds, for the environment line."""
    import faiss as module

    faiss: Any = module
    about = report.facts("latency", {"data and order": SEED})
    about["command"] = " ".join(["similis", *sys.argv[1:]])
    about["versions"] = {name: _version(name) for name in PACKAGES}
    about["faiss_compiled"] = str(faiss.get_compile_options()).strip()
    about["threads"] = "search 1, build all cores; open loop and capacity as many as there are clients"
    about["profile"] = asdict(profile)
    held: list[Json] = []
    if why := ask_child({"step": "blas"}, held.append, 60):
        raise Unavailable(f"no process of the benchmark can be started: {why}")
    about |= held[0]
    return about


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
