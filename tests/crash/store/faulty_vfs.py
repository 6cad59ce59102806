"""A SQLite VFS that fails the Nth write, sync, truncate or delete, once or from then on."""

from __future__ import annotations

import itertools
from typing import Any

import apsw

_names = itertools.count(1)

CODES = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
}


def _io_error(kind: str) -> apsw.IOError:
    error = apsw.IOError(f"injected: {kind}")
    error.extendedresult = CODES[kind]
    return error


class FaultyVfs(apsw.VFS):
    """Passes everything on to the default VFS and counts. Not thread-safe: for stores without a checkpoint thread.

    `fail_at` is the number of the operation that fails (0: none), `full` makes it a full disk instead of an I/O
    error (a disk that is full does not fail a sync: those pass), `torn` writes half of what it was given first,
    `lasting` fails all later ones too.
    """

    def __init__(self, fail_at: int = 0, *, full: bool = False, torn: bool = False, lasting: bool = False) -> None:
        self.vfs_name = f"faulty{next(_names)}"
        self.count = 0
        self.fail_at = fail_at
        self.full = full
        self.torn = torn
        self.lasting = lasting
        self.hit = ""
        super().__init__(self.vfs_name, "")

    def xOpen(self, name: Any, flags: Any) -> FaultyFile:  # noqa: N802
        return FaultyFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.step("delete")
        super().xDelete(filename, syncdir)

    def due(self, kind: str) -> bool:
        if self.full and kind != "write":
            return False
        self.count += 1
        if self.fail_at and (self.count == self.fail_at or (self.lasting and self.count > self.fail_at)):
            self.hit = self.hit or kind
            return True
        return False

    def error(self, kind: str) -> apsw.Error:
        return apsw.FullError("injected: full") if self.full else _io_error(kind)

    def step(self, kind: str) -> None:
        if self.due(kind):
            raise self.error(kind)


class FaultyFile(apsw.VFSFile):
    """A file of FaultyVfs."""

    def __init__(self, vfs: FaultyVfs, name: Any, flags: Any) -> None:
        self._vfs = vfs
        super().__init__("", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        if self._vfs.due("write"):
            if self._vfs.torn:
                super().xWrite(bytes(data)[: len(data) // 2], offset)
            raise self._vfs.error("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._vfs.step("sync")
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._vfs.step("truncate")
        super().xTruncate(size)
