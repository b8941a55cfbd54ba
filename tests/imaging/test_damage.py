"""Thousands of damaged files through the sandbox: each gets an answer, and no caller fails."""

import os
import time

import damage

from shared.errors import Gate, Outcome, Rejected
from shared.imaging.answers import Inspected
from shared.imaging.gates import metadata_gate, pixel_gate
from shared.imaging.reasons import Reason
from shared.imaging.recipe import Recipe
from shared.types import Decoded

COUNT = int(os.environ.get("MUTANTS", "2000"))
SEED = int(os.environ.get("MUTANT_SEED", "20260101"))
SLOWEST_S = 20.0


def resident_mib():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def test_every_mutant_gets_an_answer_and_the_parent_stays_as_it_was(sandbox):
    recipe, answered, decoded = Recipe(), 0, 0
    mutants = damage.mutants(SEED, COUNT)
    before, deaths = None, sandbox.deaths
    while batch := [mutant for _, mutant in zip(range(100), mutants, strict=False)]:
        begun = time.monotonic()
        for (what, _), answer in zip(batch, sandbox.decode_many([data for _, data in batch], recipe), strict=True):
            answered += 1
            assert time.monotonic() - begun < SLOWEST_S, what
            begun = time.monotonic()
            decoded += check(answer, recipe, what)
        before = before or resident_mib()
    assert answered == COUNT
    assert decoded > COUNT / 20  # enough files pass the header that later code is reached
    assert sandbox.deaths - deaths <= COUNT / 500  # codecs may crash, rarely: our own checks should catch most of it
    assert resident_mib() - before < 50


def check(answer, recipe, what):
    """Return 1 for a picture and 0 for a reason; fail for anything else."""
    if isinstance(answer, Decoded):
        assert answer.pixels.shape[1:] == (recipe.size, recipe.size), what
        assert 0 <= answer.pixels.min() <= answer.pixels.max() <= 1, what
        gate = metadata_gate(answer.header, recipe) or pixel_gate(answer.stats)
        assert gate is None or gate.outcome is Outcome.QUARANTINED, what
        return 1
    assert isinstance(answer, Rejected), what
    assert Reason(answer.reason), what
    assert answer.gate in (None, Gate.LIMITS, Gate.DECODE), what
    return 0


def test_the_same_seed_gives_the_same_mutants():
    assert list(damage.mutants(3, 20)) == list(damage.mutants(3, 20))
    assert list(damage.mutants(3, 20)) != list(damage.mutants(4, 20))


def test_an_inspection_of_mutants_never_raises(sandbox, tmp_path):
    paths = []
    for number, (_, data) in enumerate(damage.mutants(SEED + 1, 300)):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(data)
    answers = sandbox.inspect_many(paths)
    assert len(answers) == 300
    assert all(isinstance(answer, Rejected | Inspected) for answer in answers)
