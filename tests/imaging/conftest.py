import random

import pytest

from shared.imaging.limits import Limits
from shared.imaging.read import quiet_pydicom
from shared.imaging.sandbox import Sandbox

quiet_pydicom()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as box:
        yield box


@pytest.fixture
def boxes():
    """Makes sandboxes with given limits; all are closed afterwards."""
    made = []

    def make(**limits):
        made.append(Sandbox(Limits(**limits)))
        return made[-1]

    yield make
    for box in made:
        box.close()


@pytest.fixture
def rng():
    return random.Random(7)
