"""The parameters of an address: a name that its route does not know is refused, as in a body.

A filter that is misspelt, or that a route does not have, would else be ignored, and the answer be taken for another.
"""

from fastapi import Request
from fastapi.exceptions import RequestValidationError

OURS = "/v1/"  #: DICOMweb and Prometheus have rules of their own


def check_names(request: Request) -> None:
    """Raises: `RequestValidationError` for a name that the route does not declare.

    Routes that read a model, or all of the address by hand (and document it), refuse unknown names by themselves.
    """
    route = request.scope["route"]
    given = set(request.query_params)
    if not given or not route.path.startswith(OURS) or route.openapi_extra:
        return
    declared = {field.alias: field.field_info.annotation for field in route.dependant.query_params}
    if any(hasattr(kind, "model_fields") for kind in declared.values()):
        return
    unknown = sorted(given - declared.keys())
    if unknown:
        more = {"type": "extra_forbidden", "msg": "", "input": None, "ctx": {"known": sorted(declared)}}
        raise RequestValidationError([{"loc": ("query", name), **more} for name in unknown])
