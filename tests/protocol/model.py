"""The job protocol as a small model: actions that a crash may separate are separate steps.

It models claim, lease and fence of images; the ledgers of several generations and their projectors; re-index with its
gate; erasure; search with its join; the doctor. Each guard can be left out. A walk takes weighted random steps, lets
all work finish, and returns the first violated invariant.

`python -m tests.protocol.model --walks 20000 --seed 1` prints for each guard after how many walks its absence shows.

Source: Qdrant's nightly model test, and TLA+-style models checked by random walks.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

IMAGES, WORKERS, PROJECTORS, STEPS = 2, 2, 2, 45
GUARDS = ("revision", "fence", "join", "gate", "dual-write", "lease-expiry", "doctor", "label")


@dataclass
class Image:
    """`version` identifies its bytes, `encoding` those of its stored vector; labels only raise the revision."""

    status: str = "received"
    revision: int = 1
    version: int = 1
    attempt: int = 0
    leased: bool = False
    encoding: int | None = None


@dataclass
class Row:
    """One row of a ledger."""

    op: str
    revision: int
    state: str = "pending"
    locked_by: int | None = None


@dataclass
class Worker:
    image: int | None = None
    attempt: int = 0
    read: int | None = None  #: the version of the decoded bytes


@dataclass
class Projector:
    """A projector's write, as it was read under the row's lock."""

    at: tuple[int, int] | None = None
    op: str = ""
    revision: int = 0
    vector: int = 0
    written: bool = False


@dataclass(frozen=True)
class State:
    """What the invariants check, of the model or of real rows.

    Args:
        images: by image (status, revision, version of its bytes, version of the encoded bytes).
        ledgers: by generation and image (op, revision, state).
        index: by generation and image (revision, version of the vector). Versions of real rows are None.
        filled: the open generations that have been filled.
    """

    images: dict[int, tuple[str, int, int | None, int | None]]
    ledgers: dict[tuple[int, int], tuple[str, int, str]]
    index: dict[tuple[int, int], tuple[int, int | None]]
    filled: frozenset[int]


def unfinished(state: State) -> Iterator[str]:
    """At rest every job has ended, and no image has a stale encoding."""
    for image, (status, _, version, encoded) in state.images.items():
        if status in ("received", "encoding"):
            yield f"image {image} is never finished"
        elif status == "encoded" and encoded != version:
            yield f"image {image} is done with stale bytes"
    for at, (_, _, row_state) in state.ledgers.items():
        if row_state == "pending":
            yield f"row {at} is never applied"


def incomplete(state: State) -> Iterator[str]:
    """At rest a filled generation holds every encoded image at its current revision."""
    for generation in sorted(state.filled):
        for image, (status, revision, version, _) in state.images.items():
            if status != "encoded":
                continue
            op, wanted, _ = state.ledgers.get((generation, image), ("nothing", 0, ""))
            held = state.index.get((generation, image))
            if op != "upsert" or wanted != revision:
                yield f"generation {generation} does not know image {image} as it is"
            elif held is None:
                yield f"generation {generation} lacks image {image}"
            elif held != (revision, version):
                yield f"generation {generation} holds image {image} stale"


def orphans(state: State) -> Iterator[str]:
    """At rest, after the doctor, no index holds an erased image."""
    for generation, image in state.index:
        if generation in state.filled and state.images[image][0] == "deleted":
            yield f"generation {generation} holds the erased image {image}"


class Model:
    """The state of the protocol and its steps. `without` names the guards that are left out."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self.without = without
        self.images = {n: Image() for n in range(IMAGES)}
        self.workers = [Worker() for _ in range(WORKERS)]
        self.projectors = [Projector() for _ in range(PROJECTORS)]
        self.flying: list[Projector] = []  #: writes in transit to the index whose row lock was lost
        self.ledgers: dict[tuple[int, int], Row] = {}
        self.index: dict[tuple[int, int], tuple[int, int]] = {}
        self.live, self.building = 0, -1  #: generations; -1: no build
        self.filled_to = 0
        self.opened = 1
        self.shown: set[int] = set()

    # --- intake: each step returns whether it was possible ---

    def change(self, n: int) -> bool:
        """The image gets other bytes under the same UID."""
        image = self.images[n]
        if image.status == "deleted":
            return False
        image.revision, image.version = image.revision + 1, image.version + 1
        image.status, image.leased = "received", False
        return True

    def describe(self, n: int) -> bool:
        """The image gets other labels with the same bytes; its row in every ledger is due again."""
        image = self.images[n]
        if image.status == "deleted":
            return False
        image.revision += 1
        for generation in self.opened_ones():
            row = self.ledgers.get((generation, n))
            if row is not None and row.op == "upsert":
                self.wait_for((generation, n))
                row.revision, row.state = self.shown_revision(image), "pending"
        return True

    def shown_revision(self, image: Image) -> int:
        """The revision of its stored vector: less than the image's while new bytes wait to be encoded."""
        waits = image.status in ("received", "encoding") and "label" not in self.without
        return image.revision - waits

    def claim(self, w: int, n: int) -> bool:
        worker, image = self.workers[w], self.images[n]
        due = image.status == "received" or (image.status == "encoding" and not image.leased)
        if worker.image is not None or not due:
            return False
        image.status, image.leased = "encoding", True
        image.attempt += 1
        worker.image, worker.attempt, worker.read = n, image.attempt, None
        return True

    def decode(self, w: int) -> bool:
        worker = self.workers[w]
        if worker.image is None or worker.read is not None:
            return False
        worker.read = self.images[worker.image].version
        return True

    def settle(self, w: int) -> bool:
        """One transaction: status, encoding, a row in the ledger of every open generation."""
        worker = self.workers[w]
        if worker.image is None or worker.read is None:
            return False
        n, image = worker.image, self.images[worker.image]
        mine = image.status == "encoding" and image.attempt == worker.attempt
        if mine or ("fence" in self.without and image.status != "deleted"):
            image.status, image.leased, image.encoding = "encoded", False, worker.read
            for generation in self.opened_ones():
                if generation == self.live or "dual-write" not in self.without:
                    self.post(generation, n)
        self.workers[w] = Worker()
        return True

    def expire(self, n: int) -> bool:
        """The lease expires, whether its holder lives or not."""
        image = self.images[n]
        if not image.leased or "lease-expiry" in self.without:
            return False
        image.leased = False
        return True

    def crash_worker(self, w: int) -> bool:
        if self.workers[w].image is None:
            return False
        self.workers[w] = Worker()
        return True

    def erase(self, n: int) -> bool:
        image = self.images[n]
        if image.status == "deleted":
            return False
        image.status, image.encoding, image.leased = "deleted", None, False
        image.revision += 1
        for at, row in self.ledgers.items():
            if at[1] == n:
                self.wait_for(at)
                row.op, row.state = "delete", "pending"
        return True

    # --- projecting ---

    def post(self, generation: int, n: int) -> None:
        at, revision = (generation, n), self.images[n].revision
        self.wait_for(at)
        row = self.ledgers.get(at)
        if row is None:
            self.ledgers[at] = Row("upsert", revision)
        elif row.revision <= revision:
            row.op, row.revision, row.state = "upsert", revision, "pending"

    def wait_for(self, at: tuple[int, int]) -> None:
        """The holder of the row's lock commits first, because every other writer of the row waits for it."""
        row = self.ledgers.get(at)
        if row is not None and row.locked_by is not None:
            p = row.locked_by
            self.write(p)
            self.applied(p)

    def take(self, p: int, generation: int, n: int) -> bool:
        """Lock a due row, then read it."""
        at, projector = (generation, n), self.projectors[p]
        row = self.ledgers.get(at)
        if projector.at or row is None or row.state != "pending" or row.locked_by is not None:
            return False
        if generation not in self.opened_ones():
            return False
        image = self.images[n]
        op = row.op if image.encoding is not None and image.status != "deleted" else "delete"
        row.locked_by = p
        self.projectors[p] = Projector(at, op, row.revision, image.encoding or 0)
        return True

    def write(self, p: int) -> bool:
        projector = self.projectors[p]
        if projector.at is None or projector.written:
            return False
        self.arrive(projector)
        projector.written = True
        return True

    def arrive(self, projector: Projector) -> None:
        """The index applies the write, unless it holds a newer revision."""
        assert projector.at is not None
        held = self.index.get(projector.at)
        if projector.op == "delete":
            self.index.pop(projector.at, None)
        elif held is None or held[0] <= projector.revision or "revision" in self.without:
            self.index[projector.at] = (projector.revision, projector.vector)

    def applied(self, p: int) -> bool:
        projector = self.projectors[p]
        if projector.at is None or not projector.written:
            return False
        row = self.ledgers[projector.at]
        row.state, row.locked_by = "applied", None
        self.projectors[p] = Projector()
        return True

    def lose_connection(self, p: int) -> bool:
        """The lock is lost with the connection; a write in transit may still arrive later.

        Late deletes are left out: the model deletes only erased images, and they never return.
        """
        projector = self.projectors[p]
        if projector.at is None:
            return False
        self.ledgers[projector.at].locked_by = None
        if not projector.written and projector.op == "upsert":
            self.flying.append(projector)
        self.projectors[p] = Projector()
        return True

    def land(self) -> bool:
        """The oldest write in transit arrives, unless its generation is closed."""
        if not self.flying:
            return False
        late = self.flying.pop(0)
        if late.at is not None and late.at[0] in self.opened_ones():
            self.arrive(late)
        return True

    # --- re-index ---

    def opened_ones(self) -> list[int]:
        return [self.live] if self.building < 0 else [self.live, self.building]

    def begin(self) -> bool:
        if self.building >= 0 or self.opened > 3:
            return False
        self.building, self.filled_to = self.opened, 0
        self.opened += 1
        return True

    def fill(self) -> bool:
        """Add a row for the next image's stored encoding, unless it has one already."""
        if self.building < 0 or self.filled_to == IMAGES:
            return False
        n, at = self.filled_to, (self.building, self.filled_to)
        image = self.images[n]
        if image.encoding is not None and image.status != "deleted" and at not in self.ledgers:
            self.ledgers[at] = Row("upsert", self.shown_revision(image))
        self.filled_to += 1
        return True

    def publish(self) -> bool:
        """The switch: the old generation is closed, and its rows and points are purged."""
        if self.building < 0 or not ("gate" in self.without or self.covered()):
            return False
        old, self.live, self.building = self.live, self.building, -1
        for projector in self.projectors:
            if projector.at is not None and projector.at[0] == old:
                self.projectors[self.projectors.index(projector)] = Projector()
        self.ledgers = {at: row for at, row in self.ledgers.items() if at[0] != old}
        self.index = {at: held for at, held in self.index.items() if at[0] != old}
        return True

    def covered(self) -> bool:
        """Whether the build is filled and has applied every image that searches find today."""
        rows = [self.ledgers.get((self.building, n)) for n in self.searchable()]
        return self.filled_to == IMAGES and all(row is not None and row.state == "applied" for row in rows)

    def searchable(self) -> set[int]:
        return {n for g, n in self.index if g == self.live and self.images[n].status != "deleted"}

    # --- observation ---

    def search(self) -> Iterator[str]:
        """Images that a search must not find, and images that have vanished from searches."""
        found = {n for g, n in self.index if g == self.live}
        if "join" not in self.without:
            found = {n for n in found if self.images[n].status != "deleted"}
        for n in sorted(found):
            if self.images[n].status == "deleted":
                yield f"a search finds the erased image {n}"
        for n in sorted(self.shown - found):
            if self.images[n].status != "deleted":
                yield f"image {n} has vanished from searches"
        self.shown |= found

    def doctor(self) -> None:
        """Make a delete due for every point without a valid row."""
        for generation, n in list(self.index):
            row = self.ledgers.get((generation, n))
            if generation in self.opened_ones() and (row is None or (row.op, row.state) == ("delete", "applied")):
                self.ledgers[generation, n] = Row("delete", 0 if row is None else row.revision)

    def state(self) -> State:
        return State(
            {n: (i.status, i.revision, i.version, i.encoding) for n, i in self.images.items()},
            {at: (row.op, row.revision, row.state) for at, row in self.ledgers.items() if at[0] in self.opened_ones()},
            dict(self.index),
            frozenset(g for g in self.opened_ones() if g == self.live or self.filled_to == IMAGES),
        )

    def drain(self) -> None:
        """Do all work, with crashes first."""
        for w in range(WORKERS):
            self.crash_worker(w)
        for p in range(PROJECTORS):
            self.lose_connection(p)
        for _ in range(2):
            for n in range(IMAGES):
                self.expire(n)
                _ = self.claim(0, n) and self.decode(0) and self.settle(0)
            while self.fill():
                pass
            for generation, n in list(self.ledgers):
                _ = self.take(0, generation, n) and self.write(0) and self.applied(0)
        while self.land():
            pass

    def settled(self) -> Iterator[str]:
        """Findings at rest: first without the doctor, which must not be needed for these invariants, then with it."""
        self.drain()
        yield from unfinished(self.state())
        yield from incomplete(self.state())
        if "doctor" not in self.without:
            self.doctor()
            self.drain()
        yield from orphans(self.state())
        yield from self.search()


Step = Callable[[Model, random.Random], bool]

#: Steps and weights: steps that open a race are frequent, those that close it rare.
ACTIONS: tuple[tuple[int, Step], ...] = (
    (3, lambda m, r: m.change(r.randrange(IMAGES))),
    (1, lambda m, r: m.describe(r.randrange(IMAGES))),
    (8, lambda m, r: m.claim(r.randrange(WORKERS), r.randrange(IMAGES))),
    (8, lambda m, r: m.decode(r.randrange(WORKERS))),
    (8, lambda m, r: m.settle(r.randrange(WORKERS))),
    (3, lambda m, r: m.expire(r.randrange(IMAGES))),
    (2, lambda m, r: m.crash_worker(r.randrange(WORKERS))),
    (1, lambda m, r: m.erase(r.randrange(IMAGES))),
    (12, lambda m, r: m.take(r.randrange(PROJECTORS), r.choice(m.opened_ones()), r.randrange(IMAGES))),
    (8, lambda m, r: m.write(r.randrange(PROJECTORS))),
    (10, lambda m, r: m.applied(r.randrange(PROJECTORS))),
    (2, lambda m, r: m.lose_connection(r.randrange(PROJECTORS))),
    (1, lambda m, _: m.land()),
    (2, lambda m, _: m.begin()),
    (4, lambda m, _: m.fill()),
    (3, lambda m, _: m.publish()),
)
_WEIGHTS = [weight for weight, _ in ACTIONS]
_STEPS = [step for _, step in ACTIONS]


def walk(seed: int, without: frozenset[str] = frozenset()) -> str | None:
    """The first violation found on this walk, or None."""
    rng, model = random.Random(seed), Model(without)
    for step in rng.choices(_STEPS, _WEIGHTS, k=STEPS):
        if step(model, rng):
            for wrong in model.search():
                return wrong
    return next(model.settled(), None)


@dataclass
class Found:
    """The first violation and the number of walks until it; None after all walks."""

    walks: int
    wrong: str | None = field(default=None)


def explore(walks: int, seed: int, without: frozenset[str] = frozenset()) -> Found:
    """Walk until a violation is found."""
    for n in range(walks):
        if (wrong := walk(seed * 1_000_003 + n, without)) is not None:
            return Found(n + 1, wrong)
    return Found(walks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--walks", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    good = True
    for guard in (None, *GUARDS):
        found = explore(options.walks, options.seed, frozenset({guard} if guard else ()))
        good &= (found.wrong is None) == (guard is None)
        sys.stdout.write(f"without {guard or 'nothing':<12} {found.walks:>6} walks: {found.wrong or 'nothing wrong'}\n")
        sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
