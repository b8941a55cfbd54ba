"""Without Docker: the compose file is parsed, and the commands in it run against real engines."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from services.embedded import commands, production
from shared.config import Settings
from shared.process import has_ended, until
from tests.imaging.pictures import breast, dataset, file_of
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("similis:")}
#: Commands of the docs that run as a client of the API in a container.
ASKING = [
    line.removeprefix("$ ")
    for line in (ROOT / "docs/operating.md").read_text().splitlines()
    if line.startswith("$ docker compose run ") and "--url" in line
]
SCRIPT = Path(sys.executable).parent / "similis"


def leaves(part=None, prefix="SIMILIS_"):
    part = Settings() if part is None else part
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), value


KNOWN = dict(leaves())
SECRET = {name for name, value in KNOWN.items() if isinstance(value, SecretStr)}


def test_it_names_every_process_of_production():
    assert set(SERVICES) == {
        "postgres", "broker", "qdrant", "migrate", "api", "dicom", "worker-scan", "worker-ingest", "worker-index",
        "worker-reindex", "beat",
    }  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_that_there_is(name):
    names = {variable.removesuffix("_FILE") for variable in OURS[name]["environment"]}
    assert names - set(KNOWN) == {*commands.GRPC, "TZ"}


def test_the_hours_of_a_pull_and_of_a_build_are_those_of_the_hospital():
    for name in ("worker-scan", "worker-reindex"):
        assert OURS[name]["environment"]["TZ"] == "${TZ:-UTC}"


@pytest.mark.parametrize("name", OURS)
def test_secrets_come_from_files_that_the_service_has(name):
    for variable, value in OURS[name]["environment"].items():
        assert variable not in SECRET
        if variable.endswith("_FILE"):
            assert variable.removesuffix("_FILE") in SECRET
            assert value.removeprefix("/run/secrets/") in OURS[name]["secrets"]


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_pinned_restarts_and_uses_declared_secrets_and_volumes(name):
    one = SERVICES[name]
    assert any(digit in one["image"].partition(":")[2] for digit in "0123456789")
    assert one["restart"]
    assert set(one.get("secrets", ())) <= set(COMPOSE["secrets"])
    named = {v.partition(":")[0] for v in one.get("volumes", ()) if not v.startswith(("$", ".", "/"))}
    assert named <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "migrate"])
def test_whatever_keeps_running_has_a_health_check(name):
    assert SERVICES[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


def test_only_the_api_and_the_receiver_are_published_and_only_on_this_machine():
    assert {name: one["ports"] for name, one in SERVICES.items() if "ports" in one} == {
        "api": ["127.0.0.1:8000:8000"],
        "dicom": ["${SIMILIS_DICOM_ADDRESS:-127.0.0.1}:11112:11112"],
    }


@pytest.mark.parametrize("name", OURS)
def test_our_processes_are_not_root_and_write_nowhere_but_the_home(name):
    one = OURS[name]
    assert one["user"] == "1000:1000"
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert [v for v in one["volumes"] if not v.endswith(":ro")] == ["home:/var/lib/similis"]


def test_there_is_a_worker_for_each_queue():
    asked = {one["command"][-1] for one in OURS.values() if one["command"][:3] == ["similis", "worker", "--queue"]}
    assert asked == set(commands.WORKER_QUEUES)


def test_whoever_reads_files_sees_the_archive_at_one_path_that_is_a_root_and_read_only():
    mounts = {name: [v for v in one["volumes"] if "SIMILIS_ARCHIVE" in v] for name, one in OURS.items()}
    readers = {name for name, found in mounts.items() if found}
    assert readers == {"api", "worker-scan", "worker-ingest"}
    for name in readers:
        (mount,) = mounts[name]
        path, mode = mount.rpartition("}:")[2].split(":")
        assert mode == "ro"
        assert json.loads(OURS[name]["environment"]["SIMILIS_INTAKE__ROOTS"]) == [path]


@pytest.mark.parametrize("line", ASKING)
def test_a_container_that_asks_the_api_reaches_it_has_the_key_and_may_write_models(line):
    options, _, words = line.partition(" similis ")
    one = OURS[options.split()[-1]]
    assert set(one["networks"]) & set(SERVICES["api"]["networks"])
    assert "--key-file /run/secrets/api_key" in words
    assert "api_key" in one["secrets"]
    assert f"--url http://api:{SERVICES['api']['environment']['SIMILIS_API__PORT']} " in words
    assert one["volumes"] == OURS["worker-index"]["volumes"]  # the home, which holds the models
    assert "ENTRYPOINT" not in (ROOT / "Dockerfile").read_text()


def test_every_container_switches_off_the_same_parts_of_grpc_as_the_embedded_stack():
    assert all(commands.GRPC.items() <= one["environment"].items() for one in OURS.values())


def test_no_secret_stands_in_the_file():
    text = (ROOT / "docker-compose.yml").read_text()
    assert "password@" not in text
    assert "POSTGRES_PASSWORD:" not in text
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())


def test_the_secrets_that_the_file_names_are_made_private_and_never_made_anew(tmp_path):
    assert set(production.write_secrets(tmp_path)) == set(COMPOSE["secrets"])
    values = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert values["database_password"] in values["database_url"]
    assert values["broker_password"] in values["broker_url"]
    assert production.write_secrets(tmp_path) == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == values


def test_secrets_are_given_to_the_user_who_runs_the_containers(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    production.write_secrets(tmp_path, owner=1000)
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {1000}


def test_the_image_holds_every_package_and_is_not_root():
    lines = (ROOT / "Dockerfile").read_text()
    for package in ("services", "workers", "shared", "migrations", "benchmarks"):
        assert f"COPY {package} {package}\n" in lines
        assert f"!{package}\n" in (ROOT / ".dockerignore").read_text()
    assert "\nUSER similis\n" in lines


class Production:
    """The processes of compose on this machine, with its commands and environment, but other addresses."""

    def __init__(self, folder, database_url, broker_url):
        self.folder, self.port = folder, free_port()
        self.dicom_port = free_port()
        (folder / "peers.toml").write_text('[[peer]]\nae_title = "SCANNER"\naddresses = ["127.0.0.1"]\n')
        self.secrets = folder / "secrets"
        production.write_secrets(self.secrets)
        (self.secrets / "database_url").write_text(database_url)
        (self.secrets / "broker_url").write_text(broker_url)
        self.vectors = f"127.0.0.1:{free_port()}"
        self.children = {}

    def environment(self, service):
        here = {
            "SIMILIS_HOME": str(self.folder / "home"),
            "SIMILIS_QDRANT__URL": f"http://{self.vectors}",
            "SIMILIS_INTAKE__ROOTS": json.dumps([str(self.folder / "archive")]),
            "SIMILIS_API__PORT": str(self.port),
            "SIMILIS_API__PUBLIC_URL": "",
            "SIMILIS_DICOM__PORT": str(self.dicom_port),
            "SIMILIS_DICOM__PEERS": str(self.folder / "peers.toml"),
            "SIMILIS_DICOM__METRICS_PORT": "0",
        }
        named = {
            name: value.replace("/run/secrets", str(self.secrets)) for name, value in service["environment"].items()
        }
        return {**os.environ, **named, **{name: value for name, value in here.items() if name in named}}

    def argv(self, words):
        assert words[0] == "similis"
        return [str(SCRIPT), *(word.replace("/run/secrets", str(self.secrets)) for word in words[1:])]

    def start(self, name, argv=None, env=None):
        service = SERVICES.get(name, {})
        with (self.folder / f"{name}.log").open("wb") as log:
            self.children[name] = subprocess.Popen(
                argv or self.argv(service["command"]),
                env=env or self.environment(service),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        return self.children[name]

    def start_vectors(self):
        """Start the vectors process in place of a Qdrant server, with its production command."""
        words = ["similis", "vectors", "--dir", str(self.folder / "vectors"), "--listen", self.vectors]
        key = ["--api-key-file", str(self.secrets / "qdrant_api_key")]
        self.start("qdrant", self.argv([*words, *key]), dict(os.environ))
        assert until(self.vectors_listen, 60), self.log("qdrant")

    def vectors_listen(self):
        host, _, port = self.vectors.partition(":")
        with suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False

    def similis(self, *words):
        """Run a command with the settings of the API's service; return its JSON output."""
        done = subprocess.run(
            [str(SCRIPT), *words],
            env={**self.environment(SERVICES["api"]), "NO_COLOR": "1"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in words else None

    def check(self, name):
        """Run the health check of the compose file, as Docker would."""
        return subprocess.run(
            self.argv(SERVICES[name]["healthcheck"]["test"][1:]),
            env=self.environment(SERVICES[name]),
            check=False,
        ).returncode

    def readyz(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except OSError:  # refused, or too slow during the start
            return None, None

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self):
        for name in reversed(self.children):
            self.children[name].send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@pytest.fixture
def started(tmp_path, postgres_url, valkey_url):
    made = Production(tmp_path, postgres_url, valkey_url)
    yield made
    made.stop()


def test_the_very_commands_become_ready_against_separate_engines(started):
    started.start_vectors()
    assert started.start("migrate").wait(60) == 0, started.log("migrate")
    for name in ("api", "dicom", "worker-scan", "worker-ingest", "worker-index", "worker-reindex", "beat"):
        started.start(name)
    assert until(lambda: started.readyz()[0] == 200, 60, 0.1), started.log("api")
    for name in ("dicom", "worker-scan", "worker-ingest", "worker-index", "worker-reindex", "beat"):
        assert until(lambda name=name: started.check(name) == 0, 60, 0.2), started.log(name)
        assert not has_ended(started.children[name])
    key = (started.secrets / "api_key").read_text()
    assert ask(started.port, key) == 200
    assert ask(started.port, "sml_" + "x" * 43) == 401
    takes_in_and_finds(started)


@pytest.mark.soak  # torch makes the graph: half a minute, or minutes on a busy machine
@pytest.mark.timeout(900)
def test_the_shipped_model_is_brought_by_the_command_of_the_docs(started):
    started.start_vectors()
    assert started.start("migrate").wait(60) == 0, started.log("migrate")
    started.start("api")
    assert until(lambda: started.readyz()[0] == 200, 60, 0.1), started.log("api")
    (line,) = (line for line in ASKING if "models add similis-base" in line)
    url = f"http://127.0.0.1:{started.port}"
    words = line[line.index("similis ") :].replace("http://api:8000", url).split()
    added = started.start("add", started.argv(words), started.environment(SERVICES["migrate"]))
    assert added.wait(800) == 0, started.log("add")
    listed = started.similis("models", "list", "--json", "--url", url, "--key-file", started.secrets / "api_key")
    assert [(one["name"], one["published"]) for one in listed["models"]] == [("similis-base", True)]


def takes_in_and_finds(started):
    """Ingest two studies through all processes, and find one by the other."""
    archive = started.folder / "archive"
    archive.mkdir()
    for n in range(2):
        values = breast(400, 300, seed=n)
        uids = {"SOPInstanceUID": f"1.2.3.{n}", "StudyInstanceUID": f"1.2.4.{n}", "PatientID": f"WOMAN-{n}"}
        (archive / f"{n}.dcm").write_bytes(file_of(dataset(values, **uids), values))
    server = ("--url", f"http://127.0.0.1:{started.port}", "--key-file", str(started.secrets / "api_key"))
    model = started.folder / "home" / "models" / "null"
    started.similis("models", "make", "null", "--architecture", "null", "--weights", "random:0")
    started.similis("models", "add", str(model), *server)
    taken = started.similis("ingest", str(archive), "--json", *server)
    assert [(one["outcome"], one["count"]) for one in taken["outcomes"]] == [("encoded", 2)], started.log(
        "worker-ingest"
    )
    answer = started.similis("search", "--study", "1.2.4.0", "--json", *server)
    assert [study["study_instance_uid"] for study in answer["studies"]] == ["1.2.4.1"]
    same = started.similis("search", "--image", str(archive / "1.dcm"), "--exclude", "none", "--json", *server)
    assert same["studies"][0]["study_instance_uid"] == "1.2.4.1"


def ask(port, key):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/studies", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_migration_may_be_run_twice(started):
    assert started.start("migrate").wait(60) == 0, started.log("migrate")
    assert started.start("migrate").wait(60) == 0, started.log("migrate")


@pytest.mark.parametrize("name", ["worker-ingest", "dicom"])
def test_what_never_ran_is_not_healthy(started, name):
    assert started.check(name) == 1
