"""Words for pydantic's refusals: what a value must be, and never what it was."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

#: Kinds of error by the words for them; braces name members of the error's context, none of which is the value.
_WORDS = {
    "is required": (
        "missing", "missing_argument", "missing_keyword_only_argument", "missing_positional_only_argument",
    ),
    "is not known": ("extra_forbidden", "unexpected_keyword_argument"),
    "must be a whole number": ("int_type", "int_parsing", "int_parsing_size", "int_from_float"),
    "must be a number": ("float_type", "float_parsing"),
    "must be a finite number": ("finite_number",),
    "must be true or false": ("bool_type", "bool_parsing"),
    "must be text": ("string_type", "string_unicode"),
    "must be a list": ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"),
    "must be an object with named fields": (
        "dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type", "dataclass_exact_type",
    ),
    "must be a path": ("path_type",),
    "must be a UUID, such as 123e4567-e89b-12d3-a456-426614174000": ("uuid_type", "uuid_parsing", "uuid_version"),
    "must be a time with its zone, such as 2024-05-01T08:00:00Z": (
        "datetime_type", "datetime_parsing", "datetime_from_date_parsing", "datetime_object_invalid", "timezone_aware",
        "timezone_offset",
    ),
    "must be above {gt}": ("greater_than",),
    "must be at least {ge}": ("greater_than_equal",),
    "must be below {lt}": ("less_than",),
    "must be at most {le}": ("less_than_equal",),
    "must be a multiple of {multiple_of}": ("multiple_of",),
    "must be {expected}": ("literal_error", "enum"),
    "must have {min_length} or more characters": ("string_too_short",),
    "must have at most {max_length} characters": ("string_too_long",),
    "must have {min_length} or more values": ("too_short",),
    "must have at most {max_length} values": ("too_long",),
}  # fmt: skip
_BY_KIND = {kind: words for words, kinds in _WORDS.items() for kind in kinds}


def must(error: Mapping[str, Any], patterns: Mapping[str, str]) -> str:
    """What the field must be; `patterns` has the words for regular expressions."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return patterns.get(context["pattern"], "does not have the required form")
    if kind in _BY_KIND:
        return _BY_KIND[kind].format(**context)
    return str(error["msg"]).removeprefix("Value error, ")  # of our own validators


def wrong(error: ValidationError) -> str:
    """Every wrong field once, by its place, with what it must be in parentheses."""
    found = {".".join(str(part) for part in one["loc"]): must(one, {}) for one in error.errors(include_input=False)}
    return ", ".join(f"{place} ({words})" for place, words in sorted(found.items()))
