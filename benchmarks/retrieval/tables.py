"""The frozen-feature tables, from the raw lines alone."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import table
from shared.metrics.retrieval import KS
from shared.training.protocols import PROTOCOLS, protocol

Line = Mapping[str, Any]

SHOWN = ("P@10", "R@10", "nDCG@10", "mAP")

_NETWORKS = {
    "quick": (
        "arrangements. ImageNet weights: SqueezeNet and MobileNetV2, at 224 pixels. The papers' four networks have",
        "random weights (no others are at hand): at 112 pixels, for the 16 classes at their own 64; VGG16 at 224, and",
        "of the 16 classes only 8 % of the images, so its gallery is smaller, and chance is that of the whole set.",
        "MIAS: 322 films of 161 women, severity (a stand-in for BI-RADS 1, 2, 5) and tissue. BUSI: patients unknown,",
        "so `patient` and `lopo` separate images only; it was left out for VGG16. MedNIST: groups are blocks of",
        "slices. It and the lesion squares of MIAS were measured with the two trained networks alone, and their",
        "`paper2-v1-compat` is drawn as scikit-learn does; in the four sets that were measured before, NumPy drew 30 %",
        "of each class.",
    ),
    "full": (
        "arrangements. All networks have ImageNet weights, at 224 pixels, the papers' four those that the papers used.",
        "Which EfficientNet that is they do not say: B0 is our choice.",
        "MIAS: 322 films of 161 women, severity (a stand-in for BI-RADS 1, 2, 5) and tissue. BUSI: patients unknown,",
        "so `patient` and `lopo` separate images only. MedNIST: groups are blocks of slices.",
    ),
}


def notes(profile: str) -> Sequence[str]:
    """Introduction to the tables, for the measured profile."""
    leaking = ", ".join(name for name in PROTOCOLS if protocol(name).leaks)
    return (
        "Micro and macro (mean of classes) with 95 % intervals over patients or groups; random: the expectation of a",
        "random order; majority: the gallery's commonest class first. The protocols are those of",
        f"`shared/training/protocols.py`; {leaking} let a query meet its own patient and are shown for comparison.",
        "`split` is the set's own (16 classes: gallery = train and val, queries = test); `patient` is the mean of five",
        *_NETWORKS[profile],
        "Nothing here is a BI-RADS result: no such set is at hand. The first line of each set's .jsonl says when and",
        "by which command it was measured.",
    )


def figure_tables(lines: Sequence[Line], out: Path) -> list[str]:
    """Markdown: per set the main figures under every protocol, those of the main protocol by k, parts, votes.

    The main figures of all lines go to figures.csv in the folder.
    """
    rows = [line for line in lines if line["kind"] == "figures"]
    _csv(out / "figures.csv", rows)
    body = []
    for name in dict.fromkeys(line["set"] for line in rows):
        mine = [line for line in rows if line["set"] == name]
        whole = [line for line in mine if line["part"] == "all"]
        body += [f"## {name}", "", *_by_protocol(whole), ""]
        main = "split" if name == "radiology_16class" else "patient"
        body += [f"Protocol `{main}` by k, micro (nDCG* has the retrieved list as its ideal: the papers' own):", ""]
        body += [*_by_k([line for line in whole if line["protocol"] == main]), ""]
        parts = [
            line for line in mine if line["part"] != "all" and line["protocol"] == main and line["distance"] == "cosine"
        ]
        if parts:
            body += [f"Parts, protocol `{main}`, cosine:", "", *_by_part(parts), ""]
        body += [f"Votes of the ten nearest, protocol `{main}`, cosine:", ""]
        body += [*_votes([line for line in whole if line["protocol"] == main and line["distance"] == "cosine"]), ""]
    return body


def timing_table(lines: Sequence[Line], searched: Sequence[Line] = ()) -> list[str]:
    """Markdown: search time, and encoding time apart. Repeated search times replace the first ones."""
    head = ("set", "network", "index size", "dim", "FlatL2 p50 / p95 ms", "FlatIP p50 / p95 ms", "same first ten",
            "load average", "encode ms of processor time")  # fmt: skip
    again = {(line["set"], line["net"]): line for line in searched if line["kind"] == "search"}
    rows = []
    for line in (line for line in lines if line["kind"] == "timing"):
        found = again.get((line["set"], line["net"]), line)
        same = min(found[kind]["same first ten"] for kind in ("FlatL2", "FlatIP"))
        times = (_times(found["FlatL2"]), _times(found["FlatIP"]), same, found["load"])
        rows.append((line["set"], line["net"], line["index size"], line["dim"], *times, line["encode_ms"]))
    said = "FAISS, one thread, one query at a time for 100 items, search alone, processor time."
    if again:
        about = searched[0]
        said += f" Of random vectors, as many and as long as the set's: {about['machine']}, {about['date']}."
    return ["## Search time", "", said, "", *table(head, rows)]


def _by_protocol(rows: Sequence[Line]) -> list[str]:
    head = [
        "network",
        "distance",
        "protocol",
        "queries",
        *(f"{name} micro" for name in SHOWN),
        "P@10 macro",
        "mAP macro",
    ]
    found: list[list[object]] = []
    for line in rows:
        f = line["figures"]
        cells = [*(_three(f[name]["micro"]) for name in SHOWN), _three(f["P@10"]["macro"]), _three(f["mAP"]["macro"])]
        name = line["protocol"] + " (leaks)" * line["leaks"]
        found.append([line["net"], line["distance"], name, line["queries"], *cells])
    most = max(line["images"] for line in rows)  # baselines are shown for the whole set
    one_each = {line["protocol"]: line for line in rows if line["images"] == most}
    for kind in ("random", "majority"):
        for asked, line in one_each.items():
            f = line["figures"]
            cells = [*(_one(f[name][kind][0]) for name in SHOWN), _one(f["P@10"][kind][1]), _one(f["mAP"][kind][1])]
            found.append([f"*{kind}*", "", asked, line["queries"], *cells])
    return table(head, found)


def _by_k(rows: Sequence[Line]) -> list[str]:
    head = ["network", "distance", "figure", *(f"k = {k}" for k in KS)]
    names = {"P": "P", "R": "R", "nDCG": "nDCG", "nDCG_retrieved_ideal": "nDCG*"}
    found = [
        [line["net"], line["distance"], shown, *(f"{line['figures'][f'{name}@{k}']['micro'][0]:.3f}" for k in KS)]
        for line in rows
        for name, shown in names.items()
    ]
    first = rows[0]["figures"]
    found += [
        ["*random*", "", name, *(_one(first[f"{name}@{k}"]["random"][0]) for k in KS)] for name in ("P", "R", "nDCG")
    ]
    return table(head, found)


def _by_part(rows: Sequence[Line]) -> list[str]:
    head = ["network", "part", "queries", *(word for name in ("P@10", "mAP") for word in (name, "random"))]
    found = []
    for line in rows:
        pairs = [(line["figures"][name]["micro"], line["figures"][name]["random"][0]) for name in ("P@10", "mAP")]
        cells = [cell for value, chance in pairs for cell in (_three(value), _one(chance))]
        found.append([line["net"], line["part"], line["queries"], *cells])
    return table(head, found)


def _votes(rows: Sequence[Line]) -> list[str]:
    head = (
        "network",
        "balanced accuracy",
        "macro F1",
        "quadratic kappa",
        "balanced accuracy of 4, 5, 6 against 1, 2, 3",
    )
    found = []
    for line in rows:
        v = line["votes"]["10"]
        found.append(
            (
                line["net"],
                _three(v["balanced_accuracy"]),
                _one(v["macro_f1"]),
                _one(v["quadratic_kappa"]),
                _one(v["balanced_accuracy_456"]),
            )
        )
    return table(head, found)


def _csv(path: Path, rows: Sequence[Line]) -> None:
    keys = (
        "set",
        "net",
        "distance",
        "protocol",
        "leaks",
        "part",
        "images",
        "queries",
        "patients",
        "unanswerable",
        "seeds",
    )
    head = (*keys, "figure", "micro", "micro_low", "micro_high", "macro", "macro_low", "macro_high", "random_micro",
            "random_macro", "majority_micro", "majority_macro", "sd_micro", "sd_macro", "short")  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(_flat(rows, keys))


def _flat(rows: Sequence[Line], keys: Sequence[str]) -> Iterator[list[object]]:
    for line in rows:
        for name, f in ((name, line["figures"][name]) for name in SHOWN if name in line["figures"]):
            yield [
                *(line[key] for key in keys),
                name,
                *f["micro"],
                *f["macro"],
                *f["random"],
                *f["majority"],
                *f["sd"],
                f["short"],
            ]


def _three(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def _one(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _times(found: Mapping[str, float]) -> str:
    return f"{found['p50_ms']:.3f} / {found['p95_ms']:.3f}"
