"""The whole stack with its real engines: start, failures, restart."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from services.dicom import echo
from services.embedded.client import Embedded
from services.embedded.home import Home
from services.embedded.postgres import Postgres, working_in
from services.embedded.pulse import Answered, Touched
from services.embedded.stack import listen
from shared.errors import Invalid, Unavailable
from shared.process import Identity, has_ended, sign_of_life, until
from shared.version import software

SIMILIS = Path(sys.executable).parent / "similis"
ENGINES = ["postgres", "valkey", "vectors"]


def get(stack, path, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(stack.url + path, headers=headers), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (urllib.error.URLError, ConnectionError):
        return None


def similis(*words):
    return subprocess.run([SIMILIS, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)


def identities(stack):
    kept = {name: entry["identity"] for name, entry in stack.home.state["processes"].items()}
    return {name: Identity(**identity) for name, identity in kept.items() if identity}


def serves(stack):
    return stack.home.state["ready"] and get(stack, "/readyz") == 200


@pytest.fixture(scope="module")
def home(quick_folder):
    return quick_folder / "home"


@pytest.fixture(scope="module")
def stack(home):
    with Embedded(home, workers=1, dicom_port=0) as made:
        yield made


def test_the_first_start_makes_a_key_that_the_api_knows(stack):
    assert get(stack, "/v1/studies", stack.api_key) == 200
    assert get(stack, "/v1/studies") == 401
    assert (stack.home / "api.key").stat().st_mode & 0o777 == 0o600


def test_every_process_of_the_design_runs(stack):
    lasting = {*ENGINES, "api", "dicom", "worker-ingest1", "worker-scan", "worker-index", "worker-reindex", "beat"}
    states = lambda: {name: one["state"] for name, one in stack.home.state["processes"].items()}  # noqa: E731
    assert until(lambda: states() == {**dict.fromkeys(lasting, "ready"), "model": "done"}, 120, 0.1), states()


@pytest.mark.parametrize("name", ["api", "dicom", "vectors", "worker-ingest1", "worker-scan", "beat"])
def test_every_line_of_a_log_is_json(stack, name):
    log = stack.home / f"logs/{name}.log"
    assert until(lambda: log.exists() and b"\n" in log.read_bytes(), 60, 0.1)
    lines = log.read_text().splitlines()
    assert [line for line in lines if not line.startswith('{"')] == []


@pytest.mark.parametrize("name", ["supervisor", "api", "dicom", "beat"])
def test_starting_loads_no_neural_network_runtime(stack, name):
    pid = stack.home.state["supervisor"]["pid"] if name == "supervisor" else stack.pid_of(name)
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert [library for library in ("libtorch", "onnxruntime", "faiss") if library in maps] == []


def test_a_start_on_a_database_with_another_password_ends_in_a_sentence(tmp_path):
    Home.at(tmp_path).secret("pseudonym.key")
    with Postgres(tmp_path) as server, server.connect() as connection:
        connection.execute("ALTER ROLE similis PASSWORD 'changed by hand'")
    with pytest.raises(Unavailable, match="password authentication failed"):
        Embedded(tmp_path, timeout_s=30).start()
    assert Home.at(tmp_path).state["supervisor"] is None


def test_status_shows_what_runs(stack, home):
    told = similis("status", "--home", home, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["ready"] is True
    assert found["url"] == stack.url
    assert found["version"] == software()
    assert {found["processes"][name]["state"] for name in (*ENGINES, "api")} == {"ready"}


def test_the_dicom_receiver_answers_and_status_says_where(stack, home):
    told = similis("status", "--home", home)
    assert f"DICOM: AE SIMILIS at 127.0.0.1:{stack.dicom_port}" in told.stdout
    assert f"version {software()}" in told.stdout
    asked = [socket.create_connection(("127.0.0.1", stack.dicom_port), 5) for _ in range(2)]
    assert [echo.ask(one, called, 10) for one, called in zip(asked, ("SIMILIS", "ANOTHER"), strict=True)] == [
        True,
        False,
    ]


MANY_ENCODED = """
    INSERT INTO image (sop_uid, study_id, series_uid, sop_class, transfer_syntax, modality, body_part, manufacturer,
        presentation_intent, rows, columns, frames, digest, path, status)
    SELECT '1.2.' || n, s.id, '1.3', '1.4', '1.5', 'MG', '', '', '', 9, 9, 1, 'x', '/x', 'encoded'
    FROM generate_series(1, 300) AS n, study AS s WHERE s.uid = '1.2'
"""


def test_the_doctor_says_where_gate_3_hardly_judges_yet(stack, home):
    model = lambda: stack.home.state["processes"]["model"]["state"]  # noqa: E731
    assert until(lambda: model() == "done", 120, 0.1)
    with Postgres(home).connect() as database:
        database.execute("INSERT INTO study (uid, patient_key) VALUES ('1.2', 'x')")
        database.execute(MANY_ENCODED)
        told = similis("doctor", "--home", home)
        database.execute("DELETE FROM image")
        database.execute("DELETE FROM study")
    (line,) = [line for line in told.stderr.splitlines() if "gate 3" in line]
    assert "similis quarantine calibrate --model" in line
    assert line.endswith("--modality MG")


def test_a_second_up_is_refused_with_exit_4(stack, home):
    told = similis("up", "--home", home, "--port", 0)
    assert told.returncode == 4
    assert f"similis already runs on this home ({home}) at {stack.url}" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.fixture
def signs(stack):
    home = stack.home
    made = {name: Touched(sign_of_life(home.path, name.removeprefix("worker-"))) for name in (*WORKERS, "beat")}
    made |= {
        "api": Answered(home.state["host"], home.state["port"]),
        "vectors": Touched(home.sockets / "vectors.alive"),
    }
    yield made
    made["api"].forget()


def test_what_is_watched_for_hangs_shows_life_and_none_while_it_hangs(stack, signs):
    for name, sign in signs.items():
        assert until(lambda sign=sign: sign.seen() and until(sign.seen, 15, 0.2), 60, 0.2), name
    hung = {name: identities(stack)[name] for name in ("api", "vectors", "worker-scan")}
    for identity in hung.values():
        identity.signal(signal.SIGSTOP)
    try:
        for name in hung:
            signs[name].forget()
            signs[name].seen()
        assert not until(lambda: any(signs[name].seen() for name in hung), 7, 0.5)
    finally:
        for identity in hung.values():
            identity.signal(signal.SIGCONT)
    assert until(lambda: serves(stack), 30, 0.1)


WORKERS = ("worker-ingest1", "worker-scan", "worker-index", "worker-reindex")


@pytest.mark.parametrize("name", [*ENGINES, "api", "dicom", *WORKERS, "beat"])
def test_whatever_is_killed_comes_back(stack, name):
    before = identities(stack)[name]
    before.signal(signal.SIGKILL)
    assert until(lambda: identities(stack).get(name) not in (None, before), 20)
    assert until(lambda: serves(stack), 30, 0.1)
    assert until(lambda: get(stack, "/v1/studies", stack.api_key) == 200, 10, 0.1)


def test_connections_wait_while_the_api_starts_again(stack):
    """The supervisor holds the listening socket, so no connection is refused."""
    before = identities(stack)["api"]
    before.signal(signal.SIGKILL)
    assert until(lambda: not before.alive, 5)
    host, port = stack.home.state["host"], stack.home.state["port"]
    with socket.create_connection((host, port), timeout=1) as waiting:  # no process accepts it yet
        waiting.settimeout(60)
        waiting.sendall(f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert waiting.recv(15) == b"HTTP/1.1 200 OK"
    assert until(lambda: serves(stack), 30, 0.1)


@pytest.fixture(scope="module")
def kept(quick_folder):
    """A home for repeated starts and stops; its database and first model are made once."""
    return quick_folder / "kept"


def test_after_kill_9_of_the_whole_tree_the_next_up_recovers_by_itself(kept):
    stack = Embedded(kept, workers=1)
    stack.start()
    key, before = stack.api_key, identities(stack)
    stack.kill()
    assert until(lambda: not any(identity.alive for identity in before.values()), 10)
    with stack:
        assert stack.api_key == key
        assert get(stack, "/v1/studies", key) == 200


def test_down_stops_everything_and_leaves_no_process(kept):
    stack = Embedded(kept, workers=1)
    stack.start()
    before = identities(stack)
    told = similis("down", "--home", stack.home.path)
    assert told.returncode == 0, told.stderr
    assert not any(identity.alive for identity in before.values())
    assert working_in(stack.home / "pg") == []
    assert stack.stop() == 0
    assert similis("status", "--home", stack.home.path).returncode == 3


def test_ctrl_c_stops_everything_in_order_with_exit_0(kept):
    stack = Embedded(kept, workers=1)
    log = stack.home / "logs/postgres.log"
    earlier = len(log.read_bytes()) if log.exists() else 0
    stack.start()
    before, child = identities(stack), stack.child
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    assert not any(identity.alive for identity in before.values())
    said = log.read_bytes()[earlier:].decode()
    assert "database system is shut down" in said
    assert "terminating connection" not in said  # no client was still connected
    stack.stop()


def test_whoever_does_not_read_the_address_is_no_reason_to_stop(kept):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as gone:
        argv = [SIMILIS, "up", "--home", kept, "--port", "0", "--workers", "1", "--no-dicom"]
        child = subprocess.Popen(argv, stdout=gone, stderr=subprocess.PIPE, text=True)
    with child:
        try:
            home = Home(kept.resolve())
            assert until(lambda: home.state.get("ready") or has_ended(child), 60, 0.1)
            assert not until(lambda: has_ended(child), 2, 0.1), child.stderr.read()
        finally:
            child.terminate()
        assert child.wait(60) == 0


def test_without_a_key_loopback_is_served_when_asked_for(kept):
    with Embedded(kept, workers=1, auth=False) as stack:
        assert get(stack, "/v1/studies") == 200


def test_a_start_that_cannot_be_says_why(tmp_path, stack):
    port = int(stack.url.rpartition(":")[2])
    with pytest.raises(Unavailable, match=f"cannot listen on port {port} of 127.0.0.1"):
        Embedded(tmp_path / "home", port=port).start()


@pytest.mark.parametrize("host", ["nobody.invalid", "192.0.2.1"])
def test_an_address_that_this_machine_does_not_have_is_no_matter_of_the_port(host):
    with pytest.raises(Invalid, match=f"{host} is no address of this machine"):
        listen(host, 0)
