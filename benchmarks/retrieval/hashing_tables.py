"""The hashing tables, from the raw lines (and the average precision of each query, for paired tests)."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Json, table
from benchmarks.retrieval.heads import Head, radii
from shared.datasets.collection import Collection
from shared.metrics.bootstrap import compare, holm

Record = Mapping[str, Any]
PER_QUERY = Callable[[Json], NDArray[np.float64] | None]
USUAL = Head().bits
#: searches of a trunk trained end to end: name in its record, and label in the tables
SEARCHES = {"features": "float, z", "float": "float, content", "code": "its own code"}


def body(records: Sequence[Record], average_precision: PER_QUERY, collection: Collection) -> list[str]:
    """Markdown of all tables that have records; means over trunk seeds, ± their standard deviation."""
    heads = [r for r in records if r["key"]["kind"] == "head"]
    own = [r for r in heads if ":" not in r["key"]["trunk"]]
    plain = [r for r in own if not _change(r, "method", "bits")]
    sections = {
        "Mean average precision by bits (tie-aware, micro, heads on the trunk's features)": _by_bits(
            plain, records, "mAP"
        ),
        "Order within a class by bits (nDCG by similarity of fingerprints of 16 pixels)": _by_bits(
            plain, records, "within_class_nDCG"
        ),
        "Different codes in the gallery by bits": _by_bits(plain, [], "unique_codes", "{:.0f}"),
        f"At {USUAL} bits": [
            *_at_usual(plain, records),
            *_balls(plain),
            *_against(
                {name: _of(plain, bits=USUAL, method=name) for name in _unique(plain, "method")},
                average_precision,
                collection,
            ),
        ],
        "ACIR against others, each trained from end to end": _end_to_end(records, average_precision, collection),
        "Recall by radius and bits": _recall(plain),
        "One change at a time (ACIR, 64 bits)": _changes(
            [r for r in own if r["key"]["method"] == "acir" and r["key"]["labels"] == "fine"]
        ),
        "Trained on the sets alone (4 classes), asked for the 16 classes": _coarse(
            [r for r in own if r["key"]["labels"] == "coarse"]
        ),
        "Heads on a frozen MobileNetV2": _backbones(records),
        "Size of the fingerprints on one set alone (frozen MobileNetV2)": _apart(records),
        "Bytes and search time": _times(records),
    }
    return [line for title, found in sections.items() if found for line in (f"## {title}", "", *found)][:-1]


def _rows(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table followed by an empty line; no lines if there are no rows."""
    return [*table(head, rows), ""] if rows else []


def flat(records: Sequence[Record], path: Path) -> None:
    """Write every figure of every run to a CSV file, one per row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "figure", "value"])
        for record in records:
            name = " ".join(f"{key}={value}" for key, value in record["key"].items())
            figures = {**record["figures"], **record["figures"].get("ball", {})}
            writer.writerows([name, figure, value] for figure, value in figures.items() if figure != "ball")


def _change(record: Record, *beside: str) -> dict[str, Any]:
    """The fields in which the head differs from the default, without those in `beside`."""
    fields = {name: value for name, value in record["key"].items() if name not in ("kind", "trunk", "seed")}
    return {name: value for name, value in Head(**fields).changed.items() if name not in beside}


def _spread(values: Iterable[float], form: str = "{:.3f}") -> str:
    found = list(values)
    if not found:
        return ""
    return form.format(mean(found)) + (f" ± {form.format(stdev(found))}" if len(found) > 1 else "")


def _figures(records: Iterable[Record], name: str) -> list[float]:
    return [r["figures"][name] for r in records if name in r["figures"]]


def _unique(records: Iterable[Record], field: str) -> list[Any]:
    return list(dict.fromkeys(r["key"][field] for r in records))


def _trunks(records: Sequence[Record], search: str) -> dict[str, list[Record]]:
    """Records of trunks trained end to end, by kind of training."""
    found: dict[str, list[Record]] = {}
    for r in records:
        key = r["key"]
        if key["kind"] == "trunk" and key["search"] == search and "widths" in key:
            found.setdefault(f"{key['objective']}{'' if key['darf'] else ' without DaRF'}", []).append(r)
    return found


def _by_bits(heads: Sequence[Record], records: Sequence[Record], name: str = "mAP", form: str = "{:.3f}") -> list[str]:
    lengths = sorted(_unique(heads, "bits"))
    rows = [
        [method, *(_spread(_figures(_of(heads, method=method, bits=bits), name), form) for bits in lengths)]
        for method in _unique(heads, "method")
    ]
    for search, label in SEARCHES.items() if heads else ():
        for kind, found in _trunks(records, search).items():
            shown = _spread(_figures(found, name), form)
            rows.append([f"*{kind}, end to end, {label}*", *(shown if bits == USUAL else "" for bits in lengths)])
    return _rows(["method", *map(str, lengths)], rows)


def _of(records: Iterable[Record], **fields: object) -> list[Record]:
    return [r for r in records if all(r["key"].get(name) == value for name, value in fields.items())]


def _at_usual(heads: Sequence[Record], records: Sequence[Record]) -> list[str]:
    names = ("mAP", "mAP_macro", "mAP@100", "P@10", "within_class_nDCG")
    usual = _of(heads, bits=USUAL)
    groups = {method: _of(usual, method=method) for method in _unique(usual, "method")}
    for search, label in SEARCHES.items():
        groups |= {f"*{kind}, end to end, {label}*": found for kind, found in _trunks(records, search).items()}
    rows = []
    for method, found in groups.items():
        first = found[0]["figures"]
        interval = f"[{first['mAP_low']:.3f}, {first['mAP_high']:.3f}]"
        unique = _spread(_figures(found, "unique_codes"), "{:.0f}")
        rows.append([method, len(found), *(_spread(_figures(found, name)) for name in names), interval, unique])
    return _rows(["method", "seeds", *names, "mAP of seed 0, 95 % over groups", "different codes"], rows)


def _balls(heads: Sequence[Record]) -> list[str]:
    usual = _of(heads, bits=USUAL)
    reach = radii(USUAL)
    rows = []
    for method in _unique(usual, "method"):
        balls = [r["figures"]["ball"] for r in _of(usual, method=method)]
        cells = [_spread(ball[f"R@H<={r}"] for ball in balls) for r in reach]
        more = [_spread(ball[name] for ball in balls) for name in ("P@H<=2", "empty@H<=2")]
        rows.append([method, *cells, *more])
    return _rows(["method", *(f"recall, radius {r}" for r in reach), "P@H<=2", "share of empty balls"], rows)


def _recall(heads: Sequence[Record]) -> list[str]:
    """One row per method and share of the bits: does a longer code find more within the same share of it?"""
    lengths = sorted(_unique(heads, "bits"))
    rows = []
    for method in _unique(heads, "method"):
        for share, label in ((0, "0"), (16, "K/16"), (8, "K/8"), (4, "K/4")):
            cells = []
            for bits in lengths:
                name = f"R@H<={bits // share if share else 0}"
                balls = [r["figures"]["ball"] for r in _of(heads, method=method, bits=bits)]
                cells.append(_spread(ball[name] for ball in balls))
            rows.append([method, label, *cells])
    told = (
        "Share of all relevant images within the radius, mean over queries, by the share of the bits that may differ."
    )
    return [told, "", *found] if (found := _rows(["method", "radius", *map(str, lengths)], rows)) else []


def _end_to_end(records: Sequence[Record], average_precision: PER_QUERY, collection: Collection) -> list[str]:
    """Differences over the seeds that both have; and by query, if both have each query's average precision."""
    body = []
    for search, label in SEARCHES.items():
        found = _trunks(records, search)
        if "acir" not in found or len(found) < 2:
            continue
        of_seed = {kind: {r["key"]["seed"]: r["figures"]["mAP"] for r in group} for kind, group in found.items()}
        rows = []
        for kind in (kind for kind in found if kind != "acir"):
            both = sorted(of_seed["acir"].keys() & of_seed[kind].keys())
            rows.append([kind, len(both), _spread(of_seed["acir"][seed] - of_seed[kind][seed] for seed in both)])
        body += [f"By {label}:", "", *_rows(["ACIR minus", "seeds", "difference of mAP, ± sd over seeds"], rows)]
        body += _against(found, average_precision, collection)
    return body


def _against(groups: Mapping[str, Sequence[Record]], average_precision: PER_QUERY, collection: Collection) -> list[str]:
    """ACIR against each other method on the same queries, their precision averaged over common seeds."""
    groups_asked = collection.groups[collection.split == "test"]
    known = {
        method: {r["key"]["seed"]: found for r in records if (found := average_precision(dict(r["key"]))) is not None}
        for method, records in groups.items()
    }
    own = known.get("acir", {})
    shared = {method: sorted(own.keys() & found.keys()) for method, found in known.items() if method != "acir"}
    shared = {method: seeds for method, seeds in shared.items() if seeds}
    if not shared:
        return []

    def average(method: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.asarray(np.mean([known[method][seed] for seed in seeds], axis=0))

    made = [compare(average("acir", seeds), average(method, seeds), groups_asked) for method, seeds in shared.items()]
    adjusted = holm([one.p for one in made])
    rows = [
        [method, len(seeds), one.difference, f"{p:.4f}", f"{one.effect:.2f}"]
        for (method, seeds), one, p in zip(shared.items(), made, adjusted, strict=True)
    ]
    head = ["ACIR minus", "seeds", "difference of mAP, 95 % over groups", "p (sign flips over groups, Holm)", "d_z"]
    return _rows(head, rows)


def _changes(heads: Sequence[Record]) -> list[str]:
    usual = [r for r in heads if r["key"]["bits"] == USUAL]
    groups: dict[str, list[Record]] = {}
    for r in usual:
        change = _change(r)
        name = ", ".join(f"{key} {value}" for key, value in change.items()) or "*as usual*"
        groups.setdefault(name, []).append(r)
    return _rows(["change", "seeds", *SHOWN], [[name, len(found), *_shown(found)] for name, found in groups.items()])


SHOWN = ("mAP", "mAP macro", "within-class nDCG", "different codes", f"recall, radius {USUAL // 8}")


def _shown(found: Sequence[Record]) -> list[str]:
    return [
        _spread(_figures(found, "mAP")),
        _spread(_figures(found, "mAP_macro")),
        _spread(_figures(found, "within_class_nDCG")),
        _spread(_figures(found, "unique_codes"), "{:.0f}"),
        _spread(r["figures"]["ball"][f"R@H<={USUAL // 8}"] for r in found),
    ]


def _coarse(heads: Sequence[Record]) -> list[str]:
    rows = [
        [method, len(found), *_shown(found)]
        for method in _unique(heads, "method")
        if (found := _of(heads, method=method))
    ]
    return _rows(["method", "seeds", *SHOWN], rows)


def _backbones(records: Sequence[Record]) -> list[str]:
    rows = []
    for r in records:
        key = r["key"]
        if ":" not in str(key.get("trunk", "")) or " on " in key["trunk"]:
            continue
        if key["kind"] == "trunk":
            shown = [_spread(_figures([r], name)) for name in ("mAP", "mAP_macro", "within_class_nDCG")]
            rows.append([key["trunk"], "*float*", *shown, "", ""])
        else:
            rows.append([key["trunk"], key["method"], *_shown([r])])
    return _rows(["trunk", "method", *SHOWN], rows)


def _apart(records: Sequence[Record]) -> list[str]:
    found = [r for r in records if " on " in str(r["key"].get("trunk", ""))]
    rows = [[r["key"]["trunk"].partition(" on ")[2], r["key"]["prints"], *_shown([r])] for r in found]
    return _rows(["set", "pixels", *SHOWN], rows)


def _times(records: Sequence[Record]) -> list[str]:
    found = [r for r in records if r["key"]["kind"] == "search"]
    rows = [
        [
            r["key"]["bits"] or f"float, {r['figures']['bytes'] / 4:.0f} dimensions",
            f"{r['figures']['bytes']:.0f}",
            f"{r['figures']['p50_cpu_ms']:.2f}",
            f"{r['figures']['p95_cpu_ms']:.2f}",
        ]
        for r in found
    ]
    return _rows(["bits", "bytes an image", "p50, ms of processor time", "p95"], rows)
