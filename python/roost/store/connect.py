"""Opening SQLite connections as Roost needs them, and checking the file behind them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import apsw

from .base import StoreError
from .schema import pragma_int

# Before 3.51.3 a WAL that is reset while a second connection checkpoints could corrupt the file.
SQLITE_NEEDED = (3, 51, 3)
PAGE_BYTES = 4096
BUSY_MS = 5000
# A store up to this size is checked page by page at start; a bigger one by `roost doctor` and the daily scrub.
QUICK_CHECK_BYTES = 32 * 1024 * 1024


# Room that a checkpoint at the start leaves for the start itself.
SPARE_BYTES = 8 << 20

# One for each number of rows of each kind of an append (statements.py), and those of the reads.
STATEMENTS = 512


def check_library() -> None:
    """StoreError SQLITE_TOO_OLD if the SQLite in this process has the WAL-reset bug."""
    found = tuple(int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
    if found < SQLITE_NEEDED:
        raise StoreError(
            "SQLITE_TOO_OLD",
            f"Roost needs SQLite {'.'.join(map(str, SQLITE_NEEDED))} or later and found {apsw.sqlite_lib_version()}: "
            "install the apsw wheel that Roost names.",
        )


def connect(path: Path, *, vfs: str | None = None, reader: bool = False) -> apsw.Connection:
    """A connection with the settings that every connection of Roost has. Writes nothing. Raises apsw errors."""
    flags = apsw.SQLITE_OPEN_READONLY if reader else apsw.SQLITE_OPEN_READWRITE
    conn = apsw.Connection(os.fspath(path), flags=flags, vfs=vfs, statementcachesize=STATEMENTS)
    # A cell or a schema that was tampered with is an error, not undefined behaviour.
    conn.pragma("trusted_schema", False)
    conn.pragma("cell_size_check", True)
    # An I/O error in a mapped file would be a SIGBUS.
    conn.pragma("mmap_size", 0)
    conn.pragma("temp_store", "MEMORY")
    conn.pragma("cache_size", -16 * 1024 if reader else -32 * 1024)
    # Records and sessions are deleted by purges that know both: no foreign keys to look up at each insert.
    conn.pragma("foreign_keys", False)
    conn.wal_autocheckpoint(0)
    # Cannot happen between our own connections; a stranger's (a sqlite3 shell) lock is waited for.
    conn.set_busy_timeout(BUSY_MS)
    if reader:
        conn.pragma("query_only", True)
    return conn


@contextlib.contextmanager
def patience(conn: apsw.Connection, ms: int) -> Iterator[None]:
    """How long the connection waits for others, in the block."""
    conn.set_busy_timeout(ms)
    try:
        yield
    finally:
        conn.set_busy_timeout(BUSY_MS)


def make_durable(conn: apsw.Connection) -> None:
    """WAL and an fsync for each commit. Changes a new file. Raises apsw errors, StoreError NO_WAL."""
    conn.pragma("page_size", PAGE_BYTES)
    mode = conn.pragma("journal_mode", "WAL")
    if mode != "wal":
        raise StoreError(
            "NO_WAL", f"SQLite cannot use a write-ahead log here (it answers {mode}): give --data-dir on a local disk."
        )
    conn.pragma("synchronous", "FULL")


def check_pages(conn: apsw.Connection, path: Path) -> None:
    """StoreError CORRUPT if the file is visibly damaged. Bounded: well under a second whatever its size."""
    try:
        small = path.stat().st_size <= QUICK_CHECK_BYTES
        short = False
        # Copying the log may take as much room as the log has; a full disk would be left without the block that the
        # start itself needs.
        log = path.with_name(path.name + "-wal")
        free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        if free > (log.stat().st_size if log.exists() else 0) + SPARE_BYTES:
            with contextlib.suppress(apsw.FullError, apsw.BusyError), patience(conn, 0):
                conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                # All pages are in the file now.
                short = path.stat().st_size < pragma_int(conn, "page_count") * pragma_int(conn, "page_size")
        if short:
            raise corrupt(path, "it is shorter than its header says")
        checks = ("PRAGMA quick_check(1)",) if small else ("PRAGMA quick_check('meta')", "PRAGMA quick_check('shard')")
        for check in checks:
            found = conn.execute(check).get
            if found != "ok":
                raise corrupt(path, str(found))
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise corrupt(path, str(error)) from error


def corrupt(path: Path, detail: str) -> StoreError:
    """What to tell a person about a damaged file."""
    return StoreError("CORRUPT", f"{path} is damaged ({detail.splitlines()[-1][:200]}): restore the newest backup.")
