"""`similis bench`: a run writes raw lines, resumes, and fails if an exact engine is not exact."""

import gzip
import json
import os
import re
import resource
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import processes
from benchmarks.cli import bench
from benchmarks.cli import chosen as chosen_profile
from benchmarks.latency import raw, runner
from benchmarks.latency.data import prepare
from benchmarks.latency.engines import chosen
from benchmarks.latency.profiles import PROFILES
from shared.errors import Invalid, NotFound

SMOKE = PROFILES["smoke"]
EXACT = (
    *("numpy", "faiss-flat-ip", "edge-exact", "similis-exact"),
    *("numpy-codes", "faiss-binary", "edge-codes", "similis-table", "similis-codes"),
)

BROKEN = """
from benchmarks.latency.engines import numpy_exact
from benchmarks.latency.engines.base import Engine, Found

class Broken(numpy_exact._Scan):
    def search(self, queries, k, effort, clauses):
        return Found(super().search(queries, k + 1, effort, clauses).ids[:, 1:])

ENGINES = (Engine(name="broken", build=numpy_exact._build, open=Broken, exact=True),)
"""

SLOW = """
import subprocess, time
from benchmarks.latency.engines import numpy_exact
from benchmarks.latency.engines.base import Engine

class Slow(numpy_exact._Scan):
    asked = 0

    def __init__(self, folder, columns):
        super().__init__(folder, columns)
        (folder / "below").write_text(str(subprocess.Popen(["sleep", "60"]).pid))

    def search(self, *args):
        self.asked += 1
        time.sleep(60 if self.asked > 11 else 0)
        return super().search(*args)

ENGINES = (Engine(name="slow", build=numpy_exact._build, open=Slow),)
"""


def run(*args: str):
    return CliRunner().invoke(bench, ["run", "--profile", "smoke", *args])


@dataclass(frozen=True)
class Ran:
    out: Path
    cpu_s: float  #: of this process and its descendants


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Ran:
    """One run of the smoke profile, shared by the tests; read only."""
    out, before = tmp_path_factory.mktemp("bench") / "results", os.times()
    result = run("--out", str(out))
    assert result.exit_code == 0, result.output
    return Ran(out, sum(after - was for was, after in zip(before[:4], os.times()[:4], strict=True)))


@pytest.fixture
def done(smoke) -> Path:
    return smoke.out


@pytest.mark.slow
@pytest.mark.timeout(600)  # the profile promises two minutes, but other work shares this machine
def test_the_smoke_profile_measures_every_engine_on_data_of_its_kind_in_two_minutes(smoke) -> None:
    assert smoke.cpu_s < 120
    lines = raw.read(smoke.out)
    wanted = {(one.data, engine.name) for one in SMOKE.sets for engine in chosen(one.engines)}
    absent = {(line["data"], line["engine"]) for line in lines if line["what"] == "skipped"}
    assert all("not installed" in line["why"] for line in lines if line["what"] == "skipped")
    for what in ("build", "single", "round"):
        assert {(line["data"], line["engine"]) for line in lines if line["what"] == what} == wanted - absent
    parity = {line["engine"]: line["wrong"] for line in lines if line["what"] == "parity"}
    assert parity == dict.fromkeys(EXACT, 0)
    (environment,) = [line for line in lines if line["what"] == "environment"]
    assert {"machine", "versions", "commit", "command", "seeds", "threads"} <= environment.keys()
    assert all(line["run"] == environment["run"] for line in lines)


def test_the_report_is_one_file_and_names_what_to_pick(done) -> None:
    page = (done / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!#)', page.replace('xlink:href="#', '"#'))
    assert "What to pick" in page
    assert page.count("<svg") >= 4
    assert "At recall 0.99" in (done / "report.md").read_text()
    assert (done / "report.csv").read_text().count("\n") > 20


def test_what_is_measured_is_not_measured_again_and_what_is_missing_is(done, tmp_path) -> None:
    out = tmp_path / "again"
    out.mkdir()
    lines = (done / raw.FILE).read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("engine") != "faiss-hnsw"]
    (out / raw.FILE).write_text("\n".join(kept) + '\n{"what": "sing')  # as after a kill in the middle of a line
    assert run("--out", str(out)).exit_code != 0  # refused without --resume
    result = run("--out", str(out), "--resume")
    assert result.exit_code == 0, result.output
    lines = raw.read(out)
    last = lines[-1]["run"]
    again = {line["engine"] for line in lines if line["run"] == last and line["what"] == "single"}
    assert again == {"faiss-hnsw"}
    assert json.loads(json.dumps(lines[: len(kept)])) == [json.loads(line) for line in kept]


def test_engines_aside_are_measured_where_they_are_asked_for(tmp_path) -> None:
    out = ("--data", "clustered:16:300", "--out", str(tmp_path))
    assert run("--engines", "graph-faiss-m8-c1*", *out).exit_code == 0
    measured = {line["engine"] for line in raw.read(tmp_path) if line["what"] == "single"}
    assert measured == {"graph-faiss-m8-c100"}


def test_results_that_were_packed_are_read_and_gone_on_with(done, tmp_path) -> None:
    (tmp_path / raw.PACKED).write_bytes(gzip.compress((done / raw.FILE).read_bytes()))
    kept = raw.read(tmp_path)
    assert kept == raw.read(done)
    writer = raw.Writer(tmp_path)
    writer.add({"what": "note", "text": "more"})
    writer.close()
    assert raw.read(tmp_path) == [*kept, {"what": "note", "text": "more"}]
    raw.forget(tmp_path)
    assert not raw.there(tmp_path)


def test_unpacking_that_is_killed_loses_no_line(done, tmp_path) -> None:
    (tmp_path / raw.PACKED).write_bytes(gzip.compress((done / raw.FILE).read_bytes()))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            raw.Writer(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raw.read(tmp_path) == raw.read(done)


@pytest.mark.parametrize(
    ("name", "value"),
    [("commit", "another"), ("versions", {"faiss-cpu": "1"}), ("profile", {"plan": {}, "queries": 1})],
)
def test_results_of_other_circumstances_are_told_apart(done, name, value) -> None:
    lines = raw.read(done)
    assert runner.differences(lines, lines[0]) == []
    assert runner.differences([lines[0] | {name: value}, *lines[1:]], lines[0]) == [name]


def test_results_of_other_circumstances_are_not_gone_on_with(done, tmp_path) -> None:
    out = tmp_path / "again"
    out.mkdir()
    first, *rest = (done / raw.FILE).read_text().splitlines()
    (out / raw.FILE).write_text("\n".join([json.dumps(json.loads(first) | {"commit": "another"}), *rest]) + "\n")
    result = run("--engines", "numpy", "--out", str(out), "--resume")
    assert result.exit_code != 0
    assert "another commit" in str(result.exception)
    assert run("--engines", "memory-scan", "--data", "clustered:16:300", "--out", str(out), "--anew").exit_code == 0
    assert {line["engine"] for line in raw.read(out) if "engine" in line} == {"memory-scan"}


def test_a_process_that_takes_too_long_ends_and_keeps_what_it_said(tmp_path, monkeypatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "slow_engine.py").write_text(SLOW)
    monkeypatch.setenv("SIMILIS_BENCH_ENGINES", str(own))
    data = prepare("clustered:16:300", tmp_path / "data", 20, 7)
    job = {"engine": "slow", "module": "slow_engine", "data": str(data), "folder": str(tmp_path / "built")}
    plan = asdict(PROFILES["smoke"].plan)
    lines: list[dict] = []
    assert runner.ask_child(job | {"step": "build"}, lines.append, 60) == ""
    began = time.monotonic()
    why = runner.ask_child(job | {"step": "measure", "round": 0, "done": [], "plan": plan}, lines.append, 6)
    assert why == "it took more than 6 s"
    assert time.monotonic() - began < 30
    assert [line["what"] for line in lines] == ["build", "cold"]
    time.sleep(0.1)
    below = int((tmp_path / "built" / "below").read_text())
    assert processes.peak_mib(below) == 0  # its descendants have ended, too


def test_an_exact_engine_that_is_not_ends_the_run_with_findings(tmp_path, monkeypatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "broken_engine.py").write_text(BROKEN)
    monkeypatch.setenv("SIMILIS_BENCH_ENGINES", str(own))  # inherited by the measuring process
    from benchmarks.latency import engines

    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(own)])
    out = tmp_path / "out"
    result = run("--engines", "broken,faiss-flat-ip", "--data", "clustered:16:200", "--out", str(out))
    assert result.exit_code == 6
    assert "NOT EXACT: broken on clustered:16:200" in result.output
    text = (out / "report.md").read_text()
    assert "NOT EXACT" in text
    assert not re.search(r"^\| broken \|", text, re.MULTILINE)  # it has no figures


def test_an_engine_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "failing_engine.py").write_text(
        BROKEN.replace("return Found", "raise RuntimeError('burnt') #").replace('"broken"', '"failing"')
    )
    monkeypatch.setenv("SIMILIS_BENCH_ENGINES", str(own))
    from benchmarks.latency import engines

    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(own)])
    out = tmp_path / "out"
    result = run("--engines", "failing,numpy", "--data", "clustered:16:200", "--out", str(out))
    assert result.exit_code == 1
    assert "burnt" in result.output
    assert {line["engine"] for line in raw.read(out) if line["what"] == "round"} == {"numpy"}


def test_graphs_of_other_parameters_are_measured_where_they_are_asked_for() -> None:
    assert not any(engine.aside for engine in chosen(["*"]))
    asked = chosen(["graph-*"])
    assert {(e.settings["m"], e.settings["ef_construct"]) for e in asked} == {
        (m, ef) for m in (8, 16, 32) for ef in (100, 200)
    }
    assert len(asked) == 12


def test_what_an_engine_was_built_with_is_in_the_raw_lines_and_the_report(done) -> None:
    built = {line["engine"]: line for line in raw.read(done) if line["what"] == "build"}
    assert built["faiss-hnsw"]["settings"] == {"m": 16, "ef_construct": 100}
    assert "| faiss-hnsw | m 16, ef_construct 100 |" in (done / "report.md").read_text()


def test_a_quick_build_is_made_twice_where_the_profile_says_so(done, tmp_path) -> None:
    twice = replace(chosen_profile("smoke", ["clustered:16:300"]), again_s=30.0)
    runner.run(twice, tmp_path / "twice", ["numpy"], lambda *_: None, scratch=tmp_path / "scratch", resume=False)
    assert [line["what"] for line in raw.read(tmp_path / "twice")].count("build") == 2
    assert [line["engine"] for line in raw.read(done) if line["what"] == "build"].count("numpy") == 1


def test_data_that_cannot_be_made_are_told_before_anything_is_measured(tmp_path) -> None:
    asked = ("--engines", "numpy", "--data", "clustered:16:300", "--data", "file:/nowhere.npy")
    result = run(*asked, "--out", str(tmp_path))
    assert isinstance(result.exception, NotFound)
    assert raw.read(tmp_path) == []  # so the folder can be used for the corrected command


def test_an_unknown_engine_or_profile_is_refused(tmp_path) -> None:
    assert run("--engines", "nothing-*", "--out", str(tmp_path / "a")).exit_code != 0
    assert CliRunner().invoke(bench, ["run", "--profile", "x", "--out", str(tmp_path / "b")]).exit_code != 0


@pytest.mark.parametrize("option", ["--from-similis=", "--data=similis:"])
@pytest.mark.parametrize("address", ["reader:s3cret@nowhere/similis", "nowhere/similis?user=reader&password=s3cret"])
def test_a_password_in_a_url_is_refused_as_the_results_name_their_data(tmp_path, option, address) -> None:
    result = run(f"{option}postgresql+psycopg://{address}", "--out", str(tmp_path / "a"))
    assert isinstance(result.exception, Invalid)
    assert "PGPASSWORD" in str(result.exception)
    assert not (tmp_path / "a").exists()


def test_two_runs_of_the_same_are_compared(done) -> None:
    result = CliRunner().invoke(bench, ["compare", str(done), str(done)])
    assert result.exit_code == 0
    assert re.search(r"0 of \d\d+ moved", result.output)
