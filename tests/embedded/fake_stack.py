"""A supervisor over small fake children, run as a process: `python fake_stack.py HOME SPEC.json`.

Each child appends its events to HOME/events, so that a test can read their order.
"""

import json
import sys
import time
from pathlib import Path

from services.embedded import pulse
from services.embedded.home import Home
from services.embedded.part import Program
from services.embedded.pulse import Pulse, Touched
from services.embedded.supervisor import Supervisor, bury_orphans, to_terminal
from shared.errors import Conflict

CHILD = """
import pathlib, signal, sys, time
name, events, stop = sys.argv[1], open(sys.argv[2], "a"), float(sys.argv[3])
def say(word):
    events.write(f"{name} {word}\\n"); events.flush()
def end(*_):
    time.sleep(stop); say("stopped"); sys.exit(0)
signal.signal(signal.SIGTERM, end)
say("started")
while True:
    pathlib.Path(sys.argv[2]).with_name(name + ".alive").touch()
    time.sleep(0.05)
"""


class Slow(Program):
    """A program whose preparation takes 3 s, as creating a database does."""

    def prepare(self) -> bool:
        time.sleep(3)
        return super().prepare()


def program(home: Home, spec: dict) -> Program:
    name = spec["name"]
    argv = spec.get("argv") or [sys.executable, "-c", CHILD, name, str(home / "events"), str(spec.get("stop_s", 0))]
    serves = home / f"{name}.serves"
    alive = Touched(home / f"{name}.alive")
    silent_s = spec.get("silent_s")  # without it, only its death is noticed
    return (Slow if spec.get("slow") else Program)(
        name,
        argv,
        once=spec.get("once", False),
        serves=serves.exists if spec.get("waits_for_file") else lambda: True,
        pulse=None if silent_s is None else Pulse(alive, silent_s, look_s=0.2),
    )


def main(folder: str, spec_path: str) -> int:
    home = Home.at(Path(folder))
    pulse.CROWDED = float("inf")  # the load of the test machine must not matter
    spec = json.loads(Path(spec_path).read_text())
    parts = [(program(home, one), tuple(one.get("needs", ()))) for one in spec["parts"]]
    try:
        with home.lock():
            bury_orphans(home, to_terminal, patience_s=spec.get("patience_s", 10))
            Supervisor(home, parts, spec["order"], {"url": "http://nowhere"}, to_terminal).run(
                lambda: to_terminal("ready")
            )
    except Conflict as error:
        to_terminal(str(error))
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
