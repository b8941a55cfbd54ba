"""The job protocol holds under any interleaving of the model's steps, and each guard is needed."""

import random
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from shared.errors import Conflict, NotFound
from shared.pipeline import erase, lifecycle
from shared.store import generations
from tests.miniature import SECRET, Platform, header
from tests.protocol import model
from tests.protocol.model import GUARDS, Model, State, explore, incomplete, orphans, unfinished

WALKS = 20_000


def test_with_every_guard_no_walk_finds_anything() -> None:
    assert explore(WALKS, seed=1) == model.Found(WALKS)


@pytest.mark.parametrize("guard", GUARDS)
def test_what_a_missing_guard_lets_happen_is_found(guard: str) -> None:
    found = explore(WALKS, seed=1, without=frozenset({guard}))
    assert found.wrong is not None


images = st.integers(0, model.IMAGES - 1)
workers = st.integers(0, model.WORKERS - 1)
projectors = st.integers(0, model.PROJECTORS - 1)


class Machine(RuleBasedStateMachine):
    """The same steps, chosen and shrunk by Hypothesis."""

    without: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.without)

    @rule(n=images)
    def change(self, n: int) -> None:
        self.model.change(n)

    @rule(n=images)
    def describe(self, n: int) -> None:
        self.model.describe(n)

    @rule(w=workers, n=images)
    def claim(self, w: int, n: int) -> None:
        self.model.claim(w, n)

    @rule(w=workers)
    def decode(self, w: int) -> None:
        self.model.decode(w)

    @rule(w=workers)
    def settle(self, w: int) -> None:
        self.model.settle(w)

    @rule(n=images)
    def expire(self, n: int) -> None:
        self.model.expire(n)

    @rule(w=workers)
    def crash(self, w: int) -> None:
        self.model.crash_worker(w)

    @rule(n=images)
    def erase(self, n: int) -> None:
        self.model.erase(n)

    @rule(p=projectors, n=images, building=st.booleans())
    def take(self, p: int, n: int, building: bool) -> None:
        self.model.take(p, self.model.opened_ones()[-1 if building else 0], n)

    @rule(p=projectors)
    def write(self, p: int) -> None:
        self.model.write(p)

    @rule(p=projectors)
    def applied(self, p: int) -> None:
        self.model.applied(p)

    @rule(p=projectors)
    def lose_connection(self, p: int) -> None:
        self.model.lose_connection(p)

    @rule()
    def land(self) -> None:
        self.model.land()

    @rule()
    def begin(self) -> None:
        self.model.begin()

    @rule()
    def fill(self) -> None:
        self.model.fill()

    @rule()
    def publish(self) -> None:
        self.model.publish()

    @invariant()
    def searches_are_right(self) -> None:
        assert list(self.model.search()) == []

    def teardown(self) -> None:
        assert list(self.model.settled()) == []


QUICK = settings(
    max_examples=150, stateful_step_count=40, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck), print_blob=False,
)  # fmt: skip


def test_hypothesis_finds_nothing_either() -> None:
    run_state_machine_as_test(Machine, settings=QUICK)


def test_hypothesis_finds_an_expired_lease_that_nobody_takes() -> None:
    class Broken(Machine):
        without = frozenset({"lease-expiry"})

    with pytest.raises(AssertionError, match="never finished"):
        run_state_machine_as_test(Broken, settings=settings(QUICK, phases=[Phase.generate]))


# --- the same invariants on real rows ---


def rows(platform: Platform) -> State:
    """The state in Postgres and in the index."""
    with platform.begin() as db:
        opened = [one for one in generations.every(db) if one.state == "open"]
        live = generations.live(db)
        images = {
            row.id: (row.status, row.revision, None, None)
            for row in db.execute(sa.text("SELECT id, status, revision FROM image"))
        }
        ledger = db.execute(sa.text("SELECT generation_id, image_id, point_id, op, revision, state FROM ledger")).all()
    numbers = {one.id: one.collection for one in opened}
    image_of = {row.point_id: row.image_id for row in ledger}
    index = {
        (number, image_of[point]): (revision, None)
        for number, collection in numbers.items()
        for batch in platform.index(collection).scan()
        for point, revision in batch
    }
    filled = {one.id for one in opened if one.filled_at is not None}
    assert live is None or live.generation_id in filled
    return State(
        images,
        {(r.generation_id, r.image_id): (r.op, r.revision, r.state) for r in ledger if r.generation_id in numbers},
        index,
        frozenset(filled),
    )


def wrong(state: State) -> list[str]:
    return [*unfinished(state), *incomplete(state), *orphans(state)]


@pytest.fixture
def platform(database_url: str, tmp_path: Path):
    made = Platform(database_url, tmp_path)
    made.add_model()
    yield made
    made.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_real_rows_obey_the_same_invariants(platform: Platform, seed: int) -> None:
    """A random walk over the real functions: files change and are erased, generations are built and published."""
    rng, contents = random.Random(seed), dict.fromkeys(range(12), 0)

    def put() -> None:
        n = rng.randrange(12)
        contents[n] += 1
        platform.put(f"{n:04}.dcm", header(n), f"{n} {contents[n]}".encode() * contents[n])
        platform.scan()

    def erase_one() -> None:
        with platform.begin() as db:
            erase.erase_study(db, SECRET, f"1.2.4.{rng.randrange(3) + 1}")

    def begin() -> None:
        if len(platform.indexes.names()) < 4:
            platform.begin_generation()

    def publish() -> None:
        with platform.begin() as db:
            newest = max(generations.opened(db), key=lambda one: one.generation_id)
            lifecycle.publish(db, newest.generation_id, patience_s=0)

    steps = [put, put, put, platform.encode, platform.encode, platform.project, platform.project, erase_one, begin]
    steps += [platform.reindex, publish]
    for _ in range(40):
        try:
            rng.choice(steps)()
        except (Conflict, NotFound):
            continue
    for _ in range(2):
        platform.encode()
        platform.reindex()
        platform.project()
    state = rows(platform)
    assert wrong(state) == []
    assert state.index


def test_a_lost_point_is_seen_in_real_rows(platform: Platform) -> None:
    platform.take_in(4)
    assert wrong(rows(platform)) == []
    live = platform.index(platform.published().collection)
    live.delete([next(iter(live.scan()))[0][0]])
    assert [finding[:18] for finding in wrong(rows(platform))] == ["generation 1 lacks"]


def test_a_build_labels_old_bytes_as_older_than_those_that_wait(platform: Platform) -> None:
    """A case that the model found: a replaced image is filled in or relabelled before it is encoded again."""
    platform.take_in(4)
    platform.put("0000.dcm", header(0), b"other bytes")
    platform.scan()
    assert rows(platform).images[1][:2] == ("received", 2)
    second = platform.begin_generation()
    platform.reindex()
    assert rows(platform).index[second, 1][0] == 1
    platform.encode()
    platform.project()
    assert rows(platform).index[second, 1][0] == 2
    assert wrong(rows(platform)) == []
