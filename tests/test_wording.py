"""Refusals say what a value must be, in words of our own, and never what it was."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, get_args
from uuid import UUID

import pytest
from pydantic import AfterValidator, AwareDatetime, Field, TypeAdapter, ValidationError
from pydantic_core import core_schema

from shared import wording


def said(kind, value, patterns=None):
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(value)
    (error,) = refused.value.errors()
    return wording.must(error, patterns or {})


def _refuse(_):
    raise ValueError("hours must look like 22:00-06:00")


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "SECRET", "must be a whole number"),
        (int, 1.5, "must be a whole number"),
        (int, "9" * 5000, "must be a whole number"),
        (float, "SECRET", "must be a number"),
        (bool, "SECRET", "must be true or false"),
        (str, 7, "must be text"),
        (list[str], "SECRET", "must be a list"),
        (tuple[str, ...], "SECRET", "must be a list"),
        (dict[str, str], "SECRET", "must be an object with named fields"),
        (UUID, "SECRET", "must be a UUID, such as 123e4567-e89b-12d3-a456-426614174000"),
        (AwareDatetime, "SECRET", "must be a time with its zone, such as 2024-05-01T08:00:00Z"),
        (AwareDatetime, datetime(2024, 5, 1), "must be a time with its zone, such as 2024-05-01T08:00:00Z"),  # noqa: DTZ001
        (Path, 7, "must be a path"),
        (Annotated[float, Field(gt=0)], 0, "must be above 0.0"),
        (Annotated[int, Field(ge=1)], 0, "must be at least 1"),
        (Annotated[int, Field(le=200)], 201, "must be at most 200"),
        (Annotated[int, Field(multiple_of=8)], 9, "must be a multiple of 8"),
        (Literal["dense", "hash", "hybrid"], "SECRET", "must be 'dense', 'hash' or 'hybrid'"),
        (Annotated[str, Field(max_length=3)], "SECRET", "must have at most 3 characters"),
        (Annotated[list[int], Field(min_length=2)], [1], "must have 2 or more values"),
        (Annotated[str, AfterValidator(_refuse)], "SECRET", "hours must look like 22:00-06:00"),
    ],
)
def test_a_refusal_says_what_is_allowed(kind, value, words):
    assert said(kind, value) == words


def test_a_pattern_is_told_in_words_and_never_as_it_is_written():
    digits = Annotated[str, Field(pattern="^[0-9]+$")]
    assert said(digits, "SECRET", {"^[0-9]+$": "a number has digits only"}) == "a number has digits only"
    assert said(digits, "SECRET") == "does not have the required form"


def test_every_kind_that_has_words_is_one_of_pydantics():
    assert set(wording._BY_KIND) - set(get_args(core_schema.ErrorType)) == {"path_type"}  # of pydantic, not its core
