"""The command that runs all retrieval experiments: order, options, and how each benchmark parses them."""

import sys

import pytest

from benchmarks.retrieval import __main__ as grid
from benchmarks.retrieval import base, finetune, frozen, hashing, ood
from shared.encoder.backbones import PAPER_WEIGHTS


def test_each_benchmark_runs_in_its_order_with_its_own_options(tmp_path, monkeypatch):
    ran = []
    steps = {name: lambda: ran.append(list(sys.argv)) for name in grid.STEPS}
    monkeypatch.setattr(grid, "STEPS", steps)
    before = sys.argv
    grid.main(["--profile", "full", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path), "--threads", "3"])
    assert [argv[0] for argv in ran] == ["frozen", "finetune", "hashing", "ood", "base"]
    assert sys.argv is before
    said = {argv[0]: argv[1:] for argv in ran}
    assert "--profile" not in said["base"]
    assert frozen.options(said["frozen"]).profile == "full"
    read = hashing.options(said["hashing"])
    assert (read.profile, read.threads, read.out) == ("full", 3, tmp_path / "out" / "hashing")
    assert ood._options(said["ood"]).scratch == read.scratch  # so that the trunk is trained once
    assert base._options(said["base"]).out == tmp_path / "out"


def test_only_what_is_named_runs_and_what_fails_leaves_the_arguments_as_they_were(monkeypatch):
    def broken():
        raise RuntimeError("no disk")

    monkeypatch.setattr(grid, "STEPS", {"frozen": broken, "ood": broken})
    before = sys.argv
    with pytest.raises(RuntimeError, match="no disk"):
        grid.main(["--steps", "ood"])
    assert sys.argv is before


def test_the_help_says_what_it_costs(capsys):
    with pytest.raises(SystemExit):
        grid.main(["--help"])
    said = capsys.readouterr().out
    assert "two hours" in said
    assert "GPU" in said


def test_the_full_profile_has_the_papers_networks_and_their_ensembles():
    full, quick = finetune.PROFILES["full"], finetune.PROFILES["quick"]
    assert {"densenet121", "resnet50"} <= set(full.nets)
    assert not {"densenet121", "resnet50"} & set(quick.nets)
    assert quick.views == full.views == ("frozen", "advanced", "metric")
    assert finetune._ensembles(full.nets)["best_two_advanced"] == [
        ("densenet121", "advanced"), ("resnet50", "advanced"),
    ]  # fmt: skip


def test_frozen_features_of_the_full_profile_are_those_of_the_papers_trained_networks():
    full = {net.architecture: net for net in frozen.PROFILES["full"]}
    assert {name: full[name].weights for name in PAPER_WEIGHTS} == dict(PAPER_WEIGHTS)
    assert {(net.side, net.large_side, net.share) for net in full.values()} == {(224, None, 1.0)}
    assert not any(net.weights.startswith("torchvision") for net in frozen.PROFILES["quick"])
