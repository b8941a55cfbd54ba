"""Log keywords are on the allow-list; others would be dropped silently."""

import ast
import re
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from shared.log import ALLOWED, configure, get
from tests.conftest import ROOT

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
BINDS = {"bind_contextvars", "bound_contextvars"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a logger, or of a function that adds context to log lines, with its place."""
    for top in ("shared", "services", "workers"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and said(node.func):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def said(function: ast.Attribute) -> bool:
    whose = function.value.func.value if logger_of(function.value) else function.value
    return function.attr in BINDS or (
        function.attr in LEVELS and isinstance(whose, ast.Name) and whose.id.lstrip("_") in ("log", "logger")
    )


def logger_of(node: ast.expr) -> bool:
    """Whether the expression is `log.get(__name__)`, used directly."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"


FOUND = list(calls())


def test_the_calls_are_found() -> None:
    files = {place.split(":")[0] for place, _ in FOUND}
    assert {"shared/pipeline/encode.py", "services/vectors/__main__.py", "workers/tasks.py"} <= files


@pytest.mark.parametrize(("place", "call"), FOUND, ids=[place for place, _ in FOUND])
def test_what_is_logged_is_allowed_under_a_constant_name(place: str, call: ast.Call) -> None:
    assert {keyword.arg for keyword in call.keywords} <= ALLOWED | {"exc_info"}
    if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS:
        (event,) = call.args
        assert isinstance(event, ast.Constant)
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", str(event.value))


def test_a_logger_that_has_written_follows_a_later_configuration() -> None:
    configure("test")
    log = get("test")
    log.info("starting")
    configure("test")
    with capture_logs() as told:
        log.info("stopped")
    assert [line["event"] for line in told] == ["stopped"]
