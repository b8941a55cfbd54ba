"""Intake end to end against the limit that decoding and the forward pass set together on the same cores.

`python -m benchmarks.ingest.intake` starts the embedded stack, ingests full-size Explicit VR LE mammograms with
DenseNet121 and with the null encoder, and in the same rounds measures decoding and the forward pass alone, the latter
also in eager torch; `--encoders similis-base` uses the default model of the stack. `--memory 5000` (and `--small`
for tiny files) instead records the memory of every process.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks import files, report
from benchmarks.ingest import parts
from benchmarks.ingest.parts import Part
from benchmarks.memory import FLAT_MIB, Memory
from benchmarks.processes import Stopwatch, others_share
from benchmarks.report import Json, Spread
from benchmarks.stack import Stack
from shared import process
from shared.encoder.cards import read
from shared.errors import Unavailable
from shared.imaging.recipe import Recipe
from shared.store.generations import Published

TARGET = 0.85
SLOTS = 2
ENCODERS = {"densenet121": ("densenet121", "random:1"), "null": ("null", "random:1")}
DEFAULT = "similis-base"  #: present in every stack

_TIMES = sa.text(
    """
    SELECT count(*), extract(epoch FROM max(i.settled_at) - min(o.created_at)),
           extract(epoch FROM max(i.settled_at) - min(i.received_at)),
           extract(epoch FROM max(l.applied_at) - min(i.received_at))
    FROM operation o JOIN image i ON i.operation_id = o.id AND i.status = 'encoded'
    LEFT JOIN ledger l ON l.image_id = i.id AND l.generation_id = :generation AND l.state = 'applied'
    WHERE o.id = CAST(:operation AS uuid)
    """
)


@dataclass(frozen=True, slots=True)
class Taken:
    """One intake in images per second, from the request or from the first registration until settled or searchable."""

    images: int
    asked_to_settled: float
    settled: float
    searchable: float
    core_ms: dict[str, float]  #: processor time per image by role
    others: float  #: the share of the machine that other processes used


@dataclass(frozen=True, slots=True)
class Round:
    decode: Part
    forward: Part | None  #: None for the null encoder
    taken: Taken
    eager: Part | None = None  #: the forward pass by eager torch

    @property
    def limit(self) -> float:
        """Images per second where both share the cores that each had to itself: their times per image add up."""
        return self._limit(self.forward)

    @property
    def times_eager(self) -> float | None:
        """The stack's speed relative to the limit of decoding and eager torch; None for the null encoder."""
        return self.taken.settled / self._limit(self.eager) if self.eager else None

    def _limit(self, forward: Part | None) -> float:
        return 1 / (1 / self.decode.per_s + (1 / forward.per_s if forward else 0))

    @property
    def ratio(self) -> float:
        return self.taken.settled / self.limit

    @property
    def core_ratio(self) -> float:
        """Processor time of both parts over that of the stack; other processes hardly change this ratio."""
        needed = self.decode.core_ms + (self.forward.core_ms if self.forward else 0)
        return needed / sum(self.taken.core_ms.values())


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    about = report.facts("ingest.intake", {"files": options.seed, "weights": 1})
    with tempfile.TemporaryDirectory(prefix="similis-intake-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        if options.memory:
            _memory_run(folder, options, about)
        else:
            _speed_run(folder, options, about)


def _speed_run(folder: Path, options: argparse.Namespace, about: Json) -> None:
    measured, steps, folders = {}, {}, {}
    with Stack(folder, workers=SLOTS) as stack:
        stack.settle_down()
        for name in options.encoders:
            live = _published(stack, name)
            measured[name] = measure(stack, live, folder, options)
            folders[name] = live.folder
        idle = stack.idle_share()
        models = stack.embedded.home / "models"
        with files.gone_afterwards(folder / "steps-files") as where:
            paths = options.make(where, min(options.images, 200), options.seed + 900)
            hash_ms = parts.hashing(paths[:50])
            for name in options.encoders:
                steps[name] = parts.steps(folder / f"steps-{name}", where, models / folders[name])
    figures = {
        "idle_share": idle,
        "digest_ms": hash_ms,
        "steps_ms": steps,
        "encoders": {name: [_json(r) for r in rounds] for name, rounds in measured.items()},
    }
    report.write(_name(options), about, figures, _speed_text(options, measured, figures), options.out)


def _published(stack: Stack, name: str) -> Published:
    """Publish the encoder: one built here, or the model that the stack came with."""
    if name in ENCODERS:
        return stack.use(f"bench-{name}", *ENCODERS[name])
    return stack.publish(read(stack.embedded.home / "models" / name), name)


def measure(stack: Stack, live: Published, folder: Path, options: argparse.Namespace) -> list[Round]:
    """Rounds of decoding alone, the forward pass alone in both runtimes, and the whole; odd rounds in reverse order."""
    passes: list[parts.Forward] = []
    if live.card["architecture"] != "null":
        model = stack.embedded.home / "models" / live.folder
        passes = [parts.Forward(model, SLOTS), parts.Forward(model, SLOTS, "torch")]
    _warm(stack, live, folder / f"warm-{live.folder}", options)
    rounds = []
    try:
        for number in range(options.rounds):
            with files.gone_afterwards(folder / f"{live.folder}-{number}") as where:
                seed = options.seed + 10 * live.generation_id + number
                paths = options.make(where, options.images, seed)
                rounds.append(_round(stack, live, where, paths, passes, backwards=number % 2 == 1))
                print(f"{live.folder} round {number + 1}: {_line(rounds[-1])}", flush=True)
    finally:
        for forward in passes:
            forward.close()
    return rounds


def _warm(stack: Stack, live: Published, where: Path, options: argparse.Namespace) -> None:
    """Ingest 64 files, so that every worker has loaded its model and started its sandbox."""
    with files.gone_afterwards(where):
        options.make(where, 64, options.seed + 500 + live.generation_id)
        take(stack, live, where)


def _round(
    stack: Stack,
    live: Published,
    where: Path,
    paths: Sequence[Path],
    passes: Sequence[parts.Forward],
    *,
    backwards: bool,
) -> Round:
    if backwards:
        taken = take(stack, live, where)
    decode = parts.decoding(paths, Recipe.from_json(live.card["recipe"]), SLOTS)
    rates = [forward.rate(len(paths) / 80) for forward in passes]
    if not backwards:
        taken = take(stack, live, where)
    onnx, eager = rates or (None, None)
    return Round(decode, onnx, taken, eager)


def take(stack: Stack, live: Published, where: Path) -> Taken:
    """Ingest a folder and wait until every image is searchable.

    Raises: `Unavailable` if the intake does not end within an hour, or images are missing.
    """
    wanted = sum(1 for _ in where.rglob("*.dcm"))
    before, watch = stack.cpu_s(), Stopwatch()
    operation = stack.scan(where)
    if not process.until(lambda: stack.left() == 0, 3600, 0.25):
        raise Unavailable("the intake does not end")
    wall, busy, after = watch.wall_s, watch.busy_s, stack.cpu_s()
    with stack.store.reading() as connection:
        row = connection.execute(_TIMES, {"operation": operation, "generation": live.generation_id}).one()
    if row[0] != wanted:
        raise Unavailable(f"{row[0]} of {wanted} images were encoded")
    used = {role: max(0.0, after.get(role, 0.0) - before.get(role, 0.0)) for role in after}
    asked, settled, searchable = (wanted / float(seconds) for seconds in row[1:])
    per_image = {role: round(s * 1000 / wanted, 2) for role, s in used.items()}
    return Taken(wanted, asked, settled, searchable, per_image, others_share(sum(used.values()), busy, wall))


def _memory_run(folder: Path, options: argparse.Namespace, about: Json) -> None:
    architecture = options.encoders[0] if not options.small else "null"
    with Stack(folder, workers=SLOTS) as stack:
        stack.settle_down()
        live = _published(stack, architecture)
        _warm(stack, live, folder / "warm", options)
        part, done, rates = 1000, 0, []
        with Memory(stack) as memory:
            while done < options.memory:
                with files.gone_afterwards(folder / f"memory-{done}") as where:
                    size = min(part, options.memory - done)
                    options.make(where, size, options.seed + done)
                    rates.append(take(stack, live, where).settled)
                    done += size
                    time.sleep(1.5)  # one more sample, of the idle stack
        growth = memory.growth()
    figures = {
        "images": options.memory,
        "encoder": architecture,
        "size": "small" if options.small else "full",
        "images_per_s": statistics.median(rates),
        "growth": growth,
        "samples": [asdict(sample) for sample in memory.samples],
    }
    report.write(_name(options), about, figures, _memory_text(figures), options.out)


def _memory_text(figures: Json) -> list[str]:
    head = ["process", "PSS median, MiB", "PSS peak", "anonymous median", "slope per 1,000 images", "flat"]
    rows = [
        [
            role,
            r["pss_median_mib"],
            r["pss_peak_mib"],
            r["anonymous_median_mib"],
            r["anonymous_slope_mib"],
            "yes" if r["flat"] else "**no**",
        ]
        for role, r in figures["growth"].items()
    ]
    return [
        f"# Memory while {figures['images']:,} images are taken in",
        "",
        f"{figures['size']} files, encoder {figures['encoder']}, {figures['images_per_s']:.0f} images/s. Sampled once",
        "a second over all processes of a role; the first 30 % are left out. Flat: anonymous memory grows by less than",
        f"{FLAT_MIB} MiB per 1,000 images (median of pairwise slopes). Postgres and vectors hold data: they may grow.",
        "",
        *report.table(head, rows),
    ]


def _json(r: Round) -> Json:
    return asdict(r) | {"limit": r.limit, "ratio": r.ratio, "core_ratio": r.core_ratio, "times_eager": r.times_eager}


def _line(r: Round) -> str:
    forward = f"{r.forward.per_s:.1f}/s" if r.forward else "none"
    return (
        f"decode {r.decode.per_s:.1f}/s, forward {forward}, limit {r.limit:.1f}/s; settled {r.taken.settled:.1f}/s "
        f"= {r.ratio:.2f} (processor time {r.core_ratio:.2f}), searchable {r.taken.searchable:.1f}/s; "
        f"others used {r.taken.others:.0%}"
    )


def _speed_text(options: argparse.Namespace, measured: dict[str, list[Round]], figures: Json) -> list[str]:
    rows, verdicts = [], []
    for name, rounds in measured.items():
        ratio = Spread.of((r.ratio for r in rounds), 2)
        verdicts.append(f"{name} {ratio} ({'reached' if ratio.median >= TARGET else 'not reached'})")
        rows.append(
            [
                name,
                Spread.of((r.decode.per_s for r in rounds), 1),
                Spread.of((r.forward.per_s for r in rounds if r.forward), 1) if name != "null" else "none",
                Spread.of((r.eager.per_s for r in rounds if r.eager), 1) if name != "null" else "none",
                Spread.of((r.limit for r in rounds), 1),
                Spread.of((r.taken.settled for r in rounds), 1),
                f"**{ratio}**",
                Spread.of((r.times_eager for r in rounds if r.times_eager), 2) if name != "null" else "none",
                Spread.of((r.core_ratio for r in rounds), 2),
                Spread.of((r.taken.asked_to_settled / r.limit for r in rounds), 2),
                Spread.of((r.taken.searchable / r.limit for r in rounds), 2),
                f"{max(r.taken.others for r in rounds):.0%}",
            ]
        )
    size = "128 x 128" if options.small else "2294 x 1914, 12 bits in 16"
    head = ["encoder", "decode", "forward", "forward, eager torch", "limit", "stack", "stack / limit"]
    head += ["stack / limit with eager torch", "in processor time", "from request", "to searchable", "others"]
    return [
        "# Intake end to end",
        "",
        f"Target: at least {TARGET} of the limit, encoder DenseNet121. {'; '.join(verdicts)}.",
        "",
        f"Images per second, median (lowest to highest) of {options.rounds} rounds of {options.images} new files each,",
        f"{size}, Explicit VR LE, in the page cache. Decode: {SLOTS} sandboxes at once, alone. Forward: {SLOTS}",
        "processes with one thread each, ONNX Runtime's or torch's. Limit: 1 / (1 / decode + 1 / forward), the forward",
        "pass being ONNX Runtime's, which the stack uses. Stack: from the first",
        "registration to the last settled image; then from the HTTP request, and to the last image in the index. In",
        "processor time: what decoding and the forward pass use alone, of what the whole stack uses per image. Others:",
        f"the most that strangers used of the machine in a round. The idle stack uses {figures['idle_share']:.1%}.",
        "",
        *report.table(head, rows),
        "",
        "Processor time per image in the stack, ms, median of the rounds:",
        "",
        *_core_table(measured),
        "",
        "Each step alone, one process, nothing at the same time, ms per image; in brackets the processor time of the",
        "process that asks, without sandbox, Postgres and engine. The digest of a file in memory takes",
        f"{figures['digest_ms']:.1f} ms of the header step.",
        "",
        *_steps_table(figures["steps_ms"]),
    ]


def _core_table(measured: dict[str, list[Round]]) -> list[str]:
    roles = sorted({role for rounds in measured.values() for r in rounds for role in r.taken.core_ms})
    rows = []
    for name, rounds in measured.items():
        alone = [
            round(statistics.median(r.decode.core_ms for r in rounds), 1),
            round(statistics.median(r.forward.core_ms if r.forward else 0.0 for r in rounds), 1),
        ]
        used = [round(statistics.median(r.taken.core_ms.get(role, 0.0) for r in rounds), 1) for role in roles]
        rows.append([name, *alone, *used])
    return report.table(["encoder", "decode alone", "forward alone", *roles], rows)


def _steps_table(steps: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    names = sorted(next(iter(steps.values())), key=lambda step: ("scan", "enco", "proj").index(step[:4]))
    return report.table(
        ["step", *steps],
        [[step, *(f"{steps[e][step]['ms']:.2f} ({steps[e][step]['core_ms']:.2f})" for e in steps)] for step in names],
    )


def _name(options: argparse.Namespace) -> str:
    if not options.memory:
        return "intake"
    return "intake_memory_small" if options.small else "intake_memory"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest.intake", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600, help="files per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoders", nargs="+", choices=[*ENCODERS, DEFAULT], default=list(ENCODERS))
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="watch the memory over N images instead")
    parser.add_argument("--small", action="store_true", help="files of 128 x 128 pixels")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--scratch", type=Path, default=None, help="10 GB for full-size files")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    options = parser.parse_args(arguments)
    options.make = files.small if options.small else files.full
    return options


if __name__ == "__main__":
    main()
