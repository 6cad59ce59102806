"""The server's secret: 32 random bytes from which the keys of tenants and sessions are made.

A file of its own beside the store, not a row in it: whoever has a copy of the store, a backup for example, has the
hashes of keys and not what makes them. Without the file a new one is made: the keys of tenants stay valid, because
their hashes are in the store, and those of sessions end.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from .base import StoreError
from .claim import fsync_dir, unwritable

SECRET_FILE: Final = "roost.secret"
_BYTES: Final = 32


def read_or_make(directory: Path) -> bytes:
    """The secret of the store in a claimed directory. StoreError BAD_SECRET for a file that cannot be trusted,
    UNWRITABLE or DISK_FULL where none can be made."""
    path = directory / SECRET_FILE
    try:
        return read(path)
    except FileNotFoundError:
        return _make(directory, path)


def read(path: Path) -> bytes:
    """The secret in a file. StoreError BAD_SECRET for one that cannot be trusted, FileNotFoundError for none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _bad(path, "is not a file")
        if status.st_mode & 0o077:
            raise _bad(path, "can be read by other users: give it mode 0600, and revoke the keys if any might have")
        value = os.read(fd, _BYTES + 1)
    finally:
        os.close(fd)
    if len(value) != _BYTES:
        raise _bad(path, "is damaged: restore it from a backup, or remove it, which ends the keys of sessions")
    return value


def _make(directory: Path, path: Path) -> bytes:
    """Written whole under another name, then renamed: no crash leaves half of one."""
    value = secrets.token_bytes(_BYTES)
    made = path.with_suffix(".secret-new")
    try:
        made.unlink(missing_ok=True)
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            if os.write(fd, value) != len(value):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
        made.rename(path)
        fsync_dir(directory)
    except OSError as error:
        raise unwritable(directory, error) from error
    return value


def _bad(path: Path, why: str) -> StoreError:
    return StoreError("BAD_SECRET", f"The server's secret {path} {why}.")
