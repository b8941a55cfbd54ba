import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from services.cli import processes
from services.embedded import commands, production
from services.embedded.home import Home
from services.embedded.stack import OVERFLOW, Options, build, check, listen
from shared.config import Settings
from shared.errors import Conflict, Denied, Invalid
from shared.process import Identity, sign_of_life
from shared.store.session import Store

run = CliRunner()


@pytest.fixture
def app():
    made = typer.Typer()
    processes.register(made)
    return made


def test_status_of_a_home_where_nothing_runs_says_so_with_exit_3(app, tmp_path):
    told = run.invoke(app, ["status", "--home", str(tmp_path / "none")])
    assert told.exit_code == 3
    assert "does not run" in told.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["status", "down"])
@pytest.mark.parametrize("name", ["mistyped", "a file"])
def test_a_home_that_is_no_folder_is_named_as_such(app, tmp_path, command, name):
    (tmp_path / "a file").touch()
    told = run.invoke(app, [command, "--home", str(tmp_path / name)])
    assert f"{tmp_path / name}: there is no such folder" in told.output


@pytest.mark.parametrize("command", ["status", "down"])
def test_asking_leaves_a_folder_that_is_no_home_as_it_is(app, tmp_path, command):
    tmp_path.chmod(0o755)
    run.invoke(app, [command, "--home", str(tmp_path)])
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == []


def test_a_home_below_ones_own_folder_may_be_named_with_a_tilde(app, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home, us = Home.at(tmp_path / "home"), vars(Identity.of(os.getpid()))
    monkeypatch.setenv("SIMILIS_HOME", "~/home")
    with home.lock():
        home.remember({"url": "", "host": "127.0.0.1", "port": 1, "started_at": 0, "supervisor": us})
        assert run.invoke(app, ["status"]).exit_code == 0


def test_status_does_not_believe_the_file_of_a_killed_supervisor(app, tmp_path):
    Home.at(tmp_path).remember({"url": "http://127.0.0.1:1", "host": "127.0.0.1", "port": 1, "started_at": 0})
    told = run.invoke(app, ["status", "--home", str(tmp_path), "--json"])
    assert told.exit_code == 3
    assert json.loads(told.stdout)["running"] is False


def test_status_shows_each_process_and_that_the_api_does_not_answer(app, tmp_path):
    home, us = Home.at(tmp_path), Identity.of(os.getpid())
    api = {"state": "starting", "restarts": 4, "identity": vars(us)}
    facts = {"url": "http://127.0.0.1:1", "host": "127.0.0.1", "port": 1, "started_at": time.time()}
    with home.lock():
        home.remember({**facts, "supervisor": vars(us), "processes": {"api": api}})
        told = run.invoke(app, ["status", "--home", str(tmp_path), "--json"])
        lines = run.invoke(app, ["status", "--home", str(tmp_path)]).stdout
    assert told.exit_code == 0
    found = json.loads(told.stdout)
    assert found["ready"] is False
    assert found["processes"] == {"api": {"state": "starting", "restarts": 4, "pid": os.getpid()}}
    assert "not ready" in lines
    assert "restarts 4" in lines


@pytest.mark.parametrize(
    ("status", "away", "told"),
    [
        ("ready", "", "  ready  "),
        ("degraded", "broker", "  degraded: broker away  "),
        ("unavailable", "postgres", "  not ready: postgres away  "),
    ],
)
def test_status_names_the_part_that_is_away_though_its_process_runs(status, away, told):
    """A process may stand still, and in production the parts are no processes of ours."""
    parts = {name: "away" if name == away else "ready" for name in ("postgres", "vectors", "broker")}
    facts = {"running": True, "url": "http://127.0.0.1:1", "up_s": 1.0, "home": "h", "version": "1", "dicom": None}
    found = facts | {"ready": status != "unavailable", "readyz": {"status": status, "parts": parts}, "processes": {}}
    assert told in processes._lines(found)[0]


def test_who_asks_whether_a_home_is_in_use_does_not_make_it_so(tmp_path):
    home = Home.at(tmp_path)
    with home.lock():
        assert home.locked
    with (home / "lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # another command that is asking at this moment
        assert not home.locked


def test_a_start_is_not_refused_because_somebody_asks_whether_the_home_is_in_use(tmp_path):
    home = Home.at(tmp_path)
    (home / "lock").touch()
    with (home / "lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with home.lock():
            assert home.locked


@pytest.mark.parametrize("slots", [1, 32])
def test_the_database_has_a_connection_for_whatever_asks_for_one(tmp_path, slots):
    with listen("127.0.0.1", 0) as listener:
        stack = build(Home.at(tmp_path), Options(tmp_path, workers=slots, dicom_port=None), listener, print)
    store = Store("postgresql+psycopg://nobody@/nothing")
    serving = store.engine.pool.size() + store.engine.pool._max_overflow  # for the API and each DICOM receiver
    assert store.engine.pool._max_overflow == OVERFLOW
    workers = [name for name in stack.watched if name.startswith("worker-")]
    assert len(workers) == slots + 3
    told = int(stack.watched["postgres"].part.settings["max_connections"])
    assert told >= serving * (1 + Settings().dicom.processes) + 2 * len(workers)


@pytest.mark.parametrize("own", [{}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}])
def test_what_answers_searches_asks_for_huge_pages_unless_the_caller_decides(tmp_path, monkeypatch, own):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with listen("127.0.0.1", 0) as listener:
        stack = build(Home.at(tmp_path), Options(tmp_path, dicom_port=None), listener, print)
    given = {
        name: dict(one.part.env or {}) for name, one in stack.watched.items() if name in {"vectors", "api", "beat"}
    }
    wanted = commands.HUGE_PAGES | own
    assert wanted.items() <= given["vectors"].items()
    assert wanted.items() <= given["api"].items()
    assert given["beat"].get("GLIBC_TUNABLES") == own.get("GLIBC_TUNABLES")


def test_down_where_nothing_runs_is_done(app, tmp_path):
    told = run.invoke(app, ["down", "--home", str(tmp_path / "none")])
    assert told.exit_code == 0
    assert "was not running" in told.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "similis.hospital.example"])
def test_up_without_authentication_refuses_an_address_that_others_reach(app, tmp_path, host):
    told = run.invoke(app, ["up", "--home", str(tmp_path / "home"), "--host", host, "--no-auth"])
    assert told.exit_code == 2
    assert "without API keys only this machine may be served" in " ".join(told.stderr.replace("│", " ").split())
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_may_be_served_without_authentication(host, tmp_path):
    check(Options(tmp_path, host=host, auth=False))


def test_any_address_may_be_served_with_authentication(tmp_path):
    check(Options(tmp_path, host="0.0.0.0", auth=True))
    with pytest.raises(Denied):
        check(Options(tmp_path, host="0.0.0.0", auth=False))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PEERS", "nothing.toml", "DICOM peers cannot be read"),
        ("TLS_KEY", "nothing.key", "SIMILIS_DICOM__TLS_CERTIFICATE"),
        ("TLS_CERTIFICATE", "nothing.pem", "cannot be used"),
        ("HOST", "0.0.0.0", "SIMILIS_DICOM__PEERS"),
    ],
)
def test_up_with_a_dicom_receiver_that_could_not_start_is_refused(app, tmp_path, monkeypatch, name, value, said):
    """It would be started again for ever, while `up` says that it is ready."""
    monkeypatch.setenv(f"SIMILIS_DICOM__{name}", value)
    check(Options(tmp_path, dicom_port=None))
    with pytest.raises((Invalid, Denied), match=said):
        check(Options(tmp_path, dicom_host=Settings().dicom.host))


def test_a_port_that_is_taken_is_refused_before_anything_starts():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} .* choose another with --port"):
            listen("127.0.0.1", port)


def test_a_worker_of_an_unknown_queue_is_a_usage_error(app):
    told = run.invoke(app, ["worker", "--queue", "nothing"])
    assert told.exit_code == 2
    assert "index, ingest, reindex, scan" in told.stderr


def test_a_worker_is_healthy_while_its_sign_of_life_is_young(app, tmp_path, monkeypatch):
    monkeypatch.setenv("SIMILIS_HOME", str(tmp_path))
    sign = sign_of_life(tmp_path, "index")
    assert run.invoke(app, ["worker", "--queue", "index", "--check"]).exit_code == 1
    sign.parent.mkdir()
    sign.touch()
    assert run.invoke(app, ["worker", "--queue", "index", "--check"]).exit_code == 0
    assert run.invoke(app, ["worker", "--queue", "ingest", "--check"]).exit_code == 1
    old = time.time() - 2 * production.SILENT_S
    os.utime(sign, (old, old))
    assert run.invoke(app, ["worker", "--queue", "index", "--check"]).exit_code == 1


@pytest.mark.parametrize(
    ("name", "value", "words", "said"),
    [
        ("SIMILIS_API__PORT", "x", [], "the settings are wrong: SIMILIS_API__PORT"),
        ("SIMILIS_DATABASE__URL", "mysql://me:SECRET@host/db", [], "must have the form postgresql+psycopg://"),
        ("SIMILIS_DATABASE__URL", "postgresql+psycopg:///x", ["--key-file", "/nowhere"], "/nowhere cannot be read"),
    ],
)
def test_a_migration_that_cannot_be_says_why(name, value, words, said):
    env = {**os.environ, name: value}
    told = subprocess.run([*commands.migrate(), *words], env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("similis migrate: ")]
    assert said in line
    assert "Traceback" not in told.stderr
    assert "SECRET" not in told.stderr


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["api"], commands.api()),
        (["worker", "--queue", "ingest"], commands.worker("ingest", "ingest")),
        (["worker", "--queue", "scan"], commands.worker("scan", "scan")),
        (["migrate"], commands.migrate()),
    ],
)
def test_each_process_alone_is_what_the_supervisor_starts(app, monkeypatch, words, argv):
    became = []
    monkeypatch.setattr(processes.os, "execv", lambda path, args: became.append((path, args)))
    assert run.invoke(app, words).exit_code == 0
    assert became == [(argv[0], argv)]


def test_what_beat_reads_lies_where_nobody_else_may_write(app, monkeypatch, tmp_path):
    became = []
    monkeypatch.setattr(processes.os, "execv", lambda _, args: became.append(args))
    monkeypatch.setenv("SIMILIS_HOME", str(tmp_path / "home"))
    assert run.invoke(app, ["beat"]).exit_code == 0
    assert became == [commands.beat(tmp_path / "home/run/beat")]
    assert (tmp_path / "home/run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "home/run").chmod(0o777)
    assert run.invoke(app, ["beat"]).exit_code != 0


def test_the_processes_get_secrets_as_files_and_the_caller_cannot_override_them(tmp_path):
    home = Home.at(tmp_path)
    env = commands.environment(
        home,
        urls={"database": "postgresql+psycopg://a:word@/b", "broker": "redis+socket:///c", "qdrant": "unix:///d"},
        host="127.0.0.1",
        port=1234,
        require_key=True,
        base={"SIMILIS_DATABASE__URL": "elsewhere", "SIMILIS_ENCODING__THREADS": "2", "SIMILIS_MODELS": "models"}
        | {"SIMILIS_API__PUBLIC_URL_FILE": "url"},
    )
    assert "SIMILIS_DATABASE__URL" not in env
    assert not any("word" in value for value in env.values())
    assert (home / "database.url").read_text() == "postgresql+psycopg://a:word@/b"
    assert env["SIMILIS_ENCODING__THREADS"] == "2"
    assert env["SIMILIS_MODELS"] == os.path.abspath("models")
    assert env["SIMILIS_API__PUBLIC_URL_FILE"] == os.path.abspath("url")
    secrets = ["api.key", "pseudonym.key", "vectors.key", "database.url", "broker.url"]
    assert {(home / name).stat().st_mode & 0o777 for name in secrets} == {0o600}


def test_grpc_knows_the_experiments_that_are_switched_off():
    """It tells an unknown one when it starts, and ignores it."""

    def told(**env):
        argv = [sys.executable, "-c", "import grpc; grpc.insecure_channel('unix:///x').close()"]
        return subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, check=True).stderr

    assert told(**commands.GRPC) == ""
    assert "Unknown experiment" in told(GRPC_EXPERIMENTS="-event_engine_unheard_of")


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists() or "[madvise]" not in HUGE.read_text(), reason="huge pages are not on request")
def test_glibc_asks_for_huge_pages():
    def asked(env):
        code = """if True:
            large = bytearray(64 << 20)
            print(sum("hg" in line.split() for line in open("/proc/self/smaps") if line.startswith("VmFlags:")))"""
        argv = [sys.executable, "-c", code]
        return int(subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout)

    bare = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    assert asked(bare) == 0
    assert asked(bare | commands.HUGE_PAGES) > 0


def test_secrets_are_made_once(tmp_path):
    home = Home.at(tmp_path)
    first = home.secret("api.key", prefix="sml_")
    assert first.startswith("sml_")
    assert len(first) > 40
    assert home.secret("api.key", prefix="sml_") == first


@pytest.mark.parametrize("name", ["pseudonym.key", "database.password"])
def test_a_lost_secret_that_the_database_depends_on_is_not_replaced(tmp_path, name):
    home = Home.at(tmp_path)
    home.secret(name)
    (home / "pg").mkdir()
    assert home.secret(name)
    (home / name).unlink()
    with pytest.raises(Invalid, match="restore it from a backup"):
        home.secret(name)
    assert not (home / name).exists()
