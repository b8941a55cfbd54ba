import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from services.embedded import postgres as module
from services.embedded.account import Account, account
from services.embedded.postgres import Postgres, working_in
from shared import process
from shared.errors import Unavailable

KEEP = "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)"


def count(server):
    with server.connect() as connection:
        return connection.execute("SELECT sum(n) FROM kept").fetchone()[0]


def fill(server):
    with server.connect() as connection:
        connection.execute(KEEP)


def kill_all(server):
    """Kill the server and all its descendants; its files in the folder remain."""
    for pid in working_in(server.data):
        with suppress(ProcessLookupError):  # it ended with the one before it
            os.kill(pid, signal.SIGKILL)
    server.child.wait()
    assert process.until(lambda: not working_in(server.data), 5)


@pytest.fixture(scope="module")
def filled(quick_folder):
    """A home whose server was initialised, filled and stopped; shared, because initdb takes long."""
    home = quick_folder / "home"
    with Postgres(home) as made:
        fill(made)
    return home


@pytest.fixture
def server(tmp_path, filled):
    shutil.copytree(filled, tmp_path / "home")
    made = Postgres(tmp_path / "home")
    made.start()
    yield made
    made.stop()


def test_what_was_written_is_there_after_a_stop_and_a_start(server):
    server.stop()
    assert working_in(server.data) == []
    server.start()
    assert count(server) == 1


def test_nothing_in_the_home_is_open_to_others(server):
    home = server.home.path
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "database.password").stat().st_mode & 0o777 == 0o600
    assert server.sockets.stat().st_mode & 0o777 == 0o700


def test_it_comes_back_after_kill_9_with_what_was_committed(server):
    kill_all(server)
    assert (server.data / "postmaster.pid").exists()
    server.start()
    assert count(server) == 1


def test_it_comes_back_after_its_postmaster_alone_was_killed(server):
    server.child.kill()
    server.child.wait()
    server.start()
    assert count(server) == 1


def test_a_pid_file_that_names_a_zombie_is_no_obstacle(server):
    kill_all(server)
    zombie = subprocess.Popen(["true"])
    assert process.until(lambda: process.has_ended(zombie), 5)
    rename_pid(server, zombie.pid)
    server.start()
    assert count(server) == 1
    zombie.wait()


def test_a_pid_file_that_names_a_living_stranger_is_no_obstacle(server):
    kill_all(server)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        rename_pid(server, stranger.pid)
        server.start()
        assert count(server) == 1
        assert stranger.poll() is None
        stranger.kill()


def test_an_empty_pid_file_is_no_obstacle(server):
    kill_all(server)
    (server.data / "postmaster.pid").write_text("")
    server.start()
    assert count(server) == 1


def rename_pid(server, pid):
    path = server.data / "postmaster.pid"
    _, _, rest = path.read_text().partition("\n")
    path.write_text(f"{pid}\n{rest}")


def test_the_pid_file_of_a_living_server_is_left_alone(server):
    assert Postgres(server.home.path).prepare() is False
    assert (server.data / "postmaster.pid").read_text().startswith(f"{server.child.pid}\n")
    assert count(server) == 1


START = (
    "import sys, pathlib; from services.embedded.postgres import Postgres; Postgres(pathlib.Path(sys.argv[1])).start()"
)


@pytest.mark.parametrize("moment", ["base", "global/pg_control", "PG_VERSION"])
def test_being_killed_during_initdb_leaves_nothing_that_stops_the_next_start(tmp_path, moment):
    home = tmp_path / "home"
    with subprocess.Popen([sys.executable, "-c", START, str(home)]) as starter:
        assert process.until((home / "pg.tmp" / moment).exists, 20, 0.001)
        starter.kill()
    assert not (home / "pg").exists()
    with Postgres(home) as server:
        fill(server)
        assert count(server) == 1
    assert not (home / "pg.tmp").exists()
    password = server.home.secret("database.password")
    holding = [path.name for path in home.iterdir() if path.is_file() and password in path.read_text()]
    assert holding == ["database.password"]


def test_a_database_of_another_major_version_is_refused(tmp_path):
    server = Postgres(tmp_path)
    server.data.mkdir()
    (server.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(Unavailable, match="PostgreSQL 16, but 18 is installed"):
        server.start()


def test_a_home_with_a_long_name_and_spaces_works(tmp_path):
    home = tmp_path / ("a long name " * 10)
    with Postgres(home) as server:
        fill(server)
        assert count(server) == 1
        assert len(str(server.sockets)) < 90
        assert server.sockets.parent.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(server.sockets.parent)


def test_a_value_in_a_failing_statement_does_not_reach_the_log(server):
    with server.connect() as connection:
        connection.execute("CREATE UNIQUE INDEX ON kept (n)")
        for statement in ("INSERT INTO kept VALUES (1)", "SELECT 'SECRET^NAME'::int"):
            with pytest.raises(Exception, match=r"duplicate|invalid input"):
                connection.execute(statement)
    text = (server.home / "logs/postgres.log").read_text()
    assert "(n)=(1)" not in text
    assert "SELECT" not in text


def test_the_death_of_whoever_started_it_stops_it(tmp_path):
    home = tmp_path / "home"
    wait = START + "; import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", wait, str(home)]) as starter:
        server = Postgres(home)
        assert process.until(server.ready, 30)
        starter.kill()
    assert process.until(lambda: not working_in(server.data), 10)
    assert "database system is shut down" in (home / "logs/postgres.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a service user")
def test_where_namespaces_are_forbidden_root_starts_it_as_a_service_user(monkeypatch):
    nobody = pwd.getpwnam("nobody").pw_uid
    try:
        subprocess.run([module.binaries() / "postgres", "--version"], user=nobody, check=True, capture_output=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("nobody may not enter the folder that this environment stands in")
    monkeypatch.setattr(module, "account", lambda: Account(user=nobody))
    home = Path(tempfile.mkdtemp())
    try:
        with Postgres(home) as server:
            fill(server)
            assert count(server) == 1
            assert Path(f"/proc/{server.child.pid}").stat().st_uid == nobody
        with Postgres(home) as server:
            assert count(server) == 1
    finally:
        shutil.rmtree(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a service user")
def test_a_home_that_the_service_user_cannot_reach_is_refused_with_the_folder_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "account", lambda: Account(user=pwd.getpwnam("nobody").pw_uid))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(Unavailable, match=r"cannot enter .*: run similis as an ordinary user"):
        Postgres(closed / "home").start()


def test_the_account_is_not_root():
    who = account()
    seen = subprocess.run([*who.prefix, "id", "-u"], capture_output=True, check=True, user=who.user, text=True)
    assert int(seen.stdout) != 0


LOCKED_OUT = {
    "another password": "ALTER ROLE similis PASSWORD 'changed by hand'",
    "no login": "ALTER ROLE similis NOLOGIN",
    "another name": "ALTER DATABASE similis RENAME TO renamed",
}


@pytest.mark.parametrize("change", LOCKED_OUT.values(), ids=LOCKED_OUT)
def test_a_server_that_does_not_let_us_in_is_not_waited_for(server, change):
    with server.connect("postgres") as connection:
        connection.execute(change)
    server.stop()
    with pytest.raises(Unavailable, match=r"PostgreSQL refused the login: .*database\.password"):
        server.start(timeout_s=15)
    assert working_in(server.data) == []


def test_a_start_that_fails_says_where_to_look(tmp_path):
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"logs/postgres\.log"):
        Postgres(tmp_path, {"no_such_setting": "1"}).start()
    assert time.monotonic() - began < 20
