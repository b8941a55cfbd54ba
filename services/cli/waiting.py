"""Waiting for an operation: a progress bar on a terminal, otherwise an occasional line."""

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.client import Answer, Client, part
from services.cli.terminal import err, say

POLL_S = 0.5
LONGEST_S = 30.0
PLAIN_EVERY_S = 15.0
STANDING = frozenset({"succeeded", "failed", "cancelled", "paused"})  #: states that do not change by themselves


def timed(client: Client, path: str) -> tuple[Answer, float]:
    """The answer, and how many seconds it took."""
    began = time.monotonic()
    return client.get(path), time.monotonic() - began


def pause_s(poll_s: float, answered_in_s: float) -> float:
    """Seconds until the next poll, ten times the last response's latency: counting a million images is expensive."""
    return min(max(poll_s, 10 * answered_in_s), LONGEST_S)


def watch(client: Client, operation_id: str, noun: str, *, poll_s: float = POLL_S) -> Answer:
    """Wait until the operation has ended or is paused, showing its progress; returns its last state."""
    shows = _bar if sys.stderr.isatty() else _lines
    return shows(client, f"/v1/operations/{part(operation_id)}", noun, poll_s)


def _bar(client: Client, path: str, noun: str, poll_s: float) -> Answer:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err()) as bar:
        task = bar.add_task(noun, total=None)
        while True:
            answer, took_s = timed(client, path)
            bar.update(task, completed=answer["done"], total=answer.get("total"))
            if answer["state"] in STANDING:
                return answer
            time.sleep(pause_s(poll_s, took_s))


def _lines(client: Client, path: str, noun: str, poll_s: float) -> Answer:
    told, at = -1, time.monotonic()
    while True:
        answer, took_s = timed(client, path)
        done, total, standing = answer["done"], answer.get("total") or 0, answer["state"] in STANDING
        quarter = 4 * done // total if total else -1
        if standing or quarter > told or time.monotonic() - at > PLAIN_EVERY_S:
            told, at = quarter, time.monotonic()
            say(f"{noun}: {done} of {total or '?'} ({answer['state']})")
        if standing:
            return answer
        time.sleep(pause_s(poll_s, took_s))
