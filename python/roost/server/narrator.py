"""The thread that writes what the engine tells of turns and sessions, and the heartbeat.

Beside the event loop, because a busy server ends thousands of turns a second. Events are kept in memory until they are
written; when writing cannot keep up, the newest are dropped, and a line says how many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import psutil
import structlog

from roost.server import logs

if TYPE_CHECKING:
    from roost._core import Engine

_PAUSE: Final = 0.1  # seconds between two looks: lines are written in batches
_MIB: Final = 1 << 20

log = structlog.get_logger("roost.turns")


class Narrator:
    """Writes turn lines (`form`: json or logfmt) and heartbeats until it is stopped. `requests` counts the RPCs."""

    def __init__(self, engine: Engine, form: str, requests: Callable[[], int], heartbeat_ms: int) -> None:
        self._engine = engine
        self._form = form
        self._requests = requests
        self._every = heartbeat_ms / 1_000
        self._started = self._last = time.monotonic()
        self._counted = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="roost-narrator", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what there is, and end the thread."""
        self._stop.set()
        self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            try:
                self._write()
                if self._every and time.monotonic() - self._last >= self._every:
                    self._last = time.monotonic()
                    log.info("heartbeat", **self.heartbeat())
            except Exception:
                # A line that cannot be made must not take the others along.
                log.exception("narrator_failed")

    def _write(self) -> None:
        lines, dropped = self._engine.event_lines(self._form)
        if lines:
            logs.write(lines)
        if dropped:
            log.warning("events_dropped", events=dropped)

    def heartbeat(self) -> dict[str, Any]:
        """The numbers of one heartbeat."""
        stats, requests = self._engine.stats(), self._requests()
        since, self._counted = requests - self._counted, requests
        memory = self._process.memory_info()
        return {
            "uptime_s": round(time.monotonic() - self._started),
            "reqs_total": requests,
            "reqs_since_last": since,
            "turns_completed": stats["turns_committed"],
            "turns_begun": stats["turns_begun"],
            "running": stats["turns_running"],
            "waiting": stats["waiting"],
            "resident": stats["resident_sessions"],
            "rss_mb": round(memory.rss / _MIB, 1),
            "vms_mb": round(memory.vms / _MIB, 1),
            "journal_entries": stats["journal_entries"],
            "journal_bytes": stats["journal_bytes"],
            "journal_lag_ms": stats["journal_lag_ms"],
        }
