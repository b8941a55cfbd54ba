"""Writes the report on the shipped model from its figures."""

from collections.abc import Iterator

from benchmarks.report import Json, table

Cells = tuple[object, ...]

LEAKS = (
    "{queries} of the queries and {gallery} of the gallery stand byte for byte among the images that the model was "
    "trained on. There are {codes} different codes."
)
STRANGE = (
    "Share of images above the threshold of each modality (mean + 3 standard deviations of its validation part), and "
    "how many images there are; `known` are its own test images, so false alarms."
)


def tables(about: str, data: Json) -> list[str]:
    """Lines of Markdown. `about` is a docstring, used without its title and command."""
    spaces = list(data["per_class"])
    modalities = list(dict.fromkeys(row["modality"] for row in data["ood"]))
    return [
        *("# The shipped model", "", about.partition("\n\n")[2].partition("\n\n    python")[0], ""),
        f"Fingerprint {data['fingerprint'][:12]}. Intervals: 95 %, bootstrap over groups (patients, blocks of slices).",
        "",
        *table(
            ("model", "distance", "classes", "queries", "mAP micro", "mAP macro", "P@10 micro", "P@10 macro"),
            _figures(data),
        ),
        *("", "Differences of mAP, similis-base minus the rival, paired:", ""),
        *table(("rival", "classes", "mean", "difference", "p"), _differences(data)),
        "",
        LEAKS.format(**data["leaks"], codes=data["unique_codes"]),
        *("", "mAP by class:", ""),
        *table(("class", *spaces), _classes(data, spaces)),
        *("", "## Out of distribution", ""),
        STRANGE,
        "",
        *table(("kind", *modalities), _strange(data, modalities)),
        *("", "## Forward pass", "", "Processor time of one image on one thread, checks included, median:", ""),
        *table(
            ("images at once", "ONNX Runtime", "eager torch", "ratio"),
            [(r["batch"], f"{r['onnx_ms']} ms", f"{r['torch_ms']} ms", r["ratio"]) for r in data["speed"]],
        ),
    ]


def _figures(data: Json) -> Iterator[Cells]:
    rows = data["rows"]
    for one, other in zip(rows[::2], rows[1::2], strict=True):  # mAP and P@10 of the same model
        cells = [_three(row, mean) for row in (one, other) for mean in ("micro", "macro")]
        yield (one["model"], one["distance"], one["classes"], one["queries"], *cells)


def _differences(data: Json) -> Iterator[Cells]:
    for row in data["differences"]:
        between = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        yield (row["rival"], row["classes"], row["mean"], between, row["p"])


def _classes(data: Json, spaces: list[str]) -> Iterator[Cells]:
    for name in data["per_class"][spaces[0]]:
        yield (name, *(f"{data['per_class'][space][name]:.3f}" for space in spaces))


def _strange(data: Json, modalities: list[str]) -> Iterator[Cells]:
    rows = {(row["modality"], row["kind"]): row for row in data["ood"]}
    for kind in dict.fromkeys(row["kind"] for row in data["ood"]):
        mine = [rows[modality, kind] for modality in modalities]
        yield (kind, *(f"{row['above']:.2f} ({row['n']})" for row in mine))


def _three(row: Json, mean: str) -> str:
    return f"{row[mean]:.3f} [{row[f'{mean}_low']:.3f}, {row[f'{mean}_high']:.3f}]"
