"""Runs the demo as a person would, then serves its home again and runs every command on it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.embedded.client import Embedded

ARGV = [sys.executable, "-m", "services.cli.main", "demo", "--studies", "4"]
UID = r"2\.25\.\d+"


def start(folder: Path, *flags: str, **env: str) -> subprocess.Popen[str]:
    told = os.environ | {"TMPDIR": str(folder), "COLUMNS": "80"} | env
    return subprocess.Popen([*ARGV, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=told)


def left_over(folder: Path) -> list[str]:
    """Similis's files below the folder, and processes whose command line names it."""
    found = [str(path) for path in folder.glob("similis-*")]  # ignores torch's cache
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


@dataclass(frozen=True)
class Shown:
    home: Path
    archive: Path
    out: str
    err: str

    @property
    def rankings(self) -> list[list[str]]:
        """The studies of both answers, in order."""
        parts = self.out.split("the studies most like")[1:]
        return [re.findall(r"^ +\d+ +\d\.\d+ +([\d.]+) ", part, re.MULTILINE) for part in parts]

    @property
    def asked(self) -> str:
        return re.findall(rf"the studies most like ({UID})", self.out)[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("d")
    child = start(folder, "--keep")
    out, err = child.communicate(timeout=280)
    assert child.returncode == 0, re.findall("the demo failed.*", err)
    (kept,) = folder.glob("similis-*")
    return Shown(kept / "home", kept / "archive", out, err)


@pytest.fixture(scope="module")
def served(demo: Shown) -> Iterator[Shown]:
    with Embedded(demo.home, workers=1):
        yield demo


@pytest.mark.slow
def test_the_demo_shows_intake_two_rankings_and_timings(demo):
    by_study, by_image = demo.rankings
    assert 1 <= len(by_study) <= 5
    assert 1 <= len(by_image) <= 3
    assert demo.asked not in by_study + by_image
    assert re.search(r"^encoded +\d{2}\b", demo.out, re.MULTILINE)
    assert re.search(r"^failed +\S+ +\d", demo.out, re.MULTILINE)
    assert "UNTRAINED MODEL" not in demo.err
    assert re.search(r"^all +\d+\.\d$", demo.out, re.MULTILINE)
    assert f"similis up --home {demo.home}" in demo.err


@pytest.mark.slow
def test_after_a_restart_the_same_question_has_the_same_answer(served, similis):
    again = similis("search", "--study", served.asked, "-k", 5, "--json", "--home", served.home)
    assert [study["study_instance_uid"] for study in again.json["studies"]] == served.rankings[0]


@pytest.mark.slow
def test_a_second_intake_of_the_same_folder_changes_nothing(served, similis):
    before = similis("studies", "list", "--json", "--home", served.home).json
    labels = served.archive / "labels.csv"
    ran = similis("ingest", served.archive, "--labels", labels, "--json", "--home", served.home)
    assert ran.code == 0
    assert ran.json["counts"]["unchanged"] == ran.json["total"] > 16
    assert similis("studies", "list", "--json", "--home", served.home).json == before


@pytest.mark.slow
def test_every_command_that_asks_the_server_is_answered(served, similis):
    def ask(*argv):
        ran = similis(*argv, "--home", served.home)
        assert ran.code == 0, ran.err
        assert ran.out
        return ran

    operation = ask("operations", "list", "--json").json["operations"][-1]["id"]
    refused = ask("operations", "files", operation, "--json").json["files"]
    assert {"failed", "quarantined", "empty"} <= {file["outcome"] for file in refused}
    assert all(file["reason"] for file in refused)
    assert "encoded" in ask("operations", "show", operation).out
    assert "succeeded" in ask("operations", "list").out
    assert "retry" not in ask("operations", "files", operation).out
    assert "similis-base" in ask("models", "list").out
    assert "recipe" in ask("models", "show", "similis-base").out
    assert "yes" in ask("studies", "show", served.asked).out
    assert ask("studies", "list", "--modality", "MG", "--json").json["studies"]
    assert served.asked in ask("studies", "list").out


@pytest.mark.slow
def test_a_search_keeps_to_its_filters_and_pages_without_repeating(served, similis):
    asked = ("search", "--study", served.asked, "--exclude", "none", "--json", "--home", served.home)
    first = similis(*asked, "-k", 2).json
    second = similis(*asked, "-k", 2, "--cursor", first["next"]).json
    uids = [[study["study_instance_uid"] for study in page["studies"]] for page in (first, second)]
    assert uids[0][0] == served.asked
    assert not set(uids[0]) & set(uids[1])
    only = similis(*asked, "--modality", "MG", "--view-position", "CC").json["studies"]
    assert {match["view"] for study in only for match in study["matches"]} == {"CC"}


@pytest.mark.slow
def test_a_key_may_do_what_its_scopes_say_until_it_is_revoked(served, similis, tmp_path):
    made = similis("keys", "create", "viewer", "--scope", "search", "--json", "--home", served.home).json
    (tmp_path / "key").write_text(made["secret"])
    theirs = ("--key-file", tmp_path / "key", "--home", served.home)
    assert similis("search", "--study", served.asked, *theirs).code == 0
    assert similis("keys", "list", *theirs).code == 1
    assert similis("keys", "revoke", made["id"], "--home", served.home).code == 0
    time.sleep(1.1)
    refused = similis("search", "--study", served.asked, *theirs)
    assert refused.code == 1
    assert refused.err.count("\n") == 1


@pytest.mark.slow
def test_what_the_server_refuses_is_a_sentence_and_an_exit_code(served, similis, tmp_path):
    where = ("--home", served.home)
    assert similis("search", "--study", "1.2.3", *where).code == 3
    assert similis("search", "--study", served.asked, "--date", "yesterday", *where).code == 5
    assert similis("search", "--study", served.asked, "-k", 9999, *where).code == 5
    assert similis("operations", "show", "no-such-id", *where).code == 5
    assert similis("models", "show", "none", *where).code == 3
    assert similis("ingest", tmp_path / "absent", *where).code == 5
    (tmp_path / "x.png").write_text("no picture")
    ran = similis("search", "--image", tmp_path / "x.png", *where)
    assert ran.code == 5
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_file(tmp_path):
    child = start(tmp_path)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("ready at"):
            break
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=120)
    assert child.returncode == 130
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_when_a_step_fails_it_says_so_shows_the_logs_and_cleans_up(tmp_path):
    child = start(tmp_path, SIMILIS_INTAKE__ROOTS='["/nowhere-at-all"]')
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1, out
    assert "the demo failed" in err
    assert "api | " in err
    assert left_over(tmp_path) == []
