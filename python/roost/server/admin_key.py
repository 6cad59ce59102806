"""The admin key that an operator gives the server: from a file, or from the environment.

It is checked before anything else starts, and no message says what it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

from roost._core import admin_key_fault

VARIABLE: Final = "ROOST_ADMIN_KEY"
_LARGEST: Final = 4_096  # bytes of the file
_MAKE: Final = "make one with `roost keys new-admin-key FILE`"


class AdminKeyError(Exception):
    """The admin key cannot be used. The message is one sentence for a person, without the key."""


def read(file: str, environment: Mapping[str, str]) -> str | None:
    """The key, or None if none is configured. AdminKeyError says what is wrong."""
    given = environment.get(VARIABLE)
    if given is not None and file:
        raise AdminKeyError(f"{VARIABLE} and admin_key_file are both set: set one of them")
    if given is not None:
        return _checked(given.strip(), VARIABLE)
    return _checked(_content(file), f"the file {file}") if file else None


def _checked(key: str, where: str) -> str:
    fault = admin_key_fault(key)
    if fault is not None:
        raise AdminKeyError(f"the admin key of {where} cannot be used: {fault}; {_MAKE}")
    return key


def _content(file: str) -> str:
    """The text of a file that only its owner, and perhaps a group that may not write it, can read."""
    try:
        # Not blocking: the path may be a pipe that nobody writes to.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise AdminKeyError(f"the admin key file {file} is not a file")
            if status.st_mode & 0o027:
                mode = stat.S_IMODE(status.st_mode)
                raise AdminKeyError(
                    f"the admin key file {file} has mode {mode:04o}: other users can read it; give it mode 0600"
                )
            content = os.read(fd, _LARGEST)
        finally:
            os.close(fd)
    except OSError as error:
        raise AdminKeyError(f"cannot read the admin key file {file}: {error.strerror}") from error
    return content.decode("ascii", "replace").strip()
