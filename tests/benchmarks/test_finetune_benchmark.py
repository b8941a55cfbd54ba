from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.retrieval.finetune import NETS, experiment, systems
from benchmarks.retrieval.gains import Member, System, lines_of, tables, unit
from shared.datasets.collection import Collection
from shared.encoder.tta import Tta, Views
from tests.training.small_set import stripes


@pytest.fixture(scope="module")
def data() -> Collection:
    return stripes(128, 32, 0)


def member(data: Collection, net: str, training: str, dim: int, strength: float, seed: int = 0) -> Member:
    """A member whose vectors separate the classes by `strength`."""
    rng = np.random.default_rng([dim, int(strength), seed])
    known = np.eye(dim)[data.labels] * strength
    views = (rng.standard_normal((5, len(data), dim)) + known).astype(np.float32)
    cost = {} if training == "frozen" else {"epochs": 2, "best_epoch": 1, "best_score": 0.5, "seconds": 9.0}
    return Member(net, training, seed, views, data, cost)


@pytest.fixture(scope="module")
def members(data: Collection) -> list[Member]:
    trained = {"frozen": 0.5, "advanced": 5.0, "metric": 9.0}
    return [
        member(data, net, training, dim, strength)
        for net, dim in (("squeezenet", 6), ("mobilenet", 8))
        for training, strength in trained.items()
    ]


def test_the_grid_has_every_member_and_the_papers_ensembles(members: list[Member]) -> None:
    found = systems(members)
    assert len([system for system in found if len(system.members) == 1]) == 12
    dims = {system.name: system.vectors().shape[1] for system in found if system.join == "raw"}
    assert dims == {"best_two_advanced": 14, "best_two_metric": 14, "mixed_best": 24, "mega_all": 42}
    assert {(s.join, s.views) for s in found if s.name == "mega_all"} == {
        ("unit", False), ("raw", False), ("pca", False), ("unit", True),
    }  # fmt: skip


def test_what_has_one_view_only_is_not_averaged(data: Collection, members: list[Member]) -> None:
    plain = [replace(m, views=m.views[:1]) if m.training == "metric" else m for m in members]
    found = systems(plain)
    assert not [s for s in found if s.views and any(m.training == "metric" for m in s.members)]
    assert [s for s in found if s.views and s.name == "best_two_advanced"]


def test_ensembles_never_mix_seeds(data: Collection, members: list[Member]) -> None:
    more = [member(data, "squeezenet", "advanced", 6, 5.0, seed=1), member(data, "mobilenet", "advanced", 8, 5.0, 1)]
    for system in systems([*members, *more]):
        assert len({m.seed for m in system.members if m.training != "frozen"}) <= 1
    assert {s.seed for s in systems([*members, *more]) if s.name == "best_two_advanced"} == {0, 1}
    assert {s.seed for s in systems([*members, *more]) if s.name == "mega_all"} == {0}


def test_members_are_joined_as_the_platform_joins_them(members: list[Member]) -> None:
    two = [members[1], members[4]]
    plain = [m.views[0] for m in two]
    assert np.array_equal(System.of(two, "raw", views=False).vectors(), np.concatenate(plain, 1))
    wanted = np.concatenate([v / np.linalg.norm(v, axis=1, keepdims=True) for v in plain], 1)
    assert System.of(two, "unit", views=False).vectors() == pytest.approx(wanted, abs=1e-6)


def test_views_are_averaged_as_the_platform_averages_them(data: Collection) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 6))
    pixels = torch.from_numpy(data.images).float() / 255
    views = Views(32)
    with torch.inference_mode():
        wanted = Tta(network, views)(pixels).numpy()
        seen = network(views(pixels)).numpy().reshape(5, len(data), 6)
    one = Member("net", "frozen", 0, seen, data, {})
    assert one.vectors(views=True) == pytest.approx(wanted, abs=1e-6)
    assert np.array_equal(one.vectors(views=False), seen[0])


def test_what_knows_the_class_gains_and_everything_stands_beside_chance(
    data: Collection, members: list[Member], tmp_path: Path
) -> None:
    found = systems(members)
    lines = list(lines_of(found, data))
    figures = {(line["system"], line["join"], line["views"]): line for line in lines if line["kind"] == "figures"}
    gains = [line for line in lines if line["kind"] == "gain"]
    assert (len(figures), len(gains)) == (len(found) + 2, len(found) - 1)
    assert figures["random", "", False]["figures"]["P@10"]["micro"][0] == pytest.approx(0.25, abs=0.03)
    best = figures["squeezenet metric", "unit", False]["figures"]["mAP"]
    assert best["macro"][0] > 0.95
    gain = next(line for line in gains if line["system"] == "squeezenet metric" and not line["views"])
    against = figures[gain["against"], "unit", False]["figures"]["mAP"]["macro"][0]
    assert gain["against"].endswith("frozen")
    assert gain["difference"][0] == pytest.approx(best["macro"][0] - against, abs=2e-4)
    assert 0 < gain["p"] <= gain["p_holm"] <= 1  # with eight groups, no gain is significant after adjustment
    steps = {(line["system"], line["join"], line["views"]): line for line in lines if line["kind"] == "step"}
    assert len(steps) == len(found) - 2  # frozen networks have no origin
    for key, against in (
        (("squeezenet metric", "unit", False), ("squeezenet frozen", "unit", False)),
        (("squeezenet metric", "unit", True), ("squeezenet metric", "unit", False)),
        (("mega_all", "raw", False), ("squeezenet metric", "unit", False)),
    ):
        mine, theirs = (figures[one]["figures"]["mAP"]["macro"][0] for one in (key, against))
        assert (steps[key]["against"], steps[key]["against_views"]) == (against[0], False)
        assert steps[key]["difference"][0] == pytest.approx(mine - theirs, abs=2e-4)
    text = "\n".join(tables(lines, {"squeezenet metric 0": members[2].cost}, 2, tmp_path))
    assert text.count("\n| mega_all |") == 4
    assert text.count("| mega_all, raw |") == 1
    assert len((tmp_path / "figures.csv").read_text().splitlines()) == len(figures) + 1


def test_several_trainings_of_a_system_are_one_row_with_their_spread(
    data: Collection, members: list[Member], tmp_path: Path
) -> None:
    weaker = [member(data, net, "advanced", dim, 2.0, 1) for net, dim in (("squeezenet", 6), ("mobilenet", 8))]
    lines = list(lines_of(systems([*members, *weaker]), data))
    once = list(lines_of(systems(members), data))
    over = "\n".join(tables(lines, {}, 2, tmp_path)).partition("## Over the trainings")[2].partition("## Each")[0]
    assert "## Over the trainings" not in "\n".join(tables(once, {}, 2, tmp_path))
    (row,) = [line for line in over.splitlines() if line.startswith("| squeezenet advanced |  | 1 |")]
    found = [
        line["figures"]["mAP"]["macro"][0]
        for line in lines
        if line["kind"] == "figures" and line["system"] == "squeezenet advanced" and not line["views"]
    ]
    assert (len(found), row.split(" | ")[3]) == (2, "2")
    assert f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}" in row
    assert "mega_all" not in over  # only one seed has it, as it has metric
    assert "squeezenet frozen" not in over


@pytest.mark.parametrize("how", ["advanced", "metric"])
def test_weights_with_folded_statistics_are_trained_with_them_frozen(how: str) -> None:
    folded = experiment("mobilenet", NETS["mobilenet"], how, "m.safetensors", 3, 1)
    assert (folded.method.freeze_norm, folded.method.mean) == (True, (0.5, 0.5, 0.5))
    assert (folded.epochs, folded.seed, folded.side, folded.name) == (3, 1, 128, f"mobilenet-{how}")
    assert not experiment("squeezenet", NETS["squeezenet"], how, "s.safetensors", 3, 1).method.freeze_norm


def test_unit_vectors_have_length_one_and_zeros_stay() -> None:
    assert np.linalg.norm(unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)), axis=1) == pytest.approx([1, 0])
