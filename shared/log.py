"""Structured logs: constant event names, data in keywords, never a patient attribute."""

import logging
import sys
from typing import Any

import structlog

#: Keywords that may be logged. Anything else is dropped, so that a careless call cannot leak.
ALLOWED = frozenset(
    {
        "event", "level", "timestamp", "logger", "process", "pid", "role", "trace_id", "task", "queue",
        "operation_id", "image_id", "study_id", "generation_id", "generation", "model", "fingerprint",
        "key_prefix", "count", "done", "total", "attempt", "outcome", "gate", "reason", "status", "state",
        "duration_ms", "method", "route", "code", "error", "port", "host", "address", "version", "bytes", "limit",
        "rc", "signal", "collection", "after_s", "points", "pending", "engine", "lease_s", "exception_type", "where",
    }
)  # fmt: skip


def _keep_allowed(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # keys with a leading _ are structlog's own: without them the record of a library cannot be written
    return {key: value for key, value in event.items() if key in ALLOWED or key.startswith("_")}


def _name_exception(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace an exception by its type and its traceback locations: its text may quote a header value."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        event["exception_type"] = info[0].__name__
        places, tb = [], info[2]
        while tb is not None:
            places.append(f"{tb.tb_frame.f_globals.get('__name__', '?')}:{tb.tb_lineno}")
            tb = tb.tb_next
        event["where"] = " > ".join(places[-8:])
    return event


_processors: list[Any] = []  # changed in place: a logger that has written keeps the list object


class _Safe(logging.Filter):
    """Library records: keep the template, drop the arguments (they may be values from a file)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.msg, dict):  # a structlog record arrives as a dict
            record.args = None
        return True


def configure(role: str, *, json: bool = True, level: str = "INFO") -> None:
    """Send every log line of this process to stderr, as JSON or for people."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_exception,
        _keep_allowed,
    ]
    _processors[:] = [*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
    structlog.configure(
        processors=_processors,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_Safe())
    logging.raiseExceptions = False  # else a failing handler prints the whole exception, values included
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its messages come already formatted, with values
    for noisy in ("httpx", "httpcore", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel("WARNING")
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(role=role)


def get(name: str) -> structlog.stdlib.BoundLogger:
    return structlog.stdlib.get_logger(name)
