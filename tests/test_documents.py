"""The documents match the repository."""

import re
import subprocess
import tomllib

import pytest
import yaml

from shared.imaging.reasons import SENTENCES, Reason
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def file_map() -> list[str]:
    block = README.split("### File map")[1].split("```")[1]
    names, parents = [], []
    for line in block.strip().splitlines():
        indent = len(line) - len(line.lstrip())
        words = line.split()
        if indent == 0:
            parents = [words[0]]
            names.append(words[0])
        elif words[0].endswith("/"):
            names.append(parents[0] + words[0])
        else:
            names += [parents[0] + word for word in words if word.endswith(".py")]
    return names


@pytest.mark.parametrize("name", file_map())
def test_everything_on_the_file_map_is_there(name: str) -> None:
    assert (ROOT / name).exists()


def test_every_room_is_on_the_file_map() -> None:
    rooms = {f"{top}/{p.name}/" for top in ("services", "shared") for p in (ROOT / top).iterdir() if p.is_dir()}
    assert {r for r in rooms if "__pycache__" not in r} <= set(file_map())


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)`|^\$ make ([a-z]+)", README, re.MULTILINE))))
def test_every_make_target_that_is_named_exists(target: tuple[str, str]) -> None:
    name = target[0] or target[1]
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_figure_names_a_module_that_measures_it() -> None:
    figures = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:benchmarks|tests)[\w.]+)", README + figures):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_every_alarm_is_documented_and_about_a_metric_that_exists() -> None:
    rules = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    pages = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    sources = "".join((ROOT / f"services/{part}/metrics.py").read_text(encoding="utf-8") for part in ("api", "dicom"))
    assert len(rules) > 10
    for rule in rules:
        for name in re.findall(r"similis_\w+", rule["expr"]):
            assert f'"{re.sub(r"_(bucket|count|total)$", "", name)}"' in sources, name
            assert name.removesuffix("_bucket") in pages, name


def test_every_reason_has_a_sentence() -> None:
    assert set(SENTENCES) == set(Reason)


def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists():
            most = 25_000_000 if name.startswith("models/") else 3_000_000  # the shipped weights, committed once
            assert (ROOT / name).stat().st_size < most, name


def test_no_committed_figure_or_card_names_a_place_on_the_machine_that_made_it() -> None:
    told = [path for folder in ("benchmarks/results", "models") for path in (ROOT / folder).rglob("*")]
    written = [path for path in told if path.suffix in {".md", ".json", ".jsonl", ".csv"}]
    assert written
    for path in written:
        assert not re.search(r"[ \"'=](/tmp|/home|/work|/root)/", path.read_text(encoding="utf-8")), path


def test_no_gpl_codec_can_come_in() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = " ".join(project["dependencies"]) + (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "pylibjpeg-libjpeg" not in wanted
    assert "pylibjpeg[all]" not in wanted
