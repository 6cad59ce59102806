"""Log lines on stderr, as JSON or logfmt. Nothing here ever sees content, keys or labels (I25)."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import Any, TextIO, cast

import structlog

_FD = 2  # stderr, without Python's buffer
_writing = threading.Lock()  # more than a pipe takes at once would be mixed with another thread's lines
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(form: str, level: str) -> None:
    """Set up logging for this process. Tracebacks name types and places, never values."""

    def add_pid(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["pid"] = os.getpid()
        return event

    def trace(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Replace an exception by its type and the places it passed: its text could quote a request (I25)."""
        if event.pop("exc_info", None):
            kind, _, at = sys.exc_info()
            places = []
            while at is not None:
                places.append(f"{at.tb_frame.f_globals.get('__name__', '?')}:{at.tb_lineno}")
                at = at.tb_next
            event["error"] = kind.__name__ if kind else "unknown"
            event["at"] = " ".join(places)
        return event

    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event", "pid"], bool_as_flag=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_pid,
            trace,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Library()], force=True)


def write(lines: bytes) -> None:
    """Write whole lines to stderr. When its reader is gone they are lost: a server does not end for want of a log, and
    there is nowhere to say so."""
    view = memoryview(lines)
    with _writing, contextlib.suppress(OSError):
        while view:
            view = view[os.write(_FD, view) :]


class _Stderr:
    """stderr as structlog wants it."""

    def write(self, line: str) -> None:
        write(line.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Nothing is kept back."""


class _Library(logging.Handler):
    """Passes on what libraries log. Others' texts can quote what a handler was given (grpc.aio's do), so of those only
    the place and the type of the exception are kept; Roost's own modules know the rule."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        write = getattr(structlog.get_logger(), "error" if record.levelno >= logging.ERROR else "warning")
        if record.name.startswith("roost."):
            write(record.getMessage(), error=kind)
        else:
            write("library", of=record.name, at=f"{record.module}:{record.lineno}", error=kind)
