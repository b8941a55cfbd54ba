"""A message of an older version that no task handles is dropped, and the next one is processed."""

import json
import os
import subprocess
import time
from pathlib import Path

from celery import Celery

from services.embedded import commands
from shared.queue import QUEUES
from shared.types import Job


def test_a_message_of_a_task_that_was_renamed_is_dropped_in_one_line_and_the_worker_goes_on(
    valkey_url: str, tmp_path: Path
) -> None:
    client = Celery("earlier", broker=valkey_url)
    for task in ("similis.backfill", Job.CATCH_UP.value):
        client.send_task(task, queue=QUEUES[Job.CATCH_UP])
    client.close()
    log = tmp_path / "log"
    env = os.environ | {
        "SIMILIS_HOME": str(tmp_path / "home"),
        "SIMILIS_BROKER__URL": valkey_url,
        "SIMILIS_DATABASE__URL": "postgresql+psycopg://nobody@127.0.0.1:1/nothing",
        "SIMILIS_PSEUDONYM_KEY": "k" * 40,
        "SIMILIS_LOG_JSON": "true",
    }
    with log.open("wb") as told:
        worker = subprocess.Popen(commands.worker(QUEUES[Job.CATCH_UP], "heir"), env=env, stdout=told, stderr=told)
    try:
        until = time.monotonic() + 120
        while f'"task": "{Job.CATCH_UP}"' not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            assert worker.poll() is None, log.read_text()
            time.sleep(0.1)
    finally:
        worker.kill()
        worker.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    unknown = [line for line in lines if "unregistered task" in line["event"]]
    assert [(line["level"], line.get("exception_type")) for line in unknown] == [("error", "KeyError")]
