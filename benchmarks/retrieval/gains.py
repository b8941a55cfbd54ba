"""Systems built from the vectors of members, measured on the same queries, and their tables."""

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import table
from shared.datasets.collection import Collection
from shared.metrics.baselines import majority_figures, random_figures
from shared.metrics.bootstrap import Interval, compare, holm, interval
from shared.metrics.ranking import Side
from shared.metrics.retrieval import PerQuery, measure
from shared.training.evaluate import projected

Vectors = NDArray[np.float32]
Join = Literal["unit", "raw", "pca"]
Line = Mapping[str, Any]

FIGURES = ("mAP", "P@10")
KS = (1, 5, 10)
COMPONENTS = 512


@dataclass(frozen=True, slots=True)
class Member:
    """A frozen or trained network, and its vectors of a collection."""

    net: str
    training: str  #: frozen, advanced or metric
    seed: int
    views: Vectors  #: (views, n, dim), the plain view first
    data: Collection
    cost: Mapping[str, Any]  #: of its training; empty if frozen

    @property
    def seen(self) -> bool:
        """Whether there are more views than the plain one."""
        return len(self.views) > 1

    def vectors(self, *, views: bool) -> Vectors:
        """(n, dim): the plain view, or the normalised mean over the views, as the platform encodes with `tta: five`."""
        return unit(self.views.mean(0)) if views else self.views[0]


@dataclass(frozen=True, slots=True)
class System:
    name: str
    members: tuple[Member, ...]
    join: Join
    views: bool

    @classmethod
    def of(cls, members: Sequence[Member], join: Join, *, views: bool, name: str = "") -> Self:
        return cls(name or f"{members[0].net} {members[0].training}", tuple(members), join, views)

    @property
    def seed(self) -> int:
        return max(member.seed for member in self.members)

    def vectors(self) -> Vectors:
        """(n, dim) of the whole collection; principal components are fitted on its training part."""
        parts = [member.vectors(views=self.views) for member in self.members]
        if self.join == "raw":
            return np.concatenate(parts, axis=1)
        joined = np.concatenate([unit(part) for part in parts], axis=1)
        if self.join == "unit":
            return joined
        fit = self.members[0].data.split == "train"
        return projected(joined, fit, min(COMPONENTS, int(fit.sum()) - 1, joined.shape[1]))


def unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def lines_of(systems: Sequence[System], data: Collection) -> Iterator[dict[str, Any]]:
    """One line per system with its figures, one each for the random and majority baselines, and the comparisons."""
    asked, held = data.split == "test", data.split != "test"
    measured: list[tuple[System, PerQuery]] = []
    sizes = {"queries": int(asked.sum()), "gallery": int(held.sum())}
    for system in systems:
        vectors = system.vectors()
        queries, gallery = _side(vectors, data, asked), _side(vectors, data, held)
        if not measured:
            for name, known in (("random", random_figures), ("majority", majority_figures)):
                none = {"system": name, "join": "", "views": False, "seed": 0, "members": 0, "dim": 0}
                yield none | sizes | _figures(known(queries, gallery, ks=KS), data)
        measured.append((system, measure(queries, gallery, ks=KS)))
        yield _identity(system) | {"dim": vectors.shape[1]} | sizes | _figures(measured[-1][1], data)
    yield from _comparisons(measured)


def _side(vectors: Vectors, data: Collection, rows: NDArray[np.bool_]) -> Side:
    return Side(vectors=vectors[rows], labels=data.labels[rows], keys=data.groups[rows])


def _figures(found: PerQuery, data: Collection) -> dict[str, Any]:
    figures = {}
    for name in FIGURES:
        values = found.values[name]
        figures[name] = {
            "micro": _three(interval(values, found.clusters)),
            "macro": _three(interval(values, found.clusters, labels=found.labels)),
        }
    per_class = {data.classes[label]: round(value, 4) for label, value in found.per_class("mAP").items()}
    return {"kind": "figures", "figures": figures, "mAP by class": per_class}


Measured = tuple[System, PerQuery]


def _comparisons(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """Each system against the best frozen network (as in the paper), and against the system that it was made from."""
    plain = [(s, f) for s, f in measured if len(s.members) == 1 and not s.views]
    frozen = max((one for one in plain if one[0].members[0].training == "frozen"), key=_macro)
    yield from _compared("gain", [(one, frozen) for one in measured if one[0] is not frozen[0]])
    yield from _compared("step", [(one, base) for one in measured if (base := _origin(one[0], measured, plain))])


def _macro(one: Measured) -> float:
    return one[1].macro("mAP")


def _origin(system: System, measured: Sequence[Measured], plain: Sequence[Measured]) -> Measured | None:
    """The system that this one was made from: its plain view, the frozen network, or the ensemble's best member."""
    if system.views:
        key = (system.name, system.join, system.seed)
        return next(one for one in measured if not one[0].views and (one[0].name, one[0].join, one[0].seed) == key)
    if len(system.members) > 1:
        return max((one for one in plain if one[0].members[0] in system.members), key=_macro)
    mine = system.members[0]
    if mine.training == "frozen":
        return None
    return next(one for one in plain if (one[0].members[0].net, one[0].members[0].training) == (mine.net, "frozen"))


def _compared(kind: str, pairs: Sequence[tuple[Measured, Measured]]) -> Iterator[dict[str, Any]]:
    """Comparisons paired by query; p-values are adjusted for the number of pairs."""
    found = [compare(f.values["mAP"], g.values["mAP"], f.clusters, labels=f.labels) for (_, f), (_, g) in pairs]
    adjusted = holm([one.p for one in found])
    for ((system, _), (against, _)), one, p in zip(pairs, found, adjusted, strict=True):
        yield _identity(system) | {
            "kind": kind, "against": against.name, "against_views": against.views, "figure": "macro mAP",
            "difference": _three(one.difference), "p": one.p, "p_holm": p, "effect": round(one.effect, 3),
        }  # fmt: skip


def _identity(system: System) -> dict[str, Any]:
    return {"system": system.name, "join": system.join, "views": system.views, "seed": system.seed,
            "members": len(system.members)}  # fmt: skip


def _three(found: Interval) -> list[float]:
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def tables(lines: Sequence[Line], costs: Mapping[str, Mapping[str, Any]], epochs: int, out: Path) -> list[str]:
    """Lines of Markdown; all figures are also written to figures.csv in the folder."""
    rows = [line for line in lines if line["kind"] == "figures"]
    gains = {_key(line): line for line in lines if line["kind"] == "gain"}
    steps = [line for line in lines if line["kind"] == "step"]
    head = ("system", "join", "views", "seed", "dim", "mAP micro", "mAP macro", "P@10 macro", "gain", "p (Holm)")
    body = [
        (
            line["system"], line["join"] if line["members"] > 1 else "", "5" if line["views"] else "1", line["seed"],
            line["dim"], _shown(line["figures"]["mAP"]["micro"]), _shown(line["figures"]["mAP"]["macro"]),
            _shown(line["figures"]["P@10"]["macro"]), *_gain(gains.get(_key(line))),
        )
        for line in rows
    ]  # fmt: skip
    _csv(out / "figures.csv", head, body)
    against = next(iter(gains.values()))["against"] if gains else ""
    trained = [
        (name, cost["epochs"], cost["best_epoch"] + 1, f"{cost['best_score']:.3f}", round(cost["seconds"]))
        for name, cost in costs.items()
    ]
    return [
        "# Fine-tuning, metric learning, views and ensembles",
        "",
        *_notes(rows[0], len({line["seed"] for line in rows}), epochs, against),
        "",
        *_over_seeds(rows, gains, {_key(line): line for line in steps}),
        "## Each training",
        "",
        *table(head, body),
        "",
        "## What each step brings",
        "",
        "Macro mAP, paired by query: training against the same network frozen, five views against one, an ensemble",
        "against the best of its members in the table above. Adjusted by Holm for all rows of this table.",
        "",
        *table(("system", "seed", "against", "difference", "p (Holm)", "effect (d_z over groups)"), map(_step, steps)),
        "",
        "## mAP by class, one view, mean over the trainings",
        "",
        *_by_class([line for line in rows if not line["views"] and line["join"] == "unit"]),
        "",
        "## Trainings",
        "",
        *table(("network, method, seed", "epochs", "best", "macro P@10 of the validation part", "wall s"), trained),
    ]


def _notes(line: Line, seeds: int, epochs: int, against: str) -> Sequence[str]:
    spread = "Each row is one training" if seeds > 1 else "Trained once"
    return (
        f"`radiology_16class` at 128 pixels: gallery = train and val ({line['gallery']} images), queries = test",
        f"({line['queries']}), no group on both sides, cosine; intervals of 95 % over groups (bootstrap, 2,000 draws).",
        f"Trained on the training part by the recommended presets, {epochs} epochs at most; the checkpoint is chosen",
        "by macro P@10 inside the validation part, each image asking those of other groups. Trained systems have seen",
        "the gallery's labels, as an archive's own model would; the queries' never. gain: macro mAP minus that of",
        f"{against}, the best frozen network, paired by query; p: sign flips of whole groups, adjusted by Holm for all",
        "rows of this table. random: the expectation of a random order; majority: the gallery's commonest class first.",
        f"{spread}: the intervals are of the queries, not of trainings. Sixteen coarse and fine classes of 64-pixel",
        "images: no BI-RADS result, no reproduction of the papers.",
    )


def _over_seeds(rows: Sequence[Line], gains: Mapping[Any, Line], steps: Mapping[Any, Line]) -> list[str]:
    """Means over the trainings of each system; empty if each was trained once."""
    found = [(key, lines) for key, lines in _grouped(rows).items() if len(lines) > 1]
    if not found:
        return []
    body = [
        (
            name, join, "5" if views else "1", len(lines),
            *(_spread([line["figures"][figure][over][0] for line in lines])
              for figure, over in (("mAP", "micro"), ("mAP", "macro"), ("P@10", "macro"))),
            *(_spread([told[_key(line)]["difference"][0] for line in lines if _key(line) in told], "+")
              for told in (gains, steps)),
        )
        for (name, join, views), lines in found
    ]  # fmt: skip
    head = ("system", "join", "views", "trainings", "mAP micro", "mAP macro", "P@10 macro", "gain", "step")
    return [
        "## Over the trainings",
        "",
        "Mean over the seeds ± their standard deviation. step: against what the system was made of, as below.",
        "",
        *table(head, body),
        "",
    ]


def _grouped(rows: Sequence[Line]) -> dict[tuple[str, str, bool], list[Line]]:
    """The lines of each system over its seeds; for a single member the join is dropped from the key."""
    found: dict[tuple[str, str, bool], list[Line]] = {}
    for line in rows:
        key = (line["system"], line["join"] if line["members"] > 1 else "", line["views"])
        found.setdefault(key, []).append(line)
    return found


def _spread(values: Sequence[float], sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""


def _by_class(rows: Sequence[Line]) -> list[str]:
    """Means over the seeds."""
    systems = {name: [line["mAP by class"] for line in lines] for (name, _, _), lines in _grouped(rows).items()}
    return table(
        ("class", *systems),
        [
            (label, *(f"{statistics.mean(one[label] for one in seen):.2f}" for seen in systems.values()))
            for label in rows[0]["mAP by class"]
        ],
    )


def _step(line: Line) -> tuple[object, ...]:
    joined = f", {line['join']}" if line["members"] > 1 else ""
    against = "one view" if line["views"] else line["against"]
    system = f"{line['system']}{joined}{', 5 views' if line['views'] else ''}"
    return system, line["seed"], against, _shown(line["difference"], sign="+"), f"{line['p_holm']:.3f}", line["effect"]


def _key(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("system", "join", "views", "seed"))


def _gain(line: Line | None) -> tuple[str, str]:
    return ("", "") if line is None else (_shown(line["difference"], sign="+"), f"{line['p_holm']:.3f}")


def _shown(three: Sequence[float], sign: str = "") -> str:
    return f"{three[0]:{sign}.3f} [{three[1]:{sign}.3f}, {three[2]:{sign}.3f}]"


def _csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
