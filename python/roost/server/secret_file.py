"""Files with secrets that an operator gives the server: read only where other users cannot. No message quotes them."""

from __future__ import annotations

import os
import stat
from typing import Final

_LARGEST: Final = 16_384  # bytes


class SecretFileError(Exception):
    """The file cannot be used. The message is one sentence for a person, without what is in it."""


def read(file: str, what: str) -> str:
    """The text of a file that only its owner, and perhaps a group that may not write it, can read. `what` names the
    kind of file in messages. SecretFileError."""
    try:
        # Not blocking: the path may be a pipe that nobody writes to.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SecretFileError(f"the {what} {file} is not a file")
            if status.st_mode & 0o027:
                mode = stat.S_IMODE(status.st_mode)
                raise SecretFileError(
                    f"the {what} {file} has mode {mode:04o}: other users can read it; give it mode 0600"
                )
            content = os.read(fd, _LARGEST + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise SecretFileError(f"cannot read the {what} {file}: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise SecretFileError(f"the {what} {file} has more than {_LARGEST} bytes")
    return content.decode("ascii", "replace")
