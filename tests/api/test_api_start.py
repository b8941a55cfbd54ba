"""The API process itself."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from shared.config import Broker
from shared.queue import CeleryQueue
from shared.runtime import producer
from shared.types import Job
from tests.api.conftest import TwinRuntime
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "torchvision", "onnxruntime", "faiss", "matplotlib", "onnx", "pandas", "sklearn", "celery")


def test_starting_loads_nothing_heavy():
    code = "import sys, json, services.api.__main__; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stdout))


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def test_it_refuses_to_serve_others_without_keys(tmp_path):
    env = environment(
        SIMILIS_API__HOST="0.0.0.0", SIMILIS_API__REQUIRE_KEY="false", SIMILIS_HOME=str(tmp_path),
        SIMILIS_DATABASE__URL="postgresql://nobody", SIMILIS_PSEUDONYM_KEY="k" * 40,
    )  # fmt: skip
    argv = [sys.executable, "-m", "services.api"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("similis api: without API keys")


def test_the_process_serves_and_ends_cleanly_when_told(database_url, tmp_path):
    port = free_port()
    env = environment(
        SIMILIS_HOME=str(tmp_path), SIMILIS_API__PORT=str(port), SIMILIS_DATABASE__URL=database_url,
        SIMILIS_PSEUDONYM_KEY="k" * 40, SIMILIS_QDRANT__URL=f"unix://{tmp_path}/none.sock",
    )  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "services.api"], env=env, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=1) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                time.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=15)
        refused.value.close()
    finally:
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    events = [json.loads(line)["event"] for line in logged.splitlines()]
    assert "starting" in events
    assert "request" in events


def test_a_bell_that_the_api_rings_is_heard_where_workers_listen(settings, valkey_url):
    import redis

    app = producer(settings.model_copy(update={"broker": Broker(url=valkey_url)}))
    queue = CeleryQueue(app)
    queue.ping()
    queue.ring(Job.SCAN)
    queue.ring(Job.PROJECT)
    address = valkey_url.replace("redis+socket://", "unix://").replace("virtual_host", "db")
    with redis.Redis.from_url(address) as client:
        assert (client.llen("scan"), client.llen("index")) == (1, 1)
    app.close()


def test_without_a_broker_nothing_is_rung_and_nothing_fails(settings):
    assert producer(settings) is None
    rt = TwinRuntime(settings)
    rt.queue.ring(Job.SCAN)
    rt.close()
