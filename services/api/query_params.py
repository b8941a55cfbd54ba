"""Checks of query parameters: an unknown name is refused, as in a body, and so is a single value given twice.

Otherwise a misspelt or unsupported filter, or one of two values, would be ignored without notice.
"""

from collections import Counter
from collections.abc import Iterator
from typing import get_args, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

OURS = "/v1/"  #: DICOMweb and Prometheus have rules of their own


def check_names(request: Request) -> None:
    """Raises: `RequestValidationError` for an undeclared name, or a name that is no list and is given twice.

    Routes that read a model, or parse the query by hand (with `openapi_extra`), refuse unknown names themselves.
    """
    route = request.scope["route"]
    given = Counter(name for name, _ in request.query_params.multi_items())
    if not given or not route.path.startswith(OURS) or route.openapi_extra:
        return
    declared = {field.alias: field.field_info.annotation for field in route.dependant.query_params}
    models = [kind for kind in declared.values() if hasattr(kind, "model_fields")]
    for model in models:
        declared |= {name: field.annotation for name, field in model.model_fields.items()}
    once = [name for name, kind in declared.items() if not _is_list(kind)]
    refuse_twice({name: given[name] for name in once})
    unknown = sorted(given.keys() - declared.keys())
    if unknown and not models:
        more = {"type": "extra_forbidden", "msg": "", "input": None}
        raise RequestValidationError([{"loc": ("query", name), **more} for name in unknown])


def refuse_twice(given: dict[str, int]) -> None:
    """Raises: `RequestValidationError` naming each parameter whose count is above 1."""
    more = {"type": "given_twice", "msg": "is given more than once, but takes one value", "input": None}
    if twice := sorted(name for name, times in given.items() if times > 1):
        raise RequestValidationError([{"loc": ("query", name), **more} for name in twice])


def names_of(route: APIRoute) -> list[str]:
    """Every parameter and field name of this route, to suggest one for a misspelt name."""
    asked = [*route.dependant.query_params, *route.dependant.body_params]
    inside = {name for field in asked for name in _fields(field.field_info.annotation)}
    return sorted(inside | {field.alias for field in route.dependant.query_params})


def _fields(kind: object) -> Iterator[str]:
    for name, field in getattr(kind, "model_fields", {}).items():
        yield name
        yield from _fields(field.annotation)
    for part in get_args(kind):
        yield from _fields(part)


def _is_list(kind: object) -> bool:
    return get_origin(kind) is list or any(map(_is_list, get_args(kind)))
