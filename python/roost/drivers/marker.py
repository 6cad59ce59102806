"""The name that every outside resource bears: `<prefix>-<store id>-<epoch>-<uid>-<n>`. Defined here and nowhere else.

A name is made before the resource is, and says whose it is: which store (8 hex), which life of its server (epoch),
which life of which session (uid, 32 hex), which of that session's resources (n, from 1). It is read by whole field: a
name that merely contains one of ours, or begins with it, is somebody else's. Each Marker has one name and each name at
most one Marker, so that names may be compared as strings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_LENGTH: Final = 63  # of a DNS label, the shortest that names of containers, pods and hosts may be
MAX_PREFIX: Final = 8  # leaves 11 digits for epoch and n

# ASCII classes: \d and str.isdigit() would take digits of other scripts.
_PREFIX: Final = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_STORE_ID: Final = re.compile(r"[0-9a-f]{8}")
_NAME: Final = re.compile(rf"({_PREFIX.pattern})-({_STORE_ID.pattern})-(0|[1-9][0-9]*)-([0-9a-f]{{32}})-([1-9][0-9]*)")


def check_prefix(prefix: str) -> str:
    """The prefix, if it can begin a name. ValueError says in one sentence why it cannot."""
    if not _PREFIX.fullmatch(prefix) or len(prefix) > MAX_PREFIX:
        raise ValueError(
            f"the prefix {prefix!r} must have 1 to {MAX_PREFIX} characters of a-z, 0-9 and -, "
            "begin with a letter and not end with -"
        )
    return prefix


@dataclass(frozen=True, slots=True)
class Marker:
    """The fields of a name. `str()` makes the name; ValueError if the fields make none."""

    prefix: str
    store_id: str
    epoch: int
    uid: bytes  # the 16 raw bytes of the session's uid
    n: int

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        if not _STORE_ID.fullmatch(self.store_id):
            raise ValueError(f"the store id {self.store_id!r} must have 8 characters of 0-9 and a-f")
        if self.epoch < 0 or self.n < 1 or len(self.uid) != 16:
            raise ValueError("an epoch is at least 0, n at least 1, and a uid has 16 bytes")
        if len(str(self)) > MAX_LENGTH:
            raise ValueError(f"the name {self} has more than {MAX_LENGTH} characters: choose a shorter prefix")

    def __str__(self) -> str:
        return f"{self.prefix}-{self.store_id}-{self.epoch}-{self.uid.hex()}-{self.n}"

    @classmethod
    def parse(cls, name: str) -> Marker | None:
        """The fields of a name; None for everything that `str()` of a Marker does not make."""
        match = _NAME.fullmatch(name) if len(name) <= MAX_LENGTH else None
        if match is None or len(match[1]) > MAX_PREFIX:
            return None
        return cls(match[1], match[2], int(match[3]), bytes.fromhex(match[4]), int(match[5]))
