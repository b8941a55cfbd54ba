"""Re-index under fire: models change again and again during intake, erasure and searches, while processes are killed.

`python -m tests.e2e.fire --images 2000 --switches 20 --seed 1` prints counts and findings; exit 1 if there are
findings. `--out benchmarks/results/fire` also writes them there.

Allowed: 503 with Retry-After while something behind the API is away, and one reset of a request in flight, which is
sent again. Not allowed: any other failure, a refused connection, an answer mixed from two models, a study that vanished
or came back, and anything that the doctor finds afterwards.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks import report as results
from shared import process
from shared.encoder.base import Encoder
from shared.encoder.build import build
from shared.encoder.runtime import load
from shared.errors import Rejected
from shared.imaging.recipe import Recipe
from shared.imaging.sandbox import Sandbox
from shared.pipeline import lifecycle, reconcile
from shared.pipeline.receive import Rules
from shared.pipeline.reconcile import Site
from shared.store import generations
from shared.store.blobs import Blobs
from tests.e2e.killing import BACK_WITHIN_S, ROLES, Archive

PATIENCE_S = 300.0  #: maximum wait for a part that is away, and for a generation to be complete
NEAR = 0.004  #: tolerance between scores of float16 and of float32 encodings
PAUSES_S = (3.0, 6.0)
ERASED_SHARE = 0.1

Json = dict[str, Any]
Vectors = dict[str, NDArray[np.float32]]  #: by SOP Instance UID, of unit length


class Failed(Exception):
    """A request got an answer that is not allowed."""


@dataclass
class Witness:
    """Knows every model's vector of every image, and checks the scores of answers.

    Args:
        vectors: by the model's fingerprint.
    """

    vectors: Mapping[str, Vectors]

    def wrong(self, answer: Json) -> Iterator[str]:
        """Scores that do not follow from the vectors of the model that the answer names."""
        own = self.vectors.get(answer["model"]["fingerprint"])
        if own is None:
            yield "an answer of an unknown model"
            return
        for study in answer["studies"]:
            for pair in study["matches"]:
                query, hit = pair["query_sop_instance_uid"], pair["sop_instance_uid"]
                if abs(float(own[query] @ own[hit]) - pair["score"]) > NEAR:
                    yield f"generation {answer['generation']} gives another score than its model"
                    return


def vectors(encoders: Sequence[Encoder], files: Mapping[str, Path]) -> dict[str, Vectors]:
    """By fingerprint, each model's vectors of the files as they are now."""
    made: dict[str, Vectors] = {encoder.card.fingerprint: {} for encoder in encoders}
    with Sandbox() as sandbox:
        recipe = Recipe.from_json(encoders[0].card.to_json()["recipe"])
        for uid, decoded in zip(files, sandbox.decode_many(list(files.values()), recipe), strict=True):
            assert not isinstance(decoded, Rejected)
            for encoder in encoders:
                vector = encoder.encode(decoded.pixels).embeddings[0]
                made[encoder.card.fingerprint][uid] = vector / np.linalg.norm(vector)
    return made


@dataclass
class Report:
    images: int = 0
    switches: int = 0
    rollbacks: int = 0
    erased: int = 0
    queries: int = 0
    waited: int = 0  #: answers 503 (or 429) with Retry-After
    resets: int = 0
    litter: int = 0  #: empty collections left by killed requests to begin a generation
    by_model: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def to_json(self) -> Json:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        told = {"by_model": sorted(self.by_model.values()), "kills": dict(self.kills), "findings": self.findings[:50]}
        return fields | told | {"seconds": round(self.seconds, 1), "killed": self.kills.total()}


class Fire:
    """One run."""

    def __init__(self, folder: Path, *, images: int, switches: int, seed: int, pauses_s: tuple[float, float]) -> None:
        self.archive = Archive(folder, images // 2, parts=max(4, switches))
        self.switches, self.pauses_s = switches, pauses_s
        self.rng, self.report = random.Random(seed), Report(images=images // 2 * 2)
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.known: set[str] = set()  #: studies that an answer has shown and whose erasure was not requested
        self.leaving: set[str] = set()  #: studies whose erasure was requested
        self.gone: set[str] = set()  #: studies whose erasure was answered
        self.studies = sorted({_study(uid) for uid in self.archive.sent})

    def open(self) -> None:
        """Start the stack and add two models."""
        self.archive.open()
        folder = self.archive.home / "models" / "other"
        card = build(folder, "other", "null", "random:7", dim=48)
        with self.archive.store.transaction() as db:
            lifecycle.add_model(db, self.archive.indexes, "other", card)
        if (untrained := self.archive.stack.pid_of("model")) is not None:
            process.kill_tree(untrained)  # it builds a model that the test does not need
        encoders = [load(self.archive.folder), load(folder)]
        self.witness = Witness(vectors(encoders, self.archive.sent))
        self.url, self.key = self.archive.stack.url, self.archive.stack.api_key

    def ask(self, method: str, path: str, *, also: Sequence[int] = (), **what: Any) -> httpx.Response:
        """The answer, repeating the request while it is answered 503. Raises: `Failed`."""
        until, resets = time.monotonic() + PATIENCE_S, 0
        headers = {"Authorization": f"Bearer {self.key}"} | what.pop("headers", {})
        while time.monotonic() < until:
            try:
                answer = httpx.request(method, f"{self.url}{path}", headers=headers, timeout=90, **what)
            except httpx.ConnectError:
                raise Failed(f"{method} was refused") from None
            except httpx.TransportError as error:
                resets += 1
                self._count("resets")
                if resets > 1:
                    raise Failed(f"{method} was cut off twice ({type(error).__name__})") from None
                continue
            if answer.status_code in (429, 503) and "Retry-After" in answer.headers:
                self._count("waited")
                time.sleep(min(float(answer.headers["Retry-After"]), 1.0))
                continue
            if answer.is_success or answer.status_code in also:
                return answer
            raise Failed(f"{method} answered {answer.status_code}")
        raise Failed(f"{method} was answered 503 for {PATIENCE_S:.0f} s")

    def _count(self, name: str) -> None:
        with self.lock:
            setattr(self.report, name, getattr(self.report, name) + 1)

    def find(self, finding: str) -> None:
        with self.lock:
            self.report.findings.append(finding)

    # --- in parallel ---

    def query(self) -> None:
        """Search for studies, four times in five for known ones."""
        rng = random.Random(self.rng.random())
        while not self.stop.is_set():
            with self.lock:
                known = sorted(self.known)
            self.look(rng.choice(known if known and rng.random() < 0.8 else self.studies))
            time.sleep(0.03)

    def look(self, study: str) -> bool:
        """Search by one study and check the answer; return whether the study was found."""
        with self.lock:
            shown_before, gone_before = study in self.known, set(self.gone)
        path = f"/v1/studies/{study}/similar"
        answer = self.ask("GET", path, params={"k": 10, "exclude": "none"}, also=(404, 409))
        self._count("queries")
        with self.lock:
            still = study in self.known
        if not answer.is_success:  # 404: not yet taken in, or erased; 409: not yet encoded
            if shown_before and still:
                self.find(f"{study} has vanished")
            return False
        told = answer.json()
        found = [one["study_instance_uid"] for one in told["studies"]]
        self.report.by_model[told["model"]["fingerprint"]] += 1
        for wrong in self.witness.wrong(told):
            self.find(wrong)
        for risen in sorted(gone_before.intersection([study, *found])):
            self.find(f"{risen} was erased and is found")
        if shown_before and still and study not in found:
            self.find(f"{study} does not find itself")
        with self.lock:
            if study not in self.leaving and study in found and not self.stop.is_set():
                self.known.add(study)
        return True

    def take_in(self) -> None:
        """Scan folder after folder, at the pace of the switches."""
        for n, part in enumerate(self.archive.parts):
            headers = {"Idempotency-Key": part.name}
            self.ask("POST", "/v1/ingest/scans", json={"path": str(part)}, headers=headers)
            wanted = self.switches * (n + 1) / len(self.archive.parts) - 1
            process.until(lambda wanted=wanted: self.stop.is_set() or self.report.switches >= wanted, 15)  # type: ignore[misc]

    def erase(self) -> None:
        """Erase known studies, up to a tenth of all."""
        rng = random.Random(self.rng.random())
        while not self.stop.wait(2.0):
            with self.lock:
                known = sorted(self.known)
                if len(self.gone) >= ERASED_SHARE * len(self.studies) or len(known) < 10:
                    continue
                study = rng.choice(known)
                self.known.discard(study)  # from here on a search may find it or not
                self.leaving.add(study)
            self.ask("DELETE", f"/v1/studies/{study}")
            with self.lock:
                self.gone.add(study)
            self._count("erased")

    def kill(self) -> None:
        """Kill random roles with their descendants, each role equally often."""
        rng, deck = random.Random(self.rng.random()), list[str]()
        while not self.stop.wait(rng.uniform(*self.pauses_s)):
            deck = deck or rng.sample(ROLES, len(ROLES))
            role = deck.pop()
            victim = self.archive.victim(role)
            if victim is not None:
                process.kill_tree(victim.pid)
                self.report.kills[role] += 1

    def switch(self) -> None:
        """Build and publish generation after generation, of the two models in turn."""
        for n in range(self.switches):
            asked = {"model": ("other", "null")[n % 2], "scale": "exact"}
            begun = self.ask("POST", "/v1/generations", json=asked, headers={"Idempotency-Key": str(uuid.uuid4())})
            number = begun.json()["id"]
            self._publish(f"{number}:publish")
            self.report.switches += 1
            if n % 5 == 4 and self._publish(f"{number}:rollback"):
                self._publish(f"{number}:publish")
                self.report.rollbacks += 1
            self._retire(number)

    def _publish(self, what: str) -> bool:
        """Request a publication or rollback again until it is not refused; False if it had already happened."""
        until, why = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < until:
            answer = self.ask("POST", f"/v1/generations/{what}", json={"accept": []}, also=(409,))
            if answer.is_success:
                return True
            why = str(answer.json().get("detail"))
            if "is not published" in why or "is published already" in why:
                return False  # the first request took effect, but its answer was lost
            time.sleep(0.7)
        raise Failed(f"{what} was refused for {PATIENCE_S:.0f} s: {why}")

    def _retire(self, number: int) -> None:
        """Retire all open generations up to this one but the last two."""
        rows = self.ask("GET", "/v1/generations").json()["generations"]
        opened = sorted(row["id"] for row in rows if row["state"] == "open" and row["id"] <= number)
        for old in opened[:-2]:
            self.ask("POST", f"/v1/generations/{old}:retire", json={"force": True}, also=(409,))

    # --- at rest ---

    def judge(self) -> Iterator[str]:
        """Findings at rest: studies found although erased, or not found although sent; and those of the doctor."""
        for study in self.studies:
            if self.look(study) == (study in self.gone):
                yield f"{study} is {'found after its erasure' if study in self.gone else 'not found'}"
        with self.archive.store.reading() as connection:
            live = generations.published(connection)
        assert live is not None
        wanted = sum(_study(uid) not in self.gone for uid in self.archive.sent)
        if (held := self.archive.indexes.open(live.collection).count()) != wanted:
            yield f"the published index holds {held} points, and {wanted} images stand"
        key = (self.archive.home / "pseudonym.key").read_text().strip().encode()
        site = Site(
            begin=self.archive.store.transaction,
            indexes=self.archive.indexes,
            models=self.archive.home / "models",
            blobs=Blobs(self.archive.home / "blobs"),
            inspector=Sandbox(),
            rules=Rules(secret=key),
        )
        found = reconcile.examine(site, deep=True, repair=True)
        # a killed request to begin a generation leaves an empty collection: counted, and the doctor removes it
        self.report.litter = sum(one.count for one in found if one.kind == "collection-stray")
        found = [one for one in found if one.kind != "collection-stray"]
        found += reconcile.examine(site, deep=True)
        yield from (f"doctor: {one.kind} {one.count} {one.ids[:3]}" for one in found)


def _study(sop_uid: str) -> str:
    """The study of an image of `tests.tiny`."""
    return f"1.2.826.0.1.3680043.8.{sop_uid.split('.')[-2]}"


def run(
    folder: Path, *, images: int, switches: int, seed: int, pauses_s: tuple[float, float] = PAUSES_S,
    settle_s: float = 180.0,
) -> Report:  # fmt: skip
    fire = Fire(folder, images=images, switches=switches, seed=seed, pauses_s=pauses_s)
    try:
        fire.open()
        began = time.monotonic()
        threads = [
            threading.Thread(target=_guarded, args=(fire, name), name=name)
            for name in ("query", "take_in", "erase", "kill")
        ]
        for thread in threads:
            thread.start()
        _guarded(fire, "switch")
        threads[1].join(PATIENCE_S)
        fire.stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        process.until(lambda: all(fire.archive.victim(role) is not None for role in ROLES), BACK_WITHIN_S, 0.1)
        if not fire.archive.settle(settle_s):
            fire.find(f"{fire.archive.left()} pieces of work left after {settle_s:.0f} s")
        fire.report.seconds = time.monotonic() - began
        fire.report.findings += list(fire.judge())
    finally:
        fire.stop.set()
        fire.archive.close()
    return fire.report


def _guarded(fire: Fire, name: str) -> None:
    """Run one thread's work; an exception becomes a finding."""
    what: Callable[[], None] = getattr(fire, name)
    try:
        what()
    except Exception as error:
        fire.find(f"{name}: {error or type(error).__name__}")


def write(report: Report, about: Json, out: Path) -> None:
    """Write `out`.md and `out`.json."""
    figures = report.to_json()
    counted = ("images", "switches", "rollbacks", "erased", "queries", "waited", "resets", "litter")
    body = [
        "# The model changes, and nobody notices",
        "",
        "Two null encoders by turns, while images were taken in, erased and asked for, and a random process of the",
        f"embedded stack was killed every {PAUSES_S[0]:.0f} to {PAUSES_S[1]:.0f} s. `waited`: answers 503 with",
        "Retry-After; `resets`: requests in flight at a kill, sent again. Every score of every answer was held against",
        "vectors made from the files; afterwards every study was asked for, and the doctor compared everything.",
        "",
        *results.table(["what", "how many"], [[name, figures[name]] for name in counted]),
        "",
        *results.table(["role", "kills"], [[role, report.kills[role]] for role in ROLES]),
        "",
        f"{figures['seconds']} s. Findings: {len(report.findings)}.",
        *(f"- {finding}" for finding in figures["findings"]),
    ]
    results.write(out.name, about, figures, body, out.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where the figures are written, without an ending")
    options = parser.parse_args()
    command = shlex.join(["python", "-m", "tests.e2e.fire", *sys.argv[1:]])
    about = results.facts("fire", {"fire": options.seed}) | {"command": command}
    with tempfile.TemporaryDirectory(prefix="similis-fire-") as folder:
        report = run(Path(folder), images=options.images, switches=options.switches, seed=options.seed)
    if options.out is None:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        write(report, about, options.out)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
