"""Log lines on stderr, as JSON or logfmt. Nothing here ever sees content, keys or labels (I25).

A thread of their own writes them: whoever reads stderr slowly, or not at all, holds up nobody.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from typing import Any, Final, TextIO, cast

import structlog

_STDERR: Final = 2  # without Python's buffer
_MOST: Final = 8 << 20  # bytes of lines not yet written: some seconds of a busy server's
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


class Sink:
    """Lines on their way to a file descriptor. When `most` bytes wait, the newest lines are dropped, and a line says
    how many once there is room. When the reader is gone all are lost: a server does not end for want of a log, and
    there is nowhere to say so."""

    def __init__(self, fd: int, most: int = _MOST) -> None:
        self._fd = fd
        self._most = most
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # that wait or are being written
        self._dropped = 0
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None

    def write(self, lines: bytes) -> None:
        """Take whole lines. Never blocks."""
        with self._changed:
            if self._bytes and self._bytes + len(lines) > self._most:
                self._dropped += lines.count(b"\n")
                return
            self._waiting.append(lines)
            self._bytes += len(lines)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="roost-log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until everything is written, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines = self._waiting.popleft()
            try:
                view = memoryview(lines)
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError:
                pass
            with self._changed:
                self._bytes -= len(lines)
                if self._dropped and not self._waiting:
                    # Comes back here through `write`, and finds room: the lock is held.
                    dropped, self._dropped = self._dropped, 0
                    structlog.get_logger("roost.log").warning("lines_dropped", lines=dropped)
                self._changed.notify_all()


_sink = Sink(_STDERR)
write = _sink.write
flush = _sink.flush


class _Stderr:
    """The sink as structlog wants it."""

    def write(self, line: str) -> None:
        write(line.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Nothing waits for another line."""


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
