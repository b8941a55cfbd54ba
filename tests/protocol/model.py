"""The job protocol as a small model: every step that a crash may separate from the next is a step of its own.

Claim, lease and fence of images; ledgers of several generations and their projectors; re-index with its gate; erase;
search with its join; the doctor. Each guard can be left out. A walk takes weighted random steps, then lets everything
settle, and tells the first thing that is not as it must be.

`python -m tests.protocol.model --walks 20000 --seed 1` tells after how many walks each missing guard was found out.

Source: the shape is that of Qdrant's nightly model test and of TLA+-style models checked by random walks.
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
    """`version` is which bytes it has, `encoding` of which the stored vector is; labels raise the revision alone."""

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
    read: int | None = None  #: the version of the bytes that it has decoded


@dataclass
class Projector:
    """What it writes was read under the row's lock."""

    at: tuple[int, int] | None = None
    op: str = ""
    revision: int = 0
    vector: int = 0
    written: bool = False


@dataclass(frozen=True)
class State:
    """What invariants look at, of the model or of real rows.

    Args:
        images: (status, revision, version of its bytes, and of those that were encoded) by image.
        ledgers: (op, revision, state) by generation and image.
        index: (revision, version that the vector shows) by generation and image. Real rows know no versions: None.
        filled: the open generations that have been filled.
    """

    images: dict[int, tuple[str, int, int | None, int | None]]
    ledgers: dict[tuple[int, int], tuple[str, int, str]]
    index: dict[tuple[int, int], tuple[int, int | None]]
    filled: frozenset[int]


def unfinished(state: State) -> Iterator[str]:
    """At rest every job has ended, and nothing stale stands."""
    for image, (status, _, version, encoded) in state.images.items():
        if status in ("received", "encoding"):
            yield f"image {image} is never finished"
        elif status == "encoded" and encoded != version:
            yield f"image {image} is done with stale bytes"
    for at, (_, _, row_state) in state.ledgers.items():
        if row_state == "pending":
            yield f"row {at} is never applied"


def incomplete(state: State) -> Iterator[str]:
    """At rest a filled generation holds every encoded image, as it is."""
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
    """At rest, after the doctor, no index holds what was erased."""
    for generation, image in state.index:
        if generation in state.filled and state.images[image][0] == "deleted":
            yield f"generation {generation} holds the erased image {image}"


class Model:
    """Everything that there is. `without` names the guards that are left out."""

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self.without = without
        self.images = {n: Image() for n in range(IMAGES)}
        self.workers = [Worker() for _ in range(WORKERS)]
        self.projectors = [Projector() for _ in range(PROJECTORS)]
        self.flying: list[Projector] = []  #: writes on their way to the index whose row is locked no more
        self.ledgers: dict[tuple[int, int], Row] = {}
        self.index: dict[tuple[int, int], tuple[int, int]] = {}
        self.live, self.building = 0, -1  #: generations; -1: none is built
        self.filled_to = 0
        self.opened = 1
        self.shown: set[int] = set()

    # --- intake: each returns whether it could be done ---

    def change(self, n: int) -> bool:
        """Other bytes under the same UID."""
        image = self.images[n]
        if image.status == "deleted":
            return False
        image.revision, image.version = image.revision + 1, image.version + 1
        image.status, image.leased = "received", False
        return True

    def describe(self, n: int) -> bool:
        """The same bytes, said to show something else: every ledger is told."""
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
        """What its stored vector is labelled with: older than what is about to be encoded."""
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
        """The lease ends, whether its holder lives or not."""
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
        """Whoever holds the row's lock commits first, as every other writer of the row waits for it."""
        row = self.ledgers.get(at)
        if row is not None and row.locked_by is not None:
            p = row.locked_by
            self.write(p)
            self.applied(p)

    def take(self, p: int, generation: int, n: int) -> bool:
        """Locked, and then read."""
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
        """The index takes it; what is of an older revision than what stands is refused."""
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
        """The lock dies with the connection; what is on its way to the index arrives all the same, some time.

        A late delete is left out: only what was erased is deleted here, and it never returns.
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
        """The oldest write on its way arrives, unless its collection is gone."""
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
        """The next image's stored encoding, unless somebody wrote its row in the meantime."""
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
        """Filled, and it has applied whatever searches find today."""
        rows = [self.ledgers.get((self.building, n)) for n in self.searchable()]
        return self.filled_to == IMAGES and all(row is not None and row.state == "applied" for row in rows)

    def searchable(self) -> set[int]:
        return {n for g, n in self.index if g == self.live and self.images[n].status != "deleted"}

    # --- what is seen ---

    def search(self) -> Iterator[str]:
        """What an answer shows that it must not, and what it has lost."""
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
        """Points that nothing accounts for are due to be deleted."""
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
        """Workers come and go until nothing is left to do."""
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
        """What is wrong at rest: first without the doctor, who must not be needed for this; then with."""
        self.drain()
        yield from unfinished(self.state())
        yield from incomplete(self.state())
        if "doctor" not in self.without:
            self.doctor()
            self.drain()
        yield from orphans(self.state())
        yield from self.search()


Step = Callable[[Model, random.Random], bool]

#: Steps with their weights: what opens a window often, what closes it seldom.
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
    """The first thing that went wrong on this walk."""
    rng, model = random.Random(seed), Model(without)
    for step in rng.choices(_STEPS, _WEIGHTS, k=STEPS):
        if step(model, rng):
            for wrong in model.search():
                return wrong
    return next(model.settled(), None)


@dataclass
class Found:
    """After how many walks something was found, and what; `walks` of nothing otherwise."""

    walks: int
    wrong: str | None = field(default=None)


def explore(walks: int, seed: int, without: frozenset[str] = frozenset()) -> Found:
    """Walks until something is wrong."""
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
