"""Masks over columns, against plain loops over the payloads."""

import operator
from collections.abc import Mapping

import numpy as np
import pytest

from shared.index.columns import Columns

PAYLOADS: list[Mapping[str, int | str]] = [
    {"view": "CC", "birads": 4},
    {"view": "MLO", "birads": 0},
    {"view": "CC"},
    {"birads": -3},
    {"view": "LM", "birads": 2**53},
]
FEW = np.array([4, 2, 0])


def columns() -> Columns:
    made = Columns()
    made.grow(2)
    for row, payload in enumerate(PAYLOADS):
        if row == 2:
            made.grow(8)
        made.put(row, payload)
    return made


@pytest.mark.parametrize("values", [["CC"], ["LM", "MLO"], ["none has it"], ["none has it", "CC"], []])
@pytest.mark.parametrize("field", ["view", "laterality"])
def test_a_row_equals_one_of_the_words(field: str, values: list[str]) -> None:
    expected = [payload.get(field) in values for payload in PAYLOADS]
    assert columns().equals_any(field, values, slice(5)).tolist() == expected
    assert columns().equals_any(field, values, FEW).tolist() == [expected[row] for row in FEW]


@pytest.mark.parametrize("values", [[4], [0, -3], [-1], [2**53]])
def test_a_row_equals_one_of_the_numbers(values: list[int]) -> None:
    expected = [payload.get("birads") in values for payload in PAYLOADS]
    assert columns().equals_any("birads", values, slice(5)).tolist() == expected


@pytest.mark.parametrize("bounds", [{"gte": 0}, {"gt": 0, "lte": 4}, {"lt": 4.0}, {"gte": -3, "lt": -2.5}, {}])
def test_a_row_lies_within_bounds_if_it_has_the_field(bounds: dict[str, float]) -> None:
    compare = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
    expected = [
        "birads" in payload and all(compare[name](payload["birads"], bound) for name, bound in bounds.items())
        for payload in PAYLOADS
    ]
    assert columns().within("birads", bounds, slice(5)).tolist() == expected
    assert columns().within("birads", bounds, FEW).tolist() == [expected[row] for row in FEW]
    assert not columns().within("study_date", bounds, slice(5)).any()


def test_a_row_that_is_put_again_keeps_nothing_of_before() -> None:
    made = columns()
    made.put(0, {"birads": 5})
    assert made.equals_any("view", ["CC"], slice(5)).tolist() == [False, False, True, False, False]


def test_a_row_takes_the_place_of_another() -> None:
    made = columns()
    made.move(4, 1)
    assert made.equals_any("view", ["LM"], slice(4)).tolist() == [False, True, False, False]
    assert made.within("birads", {"gte": 5}, slice(4)).tolist() == [False, True, False, False]
