"""How every process of ours logs: text for people, or JSON lines with what they are about in fields of their own."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

from opentelemetry import trace
from pythonjsonlogger.json import JsonFormatter

FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMAT_VARIABLE = "RAMIFY_LOG_FORMAT"
LEVEL_VARIABLE = "RAMIFY_LOG_LEVEL"
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NAMES = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}

log = logging.getLogger(__name__)

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


def configure(encoding: str = "", level: str = "", **fields: str) -> None:
    """Log to standard error from now on, unless something else was told to log already.

    JSON lines have the fields time, level, logger and message; besides, where they are known, job, tree, shard, engine, tenant
    and trace_id. A line's own come from `extra=`, those of all lines of a task from `about`.

    Args:
        encoding: text or json; empty: what RAMIFY_LOG_FORMAT says, or text.
        level: from which on lines are logged; empty: what RAMIFY_LOG_LEVEL says, or INFO.
        fields: what every line of the process is about.
    """
    handler = logging.StreamHandler()
    encoding = encoding or os.environ.get(FORMAT_VARIABLE, "") or "text"
    level = level or os.environ.get(LEVEL_VARIABLE, "") or "INFO"
    if encoding == "json":
        handler.setFormatter(
            JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp="time", rename_fields=NAMES, json_ensure_ascii=False)
        )
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    handler.addFilter(_Fields(fields))
    logging.basicConfig(level=level if level in LEVELS else "INFO", handlers=[handler])
    for name, given, known in ((FORMAT_VARIABLE, encoding, FORMATS), (LEVEL_VARIABLE, level, LEVELS)):
        if given not in known:  # no reason for a process not to work
            log.warning("%s is %r, none of %s: it is as if it were not set", name, given, ", ".join(known))


@contextlib.contextmanager
def about(**fields: str) -> Iterator[None]:
    """What is logged inside is about these; empty ones are left out."""
    token = _about.set({**_about.get(), **{name: value for name, value in fields.items() if value}})
    try:
        yield
    finally:
        _about.reset(token)


class _Fields(logging.Filter):
    """Adds to each line what it is about, where the line itself does not say."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = fields

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them; every line is kept."""
        found = {**self._fields, **_about.get()}
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            found["trace_id"] = trace.format_trace_id(span.trace_id)
        for name, value in found.items():
            if name not in record.__dict__:
                setattr(record, name, value)
        return True
