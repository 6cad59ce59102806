"""The reserve file: 64 MiB beside the store, given up when the disk is full so that work in flight can end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 64 * 1024 * 1024
# Making the reserve must leave this much free, or the next append would give it up again at once.
MARGIN_BYTES = 8 * 1024 * 1024
# With less than this free, the store calls itself full.
SMALL_BYTES = 1024 * 1024


def _allocate(path: Path, size: int) -> None:
    """Make a file of `size` bytes that are really there. Raises OSError and leaves no file behind."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


class Reserve:
    """The reserve file of one store. Used by the writer thread alone."""

    def __init__(self, path: Path, size: int = RESERVE_BYTES, margin: int = MARGIN_BYTES) -> None:
        self._path = path
        self._size = size
        self._margin = margin
        self.held = path.is_file() and path.stat().st_size == size

    def make(self) -> None:
        """Allocate it if it is not there. Raises OSError (ENOSPC and others), then nothing is held."""
        if self.held:
            return
        trial = self._path.with_suffix(".trial")
        try:
            _allocate(trial, self._size + self._margin)
            os.truncate(trial, self._size)
            trial.rename(self._path)
        except OSError:
            trial.unlink(missing_ok=True)
            raise
        # Its name is not made durable: a reserve that a power cut takes away is made again at the next start.
        self.held = True

    def give_up(self) -> bool:
        """Free its room. False if there was none to free."""
        if not self.held:
            return False
        self.held = False
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            return True
        return False

    def probe(self) -> str:
        """ "ok": held, or just made again. "low": gone, a little room is left. "full": not even that."""
        with suppress(OSError):
            self.make()
            return "ok"
        trial = self._path.with_suffix(".trial")
        try:
            _allocate(trial, SMALL_BYTES)
            trial.unlink()
        except OSError:
            return "full"
        return "low"

    def size(self) -> int:
        """Its bytes on disk now."""
        return self._size if self.held else 0
