"""Moving the write-ahead log into the database file, away from the commits.

A thread of its own with a connection of its own copies pages (PASSIVE: it waits for nobody and nobody for it)
while the writer goes on. What it cannot do is restart the log, as there are always newer frames under load:
past a limit the writer copies the short rest itself, and its next commit starts the log again from the front.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import apsw

from .connect import patience

# The thread copies whenever this many new pages are in the log (16 MiB): a page that changed many times since is copied
# once.
COPY_FRAMES = 4096
# The writer itself copies the rest, between two commits, when the log has this many pages (64 MiB).
LIMIT_FRAMES = 16384


class Checkpointer:
    """Checkpoints of one store. `committed`, `idle` and `stop` are for the writer thread."""

    def __init__(
        self, writer: apsw.Connection, connect: Callable[[], apsw.Connection], background: bool = True
    ) -> None:
        self._writer = writer
        self._connect = connect
        self._one = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._kicked = 0
        self._frames = 0
        self.failure: Exception | None = None  # an I/O error of the thread: the store must stop
        writer.set_wal_hook(self._on_commit)
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="roost-checkpoint", daemon=True)
            self._thread.start()

    def _on_commit(self, _: apsw.Connection, __: str, frames: int) -> int:
        self._frames = frames
        return apsw.SQLITE_OK

    def committed(self) -> None:
        """After each commit. Raises apsw errors of a checkpoint by the writer; a full disk is none."""
        frames = self._frames
        if frames < self._kicked:
            self._kicked = 0  # the log was started again
        if frames - self._kicked < COPY_FRAMES:
            return
        self._kicked = frames
        if frames >= LIMIT_FRAMES:
            self._checkpoint(self._writer, apsw.SQLITE_CHECKPOINT_PASSIVE)
        elif self._thread is not None:
            self._wake.set()

    def idle(self) -> None:
        """When nothing is queued: empty the log. Raises apsw errors; a full disk or a busy reader is none."""
        if self._frames == 0:
            return
        # Nobody is waited for: a backup reads for minutes, and whatever is queued meanwhile would stand behind it.
        with patience(self._writer, 0):
            if self._checkpoint(self._writer, apsw.SQLITE_CHECKPOINT_TRUNCATE):
                self._frames = self._kicked = 0

    def _checkpoint(self, conn: apsw.Connection, mode: int) -> bool:
        """True if it ran. Only one at a time: a second would get BUSY."""
        if not self._one.acquire(blocking=False):
            return False
        try:
            conn.wal_checkpoint(mode=mode)
            return True
        except (apsw.FullError, apsw.BusyError):
            # No room to grow the database file (the log keeps everything), or a reader holds the log open.
            return False
        finally:
            self._one.release()

    def _run(self) -> None:
        conn: apsw.Connection | None = None
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                if self._stopping:
                    return
                if conn is None:
                    conn = self._connect()
                    # The writer closes last, and copies the rest then.
                    conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                self._checkpoint(conn, apsw.SQLITE_CHECKPOINT_PASSIVE)
        except Exception as error:  # noqa: BLE001 - whatever it is, the store must not go on
            self.failure = error
        finally:
            if conn is not None:
                conn.close()

    def stop(self) -> None:
        """End the thread; returns when its connection is closed."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._writer.set_wal_hook(None)
