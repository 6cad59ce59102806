"""What can be wrong with a dump or the place where it lies: one exception, with a word that never changes."""

from __future__ import annotations

import enum


class Why(enum.StrEnum):
    """Stable words, for logs, metrics and back-off."""

    FULL = "full"  # no room; quota included
    DENIED = "denied"  # not allowed, or read-only
    UNREACHABLE = "unreachable"  # gone, not mounted, no such bucket, no connection
    SLOW = "slow"  # the time limit of an operation passed
    SERVER_ERROR = "server-error"  # the store or the disk failed
    CONFLICT = "conflict"  # there is another dump of the same close
    INVALID = "invalid"  # URL, options or name are wrong
    NOT_FOUND = "not-found"  # no such session, or no such dump
    DAMAGED = "damaged"  # a dump that is not what its manifest says
    NEWER = "newer"  # a dump of a newer version of Roost
    CORRUPT = "corrupt"  # the session in the store does not verify (I23)
    NOT_ENDED = "not-ended"  # the session is open


class DumpError(Exception):
    """One clear sentence, without content, secrets or ids that a client chose (I25)."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why
