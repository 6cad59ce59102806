"""Names of dumps and of what they are made of. Nothing else is ever written, read or listed in a target."""

from __future__ import annotations

import re
from typing import Final

from roost.handlers.dump.errors import DumpError, Why

MANIFEST: Final = "manifest.json"
MOST_PARTS: Final = 100_000

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_DUMP = re.compile(rf"([0-9a-f]{{32}})/({_UUID})-([1-9][0-9]{{0,9}})")
_OBJECT = re.compile(rf"(?:{_DUMP.pattern})/(?:manifest\.json|part-[0-9]{{5}}\.jsonl\.zst)")


def part_name(number: int) -> str:
    """The name of a part inside its dump; they sort in their order."""
    if not 0 <= number < MOST_PARTS:
        raise DumpError(Why.INVALID, f"a dump has at most {MOST_PARTS:,} parts")
    return f"part-{number:05}.jsonl.zst"


def check_dump(name: str) -> tuple[str, str, int]:
    """Tenant uid, session uid and close number of a dump's name; DumpError INVALID if it is none."""
    found = _DUMP.fullmatch(name)
    if found is None:
        raise DumpError(Why.INVALID, "the name is not that of a dump: it is <tenant uid>/<session uid>-<close number>")
    return found[1], found[2], int(found[3])


def check_object(name: str) -> tuple[str, str, str]:
    """The three components of the name of a manifest or part. Whatever was asked for, it stays in its target."""
    if _OBJECT.fullmatch(name) is None:
        raise DumpError(Why.INVALID, "the name is not that of a part or manifest of a dump")
    tenant, dump, file = name.split("/")
    return tenant, dump, file


def is_dump_of(tenant: str, directory: str) -> bool:
    """Whether these are the first two components of the name of a dump."""
    return _DUMP.fullmatch(f"{tenant}/{directory}") is not None
