"""The manifest of a dump: what it is of, what its parts must be. Written last, read with distrust."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from roost._core import DUMP_SCHEMA
from roost.handlers.dump.errors import DumpError, Why
from roost.handlers.dump.names import MOST_PARTS, check_dump, part_name

MOST_BYTES: Final = 32 << 20  # of a manifest; the most parts that a dump may have take less
MOST_PART_BYTES: Final = 160 << 20  # of a stored part: the longest there is, even if it cannot be compressed
_HASH: Final = re.compile("[0-9a-f]{64}")
_LARGEST: Final = 1 << 62
_COUNTS: Final = {"records", "trajectories", "lines", "bytes"}


@dataclass(frozen=True)
class Part:
    """One file of a dump."""

    name: str
    bytes: int  # as stored
    raw_bytes: int  # uncompressed
    lines: int
    sha256: str  # of what is stored, hex


@dataclass(frozen=True)
class Counts:
    """What a dump holds in all."""

    records: int  # events included
    trajectories: int
    lines: int
    bytes: int  # of all lines, uncompressed
    mail: int = 0  # messages; from schema 2 on

    @property
    def schema(self) -> int:
        """The lowest one that can hold so much: of which a dump is."""
        return 2 if self.mail else 1


@dataclass(frozen=True)
class Manifest:
    """What a dump is of. `sha256` is over all lines, uncompressed."""

    schema: int
    roost: str  # the version that wrote it
    uid: str
    close_number: int
    counts: Counts
    sha256: str
    parts: tuple[Part, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts, as stored."""
        return sum(part.bytes for part in self.parts)

    def same_content(self, other: Manifest) -> bool:
        """Whether both are of dumps of the same close with the same lines, whoever compressed them."""
        mine = (self.schema, self.uid, self.close_number, self.counts, self.sha256)
        return mine == (other.schema, other.uid, other.close_number, other.counts, other.sha256)

    def encode(self) -> bytes:
        """As it is stored."""
        values = asdict(self)
        if not self.counts.mail:
            del values["counts"]["mail"]
        return json.dumps(values, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, name: str) -> Manifest:
        """The manifest of the dump of this name; DumpError DAMAGED or NEWER."""
        _, uid, close_number = check_dump(name)
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise _damaged(name, "it is not JSON") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        if type(schema) is not int or schema < 1:
            raise _damaged(name, "it names no schema")
        if schema > DUMP_SCHEMA:
            said = (
                f"dump {name} has schema {schema}, and this version of Roost reads up to {DUMP_SCHEMA}: use a newer one"
            )
            raise DumpError(Why.NEWER, said)
        fields = {"schema", "roost", "uid", "close_number", "counts", "sha256", "parts"}
        if values.keys() != fields or not isinstance(values["roost"], str) or not isinstance(values["parts"], list):
            raise _damaged(name, "its fields are not those of a manifest")
        if values["uid"] != uid or values["close_number"] != close_number:
            raise _damaged(name, "it is that of another dump")
        if not 0 < len(values["parts"]) <= MOST_PARTS:
            raise _damaged(name, "it names no parts, or too many")
        manifest = cls(
            schema=schema,
            roost=values["roost"],
            uid=uid,
            close_number=close_number,
            counts=Counts(**_numbers(values["counts"], _COUNTS | ({"mail"} if schema > 1 else set()), name)),
            sha256=_hash(values["sha256"], name),
            parts=tuple(_part(part, number, name) for number, part in enumerate(values["parts"])),
        )
        if manifest.counts.schema != schema:
            raise _damaged(name, "its schema is not that of what it counts")
        sums = (sum(part.lines for part in manifest.parts), sum(part.raw_bytes for part in manifest.parts))
        if sums != (manifest.counts.lines, manifest.counts.bytes):
            raise _damaged(name, "its counts do not add up")
        return manifest


def _part(values: Any, number: int, name: str) -> Part:
    if not isinstance(values, dict) or values.get("name") != part_name(number):
        raise _damaged(name, f"part {number} does not have its name")
    rest = {key: value for key, value in values.items() if key not in {"name", "sha256"}}
    numbers = _numbers(rest, {"bytes", "raw_bytes", "lines"}, name)
    if numbers["bytes"] > MOST_PART_BYTES:
        raise _damaged(name, f"part {number} is longer than a part may be")
    return Part(name=values["name"], sha256=_hash(values.get("sha256"), name), **numbers)


def _numbers(values: Any, keys: set[str], name: str) -> dict[str, int]:
    if not isinstance(values, dict) or values.keys() != keys:
        raise _damaged(name, "its fields are not those of a manifest")
    if not all(type(value) is int and 0 <= value < _LARGEST for value in values.values()):
        raise _damaged(name, "one of its numbers is none")
    return values


def _hash(value: Any, name: str) -> str:
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        raise _damaged(name, "one of its hashes is none")
    return value


def _damaged(name: str, what: str) -> DumpError:
    return DumpError(Why.DAMAGED, f"the manifest of dump {name} is damaged: {what}")
