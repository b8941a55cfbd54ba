"""Waiting for an operation: a progress bar on a terminal, otherwise an occasional line."""

import sys
import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.client import Answer, Client, part
from services.cli.terminal import err, say

POLL_S = 0.5
LONGEST_S = 30.0
PLAIN_EVERY_S = 15.0  #: without a terminal: seconds between two lines, besides one at each quarter
STANDING = frozenset({"succeeded", "failed", "cancelled", "paused"})  #: states that do not change by themselves


def pause_s(answered_in_s: float) -> float:
    """Seconds until the next poll, ten times the last response's latency: counting a million images is expensive."""
    return min(max(POLL_S, 10 * answered_in_s), LONGEST_S)


def poll(client: Client, operation_id: str, show: Callable[[Answer], None]) -> Answer:
    """Show the operation again and again until it has ended or is paused; returns its last state."""
    while True:
        began = time.monotonic()
        answer = client.get(f"/v1/operations/{part(operation_id)}")
        took_s = time.monotonic() - began
        show(answer)
        if answer["state"] in STANDING:
            return answer
        time.sleep(pause_s(took_s))


def watch(client: Client, operation_id: str, noun: str) -> Answer:
    """Wait until the operation has ended or is paused, showing how much is done; returns its last state."""
    if not sys.stderr.isatty():
        return poll(client, operation_id, _lines(noun))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err()) as bar:
        task = bar.add_task(noun, total=None)
        return poll(
            client, operation_id, lambda answer: bar.update(task, completed=answer["done"], total=answer.get("total"))
        )


def _lines(noun: str) -> Callable[[Answer], None]:
    told, at = -1, time.monotonic()

    def show(answer: Answer) -> None:
        nonlocal told, at
        done, total = answer["done"], answer.get("total") or 0
        quarter = 4 * done // total if total else -1
        if answer["state"] in STANDING or quarter > told or time.monotonic() - at > PLAIN_EVERY_S:
            told, at = quarter, time.monotonic()
            say(f"{noun}: {done} of {total or '?'} ({answer['state']})")

    return show
